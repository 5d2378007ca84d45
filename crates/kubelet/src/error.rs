//! The kubelet's errors.

/// Why the kubelet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connect(#[from] cri::ConnectError),
    #[error("container runtime: {}", .0.message())]
    Runtime(#[from] tonic::Status),
    #[error("Kubernetes API: {0}")]
    Api(#[from] kube::Error),
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Pinning(#[from] crate::pinning::PinningError),
    #[error("failSwapOn: the machine has swap; switch it off with swapoff --all, or leave the field out")]
    Swap,
    #[error("{0}")]
    Config(String),
    #[error("serving certificate: {0}")]
    Certificate(String),
}

/// Names what was attempted when an I/O error comes.
pub(crate) trait IoContext<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}
