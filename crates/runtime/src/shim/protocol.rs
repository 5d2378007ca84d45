//! What the runtime and a shim say to each other over the shim's unix socket.
//!
//! A message is a little-endian `u32` length and that many bytes of JSON. File descriptors travel beside the message that
//! needs them (`SCM_RIGHTS`). After the answer to `Attach` the connection carries [`frame`]s instead.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The longest message either side accepts.
pub const MAX_MESSAGE: usize = 1 << 20;

/// How a pod's shim is to be set up; written to `sandbox.json` in the shim's directory before it starts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// A network namespace of its own, with loopback up.
    pub network: bool,
    /// A System V and POSIX IPC namespace of its own.
    pub ipc: bool,
    /// A host name of its own.
    pub uts: bool,
    /// A process namespace that all containers of the pod share, with a reaper as its first process.
    pub pid: bool,
    /// The pod's host name; only with `uts`.
    pub hostname: String,
    /// Kernel parameters, named with dots.
    pub sysctls: BTreeMap<String, String>,
    /// `cgroup.procs` files the shim moves itself into.
    pub cgroup_procs: Vec<String>,
    /// A user namespace that the pod's other namespaces belong to.
    #[serde(default)]
    pub user: Option<UserMap>,
}

/// The numbers of a user namespace, as lists of: the first inside, the first outside, how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserMap {
    /// Users.
    pub uids: Vec<[u32; 3]>,
    /// Groups.
    pub gids: Vec<[u32; 3]>,
}

/// The source of a mount of a container in a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// Where it is.
    pub from: String,
    /// Where the bundle takes it from.
    pub at: String,
    /// It is to be seen with the namespace's numbers.
    pub idmap: bool,
}

/// What a shim answers once, through the pipe it was started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ready {
    /// It listens.
    Up {
        /// The shim's process.
        pid: i32,
        /// The reaper of a shared process namespace.
        pause: Option<i32>,
    },
    /// It could not be set up.
    Failed(String),
}

/// Everything a shim needs to create a container, beside its OCI bundle.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StartPlan {
    /// The container.
    pub id: String,
    /// Directory with `config.json`.
    pub bundle: String,
    /// The directory that relative names in `lower` are in.
    pub layers: String,
    /// Layers of the image, the uppermost first.
    pub lower: Vec<String>,
    /// Where the container's own changes go.
    pub upper: String,
    /// Overlayfs' work directory, on the same filesystem as `upper`.
    pub work: String,
    /// Other layer stacks to mount read-only, for image volumes.
    pub image_mounts: Vec<ImageMount>,
    /// Cgroup directories to show the container in `<bundle>/cgroup`, by the name they get there; none with version 2.
    pub cgroup_view: Vec<(String, String)>,
    /// Let the container write to them.
    pub cgroup_writable: bool,
    /// The log file; empty for none.
    pub log: String,
    /// Give the container a terminal.
    pub tty: bool,
    /// Keep an input open.
    pub stdin: bool,
    /// End the input when the first attached client ends.
    pub stdin_once: bool,
    /// `cgroup.procs` files of the container; its first process is put into them before anything else, unless `unified`.
    pub cgroup_procs: Vec<String>,
    /// The container's cgroup is of version 2, into which libcontainer puts the process itself.
    #[serde(default)]
    pub unified: bool,
    /// Cgroup files and what is written to them once the first process stands ready: limits that would only slow down its
    /// making.
    #[serde(default)]
    pub late_limits: Vec<(String, String)>,
    /// Cgroup directories whose processes belong to the container, the one with `cgroup.kill` first.
    pub cgroups: Vec<String>,
    /// The file that tells whether the container ran out of memory.
    pub oom_events: Option<String>,
    /// Its adjustment of the kernel's choice of victims; clamped to what is permitted.
    pub oom_score_adj: Option<i32>,
    /// What the process gets just before it is executed.
    pub finish: Finish,
    /// The numbers of the pod's user namespace, which the container is in.
    #[serde(default)]
    pub user: Option<UserMap>,
    /// With a user namespace: the folder in which the root is put together.
    #[serde(default)]
    pub stage: String,
    /// With a user namespace: the sources of the bundle's mounts.
    #[serde(default)]
    pub staged: Vec<Staged>,
}

/// A read-only overlay for an image volume.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImageMount {
    /// Layers, the uppermost first, relative to the plan's `layers`.
    pub lower: Vec<String>,
    /// Where it is mounted for the bundle to bind from.
    pub at: String,
    /// The part of the image that is wanted; the bundle binds it from [`Self::source`].
    #[serde(default)]
    pub sub_path: String,
}

impl ImageMount {
    /// Where the bundle binds from.
    pub fn source(&self) -> String {
        if self.sub_path.is_empty() { self.at.clone() } else { format!("{}.part", self.at) }
    }
}

