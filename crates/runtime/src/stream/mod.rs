//! The streaming server: exec, attach and port-forward sessions that CRI hands out as URLs.
//!
//! It listens on loopback without TLS, as CRI prescribes for a kubelet on the same machine. A URL holds 256 random bits, is good
//! for one session, and only for [`LIFETIME`].

mod attach;
mod exec;
mod forward;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::node::Node;
pub use exec::exec_sync;

/// How long a URL may wait for its client.
const LIFETIME: Duration = Duration::from_secs(60);
/// URLs that wait at once; the oldest go first.
const MAX_WAITING: usize = 1000;

/// What a URL stands for.
pub enum Session {
    /// A process to be added.
    Exec(ExecRequest),
    /// A container's streams.
    Attach(AttachRequest),
    /// Ports of a pod.
    PortForward(PortForwardRequest),
}

/// Hands out URLs.
#[derive(Clone)]
pub struct Streaming {
    address: SocketAddr,
    waiting: Arc<Mutex<HashMap<String, (Instant, Session)>>>,
}

impl Streaming {
    /// Starts the server on a free port of loopback.
    pub async fn start(node: Arc<Node>, shutdown: CancellationToken) -> std::io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let streaming = Self { address: listener.local_addr()?, waiting: Arc::default() };
        tokio::spawn(streaming.clone().serve(listener, node, shutdown));
        Ok(streaming)
    }

    /// A URL for one session.
    pub fn url(&self, session: Session) -> String {
        let token = crate::images::content::hex(&rand::random::<[u8; 32]>());
        let path = match &session {
            Session::Exec(_) => "exec",
            Session::Attach(_) => "attach",
            Session::PortForward(_) => "portforward",
        };
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, (since, _)| since.elapsed() < LIFETIME);
        if waiting.len() >= MAX_WAITING
            && let Some(oldest) = waiting.iter().min_by_key(|(_, (since, _))| *since).map(|(t, _)| t.clone())
        {
            waiting.remove(&oldest);
        }
        waiting.insert(token.clone(), (Instant::now(), session));
        format!("http://{}/{path}/{token}", self.address)
    }

    fn take(&self, path: &str) -> Option<Session> {
        let token = path.rsplit('/').next()?;
        let (since, session) = self.waiting.lock().remove(token)?;
        (since.elapsed() < LIFETIME).then_some(session)
    }

    async fn serve(self, listener: TcpListener, node: Arc<Node>, shutdown: CancellationToken) {
        loop {
            let stream = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "streaming server");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let _ = stream.set_nodelay(true);
            let (streaming, node) = (self.clone(), node.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let answer = streaming.answer(&node, request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
                let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "streaming connection");
                }
            });
        }
    }

    fn answer(&self, node: &Arc<Node>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        let text = |response: Response<String>| response.map(|body| Full::from(Bytes::from(body)));
        let Some(session) = self.take(request.uri().path()) else {
            let mut response =
                Response::new(Full::from("the URL was used before, is too old, or never was one\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let node = node.clone();
        match session {
            Session::PortForward(wanted) => match streaming::negotiate_portforward(request.headers()) {
                Ok(negotiated) => {
                    tokio::spawn(forward::run(node, wanted, upgrade, negotiated.protocol));
                    negotiated.response.map(|()| Full::default())
                }
                Err(refused) => text(refused.response()),
            },
            session => match streaming::negotiate_exec(request.headers()) {
                Ok(negotiated) => {
                    match session {
                        Session::Exec(wanted) => {
                            tokio::spawn(exec::run(node, wanted, upgrade, negotiated.protocol));
                        }
                        Session::Attach(wanted) => {
                            tokio::spawn(attach::run(node, wanted, upgrade, negotiated.protocol));
                        }
                        Session::PortForward(_) => {}
                    }
                    negotiated.response.map(|()| Full::default())
                }
                Err(refused) => text(refused.response()),
            },
        }
    }
}
