//! TLS for the HTTP client: with a given CA, or without any verification when told so.

use crate::Failure;
use ::tls::Servers;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, RootCertStore, StreamOwned};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

/// How the server's certificate is judged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trust<'a> {
    /// Any will do.
    Anyone,
    /// It must be signed by a CA of this PEM file.
    File(&'a str),
}

/// Wraps a connection to `host` (a name or an address).
pub(crate) fn wrap(
    stream: TcpStream,
    host: &str,
    trust: Trust<'_>,
) -> Result<StreamOwned<ClientConnection, TcpStream>, Failure> {
    let servers = match trust {
        Trust::Anyone => Servers::Any,
        Trust::File(path) => {
            let mut roots = RootCertStore::empty();
            let added = ::tls::add_authorities(&mut roots, Path::new(path));
            if added.map_err(|error| Failure::about(path, error))? == 0 {
                return Err(Failure::about(path, "no certificate in it can be used"));
            }
            Servers::Of(Arc::new(roots))
        }
    };
    let config = ::tls::client(&servers, None).map_err(|error| Failure::about("tls", error))?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|error| Failure::about(host, error))?;
    let connection =
        ClientConnection::new(Arc::new(config), name).map_err(|error| Failure::about(host, error))?;
    Ok(StreamOwned::new(connection, stream))
}
