//! What can go wrong, in the words that kubectl uses where scripts may look for them.

use std::path::PathBuf;

/// An error for the person at the terminal; its text says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused.
    #[error("{}", status(.0))]
    Api(Box<kube::core::Status>),
    /// The server could not be reached.
    #[error("Unable to connect to the server: {0}")]
    Client(#[source] Box<kube::Error>),
    /// No usable kubeconfig.
    #[error("error: {0}; give one with --kubeconfig, or start a cluster with `carrack up`")]
    Kubeconfig(#[source] Box<kube::config::KubeconfigError>),
    /// A file could not be read.
    #[error("error: the path {path:?} cannot be read: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("error: error parsing {path}: {reason}")]
    Manifest {
        /// The file, or "STDIN".
        path: String,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// No such kind.
    #[error("error: {0}")]
    NoMatch(Box<NoMatch>),
    /// No such resource type.
    #[error("error: the server doesn't have a resource type \"{0}\"")]
    NoResource(String),
    /// A wait that ran out.
    #[error("error: timed out waiting for the condition on {0}")]
    TimedOut(String),
    /// Wrong usage.
    #[error("error: {0}")]
    Usage(String),
    /// Input or output at the terminal.
    #[error("error: {0}")]
    Io(#[from] std::io::Error),
    /// Several objects failed; each has been told of.
    #[error("error: {0} of the objects failed")]
    Several(usize),
}

/// An object whose kind is not served in its version.
#[derive(Debug, thiserror::Error)]
#[error(
    "resource mapping not found for name: \"{name}\" namespace: \"{namespace}\" from \"{path}\": no matches for kind \"{kind}\" in version \"{version}\"{hint}"
)]
pub struct NoMatch {
    /// The object's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The file it came from.
    pub path: String,
    /// The kind that is not served.
    pub kind: String,
    /// The version it was looked for in.
    pub version: String,
    /// Where the kind is served, as a question.
    pub hint: String,
}

fn status(status: &kube::core::Status) -> String {
    let message = &status.message;
    match status.reason.as_str() {
        "" => format!("Error from server: {message}"),
        reason => format!("Error from server ({reason}): {message}"),
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Error::Api(status),
            other => Error::Client(Box::new(other)),
        }
    }
}

impl Error {
    /// Whether the server said that the object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Api(status) if status.code == 404)
    }
}
