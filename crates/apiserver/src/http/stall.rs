//! A connection that fails when its other end takes no byte for too long, so that no client can hold what waits to be sent to
//! it. Once a connection has been upgraded its streams may rest as long as they like.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// The wrapper.
pub struct Unstalled<S> {
    stream: S,
    limit: Duration,
    exempt: Arc<AtomicBool>,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Unstalled<S> {
    /// `exempt` switches the limit off while it is set.
    pub fn new(stream: S, limit: Duration, exempt: Arc<AtomicBool>) -> Self {
        Self { stream, limit, exempt, waiting: None }
    }

    fn watch<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if waiting.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        if self.exempt.load(Ordering::Relaxed) {
            waiting.as_mut().reset(Instant::now() + limit);
            let _ = waiting.as_mut().poll(context);
            return Poll::Pending;
        }
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client takes nothing of what it is sent",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_reads_nothing_is_cut_and_who_reads_slowly_is_not() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Unstalled::new(near, Duration::from_secs(5), Arc::default());
        let reader = tokio::spawn(async move {
            let mut byte = [0; 8];
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(2)).await;
                far.read_exact(&mut byte).await.expect("there is more");
            }
            far
        });
        near.write_all(&[7; 64]).await.expect("it is read slowly");
        let far = reader.await.expect("the reader ends");
        near.limit = Duration::from_millis(20);
        let error = near.write_all(&[7; 64]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(far);
    }

    #[tokio::test]
    async fn an_upgraded_connection_may_rest() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Unstalled::new(near, Duration::from_millis(5), Arc::new(AtomicBool::new(true)));
        let reader = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.expect("read");
            all.len()
        });
        near.write_all(&[7; 64]).await.expect("it is read at last");
        drop(near);
        assert_eq!(reader.await.expect("the reader ends"), 64);
    }
}
