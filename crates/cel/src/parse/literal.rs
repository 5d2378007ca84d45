//! The values of literals.

use super::ast::Literal;
use super::lexer::{Kind, Token};

/// The value of a literal's token; `minus` stands before it.
pub(super) fn read(token: Token<'_>, minus: bool) -> Result<Literal, &'static str> {
    match token.kind {
        Kind::Int => {
            let (digits, radix) = radix(token.text);
            let digits = if minus { format!("-{digits}") } else { digits.to_owned() };
            i64::from_str_radix(&digits, radix).map(Literal::Int).map_err(|_| "invalid int literal")
        }
        Kind::Uint => {
            let (digits, radix) = radix(&token.text[..token.text.len() - 1]);
            u64::from_str_radix(digits, radix).map(Literal::Uint).map_err(|_| "invalid uint literal")
        }
        Kind::Float => {
            let value = token.text.parse::<f64>().ok().filter(|value| value.is_finite());
            let value = value.ok_or("invalid double literal")?;
            Ok(Literal::Double(if minus { -value } else { value }))
        }
        Kind::Bytes => unescape(&token.text[1..], true).map(|bytes| Literal::Bytes(bytes.into())),
        _ => {
            let bytes = unescape(token.text, false)?;
            let text = String::from_utf8(bytes).map_err(|_| "invalid unicode code point")?;
            Ok(Literal::String(text.into()))
        }
    }
}

fn radix(text: &str) -> (&str, u32) {
    text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16))
}

/// The text inside a literal's quotes with its escapes replaced. Line ends become `\n`.
fn unescape(text: &str, bytes: bool) -> Result<Vec<u8>, &'static str> {
    let raw = text.starts_with(['r', 'R']);
    let text = text.trim_start_matches(['r', 'R']);
    let width =
        if text.len() >= 6 && (text.starts_with("\"\"\"") || text.starts_with("'''")) { 3 } else { 1 };
    let inner = &text[width..text.len() - width];
    let inner = inner.replace("\r\n", "\n").replace('\r', "\n");
    if raw || !inner.contains('\\') {
        return Ok(inner.into_bytes());
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut chars = inner.chars();
    let push = |out: &mut Vec<u8>, c: char| {
        let mut buffer = [0; 4];
        out.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
    };
    while let Some(c) = chars.next() {
        if c != '\\' {
            push(&mut out, c);
            continue;
        }
        let letter = chars.next().ok_or("unable to unescape string, found '\\' as last character")?;
        let simple = match letter {
            'a' => Some(0x07),
            'b' => Some(0x08),
            'f' => Some(0x0c),
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'v' => Some(0x0b),
            '\\' | '\'' | '"' | '`' | '?' => Some(letter as u8),
            _ => None,
        };
        if let Some(byte) = simple {
            out.push(byte);
            continue;
        }
        let (count, radix, first) = match letter {
            'x' | 'X' => (2, 16, 0),
            'u' if !bytes => (4, 16, 0),
            'U' if !bytes => (8, 16, 0),
            '0'..='3' => (2, 8, letter as u32 - '0' as u32),
            _ => return Err("unable to unescape string"),
        };
        let mut value = first;
        for _ in 0..count {
            let digit = chars.next().and_then(|c| c.to_digit(radix)).ok_or("unable to unescape string")?;
            value = value
                .checked_mul(radix)
                .and_then(|v| v.checked_add(digit))
                .ok_or("unable to unescape string")?;
        }
        if bytes {
            // Two hexadecimal or three octal digits fit a byte.
            out.push(value as u8);
        } else {
            push(&mut out, char::from_u32(value).ok_or("invalid unicode code point")?);
        }
    }
    Ok(out)
}
