//! What the server itself keeps in the cluster: the default ServiceCIDR, and the `kubernetes` Service with its endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::server::{Server, complete};
use crate::start::first_address;
use crate::verbs::meta;
use crate::verbs::write::{self, Checks, Part, Update};
use crate::{ClusterRef, Status};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// Makes these objects, or brings them up to date.
pub async fn ensure(server: &Arc<Server>, cluster: &ClusterRef, port: u16) -> Result<(), Status> {
    let config = &server.config;
    let cidrs: Vec<String> = config.service_cidrs.iter().map(ToString::to_string).collect();
    let cidr = json!({
        "metadata": {"name": NAME},
        "spec": {"cidrs": cidrs},
    });
    if apply(cluster, ("networking.k8s.io", "v1", "servicecidrs"), "", cidr, &[]).await? {
        ready(server).await?;
    }
    let Some(range) = config.service_cidrs.first() else { return Ok(()) };
    let address = first_address(range);
    let family = |ip: &IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "clusterIP": address.to_string(),
            "clusterIPs": [address.to_string()],
            "ipFamilies": [family(&address)],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
    });
    apply(cluster, ("", "v1", "services"), NAMESPACE, service, &[]).await?;
    // A loopback address is none of an endpoint: nobody but this machine reaches it.
    let reachable: Vec<String> = config
        .advertise
        .iter()
        .filter(|ip| ip.is_ipv4() == address.is_ipv4() && !ip.is_loopback() && !ip.is_unspecified())
        .map(ToString::to_string)
        .collect();
    if reachable.is_empty() {
        return Ok(());
    }
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let endpoints = json!({
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{"addresses": reachable.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(), "ports": ports}],
    });
    apply(cluster, ("", "v1", "endpoints"), NAMESPACE, endpoints, &["subsets"]).await?;
    let slice = json!({
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": NAME},
        },
        "addressType": family(&address),
        "endpoints": reachable
            .iter()
            .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
            .collect::<Vec<_>>(),
        "ports": ports,
    });
    let row = ("discovery.k8s.io", "v1", "endpointslices");
    apply(cluster, row, NAMESPACE, slice, &["endpoints", "ports"]).await?;
    Ok(())
}

/// Creates an object, or sets the named fields of the present one. Tells whether it is new.
async fn apply(
    cluster: &ClusterRef,
    (group, version, resource): (&str, &str, &str),
    namespace: &str,
    wanted: Value,
    fields: &[&str],
) -> Result<bool, Status> {
    let name = meta::text(&wanted, "name").to_owned();
    let Some(present) = cluster.get(group, resource, namespace, &name) else {
        return match cluster.create(group, version, resource, namespace, wanted).await {
            Err(status) if status.reason() == "AlreadyExists" => Ok(false),
            other => other.map(|_| true),
        };
    };
    let mut changed = (*present).clone();
    for field in fields {
        changed[*field] = wanted[*field].clone();
    }
    if changed != *present {
        cluster.update(group, version, resource, namespace, changed).await?;
    }
    Ok(false)
}

/// The default ServiceCIDR is ready at once: its range is the server's own.
async fn ready(server: &Arc<Server>) -> Result<(), Status> {
    use futures::FutureExt;
    let Some(row) = server.registry.find("networking.k8s.io", "v1", "servicecidrs") else { return Ok(()) };
    let how = Update {
        key: NAME,
        name: NAME,
        namespace: "",
        part: Part::Status,
        create: false,
        retry: true,
        managed: true,
    };
    let make = |old: Option<Arc<Value>>| {
        let mut new = old.as_deref().cloned().unwrap_or_default();
        new["status"] = json!({"conditions": [{
            "type": "Ready",
            "status": "True",
            "lastTransitionTime": meta::now(),
            "reason": "",
            "message": "Kubernetes default Service CIDR is ready",
        }]});
        let made = complete(&row, new);
        async move { made }.boxed()
    };
    write::update(server, &row, &how, &make, &Checks::OWN).await.map(drop)
}
