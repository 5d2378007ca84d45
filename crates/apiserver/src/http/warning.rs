//! The `Warning` headers of an answer (RFC 7234, code 299). Clients print them; what they get is bounded as in the reference.

use http::header::{HeaderValue, WARNING};
use http::{HeaderMap, Response};

/// How many characters all warnings have together before each is cut, and to what.
const TOTAL: usize = 4096;
const EACH: usize = 256;

/// Adds the warnings to an answer.
pub fn add<B>(response: &mut Response<B>, warnings: &[String]) {
    put(response.headers_mut(), warnings);
}

fn put(headers: &mut HeaderMap, warnings: &[String]) {
    let length = |text: &str| text.chars().count();
    let long = warnings.iter().map(|w| length(w)).sum::<usize>() > TOTAL;
    let mut written = 0;
    for warning in warnings {
        let end = warning.char_indices().nth(EACH).map_or(warning.len(), |(at, _)| at);
        let text = if long { &warning[..end] } else { warning };
        if long && written >= TOTAL {
            return;
        }
        written += length(text);
        if let Ok(value) = HeaderValue::from_bytes(quoted(text).as_bytes()) {
            headers.append(WARNING, value);
        }
    }
}

/// `299 - "text"`.
fn quoted(text: &str) -> String {
    let mut out = String::from("299 - \"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(warnings: &[String]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        put(&mut headers, warnings);
        headers.get_all(WARNING).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn warnings_are_quoted_and_bounded() {
        assert_eq!(check(&["a \"b\" é\n".to_owned()]), ["299 - \"a \\\"b\\\" é \""]);
        let many: Vec<String> = (0..40).map(|i| format!("{i:0>300}")).collect();
        let got = check(&many);
        assert_eq!((got.len(), got[0].len()), (TOTAL / EACH, EACH + "299 - \"\"".len()));
        assert_eq!(check(&many[..3]), many[..3].iter().map(|w| format!("299 - \"{w}\"")).collect::<Vec<_>>());
    }
}
