//! Times as the API writes them: RFC 3339 in UTC, whole seconds for `Time`, microseconds for `MicroTime`.

use jiff::civil::Date;
use jiff::{Timestamp, tz::Offset};

const LAYOUT: &str = "2006-01-02T15:04:05Z07:00";
const MICRO_LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";

/// A time in canonical form, or Go's words for what is wrong.
pub fn canonical(text: &str) -> Result<String, String> {
    parse(text, LAYOUT, None).map(|t| seconds(&t))
}

/// A time with microseconds in canonical form.
pub fn canonical_micro(text: &str) -> Result<String, String> {
    parse(text, MICRO_LAYOUT, Some(6)).map(|t| micros(&t))
}

/// `2006-01-02T15:04:05Z`
pub fn seconds(time: &Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2006-01-02T15:04:05.000000Z`
pub fn micros(time: &Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads RFC 3339; with `digits`, exactly so many decimals of a second are needed.
fn parse(text: &str, layout: &str, digits: Option<usize>) -> Result<Timestamp, String> {
    let head = format!("parsing time {text:?}");
    let cannot = |rest: &str, element: &str| {
        Err(format!("{head} as {layout:?}: cannot parse {rest:?} as {element:?}"))
    };
    let mut rest = text;
    let mut parts = [0i32; 6];
    const FORM: [(usize, &str, &str); 6] =
        [(4, "2006", "-"), (2, "01", "-"), (2, "02", "T"), (2, "15", ":"), (2, "04", ":"), (2, "05", "")];
    for (part, (width, element, after)) in parts.iter_mut().zip(FORM) {
        let number = rest.get(..width).filter(|s| s.bytes().all(|b| b.is_ascii_digit()));
        let Some(number) = number else { return cannot(rest, element) };
        *part = number.parse().unwrap_or(0);
        rest = &rest[width..];
        match rest.strip_prefix(after) {
            Some(left) => rest = left,
            None => return cannot(rest, after),
        }
    }
    let mut nanos = 0;
    let decimals = rest.strip_prefix(['.', ',']).map(|r| {
        let count = r.bytes().take_while(u8::is_ascii_digit).count();
        digits.map_or(count, |d| d.min(count))
    });
    match (decimals, digits) {
        (Some(count), _) if count > 0 && digits.is_none_or(|d| d == count) => {
            let nine: String = rest[1..=count].chars().chain("000000000".chars()).take(9).collect();
            nanos = nine.parse().unwrap_or(0);
            rest = &rest[count + 1..];
        }
        (_, Some(_)) => return cannot(rest, ".000000"),
        _ => {}
    }
    let offset = match rest {
        "Z" => 0,
        _ => match zone(rest) {
            Some(seconds) => seconds,
            None => return cannot(rest, "Z07:00"),
        },
    };
    let range = |what: &str| format!("{head}: {what} out of range");
    let [year, month, day, hour, minute, second] = parts;
    if !(1..=12).contains(&month) {
        return Err(range("month"));
    }
    let date = Date::new(year as i16, month as i8, day as i8).map_err(|_| range("day"))?;
    if hour > 23 || minute > 59 || second > 59 {
        let what = if hour > 23 { "hour" } else { "minute" };
        return Err(range(if hour <= 23 && minute <= 59 { "second" } else { what }));
    }
    let local = date.at(hour as i8, minute as i8, second as i8, nanos);
    let offset = Offset::from_seconds(offset).map_err(|_| range("time zone offset hour"))?;
    offset.to_timestamp(local).map_err(|_| range("year"))
}

fn zone(text: &str) -> Option<i32> {
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = text[1..].split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours <= 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, want) in [
            ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
            ("2024-01-02T03:04:05.999Z", "2024-01-02T03:04:05Z"),
            ("2024-01-02T03:04:05+02:00", "2024-01-02T01:04:05Z"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(want));
        }
        let micro = canonical_micro("2024-01-02T03:04:05.123456Z");
        assert_eq!(micro.as_deref(), Ok("2024-01-02T03:04:05.123456Z"));
        assert!(canonical_micro("2024-01-02T03:04:05Z").is_err());
        assert_eq!(
            canonical("yesterday").unwrap_err(),
            r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#
        );
        assert_eq!(
            canonical("2024-02-30T00:00:00Z").unwrap_err(),
            r#"parsing time "2024-02-30T00:00:00Z": day out of range"#
        );
    }
}
