//! Connections: TLS, HTTP/1.1 and HTTP/2, with limits on their number, on slow clients and on headers, and a graceful end.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::body::Body;
use super::stall::Unstalled;
use crate::metrics::metrics;

/// No client is given longer for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may take no byte of what it is sent.
const STALL: Duration = Duration::from_secs(60);
/// How long connections without a request may stay when the server ends.
const IDLE: Duration = Duration::from_secs(1);
/// Streams that one connection may have open, and resets of streams that it may have waiting.
const STREAMS: u32 = 250;
const RESETS: usize = 20;

/// What is allowed to connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open at once; more wait in the listen queue.
    pub connections: usize,
    /// For the handshake and for the header of each request.
    pub headers: Duration,
    /// How long requests that are open may take when the server ends.
    pub drain: Duration,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// The verified client certificate chain; empty without one.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Where the connection comes from.
    pub address: Option<IpAddr>,
}

/// Serves until the token is cancelled, then lets requests end for a while: as long as `busy` says that there are some, but
/// no longer than the limit. Without `tls` the connections are plain, which is for tests alone.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    handle: H,
    shutdown: CancellationToken,
    busy: impl Fn() -> bool,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, handle, watcher) = (tls.clone(), handle.clone(), graceful.watcher());
        tokio::spawn(async move {
            connection(stream, address, tls, limits.headers, handle, watcher).await;
            drop(permit);
        });
    }
    drop(listener);
    let idle = async {
        let deadline = tokio::time::Instant::now() + limits.drain;
        // Connections whose client sends nothing, or only a part of a header, are not waited for.
        tokio::time::sleep(IDLE).await;
        while busy() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(IDLE).await;
    };
    tokio::select! {
        () = graceful.shutdown() => {}
        () = idle => {}
    }
}

async fn connection<H, F>(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    headers: Duration,
    handle: H,
    watcher: Watcher,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    drop(stream.set_nodelay(true));
    let Some(acceptor) = tls else {
        let peer = Peer { address: Some(address.ip()), ..Peer::default() };
        return drive(stream, peer, None, headers, handle, watcher).await;
    };
    let stream = match tokio::time::timeout(HANDSHAKE.min(headers), acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            metrics().tls_handshake_errors.with(&[]).increment();
            tracing::debug!(%address, %error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            metrics().tls_handshake_errors.with(&[]).increment();
            return;
        }
    };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = certificates.iter().map(|c| c.clone().into_owned()).collect();
    let peer = Peer { certificates, address: Some(address.ip()) };
    drive(stream, peer, Some(http2), headers, handle, watcher).await;
}

/// `http2` is what the handshake agreed on; the version is then not guessed from bytes that a slow client may never send.
async fn drive<S, H, F>(
    stream: S,
    peer: Peer,
    http2: Option<bool>,
    headers: Duration,
    handle: H,
    watcher: Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(headers)
        .max_buf_size(1 << 20)
        .keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_header_list_size(1 << 20)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_send_buf_size(256 << 10)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    let builder = match http2 {
        Some(true) => builder.http2_only(),
        Some(false) => builder.http1_only(),
        None => builder,
    };
    let used = Arc::new(AtomicBool::new(false));
    let upgraded = Arc::new(AtomicBool::new(false));
    let stream = Unstalled::new(stream, STALL, upgraded.clone());
    let service = {
        let used = used.clone();
        service_fn(move |request| {
            used.store(true, Ordering::Relaxed);
            // Boxed: a stream's task keeps room for the request's whole future as long as its answer lasts, and a watch lasts.
            let answer = Box::pin(handle(request, peer.clone()));
            let upgraded = upgraded.clone();
            async move {
                let answer = answer.await;
                if answer.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                    upgraded.store(true, Ordering::Relaxed);
                }
                Ok::<_, std::convert::Infallible>(answer)
            }
        })
    };
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    let mut connection = std::pin::pin!(watcher.watch(connection));
    let result = tokio::select! {
        result = &mut connection => result,
        // HTTP/2 has no limit of its own on how long a client may take to begin.
        () = tokio::time::sleep(headers) => {
            if !used.load(Ordering::Relaxed) {
                tracing::debug!("a connection was closed that sent no request");
                return;
            }
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
