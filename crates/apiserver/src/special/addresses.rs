//! The addresses of Services: the ranges that they come from, which ServiceCIDR objects tell, and the IPAddress objects that
//! tell which are taken (upstream: `pkg/registry/core/service/ipallocator`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::Task;
use crate::server::Server;
use crate::verbs::meta;

const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

pub fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn values(server: &Server, group: &str, plural: &str) -> Vec<Value> {
    let Some(row) = server.registry.any(group, plural) else { return Vec::new() };
    let objects = row.cache.list("", None).0;
    objects.iter().filter_map(|object| object.value().ok()).collect()
}

fn is_ready(range: &Value) -> bool {
    let conditions = range.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().find(|one| one["type"] == "Ready");
    ready.is_some_and(|one| one["status"] == "True") && range.pointer("/metadata/deletionTimestamp").is_none()
}

/// The ranges of a family that addresses are given out from: those of the ServiceCIDRs that are ready, beginning with the
/// server's own.
pub fn ranges(server: &Server, own: &[IpNet], family: &str) -> Vec<IpNet> {
    let of_family = |range: &IpNet| family_of(range.addr()) == family;
    let all = values(server, "networking.k8s.io", "servicecidrs");
    let mut ranges: Vec<IpNet> = Vec::new();
    let told = all.iter().filter(|range| is_ready(range)).flat_map(|range| {
        let cidrs = range.pointer("/spec/cidrs").and_then(Value::as_array);
        cidrs
            .into_iter()
            .flatten()
            .filter_map(|cidr| cidr.as_str()?.parse::<IpNet>().ok())
            .collect::<Vec<_>>()
    });
    for range in told.filter(of_family) {
        if !ranges.contains(&range) {
            ranges.push(range);
        }
    }
    ranges.sort_by_key(|range| !own.contains(range));
    if all.is_empty() {
        // Before the server has told of its own.
        ranges.extend(own.iter().copied().filter(of_family));
    }
    ranges
}

/// The IPAddress that says whose an address is.
pub fn object(ip: &str, (namespace, name): &(String, String)) -> Value {
    let family = ip.parse().map_or("IPv4", family_of);
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": ip,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family,
                MANAGED_BY: ALLOCATOR,
            },
        },
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": namespace, "name": name}},
    })
}

type Owner = (String, String);

/// What differs between the Services and what is told of their addresses.
#[derive(Debug, Default, PartialEq)]
struct Repairs {
    take: BTreeMap<Owner, Vec<String>>,
    release: BTreeSet<String>,
}

fn plan(services: &[Value], addresses: &[Value]) -> Repairs {
    let mut wanted: BTreeMap<String, Owner> = BTreeMap::new();
    for service in services {
        let ips = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
        for ip in ips.into_iter().flatten().filter_map(Value::as_str).filter(|ip| *ip != "None") {
            let owner = (meta::text(service, "namespace").to_owned(), meta::text(service, "name").to_owned());
            wanted.entry(ip.to_owned()).or_insert(owner);
        }
    }
    let mut repairs = Repairs::default();
    for address in addresses {
        let managed = address.pointer("/metadata/labels").and_then(|labels| labels.get(MANAGED_BY));
        let parent =
            |field: &str| address.pointer(&format!("/spec/parentRef/{field}")).and_then(Value::as_str);
        let of_service = parent("resource") == Some("services");
        // What others have made for purposes of their own is theirs.
        if managed.and_then(Value::as_str) != Some(ALLOCATOR) || !of_service {
            wanted.remove(meta::text(address, "name"));
            continue;
        }
        let name = meta::text(address, "name").to_owned();
        let owner = (
            parent("namespace").unwrap_or_default().to_owned(),
            parent("name").unwrap_or_default().to_owned(),
        );
        match wanted.get(&name) {
            Some(right) if *right == owner => {
                wanted.remove(&name);
            }
            _ => {
                repairs.release.insert(name);
            }
        }
    }
    for (ip, owner) in wanted {
        repairs.take.entry(owner).or_default().push(ip);
    }
    repairs
}

/// Makes what is told of addresses agree with the Services. The caller keeps writes of Services waiting.
pub async fn repair(server: &Server) {
    // A cache that is not there yet must not look like a cluster without Services.
    if server.registry.fresh().await.is_err() {
        return;
    }
    let repairs = plan(&values(server, "", "services"), &values(server, "networking.k8s.io", "ipaddresses"));
    if repairs != Repairs::default() {
        tracing::info!(?repairs, "repairing IPAddresses");
    }
    Task::ReleaseAddresses(repairs.release.into_iter().collect()).run(server).await;
    for (owner, ips) in repairs.take {
        Task::TakeAddresses(ips, owner).run(server).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_services() {
        let service = |name: &str, ips: &[&str]| json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"clusterIPs": ips}});
        let address = |ip: &str, name: &str| object(ip, &("d".to_owned(), name.to_owned()));
        let mut foreign = address("10.0.0.9", "z");
        foreign["metadata"]["labels"] = json!({});
        let repairs = plan(
            &[service("a", &["10.0.0.1"]), service("b", &["10.0.0.2", "fd00::2"]), service("c", &["None"])],
            &[address("10.0.0.1", "a"), address("10.0.0.2", "a"), address("10.0.0.3", "b"), foreign],
        );
        let take =
            BTreeMap::from([(("d".to_owned(), "b".to_owned()), vec!["10.0.0.2".into(), "fd00::2".into()])]);
        let release = BTreeSet::from(["10.0.0.2".to_owned(), "10.0.0.3".to_owned()]);
        assert_eq!(repairs, Repairs { take, release });
    }
}
