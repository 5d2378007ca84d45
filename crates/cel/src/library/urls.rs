//! URLs as Go's `net/url` reads them.

use std::any::Any;

use super::{Result, text};
use crate::error::EvalError;
use crate::functions::Def;
use crate::types::Type;
use crate::value::{Key, Object, Text, Value};

pub(super) const FUNCTIONS: &[Def] = &[
    Def("url", &["string_to_url: (string) -> kubernetes.URL"], |args| {
        let given = text(args.first())?;
        let fault = |why: String| {
            EvalError::new(format!(
                "URL parse error during conversion from string: parse {:?}: {why}",
                &**given
            ))
        };
        Url::parse(given, true).map_err(fault)?;
        let (without, _) = given.split_once('#').unwrap_or((given, ""));
        Url::parse(without, false).map(Value::object).map_err(fault)
    }),
    Def("isURL", &["is_url_string: (string) -> bool"], |args| Ok(Value::Bool(is_uri(text(args.first())?)))),
    Def("getScheme", &["url_get_scheme: kubernetes.URL.() -> string"], |args| part(args, |url| &url.scheme)),
    Def("getHost", &["url_get_host: kubernetes.URL.() -> string"], |args| part(args, |url| &url.host)),
    Def("getHostname", &["url_get_hostname: kubernetes.URL.() -> string"], |args| {
        part(args, |url| {
            let host = &url.host[..url.host.len() - url.port().map_or(0, |port| port.len() + 1)];
            host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
        })
    }),
    Def("getPort", &["url_get_port: kubernetes.URL.() -> string"], |args| {
        part(args, |url| url.port().unwrap_or_default())
    }),
    Def("getEscapedPath", &["url_get_escaped_path: kubernetes.URL.() -> string"], |args| {
        part(args, |url| &url.path)
    }),
    Def("getQuery", &["url_get_query: kubernetes.URL.() -> map(string, list(string))"], query),
];

#[derive(Debug, PartialEq, Eq)]
struct Url {
    text: String,
    scheme: String,
    /// With the port.
    host: String,
    /// Escaped.
    path: String,
    query: String,
}

impl Object for Url {
    fn type_of(&self) -> Type {
        Type::object("kubernetes.URL")
    }

    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Self>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Whether a text is an absolute URI or an absolute path.
pub(super) fn is_uri(text: &str) -> bool {
    Url::parse(text, true).is_ok()
}

impl Url {
    /// `request`: as in a request line, which has no fragment and no relative path.
    fn parse(text: &str, request: bool) -> std::result::Result<Self, String> {
        if text.bytes().any(|b| b < b' ' || b == 0x7f) {
            return Err("net/url: invalid control character in URL".into());
        }
        if text.is_empty() && request {
            return Err("empty url".into());
        }
        let mut url = Self {
            text: text.into(),
            scheme: String::new(),
            host: String::new(),
            path: String::new(),
            query: String::new(),
        };
        if text == "*" {
            url.path = "*".into();
            return Ok(url);
        }
        let (scheme, rest) = scheme(text)?;
        url.scheme = scheme.to_ascii_lowercase();
        let (mut rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        url.query = query.into();
        if !rest.starts_with('/') {
            if !scheme.is_empty() {
                // Opaque, as `mailto:a@b`.
                return Ok(url);
            }
            if request {
                return Err("invalid URI for request".into());
            }
            if rest.split('/').next().is_some_and(|first| first.contains(':')) {
                return Err("first path segment in URL cannot contain colon".into());
            }
        }
        if (!scheme.is_empty() || !request && !rest.starts_with("///"))
            && let Some(after) = rest.strip_prefix("//")
        {
            let end = after.find('/').unwrap_or(after.len());
            url.host = authority(&after[..end])?;
            rest = &after[end..];
        }
        let path = unescape(rest, false)?;
        url.path = if is_encoded(rest) { rest.into() } else { escape(&path) };
        Ok(url)
    }

    fn port(&self) -> Option<&str> {
        let (host, port) = self.host.rsplit_once(':')?;
        let fine = !host.starts_with('[') || host.ends_with(']');
        (fine && port.bytes().all(|b| b.is_ascii_digit())).then_some(port)
    }
}

fn scheme(text: &str) -> std::result::Result<(&str, &str), String> {
    for (at, b) in text.bytes().enumerate() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err("missing protocol scheme".into()),
            b':' => return Ok((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

/// The host of an authority, with its port.
fn authority(text: &str) -> std::result::Result<String, String> {
    let (user, host) = text.rsplit_once('@').map_or((None, text), |(user, host)| (Some(user), host));
    if let Some(user) = user {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b);
        if !user.bytes().all(fine) {
            return Err("net/url: invalid userinfo".into());
        }
        unescape(user, false)?;
    }
    let port = if host.starts_with('[') {
        let end = host.rfind(']').ok_or("missing ']' in host")?;
        &host[end + 1..]
    } else {
        host.find(':').map_or("", |at| &host[at..])
    };
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(digits) {
        return Err(format!("invalid port {port:?} after host"));
    }
    if let Some(bad) =
        host.bytes().find(|b| b" \"\\^`{}|<>".contains(b) && *b != b'<' && *b != b'>' && *b != b'"')
    {
        return Err(format!("invalid character {:?} in host name", (bad as char).to_string()));
    }
    unescape(host, false)
}

/// The text with `%41` replaced by `A`; `plus` is a space in a query.
fn unescape(text: &str, query: bool) -> std::result::Result<String, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let hex = text.get(at + 1..at + 3).and_then(|hex| {
                    hex.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(hex, 16).ok())?
                });
                let Some(byte) = hex else {
                    let shown: String = text[at..].chars().take(3).collect();
                    return Err(format!("invalid URL escape {shown:?}"));
                };
                out.push(byte);
                at += 3;
            }
            b'+' if query => {
                out.push(b' ');
                at += 1;
            }
            byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn is_plain(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b)
}

fn is_encoded(path: &str) -> bool {
    path.bytes().all(|b| is_plain(b) || b"!'()*[]%".contains(&b))
}

fn escape(path: &str) -> String {
    path.bytes().map(|b| if is_plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

fn part<'a>(args: &[Value<'a>], of: for<'u> fn(&'u Url) -> &'u str) -> Result<'a> {
    let url = args[0].downcast::<Url>().ok_or_else(EvalError::no_such_overload)?;
    Ok(Value::string(of(url)))
}

fn query<'a>(args: &[Value<'a>]) -> Result<'a> {
    let url = args[0].downcast::<Url>().ok_or_else(EvalError::no_such_overload)?;
    let mut found: indexmap::IndexMap<String, Vec<Value<'a>>> = indexmap::IndexMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Ok(key), Ok(value)) = (unescape(key, true), unescape(value, true)) {
            found.entry(key).or_default().push(Value::string(value));
        }
    }
    Ok(Value::map(
        found.into_iter().map(|(key, values)| (Key::String(Text::Shared(key.into())), Value::list(values))),
    ))
}
