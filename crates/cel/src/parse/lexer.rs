//! Text to tokens.

use std::ops::Range;

use crate::error::{Issue, MAX_ISSUES};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ident,
    EscapedIdent,
    Int,
    Uint,
    Float,
    Str,
    Bytes,
    /// An operator, a bracket or a literal word: `Token::text` tells which.
    Sign,
    Eof,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'s> {
    pub kind: Kind,
    pub text: &'s str,
    /// In characters from the start of the source.
    pub offset: usize,
}

const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%",
];

/// Every token, ended by one of kind `Eof`, and what is none, in characters: that is reported and skipped, until there is too
/// much of it.
pub(crate) fn tokens<'s>(source: &'s str, issues: &mut Vec<Issue>) -> (Vec<Token<'s>>, Vec<Range<usize>>) {
    let (mut out, mut skipped) = (Vec::new(), Vec::new());
    let mut rest = source;
    let mut offset = 0;
    while let Some(first) = rest.chars().next() {
        if matches!(first, '\t' | ' ' | '\r' | '\n' | '\u{c}') {
            rest = &rest[1..];
            offset += 1;
            continue;
        }
        if rest.starts_with("//") {
            let line = rest.split('\n').next().unwrap_or(rest);
            offset += line.chars().count();
            rest = &rest[line.len()..];
            continue;
        }
        match one(rest) {
            Ok((kind, len)) => {
                let text = &rest[..len];
                out.push(Token { kind, text, offset });
                offset += text.chars().count();
                rest = &rest[len..];
            }
            Err(len) => {
                if issues.len() == MAX_ISSUES {
                    let message = format!("Syntax error: More than {MAX_ISSUES} syntax errors");
                    issues.push(Issue { offset: Some(offset), message });
                    break;
                }
                let bad: String = rest[..len].chars().flat_map(escaped).collect();
                issues.push(Issue {
                    offset: Some(offset),
                    message: format!("Syntax error: token recognition error at: '{bad}'"),
                });
                let start = offset;
                offset += rest[..len].chars().count();
                skipped.push(start..offset);
                rest = &rest[len..];
            }
        }
    }
    out.push(Token { kind: Kind::Eof, text: "<EOF>", offset });
    (out, skipped)
}

fn escaped(c: char) -> Vec<char> {
    match c {
        '\t' => vec!['\\', 't'],
        '\n' => vec!['\\', 'n'],
        '\r' => vec!['\\', 'r'],
        _ => vec![c],
    }
}

/// The kind and length in bytes of the token at the start, or the length of what is none.
fn one(rest: &str) -> Result<(Kind, usize), usize> {
    let bytes = rest.as_bytes();
    let first = bytes[0];
    if let Some(len) = number(bytes) {
        return Ok(len);
    }
    if let Some(result) = string(rest) {
        return result;
    }
    if first.is_ascii_alphabetic() || first == b'_' {
        let len = bytes.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        let kind = match &rest[..len] {
            "in" | "true" | "false" | "null" => Kind::Sign,
            _ => Kind::Ident,
        };
        return Ok((kind, len));
    }
    if first == b'`' {
        let body = bytes[1..]
            .iter()
            .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/' | b' '))
            .count();
        return match bytes.get(1 + body) {
            Some(b'`') if body > 0 => Ok((Kind::EscapedIdent, body + 2)),
            Some(_) => Err(1 + body + char_len(rest, 1 + body)),
            None => Err(rest.len()),
        };
    }
    for sign in SIGNS {
        if rest.starts_with(sign) {
            return Ok((Kind::Sign, sign.len()));
        }
    }
    // The first half of an operator of two characters takes the next character along.
    if matches!(first, b'=' | b'&' | b'|') && rest.len() > 1 {
        return Err(1 + char_len(rest, 1));
    }
    Err(char_len(rest, 0))
}

fn char_len(text: &str, at: usize) -> usize {
    text[at..].chars().next().map_or(0, char::len_utf8)
}

