//! Links in HTML that a backend serves from its root, moved below the path of the proxy (upstream: `util/proxy/transport.go`).
//! Only the values of attributes that hold URLs change; everything else passes byte for byte.

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzDecoder, GzEncoder};

/// A longer tag is passed on as it is.
const LONGEST_TAG: usize = 64 << 10;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    Deflate,
}

impl Coding {
    /// By the Content-Encoding; `None` for one that is not understood.
    pub fn of(header: &str) -> Option<Self> {
        Some(match header {
            "" => Self::Identity,
            "gzip" => Self::Gzip,
            "deflate" => Self::Deflate,
            _ => return None,
        })
    }
}

enum Decoder {
    Plain(Vec<u8>),
    Gzip(GzDecoder<Vec<u8>>),
    Deflate(DeflateDecoder<Vec<u8>>),
}

enum Encoder {
    Plain(Vec<u8>),
    Gzip(GzEncoder<Vec<u8>>),
    Deflate(DeflateEncoder<Vec<u8>>),
}

/// Rewrites a body piece by piece; holds no more than one tag.
pub struct Rewriter {
    host: String,
    prefix: String,
    decoder: Decoder,
    encoder: Encoder,
    pending: Vec<u8>,
    /// The element whose text holds no tags, until it ends.
    raw: Option<&'static str>,
}

impl Rewriter {
    /// `host` is the backend's, `prefix` the path under which its root appears.
    pub fn new(host: &str, prefix: &str, coding: Coding) -> Self {
        let (decoder, encoder) = match coding {
            Coding::Identity => (Decoder::Plain(Vec::new()), Encoder::Plain(Vec::new())),
            Coding::Gzip => (
                Decoder::Gzip(GzDecoder::new(Vec::new())),
                Encoder::Gzip(GzEncoder::new(Vec::new(), Compression::default())),
            ),
            Coding::Deflate => (
                Decoder::Deflate(DeflateDecoder::new(Vec::new())),
                Encoder::Deflate(DeflateEncoder::new(Vec::new(), Compression::default())),
            ),
        };
        Self {
            host: host.to_owned(),
            prefix: prefix.to_owned(),
            decoder,
            encoder,
            pending: Vec::new(),
            raw: None,
        }
    }

    /// What can be sent after this piece.
    pub fn push(&mut self, piece: &[u8]) -> std::io::Result<Vec<u8>> {
        let plain = match &mut self.decoder {
            Decoder::Plain(out) => {
                out.write_all(piece)?;
                std::mem::take(out)
            }
            Decoder::Gzip(decoder) => {
                decoder.write_all(piece)?;
                decoder.flush()?;
                std::mem::take(decoder.get_mut())
            }
            Decoder::Deflate(decoder) => {
                decoder.write_all(piece)?;
                decoder.flush()?;
                std::mem::take(decoder.get_mut())
            }
        };
        self.pending.extend_from_slice(&plain);
        let text = self.advance(false);
        self.encode(&text)
    }

    /// The rest.
    pub fn finish(mut self) -> std::io::Result<Vec<u8>> {
        let text = self.advance(true);
        let mut out = self.encode(&text)?;
        match self.encoder {
            Encoder::Plain(_) => {}
            Encoder::Gzip(encoder) => out.extend(encoder.finish()?),
            Encoder::Deflate(encoder) => out.extend(encoder.finish()?),
        }
        Ok(out)
    }

    fn encode(&mut self, text: &[u8]) -> std::io::Result<Vec<u8>> {
        Ok(match &mut self.encoder {
            Encoder::Plain(out) => {
                out.write_all(text)?;
                std::mem::take(out)
            }
            Encoder::Gzip(encoder) => {
                encoder.write_all(text)?;
                std::mem::take(encoder.get_mut())
            }
            Encoder::Deflate(encoder) => {
                encoder.write_all(text)?;
                std::mem::take(encoder.get_mut())
            }
        })
    }

    /// Takes complete tokens from what is pending.
    fn advance(&mut self, last: bool) -> Vec<u8> {
        let pending = std::mem::take(&mut self.pending);
        let mut out = Vec::with_capacity(pending.len() + 64);
        let mut rest = pending.as_slice();
        while !rest.is_empty() {
            let Some(length) = token(rest, self.raw) else {
                if last || rest.len() > LONGEST_TAG {
                    out.extend_from_slice(rest);
                } else {
                    self.pending = rest.to_vec();
                }
                return out;
            };
            let (token, tail) = rest.split_at(length);
            rest = tail;
            self.token(token, &mut out);
        }
        out
    }

