//! What pods may have in all, and what the system and Kubernetes itself keep (`enforceNodeAllocatable`).

use std::io;
use std::path::{Path, PathBuf};

use super::{Cgroups, put, shares, weight};
use crate::KubeletConfig;
use crate::node::capacity;
use crate::quantity;

/// Limits of a cgroup of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limits {
    /// Thousandths of a core.
    cpu: Option<u64>,
    /// Bytes.
    memory: Option<u64>,
    pids: Option<u64>,
}

impl Cgroups {
    /// Sets the limits that the configuration asks for.
    pub(super) fn reserve(&self, config: &KubeletConfig) -> io::Result<()> {
        let settings = &config.settings;
        let listed = |name: &str| settings.enforce_node_allocatable.iter().any(|one| one == name);
        if listed("pods") {
            let (capacity, _) = capacity::of(config);
            let cpu = quantity::milli_amount(Some(&capacity), "cpu").and_then(|cpu| u64::try_from(cpu).ok());
            let pids = capacity::reserved(settings, "pid");
            let most = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
            let most: u64 = most.trim().parse().unwrap_or(0);
            self.limit(
                &self.path("kubepods"),
                Limits {
                    cpu: cpu.map(|cpu| cpu.saturating_sub(capacity::reserved(settings, "cpu"))),
                    memory: Some(capacity::memory().saturating_sub(capacity::reserved(settings, "memory"))),
                    pids: (pids > 0 && most > pids).then(|| most - pids),
                },
            );
        }
        for (name, group, list) in [
            ("system-reserved", &settings.system_reserved_cgroup, &settings.system_reserved),
            ("kube-reserved", &settings.kube_reserved_cgroup, &settings.kube_reserved),
        ] {
            let all = listed(name);
            if !all && !listed(&format!("{name}-compressible")) {
                continue;
            }
            let group = self.path(group.trim_matches('/'));
            if !self.exists(&group) {
                let text = format!("the cgroup /{group}, of which {name} is enforced, does not exist");
                return Err(io::Error::new(io::ErrorKind::NotFound, text));
            }
            let amount = |name: &str| {
                let text = list.get(name)?.clone();
                let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text);
                let amount =
                    if name == "cpu" { quantity::milli(&quantity) } else { quantity::value(&quantity) };
                u64::try_from(amount?).ok()
            };
            let limits = Limits {
                cpu: amount("cpu"),
                memory: amount("memory").filter(|_| all),
                pids: amount("pid").filter(|_| all),
            };
            self.limit(&group, limits);
        }
        Ok(())
    }

    fn exists(&self, group: &str) -> bool {
        let mut mounts = self.legacy.iter().map(|(mount, _)| mount).chain(&self.unified);
        mounts.any(|mount| mount.join(group).is_dir())
    }

    fn limit(&self, group: &str, limits: Limits) {
        let cpu = limits.cpu.map(|cpu| shares(i64::try_from(cpu).unwrap_or(i64::MAX)));
        let set = |dir: PathBuf, file: &str, value: Option<String>| {
            if let Some(value) = value {
                put(&dir.join(file), &value);
            }
        };
        let text = |value: Option<u64>| value.map(|value| value.to_string());
        for (controller, file, value) in [
            ("cpu", "cpu.shares", cpu.map(|cpu| cpu.to_string())),
            ("memory", "memory.limit_in_bytes", text(limits.memory)),
            ("pids", "pids.max", text(limits.pids)),
        ] {
            if let Some(mount) = self.legacy_mount(controller) {
                set(mount.join(group), file, value);
            }
        }
        if let Some(dir) = self.unified.as_ref().map(|mount| mount.join(group)) {
            set(dir.clone(), "cpu.weight", cpu.map(|cpu| weight(cpu).to_string()));
            set(dir.clone(), "memory.max", text(limits.memory));
            set(dir, "pids.max", text(limits.pids));
        }
    }

    /// What all pods together may use of memory, and what they use beyond what the kernel can drop at once.
    pub(crate) fn pods_memory(&self) -> Option<(u64, u64)> {
        let group = self.path("kubepods");
        let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let (dir, limit, usage, stat) = match self.legacy_mount("memory") {
            Some(mount) => {
                (mount.join(&group), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            }
            None => (self.unified.as_ref()?.join(&group), "memory.max", "memory.current", "inactive_file"),
        };
        let limit = number(&dir.join(limit))?;
        let stats = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let inactive = stats.lines().find_map(|line| line.strip_prefix(stat)?.trim().parse::<u64>().ok());
        // Beyond this, a limit of version 1 stands for none.
        (limit < 1 << 60).then_some(())?;
        Some((limit, number(&dir.join(usage))?.saturating_sub(inactive.unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::tests::fake;

    #[test]
    fn limits_are_written_on_both_versions() {
        let dir = tempfile::tempdir().expect("a directory");
        let (old, new) = (dir.path().join("v1"), dir.path().join("v2"));
        for place in [&old, &new] {
            std::fs::create_dir_all(place.join("kubepods")).expect("made");
        }
        let limits = Limits { cpu: Some(1500), memory: Some(1 << 30), pids: Some(100) };
        fake(&[&old], Some(&new)).limit("kubepods", limits);
        let read = |path: &Path, file: &str| {
            std::fs::read_to_string(path.join("kubepods").join(file)).unwrap_or_default()
        };
        assert_eq!((read(&old, "cpu.shares"), read(&old, "pids.max")), ("1536".into(), "100".into()));
        assert_eq!((read(&new, "cpu.weight"), read(&new, "memory.max")), ("59".into(), "1073741824".into()));
        std::fs::write(new.join("kubepods/memory.current"), "500").expect("written");
        std::fs::write(new.join("kubepods/memory.stat"), "anon 1\ninactive_file 200\n").expect("written");
        assert_eq!(fake(&[], Some(&new)).pods_memory(), Some((1 << 30, 300)));
    }
}
