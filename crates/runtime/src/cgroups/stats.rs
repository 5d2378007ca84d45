//! What a group uses.

use std::path::Path;

use super::Cgroups;

/// A reading; absent where the controller is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds of CPU used since the group was made.
    pub cpu: Option<u64>,
    /// Memory in use.
    pub memory: Option<u64>,
    /// Memory in use without file pages that can be dropped at once.
    pub working_set: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Minor page faults.
    pub faults: Option<u64>,
    /// Major page faults.
    pub major_faults: Option<u64>,
    /// The memory limit, where there is one.
    pub limit: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
}

impl Cgroups {
    /// Reads what `group` uses.
    pub fn usage(&self, group: &str) -> Usage {
        let mut usage = Usage::default();
        if let Some(dir) = self.v1_dir("cpuacct", group) {
            usage.cpu = number(&dir.join("cpuacct.usage"));
        } else if let Some(dir) = self.v2_dir(group) {
            usage.cpu = field(&dir.join("cpu.stat"), "usage_usec").map(|n| n * 1000);
        }
        if let Some(dir) = self.v1_dir("memory", group) {
            usage.memory = number(&dir.join("memory.usage_in_bytes"));
            // The value that stands for "none" is the largest multiple of a page.
            usage.limit = number(&dir.join("memory.limit_in_bytes")).filter(|n| *n < 1 << 60);
            usage.fill(
                &dir.join("memory.stat"),
                ["total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault"],
            );
        } else if let Some(dir) = self.v2_dir(group) {
            usage.memory = number(&dir.join("memory.current"));
            usage.limit = number(&dir.join("memory.max"));
            usage.fill(&dir.join("memory.stat"), ["inactive_file", "anon", "pgfault", "pgmajfault"]);
        }
        let pids = self.v1_dir("pids", group).or_else(|| self.v2_dir(group));
        usage.processes = pids.and_then(|dir| number(&dir.join("pids.current")));
        usage
    }
}

impl Usage {
    fn fill(&mut self, file: &Path, [inactive, rss, faults, major]: [&str; 4]) {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let get = |name: &str| pick(&text, name);
        self.working_set = self.memory.map(|n| n.saturating_sub(get(inactive).unwrap_or(0)));
        self.rss = get(rss);
        self.faults = get(faults);
        self.major_faults = get(major);
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    pick(&std::fs::read_to_string(path).ok()?, name)
}

fn pick(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
