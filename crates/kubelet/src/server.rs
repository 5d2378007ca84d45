//! The kubelet's own HTTP API: logs, exec, attach and port-forward for the API server; health, pods, statistics and metrics.
//! Every request is authenticated (client certificate or token) and authorized by the API server.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::KubeletConfig;
use crate::context::Shared;
use crate::error::{Error, IoContext};
use crate::manager::Pods;
use crate::metrics::{HTTP_DURATION, HTTP_INFLIGHT, HTTP_REQUESTS};
use crate::tls;

mod auth;
mod cadvisor;
mod log;
mod metrics;
mod node_logs;
mod stats;
mod streams;
mod volumes;
mod zpages;

/// Connections served at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 1000;

/// First parts of paths that requests are counted by.
const PATHS: &[&str] = &[
    "attach",
    "checkpoint",
    "configz",
    "containerLogs",
    "debug",
    "exec",
    "flagz",
    "healthz",
    "logs",
    "metrics",
    "pods",
    "portForward",
    "run",
    "runningpods",
    "stats",
    "statusz",
];

pub(super) type Body = BoxBody<Bytes, std::io::Error>;

/// A failure as the client sees it: plain text, as upstream's kubelet answers.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Refusal { status, message: message.into() }
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn answer(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(content));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

/// A socket that waits for `serve`.
pub(crate) struct Listener {
    socket: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    pub(crate) served: Arc<tls::Served>,
}

/// Takes the port, so that a port in use is told at the start.
pub(crate) async fn bind(config: &KubeletConfig) -> Result<Listener, Error> {
    let served = Arc::new(tls::Served::default());
    if !config.server_tls_bootstrap {
        served.set(&config.serving_cert, &config.serving_key)?;
    }
    let tls = tls::server(served.clone(), &config.client_ca, &config.settings.tls_min_version)?;
    let socket =
        TcpListener::bind(config.bind).await.doing(|| format!("cannot listen on {}", config.bind))?;
    Ok(Listener { socket, tls: Arc::new(tls), served })
}

struct Server {
    context: Shared,
    pods: Pods,
    auth: auth::Gate,
    hierarchies: accounting::Hierarchies,
    rates: accounting::Rates,
    started: Timestamp,
    served: Arc<tls::Served>,
}

/// Serves until shutdown.
pub(crate) async fn serve(context: Shared, pods: Pods, listener: Listener, shutdown: CancellationToken) {
    let auth = auth::Gate::new(&context.config);
    let server = Arc::new(Server {
        context,
        pods,
        auth,
        hierarchies: accounting::Hierarchies::detect(),
        rates: accounting::Rates::default(),
        started: Timestamp::now(),
        served: listener.served,
    });
    let acceptor = TlsAcceptor::from(listener.tls);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.socket.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return,
        };
        let (server, acceptor, shutdown) = (server.clone(), acceptor.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                result = connection(server, acceptor, stream) => if let Err(error) = result {
                    tracing::debug!(%error, "a connection to the kubelet broke");
                },
                () = shutdown.cancelled() => {}
            }
            drop(permit);
        });
    }
}

async fn connection(server: Arc<Server>, acceptor: TlsAcceptor, stream: TcpStream) -> Result<(), Error> {
    let broken = |error: std::io::Error| Error::Io { what: "connection".to_owned(), source: error };
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(std::time::Duration::from_secs(10), acceptor.accept(stream));
    let stream = handshake.await.map_err(|_| broken(std::io::ErrorKind::TimedOut.into()))?.map_err(broken)?;
    let peer = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| auth::User::of_certificate(certificate));
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, peer) = (server.clone(), peer.clone());
        async move { Ok::<_, Infallible>(server.handle(request, peer).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_secs(30))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(|error| broken(std::io::Error::other(error)))
}

/// The parts of a request's path, and its query decoded.
pub(super) struct Call<'a> {
    pub(super) parts: Vec<&'a str>,
    pub(super) query: Vec<(String, String)>,
}

impl Call<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn values(&self, name: &str) -> Vec<String> {
        self.query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.value(name), Some("1" | "true" | "True" | "t" | "T"))
    }
}

