//! Back-off per key: the first try is free, then 10 s, doubling up to 5 min or what is configured; forgotten after 10 quiet minutes.
//! Time comes in as an argument.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

const FIRST: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(300);

/// Delays by key.
#[derive(Debug, Clone)]
pub(crate) struct Backoffs {
    entries: HashMap<String, Entry>,
    most: Duration,
}

impl Default for Backoffs {
    fn default() -> Self {
        Backoffs::up_to(MOST)
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: Duration,
    updated: Timestamp,
}

impl Backoffs {
    /// With another longest delay (`crashLoopBackOff.maxContainerRestartPeriod`); the first one is never longer.
    pub(crate) fn up_to(most: Duration) -> Self {
        Backoffs { entries: HashMap::new(), most }
    }

    /// How long to wait from `now` for a try that follows an event at `since`: the remaining time and the whole delay.
    pub(crate) fn remaining(
        &self,
        key: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<(Duration, Duration)> {
        let entry = self.entries.get(key)?;
        if elapsed(entry.updated, since) > 2 * MOST {
            return None;
        }
        let passed = elapsed(since, now);
        (passed < entry.delay).then(|| (entry.delay - passed, entry.delay))
    }

    /// Notes a try that follows an event at `since`.
    pub(crate) fn next(&mut self, key: &str, since: Timestamp, now: Timestamp) {
        let entry = match self.entries.get(key) {
            Some(entry) if elapsed(entry.updated, since) <= 2 * MOST => {
                Entry { delay: (entry.delay * 2).min(self.most), updated: now }
            }
            _ => Entry { delay: FIRST.min(self.most), updated: now },
        };
        self.entries.insert(key.to_owned(), entry);
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    let span: SignedDuration = to.duration_since(from);
    Duration::try_from(span).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_are_forgotten() {
        let at = |second: i64| Timestamp::from_second(second).expect("in range");
        let mut backoffs = Backoffs::default();
        assert_eq!(backoffs.remaining("c", at(0), at(0)), None, "the first restart is free");
        backoffs.next("c", at(0), at(0));
        assert_eq!(
            backoffs.remaining("c", at(4), at(6)),
            Some((Duration::from_secs(8), Duration::from_secs(10)))
        );
        assert_eq!(backoffs.remaining("c", at(4), at(14)), None);
        backoffs.next("c", at(4), at(14));
        assert_eq!(
            backoffs.remaining("c", at(20), at(20)),
            Some((Duration::from_secs(20), Duration::from_secs(20)))
        );
        for second in 0..10 {
            backoffs.next("c", at(30 + second), at(30 + second));
        }
        assert_eq!(backoffs.remaining("c", at(50), at(50)).map(|(_, delay)| delay), Some(MOST));
        assert_eq!(backoffs.remaining("c", at(1000), at(1000)), None, "ten quiet minutes");
        let mut short = Backoffs::up_to(Duration::from_secs(2));
        for second in 0..3 {
            short.next("c", at(second), at(second));
        }
        assert_eq!(short.remaining("c", at(3), at(3)).map(|(_, delay)| delay), Some(Duration::from_secs(2)));
    }
}
