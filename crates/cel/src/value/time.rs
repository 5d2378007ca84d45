//! Timestamps and durations: their texts, and the calendar.

use std::fmt;

use crate::error::EvalError;

/// An instant between the years 1 and 9999, with the offset that its text had.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp {
    seconds: i64,
    nanos: u32,
    /// In seconds east of UTC.
    offset: i32,
}

const MIN: i64 = -62_135_596_800;
const MAX: i64 = 253_402_300_799;
const NANOS: i64 = 1_000_000_000;

/// A date and time of day.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Civil {
    pub year: i64,
    /// From 1.
    pub month: i64,
    /// From 1.
    pub day: i64,
    /// From 0.
    pub day_of_year: i64,
    /// From Sunday, 0.
    pub weekday: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (Hinnant's algorithm).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let shifted = (month + 9) % 12;
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil(seconds: i64) -> Civil {
    let day = seconds.div_euclid(86_400);
    let rest = seconds.rem_euclid(86_400);
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Civil {
        year,
        month,
        day: of_year - (153 * shifted + 2) / 5 + 1,
        day_of_year: day - days(year, 1, 1),
        weekday: (day + 4).rem_euclid(7),
        hour: rest / 3600,
        minute: rest / 60 % 60,
        second: rest % 60,
    }
}

fn month_length(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl Timestamp {
    /// The instant so many seconds after 1970 began.
    ///
    /// # Errors
    /// If it is outside the years 1 to 9999.
    pub fn new(seconds: i64, nanos: u32) -> Result<Self, EvalError> {
        if !(MIN..=MAX).contains(&seconds) {
            return Err(EvalError::new("timestamp overflow"));
        }
        Ok(Self { seconds, nanos, offset: 0 })
    }

    /// Seconds and nanoseconds since 1970 began.
    pub fn instant(&self) -> (i64, u32) {
        (self.seconds, self.nanos)
    }

    pub(crate) fn civil(&self, offset: i64) -> Civil {
        civil(self.seconds + offset)
    }

    /// An RFC 3339 text, as Go reads it.
    pub fn parse(text: &str) -> Option<Self> {
        let (date, rest) = text.split_at_checked(10)?;
        let at_date = Self::parse_date(date)?;
        let rest = rest.strip_prefix('T')?;
        let digits = |from: usize, max: i64| -> Option<i64> {
            let part = rest.get(from..from + 2)?;
            let value: i64 = part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())??;
            (value <= max).then_some(value)
        };
        let (hour, minute, second) = (digits(0, 23)?, digits(3, 59)?, digits(6, 59)?);
        if rest.as_bytes()[2] != b':' || rest.as_bytes()[5] != b':' {
            return None;
        }
        let mut rest = &rest[8..];
        let mut nanos = 0;
        if let Some(fraction) = rest.strip_prefix(['.', ',']) {
            let len = fraction.bytes().take_while(u8::is_ascii_digit).count();
            if len == 0 {
                return None;
            }
            let kept: String = fraction[..len].chars().chain("000000000".chars()).take(9).collect();
            nanos = kept.parse().ok()?;
            rest = &fraction[len..];
        }
        let offset = match rest {
            "Z" => 0,
            _ => {
                let sign = match rest.as_bytes().first()? {
                    b'+' => 1,
                    b'-' => -1,
                    _ => return None,
                };
                let (hours, minutes) = rest.get(1..)?.split_once(':')?;
                let two = |part: &str, max: i32| -> Option<i32> {
                    let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
                    part.parse().ok().filter(|value| digits && *value <= max)
                };
                sign * (two(hours, 24)? * 3600 + two(minutes, 60)? * 60)
            }
        };
        let seconds = at_date.seconds + hour * 3600 + minute * 60 + second - i64::from(offset);
        Some(Self { seconds, nanos, offset })
    }

    /// Whether it is within the years 1 to 9999.
    pub(crate) fn checked(self) -> Result<Self, EvalError> {
        if (MIN..=MAX).contains(&self.seconds) { Ok(self) } else { Err(EvalError::new("timestamp overflow")) }
    }

    /// A `date-time` of a schema: the letters may be small, and the offset without a colon.
    pub(crate) fn parse_lenient(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        Self::parse(&upper).or_else(|| {
            // `+0100` as `+01:00`.
            let at = upper.len().checked_sub(5)?;
            let tail = upper.get(at..)?;
            if !tail.starts_with(['+', '-']) {
                return None;
            }
            Self::parse(&format!("{}{}:{}", &upper[..at], &tail[..3], &tail[3..]))
        })
    }

    /// A date, `YYYY-MM-DD`.
    pub(crate) fn parse_date(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
            return None;
        }
        let part = |from: usize, to: usize| -> Option<i64> {
            let part = text.get(from..to)?;
            part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
        };
        let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
        if !(1..=12).contains(&month) || !(1..=month_length(year, month)).contains(&day) {
            return None;
        }
        Some(Self { seconds: days(year, month, day) * 86_400, nanos: 0, offset: 0 })
    }

    /// The instant a duration later.
    pub(crate) fn plus(&self, nanos: i64) -> Result<Self, EvalError> {
        let total = i64::from(self.nanos) + nanos.rem_euclid(NANOS);
        let seconds = self.seconds + nanos.div_euclid(NANOS) + total / NANOS;
        // The rest of a division by a billion.
        let nanos = (total % NANOS) as u32;
        Self { seconds, nanos, offset: self.offset }.checked()
    }

    /// The nanoseconds from another instant to this one.
    pub(crate) fn minus(&self, other: &Self) -> Result<i64, EvalError> {
        let seconds = i128::from(self.seconds - other.seconds);
        let nanos = seconds * i128::from(NANOS) + i128::from(self.nanos) - i128::from(other.nanos);
        i64::try_from(nanos).map_err(|_| EvalError::new("integer overflow"))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = civil(self.seconds + i64::from(self.offset));
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            at.year, at.month, at.day, at.hour, at.minute, at.second
        )?;
        if self.nanos > 0 {
            let digits = format!("{:09}", self.nanos);
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        if self.offset == 0 {
            return f.write_str("Z");
        }
        let minutes = self.offset.abs() / 60;
        write!(f, "{}{:02}:{:02}", if self.offset < 0 { '-' } else { '+' }, minutes / 60, minutes % 60)
    }
}