    fn token(&mut self, token: &[u8], out: &mut Vec<u8>) {
        if let Some(raw) = self.raw {
            let tag = format!("</{raw}");
            if token.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes())) {
                self.raw = None;
            }
            return out.extend_from_slice(token);
        }
        let named = token.first() == Some(&b'<') && token.get(1).is_some_and(u8::is_ascii_alphabetic);
        if !named {
            return out.extend_from_slice(token);
        }
        let end = token.iter().position(|b| b.is_ascii_whitespace() || matches!(b, b'>' | b'/'));
        let end = end.unwrap_or(token.len());
        let name = String::from_utf8_lossy(&token[1..end]).to_ascii_lowercase();
        self.raw = ["script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"]
            .into_iter()
            .find(|raw| *raw == name)
            .filter(|_| !token.ends_with(b"/>"));
        let wanted = url_attributes(&name);
        if wanted.is_empty() {
            return out.extend_from_slice(token);
        }
        out.extend_from_slice(&token[..end]);
        attributes(&token[end..], wanted, out, &|url| rewrite_url(url, &self.host, &self.prefix));
    }
}

/// The length of the token at the start; `None` if its end is not there yet.
fn token(text: &[u8], raw: Option<&str>) -> Option<usize> {
    if let Some(raw) = raw {
        // The text goes on until the element's own end tag.
        let tag = format!("</{raw}");
        let at = text.windows(tag.len()).position(|w| w.eq_ignore_ascii_case(tag.as_bytes()));
        return match at {
            Some(0) => text.iter().position(|b| *b == b'>').map(|at| at + 1),
            Some(at) => Some(at),
            None if text.len() > tag.len() => Some(text.len() - tag.len()),
            None => None,
        };
    }
    if text[0] != b'<' {
        return Some(text.iter().position(|b| *b == b'<').unwrap_or(text.len()));
    }
    if text.len() < 4 {
        return None;
    }
    if text.starts_with(b"<!--") {
        return text.windows(3).position(|w| w == b"-->").map(|at| at + 3);
    }
    let mut quote = None;
    for (at, byte) in text.iter().enumerate().skip(1) {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            // A quote opens a value only after an equals sign.
            (None, b'"' | b'\'') if text[..at].trim_ascii_end().ends_with(b"=") => quote = Some(*byte),
            (Some(open), close) if open == *close => quote = None,
            _ => {}
        }
    }
    None
}

