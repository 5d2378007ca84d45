//! Joins two upgraded connections byte for byte, with bounded buffers, and passes half-closes on.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

use crate::Error;

const CHUNK: usize = 32 * 1024;

/// Waits for both upgrades, then copies until both directions have ended. Returns the bytes from the client and from the
/// backend.
pub async fn tunnel(client: OnUpgrade, backend: OnUpgrade) -> Result<(u64, u64), Error> {
    let (client, backend) = tokio::try_join!(client, backend).map_err(std::io::Error::other)?;
    tunnel_io(TokioIo::new(client), TokioIo::new(backend)).await
}

/// Copies between two byte streams until both directions have ended or either breaks.
pub async fn tunnel_io<A, B>(mut client: A, mut backend: B) -> Result<(u64, u64), Error>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    Ok(copy_bidirectional_with_sizes(&mut client, &mut backend, CHUNK, CHUNK).await?)
}
