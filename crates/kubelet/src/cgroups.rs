//! The cgroup tree above containers: `kubepods` with its QoS classes and one cgroup per pod, on cgroup v1 and v2.
//! The runtime makes the containers' own cgroups below the pod's.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::KubeletConfig;
use crate::podutil;
use crate::resize::Rules;

mod limits;
mod node;
mod quota;

use limits::PodLimits;
pub(crate) use limits::page_size;
pub(crate) use quota::Lifted;

pub(crate) const CPU_PERIOD: i64 = 100_000;
/// Where pods' cgroups are, by class: guaranteed, burstable, best effort.
const CLASSES: [&str; 3] = ["kubepods", "kubepods/burstable", "kubepods/besteffort"];
const MIN_SHARES: i64 = 2;
const MIN_QUOTA: i64 = 1000;

/// Where cgroup file systems are mounted.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    unified: Option<PathBuf>,
    /// v1 mount points with their controllers.
    legacy: Vec<(PathBuf, Vec<String>)>,
    root: String,
    /// Process ids of a pod at most.
    pids: Option<i64>,
    rules: Rules,
    /// Pods that may use any CPU time for a moment.
    lifts: quota::Lifts,
}

/// `cpu.shares` of a request in thousandths of a core.
pub(crate) fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, 262_144)
}

/// CFS quota of a limit in thousandths of a core.
pub(crate) fn quota(milli: i64) -> i64 {
    (milli.saturating_mul(CPU_PERIOD) / 1000).max(MIN_QUOTA)
}

/// `cpu.weight` of v2 for `cpu.shares` of v1.
fn weight(shares: i64) -> i64 {
    1 + (shares - 2) * 9999 / 262_142
}

