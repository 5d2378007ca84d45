//! Outgoing connections of the server to extension servers and proxied pods, and where a Service leads.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::ClusterRef;
use crate::read::Read;
use crate::tls::TlsSetupError;

/// How long a connection and its handshake may take, each.
const CONNECT: Duration = Duration::from_secs(10);

/// Why a peer was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("dial tcp {host}: {source}")]
    Connect {
        host: String,
        #[source]
        source: std::io::Error,
    },
    #[error("dial tcp {0}: i/o timeout")]
    Timeout(String),
    #[error("{0:?} is no name for a TLS server")]
    Name(String),
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
}

/// A plain connection; `host` may be an address or a name.
pub async fn tcp(host: &str, port: u16) -> Result<TcpStream, DialError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let text = || authority(host, port);
    let stream = match tokio::time::timeout(CONNECT, TcpStream::connect((bare, port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => return Err(DialError::Connect { host: text(), source }),
        Err(_) => return Err(DialError::Timeout(text())),
    };
    drop(stream.set_nodelay(true));
    Ok(stream)
}

/// A TLS connection whose server must prove to be `name`.
pub async fn tls(
    config: Arc<ClientConfig>,
    host: &str,
    port: u16,
    name: &str,
) -> Result<TlsStream<TcpStream>, DialError> {
    let stream = tcp(host, port).await?;
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let server = ServerName::try_from(bare.to_owned()).map_err(|_| DialError::Name(name.to_owned()))?;
    let handshake = TlsConnector::from(config).connect(server, stream);
    match tokio::time::timeout(CONNECT, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(DialError::Connect { host: authority(host, port), source }),
        Err(_) => Err(DialError::Timeout(authority(host, port))),
    }
}

/// `host:port`, with the brackets that an IPv6 address needs.
pub fn authority(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

/// Whether an address may be the target of a proxied request: neither this machine's own, nor link-local (where clouds
/// serve credentials), nor a group's (upstream: `IsGlobalUnicast`).
pub fn global_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_link_local()
                || v4.is_broadcast())
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => global_unicast(IpAddr::V4(v4)),
            None => {
                !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local())
            }
        },
    }
}

/// Where a Service leads: host and port of one ready endpoint, or the name of an external one. The error is text for
/// people (upstream: `apiserver/pkg/util/proxy.ResolveEndpoint`).
pub fn resolve(
    cluster: &ClusterRef,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<(String, u16), String> {
    let service =
        cluster.get("", "services", namespace, name).ok_or_else(|| format!("service {name:?} not found"))?;
    match service.text("spec.type") {
        "ExternalName" => return Ok((service.text("spec.externalName").to_owned(), port)),
        "" | "ClusterIP" | "NodePort" | "LoadBalancer" => {}
        other => return Err(format!("unsupported service type {other:?}")),
    }
    let wanted = service
        .items("spec.ports")
        .iter()
        .find(|p| p.at("port").as_u64() == Some(u64::from(port)))
        .ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let primary = service.texts("spec.ipFamilies").next().unwrap_or_default();
    let mut slices = slices(cluster, namespace, name);
    slices.sort_by_key(|slice| slice.text("addressType") != primary);
    let found = ready_addresses(&slices, wanted.text("name"));
    // The primary family first; within it at random.
    let first_family = found.first().map(|(ip, _)| ip.is_ipv4());
    let choice: Vec<_> = found.iter().filter(|(ip, _)| Some(ip.is_ipv4()) == first_family).collect();
    if choice.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    let (ip, port) = choice[rand::rng().random_range(0..choice.len())];
    Ok((ip.to_string(), *port))
}

/// The EndpointSlices of a Service.
pub fn slices(cluster: &ClusterRef, namespace: &str, service: &str) -> Vec<Arc<Value>> {
    let all = cluster.list("discovery.k8s.io", "endpointslices", Some(namespace)).items;
    all.into_iter().filter(|s| s.label("kubernetes.io/service-name") == Some(service)).collect()
}

/// The addresses that are ready, with the number of the named port.
fn ready_addresses(slices: &[Arc<Value>], port_name: &str) -> Vec<(IpAddr, u16)> {
    let mut found = Vec::new();
    for slice in slices {
        let number = slice
            .items("ports")
            .iter()
            .filter(|p| p.text("name") == port_name)
            .find_map(|p| u16::try_from(p.at("port").as_u64()?).ok());
        let Some(number) = number else { continue };
        for endpoint in slice.items("endpoints") {
            if endpoint.at("conditions.ready").as_bool() == Some(false) {
                continue;
            }
            if let Some(ip) = endpoint.texts("addresses").next().and_then(|a| a.parse().ok()) {
                found.push((ip, number));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::FakeCluster;

    #[test]
    fn only_global_unicast_addresses_are_proxied_to() {
        let check = |address: &str, expect: bool| {
            assert_eq!(global_unicast(address.parse().expect("an address")), expect, "{address}");
        };
        check("10.1.2.3", true);
        check("203.0.113.9", true);
        check("fd00::1", true);
        for bad in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
        ] {
            check(bad, false);
        }
    }

    #[test]
    fn a_service_leads_to_a_ready_endpoint_of_its_primary_family() {
        let fake = FakeCluster::new();
        let meta = |name: &str| json!({"name": name, "namespace": "n"});
        fake.put(
            "",
            "services",
            json!({"metadata": meta("s"), "spec": {"type": "ClusterIP",
            "ipFamilies": ["IPv6", "IPv4"], "ports": [{"name": "https", "port": 443}]}}),
        );
        fake.put(
            "",
            "services",
            json!({"metadata": meta("x"),
            "spec": {"type": "ExternalName", "externalName": "example.org"}}),
        );
        let slice = |name: &str, family: &str, ip: &str, ready: bool| {
            let mut metadata = meta(name);
            metadata["labels"] = json!({"kubernetes.io/service-name": "s"});
            json!({"metadata": metadata, "addressType": family, "ports": [{"name": "https", "port": 6443}],
                "endpoints": [{"addresses": [ip], "conditions": {"ready": ready}}]})
        };
        let slices = "endpointslices";
        fake.put("discovery.k8s.io", slices, slice("a", "IPv4", "10.0.0.1", true));
        fake.put("discovery.k8s.io", slices, slice("b", "IPv6", "fd00::1", true));
        let cluster = fake.shared();
        assert_eq!(resolve(&cluster, "n", "s", 443), Ok(("fd00::1".to_owned(), 6443)));
        fake.put("discovery.k8s.io", slices, slice("b", "IPv6", "fd00::1", false));
        assert_eq!(resolve(&cluster, "n", "s", 443), Ok(("10.0.0.1".to_owned(), 6443)));
        assert_eq!(resolve(&cluster, "n", "x", 8443), Ok(("example.org".to_owned(), 8443)));
        assert!(resolve(&cluster, "n", "s", 80).is_err());
        assert!(resolve(&cluster, "n", "none", 443).is_err());
    }
}
