//! What the processes of a control group use: CPU, memory, processes, block I/O and how long they had to wait for them, read from
//! the files of cgroup version 1 and version 2. A value that the machine does not count is absent.
//!
//! Units are nanoseconds and bytes.

mod pressure;
mod rates;
mod read;

use std::path::{Path, PathBuf};

pub use pressure::{Pressure, Stall};
pub use rates::Rates;

/// The hierarchies that are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// Mount points of version 1, with their controllers.
    v1: Vec<(PathBuf, Vec<String>)>,
    /// The version 2 tree.
    v2: Option<PathBuf>,
}

/// A reading.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// The most of them that there may be.
    pub processes_limit: Option<u64>,
    /// Traffic with block devices.
    pub io: Vec<DeviceIo>,
    /// Waiting for block devices.
    pub io_pressure: Option<Pressure>,
}

/// Processor time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cpu {
    /// Used since the group was made.
    pub total: Option<u64>,
    /// Of it in user mode.
    pub user: Option<u64>,
    /// Of it in the kernel.
    pub system: Option<u64>,
    /// Periods in which the group wanted to run, with a quota.
    pub periods: Option<u64>,
    /// Periods in which it had to wait for the next one.
    pub throttled_periods: Option<u64>,
    /// How long it had to wait for that.
    pub throttled: Option<u64>,
    /// `cpu.shares`, or what corresponds to the weight.
    pub shares: Option<u64>,
    /// Microseconds of CPU time in each period; none without a limit.
    pub quota: Option<u64>,
    /// Microseconds.
    pub period: Option<u64>,
    /// Waiting for a processor.
    pub pressure: Option<Pressure>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// In use, with the page cache.
    pub usage: Option<u64>,
    /// The most that ever was.
    pub peak: Option<u64>,
    /// In use without file pages that can be dropped at once.
    pub working_set: Option<u64>,
    /// Anonymous.
    pub rss: Option<u64>,
    /// Page cache.
    pub cache: Option<u64>,
    /// Mapped files.
    pub mapped: Option<u64>,
    /// Of the kernel for the group.
    pub kernel: Option<u64>,
    /// File pages used lately.
    pub active_file: Option<u64>,
    /// File pages not used lately.
    pub inactive_file: Option<u64>,
    /// Swapped out.
    pub swap: Option<u64>,
    /// How much may be swapped out; none without a limit.
    pub swap_limit: Option<u64>,
    /// The limit, where there is one.
    pub limit: Option<u64>,
    /// How often the limit was met.
    pub limit_hits: Option<u64>,
    /// Processes that were killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Page faults, major ones too.
    pub faults: Option<u64>,
    /// Page faults that had to wait for a disk.
    pub major_faults: Option<u64>,
    /// Waiting for memory.
    pub pressure: Option<Pressure>,
}

/// Traffic with one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// `<major>:<minor>`.
    pub device: String,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Operations.
    pub reads: u64,
    /// Operations.
    pub writes: u64,
}

impl Hierarchies {
    /// What is mounted for this process; nothing where there are no cgroups.
    pub fn detect() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Reads a mount table as in `/proc/self/mountinfo`. Of several mounts of one hierarchy the first one counts.
    pub fn parse(table: &str) -> Self {
        let mut found = Self::default();
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") if found.v2.is_none() => found.v2 = Some(mount),
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    let controllers: Vec<String> = options.split(',').map(str::to_owned).collect();
                    let named = controllers.iter().any(|one| one.starts_with("name="));
                    if !named && !found.v1.iter().any(|(_, known)| *known == controllers) {
                        found.v1.push((mount, controllers));
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// The directory in the version 1 hierarchy of a controller.
    fn v1(&self, controller: &str, group: &Path) -> Option<PathBuf> {
        let (mount, _) = self.v1.iter().find(|(_, all)| all.iter().any(|one| one == controller))?;
        Some(mount.join(group))
    }

    /// The directory in the version 2 tree.
    fn v2(&self, group: &Path) -> Option<PathBuf> {
        self.v2.as_ref().map(|mount| mount.join(group))
    }

    /// Reads what `group` uses, a path from the root of every hierarchy.
    pub fn usage(&self, group: &str) -> Usage {
        let group = Path::new(group.trim_start_matches('/'));
        read::usage(self, group)
    }

    /// Whether there is version 2 alone.
    pub fn unified(&self) -> bool {
        self.v1.is_empty() && self.v2.is_some()
    }

    /// The names of the groups directly in `group`, in order.
    pub fn children(&self, group: &str) -> Vec<String> {
        let group = Path::new(group.trim_start_matches('/'));
        let dir = self.v1("memory", group).or_else(|| self.v1("cpu", group)).or_else(|| self.v2(group));
        let Some(dir) = dir else { return Vec::new() };
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// The processes directly in `group`.
    pub fn processes(&self, group: &str) -> Vec<i32> {
        let group = Path::new(group.trim_start_matches('/'));
        let dir = self.v1("pids", group).or_else(|| self.v1("memory", group)).or_else(|| self.v2(group));
        let list = dir.map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default());
        list.unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests;
