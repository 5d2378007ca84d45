//! What the watches have told, and what follows from it.

use crate::ProxyConfig;
use k8s_openapi::api::core::v1::{Node, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointSlice};
use kube::runtime::watcher::Event;
use network::Flow;
use ruleset::{Endpoint, Protocol, Ruleset, ServicePort};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Namespace and name.
pub(crate) type Key = (String, String);

/// A service that a load balancer probes on a port of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HealthCheck {
    pub(crate) service: Key,
    pub(crate) port: u16,
    pub(crate) local_endpoints: usize,
}

/// An endpoint slice, by port name and protocol.
type Slice = Vec<((String, Protocol), Vec<Endpoint>)>;

pub(crate) struct State {
    node: ruleset::Node,
    /// Pod ranges were configured and do not come from the Node object.
    fixed_ranges: bool,
    services: BTreeMap<Key, Vec<(String, ServicePort)>>,
    checks: BTreeMap<Key, u16>,
    slices: BTreeMap<Key, BTreeMap<String, Slice>>,
    /// Which watches have delivered all there was at their start.
    complete: [bool; 3],
    /// Objects of a list that is being received, by watch.
    fresh: [HashSet<Key>; 2],
    udp_changed: bool,
}

impl State {
    pub(crate) fn new(config: &ProxyConfig) -> Self {
        Self {
            node: ruleset::Node {
                name: config.node_name.clone(),
                zone: None,
                pod_ranges: config.pod_ranges.clone(),
                service_ranges: config.service_ranges.clone(),
                served_here: config.served_here.clone(),
            },
            fixed_ranges: !config.pod_ranges.is_empty(),
            services: BTreeMap::new(),
            checks: BTreeMap::new(),
            slices: BTreeMap::new(),
            complete: [false; 3],
            fresh: Default::default(),
            udp_changed: true,
        }
    }

