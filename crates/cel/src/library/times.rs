//! Parts of timestamps and durations.

use super::{Result, text};
use crate::error::EvalError;
use crate::functions::Def;
use crate::value::time::Civil;
use crate::value::{Timestamp, Value};

pub(super) const FUNCTIONS: &[Def] = &[
    Def(
        "getFullYear",
        &["timestamp_to_year: timestamp.() -> int", "timestamp_to_year_with_tz: timestamp.(string) -> int"],
        |args| date(args, |at| at.year),
    ),
    Def(
        "getMonth",
        &["timestamp_to_month: timestamp.() -> int", "timestamp_to_month_with_tz: timestamp.(string) -> int"],
        |args| date(args, |at| at.month - 1),
    ),
    Def(
        "getDayOfYear",
        &[
            "timestamp_to_day_of_year: timestamp.() -> int",
            "timestamp_to_day_of_year_with_tz: timestamp.(string) -> int",
        ],
        |args| date(args, |at| at.day_of_year),
    ),
    Def(
        "getDayOfMonth",
        &[
            "timestamp_to_day_of_month: timestamp.() -> int",
            "timestamp_to_day_of_month_with_tz: timestamp.(string) -> int",
        ],
        |args| date(args, |at| at.day - 1),
    ),
    Def(
        "getDate",
        &[
            "timestamp_to_day_of_month_1_based: timestamp.() -> int",
            "timestamp_to_day_of_month_1_based_with_tz: timestamp.(string) -> int",
        ],
        |args| date(args, |at| at.day),
    ),
    Def(
        "getDayOfWeek",
        &[
            "timestamp_to_day_of_week: timestamp.() -> int",
            "timestamp_to_day_of_week_with_tz: timestamp.(string) -> int",
        ],
        |args| date(args, |at| at.weekday),
    ),
    Def(
        "getHours",
        &[
            "timestamp_to_hours: timestamp.() -> int",
            "timestamp_to_hours_with_tz: timestamp.(string) -> int",
            "duration_to_hours: duration.() -> int",
        ],
        |args| match args {
            [Value::Duration(nanos)] => Ok(Value::Int(nanos / 3_600_000_000_000)),
            _ => date(args, |at| at.hour),
        },
    ),
    Def(
        "getMinutes",
        &[
            "timestamp_to_minutes: timestamp.() -> int",
            "timestamp_to_minutes_with_tz: timestamp.(string) -> int",
            "duration_to_minutes: duration.() -> int",
        ],
        |args| match args {
            [Value::Duration(nanos)] => Ok(Value::Int(nanos / 60_000_000_000)),
            _ => date(args, |at| at.minute),
        },
    ),
    Def(
        "getSeconds",
        &[
            "timestamp_to_seconds: timestamp.() -> int",
            "timestamp_to_seconds_tz: timestamp.(string) -> int",
            "duration_to_seconds: duration.() -> int",
        ],
        |args| match args {
            [Value::Duration(nanos)] => Ok(Value::Int(nanos / 1_000_000_000)),
            _ => date(args, |at| at.second),
        },
    ),
    Def(
        "getMilliseconds",
        &[
            "timestamp_to_milliseconds: timestamp.() -> int",
            "timestamp_to_milliseconds_with_tz: timestamp.(string) -> int",
            "duration_to_milliseconds: duration.() -> int",
        ],
        |args| match args {
            [Value::Duration(nanos)] => Ok(Value::Int(nanos / 1_000_000)),
            [Value::Timestamp(at), zone @ ..] => {
                if let Some(zone) = zone.first() {
                    offset(at, text(Some(zone))?)?;
                }
                Ok(Value::Int(i64::from(at.instant().1 / 1_000_000)))
            }
            _ => Err(EvalError::no_such_overload()),
        },
    ),
];

fn date<'a>(args: &[Value<'a>], part: fn(Civil) -> i64) -> Result<'a> {
    let Some(Value::Timestamp(at)) = args.first() else { return Err(EvalError::no_such_overload()) };
    let offset = match args.get(1) {
        Some(zone) => offset(at, text(Some(zone))?)?,
        None => 0,
    };
    Ok(Value::Int(part(at.civil(offset))))
}

/// The offset from UTC in seconds, of `+02:00` or of a zone's name at an instant.
fn offset(at: &Timestamp, zone: &str) -> std::result::Result<i64, EvalError> {
    let Some((hours, minutes)) = zone.split_once(':') else {
        if matches!(zone, "" | "UTC") {
            return Ok(0);
        }
        let unknown = || EvalError::new(format!("unknown time zone {zone}"));
        let zone = jiff::tz::TimeZone::get(zone).map_err(|_| unknown())?;
        let instant = jiff::Timestamp::from_second(at.instant().0).map_err(|_| unknown())?;
        return Ok(zone.to_offset(instant).seconds().into());
    };
    let number = |part: &str| {
        part.parse::<i64>()
            .map_err(|_| EvalError::new(format!("strconv.Atoi: parsing {part:?}: invalid syntax")))
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let minutes = if zone.starts_with('-') {
        hours.saturating_mul(60).saturating_sub(minutes)
    } else {
        hours.saturating_mul(60).saturating_add(minutes)
    };
    if minutes.abs() > 24 * 60 * 366 {
        return Err(EvalError::new(format!("unknown time zone {zone}")));
    }
    Ok(minutes * 60)
}
