//! Cron schedules: five fields or one of the `@` names, in a time zone. As upstream's parser (robfig/cron): a day
//! must match both day fields unless both are restricted, in which case either will do.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use thiserror::Error;

/// Why a schedule cannot be read.
#[derive(Debug, Error, PartialEq)]
pub(super) enum ScheduleError {
    #[error("expected exactly 5 fields, found {0}")]
    Fields(usize),
    #[error("{0:?} is not a valid field of a schedule")]
    Field(String),
    #[error("unknown time zone {0}")]
    Zone(String),
}

#[derive(Debug, PartialEq)]
enum Kind {
    /// At fixed intervals, counted from the last time.
    Every(SignedDuration),
    At {
        minutes: u64,
        hours: u64,
        days: u64,
        months: u64,
        weekdays: u64,
        either_day: bool,
    },
}

/// A schedule in its time zone.
#[derive(Debug)]
pub(super) struct Schedule {
    kind: Kind,
    zone: TimeZone,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule such as 30 February never comes.
const LONGEST_SEARCH_YEARS: i16 = 5;

fn field(text: &str, low: u32, high: u32, names: &[&str]) -> Result<(u64, bool), ScheduleError> {
    let error = || ScheduleError::Field(text.to_owned());
    let value = |text: &str| -> Result<u32, ScheduleError> {
        let lower = text.to_ascii_lowercase();
        match names.iter().position(|name| *name == lower) {
            Some(at) => Ok(at as u32 + low),
            None => text.parse().map_err(|_| error()),
        }
    };
    let mut bits = 0;
    let mut any = false;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().map_err(|_| error())?)),
            None => (part, None),
        };
        let (first, last) = match range {
            "*" | "?" => {
                any |= step.is_none_or(|step| step == 1);
                (low, high)
            }
            _ => match range.split_once('-') {
                Some((first, last)) => (value(first)?, value(last)?),
                None => {
                    let one = value(range)?;
                    (one, if step.is_some() { high } else { one })
                }
            },
        };
        let step = step.unwrap_or(1);
        if first < low || last > high || first > last || step == 0 {
            return Err(error());
        }
        bits |= (first..=last).step_by(step as usize).fold(0, |bits, at| bits | 1 << at);
    }
    Ok((bits, any))
}

