//! From a CRI container config to an OCI bundle's `config.json` and what the shim does beside it. Pure: reads no files, asks
//! no kernel.

pub mod capabilities;
mod mounts;
pub mod seccomp;
mod syscalls;
pub mod user;

use std::path::{Path, PathBuf};

use cri::v1::security_profile::ProfileType;
use cri::v1::{ContainerConfig, LinuxContainerSecurityContext, PodSandboxConfig, Signal};
use serde_json::{Value, json};

use crate::images::manifest::RunConfig;
use user::User;

/// Everything a container's bundle depends on.
pub struct Input<'a> {
    /// The container as the kubelet wants it.
    pub config: &'a ContainerConfig,
    /// Its pod.
    pub sandbox: &'a PodSandboxConfig,
    /// Its image.
    pub image: &'a RunConfig,
    /// Its process's identity.
    pub user: &'a User,
    /// Where its root will be mounted.
    pub rootfs: &'a Path,
    /// Its cgroup, absolute.
    pub cgroup: &'a str,
    /// The process namespace to join: a path, or none for one of its own.
    pub pid: PidNamespace,
    /// The directory that the shim fills with the container's cgroups, for version 1; none to mount the version 2 tree.
    pub cgroup_view: Option<PathBuf>,
    /// The sandbox's files.
    pub files: SandboxFiles,
    /// Devices, resolved: path in the container, `c` or `b`, major, minor, file mode.
    pub devices: Vec<Device>,
    /// Further variables, `name=value`.
    pub env: Vec<String>,
    /// Further mounts, in the form of the OCI spec.
    pub mounts: Vec<Value>,
    /// Hooks by stage, in the form of the OCI spec.
    pub hooks: Value,
    /// Sources of image volumes, in the order of such mounts in the config.
    pub image_volumes: Vec<PathBuf>,
}

/// Which process namespace a container is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    Own,
    /// That of the machine.
    Host,
    /// Of the pod or of another container: `/proc/<pid>/ns/pid`.
    Join(String),
}

/// Files and directories that a pod's containers share.
#[derive(Debug, Clone, Default)]
pub struct SandboxFiles {
    /// Becomes `/dev/shm`.
    pub shm: PathBuf,
    /// Becomes `/etc/resolv.conf`, unless the kubelet mounts one.
    pub resolv_conf: Option<PathBuf>,
    /// Becomes `/etc/hostname`, unless the kubelet mounts one.
    pub hostname: Option<PathBuf>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// In the container.
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    /// Number.
    pub major: u64,
    /// Number.
    pub minor: u64,
    /// File mode.
    pub mode: u32,
    /// `r`, `w`, `m`.
    pub permissions: String,
}

impl Device {
    /// As the cgroup's device list wants it.
    pub fn rule(&self) -> String {
        format!("{} {}:{} {}", self.kind, self.major, self.minor, self.permissions)
    }
}

/// Why a config cannot become a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither config nor image say what to run.
    #[error("no command specified")]
    NoCommand,
    /// A mount without a place or a source.
    #[error("invalid mount: {0}")]
    Mount(String),
    /// An unknown capability.
    #[error("{0}")]
    Capability(String),
}

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The security context, or an empty one.
pub fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
}

/// The words that are executed.
pub fn command(config: &ContainerConfig, image: &RunConfig) -> Result<Vec<String>, Error> {
    let (mut words, args) = if config.command.is_empty() {
        let args = if config.args.is_empty() { &image.cmd } else { &config.args };
        (image.entrypoint.clone(), args)
    } else {
        (config.command.clone(), &config.args)
    };
    words.extend(args.iter().cloned());
    if words.is_empty() || words[0].is_empty() { Err(Error::NoCommand) } else { Ok(words) }
}

/// Image's variables, overridden by the config's, with a path and a home.
fn environment(input: &Input<'_>) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or("").to_owned();
        match env.iter_mut().find(|e| e.split('=').next() == Some(&name)) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    };
    set(DEFAULT_PATH.into());
    if !input.sandbox.hostname.is_empty() {
        set(format!("HOSTNAME={}", input.sandbox.hostname));
    }
    if input.config.tty {
        set("TERM=xterm".into());
    }
    set(format!("HOME={}", input.user.home));
    for entry in &input.image.env {
        set(entry.clone());
    }
    for pair in &input.config.envs {
        set(format!("{}={}", pair.key, String::from_utf8_lossy(&pair.value)));
    }
    for entry in &input.env {
        set(entry.clone());
    }
    env
}

