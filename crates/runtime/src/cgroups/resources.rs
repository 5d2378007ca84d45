//! Sets the limits that CRI asks for.

use std::path::Path;

use cri::v1::LinuxContainerResources;

use super::{Cgroups, Error, fail};

impl Cgroups {
    /// Applies what `resources` sets; a value of zero leaves that limit as it is.
    pub fn apply(&self, group: &str, resources: &LinuxContainerResources) -> Result<(), Error> {
        self.cpu(group, resources)?;
        self.memory(group, resources)?;
        for limit in &resources.hugepage_limits {
            let value = limit.limit.to_string();
            let name = if self.v1_dir("hugetlb", group).is_some() { "limit_in_bytes" } else { "max" };
            let file = format!("hugetlb.{}.{name}", limit.page_size);
            let dir = self.v1_dir("hugetlb", group).or_else(|| self.v2_dir(group));
            // Page sizes this machine lacks have no file, and need no limit.
            if let Some(dir) = dir.filter(|d| d.join(&file).exists()) {
                put(&dir, &file, &value)?;
            }
        }
        if let Some(dir) = self.v2_dir(group).filter(|_| self.unified()) {
            for (name, value) in &resources.unified {
                put(&dir, name, value)?;
            }
        }
        Ok(())
    }

    fn cpu(&self, group: &str, resources: &LinuxContainerResources) -> Result<(), Error> {
        if let Some(dir) = self.v1_dir("cpu", group) {
            if resources.cpu_shares > 0 {
                put(&dir, "cpu.shares", &resources.cpu_shares.to_string())?;
            }
            if resources.cpu_period > 0 {
                put(&dir, "cpu.cfs_period_us", &resources.cpu_period.to_string())?;
            }
            if resources.cpu_quota != 0 {
                put(&dir, "cpu.cfs_quota_us", &resources.cpu_quota.to_string())?;
            }
        } else if let Some(dir) = self.v2_dir(group) {
            if resources.cpu_shares > 0 {
                put(&dir, "cpu.weight", &weight(resources.cpu_shares).to_string())?;
            }
            if resources.cpu_quota != 0 {
                let quota = match resources.cpu_quota {
                    n if n > 0 => n.to_string(),
                    _ => "max".into(),
                };
                let period = if resources.cpu_period > 0 { resources.cpu_period } else { 100_000 };
                put(&dir, "cpu.max", &format!("{quota} {period}"))?;
            }
        }
        let cpuset = self.v1_dir("cpuset", group).or_else(|| self.v2_dir(group).filter(|_| self.unified()));
        if let Some(dir) = cpuset {
            if !resources.cpuset_cpus.is_empty() {
                put(&dir, "cpuset.cpus", &resources.cpuset_cpus)?;
            }
            if !resources.cpuset_mems.is_empty() {
                put(&dir, "cpuset.mems", &resources.cpuset_mems)?;
            }
        }
        Ok(())
    }

    fn memory(&self, group: &str, resources: &LinuxContainerResources) -> Result<(), Error> {
        let (limit, swap) = (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes);
        if limit == 0 {
            return Ok(());
        }
        if let Some(dir) = self.v1_dir("memory", group) {
            let swap = if swap == 0 { limit } else { swap };
            let with_swap = "memory.memsw.limit_in_bytes";
            let accounts_swap = dir.join(with_swap).exists();
            // The limit with swap is never below that without, so which one goes first depends on the direction.
            let raised = put(&dir, "memory.limit_in_bytes", &limit.to_string());
            if accounts_swap {
                put(&dir, with_swap, &swap.to_string())?;
            }
            if raised.is_err() {
                put(&dir, "memory.limit_in_bytes", &limit.to_string())?;
            }
        } else if let Some(dir) = self.v2_dir(group) {
            let text = |n: i64| if n < 0 { "max".to_owned() } else { n.to_string() };
            put(&dir, "memory.max", &text(limit))?;
            if swap != 0 && dir.join("memory.swap.max").exists() {
                let swap = if swap < 0 { -1 } else { (swap - limit).max(0) };
                put(&dir, "memory.swap.max", &text(swap))?;
            }
        }
        Ok(())
    }
}

/// The weight of version 2 for shares of version 1, as runc maps it: 2..262144 to 1..10000.
fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

pub(super) fn put(dir: &Path, file: &str, value: &str) -> Result<(), Error> {
    let path = dir.join(file);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut f| std::io::Write::write_all(&mut f, value.as_bytes()))
        .map_err(fail("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_onto_weights() {
        for (shares, expect) in [(2, 1), (1024, 39), (262_144, 10_000), (0, 1)] {
            assert_eq!(weight(shares), expect);
        }
    }
}
