//! Opens a gRPC channel to a plug-in's socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// Within this time a socket on the same machine answers, or nobody listens at it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Nothing answers at a plug-in's socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to the plug-in's socket {}: is the plug-in running?", path.display())]
pub struct ConnectError {
    /// The socket.
    pub path: PathBuf,
    /// What the transport says.
    #[source]
    source: tonic::transport::Error,
}

/// Connects to the unix socket at `path`, which must be absolute.
///
/// The channel connects again by itself when the plug-in was restarted.
pub async fn connect(path: &Path) -> Result<Channel, ConnectError> {
    let fault = |source| ConnectError { path: path.to_owned(), source };
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).map_err(fault)?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(fault)
}
