//! The string formats that schemas may ask for, and what they accept (the registry of kube-openapi, `strfmt`).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine as _;
use regex::Regex;

const STRING: [&str; 26] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
];

/// Whether a format means nothing for values of a type, so that it is not looked at.
pub fn unrecognized(kind: &str, format: &str) -> bool {
    match kind {
        _ if format.is_empty() => false,
        "" | "string" => !STRING.contains(&normalized(format).as_str()),
        "integer" => !matches!(format, "int32" | "int64"),
        "number" => !matches!(format, "float" | "double"),
        _ => true,
    }
}

fn normalized(format: &str) -> String {
    format.replace('-', "")
}

macro_rules! patterns {
    ($($name:ident = $pattern:expr;)*) => {
        $(static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new($pattern).expect("a pattern that a test compiles"));)*
    };
}

patterns! {
    HOSTNAME = r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9\-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$";
    UUID = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    CARD = r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11})$";
    SSN = r"^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$";
    HEX_COLOR = r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB_COLOR = r"^rgb\(\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*\)$";
    OBJECT_ID = r"^[0-9a-fA-F]{24}$";
    EMAIL = r#"^(?:[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+|"[^"\\\r\n]*")@[^\s@<>(),;:\\"]+$"#;
    DATE_TIME = r"^([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:?[0-9]{2})?$";
    SHORT_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
    GO_DURATION = r"^[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$";
    LONG_DURATION = r"^((\d+)\s*([A-Za-zµ]+))$";
}

/// Whether a text is of a format. One that is not known accepts everything.
pub fn accepts(format: &str, text: &str) -> bool {
    match normalized(format).as_str() {
        "bsonobjectid" => OBJECT_ID.is_match(text),
        "uri" => uri(text),
        "email" => email(text),
        "hostname" => hostname(text),
        "ipv4" => matches!(text.parse::<IpAddr>(), Ok(IpAddr::V4(_))),
        "ipv6" => text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uuid" => UUID.is_match(text),
        "uuid3" => UUID3.is_match(text),
        "uuid4" => UUID4.is_match(text),
        "uuid5" => UUID5.is_match(text),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "creditcard" => card(text),
        "ssn" => SSN.is_match(text),
        "hexcolor" => HEX_COLOR.is_match(text),
        "rgbcolor" => RGB_COLOR.is_match(text),
        "byte" => byte(text),
        "date" => date(text),
        "duration" => duration(text),
        "datetime" => DATE_TIME.is_match(text) && date(&text[..10]) && clock(&text[11..19]),
        "k8sshortname" => text.len() <= 63 && SHORT_NAME.is_match(text),
        "k8slongname" => text.len() <= 253 && text.split('.').all(|part| SHORT_NAME.is_match(part)),
        _ => true,
    }
}

/// What Go's `url.ParseRequestURI` takes: an absolute URI or an absolute path.
fn uri(text: &str) -> bool {
    let control = |c: char| c.is_ascii_control() || c == ' ';
    if text.is_empty() || text.contains(control) {
        return false;
    }
    let escapes_fit = text.match_indices('%').all(|(at, _)| {
        let digits = text.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit))
    });
    if !escapes_fit {
        return false;
    }
    if text.starts_with('/') || text == "*" {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let starts = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    if !starts || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')) {
        return false;
    }
    match rest.strip_prefix("//") {
        Some(rest) => {
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let host = host.rsplit('@').next().unwrap_or_default();
            match (host.starts_with('['), host.rsplit_once(':')) {
                (true, _) => host.contains(']'),
                (false, Some((_, port))) => port.bytes().all(|b| b.is_ascii_digit()),
                (false, None) => !host.contains(['<', '>', '"', '\\', '^', '`', '{', '}', '|']),
            }
        }
        None => true,
    }
}

