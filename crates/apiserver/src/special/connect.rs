//! Connections to kubelets: TLS with the server's client certificate.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Status;
use crate::dial::AnyServer;
use crate::server::Error;

/// Makes connections to nodes.
pub struct Connector {
    tls: TlsConnector,
}

impl Connector {
    /// `insecure` accepts any certificate of a kubelet, as the reference does without `--kubelet-certificate-authority`.
    pub fn new(
        ca: &[u8],
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        insecure: bool,
    ) -> Result<Self, Error> {
        let tls_error = |e: rustls::Error| Error::Pki(e.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(ca.to_vec())).map_err(tls_error)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(tls_error)?
            .with_root_certificates(roots);
        let mut config = builder.with_client_auth_cert(chain, key).map_err(tls_error)?;
        if insecure {
            config.dangerous().set_certificate_verifier(Arc::new(AnyServer(provider)));
        }
        Ok(Self { tls: TlsConnector::from(Arc::new(config)) })
    }

    /// A TLS connection to an address.
    pub async fn connect(&self, address: IpAddr, port: u16) -> Result<TlsStream<TcpStream>, Status> {
        let failed = |e: std::io::Error| {
            Status::internal(format!("error dialing backend: dial tcp {address}:{port}: {e}"))
        };
        let stream = TcpStream::connect((address, port)).await.map_err(failed)?;
        drop(stream.set_nodelay(true));
        self.tls.connect(ServerName::IpAddress(address.into()), stream).await.map_err(failed)
    }
}
