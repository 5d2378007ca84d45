//! What is kept on disk about sandboxes and containers, in protobuf since most of it is CRI's own messages.
//!
//! A record is replaced by rename, so it is always whole. It is not synced: after a power cut there is nothing running that it
//! could describe, and the boot's identity in it tells so.

use std::io;
use std::path::Path;

use cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use prost::Message;

/// A sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct SandboxRecord {
    /// 64 hexadecimal digits.
    #[prost(string, tag = "1")]
    pub id: String,
    /// As the kubelet asked for it.
    #[prost(message, required, tag = "2")]
    pub config: PodSandboxConfig,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "3")]
    pub created_at: i64,
    /// Set up wholly and not stopped.
    #[prost(bool, tag = "4")]
    pub ready: bool,
    /// The shim.
    #[prost(int32, tag = "5")]
    pub shim: i32,
    /// The reaper of a shared process namespace; 0 for none.
    #[prost(int32, tag = "6")]
    pub pause: i32,
    /// Addresses, the primary one first.
    #[prost(string, repeated, tag = "7")]
    pub addresses: Vec<String>,
    /// The pod's cgroup.
    #[prost(string, tag = "8")]
    pub cgroup: String,
    /// The cgroup did not exist before.
    #[prost(bool, tag = "9")]
    pub owns_cgroup: bool,
    /// `/proc/sys/kernel/random/boot_id` when it was made.
    #[prost(string, tag = "10")]
    pub boot: String,
    /// As the kubelet named it.
    #[prost(string, tag = "11")]
    pub runtime_handler: String,
    /// Not set up wholly yet: nobody has been told of it, and a restart undoes it.
    #[prost(bool, tag = "12")]
    pub making: bool,
    /// When the shim was started, in the kernel's ticks: with its number this is unmistakable.
    #[prost(uint64, tag = "13")]
    pub shim_started: u64,
}

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// Prepared, not started.
    Created = 0,
    /// Its process runs.
    Running = 1,
    /// Its process has ended, or could not be started.
    Exited = 2,
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerRecord {
    /// 64 hexadecimal digits.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its sandbox.
    #[prost(string, tag = "2")]
    pub sandbox: String,
    /// As the kubelet asked for it.
    #[prost(message, required, tag = "3")]
    pub config: ContainerConfig,
    /// The image's id.
    #[prost(string, tag = "4")]
    pub image: String,
    /// The name that pins the image's content, for the pod's status.
    #[prost(string, tag = "5")]
    pub image_ref: String,
    /// Layers it needs, its own and those of image volumes.
    #[prost(string, repeated, tag = "6")]
    pub layers: Vec<String>,
    /// How far it is.
    #[prost(enumeration = "Phase", tag = "7")]
    pub phase: i32,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "8")]
    pub created_at: i64,
    /// Nanoseconds since 1970; 0 if it never was.
    #[prost(int64, tag = "9")]
    pub started_at: i64,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "10")]
    pub finished_at: i64,
    /// Of the process.
    #[prost(int32, tag = "11")]
    pub exit_code: i32,
    /// Why it ended, in one word.
    #[prost(string, tag = "12")]
    pub reason: String,
    /// Why it ended, in full.
    #[prost(string, tag = "13")]
    pub message: String,
    /// Its first process.
    #[prost(int32, tag = "14")]
    pub pid: i32,
    /// Its cgroup.
    #[prost(string, tag = "15")]
    pub cgroup: String,
    /// Its log file; empty for none.
    #[prost(string, tag = "16")]
    pub log_path: String,
    /// The signal that asks it to end.
    #[prost(int32, tag = "17")]
    pub stop_signal: i32,
    /// Its limits as they are now.
    #[prost(message, optional, tag = "18")]
    pub resources: Option<LinuxContainerResources>,
    /// Its process's user.
    #[prost(uint32, tag = "19")]
    pub uid: u32,
    /// Its process's group.
    #[prost(uint32, tag = "20")]
    pub gid: u32,
    /// Its process's groups.
    #[prost(uint32, repeated, tag = "21")]
    pub groups: Vec<u32>,
    /// What the shim is told, in JSON; made when the container is created.
    #[prost(bytes = "vec", tag = "22")]
    pub plan: Vec<u8>,
}

/// Writes a record as `<dir>/record`.
pub fn save(dir: &Path, record: &impl Message) -> io::Result<()> {
    let temporary = dir.join("record.new");
    std::fs::write(&temporary, record.encode_to_vec())?;
    std::fs::rename(temporary, dir.join("record"))
}

/// Reads `<dir>/record`.
pub fn load<R: Message + Default>(dir: &Path) -> io::Result<R> {
    let bytes = std::fs::read(dir.join("record"))?;
    R::decode(&bytes[..]).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Tells one start of the machine from another.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
