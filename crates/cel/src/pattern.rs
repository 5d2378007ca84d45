//! Regular expressions in RE2's syntax, as Go reads it, by the `regex` crate: `\d`, `\w`, `\s` and `\b` mean ASCII,
//! and the characters that only Rust gives a meaning inside a class stand for themselves.

use regex::{Regex, RegexBuilder};

/// The largest program of a pattern, in bytes.
const MAX_PROGRAM: usize = 10 << 20;
/// The most repetitions that a counted repetition may ask for.
const MAX_REPEAT: u32 = 1000;

/// Compiles a pattern.
///
/// # Errors
/// If it is no regular expression, in Go's words.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let translated = translate(pattern)?;
    RegexBuilder::new(&translated).size_limit(MAX_PROGRAM).build().map_err(|why| {
        let why = why.to_string();
        let last = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let words = [
            ("unclosed group", "missing closing )"),
            ("unopened group", "unexpected )"),
            ("unclosed character class", "missing closing ]"),
            ("repetition operator missing expression", "missing argument to repetition operator"),
            ("unrecognized escape sequence", "invalid escape sequence"),
            ("look-around", "invalid or unsupported Perl syntax"),
        ];
        let last = words.iter().find(|(word, _)| last.starts_with(word)).map_or(&*last, |(_, go)| go);
        format!("error parsing regexp: {last}: `{pattern}`")
    })
}

fn translate(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    let mut class = false;
    let mut class_start = false;
    let mut counting = false;
    // Where the repetition began that what comes next would repeat again.
    let mut repeated: Option<usize> = None;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let at = pattern.len() - rest.len();
        let counts = c == '{' && repeat(after).is_some();
        if !class && (matches!(c, '*' | '+' | '?') || counts) {
            match repeated {
                Some(first) if c != '?' || pattern[first..at].ends_with('?') => {
                    let end = if counts { at + 2 + after.find('}').unwrap_or(0) } else { at + 1 };
                    let both = &pattern[first..end];
                    return Err(format!(
                        "error parsing regexp: invalid nested repetition operator: `{both}`"
                    ));
                }
                Some(_) => {}
                None => repeated = Some(at),
            }
        } else if !counting {
            repeated = None;
        }
        if c == '\\' {
            let Some(letter) = after.chars().next() else {
                return Err("error parsing regexp: trailing backslash at end of expression: ``".into());
            };
            rest = &after[letter.len_utf8()..];
            class_start = false;
            match letter {
                'd' => out.push_str(if class { "0-9" } else { "[0-9]" }),
                'D' => out.push_str("[^0-9]"),
                'w' => out.push_str(if class { "0-9A-Za-z_" } else { "[0-9A-Za-z_]" }),
                'W' => out.push_str("[^0-9A-Za-z_]"),
                's' => out.push_str(if class { r"\t\n\f\r " } else { r"[\t\n\f\r ]" }),
                'S' => out.push_str(r"[^\t\n\f\r ]"),
                'b' if !class => out.push_str(r"(?-u:\b)"),
                'B' if !class => out.push_str(r"(?-u:\B)"),
                'Q' if !class => {
                    let end = rest.find(r"\E").unwrap_or(rest.len());
                    out.push_str(&regex::escape(&rest[..end]));
                    rest = rest[end..].strip_prefix(r"\E").unwrap_or_default();
                }
                _ if letter.is_ascii_digit() && letter != '0' => {
                    return Err(format!("error parsing regexp: invalid escape sequence: `\\{letter}`"));
                }
                '0' => {
                    let len = rest.bytes().take(2).take_while(|b| (b'0'..=b'7').contains(b)).count();
                    let value = u32::from_str_radix(&rest[..len], 8).unwrap_or(0);
                    out.push_str(&format!("\\x{{{value:x}}}"));
                    rest = &rest[len..];
                }
                _ => {
                    out.push('\\');
                    out.push(letter);
                    if matches!(letter, 'x' | 'p' | 'P') && rest.starts_with('{') {
                        let end = rest.find('}').map_or(rest.len(), |end| end + 1);
                        out.push_str(&rest[..end]);
                        rest = &rest[end..];
                    }
                }
            }
            continue;
        }
        rest = after;
        if class {
            match c {
                ']' if !class_start => class = false,
                '[' if after.starts_with(':') => {
                    if let Some(end) = after.find(":]") {
                        out.push('[');
                        out.push_str(&after[..end + 2]);
                        rest = &after[end + 2..];
                        class_start = false;
                        continue;
                    }
                    out.push('\\');
                }
                '[' | '&' | '~' => out.push('\\'),
                ']' => out.push('\\'),
                '-' if after.starts_with('-') => out.push('\\'),
                '^' if class_start && out.ends_with('[') => {
                    out.push('^');
                    continue;
                }
                _ => {}
            }
            class_start = false;
            out.push(c);
            continue;
        }
        match c {
            '[' => {
                class = true;
                class_start = true;
            }
            '{' => match repeat(after) {
                Some(most) if most > MAX_REPEAT => {
                    let end = after.find('}').unwrap_or(0);
                    return Err(format!(
                        "error parsing regexp: invalid repeat count: `{{{}`",
                        &after[..=end]
                    ));
                }
                Some(_) => counting = true,
                // Braces that count nothing stand for themselves.
                None => out.push('\\'),
            },
            '}' if !std::mem::take(&mut counting) => out.push('\\'),
            _ => {}
        }
        out.push(c);
    }
    Ok(out)
}

/// The largest count of `{n}`, `{n,}` or `{n,m}`, without its first brace.
fn repeat(rest: &str) -> Option<u32> {
    let inner = &rest[..rest.find('}')?];
    let (least, most) = inner.split_once(',').unwrap_or((inner, inner));
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u32::MAX))
    };
    let least = number(least)?;
    Some(if most.is_empty() { least } else { least.max(number(most)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        let matches = |pattern: &str, text: &str| compile(pattern).map(|regex| regex.is_match(text));
        for (pattern, text, wanted) in [
            (r"^\d+$", "123", true),
            (r"^\d+$", "\u{663}", false),
            (r"^[\w.-]+$", "a_b-c.d", true),
            (r"^[\w]+$", "\u{e9}", false),
            (r"^[^\s]+$", "ab", true),
            (r"^[[:alpha:]]+$", "ab", true),
            (r"^[]a]+$", "]a", true),
            (r"^[^]a]+$", "bc", true),
            (r"^[a&&b]+$", "a&b", true),
            (r"^[[a]+$", "[a", true),
            (r"^[a--b]+$", "a", true),
            (r"^a{2}$", "aa", true),
            (r"^a{,2}$", "a{,2}", true),
            (r"^{}$", "{}", true),
            (r"\bfoo\b", "a foo b", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\x{41}\p{Greek}$", "A\u{3b1}", true),
            (r"(?i)^ABC$", "abc", true),
            (r"^.$", "\u{e9}", true),
            (r"^(?P<name>a)$", "a", true),
            (r"^([a-z]|[0-9]){1,3}$", "a1", true),
        ] {
            assert_eq!(matches(pattern, text), Ok(wanted), "{pattern} on {text}");
        }
        for pattern in ["(", "a{1001}", r"\", "[a", "*a", r"(a)\1", "(?<!a)b"] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
    }
}
