//! A server over a store in a temporary folder, and a webhook server beside it.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, Config, UserInfo};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub struct Running {
    _server: ApiServer,
    pub client: Client,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub async fn start() -> Running {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = Config::new(dir.path());
    config.bind.set_port(0);
    let store = store::embedded::open(&dir.path().join("store.redb")).expect("a new store opens");
    let server = apiserver::start(config, store).await.expect("the server starts");
    let shutdown = CancellationToken::new();
    tokio::spawn({
        let (server, shutdown) = (server.clone(), shutdown.clone());
        async move { server.serve(shutdown).await }
    });
    let client = Client::new(server.in_process(UserInfo::system_master("test")), "default");
    Running { _server: server, client, shutdown, _dir: dir }
}

/// What came back: the code, the body, and the warnings.
pub struct Got {
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Got {
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.code < 300, "{}", self.body);
        self.body
    }
}

impl Running {
    /// Sends a request as the administrator; a patch's body decides its type: a list is a JSON patch.
    pub async fn send(&self, method: &str, path: &str, body: Value) -> Got {
        let kind = match (method, &body) {
            ("PATCH", Value::Array(_)) => "application/json-patch+json",
            ("PATCH", _) => "application/merge-patch+json",
            _ => "application/json",
        };
        self.send_as(method, path, kind, body).await
    }

    /// Applies an object from the server's side.
    pub async fn apply(&self, path: &str, body: Value) -> Got {
        self.send_as("PATCH", path, "application/apply-patch+yaml", body).await
    }

    /// Repeats a read until the answer is as it should be.
    pub async fn until(&self, path: &str, fine: impl Fn(&Got) -> bool) -> Got {
        loop {
            let got = self.send("GET", path, Value::Null).await;
            if fine(&got) {
                return got;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn send_as(&self, method: &str, path: &str, kind: &str, body: Value) -> Got {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(kube::client::Body::from(text.into_bytes()))
            .expect("a request");
        let response = self.client.send(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let warnings = parts.headers.get_all("warning").iter();
        Got {
            code: parts.status.as_u16(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
            warnings: warnings.map(|w| w.to_str().expect("text").to_owned()).collect(),
        }
    }

    /// What is at a path, as text.
    pub async fn text(&self, path: &str) -> String {
        let request = http::Request::get(path).body(kube::client::Body::empty()).expect("a request");
        let answer = self.client.send(request).await.expect("an answer");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        String::from_utf8(body.to_vec()).expect("text")
    }

    pub async fn post(&self, path: &str, body: Value) -> Got {
        self.send("POST", path, body).await
    }
}

/// Makes the kind Ship of `fleet.example.com`, with status and scale, and waits until it is served.
pub async fn ships(running: &Running) {
    let properties = json!({
        "spec": {"type": "object", "properties": {
            "masts": {"type": "integer"}, "sails": {"type": "array", "items": {"type": "string"}}}},
        "status": {"type": "object", "properties": {"sailing": {"type": "boolean"}}},
    });
    let definition = json!({"metadata": {"name": "ships.fleet.example.com"}, "spec": {
        "group": "fleet.example.com", "scope": "Namespaced", "names": {"plural": "ships", "kind": "Ship"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "subresources": {"status": {},
                "scale": {"specReplicasPath": ".spec.masts", "statusReplicasPath": ".status.masts"}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}}]}});
    running.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await.ok();
    let path = "/apis/fleet.example.com/v1/namespaces/default/ships";
    for _ in 0..600 {
        if running.send("GET", path, Value::Null).await.code == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the kind is not served");
}

pub fn ship(name: &str, masts: i64) -> Value {
    json!({"apiVersion": "fleet.example.com/v1", "kind": "Ship", "metadata": {"name": name}, "spec": {"masts": masts}})
}

type React = dyn Fn(&str, &Value) -> Value + Send + Sync;

/// A webhook server on loopback, and what it was asked: path and review.
pub struct Hooks {
    pub port: u16,
    ca: String,
    pub seen: Arc<Mutex<Vec<(String, Value)>>>,
    /// The traces that reviews came with.
    pub traces: Arc<Mutex<Vec<String>>>,
}

impl Hooks {
    /// Answers each review with what `react` makes of the path and the review's request: the fields of the response beside
    /// the uid (allowed, or a success, unless it says otherwise). Null never comes back.
    pub async fn serve(react: impl Fn(&str, &Value) -> Value + Send + Sync + 'static) -> Self {
        let now = OffsetDateTime::now_utc();
        let ca = pki::Authority::generate("hooks", time::Duration::days(1), now).expect("a CA");
        let leaf = pki::Leaf {
            common_name: "localhost",
            organizations: &[],
            usages: &[pki::Usage::DigitalSignature, pki::Usage::ServerAuth],
            names: &pki::AltNames { dns: vec!["localhost".to_owned()], ..Default::default() },
            lifetime: time::Duration::days(1),
        };
        let identity = ca.issue(&leaf, now).expect("a certificate");
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain.expect("pem"), key)
            .expect("a certificate and its key");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let traces: Arc<Mutex<Vec<String>>> = Arc::default();
        let react: Arc<React> = Arc::new(react);
        let (log, own) = (seen.clone(), traces.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, log, react, traces) =
                    (acceptor.clone(), log.clone(), react.clone(), own.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let trace = request.headers().get("traceparent").and_then(|h| h.to_str().ok());
                        traces.lock().extend(trace.map(str::to_owned));
                        answer(request, log.clone(), react.clone())
                    });
                    let server = hyper::server::conn::http1::Builder::new();
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { port, ca: STANDARD.encode(ca.cert_pem()), seen, traces }
    }

    /// The `clientConfig` that leads here.
    pub fn config(&self, path: &str) -> Value {
        json!({"url": format!("https://localhost:{}{path}", self.port), "caBundle": self.ca})
    }

    /// The reviews' requests at a path, and forgets everything.
    pub fn take(&self, path: &str) -> Vec<Value> {
        let seen = std::mem::take(&mut *self.seen.lock());
        let at = seen.into_iter().filter(|(p, _)| p == path);
        at.map(|(_, review)| review["request"].clone()).collect()
    }
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    log: Arc<Mutex<Vec<(String, Value)>>>,
    react: Arc<React>,
) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut response = json!({"uid": review["request"]["uid"]});
    match review["kind"].as_str() {
        Some("ConversionReview") => response["result"] = json!({"status": "Success"}),
        _ => response["allowed"] = true.into(),
    }
    let reaction = react(&path, &review["request"]);
    log.lock().push((path, review.clone()));
    match reaction {
        Value::Object(fields) => {
            for (key, value) in fields {
                response[&key] = value;
            }
        }
        _ => tokio::time::sleep(Duration::from_secs(60)).await,
    }
    let review = json!({"kind": review["kind"], "apiVersion": review["apiVersion"], "response": response});
    Ok(http::Response::new(Full::new(review.to_string().into())))
}

/// A response's patch.
pub fn patch(operations: Value) -> Value {
    json!({"patch": STANDARD.encode(operations.to_string()), "patchType": "JSONPatch"})
}
