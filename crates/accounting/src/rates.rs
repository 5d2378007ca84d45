//! Rates from readings of a counter.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// A rate over less than this says little.
const LEAST: i64 = 1_000_000_000;
/// A reading older than this is forgotten: its group is gone, or nobody asks any more.
const OLDEST: i64 = 3_600_000_000_000;

/// How many cores are in use, from two readings of a counter.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<String, Reading>>);

#[derive(Debug)]
struct Reading {
    at: i64,
    used: u64,
    cores: Option<u64>,
}

impl Rates {
    /// Nanocores that `group` used between the last reading but one and this one (of nanoseconds of CPU time, at `at`).
    pub fn nanocores(&self, group: &str, at: i64, used: Option<u64>) -> Option<u64> {
        let used = used?;
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = readings.get_mut(group).filter(|last| last.used <= used) {
            let time = at - last.at;
            if time >= LEAST {
                let cores = u128::from(used - last.used) * 1_000_000_000 / time.unsigned_abs() as u128;
                *last = Reading { at, used, cores: u64::try_from(cores).ok() };
            }
            return last.cores;
        }
        readings.retain(|_, reading| at - reading.at < OLDEST);
        readings.insert(group.to_owned(), Reading { at, used, cores: None });
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_taken_over_a_second_at_least() {
        let rates = Rates::default();
        let second = 1_000_000_000;
        for (at, used, expect) in [
            (0, Some(0), None),
            (second / 2, Some(second as u64), None),
            (2 * second, Some(second as u64), Some(500_000_000)),
            (2 * second + 1, Some(9 * second as u64), Some(500_000_000)),
            // A counter that went back is another group's.
            (4 * second, Some(0), None),
            (5 * second, None, None),
        ] {
            assert_eq!(rates.nanocores("g", at, used), expect, "{at}");
        }
    }
}
