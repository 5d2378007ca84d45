//! PEM blocks (RFC 7468) as upstream reads them: text between blocks is passed over, headers are kept apart.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A block between its `BEGIN` and `END` lines.
pub(crate) struct Block {
    pub label: String,
    /// Whether `Key: value` lines came before the content.
    pub headers: bool,
    pub content: Vec<u8>,
}

/// The blocks of a text; what is malformed is passed over.
pub(crate) fn blocks(text: &[u8]) -> Vec<Block> {
    let text = String::from_utf8_lossy(text);
    let mut out = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(label) = marker(line, "-----BEGIN ") else { continue };
        let (mut body, mut headers, mut rest) = (String::new(), false, lines.clone());
        while let Some(line) = rest.next() {
            // A block begun inside another ends it, so that text is read once however often blocks begin.
            if marker(line, "-----BEGIN ").is_some() {
                break;
            }
            if let Some(end) = marker(line, "-----END ") {
                if end == label
                    && let Ok(content) = STANDARD.decode(&body)
                {
                    out.push(Block { label: label.to_owned(), headers, content });
                    lines = rest;
                }
                break;
            }
            match line.contains(':') {
                true => headers = true,
                false => body.extend(line.chars().filter(|c| !c.is_whitespace())),
            }
        }
    }
    out
}

/// One DER value: its tag, its content, and what follows.
fn der(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Whether DER has the outer form of a certificate (RFC 5280, 4.1): a signed sequence with its algorithm and signature.
pub(crate) fn is_certificate(bytes: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    const BIT_STRING: u8 = 0x03;
    let parts = || {
        let (tag, content, rest) = der(bytes)?;
        let (signed, body, after) = der(content)?;
        let (algorithm, _, after) = der(after)?;
        let (signature, _, after) = der(after)?;
        let form = (tag, signed, algorithm, signature) == (SEQUENCE, SEQUENCE, SEQUENCE, BIT_STRING);
        Some(form && rest.is_empty() && after.is_empty() && !body.is_empty())
    };
    parts().unwrap_or(false)
}

fn marker<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    line.trim_end().strip_prefix(start)?.strip_suffix("-----")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_in_text() {
        let text = "x\n-----BEGIN A-----\nYQ==\n-----END A-----\ny\n-----BEGIN B-----\nK: v\n\nYg==\n-----END B-----\n";
        let found: Vec<_> =
            blocks(text.as_bytes()).into_iter().map(|b| (b.label, b.headers, b.content)).collect();
        let want = [("A".to_owned(), false, b"a".to_vec()), ("B".to_owned(), true, b"b".to_vec())];
        assert_eq!(found, want);
        assert!(blocks(b"-----BEGIN A-----\n!!\n-----END A-----\n").is_empty());
        assert!(blocks(b"-----BEGIN A-----\nYQ==\n").is_empty());
    }
}
