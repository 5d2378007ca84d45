//! TLS: the kubelet's serving side, and the unverified client of HTTPS probes.

use std::sync::{Arc, LazyLock};

use parking_lot::RwLock;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::error::Error;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

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

/// The server's configuration: what it is told to serve with, and client certificates of `client_ca` taken but not demanded.
pub(crate) fn server(served: Arc<Served>, client_ca: &str) -> Result<ServerConfig, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::Certificate(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
        roots.add(authority.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| bad(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
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

/// Accepts every certificate: a probe asks whether the container answers, not who it is.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Opens TLS to a probed container.
pub(crate) async fn connect_unverified(
    target: &str,
    stream: TcpStream,
) -> std::io::Result<TlsStream<TcpStream>> {
    static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the ring provider supports the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny(provider())))
            .with_no_client_auth();
        Arc::new(config)
    });
    let host = target.rsplit_once(':').map_or(target, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
    TlsConnector::from(CONFIG.clone()).connect(name, stream).await
}
