//! Property names of JSON as identifiers of expressions, and back: `a-b` is `a__dash__b`.

/// Words that the language keeps for itself, beside those that it uses.
pub(crate) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether a word is no identifier.
pub fn is_reserved(word: &str) -> bool {
    matches!(word, "true" | "false" | "null" | "in") || RESERVED.contains(&word)
}

const ESCAPES: [(&str, &str); 4] =
    [("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")];

/// The identifier that stands for a property's name; `None` where expressions cannot name it.
pub fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    if is_reserved(name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    'next: while let Some(c) = rest.chars().next() {
        for (plain, escaped) in ESCAPES {
            if let Some(after) = rest.strip_prefix(plain) {
                out.push_str(escaped);
                rest = after;
                continue 'next;
            }
        }
        if !(c.is_ascii_alphanumeric() || c == '_') {
            return None;
        }
        out.push(c);
        rest = &rest[1..];
    }
    Some(out)
}

/// The property's name that an identifier stands for; `None` if its escapes are wrong.
pub fn unescape(ident: &str) -> Option<String> {
    let mut out = String::with_capacity(ident.len());
    let mut rest = ident;
    while let Some(start) = rest.find("__") {
        let inner = &rest[start + 2..];
        let word_len = inner.bytes().take_while(|b| *b != b'_').count();
        if word_len == 0 || !inner[word_len..].starts_with("__") {
            // No escape begins at these underscores.
            out.push_str(&rest[..start + 1]);
            rest = &rest[start + 1..];
            continue;
        }
        let word = &inner[..word_len];
        out.push_str(&rest[..start]);
        match word {
            "underscores" => out.push_str("__"),
            "dot" => out.push('.'),
            "dash" => out.push('-'),
            "slash" => out.push('/'),
            _ if is_reserved(word) && word_len + 4 == ident.len() => out.push_str(word),
            _ => return None,
        }
        rest = &inner[word_len + 2..];
    }
    out.push_str(rest);
    Some(out)
}
