//! When a client that was refused may come back: the more were refused lately, the later (upstream:
//! `util/flowcontrol/dropped_requests_tracker.go`).

use std::collections::VecDeque;

const LONGEST: u64 = 32;

/// What was refused at one priority level. Times are whole seconds.
#[derive(Debug)]
pub struct Dropped {
    /// Seconds and how many were refused in them, oldest first; at most a few times [`LONGEST`].
    history: VecDeque<(u64, u64)>,
    second: u64,
    count: u64,
    retry_after: u64,
    changed: u64,
}

impl Default for Dropped {
    fn default() -> Self {
        Self { history: VecDeque::new(), second: 0, count: 0, retry_after: 1, changed: 0 }
    }
}

impl Dropped {
    /// Notes a refused request; the seconds after which it may be tried again.
    pub fn note(&mut self, now: u64) -> u64 {
        if self.second == now {
            self.count += 1;
            return self.retry_after;
        }
        self.history.push_back((self.second, self.count));
        let keep = (2 * self.retry_after).min(LONGEST);
        while self.history.front().is_some_and(|(second, _)| now.saturating_sub(*second) > keep) {
            self.history.pop_front();
        }
        (self.second, self.count) = (now, 1);
        let recent = self.history.iter().filter(|(s, _)| *s < now && now - s <= self.retry_after);
        let recent: u64 = recent.map(|(_, count)| count).sum();
        if now.saturating_sub(self.changed) >= self.retry_after && recent >= 3 * self.retry_after {
            self.retry_after = (self.retry_after * 2).min(LONGEST);
            self.changed = now;
        } else if recent < self.retry_after && self.retry_after > 1 {
            self.retry_after -= 1;
        }
        self.retry_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_under_pressure_and_shrinks_after_it() {
        let mut dropped = Dropped::default();
        assert_eq!(dropped.note(100), 1);
        for second in 100..300 {
            for _ in 0..200 {
                dropped.note(second);
            }
        }
        assert_eq!(dropped.note(300), LONGEST);
        let mut last = LONGEST;
        for second in (400..400 + 40 * LONGEST).step_by(40) {
            last = dropped.note(second);
        }
        assert_eq!(last, 1);
        assert!(dropped.history.len() < 100);
    }
}
