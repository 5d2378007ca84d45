//! From a Service to the address of one of its ready endpoints, out of the watch cache.

use std::net::{IpAddr, SocketAddr};

use rand::Rng;
use serde_json::Value;

use crate::ClusterRef;
use crate::read::Read;

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Socket(SocketAddr),
    /// A name to look up: of an ExternalName Service.
    Name(String, u16),
}

/// A ready endpoint of a Service's port: of the primary family first, of the slices and endpoints a random one.
pub(super) fn service(
    cluster: &ClusterRef,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<Address, String> {
    let service = cluster
        .get("", "services", namespace, name)
        .ok_or_else(|| format!("service {name:?} not found in namespace {namespace:?}"))?;
    if service.text("spec.type") == "ExternalName" {
        return Ok(Address::Name(service.text("spec.externalName").to_owned(), port));
    }
    let wanted = service.items("spec.ports").iter().find(|p| p["port"].as_u64() == Some(port.into()));
    let wanted = wanted.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let slices = cluster.list("discovery.k8s.io", "endpointslices", Some(namespace)).items;
    let mut own: Vec<&Value> = slices
        .iter()
        .map(AsRef::as_ref)
        .filter(|slice| slice.label("kubernetes.io/service-name") == Some(name))
        .collect();
    let primary = service.texts("spec.ipFamilies").next().unwrap_or_default();
    let mut rng = rand::rng();
    own.sort_by_cached_key(|slice| (slice.text("addressType") != primary, rng.random::<u32>()));
    for slice in own {
        let ports = slice.items("ports").iter().filter(|p| p.text("name") == wanted.text("name"));
        for port in ports.filter_map(|p| u16::try_from(p["port"].as_u64()?).ok()) {
            let endpoints = slice.items("endpoints");
            if endpoints.is_empty() {
                continue;
            }
            let start = rng.random_range(0..endpoints.len());
            let mut around = endpoints[start..].iter().chain(&endpoints[..start]);
            let found = around.find_map(|endpoint| {
                let ready = endpoint.at("conditions.ready").as_bool().unwrap_or(true);
                let address = endpoint.texts("addresses").next().and_then(|a| a.parse::<IpAddr>().ok());
                address.filter(|_| ready)
            });
            if let Some(address) = found {
                return Ok(Address::Socket(SocketAddr::new(address, port)));
            }
        }
    }
    Err(format!("no endpoints available for service {name:?}"))
}
