//! Durations as Go writes them (`1h30m`, `250ms`): in query parameters and configuration files.

use std::time::Duration;

const UNITS: [(&str, f64); 8] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("\u{b5}s", 1e-6),
    ("\u{3bc}s", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// A duration; what is negative counts as none. The error says what is wrong with it.
pub fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = &rest[..end];
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let known = UNITS.iter().find(|(name, _)| *name == unit);
        let (_, size) = known.ok_or_else(|| format!("time: unknown unit {unit:?} in duration {text:?}"))?;
        seconds += number * size;
        rest = &rest[end..];
    }
    if text.starts_with('-') {
        return Ok(Duration::ZERO);
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let check = |text: &str, expect: Result<u64, &str>| {
            let got = parse(text).map(|d| u64::try_from(d.as_millis()).expect("short"));
            assert_eq!(got, expect.map_err(str::to_owned), "{text}");
        };
        check("60s", Ok(60_000));
        check("1h30m", Ok(5_400_000));
        check("1.5s", Ok(1500));
        check("100ms", Ok(100));
        check("0", Ok(0));
        check("-5s", Ok(0));
        check("", Err("time: invalid duration \"\""));
        check("10", Err("time: missing unit in duration \"10\""));
        check("1x", Err("time: unknown unit \"x\" in duration \"1x\""));
        check("s", Err("time: invalid duration \"s\""));
        check("..s", Err("time: invalid duration \"..s\""));
        check("99999999999999999999h", Err("time: invalid duration \"99999999999999999999h\""));
    }
}