impl Schedule {
    /// Reads a schedule; without a zone it is in UTC.
    pub(super) fn parse(text: &str, zone: Option<&str>) -> Result<Self, ScheduleError> {
        let mut text = text.trim();
        let mut zone = zone;
        if let Some((name, rest)) = text
            .strip_prefix("TZ=")
            .or_else(|| text.strip_prefix("CRON_TZ="))
            .and_then(|rest| rest.split_once(char::is_whitespace))
        {
            zone = zone.or(Some(name));
            text = rest.trim();
        }
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.to_owned()))?,
        };
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        if let Some(interval) = text.strip_prefix("@every ") {
            let every: SignedDuration =
                interval.trim().parse().map_err(|_| ScheduleError::Field(text.to_owned()))?;
            let every = SignedDuration::from_secs(every.as_secs().max(1));
            return Ok(Self { kind: Kind::Every(every), zone });
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(ScheduleError::Fields(fields.len()));
        };
        let (days, any_day) = field(days, 1, 31, &[])?;
        let (weekdays, any_weekday) = field(weekdays, 0, 6, &DAYS)?;
        let kind = Kind::At {
            minutes: field(minutes, 0, 59, &[])?.0,
            hours: field(hours, 0, 23, &[])?.0,
            days,
            months: field(months, 1, 12, &MONTHS)?.0,
            weekdays,
            either_day: !any_day && !any_weekday,
        };
        Ok(Self { kind, zone })
    }

    /// The first time after `after`, if there is one in the next years.
    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let (minutes, hours, days, months, weekdays, either_day) = match &self.kind {
            Kind::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                return whole.checked_add(*every).ok();
            }
            Kind::At { minutes, hours, days, months, weekdays, either_day } => {
                (*minutes, *hours, *days, *months, *weekdays, *either_day)
            }
        };
        let start = self.zone.to_datetime(after);
        let last_year = start.year().checked_add(LONGEST_SEARCH_YEARS)?;
        let has = |bits: u64, at: i8| bits & (1 << at) != 0;
        let fits = |date: Date| {
            let day = has(days, date.day());
            let weekday = has(weekdays, date.weekday().to_sunday_zero_offset());
            has(months, date.month()) && if either_day { day || weekday } else { day && weekday }
        };
        let mut date = start.date();
        while date.year() <= last_year {
            if !has(months, date.month()) {
                date = date.first_of_month().checked_add(1.month()).ok()?;
                continue;
            }
            if fits(date) {
                for hour in (0..24).filter(|hour| has(hours, *hour)) {
                    for minute in (0..60).filter(|minute| has(minutes, *minute)) {
                        let at = DateTime::from_parts(date, Time::new(hour, minute, 0, 0).ok()?);
                        if at < start && date == start.date() && at.hour() + 3 < start.hour() {
                            continue;
                        }
                        let ambiguous = self.zone.to_ambiguous_timestamp(at);
                        // A time that the clocks leap over does not come.
                        let skipped = matches!(ambiguous.offset(), jiff::tz::AmbiguousOffset::Gap { .. });
                        if let (false, Ok(found)) = (skipped, ambiguous.earlier())
                            && found > after
                        {
                            return Some(found);
                        }
                    }
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// Of the times after `from` and not after `now`: the last one, and how many there were, counted up to 100.
    pub(super) fn missed(&self, from: Timestamp, now: Timestamp) -> Option<(Timestamp, usize)> {
        let first = self.next(from).filter(|first| *first <= now)?;
        let second = match self.next(first).filter(|second| *second <= now) {
            None => return Some((first, 1)),
            Some(second) => second,
        };
        // Skip ahead by whole intervals, so that years of missed times do not take long.
        let interval = second.duration_since(first).as_secs().max(60);
        let behind = now.duration_since(first).as_secs() / interval;
        let mut last = second;
        if behind > 100
            && let Ok(near) = now.checked_sub(SignedDuration::from_secs(interval * 50))
            && near > last
        {
            last = self.next(near).filter(|next| *next <= now).unwrap_or(last);
        }
        let mut count = 2;
        while let Some(next) = self.next(last).filter(|next| *next <= now) {
            last = next;
            count += 1;
        }
        Some((last, if behind > 100 { 101 } else { count }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn the_next_time() {
        for (schedule, zone, after, expected) in [
            ("* * * * *", None, "2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z"),
            ("*/15 9-17 * * mon-fri", None, "2026-01-02T17:45:00Z", "2026-01-05T09:00:00Z"),
            ("0 0 13 * 5", None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 29 2 *", None, "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@hourly", None, "2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z"),
            ("@every 90s", None, "2026-01-01T00:00:00Z", "2026-01-01T00:01:30Z"),
            ("30 6 * jan *", Some("UTC"), "2026-01-31T07:00:00Z", "2027-01-01T06:30:00Z"),
        ] {
            let schedule = Schedule::parse(schedule, zone).expect("a schedule");
            assert_eq!(schedule.next(at(after)), Some(at(expected)), "{schedule:?}");
        }
        assert_eq!(
            Schedule::parse("0 0 30 2 *", None).expect("a schedule").next(at("2026-01-01T00:00:00Z")),
            None
        );
    }

    #[test]
    fn what_is_no_schedule() {
        for text in ["", "* * * *", "60 * * * *", "* * * * 8", "*/0 * * * *", "5-1 * * * *", "@sometimes"] {
            assert!(Schedule::parse(text, None).is_err(), "{text:?}");
        }
        assert!(Schedule::parse("* * * * *", Some("No/Such")).is_err());
    }

    #[test]
    fn missed_times_are_counted() {
        let schedule = Schedule::parse("* * * * *", None).expect("a schedule");
        let from = at("2026-01-01T00:00:00Z");
        assert_eq!(schedule.missed(from, at("2026-01-01T00:00:59Z")), None);
        assert_eq!(schedule.missed(from, at("2026-01-01T00:01:10Z")), Some((at("2026-01-01T00:01:00Z"), 1)));
        assert_eq!(schedule.missed(from, at("2026-01-01T00:05:10Z")), Some((at("2026-01-01T00:05:00Z"), 5)));
        assert_eq!(
            schedule.missed(from, at("2027-01-01T00:00:30Z")),
            Some((at("2027-01-01T00:00:00Z"), 101))
        );
    }
}