/// Decodes `a=1&b=x%20y`.
fn decode_query(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let bytes = text.as_bytes();
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            let escaped = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
            let escaped = escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
            out.push(escaped.unwrap_or(if bytes[at] == b'+' { b' ' } else { bytes[at] }));
            at += if escaped.is_some() { 3 } else { 1 };
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn pod_list(items: Vec<Pod>) -> Result<Response<Body>, Refusal> {
    let list = List { items, ..List::default() };
    let content = serde_json::to_vec(&list).map_err(|error| Refusal::internal(error.to_string()))?;
    Ok(answer(StatusCode::OK, "application/json", content))
}

impl Server {
    async fn handle(&self, mut request: Request<Incoming>, peer: Option<auth::User>) -> Response<Body> {
        let root = request.uri().path().split('/').nth(1).unwrap_or_default().to_owned();
        let known = PATHS.contains(&root.as_str());
        let path = if known { root.as_str() } else { "other" };
        let long = matches!(path, "exec" | "attach" | "portForward" | "debug");
        let pairs = [
            ("long_running", if long { "true" } else { "false" }),
            ("method", request.method().as_str()),
            ("path", path),
            ("server_type", "readwrite"),
        ];
        let pairs = pairs.map(|(key, value)| (key, value.to_owned()));
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let (metrics, begun) = (&self.context.metrics, std::time::Instant::now());
        metrics.count(HTTP_REQUESTS, &pairs);
        metrics.add(HTTP_INFLIGHT, &pairs, 1.0);
        let result = match self.auth.admit(&request, peer).await {
            Ok(()) => self.route(&mut request).await,
            Err(refusal) => Err(refusal),
        };
        metrics.add(HTTP_INFLIGHT, &pairs, -1.0);
        metrics.took(HTTP_DURATION, &pairs, begun.elapsed());
        result.unwrap_or_else(|refusal| {
            answer(refusal.status, "text/plain; charset=utf-8", format!("{}\n", refusal.message))
        })
    }

    async fn route(&self, request: &mut Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let uri = request.uri().clone();
        let call = Call {
            parts: uri.path().split('/').filter(|part| !part.is_empty()).collect(),
            query: decode_query(uri.query().unwrap_or_default()),
        };
        let text = "text/plain; version=0.0.4; charset=utf-8";
        let json = "application/json";
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let posts = *request.method() == Method::POST;
        let failed = |status: tonic::Status| Refusal::internal(status.message());
        self.open(&call)?;
        match call.parts.as_slice() {
            ["healthz"] => self.healthz(&call, &["ping", "log", "syncloop"]).await,
            ["healthz", check @ ("ping" | "log" | "syncloop")] => self.healthz(&call, &[*check]).await,
            ["pods"] if reads => pod_list(self.pods.list().iter().map(|pod| (**pod).clone()).collect()),
            ["runningpods"] if reads => pod_list(self.running().await.map_err(failed)?),
            ["containerLogs", namespace, pod, container] if reads => {
                log::serve(self, &call, namespace, pod, container).await
            }
            ["run", namespace, pod, container] | ["run", namespace, pod, _, container] if posts => {
                streams::run(self, &call, namespace, pod, container).await
            }
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                streams::exec(self, request, &call, namespace, pod, container).await
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                streams::attach(self, request, &call, namespace, pod, container).await
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                streams::port_forward(self, request, &call, namespace, pod).await
            }
            ["checkpoint", namespace, pod, container] if posts => {
                streams::checkpoint(self, namespace, pod, container).await
            }
            ["stats", "summary"] | ["stats"] if reads => {
                let summary = stats::summary(self, call.flag("only_cpu_and_memory")).await;
                Ok(answer(StatusCode::OK, json, summary.map_err(failed)?.to_string()))
            }
            ["metrics"] if reads => Ok(answer(StatusCode::OK, text, metrics::own(self).await)),
            ["metrics", "resource"] if reads => {
                Ok(answer(StatusCode::OK, text, metrics::resource(self).await.map_err(failed)?))
            }
            ["metrics", "cadvisor"] if reads => {
                Ok(answer(StatusCode::OK, text, cadvisor::metrics(self).await.map_err(failed)?))
            }
            ["metrics", "probes"] if reads => Ok(answer(StatusCode::OK, text, metrics::probes(self))),
            ["flagz"] if reads => zpages::flags(request, &self.context.config.flags),
            ["statusz"] if reads => zpages::status(request, self.started, PATHS),
            ["logs", ..] if reads => node_logs::serve(&call).await,
            ["configz"] if reads => {
                let shown = self.context.config.in_force().shown();
                let content = serde_json::json!({"kubeletconfig": shown});
                Ok(answer(StatusCode::OK, json, content.to_string()))
            }
            _ => Err(Refusal::not_found("404 page not found")),
        }
    }

    /// Refuses what the settings switch off.
    fn open(&self, call: &Call<'_>) -> Result<(), Refusal> {
        let settings = &self.context.config.settings;
        let first = call.parts.first().copied().unwrap_or_default();
        let debugs =
            ["run", "exec", "attach", "portForward", "containerLogs", "runningpods", "configz", "logs"];
        let refused = |what: &str| Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, what));
        if !settings.enable_debugging_handlers && debugs.contains(&first) {
            return refused("Debug endpoints are disabled.");
        }
        if !settings.enable_system_log_handler && first == "logs" {
            return refused("logs endpoint is disabled.");
        }
        let asks = call.value("query").or(call.value("unit")).is_some();
        if !settings.enable_system_log_query && first == "logs" && asks {
            return refused("NodeLogQuery is disabled.");
        }
        Ok(())
    }

    /// Health by named checks; all of them, or the one that is asked for.
    async fn healthz(&self, call: &Call<'_>, checks: &[&str]) -> Result<Response<Body>, Refusal> {
        let (mut report, mut good) = (String::new(), true);
        let excluded = call.values("exclude");
        for check in checks.iter().filter(|check| !excluded.iter().any(|name| name == *check)) {
            if *check == "syncloop" && !self.pods.answers().await {
                good = false;
                report.push_str("[-]syncloop failed: the loop that syncs pods does not answer\n");
            } else {
                report.push_str(&format!("[+]{check} ok\n"));
            }
        }
        if !good {
            return Err(Refusal::internal(format!("{report}healthz check failed")));
        }
        let content = if call.value("verbose").is_some() {
            format!("{report}healthz check passed\n")
        } else {
            "ok".into()
        };
        Ok(answer(StatusCode::OK, "text/plain; charset=utf-8", content))
    }

    /// The pods that the runtime has, as far as it knows them.
    async fn running(&self) -> Result<Vec<Pod>, tonic::Status> {
        let containers = self.context.cri.containers(None).await?;
        let sandboxes = self.context.cri.sandboxes().await?;
        let ready = sandboxes.into_values().filter_map(|list| {
            list.into_iter().find(|sandbox| sandbox.state() == cri::v1::PodSandboxState::SandboxReady)
        });
        let pods = ready.map(|sandbox| {
            let metadata = sandbox.metadata.unwrap_or_default();
            let own = containers.iter().filter(|container| {
                container.pod_sandbox_id == sandbox.id
                    && container.state() == cri::v1::ContainerState::ContainerRunning
            });
            let containers = own.map(|container| Container {
                name: container.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
                image: container.image.as_ref().map(|image| image.image.clone()),
                ..Container::default()
            });
            Pod {
                metadata: ObjectMeta {
                    name: Some(metadata.name),
                    namespace: Some(metadata.namespace),
                    uid: Some(metadata.uid),
                    ..ObjectMeta::default()
                },
                spec: Some(PodSpec { containers: containers.collect(), ..PodSpec::default() }),
                status: None,
            }
        });
        Ok(pods.collect())
    }

    /// When the serving certificate ends.
    fn certificate_ends(&self) -> Option<Timestamp> {
        self.served.ends()
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Refusal> {
        let missing =
            || Refusal::not_found(format!("pod {name:?} in namespace {namespace:?} does not exist"));
        self.pods.find(namespace, name).ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let decoded = decode_query("command=sh&command=-c&command=echo%20a%2Bb+c&tty=1&x");
        let pairs: Vec<_> = decoded.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(
            pairs,
            [("command", "sh"), ("command", "-c"), ("command", "echo a+b c"), ("tty", "1"), ("x", "")]
        );
    }
}