fn number(bytes: &[u8]) -> Option<(Kind, usize)> {
    let digits = |from: usize| bytes.iter().skip(from).take_while(|b| b.is_ascii_digit()).count();
    if bytes.starts_with(b"0x") {
        let hex = bytes[2..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if hex > 0 {
            let len = 2 + hex;
            return Some(match bytes.get(len) {
                Some(b'u' | b'U') => (Kind::Uint, len + 1),
                _ => (Kind::Int, len),
            });
        }
    }
    let whole = digits(0);
    if whole == 0 && !(bytes[0] == b'.' && digits(1) > 0) {
        return None;
    }
    let mut len = whole;
    let mut float = false;
    if bytes.get(len) == Some(&b'.') && digits(len + 1) > 0 {
        len += 1 + digits(len + 1);
        float = true;
    }
    if matches!(bytes.get(len), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(len + 1), Some(b'+' | b'-')));
        let exponent = digits(len + 1 + sign);
        if exponent > 0 {
            len += 1 + sign + exponent;
            float = true;
        }
    }
    if float {
        return Some((Kind::Float, len));
    }
    Some(match bytes.get(len) {
        Some(b'u' | b'U') => (Kind::Uint, len + 1),
        _ => (Kind::Int, len),
    })
}

/// A string or bytes literal, if one begins here.
fn string(rest: &str) -> Option<Result<(Kind, usize), usize>> {
    let bytes = rest.as_bytes();
    let mut at = 0;
    let mut kind = Kind::Str;
    if matches!(bytes[0], b'b' | b'B') {
        kind = Kind::Bytes;
        at += 1;
    }
    let mut raw = false;
    if matches!(bytes.get(at), Some(b'r' | b'R')) {
        raw = true;
        at += 1;
    }
    let quote = *bytes.get(at).filter(|b| matches!(b, b'"' | b'\''))?;
    let triple = bytes.get(at + 1) == Some(&quote) && bytes.get(at + 2) == Some(&quote);
    let width = if triple { 3 } else { 1 };
    let mut end = at + width;
    loop {
        match bytes.get(end) {
            None => break,
            Some(b) if *b == quote => {
                if !triple {
                    return Some(Ok((kind, end + 1)));
                }
                if bytes[end..].starts_with(&[quote; 3]) {
                    return Some(Ok((kind, end + 3)));
                }
                end += 1;
            }
            Some(b'\\') if !raw => match escape(&bytes[end..]) {
                Ok(len) => end += len,
                Err(fine) => {
                    // What stands before the character that breaks the escape, and that one, begin no token.
                    let len = (end + fine).min(rest.len());
                    return Some(Err(len + char_len(rest, len)));
                }
            },
            Some(b'\n' | b'\r') if !triple => break,
            Some(_) => end += 1,
        }
    }
    // The two quotes of an unfinished triple are an empty string.
    if triple {
        return Some(Ok((kind, at + 2)));
    }
    // A prefix without its string is an identifier.
    let end = end.min(rest.len());
    Some(Err(if end < rest.len() { end + char_len(rest, end) } else { end }))
}

/// The length of the escape sequence at the start, or how much of it is in order.
fn escape(bytes: &[u8]) -> Result<usize, usize> {
    let digits = |from: usize, count: usize, fine: fn(&u8) -> bool| {
        let found = bytes.iter().skip(from).take(count).take_while(|b| fine(b)).count();
        if found == count { Ok(from + count) } else { Err(from + found) }
    };
    let octal = |b: &u8| (b'0'..=b'7').contains(b);
    match bytes.get(1) {
        Some(b'a' | b'b' | b'f' | b'n' | b'r' | b't' | b'v' | b'"' | b'\'' | b'\\' | b'?' | b'`') => Ok(2),
        Some(b'x' | b'X') => digits(2, 2, u8::is_ascii_hexdigit),
        Some(b'u') => digits(2, 4, u8::is_ascii_hexdigit),
        Some(b'U') => digits(2, 8, u8::is_ascii_hexdigit),
        Some(b'0'..=b'3') => digits(2, 2, octal),
        _ => Err(1),
    }
}
