//! Opens a gRPC channel to a CRI endpoint, which is a unix socket.

use std::path::{Path, PathBuf};

use tonic::transport::{Channel, Endpoint};

/// Why an endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// CRI is only ever spoken over a unix socket.
    #[error("endpoint {0:?} is not a unix socket: write unix:///path/to/socket")]
    NotUnix(String),
    /// Nothing answers at the socket.
    #[error("cannot connect to the container runtime at {}: is it running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the transport says.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects to `endpoint`, which is `unix:///run/x.sock` or an absolute path.
///
/// The channel connects again by itself when the runtime was restarted.
pub async fn connect(endpoint: &str) -> Result<Channel, ConnectError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !Path::new(path).is_absolute() {
        return Err(ConnectError::NotUnix(endpoint.to_owned()));
    }
    let uri = format!("unix://{path}");
    let source = Endpoint::from_shared(uri).map_err(|_| ConnectError::NotUnix(endpoint.to_owned()))?;
    source.connect().await.map_err(|source| ConnectError::Connect { path: PathBuf::from(path), source })
}
