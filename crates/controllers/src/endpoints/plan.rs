//! What the slices of a service should be. Pure. Endpoints stay in the slice that they are in, so that a change
//! of one pod changes one slice.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use kube::api::ObjectMeta;

use super::{HEADLESS, MANAGED_BY, SERVICE_NAME, addresses, counts, find_port, hostname, is_headless};
use crate::kit::pods::{is_ready, node_name};
use crate::kit::refs::reference_to;

pub(super) const CONTROLLER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
const MOST: usize = 100;

/// What to write.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<String>,
    /// Pods left out because their node is unknown: to be looked at again.
    pub(super) incomplete: bool,
}

/// The plan for one service, given its pods and its slices.
pub(super) fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    slices: &[Arc<EndpointSlice>],
) -> Plan {
    let mut plan = Plan::default();
    let families = families(service);
    for slice in slices {
        if !families.contains(&slice.address_type.as_str()) || !is_owned(slice, service) {
            plan.delete.extend(slice.metadata.name.clone());
        }
    }
    for family in families {
        let mine: Vec<_> = slices
            .iter()
            .filter(|slice| slice.address_type == family && is_owned(slice, service))
            .cloned()
            .collect();
        plan_family(service, pods, &node, &mine, family, &mut plan);
    }
    plan
}

fn is_owned(slice: &EndpointSlice, service: &Service) -> bool {
    let mut owners = slice.metadata.owner_references.iter().flatten();
    owners.any(|owner| Some(&owner.uid) == service.metadata.uid.as_ref() && owner.kind == "Service")
}

fn families(service: &Service) -> Vec<&'static str> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let named: Vec<_> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some("IPv4"),
            "IPv6" => Some("IPv6"),
            _ => None,
        })
        .collect();
    if !named.is_empty() {
        return named;
    }
    match spec.cluster_ip.as_deref().and_then(|address| address.parse::<IpAddr>().ok()) {
        Some(IpAddr::V4(_)) => vec!["IPv4"],
        Some(IpAddr::V6(_)) => vec!["IPv6"],
        None => vec!["IPv4", "IPv6"],
    }
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let all = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    all.filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(find_port(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        })
    })
    .collect()
}

/// What tells sets of ports apart, whatever their order.
fn port_key(ports: &[EndpointPort]) -> String {
    let mut keys: Vec<String> = ports
        .iter()
        .map(|port| format!("{:?}/{:?}/{:?}/{:?}", port.name, port.port, port.protocol, port.app_protocol))
        .collect();
    keys.sort();
    keys.join(",")
}

/// What makes two endpoints the same one, though perhaps in another state.
fn identity(endpoint: &Endpoint) -> String {
    let mut addresses = endpoint.addresses.clone();
    addresses.sort();
    let target = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{}/{}/{target}", addresses.join(","), endpoint.hostname.as_deref().unwrap_or_default())
}

fn endpoint(service: &Service, pod: &Pod, node: Option<&Node>, family: &str) -> Option<Endpoint> {
    let of_family = |address: &IpAddr| address.is_ipv4() == (family == "IPv4");
    let found: Vec<String> = addresses(pod).filter(of_family).map(|address| address.to_string()).collect();
    if found.is_empty() {
        return None;
    }
    let spec = service.spec.as_ref()?;
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let zone = node.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned());
    let node_name = Some(node_name(pod).to_owned()).filter(|name| !name.is_empty());
    let ready = spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    let near_zone = || zone.clone().map(|name| vec![ForZone { name }]);
    let hints = match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") if ready => {
            near_zone().map(|zones| EndpointHints { for_zones: Some(zones), for_nodes: None })
        }
        Some("PreferSameNode") if ready => node_name
            .clone()
            .map(|name| EndpointHints { for_zones: near_zone(), for_nodes: Some(vec![ForNode { name }]) }),
        _ => None,
    };
    Some(Endpoint {
        addresses: found,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        deprecated_topology: None,
        hints,
        hostname: hostname(pod, service),
        node_name,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone,
    })
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(is_headless) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    labels
}

