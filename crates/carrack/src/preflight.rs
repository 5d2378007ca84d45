//! What the machine must offer, looked at before anything is started: a clear word now is better than a strange failure
//! later.

use std::path::Path;

use anyhow::bail;

/// Fails if `up` cannot work at all; the warnings tell what will not.
pub fn check() -> anyhow::Result<Vec<String>> {
    if !nix::unistd::geteuid().is_root() {
        bail!("carrack makes namespaces, mounts, cgroups and network links: run it as root");
    }
    let mut missing = Vec::new();
    for (name, why) in [
        ("net", "pods have networks of their own"),
        ("pid", "containers have processes of their own"),
        ("mnt", "containers have file systems of their own"),
        ("uts", "pods have host names of their own"),
        ("ipc", "pods have shared memory of their own"),
    ] {
        if !Path::new("/proc/self/ns").join(name).exists() {
            missing.push(format!("the kernel lacks {name} namespaces: {why}"));
        }
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.lines().any(|line| line.ends_with("\toverlay")) {
        missing.push("the kernel lacks overlayfs: containers share the layers of their images (try `modprobe overlay`)".into());
    }
    if !missing.is_empty() {
        bail!("this machine cannot run pods:\n  - {}", missing.join("\n  - "));
    }
    let mut warnings = Vec::new();
    let controllers = controllers();
    for (name, what) in [
        ("memory", "memory limits"),
        ("cpu", "CPU limits"),
        ("pids", "process limits"),
        ("cpuset", "CPU pinning"),
    ] {
        if !controllers.iter().any(|one| one == name) {
            warnings.push(format!("no {name} cgroup controller: {what} will not bind"));
        }
    }
    if !Path::new("/proc/sys/net/ipv6").exists() {
        warnings.push("no IPv6: pods and Services have IPv4 addresses only".into());
    }
    if !Path::new("/proc/sys/kernel/seccomp").exists() {
        warnings.push("no seccomp: containers may use every system call".into());
    }
    Ok(warnings)
}

/// The cgroup controllers at hand, in either version.
fn controllers() -> Vec<String> {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let v1 = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounted = |name: &str| {
        mounts.lines().any(|line| {
            let mut fields = line.split(' ').skip(2);
            fields.next() == Some("cgroup")
                && fields.next().is_some_and(|options| options.split(',').any(|one| one == name))
        })
    };
    let old = v1.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| mounted(name));
    v2.split_whitespace().chain(old).map(str::to_owned).collect()
}
