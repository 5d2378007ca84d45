//! Pressure stall information: how long tasks had to wait for a resource (the kernel's `Documentation/accounting/psi.rst`).

use std::path::Path;

/// Waiting for one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited.
    pub full: Stall,
}

/// How long.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Nanoseconds since the group was made.
    pub total: u64,
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last 5 minutes.
    pub avg300: f64,
}

impl Pressure {
    /// Reads a file such as `cpu.pressure` or `/proc/pressure/memory`; none where the kernel does not count.
    pub fn read(file: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(file).ok()?)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut pressure = Self::default();
        let mut any = false;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let stall = match words.next()? {
                "some" => &mut pressure.some,
                "full" => &mut pressure.full,
                _ => continue,
            };
            any = true;
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                match key {
                    // The kernel counts microseconds.
                    "total" => stall.total = value.parse::<u64>().ok()?.saturating_mul(1000),
                    "avg10" => stall.avg10 = value.parse().ok()?,
                    "avg60" => stall.avg60 = value.parse().ok()?,
                    "avg300" => stall.avg300 = value.parse().ok()?,
                    _ => {}
                }
            }
        }
        any.then_some(pressure)
    }
}
