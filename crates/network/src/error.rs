//! What can go wrong between Carrack and the kernel's network.

use std::net::IpAddr;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of the node's network. The text says what to look at next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink socket could not be opened or used.
    #[error("netlink: {action}")]
    Socket {
        /// What was being done.
        action: &'static str,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused a request.
    #[error("kernel refused to {action}: {source}{}", hint(.message))]
    Refused {
        /// The request in words.
        action: String,
        /// The kernel's own explanation (extended acknowledgement), often empty.
        message: String,
        /// The error number.
        #[source]
        source: std::io::Error,
    },
    /// A feature that must be in the kernel is not.
    #[error("the kernel lacks {feature}; {consequence}")]
    Unsupported {
        /// The kernel option or module, e.g. `nf_tables (CONFIG_NF_TABLES)`.
        feature: &'static str,
        /// What does not work without it.
        consequence: &'static str,
    },
    /// A message of the kernel could not be read.
    #[error("netlink: malformed answer from the kernel")]
    Malformed,
    /// A network namespace could not be entered.
    #[error("enter network namespace {path}")]
    Namespace {
        /// Where it is pinned.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A sysctl could not be set.
    #[error("set sysctl {name} to {value} (is /proc/sys writable here?)")]
    Sysctl {
        /// Path below `/proc/sys`.
        name: String,
        /// The value wanted.
        value: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The state directory failed.
    #[error("network state {path}")]
    State {
        /// File or directory concerned.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// No address is left.
    #[error("pod range {range} has no free address: {used} are in use")]
    Exhausted {
        /// The range.
        range: ipnet::IpNet,
        /// Addresses taken.
        used: usize,
    },
    /// The configured ranges cannot be used.
    #[error("pod range {range} is not usable: {reason}")]
    BadRange {
        /// The range.
        range: ipnet::IpNet,
        /// Why.
        reason: &'static str,
    },
    /// Two pods want the same port of the host.
    #[error("host port {port}/{protocol} is already taken by sandbox {owner}")]
    HostPortTaken {
        /// Port number.
        port: u16,
        /// `tcp`, `udp` or `sctp`.
        protocol: &'static str,
        /// Host address, if a single one.
        address: Option<IpAddr>,
        /// The other sandbox.
        owner: String,
    },
    /// A sandbox id that cannot be a file name.
    #[error("sandbox id {0:?} is not usable as a file name")]
    BadId(String),
}

fn hint(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

impl Error {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused { source, .. } | Error::Socket { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn is(&self, errno: nix::errno::Errno) -> bool {
        self.errno() == Some(errno as i32)
    }
}
