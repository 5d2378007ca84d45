//! Durations as configuration files write them: Go's `1h2m3.5s`.

use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration of a configuration file (`metav1.Duration`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl Span {
    /// That many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Span(Duration::from_secs(seconds))
    }

    /// Whether it stands for "the default", as an empty duration does in upstream's files.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

/// Reads Go's notation: numbers with units, one after another. Negative ones are refused.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    // Go's durations end at 292 years.
    (seconds < 9.2e9).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        if whole == 0 && nanos > 0 {
            let (value, unit) = match nanos {
                1_000_000.. => (f64::from(nanos) / 1e6, "ms"),
                1000.. => (f64::from(nanos) / 1e3, "µs"),
                _ => (f64::from(nanos), "ns"),
            };
            return write!(f, "{value}{unit}");
        }
        let (hours, minutes) = (whole / 3600, whole / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        write!(f, "{}s", (whole % 60) as f64 + f64::from(nanos) / 1e9)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        parse(&text)
            .map(Span)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no duration such as 30s or 1m30s")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, milliseconds, written) in [
            ("0s", 0, "0s"),
            ("0", 0, "0s"),
            ("30s", 30_000, "30s"),
            ("1.5s", 1500, "1.5s"),
            ("5m", 300_000, "5m0s"),
            ("1h2m3s", 3_723_000, "1h2m3s"),
            ("100ms", 100, "100ms"),
        ] {
            let found = parse(text).expect(text);
            assert_eq!((found.as_millis(), Span(found).to_string().as_str()), (milliseconds, written));
        }
        for bad in ["", "5", "-1s", "1x", "s", "1h-2m", "99999999999h"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
