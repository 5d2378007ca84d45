//! TLS towards everything that the server calls: webhooks, extension servers, token issuers, kubelets, proxied pods. Trust in
//! a bundle or in the system's authorities, verified as Go's client would.

use std::sync::{Arc, LazyLock};

use ::tls::AnyServer;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

/// The authorities that the system trusts; read once, when the first webhook without a bundle is called.
static SYSTEM: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a certificate of the system cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    Arc::new(roots)
});

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("unable to load root certificates: {0}")]
    Roots(String),
    #[error("client certificate: {0}")]
    Certificate(#[source] rustls::pki_types::pem::Error),
    #[error("client key: {0}")]
    Key(#[source] rustls::pki_types::pem::Error),
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
}

/// Whose certificates are accepted.
#[derive(Clone, Copy)]
pub enum Trust<'a> {
    /// Those that lead to one of these authorities, in PEM.
    Bundle(&'a [u8]),
    /// Those that lead to an authority of the operating system.
    System,
    /// All: the peer is not authenticated.
    Nobody,
}

/// A client certificate with its key.
pub type ClientIdentity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The identity in a PEM chain and a PEM key.
pub fn identity(chain: &[u8], key: &[u8]) -> Result<ClientIdentity, TlsSetupError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let key = PrivateKeyDer::from_pem_slice(key).map_err(TlsSetupError::Key)?;
    Ok((chain.map_err(TlsSetupError::Certificate)?, key))
}

/// The TLS settings of a client. `alpn` lists the protocols that the caller can speak, the best first.
pub fn client(
    trust: Trust<'_>,
    identity: Option<ClientIdentity>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsSetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier(trust)?);
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

fn verifier(trust: Trust<'_>) -> Result<Arc<dyn ServerCertVerifier>, TlsSetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (roots, own) = match trust {
        Trust::Nobody => return Ok(Arc::new(AnyServer::of(provider))),
        Trust::System => (SYSTEM.clone(), Vec::new()),
        Trust::Bundle(pem) => roots(pem)?,
    };
    // An empty set is refused by the builder; nothing is then trusted.
    let inner = match roots.is_empty() {
        true => None,
        false => Some(
            WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                .build()
                .map_err(|e| TlsSetupError::Roots(e.to_string()))?,
        ),
    };
    Ok(Arc::new(Verifier { inner, own, provider }))
}

type Trusted = (Arc<RootCertStore>, Vec<CertificateDer<'static>>);

fn roots(bundle: &[u8]) -> Result<Trusted, TlsSetupError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok).collect();
    if certificates.is_empty() {
        return Err(TlsSetupError::Roots("unable to parse bytes as PEM block".to_owned()));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    Ok((Arc::new(roots), certificates))
}

/// The usual verification; beside that a certificate which is itself in the bundle is trusted, as Go does: self-signed
/// serving certificates are common with webhooks.
#[derive(Debug)]
struct Verifier {
    inner: Option<Arc<WebPkiServerVerifier>>,
    own: Vec<CertificateDer<'static>>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl Verifier {
    fn listed(
        &self,
        leaf: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let (_, x509) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|_| TlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < x509.validity().not_before.timestamp() {
            return Err(TlsError::InvalidCertificate(CertificateError::NotValidYet));
        }
        if now > x509.validity().not_after.timestamp() {
            return Err(TlsError::InvalidCertificate(CertificateError::Expired));
        }
        rustls::client::verify_server_name(&parsed, name)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if self.own.iter().any(|own| own == end_entity) {
            self.listed(end_entity, server_name, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        match &self.inner {
            Some(inner) => {
                inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Why TLS failed, in the words of Go's client.
pub fn failure(error: &std::io::Error, name: &str) -> String {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<TlsError>());
    let why = match inner {
        Some(TlsError::InvalidCertificate(wrong)) => match wrong {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "x509: certificate signed by unknown authority".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "x509: certificate has expired or is not yet valid: it has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "x509: certificate has expired or is not yet valid: it is not yet valid".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("x509: certificate is not valid for {name}")
            }
            other => format!("x509: {other}"),
        },
        _ => return format!("tls: {error}"),
    };
    format!("tls: failed to verify certificate: {why}")
}