/// Copies a tag's attributes and changes the values of the wanted ones.
fn attributes(text: &[u8], wanted: &[&str], out: &mut Vec<u8>, change: &dyn Fn(&str) -> String) {
    let mut rest = text;
    while !rest.is_empty() {
        let start = rest.iter().position(|b| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_');
        let Some(start) = start else { break };
        let length =
            rest[start..].iter().position(|b| b.is_ascii_whitespace() || matches!(b, b'=' | b'>' | b'/'));
        let end = start + length.unwrap_or(rest.len() - start);
        let name = String::from_utf8_lossy(&rest[start..end]).to_ascii_lowercase();
        let spaces = rest[end..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        if rest.get(end + spaces) != Some(&b'=') {
            out.extend_from_slice(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let after = end + spaces + 1;
        let value = after + rest[after..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        let (from, to) = match rest.get(value) {
            Some(quote @ (b'"' | b'\'')) => {
                let inside = &rest[value + 1..];
                (value + 1, value + 1 + inside.iter().position(|b| b == quote).unwrap_or(inside.len()))
            }
            _ => {
                let bare = &rest[value..];
                let length = bare.iter().position(|b| b.is_ascii_whitespace() || *b == b'>');
                (value, value + length.unwrap_or(bare.len()))
            }
        };
        out.extend_from_slice(&rest[..from]);
        match std::str::from_utf8(&rest[from..to]) {
            Ok(url) if wanted.contains(&name.as_str()) => {
                let plain = url.replace("&amp;", "&");
                let changed = change(&plain);
                if changed == plain {
                    out.extend_from_slice(url.as_bytes());
                } else {
                    let escaped = changed.replace('&', "&amp;").replace('"', "&#34;").replace('\'', "&#39;");
                    out.extend_from_slice(escaped.as_bytes());
                }
            }
            _ => out.extend_from_slice(&rest[from..to]),
        }
        rest = &rest[to..];
        if let Some(quote @ (b'"' | b'\'')) = rest.first() {
            out.push(*quote);
            rest = &rest[1..];
        }
    }
    out.extend_from_slice(rest);
}

/// The attributes of an element that hold URLs.
fn url_attributes(element: &str) -> &'static [&'static str] {
    match element {
        "a" | "area" | "base" | "link" => &["href"],
        "applet" => &["codebase"],
        "audio" | "embed" | "script" | "source" => &["src"],
        "blockquote" | "del" | "ins" | "q" => &["cite"],
        "body" => &["background"],
        "button" => &["formaction"],
        "command" => &["icon"],
        "form" => &["action"],
        "frame" | "iframe" => &["longdesc", "src"],
        "head" => &["profile"],
        "html" => &["manifest"],
        "img" => &["longdesc", "src", "usemap"],
        "input" => &["src", "usemap", "formaction"],
        "object" => &["classid", "codebase", "data", "usemap"],
        "video" => &["poster", "src"],
        _ => &[],
    }
}

/// A URL of the backend as the client must write it. Relative ones and those of other hosts stay.
pub fn rewrite_url(url: &str, host: &str, prefix: &str) -> String {
    let rest = match url.split_once("://") {
        Some((scheme, after)) if !scheme.contains(['/', '?', '#']) => {
            let end = after.find(['/', '?', '#']).unwrap_or(after.len());
            if &after[..end] != host {
                return url.to_owned();
            }
            &after[end..]
        }
        _ => match url.strip_prefix("//") {
            Some(after) => {
                let end = after.find(['/', '?', '#']).unwrap_or(after.len());
                if &after[..end] != host {
                    return url.to_owned();
                }
                &after[end..]
            }
            None => url,
        },
    };
    if !rest.starts_with('/') || rest.starts_with(prefix) {
        return if rest.starts_with('/') { rest.to_owned() } else { url.to_owned() };
    }
    format!("{}{rest}", prefix.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const PREFIX: &str = "/api/v1/namespaces/n/services/s/proxy";

    fn rewrite(pieces: &[&str]) -> String {
        let mut rewriter = Rewriter::new("10.0.0.1:80", PREFIX, Coding::Identity);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(rewriter.push(piece.as_bytes()).expect("plain text"));
        }
        out.extend(rewriter.finish().expect("plain text"));
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn links_are_moved_below_the_proxy() {
        let check = |html: &str, expect: &str| {
            let expect = expect.replace('@', PREFIX);
            assert_eq!(rewrite(&[html]), expect, "{html}");
            let single: Vec<String> = html.chars().map(String::from).collect();
            assert_eq!(
                rewrite(&single.iter().map(String::as_str).collect::<Vec<_>>()),
                expect,
                "{html} in pieces"
            );
        };
        check(r#"<a href="/x/?a=1&amp;b=2">t</a>"#, r#"<a href="@/x/?a=1&amp;b=2">t</a>"#);
        check("<A class=c HREF='/x'>", "<A class=c HREF='@/x'>");
        check("<img src=/i.png alt=a>", "<img src=@/i.png alt=a>");
        check(r#"<a href="http://10.0.0.1:80/x">"#, r#"<a href="@/x">"#);
        check(r#"<a href="//10.0.0.1:80/x">"#, r#"<a href="@/x">"#);
        for same in [
            r#"<a href="x/y">"#,
            r#"<a href="https://example.org/x">"#,
            r#"<a href="//example.org/x">"#,
            r#"<a data-href="/x" name="/y">"#,
            r#"<!-- <a href="/x"> -->"#,
            r#"<script>var a = "<a href='/x'>";</script>"#,
            "a < b and c > d",
            "<a href=\"/unfinished",
        ] {
            check(same, same);
        }
        check(
            r#"<script src="/a.js">x</script><link href="/b">"#,
            r#"<script src="@/a.js">x</script><link href="@/b">"#,
        );
    }

    #[test]
    fn compressed_pages_stay_compressed() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"<a href=\"/x\">").expect("written");
        let packed = encoder.finish().expect("packed");
        let mut rewriter = Rewriter::new("h", "/p", Coding::Gzip);
        let mut out = Vec::new();
        for piece in packed.chunks(7) {
            out.extend(rewriter.push(piece).expect("gzip"));
        }
        out.extend(rewriter.finish().expect("gzip"));
        let mut text = String::new();
        flate2::read::GzDecoder::new(out.as_slice()).read_to_string(&mut text).expect("gzip");
        assert_eq!(text, "<a href=\"/p/x\">");
    }
}