impl Cgroups {
    /// Finds the hierarchies and makes the QoS cgroups.
    pub(crate) fn detect(config: &KubeletConfig) -> io::Result<Self> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let root = config.cgroup_root.trim_matches('/').to_owned();
        let pids = Some(config.settings.pod_pids_limit).filter(|limit| *limit > 0);
        let cgroups = Cgroups { root, pids, rules: Rules::of(&config.settings), ..parse(&table) };
        for class in CLASSES {
            cgroups.make(&cgroups.path(class))?;
        }
        cgroups.set_shares("kubepods/besteffort", MIN_SHARES);
        cgroups.reserve(config)?;
        Ok(cgroups)
    }

    /// Whether everything is in one tree of version 2.
    pub(crate) fn is_unified(&self) -> bool {
        self.legacy.is_empty() && self.unified.is_some()
    }

    /// Whether limits of swap can be set.
    pub(crate) fn accounts_swap(&self) -> bool {
        if let Some(mount) = self.legacy_mount("memory") {
            return mount.join(self.path("kubepods")).join("memory.memsw.limit_in_bytes").exists();
        }
        self.unified.as_ref().is_some_and(|m| m.join(self.path("kubepods")).join("memory.swap.max").exists())
    }

    fn legacy_mount(&self, controller: &str) -> Option<&PathBuf> {
        let has = |list: &[String]| list.iter().any(|name| name == controller);
        self.legacy.iter().find(|(_, controllers)| has(controllers)).map(|(mount, _)| mount)
    }

    fn set_shares(&self, class: &str, shares: i64) {
        let path = self.path(class);
        if let Some(mount) = self.legacy_mount("cpu") {
            put(&mount.join(&path).join("cpu.shares"), &shares.to_string());
        }
        if let Some(mount) = &self.unified {
            put(&mount.join(&path).join("cpu.weight"), &weight(shares).to_string());
        }
    }

    /// Gives the class of burstable pods the share of its members' requests.
    pub(crate) fn balance<'a>(&self, pods: impl Iterator<Item = &'a Pod>) {
        let burstable = pods.filter(|pod| podutil::qos_class(pod) == "Burstable");
        let milli: i64 = burstable.map(|pod| crate::admission::request(pod, "cpu", true)).sum();
        self.set_shares("kubepods/burstable", shares(milli));
    }

    /// The folders of the tree in every hierarchy.
    pub(crate) fn trees(root: &str) -> io::Result<Vec<PathBuf>> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        let cgroups = Cgroups { root: root.trim_matches('/').to_owned(), ..parse(&table) };
        let mounts = cgroups.unified.iter().chain(cgroups.legacy.iter().map(|(mount, _)| mount));
        Ok(mounts.map(|mount| mount.join(cgroups.path("kubepods"))).collect())
    }

    fn path(&self, below: &str) -> String {
        if self.root.is_empty() { below.to_owned() } else { format!("{}/{below}", self.root) }
    }

    fn of_pod(&self, pod: &Pod) -> String {
        let uid = podutil::uid(pod);
        match podutil::qos_class(pod) {
            "Guaranteed" => self.path(&format!("kubepods/pod{uid}")),
            class => self.path(&format!("kubepods/{}/pod{uid}", class.to_lowercase())),
        }
    }

    /// The cgroup of all pods, a path from the root of every hierarchy.
    pub(crate) fn top(&self) -> String {
        format!("/{}", self.path("kubepods"))
    }

    /// The pod's cgroup, as CRI's `cgroup_parent` wants it.
    pub(crate) fn parent(&self, pod: &Pod) -> String {
        format!("/{}", self.of_pod(pod))
    }

    /// Makes the pod's cgroup and sets its limits.
    pub(crate) fn ensure(&self, pod: &Pod) -> io::Result<()> {
        let path = self.of_pod(pod);
        self.make(&path)?;
        let limits = PodLimits::of(pod, self.rules);
        for (mount, controllers) in &self.legacy {
            let dir = mount.join(&path);
            let has = |name: &str| controllers.iter().any(|controller| controller == name);
            if has("cpu") {
                put(&dir.join("cpu.shares"), &limits.shares.to_string());
            }
            if has("memory")
                && let Some(memory) = limits.memory
            {
                put(&dir.join("memory.limit_in_bytes"), &memory.to_string());
            }
            if has("pids")
                && let Some(pids) = self.pids
            {
                put(&dir.join("pids.max"), &pids.to_string());
            }
            if has("hugetlb") {
                set_huge_pages(&dir, "limit_in_bytes", &limits.huge_pages);
            }
        }
        if let Some(mount) = &self.unified {
            let dir = mount.join(&path);
            put(&dir.join("cpu.weight"), &weight(limits.shares).to_string());
            if let Some(pids) = self.pids {
                put(&dir.join("pids.max"), &pids.to_string());
            }
            set_huge_pages(&dir, "max", &limits.huge_pages);
            if let Some(memory) = limits.memory {
                put(&dir.join("memory.max"), &memory.to_string());
            }
        }
        self.set_quota(&path, limits.quota);
        Ok(())
    }

    /// Raises the pod's limits to what `pod` needs, and lowers none.
    pub(crate) fn widen(&self, pod: &Pod) -> io::Result<()> {
        let path = self.of_pod(pod);
        self.make(&path)?;
        let limits = PodLimits::of(pod, self.rules);
        // An absent or negative value, and the word `max`, mean that there is no limit to raise.
        let raise = |file: &Path, wanted: Option<i64>, none: &str, text: &dyn Fn(i64) -> String| {
            let now = std::fs::read_to_string(file).unwrap_or_default();
            let now = now.split_whitespace().next().and_then(|word| word.parse::<i64>().ok());
            match (now, wanted) {
                (Some(now), Some(wanted)) if now >= 0 && wanted > now => put(file, &text(wanted)),
                (Some(now), None) if now >= 0 => put(file, none),
                _ => {}
            }
        };
        let plain = |value: i64| value.to_string();
        for (mount, controllers) in &self.legacy {
            let dir = mount.join(&path);
            let has = |name: &str| controllers.iter().any(|controller| controller == name);
            if has("memory") {
                raise(&dir.join("memory.limit_in_bytes"), limits.memory, "-1", &plain);
            }
        }
        if let Some(mount) = &self.unified {
            let dir = mount.join(&path);
            raise(&dir.join("memory.max"), limits.memory, "max", &plain);
        }
        self.raise_quota(&path, limits.quota);
        Ok(())
    }

    fn make(&self, path: &str) -> io::Result<()> {
        for (mount, controllers) in &self.legacy {
            let dir = mount.join(path);
            if dir.is_dir() {
                continue;
            }
            failpoint::step("kubelet.cgroup.make");
            std::fs::create_dir_all(&dir)?;
            if controllers.iter().any(|name| name == "cpuset") {
                fill_cpuset(mount, Path::new(path));
            }
        }
        if let Some(mount) = &self.unified {
            let dir = mount.join(path);
            if !dir.is_dir() {
                std::fs::create_dir_all(&dir)?;
            }
            delegate(mount, Path::new(path));
        }
        Ok(())
    }

    /// Removes the pod's cgroup. Fails while processes are left in it.
    pub(crate) fn remove(&self, pod: &Pod) -> io::Result<()> {
        if pod.spec.is_some() {
            return self.remove_path(&self.of_pod(pod));
        }
        // Its class is not known.
        for class in CLASSES {
            self.remove_path(&self.path(&format!("{class}/pod{}", podutil::uid(pod))))?;
        }
        Ok(())
    }

    /// Uids of pods that have a cgroup, with the cgroup's path.
    pub(crate) fn pods(&self) -> Vec<(String, String)> {
        let Some(mount) = self.legacy.first().map(|(mount, _)| mount).or(self.unified.as_ref()) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for class in CLASSES {
            let path = self.path(class);
            for entry in std::fs::read_dir(mount.join(&path)).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Some(uid) = name.strip_prefix("pod") {
                    found.push((uid.to_owned(), format!("{path}/{name}")));
                }
            }
        }
        found
    }

    /// Removes a pod's cgroup by its path.
    pub(crate) fn remove_path(&self, path: &str) -> io::Result<()> {
        let mounts = self.legacy.iter().map(|(mount, _)| mount).chain(&self.unified);
        for mount in mounts {
            failpoint::step("kubelet.cgroup.remove");
            remove_tree(&mount.join(path))?;
        }
        Ok(())
    }
}

