//! The mean, deviation and extremes of a value over time.

use std::time::Duration;

/// Follows a value.
#[derive(Debug)]
pub struct Integrator {
    value: f64,
    most: f64,
    since: Duration,
    seconds: f64,
    sum: f64,
    squares: f64,
}

/// What a value was like over a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    pub seconds: f64,
    pub mean: f64,
    pub deviation: f64,
    pub most: f64,
}

impl Integrator {
    /// Zero from now on.
    pub fn new(now: Duration) -> Self {
        Self { value: 0.0, most: 0.0, since: now, seconds: 0.0, sum: 0.0, squares: 0.0 }
    }

    /// The value is another one from now on.
    pub fn set(&mut self, now: Duration, value: f64) {
        self.pass(now);
        self.value = value;
        self.most = self.most.max(value);
    }

    fn pass(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.since).as_secs_f64();
        self.since = self.since.max(now);
        self.seconds += passed;
        self.sum += self.value * passed;
        self.squares += self.value * self.value * passed;
    }

    /// Sums up to now, and begins anew.
    pub fn take(&mut self, now: Duration) -> Summary {
        self.pass(now);
        let mut summary = Summary { seconds: self.seconds, most: self.most, ..Summary::default() };
        if self.seconds > 0.0 {
            summary.mean = self.sum / self.seconds;
            let variance = self.squares / self.seconds - summary.mean * summary.mean;
            summary.deviation = variance.max(0.0).sqrt();
        }
        (self.seconds, self.sum, self.squares, self.most) = (0.0, 0.0, 0.0, self.value);
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_weighed_by_time() {
        let at = Duration::from_secs;
        let mut value = Integrator::new(at(0));
        value.set(at(2), 4.0);
        let summary = value.take(at(4));
        assert_eq!(summary, Summary { seconds: 4.0, mean: 2.0, deviation: 2.0, most: 4.0 });
        let summary = value.take(at(5));
        assert_eq!(summary, Summary { seconds: 1.0, mean: 4.0, deviation: 0.0, most: 4.0 });
        assert_eq!(value.take(at(5)).seconds, 0.0);
    }
}
