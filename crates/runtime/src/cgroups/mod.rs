//! Control groups as this machine has them: version 1 hierarchies, the version 2 tree, or both.
//!
//! Where controllers are in version 1, each group is made in the version 2 tree as well, for `cgroup.kill`. All paths are
//! absolute within their hierarchy, so they hold wherever the runtime itself was put.

mod devices;
mod resources;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use accounting::{Hierarchies, Usage};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    controllers: Vec<String>,
}

/// What is mounted.
#[derive(Debug, Clone)]
pub struct Cgroups {
    v1: Vec<Hierarchy>,
    v2: Option<Hierarchy>,
    accounts: Hierarchies,
}

/// Why a group could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is mounted below `/sys/fs/cgroup`.
    #[error("no cgroup hierarchy is mounted; mount cgroup2 at /sys/fs/cgroup")]
    None,
    /// The kernel refused.
    #[error("cgroup: {} {}", what, path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

impl Cgroups {
    /// Finds the hierarchies in this process's mount table.
    pub fn detect() -> Result<Self, Error> {
        let path = Path::new("/proc/self/mountinfo");
        let text = std::fs::read_to_string(path).map_err(fail("read", path))?;
        let mut found = Self::parse(&text);
        if let Some(v2) = &mut found.v2 {
            let list = std::fs::read_to_string(v2.mount.join("cgroup.controllers")).unwrap_or_default();
            v2.controllers = list.split_whitespace().map(str::to_owned).collect();
        }
        if found.v1.is_empty() && found.v2.is_none() { Err(Error::None) } else { Ok(found) }
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Self { v1: Vec::new(), v2: None, accounts: Hierarchies::parse(mountinfo) };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            match kind {
                "cgroup2" if found.v2.is_none() => {
                    found.v2 = Some(Hierarchy { mount, controllers: Vec::new() });
                }
                "cgroup" => {
                    let controllers: Vec<String> =
                        options.split(',').filter(|o| CONTROLLERS.contains(o)).map(str::to_owned).collect();
                    if !controllers.is_empty() && !found.v1.iter().any(|h| h.controllers == controllers) {
                        found.v1.push(Hierarchy { mount, controllers });
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Reads what `group` uses.
    pub fn usage(&self, group: &str) -> Usage {
        self.accounts.usage(group)
    }

    /// How many processes of `group` were killed for want of memory.
    pub fn oom_kills(&self, group: &str) -> u64 {
        let text =
            self.oom_file(group).and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or(0)
    }

    /// The processes directly in `group`.
    pub fn processes(&self, group: &str) -> Vec<i32> {
        self.accounts.processes(group)
    }

    /// Whether there is such a group.
    pub fn exists(&self, group: &str) -> bool {
        self.all().any(|h| join(&h.mount, group).is_dir())
    }

    /// Whether limits are set in the version 2 tree.
    pub fn unified(&self) -> bool {
        self.v1.is_empty()
    }

    fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.v2.iter().chain(&self.v1)
    }

    /// The directory of `group` in the version 1 hierarchy of `controller`.
    fn v1_dir(&self, controller: &str, group: &str) -> Option<PathBuf> {
        let hierarchy = self.v1.iter().find(|h| h.controllers.iter().any(|c| c == controller))?;
        Some(join(&hierarchy.mount, group))
    }

    fn v2_dir(&self, group: &str) -> Option<PathBuf> {
        self.v2.as_ref().map(|h| join(&h.mount, group))
    }

    /// Makes `group` and what it is in, in every hierarchy; gives whether it was new.
    pub fn create(&self, group: &str) -> Result<bool, Error> {
        let mut new = false;
        for hierarchy in &self.v1 {
            let cpuset = hierarchy.controllers.iter().any(|c| c == "cpuset");
            let mut dir = hierarchy.mount.clone();
            for part in parts(group) {
                let parent = dir.clone();
                dir.push(part);
                new |= make(&dir)?;
                // Without both a task cannot enter the group.
                if cpuset {
                    inherit(&parent, &dir, "cpuset.cpus")?;
                    inherit(&parent, &dir, "cpuset.mems")?;
                }
            }
        }
        if let Some(v2) = &self.v2 {
            let wanted: String = v2
                .controllers
                .iter()
                .filter(|c| CONTROLLERS.contains(&c.as_str()))
                .map(|c| format!("+{c} "))
                .collect();
            let mut dir = v2.mount.clone();
            for part in parts(group) {
                if self.unified() && !wanted.is_empty() {
                    // Fails where processes sit in an inner group; limits are then missing, which `apply` reports.
                    let _ = std::fs::write(dir.join("cgroup.subtree_control"), wanted.trim_end());
                }
                dir.push(part);
                new |= make(&dir)?;
            }
        }
        Ok(new)
    }

    /// The files a process writes `0` to, to enter `group` everywhere.
    pub fn procs_files(&self, group: &str) -> Vec<String> {
        self.all()
            .map(|h| join(&h.mount, group).join("cgroup.procs").to_string_lossy().into_owned())
            .collect()
    }

    /// The directories of `group`, that with `cgroup.kill` first.
    pub fn dirs(&self, group: &str) -> Vec<String> {
        self.all().map(|h| join(&h.mount, group).to_string_lossy().into_owned()).collect()
    }

    /// The directories of `group` with the names that a container sees them by, below its `/sys/fs/cgroup`.
    pub fn view(&self, group: &str) -> Vec<(String, String)> {
        let text = |p: PathBuf| p.to_string_lossy().into_owned();
        let name = |h: &Hierarchy| h.mount.file_name().map(|n| n.to_string_lossy().into_owned());
        self.all().filter_map(|h| Some((text(join(&h.mount, group)), name(h)?))).collect()
    }

    /// The file that counts kills for want of memory in `group`.
    pub fn oom_file(&self, group: &str) -> Option<String> {
        let file = match self.v1_dir("memory", group) {
            Some(dir) => dir.join("memory.oom_control"),
            None => self.v2_dir(group)?.join("memory.events"),
        };
        Some(file.to_string_lossy().into_owned())
    }

    /// Kills all processes in `group` and below it.
    pub fn kill(&self, group: &str) {
        if let Some(dir) = self.v2_dir(group)
            && std::fs::write(dir.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for hierarchy in self.all() {
            kill_below(&join(&hierarchy.mount, group));
        }
    }

    /// Removes `group` with what is below it, killing what runs there. Missing ones are fine. Blocks for up to two seconds
    /// while killed processes leave.
    pub fn remove(&self, group: &str) -> Result<(), Error> {
        if parts(group).next().is_none() {
            return Ok(());
        }
        let mut wait = Duration::from_micros(500);
        for attempt in 0.. {
            let mut left = None;
            for hierarchy in self.all() {
                let dir = join(&hierarchy.mount, group);
                if let Err(source) = remove_below(&dir) {
                    left = Some(Error::Io { what: "remove", path: dir, source });
                }
            }
            let Some(error) = left else { return Ok(()) };
            if attempt >= 12 {
                return Err(error);
            }
            self.kill(group);
            #[expect(clippy::disallowed_methods, reason = "version 1 does not tell when a group is empty")]
            std::thread::sleep(wait);
            wait = (wait * 2).min(Duration::from_millis(400));
        }
        Ok(())
    }

    /// The names of the groups directly in `group`.
    pub fn children(&self, group: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .all()
            .filter_map(|h| std::fs::read_dir(join(&h.mount, group)).ok())
            .flatten()
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Those that Carrack sets limits in or that containers expect to be confined by.
const CONTROLLERS: &[&str] = &[
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "devices",
    "blkio",
    "io",
    "freezer",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
];

fn parts(group: &str) -> impl Iterator<Item = &str> {
    group.split('/').filter(|p| !p.is_empty() && *p != "." && *p != "..")
}

fn join(mount: &Path, group: &str) -> PathBuf {
    let mut path = mount.to_owned();
    path.extend(parts(group));
    path
}

fn make(dir: &Path) -> Result<bool, Error> {
    match std::fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(fail("make", dir)(e)),
    }
}

fn inherit(parent: &Path, dir: &Path, file: &str) -> Result<(), Error> {
    let own = dir.join(file);
    if std::fs::read_to_string(&own).is_ok_and(|text| !text.trim().is_empty()) {
        return Ok(());
    }
    let from = parent.join(file);
    let value = std::fs::read_to_string(&from).map_err(fail("read", &from))?;
    std::fs::write(&own, value.trim()).map_err(fail("write", &own))
}

fn kill_below(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            kill_below(&entry.path());
        }
    }
    let list = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in list.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 1) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

fn remove_below(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_below(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_the_mount_table() {
        let found = Cgroups::parse(
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(found.v1.len(), 1);
        assert_eq!(found.v1_dir("cpu", "/a/../b").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        assert_eq!(found.v2_dir("x").unwrap(), Path::new("/sys/fs/cgroup/unified/x"));
        assert!(!found.unified());
    }
}