    /// Before that, rules would cut off services that are only not known yet.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete == [true; 3]
    }

    pub(crate) fn services(&mut self, event: Event<Service>) {
        match event {
            Event::Init => self.fresh[0].clear(),
            Event::Apply(service) => self.put_service(&service),
            Event::InitApply(service) => {
                self.fresh[0].insert(key_of(&service));
                self.put_service(&service);
            }
            Event::InitDone => {
                let fresh = std::mem::take(&mut self.fresh[0]);
                self.services.retain(|key, _| fresh.contains(key));
                self.checks.retain(|key, _| fresh.contains(key));
                self.complete[0] = true;
            }
            Event::Delete(service) => {
                self.services.remove(&key_of(&service));
                self.checks.remove(&key_of(&service));
            }
        }
    }

    pub(crate) fn slices(&mut self, event: Event<EndpointSlice>) {
        match event {
            Event::Init => self.fresh[1].clear(),
            Event::Apply(slice) => self.put_slice(&slice),
            Event::InitApply(slice) => {
                self.fresh[1].insert(key_of(&slice));
                self.put_slice(&slice);
            }
            Event::InitDone => {
                let fresh = std::mem::take(&mut self.fresh[1]);
                for ((namespace, _), slices) in &mut self.slices {
                    slices.retain(|name, _| fresh.contains(&(namespace.clone(), name.clone())));
                }
                self.slices.retain(|_, slices| !slices.is_empty());
                self.complete[1] = true;
                self.udp_changed = true;
            }
            Event::Delete(slice) => {
                let (namespace, name) = key_of(&slice);
                // The label may have changed; the name has not.
                for ((owner, _), slices) in &mut self.slices {
                    if *owner == namespace && slices.remove(&name).is_some() {
                        self.udp_changed = true;
                    }
                }
                self.slices.retain(|_, slices| !slices.is_empty());
            }
        }
    }

    pub(crate) fn node(&mut self, event: Event<Node>) {
        match event {
            Event::Apply(node) | Event::InitApply(node) => {
                self.node.zone = node.metadata.labels.unwrap_or_default().remove(ZONE);
                if !self.fixed_ranges {
                    let spec = node.spec.unwrap_or_default();
                    let mut ranges = spec.pod_cidrs.unwrap_or_default();
                    if ranges.is_empty() {
                        ranges.extend(spec.pod_cidr);
                    }
                    self.node.pod_ranges = ranges.iter().filter_map(|range| range.parse().ok()).collect();
                }
            }
            // The node may register after the proxy has started.
            Event::InitDone => self.complete[2] = true,
            Event::Init | Event::Delete(_) => {}
        }
    }

    fn put_service(&mut self, service: &Service) {
        let key = key_of(service);
        let ports = ports_of(service);
        self.udp_changed |= ports.iter().any(|(_, port)| port.protocol == Protocol::Udp);
        let spec = service.spec.as_ref();
        let check = spec.and_then(|spec| spec.health_check_node_port).filter(|_| {
            spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer") && external_local(spec))
        });
        match check.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0) {
            Some(port) => drop(self.checks.insert(key.clone(), port)),
            None => drop(self.checks.remove(&key)),
        }
        if ports.is_empty() {
            self.services.remove(&key);
        } else {
            self.services.insert(key, ports);
        }
    }

    fn put_slice(&mut self, slice: &EndpointSlice) {
        let (namespace, name) = key_of(slice);
        let Some(service) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) else {
            return;
        };
        let parsed = slice_of(slice, &self.node.name);
        self.udp_changed |= parsed.iter().any(|((_, protocol), _)| *protocol == Protocol::Udp);
        self.slices.entry((namespace, service.clone())).or_default().insert(name, parsed);
    }

    /// The table that is to be in force.
    pub(crate) fn ruleset(&self) -> Ruleset {
        let ports: Vec<ServicePort> = self
            .services
            .iter()
            .flat_map(|(key, ports)| {
                ports.iter().map(move |(name, port)| ServicePort {
                    endpoints: self.endpoints(key, name, port.protocol),
                    ..port.clone()
                })
            })
            .collect();
        ruleset::services(&self.node, &ports)
    }

    /// Endpoints of a port, each address once: where slices disagree, one that is not ending wins.
    fn endpoints(&self, service: &Key, port: &str, protocol: Protocol) -> Vec<Endpoint> {
        let mut found: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
        for slice in self.slices.get(service).into_iter().flat_map(BTreeMap::values) {
            for ((name, known), endpoints) in slice {
                if name != port || *known != protocol {
                    continue;
                }
                for endpoint in endpoints {
                    let place = (endpoint.address, endpoint.port);
                    if !endpoint.terminating || !found.contains_key(&place) {
                        found.insert(place, endpoint);
                    }
                }
            }
        }
        found.into_values().cloned().collect()
    }

    pub(crate) fn health_checks(&self) -> Vec<HealthCheck> {
        self.checks
            .iter()
            .map(|(service, port)| {
                let local: BTreeSet<IpAddr> = self
                    .slices
                    .get(service)
                    .into_iter()
                    .flat_map(BTreeMap::values)
                    .flatten()
                    .flat_map(|(_, endpoints)| endpoints)
                    .filter(|endpoint| endpoint.is_local && endpoint.ready)
                    .map(|endpoint| endpoint.address)
                    .collect();
                HealthCheck { service: service.clone(), port: *port, local_endpoints: local.len() }
            })
            .collect()
    }

    /// Whether UDP services or endpoints changed since the last call.
    pub(crate) fn take_udp_change(&mut self) -> bool {
        std::mem::take(&mut self.udp_changed)
    }

    /// Where UDP clients send to, and who may answer there.
    pub(crate) fn udp_frontends(&self) -> Frontends {
        let mut frontends = Frontends::default();
        for (key, ports) in &self.services {
            for (name, port) in ports.iter().filter(|(_, port)| port.protocol == Protocol::Udp) {
                let serving: HashSet<SocketAddr> = self
                    .endpoints(key, name, Protocol::Udp)
                    .iter()
                    .filter(|endpoint| endpoint.serving)
                    .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
                    .collect();
                // Without any endpoint, an entry does no harm and another may come back.
                if serving.is_empty() {
                    continue;
                }
                let addresses =
                    port.cluster_ips.iter().chain(&port.external_ips).chain(&port.load_balancer_ips);
                for address in addresses {
                    frontends.addresses.insert(SocketAddr::new(*address, port.port), serving.clone());
                }
                if port.node_port != 0 {
                    frontends.node_ports.insert(port.node_port, serving);
                }
            }
        }
        frontends
    }
}

