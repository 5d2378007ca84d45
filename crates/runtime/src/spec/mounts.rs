//! What is mounted in a container, and in which order.

use std::path::Path;

use cri::v1::{ContainerConfig, LinuxContainerSecurityContext, Mount, MountPropagation};
use serde_json::{Value, json};

use super::{Error, Input};

pub(super) fn build(input: &Input<'_>, context: &LinuxContainerSecurityContext) -> Result<Vec<Value>, Error> {
    let sys = if context.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
    ];
    match &input.cgroup_view {
        Some(view) => mounts.push(bind(view, "/sys/fs/cgroup", &["rbind", "nosuid", "noexec", "nodev", sys])),
        None => {
            mounts.push(mount(
                "/sys/fs/cgroup",
                "cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", sys],
            ));
        }
    }
    mounts.push(bind(&input.files.shm, "/dev/shm", &["rbind", "nosuid", "noexec", "nodev"]));
    let given = |path: &str| input.config.mounts.iter().any(|m| clean(&m.container_path) == path);
    for (file, at) in
        [(&input.files.resolv_conf, "/etc/resolv.conf"), (&input.files.hostname, "/etc/hostname")]
    {
        if let Some(file) = file.as_ref().filter(|_| !given(at)) {
            let access = if context.readonly_rootfs { "ro" } else { "rw" };
            mounts.push(bind(file, at, &["rbind", access]));
        }
    }
    let mut volumes = input.image_volumes.iter();
    let mut asked = Vec::new();
    for wanted in &input.config.mounts {
        if wanted.container_path.is_empty() {
            return Err(Error::Mount("it has no path in the container".into()));
        }
        let source = match &wanted.image {
            Some(_) => volumes.next().ok_or_else(|| Error::Mount("its image is not there".into()))?.clone(),
            None if wanted.host_path.is_empty() => {
                return Err(Error::Mount(format!("{} has no path on the host", wanted.container_path)));
            }
            None => wanted.host_path.clone().into(),
        };
        let mut at = clean(&wanted.container_path);
        if at == "/dev" {
            // The devices are made in a /dev of the container's own, never in somebody else's.
            at = LATE_DEV.to_owned();
        }
        // A volume over one of the mounts above takes its place.
        mounts.retain(|m| m["destination"] != at.as_str());
        let mut options = vec!["rbind"];
        options.push(if wanted.recursive_read_only {
            "rro"
        } else if wanted.readonly || wanted.image.is_some() {
            "ro"
        } else {
            "rw"
        });
        asked.push(bind(&source, &at, &options));
    }
    // What lies deeper comes later, so that nothing is covered.
    asked.sort_by_key(|m| m["destination"].as_str().map_or(0, |d| Path::new(d).components().count()));
    mounts.extend(asked);
    Ok(mounts)
}

/// Where a volume for `/dev` waits until the container's own `/dev` is set up; then it takes its place.
const LATE_DEV: &str = "/.dev-volume";

/// If the container has a volume for `/dev`: where that waits, and what is below `/dev` that stays visible above it.
pub(super) fn late_dev(config: &ContainerConfig) -> Option<(String, Vec<String>)> {
    let all: Vec<String> = config.mounts.iter().map(|mount| clean(&mount.container_path)).collect();
    let below = all.iter().filter(|at| at.starts_with("/dev/")).cloned();
    let own = ["/dev/pts", "/dev/mqueue", "/dev/shm"].map(str::to_owned);
    let own = own.into_iter().filter(|at| !all.contains(at));
    all.iter().any(|at| at == "/dev").then(|| (LATE_DEV.to_owned(), own.chain(below).collect()))
}

fn mount(at: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": at, "type": kind, "source": source, "options": options})
}

fn bind(from: &Path, at: &str, options: &[&str]) -> Value {
    json!({"destination": at, "type": "bind", "source": from, "options": options})
}

/// An absolute path without `.`, `..` and doubled slashes.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn kind(mount: &Mount) -> MountPropagation {
    MountPropagation::try_from(mount.propagation).unwrap_or(MountPropagation::PropagationPrivate)
}

/// A mount that is to reach the host must be in a tree that is shared with it.
pub(super) fn root_propagation(config: &ContainerConfig) -> &'static str {
    let any = |wanted| config.mounts.iter().any(|m| kind(m) == wanted);
    if any(MountPropagation::PropagationBidirectional) {
        "shared"
    } else if any(MountPropagation::PropagationHostToContainer) {
        "slave"
    } else {
        "private"
    }
}

/// libcontainer gives all mounts the propagation of the root; those that differ are set afterwards.
pub(super) fn propagation(config: &ContainerConfig) -> Vec<(String, String)> {
    let root = root_propagation(config);
    let mut list = Vec::new();
    for mount in &config.mounts {
        let wanted = match kind(mount) {
            MountPropagation::PropagationPrivate => "private",
            MountPropagation::PropagationHostToContainer => "slave",
            MountPropagation::PropagationBidirectional => "shared",
        };
        if wanted != root {
            list.push((clean(&mount.container_path), wanted.to_owned()));
        }
    }
    list
}
