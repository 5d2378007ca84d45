//! TLS: the kubelet's serving side, and the unverified client of HTTPS probes.

use std::sync::{Arc, LazyLock};

use ::tls::{Servers, provider};
use parking_lot::RwLock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::error::Error;

/// The certificate that is served with; another one can take its place. Without any, handshakes fail.
#[derive(Debug, Default)]
pub(crate) struct Served(RwLock<Option<(Arc<CertifiedKey>, Option<jiff::Timestamp>)>>);

impl Served {
    /// Serves with this chain and key (PEM) from now on.
    pub(crate) fn set(&self, cert: &str, key: &str) -> Result<(), Error> {
        let bad = |error: &dyn std::fmt::Display| Error::Certificate(error.to_string());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| bad(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| bad(&error))?;
        let made = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| bad(&error))?;
        *self.0.write() = Some((Arc::new(made), lifetime(cert).map(|(_, until)| until)));
        Ok(())
    }

    /// When the certificate ends.
    pub(crate) fn ends(&self) -> Option<jiff::Timestamp> {
        self.0.read().as_ref()?.1
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().as_ref().map(|(key, _)| key.clone())
    }
}

/// The server's configuration: what it is told to serve with, client certificates of `client_ca` taken but not demanded, and no
/// version of TLS below `min_version` (`tlsMinVersion`).
pub(crate) fn server(served: Arc<Served>, client_ca: &str, min_version: &str) -> Result<ServerConfig, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::Certificate(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
        roots.add(authority.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| bad(&error))?;
    let all = rustls::DEFAULT_VERSIONS;
    let newest: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
    let versions = if min_version == "VersionTLS13" { newest } else { all };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|error| bad(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(served);
    // Upgrades (exec, attach, port-forward) exist in HTTP/1.1 only.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// From when to when the first certificate of a chain holds.
pub(crate) fn lifetime(chain: &str) -> Option<(jiff::Timestamp, jiff::Timestamp)> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let first = CertificateDer::pem_slice_iter(chain.as_bytes()).next()?.ok()?;
    let (_, certificate) = X509Certificate::from_der(&first).ok()?;
    let validity = certificate.validity();
    let time = |seconds: i64| jiff::Timestamp::from_second(seconds).ok();
    Some((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

/// Opens TLS to a probed container.
pub(crate) async fn connect_unverified(
    target: &str,
    stream: TcpStream,
) -> std::io::Result<TlsStream<TcpStream>> {
    // A probe asks whether the container answers, not who it is.
    static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
        let config = ::tls::client(&Servers::Any, None);
        Arc::new(config.expect("the ring provider supports the default versions"))
    });
    let host = target.rsplit_once(':').map_or(target, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
    TlsConnector::from(CONFIG.clone()).connect(name, stream).await
}