/// A duration as Go writes it in seconds: `1.5s`.
pub(crate) fn duration_text(nanos: i64) -> String {
    let seconds = nanos / NANOS;
    let rest = nanos % NANOS;
    format!("{}s", seconds as f64 + rest as f64 / 1e9)
}

/// A duration as Go reads it: `1h30m`, `-1.5s`, `100ms`.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let whole = &rest[..whole_len];
        rest = &rest[whole_len..];
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            let len = after.bytes().take_while(u8::is_ascii_digit).count();
            fraction = &after[..len];
            rest = &after[len..];
        }
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let unit_len = rest.bytes().take_while(|b| *b != b'.' && !b.is_ascii_digit()).count();
        let unit: i128 = match &rest[..unit_len] {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        rest = &rest[unit_len..];
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        if !fraction.is_empty() {
            let kept: String = fraction.chars().take(18).collect();
            let scale = 10i128.checked_pow(u32::try_from(kept.len()).ok()?)?;
            total = total.checked_add(kept.parse::<i128>().ok()? * unit / scale)?;
        }
        if total > 1 << 63 {
            return None;
        }
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// A `duration` of a schema: Go's form, or words as `3 days`.
pub(crate) fn parse_duration_lenient(text: &str) -> Option<i64> {
    if let Some(nanos) = parse_duration(text) {
        return Some(nanos);
    }
    let text = text.trim();
    let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let count: f64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().trim_end_matches('s') {
        "n" | "nano" | "nanosecond" => 1.0,
        "u" | "micro" | "microsecond" => 1e3,
        "m" if text.to_ascii_lowercase().ends_with("ms") => 1e6,
        "milli" | "millisecond" => 1e6,
        "" | "sec" | "second" if !text[digits..].trim().is_empty() => 1e9,
        "m" | "min" | "minute" => 60e9,
        "h" | "hr" | "hour" => 3600e9,
        "d" | "day" => 86_400e9,
        "w" | "wk" | "week" => 604_800e9,
        _ => return None,
    };
    // Out of range the conversion saturates.
    Some((count * unit) as i64)
}