fn parse(table: &str) -> Cgroups {
    let mut cgroups = Cgroups {
        unified: None,
        legacy: Vec::new(),
        root: String::new(),
        pids: None,
        rules: Rules::default(),
        lifts: quota::Lifts::default(),
    };
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup2") => cgroups.unified = Some(PathBuf::from(mount)),
            Some("cgroup") => {
                let options = right.nth(1).unwrap_or_default();
                let controllers: Vec<String> = options.split(',').map(str::to_owned).collect();
                // Named hierarchies (systemd's) carry no controller.
                if !controllers.iter().any(|name| name.starts_with("name=")) {
                    cgroups.legacy.push((PathBuf::from(mount), controllers));
                }
            }
            _ => {}
        }
    }
    cgroups
}

/// A new v1 cpuset cgroup has neither processors nor memory nodes; each level takes those of the one above.
fn fill_cpuset(mount: &Path, path: &Path) {
    let mut dir = mount.to_owned();
    for part in path.components() {
        let parent = dir.clone();
        dir.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let empty = std::fs::read_to_string(dir.join(file)).is_ok_and(|text| text.trim().is_empty());
            if empty && let Ok(inherited) = std::fs::read_to_string(parent.join(file)) {
                put(&dir.join(file), inherited.trim());
            }
        }
    }
}

/// Hands every controller of a v2 tree down to the children of `path`.
fn delegate(mount: &Path, path: &Path) {
    let mut dir = mount.to_owned();
    for part in std::iter::once(std::path::Component::CurDir).chain(path.components()) {
        dir.push(part);
        let controllers = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            put(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
    }
}

/// Writes a control file. Controllers that a machine lacks have no such file, and the limit cannot be set there.
fn put(file: &Path, value: &str) {
    if let Err(error) = std::fs::write(file, value)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(file = %file.display(), value, %error, "cannot set a cgroup value");
    }
}

/// Limits the huge pages of every size that the machine has; a size that is not asked for is not to be had.
fn set_huge_pages(dir: &Path, file: &str, limits: &BTreeMap<String, i64>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size =
            name.to_str().and_then(|name| name.strip_prefix("hugetlb.")?.strip_suffix(&format!(".{file}")));
        let Some(size) = size.filter(|size| !size.contains('.')) else { continue };
        put(&entry.path(), &limits.get(size).copied().unwrap_or(0).to_string());
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hierarchies in plain folders: of version 1 with all controllers each, and of version 2.
    pub(super) fn fake(legacy: &[&Path], unified: Option<&Path>) -> Cgroups {
        let all = ["cpu", "memory", "pids", "hugetlb"].map(str::to_owned).to_vec();
        Cgroups {
            unified: unified.map(Path::to_owned),
            legacy: legacy.iter().map(|mount| ((*mount).to_owned(), all.clone())).collect(),
            root: String::new(),
            pids: Some(50),
            rules: Rules::default(),
            lifts: quota::Lifts::default(),
        }
    }

    #[test]
    fn hierarchies_are_found() {
        let found = parse(
            "30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             31 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             32 25 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n",
        );
        assert_eq!(found.unified, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(found.legacy.len(), 1);
        assert!(found.legacy[0].1.contains(&"cpu".to_owned()));
    }
}
