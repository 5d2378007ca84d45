//! TLS for clients: which servers are believed, and what is shown to them. The one place that can believe any server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Where Linux systems keep the authorities that they trust.
const SYSTEM_FILES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// What is wrong with a file of certificates or keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("certificate authorities in {path}: {reason}")]
    Authorities { path: PathBuf, reason: String },
    #[error("client certificate {path}: {reason}")]
    Identity { path: PathBuf, reason: String },
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Which servers are believed.
#[derive(Debug, Clone)]
pub enum Servers {
    /// Any: who asks so does not need to know whom.
    Any,
    /// Those whose certificates lead to one of these authorities and carry the name that was asked for.
    Of(Arc<RootCertStore>),
}

/// The cryptography in use.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The file of the authorities that this machine trusts: `SSL_CERT_FILE`, or where the system keeps it; `None` where there is none.
pub fn system_file() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(SYSTEM_FILES.iter().map(PathBuf::from)).find(|path| path.is_file())
}

/// Adds the authorities of a PEM file; those that cannot be used are left out, as system files have some. Tells how many were added.
pub fn add_authorities(roots: &mut RootCertStore, file: &Path) -> Result<usize, Error> {
    let found = CertificateDer::pem_file_iter(file)
        .map_err(|error| Error::Authorities { path: file.to_owned(), reason: error.to_string() })?;
    Ok(roots.add_parsable_certificates(found.flatten()).0)
}

/// A client's configuration; `identity` names the files of a certificate chain and its key, PEM, to show to servers.
pub fn client(servers: &Servers, identity: Option<(&Path, &Path)>) -> Result<ClientConfig, Error> {
    let provider = provider();
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match servers {
        Servers::Any => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer::of(provider)))
        }
        Servers::Of(roots) => builder.with_root_certificates(roots.clone()),
    };
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let fail = |file: &Path, reason: String| Error::Identity { path: file.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| fail(certificate, error.to_string()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| fail(key, error.to_string()))?;
    builder.with_client_auth_cert(chain, private).map_err(|error| fail(certificate, error.to_string()))
}

/// Accepts every server that has the key of the certificate which it shows, whoever that may be.
#[derive(Debug)]
pub struct AnyServer(Arc<CryptoProvider>);

impl AnyServer {
    /// With this cryptography.
    pub fn of(provider: Arc<CryptoProvider>) -> Self {
        AnyServer(provider)
    }
}

impl ServerCertVerifier for AnyServer {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustls::{ClientConnection, ServerConfig, ServerConnection, Stream};

    use super::*;

    /// One connection from a client with this configuration to a server of that certificate; tells what the client makes of it.
    fn connect(client: ClientConfig, chain: CertificateDer<'static>, key: Vec<u8>) -> Result<(), String> {
        let key = PrivateKeyDer::try_from(key).expect("a key");
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .expect("a certificate");
        let (near, mut far) = std::os::unix::net::UnixStream::pair().expect("sockets");
        let serving = std::thread::spawn(move || {
            let mut connection = ServerConnection::new(Arc::new(server)).expect("a connection");
            let mut stream = Stream::new(&mut connection, &mut far);
            let _ = stream.write_all(b"ahoy");
            let _ = stream.flush();
        });
        let name = ServerName::try_from("server.test").expect("a name");
        let mut connection = ClientConnection::new(Arc::new(client), name).expect("a connection");
        let mut near = near;
        let mut read = [0; 4];
        let result = Stream::new(&mut connection, &mut near).read_exact(&mut read);
        drop(near);
        serving.join().expect("the server ends");
        result.map_err(|error| error.to_string())
    }

    #[test]
    fn servers_are_believed_as_configured() {
        let make =
            |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
        let (own, foreign) = (make("server.test"), make("other.test"));
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("authorities.pem");
        std::fs::write(
            &file,
            format!("{}\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", own.cert.pem()),
        )
        .expect("a file");
        let mut roots = RootCertStore::empty();
        assert_eq!(add_authorities(&mut roots, &file).expect("readable"), 1);
        let known = Servers::Of(Arc::new(roots));
        let check = |servers: &Servers, one: &rcgen::CertifiedKey<rcgen::KeyPair>, good: bool| {
            let client = client(servers, None).expect("a configuration");
            let result = connect(client, one.cert.der().clone(), one.signing_key.serialize_der());
            assert_eq!(result.is_ok(), good, "{result:?}");
        };
        check(&known, &own, true);
        check(&known, &foreign, false);
        check(&Servers::Any, &foreign, true);
        assert!(add_authorities(&mut RootCertStore::empty(), Path::new("/nowhere")).is_err());
        let missing = Some((Path::new("/nowhere"), Path::new("/nowhere")));
        assert!(matches!(client(&Servers::Any, missing), Err(Error::Identity { .. })));
    }
}
