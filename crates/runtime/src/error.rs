//! Why a CRI call failed, and the gRPC status that says so.

use tonic::{Code, Status};

use crate::{cgroups, images, node::client, spec};

/// Errors of the runtime's services.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// No such sandbox or container.
    #[error("{kind} {id:?}: not found")]
    NotFound {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// As asked for.
        id: String,
    },
    /// It cannot be done in this state.
    #[error("{0}")]
    State(String),
    /// A file or system call.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Images.
    #[error(transparent)]
    Image(#[from] images::Error),
    /// Cgroups.
    #[error("{error}: {}", std::error::Error::source(error).map_or(String::new(), ToString::to_string))]
    Cgroup {
        /// What it is.
        error: cgroups::Error,
    },
    /// The shim.
    #[error(transparent)]
    Shim(#[from] client::Error),
    /// The container's config.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// A seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] spec::seccomp::Error),
    /// The pod's network.
    #[error("pod network: {0}")]
    Network(String),
    /// It took too long.
    #[error("{0}")]
    Timeout(String),
    /// Not offered.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// Something waits for something that went away.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<cgroups::Error> for Error {
    fn from(error: cgroups::Error) -> Self {
        Self::Cgroup { error }
    }
}

impl Error {
    /// For a failed system call.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        use images::Error as I;
        let code = match &error {
            Error::Invalid(_) | Error::Spec(_) | Error::Image(I::Reference(_)) => Code::InvalidArgument,
            Error::NotFound { .. } | Error::Image(I::NotFound(_) | I::NotInRegistry { .. }) => Code::NotFound,
            Error::State(_) | Error::Shim(client::Error::NotFound) => Code::FailedPrecondition,
            Error::Image(I::Denied { .. }) => Code::PermissionDenied,
            Error::Image(I::Registry { .. }) => Code::Unavailable,
            Error::Timeout(_) => Code::DeadlineExceeded,
            Error::Unimplemented(_) => Code::Unimplemented,
            _ => Code::Unknown,
        };
        Status::new(code, error.to_string())
    }
}