/// The last steps before `execve`, which libcontainer does not do as CRI wants them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Finish {
    /// Capabilities kept, by number, as bits.
    pub capabilities: u64,
    /// Those of `capabilities` that are ambient too.
    pub ambient: u64,
    /// File with the compiled seccomp filter; empty for none.
    pub seccomp: String,
    /// Forbid gaining privileges by `execve`.
    pub no_new_privileges: bool,
    /// Propagation of mount points in the container: path and `private`, `slave` or `shared`.
    pub propagation: Vec<(String, String)>,
    /// A volume for `/dev`: where it waits, and the mounts below `/dev` that stay visible above it.
    #[serde(default)]
    pub late_dev: Option<(String, Vec<String>)>,
}

/// A process to add to a running container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The container.
    pub id: String,
    /// The command.
    pub args: Vec<String>,
    /// Descriptor 0 of the message is a socket that gets the terminal's master end.
    pub tty: bool,
    /// Which of the standard streams the message carries, in order.
    pub stdio: [bool; 3],
}

/// From the runtime to the shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// All containers this shim knows.
    State,
    /// Turns the connection into one that carries [`Event`]s.
    Subscribe,
    /// Creates and starts a container.
    Start(Box<StartPlan>),
    /// Sends a signal to a container's first process, or to all of its processes.
    Signal {
        /// The container.
        id: String,
        /// Signal number.
        signal: i32,
        /// All processes of the container instead of the first alone.
        all: bool,
    },
    /// Adds a process; answered by `Started` and then by `Exited` on the same connection, on which `Kill` is understood
    /// meanwhile.
    Exec(ExecPlan),
    /// Ends the process that was added on this connection.
    Kill,
    /// Connects to the container's streams.
    Attach {
        /// The container.
        id: String,
    },
    /// Sets the size of the container's terminal.
    Resize {
        /// The container.
        id: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Opens the log file anew, after rotation.
    ReopenLog {
        /// The container.
        id: String,
    },
    /// Connects to a TCP port on loopback inside the pod; the answer carries the socket.
    Connect {
        /// The port.
        port: u16,
    },
    /// Forgets a container that has ended.
    Forget {
        /// The container.
        id: String,
    },
    /// Kills everything and ends the shim.
    Shutdown,
}

/// From the shim to the runtime.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Ok,
    /// The answer to `State`.
    State(Vec<ContainerState>),
    /// A process runs.
    Started {
        /// Its number outside of the container.
        pid: i32,
    },
    /// An added process has ended.
    Exited {
        /// 128 and the signal's number for a process that was killed.
        code: i32,
    },
    /// The request failed.
    Failed(String),
    /// The container or process is not there.
    NotFound,
}

/// What a subscriber is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// A container's first process has ended.
    Exit {
        /// The container.
        id: String,
        /// How.
        exit: Exit,
    },
}

/// A container as its shim sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerState {
    /// The container.
    pub id: String,
    /// Its first process.
    pub pid: i32,
    /// When it was started, in nanoseconds since 1970.
    pub started_at: i64,
    /// Set when it has ended.
    pub exit: Option<Exit>,
}

/// The end of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128 and the signal's number for a process that was killed.
    pub code: i32,
    /// Nanoseconds since 1970.
    pub at: i64,
    /// The kernel killed a process of the container for want of memory.
    pub oom: bool,
}

/// Frames of an attached connection: a kind, a little-endian `u32` length, and data.
pub mod frame {
    /// Input for the container.
    pub const STDIN: u8 = 0;
    /// Output.
    pub const STDOUT: u8 = 1;
    /// Error output.
    pub const STDERR: u8 = 2;
    /// The client has no more input.
    pub const STDIN_END: u8 = 3;
    /// The most data one frame carries.
    pub const MAX: usize = 64 << 10;
}

/// Encodes a message with its length.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = vec![0; 4];
    // Writing these types into memory cannot fail: no maps with odd keys, no failing writers.
    serde_json::to_writer(&mut out, message).expect("protocol types always encode");
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_le_bytes());
    out
}

/// Takes the first whole message off `buffer`; `Err` when its length is out of bounds or it does not parse.
pub fn decode<T: for<'a> Deserialize<'a>>(buffer: &mut Vec<u8>) -> Result<Option<T>, String> {
    let Some(header) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*header) as usize;
    if length > MAX_MESSAGE {
        return Err(format!("message of {length} bytes"));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[4..4 + length]).map_err(|e| e.to_string())?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_any_split() {
        let bytes = encode(&Request::ReopenLog { id: "a".into() });
        let mut buffer = Vec::new();
        for byte in &bytes[..bytes.len() - 1] {
            buffer.push(*byte);
            assert!(decode::<Request>(&mut buffer).unwrap().is_none());
        }
        buffer.push(bytes[bytes.len() - 1]);
        buffer.push(9);
        assert!(matches!(decode(&mut buffer), Ok(Some(Request::ReopenLog { id })) if id == "a"));
        assert_eq!(buffer, [9]);
    }

    #[test]
    fn an_overlong_message_is_refused() {
        assert!(decode::<Request>(&mut vec![255, 255, 255, 255, 0]).is_err());
    }
}
