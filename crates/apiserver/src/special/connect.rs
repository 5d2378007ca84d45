//! Connections to kubelets: TLS with the server's client certificate.

use std::net::IpAddr;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Status;
use crate::server::Error;
use crate::tls::{self, ClientIdentity, Trust};

/// Makes connections to nodes.
pub struct Connector {
    tls: TlsConnector,
    /// For requests that ask for it: whatever certificate the kubelet shows.
    unverified: TlsConnector,
}

impl Connector {
    /// `authorities` is PEM. `insecure` accepts any certificate of a kubelet, as the reference does without
    /// `--kubelet-certificate-authority`.
    pub fn new(authorities: &[u8], (chain, key): &ClientIdentity, insecure: bool) -> Result<Self, Error> {
        let connector = |trust| {
            let identity = (chain.clone(), key.clone_key());
            let config = tls::client(trust, Some(identity), &[]).map_err(|e| Error::Pki(e.to_string()))?;
            Ok::<_, Error>(TlsConnector::from(config))
        };
        let unverified = connector(Trust::Nobody)?;
        let tls = if insecure { unverified.clone() } else { connector(Trust::Bundle(authorities))? };
        Ok(Self { tls, unverified })
    }

    /// A TLS connection to an address.
    pub async fn connect(
        &self,
        address: IpAddr,
        port: u16,
        unverified: bool,
    ) -> Result<TlsStream<TcpStream>, Status> {
        let failed = |e: std::io::Error| {
            Status::internal(format!("error dialing backend: dial tcp {address}:{port}: {e}"))
        };
        let stream = TcpStream::connect((address, port)).await.map_err(failed)?;
        drop(stream.set_nodelay(true));
        let tls = if unverified { &self.unverified } else { &self.tls };
        tls.connect(ServerName::IpAddress(address.into()), stream).await.map_err(failed)
    }
}
