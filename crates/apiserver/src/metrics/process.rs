//! What the operating system knows of this process, read when it is asked for.

use std::fmt::Write;
use std::sync::LazyLock;

use exposition::{Stability, head};

/// Clock ticks of `/proc` in a second: fixed for user space on every architecture that Linux runs on.
const TICKS: f64 = 100.0;

static STARTED: LazyLock<f64> = LazyLock::new(|| {
    // The start time is in ticks since the boot.
    let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = boot.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<f64>().ok()).unwrap_or(0.0);
    boot + stat(19).unwrap_or(0.0) / TICKS
});

/// A field of `/proc/self/stat`, counted after the name, which may itself hold blanks.
fn stat(field: usize) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    rest.split(' ').nth(field)?.parse().ok()
}

fn open_files_limit() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

pub fn write(out: &mut String) {
    let pages = |field| stat(field).map(|pages| pages * 4096.0);
    let cpu = stat(11).zip(stat(12)).map(|(user, system)| (user + system) / TICKS);
    let open = std::fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count() as f64);
    let values = [
        ("process_cpu_seconds_total", "counter", "Processor time used, in seconds.", cpu),
        ("process_max_fds", "gauge", "Most files that can be open.", open_files_limit()),
        ("process_open_fds", "gauge", "Files that are open.", open),
        ("process_resident_memory_bytes", "gauge", "Memory in use, in bytes.", pages(21)),
        ("process_start_time_seconds", "gauge", "When the process started, in Unix time.", Some(*STARTED)),
        ("process_virtual_memory_bytes", "gauge", "Address space in use, in bytes.", stat(20)),
    ];
    for (name, kind, help, value) in values {
        if let Some(value) = value {
            head(out, name, Stability::Alpha, help, kind);
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name} {value}");
        }
    }
}
