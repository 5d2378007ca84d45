//! Calls to a TLS server on loopback, and what is told when they fail.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::TcpListener;

use super::*;
use crate::testing::FakeCluster;

struct Server {
    port: u16,
    ca: String,
    connections: Arc<AtomicUsize>,
}

/// A server for these names that answers with the path and body it was sent; `/late` never answers, `/500` fails.
async fn serve(names: &[&str]) -> Server {
    let now = OffsetDateTime::now_utc();
    let ca = pki::Authority::generate("hooks", time::Duration::days(1), now).expect("a CA");
    let leaf = pki::Leaf {
        common_name: names[0],
        organizations: &[],
        usages: &[pki::Usage::DigitalSignature, pki::Usage::ServerAuth],
        names: &pki::AltNames { dns: names.iter().map(|n| (*n).to_owned()).collect(), ..Default::default() },
        lifetime: time::Duration::days(1),
    };
    let identity = ca.issue(&leaf, now).expect("a certificate");
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).collect::<Result<_, _>>().expect("pem");
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).expect("a key");
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate and its key");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(answer);
                drop(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    });
    Server { port, ca: STANDARD.encode(ca.cert_pem()), connections }
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<Full<bytes::Bytes>>, hyper::Error> {
    let path = request.uri().to_string();
    let body = request.into_body().collect().await?.to_bytes();
    if path.starts_with("/late") {
        std::future::pending::<()>().await;
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let code = if path.starts_with("/500") { 500 } else { 200 };
    let text =
        if code == 500 { "broken".to_owned() } else { json!({"path": path, "body": body}).to_string() };
    let mut response = http::Response::new(Full::new(text.into()));
    *response.status_mut() = http::StatusCode::from_u16(code).expect("a code");
    Ok(response)
}

fn cluster(port: u16, ready: bool) -> Arc<FakeCluster> {
    let cluster = FakeCluster::new();
    cluster.put(
        "",
        "services",
        json!({"metadata": {"name": "hook", "namespace": "n"},
            "spec": {"type": "ClusterIP", "ipFamilies": ["IPv4"], "ports": [{"name": "s", "port": 8443}]}}),
    );
    let slice = |name: &str, of: &str, port: u16, ready: bool| {
        json!({"metadata": {"name": name, "namespace": "n", "labels": {"kubernetes.io/service-name": of}},
            "addressType": "IPv4",
            "ports": [{"name": "other", "port": 1}, {"name": "s", "port": port}],
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": ready}}]})
    };
    cluster.put("discovery.k8s.io", "endpointslices", slice("a", "hook", port, ready));
    cluster.put("discovery.k8s.io", "endpointslices", slice("b", "hook", 1, false));
    cluster.put("discovery.k8s.io", "endpointslices", slice("c", "another", 1, true));
    cluster
}

fn soon() -> Timeout {
    Timeout { time: Duration::from_secs(20), told: true }
}

fn service(path: &str, ca: &str) -> Value {
    json!({"service": {"namespace": "n", "name": "hook", "port": 8443, "path": path}, "caBundle": ca})
}

async fn call(cluster: &Arc<FakeCluster>, config: Value, timeout: Timeout) -> Result<Value, String> {
    let client = Client::new(cluster.shared());
    let target = Target::from_client_config(&config).map_err(|e| e.to_string())?;
    let endpoint = client.endpoint(&target).map_err(|e| e.to_string())?;
    endpoint.post(&json!({"a": 1}), timeout).await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn a_service_is_reached_by_its_endpoints_on_one_connection() {
    let server = serve(&["hook.n.svc"]).await;
    let client = Client::new(cluster(server.port, true).shared());
    let target = Target::from_client_config(&service("/p", &server.ca)).expect("a target");
    for _ in 0..3 {
        let endpoint = client.endpoint(&target).expect("an endpoint");
        let answer = endpoint.post(&json!({"a": 1}), soon()).await.expect("an answer");
        assert_eq!(answer, json!({"path": "/p?timeout=20s", "body": {"a": 1}}));
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn failures_are_told() {
    let server = serve(&["hook.n.svc"]).await;
    let other = serve(&["another.n.svc"]).await;
    let here = cluster(server.port, true);
    let url = "Post \"https://hook.n.svc:8443/p?timeout=20s\": ";
    let check = |want: &str, got: Result<Value, String>| {
        assert_eq!(got.expect_err(want), want.replace("URL: ", url));
    };
    check(
        "URL: tls: failed to verify certificate: x509: certificate signed by unknown authority",
        call(&here, service("/p", &other.ca), soon()).await,
    );
    check(
        "URL: tls: failed to verify certificate: x509: certificate is not valid for hook.n.svc",
        call(&cluster(other.port, true), service("/p", &other.ca), soon()).await,
    );
    check(
        "URL: no endpoints available for service \"hook\"",
        call(&cluster(server.port, false), service("/p", &server.ca), soon()).await,
    );
    check(
        "URL: service \"hook\" not found in namespace \"n\"",
        call(&FakeCluster::new(), service("/p", &server.ca), soon()).await,
    );
    check(
        "an error on the server (\"broken\") has prevented the request from succeeding",
        call(&here, service("/500", &server.ca), soon()).await,
    );
    check(
        "Post \"https://hook.n.svc:8443/late?timeout=1s\": context deadline exceeded",
        call(&here, service("/late", &server.ca), Timeout { time: Duration::from_millis(20), told: true })
            .await,
    );
    check(
        "unable to load root certificates: unable to parse bytes as PEM block",
        call(&here, service("/p", "AAAA"), soon()).await,
    );
    check("webhook configuration must have either service or URL", call(&here, json!({}), soon()).await);
}

#[tokio::test]
async fn urls_are_called_too() {
    let server = serve(&["localhost"]).await;
    let config = json!({"url": format!("https://localhost:{}/x", server.port), "caBundle": server.ca});
    let answer = call(&FakeCluster::new(), config, soon()).await.expect("an answer");
    assert_eq!(answer["path"], "/x?timeout=20s");
}

#[test]
fn a_kubeconfig_is_a_target() {
    let text = "
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: 'https://h:1/p', certificate-authority-data: QQ==, tls-server-name: t}}]
users: [{name: u, user: {token: secret}}]
";
    let target = Target::from_kubeconfig(text, Path::new("/")).expect("a target");
    assert_eq!(target.place, Place::Url("https://h:1/p".to_owned()));
    assert_eq!(target.authorities, Some(b"A".to_vec()));
    assert_eq!(
        (target.server_name.as_deref(), target.bearer.as_deref(), target.insecure),
        (Some("t"), Some("secret"), false)
    );
    for (text, wrong) in [
        ("{}", "the kubeconfig has no context \"\""),
        (
            "current-context: c\ncontexts: [{name: c, context: {cluster: x}}]",
            "the kubeconfig has no cluster \"x\"",
        ),
    ] {
        let error = Target::from_kubeconfig(text, Path::new("/")).expect_err(wrong);
        assert_eq!(error.to_string(), wrong);
    }
}
