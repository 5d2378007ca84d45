//! The secure port of a part that runs alone: health for everybody, metrics for whom the API server lets read them (upstream:
//! the secure serving of kube-controller-manager and kube-scheduler). Client certificates are those of the authority in the
//! ConfigMap `kube-system/extension-apiserver-authentication`; tokens and rights are reviewed by the API server.

mod review;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use review::{Reviewer, User};

/// Connections served at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 100;
/// How long a client may take for its handshake and for the header of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a part tells how it is.
#[derive(clap::Args)]
pub struct PortArgs {
    /// The port of health and metrics; 0 takes a free one
    #[arg(long)]
    pub port: Option<u16>,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub bind_address: IpAddr,
    /// PEM file of the certificate to serve with; a self-signed one is made without it
    #[arg(long, requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Takes the port, so that one that is in use is told at the start, and serves until `shutdown`. `standard` is the port
/// unless another one is asked for.
pub async fn serve(
    args: &PortArgs,
    standard: u16,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let address = SocketAddr::new(args.bind_address, args.port.unwrap_or(standard));
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let identity = identity(args)?;
    let (config, configs) = watch::channel(Arc::new(tls(&identity, "")?));
    eprintln!("health and metrics on {}", listener.local_addr()?);
    let reviewer = Arc::new(Reviewer::new(client.clone()));
    let stop = shutdown.clone();
    tokio::spawn(async move { stop.run_until_cancelled(follow(client, identity, config)).await });
    tokio::spawn(accept(listener, configs, reviewer, shutdown));
    Ok(())
}

fn identity(args: &PortArgs) -> anyhow::Result<Identity> {
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let (chain, key) = match (&args.tls_cert_file, &args.tls_private_key_file) {
        (Some(chain), Some(key)) => (read(chain)?, read(key)?),
        _ => {
            let (now, year) = (time::OffsetDateTime::now_utc(), time::Duration::days(365));
            let authority = pki::Authority::generate("carrack", year, now)?;
            let names = pki::AltNames {
                dns: vec!["localhost".to_owned()],
                ips: vec![args.bind_address],
                ..Default::default()
            };
            let leaf = pki::Leaf {
                common_name: "localhost",
                organizations: &[],
                names: &names,
                usages: &[pki::Usage::DigitalSignature, pki::Usage::ServerAuth],
                lifetime: year,
            };
            let made = authority.issue(&leaf, now)?;
            (made.cert_pem, made.key_pem)
        }
    };
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("--tls-private-key-file")?;
    Ok((chain.context("--tls-cert-file")?, key))
}

/// TLS that takes client certificates of these authorities (PEM) and demands none.
fn tls((chain, key): &Identity, authorities: &str) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(authority?)?;
    }
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match roots.is_empty() {
        true => builder.with_no_client_auth(),
        false => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
    };
    let mut config = builder.with_single_cert(chain.clone(), key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Keeps to the authorities that the API server publishes.
async fn follow(client: Client, identity: Identity, config: watch::Sender<Arc<ServerConfig>>) {
    let maps = Api::<ConfigMap>::namespaced(client, "kube-system");
    let only = watcher::Config::default().fields("metadata.name=extension-apiserver-authentication");
    let mut maps = std::pin::pin!(watcher(maps, only).default_backoff().applied_objects());
    while let Some(map) = maps.next().await {
        let Ok(map) = map.inspect_err(|error| tracing::debug!(%error, "whom to trust is not told")) else {
            continue;
        };
        let authorities = map.data.unwrap_or_default().remove("client-ca-file").unwrap_or_default();
        match tls(&identity, &authorities) {
            Ok(made) => drop(config.send_replace(Arc::new(made))),
            Err(error) => tracing::warn!("the authorities of client certificates are of no use: {error:#}"),
        }
    }
}

async fn accept(
    listener: TcpListener,
    configs: watch::Receiver<Arc<ServerConfig>>,
    reviewer: Arc<Reviewer>,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = match shutdown.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(configs.borrow().clone());
        let (reviewer, shutdown) = (reviewer.clone(), shutdown.clone());
        tokio::spawn(async move {
            shutdown.run_until_cancelled(connection(acceptor, stream, reviewer)).await;
            drop(permit);
        });
    }
}

async fn connection(acceptor: TlsAcceptor, stream: TcpStream, reviewer: Arc<Reviewer>) {
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else { return };
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = peer.and_then(|certificate| User::of_certificate(certificate));
    let service = service_fn(move |request: Request<Incoming>| {
        let (reviewer, peer) = (reviewer.clone(), peer.clone());
        async move { Ok::<_, Infallible>(answer(&reviewer, peer, &request).await) }
    });
    let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn answer<B>(reviewer: &Reviewer, peer: Option<User>, request: &Request<B>) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let path = request.uri().path();
    let health = matches!(path, "/healthz" | "/livez" | "/readyz");
    if !health && let Err((code, reason, message)) = reviewer.admit(request, peer).await {
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16(),
        });
        return respond(code, "application/json", status.to_string());
    }
    match path {
        _ if health => respond(StatusCode::OK, TEXT, "ok"),
        "/metrics" => {
            let mut text = String::new();
            exposition::write_shared(&mut text);
            apiserver::write_process_metrics(&mut text);
            respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        _ => respond(StatusCode::NOT_FOUND, TEXT, "404 page not found\n"),
    }
}

fn respond(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
