//! Cluster DNS: answers for the cluster's domain from memory, straight from the watch, and forwards everything else.

#![forbid(unsafe_code)]

mod forward;
mod server;
mod state;
pub mod wire;
mod zone;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::RwLock;
use server::Server;
use state::{Change, State};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Addresses to answer on; those that no link has are added to `lo` of the current network namespace.
    pub listen: Vec<IpAddr>,
    /// Port, 53 for clients to find it.
    pub port: u16,
    /// The cluster's domain.
    pub domain: String,
    /// Servers for all other names.
    pub upstreams: Vec<SocketAddr>,
    /// Pod and service ranges: reverse names in them are never asked of others.
    pub ranges: Vec<IpNet>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            port: 53,
            domain: "cluster.local".into(),
            upstreams: Vec::new(),
            ranges: Vec::new(),
        }
    }
}

/// Errors that keep the server from running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The addresses could not be added.
    #[error("cluster DNS addresses could not be added to lo")]
    Network(#[from] network::Error),
    /// None of the addresses could be listened on.
    #[error("listen on {address} (is another DNS server bound to it or to all addresses?)")]
    Listen {
        /// The last one tried.
        address: SocketAddr,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Nothing to listen on was configured.
    #[error("no address to listen on")]
    NoAddress,
}

/// The name servers of a resolv.conf, without `own` addresses and the node's loopback stubs that cannot be reached from elsewhere.
pub fn upstreams(resolv_conf: &Path, own: &[IpAddr]) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .filter(|address| !own.contains(address))
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

/// Serves cluster DNS until `shutdown`.
pub async fn run(client: Client, config: DnsConfig, shutdown: CancellationToken) -> Result<(), Error> {
    let sockets = open(&config).await?;
    let zone = Arc::new(RwLock::new(zone::Zone::new(&config.domain, config.ranges.clone())));
    let (ready, seen) = watch::channel(false);
    let server = Arc::new(Server::new(zone.clone(), config.upstreams.clone(), seen));
    let mut tasks = JoinSet::new();
    for (udp, tcp) in sockets {
        tasks.spawn(server.clone().udp(udp));
        tasks.spawn(server.clone().tcp(tcp));
    }

    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default());
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), watcher::Config::default());
    let namespaces = watcher(Api::<Namespace>::all(client), watcher::Config::default());
    let mut changes = stream::select_all([
        services.default_backoff().map_ok(|event| Change::Service(Box::new(event))).boxed(),
        slices.default_backoff().map_ok(|event| Change::Slice(Box::new(event))).boxed(),
        namespaces.default_backoff().map_ok(|event| Change::Namespace(Box::new(event))).boxed(),
    ]);
    let mut state = State::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(ended) = tasks.join_next() => {
                if let Ok(Err(error)) = ended {
                    tracing::error!(%error, "a DNS socket failed");
                }
                if tasks.is_empty() {
                    return Err(Error::NoAddress);
                }
            }
            change = changes.next() => {
                let Some(change) = change else { return Ok(()) };
                let mut zone = zone.write();
                let mut next = Some(change);
                // One lock for all that has arrived.
                while let Some(change) = next {
                    match change {
                        Ok(change) => state.apply(&mut zone, change),
                        Err(error) => tracing::warn!(%error, "watch interrupted; it will be taken up again"),
                    }
                    next = changes.next().now_or_never().flatten();
                }
                drop(zone);
                if state.is_complete() && !*ready.borrow() {
                    ready.send_replace(true);
                }
            }
        }
    }
}

/// Opens all sockets. A host that lacks one family still serves the other.
async fn open(config: &DnsConfig) -> Result<Vec<(UdpSocket, TcpListener)>, Error> {
    let mut sockets = Vec::new();
    let mut failure = Error::NoAddress;
    for &address in &config.listen {
        let place = SocketAddr::new(address, config.port);
        let opened = match bind(place).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {
                let added =
                    tokio::task::spawn_blocking(move || network::add_local_addresses(&[address])).await;
                match added {
                    Ok(Err(error)) => {
                        tracing::warn!(%address, %error, "not served by DNS");
                        failure = error.into();
                        continue;
                    }
                    _ => bind(place).await,
                }
            }
            other => other,
        };
        match opened {
            Ok(pair) => sockets.push(pair),
            Err(source) => {
                tracing::warn!(%place, %source, "not served by DNS");
                failure = Error::Listen { address: place, source };
            }
        }
    }
    if sockets.is_empty() { Err(failure) } else { Ok(sockets) }
}

async fn bind(place: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    Ok((UdpSocket::bind(place).await?, TcpListener::bind(place).await?))
}

#[cfg(test)]
mod tests;
