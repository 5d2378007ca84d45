//! Sets the limits that CRI asks for.

use std::path::{Path, PathBuf};

use cri::v1::LinuxContainerResources;

use super::{Cgroups, Error, fail};

impl Cgroups {
    /// Applies what `resources` sets; a value of zero leaves that limit as it is.
    pub fn apply(&self, group: &str, resources: &LinuxContainerResources) -> Result<(), Error> {
        self.apply_early(group, resources)?;
        for (path, value) in self.quota(group, resources) {
            write(&path, &value)?;
        }
        Ok(())
    }

    /// As [`Cgroups::apply`], without what [`Cgroups::quota`] gives.
    pub fn apply_early(&self, group: &str, resources: &LinuxContainerResources) -> Result<(), Error> {
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

    /// The files that hold the limit on CPU time, and what goes there.
    pub fn quota(&self, group: &str, resources: &LinuxContainerResources) -> Vec<(PathBuf, String)> {
        let (period, quota) = (resources.cpu_period, resources.cpu_quota);
        let mut files = Vec::new();
        if let Some(dir) = self.v1_dir("cpu", group) {
            if period > 0 {
                files.push((dir.join("cpu.cfs_period_us"), period.to_string()));
            }
            if quota != 0 {
                files.push((dir.join("cpu.cfs_quota_us"), quota.to_string()));
            }
        } else if let Some(dir) = self.v2_dir(group)
            && quota != 0
        {
            let quota = if quota > 0 { quota.to_string() } else { "max".into() };
            let period = if period > 0 { period } else { 100_000 };
            files.push((dir.join("cpu.max"), format!("{quota} {period}")));
        }
        files
    }

    fn cpu(&self, group: &str, resources: &LinuxContainerResources) -> Result<(), Error> {
        if let Some(dir) = self.v1_dir("cpu", group) {
            if resources.cpu_shares > 0 {
                put(&dir, "cpu.shares", &resources.cpu_shares.to_string())?;
            }
        } else if let Some(dir) = self.v2_dir(group)
            && resources.cpu_shares > 0
        {
            put(&dir, "cpu.weight", &weight(resources.cpu_shares).to_string())?;
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
    write(&dir.join(file), value)
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut f| std::io::Write::write_all(&mut f, value.as_bytes()))
        .map_err(fail("write", path))
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