fn email(text: &str) -> bool {
    let bare = match (text.rfind('<'), text.strip_suffix('>')) {
        (Some(at), Some(_)) => &text[at + 1..text.len() - 1],
        _ => text.trim(),
    };
    let local = bare.rsplit_once('@').map_or("", |(local, _)| local);
    let dots = local.starts_with('.') || local.ends_with('.') || local.contains("..");
    EMAIL.is_match(bare) && (!dots || local.starts_with('"'))
}

fn hostname(text: &str) -> bool {
    if !HOSTNAME.is_match(text) || text.chars().count() > 255 {
        return false;
    }
    let labels: Vec<&str> = text.split('.').collect();
    let labels = match labels.split_last() {
        Some((&"", rest)) => rest,
        _ => &labels,
    };
    labels.iter().all(|label| !label.is_empty() && label.len() <= 63)
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    let plain = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    plain && bits.parse::<u16>().is_ok_and(|bits| bits <= most)
}

/// 6, 8 or 20 bytes in hexadecimal, with colons, dashes, or dots between pairs of bytes.
fn mac(text: &str) -> bool {
    let parts = |separator: char, digits: usize| -> Option<usize> {
        let parts: Vec<&str> = text.split(separator).collect();
        let fit = |p: &&str| p.len() == digits && p.bytes().all(|b| b.is_ascii_hexdigit());
        (parts.len() > 1 && parts.iter().all(fit)).then(|| parts.len() * digits / 2)
    };
    let bytes = parts(':', 2).or_else(|| parts('-', 2)).or_else(|| parts('.', 4));
    matches!(bytes, Some(6 | 8 | 20))
}

fn digits_of(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '-' | ' ')).collect()
}

fn isbn10(text: &str) -> bool {
    let text = digits_of(text);
    let shape = text.len() == 10
        && text[..9].bytes().all(|b| b.is_ascii_digit())
        && matches!(text.as_bytes()[9], b'0'..=b'9' | b'X');
    let value = |b: u8| if b == b'X' { 10 } else { u32::from(b - b'0') };
    shape && text.bytes().zip(1u32..).map(|(b, place)| place * value(b)).sum::<u32>() % 11 == 0
}

fn isbn13(text: &str) -> bool {
    let text = digits_of(text);
    let shape = text.len() == 13 && text.bytes().all(|b| b.is_ascii_digit());
    let sum = || text.bytes().enumerate().map(|(i, b)| u32::from(b - b'0') * if i % 2 == 0 { 1 } else { 3 });
    shape && sum().sum::<u32>() % 10 == 0
}

fn card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if !CARD.is_match(&digits) {
        return false;
    }
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(i, b)| {
            let digit = u32::from(b - b'0');
            if i % 2 == 0 { digit } else { digit * 2 / 10 + digit * 2 % 10 }
        })
        .sum();
    sum.is_multiple_of(10)
}

fn byte(text: &str) -> bool {
    base64::engine::general_purpose::STANDARD.decode(text).is_ok() && !text.is_empty()
}

fn date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

fn clock(text: &str) -> bool {
    text.parse::<jiff::civil::Time>().is_ok()
}

fn duration(text: &str) -> bool {
    const UNITS: [&str; 31] = [
        "ns",
        "nano",
        "nanosecond",
        "us",
        "µs",
        "micro",
        "microsecond",
        "ms",
        "milli",
        "millisecond",
        "s",
        "sec",
        "second",
        "m",
        "min",
        "minute",
        "h",
        "hr",
        "hour",
        "d",
        "day",
        "w",
        "wk",
        "week",
        "nanos",
        "micros",
        "millis",
        "secs",
        "mins",
        "hrs",
        "wks",
    ];
    if GO_DURATION.is_match(text) {
        return true;
    }
    let Some(found) = LONG_DURATION.captures(text.trim()) else { return false };
    let unit = found.get(3).map_or("", |m| m.as_str()).to_lowercase();
    UNITS.contains(&unit.as_str()) || UNITS.contains(&unit.trim_end_matches('s'))
}
