//! Client certificates: at the handshake only possession of the key is checked, so that a foreign certificate gets a 401
//! and not a broken connection; here it is checked against the authority.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::UserInfo;

/// Checked certificates that are remembered.
const REMEMBERED: usize = 4096;
/// Longer chains are not looked at.
const MAX_CHAIN: usize = 8;

/// Why a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("verifying certificate failed: {0}")]
    Chain(#[from] rustls::Error),
    #[error("the certificate cannot be read")]
    Malformed,
    #[error("the certificate has no common name")]
    NoName,
    #[error("x509: subject with cn={0} is not in the allowed list")]
    Name(String),
}

/// Checks certificates against one authority.
pub struct Authority {
    verifier: Arc<dyn ClientCertVerifier>,
    checked: Mutex<HashMap<[u8; 32], Arc<Subject>>>,
}

/// Whom a certificate names.
#[derive(Clone, Debug)]
pub struct Subject {
    pub user: UserInfo,
    /// Seconds since 1970.
    not_before: i64,
    not_after: i64,
}

impl Authority {
    /// An authority from its certificate.
    pub fn new(cert_der: &[u8]) -> Result<Self, CertificateError> {
        Self::of(std::slice::from_ref(&CertificateDer::from(cert_der.to_vec())))
    }

    /// Several authorities, each as good as the others.
    pub fn of(certificates: &[CertificateDer<'static>]) -> Result<Self, CertificateError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate.clone())?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|_| CertificateError::Malformed)?;
        Ok(Self { verifier, checked: Mutex::default() })
    }

    /// The subject of a chain that leads to the authority, is meant for clients and valid now.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'static>],
        now: UnixTime,
    ) -> Result<Arc<Subject>, CertificateError> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(CertificateError::Malformed);
        };
        if chain.len() > MAX_CHAIN {
            return Err(CertificateError::Malformed);
        }
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        for cert in chain {
            digest.update(&(cert.len() as u64).to_be_bytes());
            digest.update(cert);
        }
        let key: [u8; 32] = digest.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if let Some(subject) = self.checked.lock().get(&key)
            && (subject.not_before..=subject.not_after).contains(&seconds)
        {
            return Ok(Arc::clone(subject));
        }
        self.verifier.verify_client_cert(leaf, intermediates, now)?;
        let mut subject = read(leaf)?;
        // The answer holds for as long as every certificate of the chain does.
        for certificate in intermediates {
            let (_, certificate) =
                X509Certificate::from_der(certificate).map_err(|_| CertificateError::Malformed)?;
            let validity = certificate.validity();
            subject.not_before = subject.not_before.max(validity.not_before.timestamp());
            subject.not_after = subject.not_after.min(validity.not_after.timestamp());
        }
        let subject = Arc::new(subject);
        let mut checked = self.checked.lock();
        if checked.len() >= REMEMBERED {
            checked.clear();
        }
        checked.insert(key, Arc::clone(&subject));
        drop(checked);
        Ok(subject)
    }
}

fn read(leaf: &CertificateDer<'_>) -> Result<Subject, CertificateError> {
    let (_, cert) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::Malformed)?;
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().map(str::to_owned);
    let name = cert.subject();
    let common = name
        .iter_common_name()
        .last()
        .map(text)
        .transpose()
        .map_err(|_| CertificateError::Malformed)?
        .filter(|name| !name.is_empty())
        .ok_or(CertificateError::NoName)?;
    let groups = name
        .iter_organization()
        .map(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| CertificateError::Malformed)?;
    let digest = ring::digest::digest(&ring::digest::SHA256, leaf);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let extra = BTreeMap::from([(
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![format!("X509SHA256={hex}")],
    )]);
    Ok(Subject {
        user: UserInfo { name: common, uid: String::new(), groups, extra },
        not_before: cert.validity().not_before.timestamp(),
        not_after: cert.validity().not_after.timestamp(),
    })
}

/// The verifier of the TLS handshake: asks for a certificate, takes any or none, and checks that the client holds its key.
#[derive(Debug)]
pub struct AnyCertificate {
    provider: Arc<CryptoProvider>,
    hints: Vec<DistinguishedName>,
}

impl AnyCertificate {
    /// `authorities` (certificates in DER) are hinted at, so that clients with several certificates choose well.
    pub fn new(authorities: &[&[u8]]) -> Result<Arc<Self>, CertificateError> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(CertificateDer::from(authority.to_vec()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(Arc::new(Self { provider, hints: roots.subjects() }))
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