/// The bits that the container's process keeps.
pub fn kept_capabilities(context: &LinuxContainerSecurityContext) -> Result<(u64, u64), Error> {
    if context.privileged {
        return Ok((capabilities::ALL, 0));
    }
    let asked = context.capabilities.clone().unwrap_or_default();
    let kept = capabilities::effective(&asked.add_capabilities, &asked.drop_capabilities)
        .map_err(Error::Capability)?;
    let ambient =
        asked.add_ambient_capabilities.iter().filter_map(|n| capabilities::bit(n)).fold(0, |a, b| a | b);
    Ok((kept, ambient & kept))
}

/// Writes the bundle's `config.json`.
pub fn build(input: &Input<'_>) -> Result<Value, Error> {
    let context = security(input.config);
    let cwd = [&input.config.working_dir, &input.image.working_dir]
        .into_iter()
        .find(|d| !d.is_empty())
        .map_or("/", String::as_str);
    let cwd = if cwd.starts_with('/') { cwd.to_owned() } else { format!("/{cwd}") };
    let mut namespaces = vec![json!({"type": "mount"})];
    match &input.pid {
        PidNamespace::Own => namespaces.push(json!({"type": "pid"})),
        PidNamespace::Join(path) => namespaces.push(json!({"type": "pid", "path": path})),
        PidNamespace::Host => {}
    }
    if input.cgroup_view.is_none() && !context.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let devices: Vec<Value> = input
        .devices
        .iter()
        .map(|d| {
            json!({"path": d.path, "type": d.kind.to_string(), "major": d.major, "minor": d.minor,
                   "fileMode": d.mode, "uid": 0, "gid": 0})
        })
        .collect();
    // An empty list would be no list: with privilege nothing is masked.
    let (masked, read_only) = if context.privileged {
        (Vec::new(), Vec::new())
    } else {
        (context.masked_paths.clone(), context.readonly_paths.clone())
    };
    let mut mounts = mounts::build(input, &context)?;
    mounts.extend(input.mounts.iter().cloned());
    let mut config = json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": input.config.tty,
            "user": {"uid": input.user.uid, "gid": input.user.gid, "additionalGids": input.user.groups},
            "args": command(input.config, input.image)?,
            "env": environment(input),
            "cwd": cwd,
            "noNewPrivileges": context.no_new_privs,
        },
        "root": {"path": input.rootfs, "readonly": context.readonly_rootfs},
        "mounts": mounts,
        "hooks": input.hooks,
        "linux": {
            "cgroupsPath": input.cgroup,
            "namespaces": namespaces,
            "devices": devices,
            "maskedPaths": masked,
            "readonlyPaths": read_only,
            "rootfsPropagation": mounts::root_propagation(input.config),
        },
    });
    // A profile of the node has to be loaded by name; the runtime brings none of its own.
    let profile = context.apparmor.filter(|profile| profile.profile_type == ProfileType::Localhost as i32);
    if let Some(profile) = profile.filter(|_| !context.privileged) {
        let name = profile.localhost_ref.trim_start_matches("localhost/");
        config["process"]["apparmorProfile"] = json!(name);
    }
    Ok(config)
}

/// A volume for `/dev`, for the shim to put in place: where it waits, and what stays visible above it.
pub fn late_dev(config: &ContainerConfig) -> Option<(String, Vec<String>)> {
    mounts::late_dev(config)
}

/// Propagation of the container's mounts, for the shim to set: path and kind.
pub fn propagation(config: &ContainerConfig) -> Vec<(String, String)> {
    mounts::propagation(config)
}

/// The signal that asks the container to end: the config's, the image's, or SIGTERM.
pub fn stop_signal(config: &ContainerConfig, image: &RunConfig) -> i32 {
    let number = match Signal::try_from(config.stop_signal) {
        Ok(Signal::RuntimeDefault) | Err(_) => None,
        Ok(signal) => signal_number(signal.as_str_name()),
    };
    number.or_else(|| signal_number(&image.stop_signal)).unwrap_or(libc::SIGTERM)
}

/// A signal by number or by name, with or without `SIG`; `RTMIN+3`, `RTMINPLUS3` and the like too.
fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        let offset = rest.strip_prefix("PLUS").or(rest.strip_prefix('+')).unwrap_or(rest);
        return if offset.is_empty() { Some(34) } else { offset.parse::<i32>().ok().map(|n| 34 + n) };
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        let offset = rest.strip_prefix("MINUS").or(rest.strip_prefix('-')).unwrap_or(rest);
        return if offset.is_empty() { Some(64) } else { offset.parse::<i32>().ok().map(|n| 64 - n) };
    }
    let alias = match bare {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        other => other,
    };
    format!("SIG{alias}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

#[cfg(test)]
mod tests;