/// See [`State::udp_frontends`].
#[derive(Debug, Default)]
pub(crate) struct Frontends {
    addresses: HashMap<SocketAddr, HashSet<SocketAddr>>,
    node_ports: HashMap<u16, HashSet<SocketAddr>>,
}

impl Frontends {
    pub(crate) fn is_stale(&self, flow: &Flow) -> bool {
        let wrong = |serving: &HashSet<SocketAddr>| !serving.contains(&flow.answerer);
        self.addresses.get(&flow.destination).is_some_and(wrong)
            || self.node_ports.get(&flow.destination.port()).is_some_and(wrong)
    }
}

fn key_of<K: kube::Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn external_local(spec: &ServiceSpec) -> bool {
    spec.external_traffic_policy.as_deref() == Some("Local")
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// The ports of a service with their names, without endpoints; none if it needs no proxy.
fn ports_of(service: &Service) -> Vec<(String, ServicePort)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let headless = matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    if headless || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let (namespace, name) = key_of(service);
    let cluster_ips = match &spec.cluster_ips {
        Some(list) if !list.is_empty() => addresses(list),
        _ => addresses(&spec.cluster_ip),
    };
    let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let balancers = ingress
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"))
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect();
    let mut source_ranges: Vec<ipnet::IpNet> = spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .filter_map(|range| range.trim().parse().ok())
        .collect();
    // A range of all addresses is the same as none, for its family.
    for any in source_ranges.clone().iter().filter(|range| range.prefix_len() == 0) {
        source_ranges.retain(|range| range.addr().is_ipv4() != any.addr().is_ipv4());
    }
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|client| client.timeout_seconds).unwrap_or(10800);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(10800))
    });
    let base = ServicePort {
        namespace,
        name,
        protocol: Protocol::Tcp,
        port: 0,
        node_port: 0,
        cluster_ips,
        external_ips: addresses(spec.external_ips.iter().flatten()),
        load_balancer_ips: balancers,
        source_ranges,
        external_local: external_local(spec),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        affinity,
        endpoints: Vec::new(),
    };
    let number = |port: i32| u16::try_from(port).unwrap_or(0);
    spec.ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let protocol = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP"))?;
            let own = ServicePort {
                protocol,
                port: number(port.port),
                node_port: port.node_port.map_or(0, number),
                ..base.clone()
            };
            Some((port.name.clone().unwrap_or_default(), own))
        })
        .collect()
}

fn slice_of(slice: &EndpointSlice, node: &str) -> Slice {
    let mut parsed = Slice::new();
    if slice.address_type == "FQDN" {
        return parsed;
    }
    for port in slice.ports.iter().flatten() {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref().unwrap_or("TCP")) else { continue };
        let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) else { continue };
        let endpoints = slice
            .endpoints
            .iter()
            .flatten()
            .filter_map(|endpoint| {
                let EndpointConditions { ready, serving, terminating } =
                    endpoint.conditions.clone().unwrap_or_default();
                let hints = endpoint.hints.clone().unwrap_or_default();
                Some(Endpoint {
                    address: endpoint.addresses.first()?.parse().ok()?,
                    port: number,
                    ready: ready.unwrap_or(true),
                    serving: serving.unwrap_or(true),
                    terminating: terminating.unwrap_or(false),
                    is_local: endpoint.node_name.as_deref() == Some(node),
                    node_hints: hints.for_nodes.into_iter().flatten().map(|hint| hint.name).collect(),
                    zone_hints: hints.for_zones.into_iter().flatten().map(|hint| hint.name).collect(),
                })
            })
            .collect();
        parsed.push(((port.name.clone().unwrap_or_default(), protocol), endpoints));
    }
    parsed
}