fn new_slice(service: &Service, family: &str, ports: Vec<EndpointPort>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: service.metadata.name.as_ref().map(|name| format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![reference_to(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(Vec::new()),
        ports: Some(ports),
    }
}

fn plan_family(
    service: &Service,
    pods: &[Arc<Pod>],
    node: &impl Fn(&str) -> Option<Arc<Node>>,
    slices: &[Arc<EndpointSlice>],
    family: &str,
    plan: &mut Plan,
) {
    let publishes_all = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let mut groups = BTreeMap::<String, (Vec<EndpointPort>, BTreeMap<String, Endpoint>)>::new();
    for pod in pods.iter().filter(|pod| counts(pod, true)) {
        let node = node(node_name(pod));
        if node.is_none() && !publishes_all {
            plan.incomplete = true;
            continue;
        }
        let Some(endpoint) = endpoint(service, pod, node.as_deref(), family) else { continue };
        let ports = ports(service, pod);
        let group = groups.entry(port_key(&ports)).or_insert_with(|| (ports, BTreeMap::new()));
        group.1.insert(identity(&endpoint), endpoint);
    }
    let mut by_ports = BTreeMap::<String, Vec<Arc<EndpointSlice>>>::new();
    for slice in slices {
        by_ports.entry(port_key(slice.ports.as_deref().unwrap_or_default())).or_default().push(slice.clone());
    }

    let mut create = Vec::new();
    let mut delete: Vec<Arc<EndpointSlice>> = Vec::new();
    let mut kept = 0;
    for (key, (ports, endpoints)) in groups {
        let existing = by_ports.remove(&key).unwrap_or_default();
        kept += fill(service, family, ports, endpoints, existing, plan, &mut create, &mut delete);
    }
    delete.extend(by_ports.into_values().flatten());

    if kept == 0 && create.is_empty() {
        // A service without endpoints keeps one empty slice.
        let empty = new_slice(service, family, Vec::new());
        match delete.iter().position(|slice| is_placeholder(slice, &empty)) {
            Some(at) => {
                delete.remove(at);
            }
            None => create.push(empty),
        }
    }
    // Rather change a slice than delete one and create another.
    for slice in delete {
        match create.pop() {
            Some(mut new) => {
                new.metadata.name = slice.metadata.name.clone();
                new.metadata.generate_name = None;
                new.metadata.resource_version = slice.metadata.resource_version.clone();
                plan.update.push(new);
            }
            None => plan.delete.extend(slice.metadata.name.clone()),
        }
    }
    plan.create.extend(create);
}

fn is_placeholder(slice: &EndpointSlice, empty: &EndpointSlice) -> bool {
    slice.endpoints.as_ref().is_none_or(|all| all.is_empty())
        && slice.ports.as_ref().is_none_or(|all| all.is_empty())
        && slice.metadata.labels == empty.metadata.labels
}

/// Distributes the endpoints of one set of ports; how many existing slices stay.
fn fill(
    service: &Service,
    family: &str,
    ports: Vec<EndpointPort>,
    mut wanted: BTreeMap<String, Endpoint>,
    existing: Vec<Arc<EndpointSlice>>,
    plan: &mut Plan,
    create: &mut Vec<EndpointSlice>,
    delete: &mut Vec<Arc<EndpointSlice>>,
) -> usize {
    let labels = labels(service);
    let mut changed = Vec::new();
    let mut unchanged = Vec::new();
    for slice in existing {
        let old = slice.endpoints.clone().unwrap_or_default();
        let new: Vec<Endpoint> =
            old.iter().filter_map(|endpoint| wanted.remove(&identity(endpoint))).collect();
        if new.is_empty() {
            delete.push(slice);
        } else if new != old || slice.metadata.labels.as_ref() != Some(&labels) {
            let mut copy = slice.as_ref().clone();
            copy.endpoints = Some(new);
            copy.metadata.labels = Some(labels.clone());
            changed.push(copy);
        } else {
            unchanged.push(slice);
        }
    }
    let mut wanted: Vec<Endpoint> = wanted.into_values().collect();
    let top_up = |slice: &mut EndpointSlice, wanted: &mut Vec<Endpoint>| {
        let endpoints = slice.endpoints.get_or_insert_default();
        let count = wanted.len().min(MOST.saturating_sub(endpoints.len()));
        endpoints.extend(wanted.drain(..count));
    };
    // The fullest first among those that must be written anyway.
    changed.sort_by_key(|slice| std::cmp::Reverse(slice.endpoints.as_ref().map_or(0, Vec::len)));
    for slice in &mut changed {
        top_up(slice, &mut wanted);
    }
    if !wanted.is_empty() {
        let room = |slice: &EndpointSlice| MOST.saturating_sub(slice.endpoints.as_ref().map_or(0, Vec::len));
        let fitting = unchanged.iter().enumerate().filter(|(_, slice)| room(slice) >= wanted.len());
        if let Some((at, _)) = fitting.min_by_key(|(_, slice)| room(slice)) {
            let mut copy = unchanged.remove(at).as_ref().clone();
            top_up(&mut copy, &mut wanted);
            changed.push(copy);
        }
    }
    while !wanted.is_empty() {
        let mut slice = new_slice(service, family, ports.clone());
        top_up(&mut slice, &mut wanted);
        create.push(slice);
    }
    let kept = changed.len() + unchanged.len();
    plan.update.extend(changed);
    kept
}

#[cfg(test)]
mod tests;
