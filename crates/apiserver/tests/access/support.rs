//! A running server, and a plain HTTP client that says exactly what it is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apiserver::Config;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub struct Running {
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A client's certificate and key, in PEM.
pub type Identity = (String, String);

pub struct Answer {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub async fn start(configure: impl FnOnce(&mut Config)) -> Running {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = Config::new(dir.path());
    config.bind.set_port(0);
    configure(&mut config);
    let store = store::embedded::open(&dir.path().join("store.redb")).expect("a new store opens");
    let server = apiserver::start(config, store).await.expect("the server starts");
    let shutdown = CancellationToken::new();
    let address = SocketAddr::from(([127, 0, 0, 1], server.address().port()));
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move { server.serve(shutdown).await }
    });
    Running { address, dir, shutdown }
}

impl Running {
    pub fn pki(&self) -> pki::ClusterPki {
        pki::ClusterPki::load_or_create(self.dir.path().join("pki")).expect("the server's keys")
    }

    /// The identity of a client.
    pub fn identity(&self, user: &str, groups: &[&str]) -> Identity {
        let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        let made = self.pki().issue_client(user, &groups).expect("a certificate");
        (made.cert_pem, made.key_pem)
    }

    pub fn admin(&self) -> Identity {
        self.identity("admin", &["system:masters"])
    }

    pub fn ca(&self) -> String {
        self.pki().ca.cert_pem()
    }

    /// A connection over TLS, on which requests can be sent.
    pub async fn connect(
        &self,
        identity: Option<&Identity>,
    ) -> hyper::client::conn::http1::SendRequest<Full<Bytes>> {
        let config = client_tls(&self.ca(), identity);
        let stream = TcpStream::connect(self.address).await.expect("connected");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("TLS");
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// Sends one request on a connection of its own.
    pub async fn send(
        &self,
        identity: Option<&Identity>,
        request: http::request::Builder,
        body: &str,
    ) -> Answer {
        let mut sender = self.connect(identity).await;
        let request = request.header("host", "localhost");
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        let response = sender.send_request(request).await.expect("answered");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Answer { code: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, identity: Option<&Identity>, path: &str) -> Answer {
        self.send(identity, Request::get(path), "").await
    }

    /// Creates an object as the administrator; the answer.
    pub async fn create(&self, path: &str, object: &Value) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        let answer = self.send(Some(&self.admin()), request, &object.to_string()).await;
        assert!(answer.code.is_success(), "{path}: {}", answer.text());
        answer
    }

    /// Asks until the answer is as wanted.
    pub async fn until(&self, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
        let admin = self.admin();
        let mut last = String::new();
        for _ in 0..600 {
            let answer = self.get(Some(&admin), path).await;
            if wanted(&answer) {
                return answer;
            }
            last = answer.text();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} did not become what it should: {last}");
    }
}

/// TLS settings of a client.
pub fn client_tls(ca: &str, identity: Option<&Identity>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.expect("PEM")).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            builder.with_client_auth_cert(certificates(chain), private_key(key)).expect("a key")
        }
    })
}

pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().expect("PEM")
}

pub fn private_key(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("PEM")
}

/// A TLS server on loopback that answers with a function of the request; `client_ca` are the authorities that clients must
/// show a certificate of. Ends when the token is cancelled. Gives its port.
pub async fn serve_tls<F, R>(
    identity: &pki::Identity,
    client_ca: Option<&str>,
    stop: CancellationToken,
    handle: F,
) -> u16
where
    F: Fn(http::Request<hyper::body::Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = http::Response<Full<Bytes>>> + Send + 'static,
{
    serve_tls_at([127, 0, 0, 1].into(), identity, client_ca, stop, handle).await
}

/// An address of this machine that is not loopback: the one that it would speak to others from. Nothing is sent.
pub fn own_address() -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect("192.0.2.1:9").expect("a route to others; this test needs an address beside loopback");
    socket.local_addr().expect("an address").ip()
}

/// The same at another address of this machine.
pub async fn serve_tls_at<F, R>(
    address: std::net::IpAddr,
    identity: &pki::Identity,
    client_ca: Option<&str>,
    stop: CancellationToken,
    handle: F,
) -> u16
where
    F: Fn(Request<hyper::body::Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = http::Response<Full<Bytes>>> + Send + 'static,
{
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in certificates(ca) {
                roots.add(certificate).expect("an authority");
            }
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        }
    };
    let mut config = builder
        .with_single_cert(certificates(&identity.cert_pem), private_key(&identity.key_pem))
        .expect("a serving certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind((address, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => accepted.expect("accepted"),
                () = stop.cancelled() => return,
            };
            let (acceptor, handle, stop) = (acceptor.clone(), handle.clone(), stop.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request| {
                    let answer = handle(request);
                    async move { Ok::<_, std::convert::Infallible>(answer.await) }
                });
                let builder =
                    hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                tokio::select! {
                    _ = connection => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    });
    port
}
