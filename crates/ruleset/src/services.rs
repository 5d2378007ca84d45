//! Services and their endpoints to the table that routes them. Behaviour follows upstream's kube-proxy (`pkg/proxy/topology.go` for the
//! choice of endpoints, `pkg/proxy/nftables` for policies and what is rejected or dropped).
//!
//! The path of a packet: one look-up in a verdict map by destination, protocol and port leads to the service's own chain, where one random
//! number picks an entry of the service's own map of endpoints.

use crate::endpoints::{Choice, Endpoint, choose};
use crate::nft::{Datum, Field, Holds, HookKind, HookPoint, Load, Rule, Ruleset, Statement, Value, Verdict};
use crate::{Family, Protocol, SERVICES_TABLE};
use ipnet::IpNet;
use std::net::IpAddr;
use std::time::Duration;

/// The mark of packets that are to be masqueraded, the same bit as upstream's.
const MASQUERADE: u32 = 0x4000;
const DNAT: i32 = -100;
const SNAT: i32 = 100;

/// What the rules depend on besides services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name, as in endpoints' hints.
    pub name: String,
    /// Zone, if the node has that label.
    pub zone: Option<String>,
    /// Ranges whose addresses are local pods. Without one of a family, no source counts as local.
    pub pod_ranges: Vec<IpNet>,
    /// The ranges that service addresses come from: what is in them and belongs to no service is dropped.
    pub service_ranges: Vec<IpNet>,
    /// Service addresses that a server on this node answers itself (cluster DNS): they are let through.
    pub served_here: Vec<IpAddr>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Namespace.
    pub namespace: String,
    /// Name of the service.
    pub name: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
    /// Node port, 0 if none.
    pub node_port: u16,
    /// Cluster addresses, at most one per family.
    pub cluster_ips: Vec<IpAddr>,
    /// External addresses.
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses that are to be served by the node (`ipMode: VIP`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// If not empty, load balancer addresses answer only these.
    pub source_ranges: Vec<IpNet>,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// Session affinity by client address, with its time-out.
    pub affinity: Option<Duration>,
    /// Endpoints of both families.
    pub endpoints: Vec<Endpoint>,
}

impl ServicePort {
    /// Whether it has other ways in than its cluster addresses.
    pub fn is_external(&self) -> bool {
        self.node_port != 0 || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    fn chain(&self, family: Family, part: &str) -> String {
        let Self { namespace, name, protocol, port, .. } = self;
        format!("{part}/{namespace}/{name}/{}/{port}/{}", protocol.name(), family.name())
    }
}

fn of(family: Family, addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| Family::of(*address) == family)
}

fn ranges_of(family: Family, ranges: &[IpNet]) -> impl Iterator<Item = IpNet> {
    ranges.iter().copied().filter(move |range| Family::of(range.addr()) == family)
}

fn name(base: &str, family: Family) -> String {
    format!("{base}-{}", family.name())
}

fn goto(chain: impl Into<String>) -> Verdict {
    Verdict::Goto(chain.into())
}

/// The whole table.
pub fn services<'a>(node: &Node, ports: impl IntoIterator<Item = &'a ServicePort>) -> Ruleset {
    let mut table = Ruleset::new(SERVICES_TABLE);
    frame(&mut table, node);
    for port in ports {
        for family in Family::BOTH {
            add(&mut table, node, port, family);
        }
    }
    table
}

/// Everything that is there without any service.
fn frame(table: &mut Ruleset, node: &Node) {
    use HookKind::{Filter, Nat};
    let (mut dispatch, mut missing, mut missing_ports, mut unknown, mut sources) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut masquerade: Vec<Rule> =
        vec![vec![Statement::Marked(MASQUERADE), Statement::ClearMark(MASQUERADE), Statement::Masquerade]];
    for family in Family::BOTH {
        let address = Field::Address(family);
        let by_address = [address, Field::Protocol, Field::Port];
        let by_port = [Field::Protocol, Field::Port];
        table.set(name("services", family), &by_address, Holds::Verdict);
        table.set(name("node-ports", family), &by_port, Holds::Verdict);
        table.set(name("no-endpoints", family), &by_address, Holds::Verdict);
        table.set(name("no-endpoint-node-ports", family), &by_port, Holds::Verdict);
        table.set(name("cluster-ips", family), &[address], Holds::Nothing);
        table.set(name("source-checks", family), &by_address, Holds::Verdict);
        table.set(name("hairpin", family), &[address, address], Holds::Nothing);

        let to = Load::Destination(family);
        let destination = vec![to, Load::Protocol, Load::DestinationPort];
        let port = vec![Load::Protocol, Load::DestinationPort];
        let look_up = |key: &Vec<Load>, map: &str| {
            vec![Statement::Family(family), Statement::Dispatch { key: key.clone(), map: name(map, family) }]
        };
        let here = |map: &str| {
            let mut rule = vec![Statement::Family(family), Statement::DestinationIsLocal];
            if family == Family::V6 {
                // A packet to ::1 cannot be led elsewhere; one to 127.0.0.1 can, where route_localnet is on.
                let range = "::1/128".parse().expect("a literal range");
                rule.push(Statement::InRange { load: to, range, negate: true });
            }
            rule.push(Statement::Dispatch { key: port.clone(), map: name(map, family) });
            rule
        };
        // Traffic to cluster addresses from outside the cluster may leave over another node, so it must come back here.
        let mut foreign = vec![
            Statement::Family(family),
            Statement::InSet { key: vec![to], set: name("cluster-ips", family) },
        ];
        let locals: Vec<_> = ranges_of(family, &node.pod_ranges).collect();
        if !locals.is_empty() {
            foreign.extend(locals.iter().map(|range| Statement::InRange {
                load: Load::Source(family),
                range: *range,
                negate: true,
            }));
            foreign.push(Statement::SetMark(MASQUERADE));
            dispatch.push(foreign);
        }
        dispatch.push(look_up(&destination, "services"));
        dispatch.push(here("node-ports"));
        missing.push(look_up(&destination, "no-endpoints"));
        missing_ports.push(here("no-endpoint-node-ports"));
        sources.push(look_up(&destination, "source-checks"));
        unknown.push(vec![
            Statement::Family(family),
            Statement::InSet { key: vec![to], set: name("cluster-ips", family) },
            Statement::Verdict(goto("reject")),
        ]);
        for range in ranges_of(family, &node.service_ranges) {
            let mut rule =
                vec![Statement::Family(family), Statement::InRange { load: to, range, negate: false }];
            rule.extend(of(family, &node.served_here).map(|address| Statement::InRange {
                load: to,
                range: IpNet::from(address),
                negate: true,
            }));
            rule.push(Statement::Verdict(Verdict::Drop));
            unknown.push(rule);
        }
        masquerade.push(vec![
            Statement::Family(family),
            Statement::Translated,
            Statement::InSet {
                key: vec![Load::Source(family), Load::Destination(family)],
                set: name("hairpin", family),
            },
            Statement::Masquerade,
        ]);
    }
    // A connection of the host to a node port on 127.0.0.1 must not leave with that address.
    let loopback: IpNet = "127.0.0.0/8".parse().expect("a literal range");
    masquerade.push(vec![
        Statement::Family(Family::V4),
        Statement::Translated,
        Statement::InRange { load: Load::Source(Family::V4), range: loopback, negate: false },
        Statement::InRange { load: Load::Destination(Family::V4), range: loopback, negate: true },
        Statement::Masquerade,
    ]);
    table.chain("dispatch", dispatch);
    table.chain("missing", missing);
    table.chain("missing-node-ports", missing_ports);
    table.chain("unknown", unknown);
    table.chain("sources", sources);
    // A reset ends a connection attempt of the host itself at once; an ICMP error there only the second one, a second later.
    let reset = vec![Statement::Protocol(Protocol::Tcp), Statement::Reset];
    table.chain("reject", vec![reset, vec![Statement::Reject]]);
    let jump = |chain: &str| vec![Statement::Verdict(Verdict::Jump(chain.into()))];
    let new = |chain: &str| vec![Statement::New, Statement::Verdict(Verdict::Jump(chain.into()))];
    for (chain, point) in
        [("sources-prerouting", HookPoint::Prerouting), ("sources-output", HookPoint::Output)]
    {
        table.base(chain, Filter, point, DNAT - 10, vec![new("sources")]);
    }
    table.base("input", Filter, HookPoint::Input, 0, vec![new("missing-node-ports"), new("missing")]);
    table.base("forward", Filter, HookPoint::Forward, 0, vec![new("missing"), new("unknown")]);
    table.base("output", Filter, HookPoint::Output, 0, vec![new("missing"), new("unknown")]);
    table.base("nat-prerouting", Nat, HookPoint::Prerouting, DNAT, vec![jump("dispatch")]);
    table.base("nat-output", Nat, HookPoint::Output, DNAT, vec![jump("dispatch")]);
    table.base("nat-postrouting", Nat, HookPoint::Postrouting, SNAT, masquerade);
}

/// Adds one port of a service, for one family.
fn add(table: &mut Ruleset, node: &Node, service: &ServicePort, family: Family) {
    let served_here = |address: &IpAddr| node.served_here.contains(address);
    let cluster: Vec<IpAddr> =
        of(family, &service.cluster_ips).filter(|address| !served_here(address)).collect();
    let balancers: Vec<IpAddr> = of(family, &service.load_balancer_ips).collect();
    let outside: Vec<IpAddr> = of(family, &service.external_ips).chain(balancers.iter().copied()).collect();
    // A service has node ports only in its own families.
    let node_port =
        of(family, &service.cluster_ips).next().and(Some(service.node_port)).filter(|port| *port != 0);
    if cluster.is_empty() && outside.is_empty() && node_port.is_none() {
        return;
    }
    let endpoints: Vec<&Endpoint> =
        service.endpoints.iter().filter(|endpoint| Family::of(endpoint.address) == family).collect();
    // Pods and the host itself reach external addresses under the cluster policy, so a Local one needs both lists.
    let uses_cluster = !service.internal_local || service.is_external();
    let uses_local = service.internal_local || (service.is_external() && service.external_local);
    let choice = choose(&endpoints, &node.name, node.zone.as_deref(), uses_cluster, uses_local);
    let some = choice.any;

    let all = write_endpoints(table, service, family, "cluster", &choice.cluster);
    let local = write_endpoints(table, service, family, "local", &choice.local);
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_local) {
        table.element(&name("hairpin", family), vec![Datum::Address(endpoint.address); 2], Value::Nothing);
    }
    write_affinity(table, service, family, &choice);

    let refusal = |policy_local: bool| if some && policy_local { Verdict::Drop } else { goto("reject") };
    let key = |address: IpAddr| {
        vec![Datum::Address(address), Datum::Protocol(service.protocol), Datum::Port(service.port)]
    };
    let internal = if service.internal_local { &local } else { &all };
    for &address in &cluster {
        table.element(&name("cluster-ips", family), vec![Datum::Address(address)], Value::Nothing);
        match internal {
            Some(chain) => {
                table.element(&name("services", family), key(address), Value::Verdict(goto(chain)));
            }
            None => {
                let verdict = refusal(service.internal_local);
                table.element(&name("no-endpoints", family), key(address), Value::Verdict(verdict));
            }
        }
    }
    if outside.is_empty() && node_port.is_none() {
        return;
    }
    let external = if service.external_local { &local } else { &all };
    let port_key = |port: u16| vec![Datum::Protocol(service.protocol), Datum::Port(port)];
    if some {
        let chain = service.chain(family, "external");
        let rules = external_rules(node, service, family, all.as_deref(), external.as_deref());
        table.chain(chain.clone(), rules);
        let verdict = || Value::Verdict(goto(&chain));
        for &address in &outside {
            table.element(&name("services", family), key(address), verdict());
        }
        if let Some(port) = node_port {
            table.element(&name("node-ports", family), port_key(port), verdict());
        }
    }
    if external.is_none() {
        let verdict = || Value::Verdict(refusal(service.external_local));
        for &address in &outside {
            table.element(&name("no-endpoints", family), key(address), verdict());
        }
        if let Some(port) = node_port {
            table.element(&name("no-endpoint-node-ports", family), port_key(port), verdict());
        }
    }
    if !balancers.is_empty() && !service.source_ranges.is_empty() {
        let chain = service.chain(family, "sources");
        let mut rules: Vec<Rule> = ranges_of(family, &service.source_ranges)
            .map(|range| {
                let load = Load::Source(family);
                vec![Statement::InRange { load, range, negate: false }, Statement::Verdict(Verdict::Return)]
            })
            .collect();
        // A request of this node to the address may carry that address as its source.
        rules.extend(balancers.iter().map(|address| {
            let load = Load::Source(family);
            vec![
                Statement::InRange { load, range: IpNet::from(*address), negate: false },
                Statement::Verdict(Verdict::Return),
            ]
        }));
        rules.push(vec![Statement::Verdict(Verdict::Drop)]);
        table.chain(chain.clone(), rules);
        for &address in &balancers {
            table.element(&name("source-checks", family), key(address), Value::Verdict(goto(&chain)));
        }
    }
}

/// What happens to traffic from outside before an endpoint is chosen.
fn external_rules(
    node: &Node,
    service: &ServicePort,
    family: Family,
    all: Option<&str>,
    chosen: Option<&str>,
) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    if service.external_local {
        if let Some(all) = all {
            // As if it had gone out to a load balancer and come back.
            rules.extend(ranges_of(family, &node.pod_ranges).map(|range| {
                let load = Load::Source(family);
                vec![Statement::InRange { load, range, negate: false }, Statement::Verdict(goto(all))]
            }));
            rules.push(vec![Statement::SourceIsLocal, Statement::SetMark(MASQUERADE)]);
            rules.push(vec![Statement::SourceIsLocal, Statement::Verdict(goto(all))]);
        }
    } else {
        // The endpoint may be on another node, and its answer must come by this one.
        rules.push(vec![Statement::SetMark(MASQUERADE)]);
    }
    rules.extend(chosen.map(|chain| vec![Statement::Verdict(goto(chain))]));
    rules
}

/// The chain that picks one of `endpoints`; `None` if there is none.
fn write_endpoints(
    table: &mut Ruleset,
    service: &ServicePort,
    family: Family,
    policy: &str,
    endpoints: &[&Endpoint],
) -> Option<String> {
    if endpoints.is_empty() {
        return None;
    }
    let chain = service.chain(family, policy);
    let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
    let map = format!("{chain}/endpoints");
    let key = vec![Load::Random(count)];
    let protocol = Statement::Protocol(service.protocol);
    if service.affinity.is_some() {
        let mut rules: Vec<Rule> = Vec::new();
        table.set(map.as_str(), &[Field::Index], Holds::Verdict);
        for (index, endpoint) in (0..count).zip(endpoints) {
            let own = endpoint_name(service, family, endpoint);
            rules.push(vec![
                Statement::InSet { key: vec![Load::Source(family)], set: affinity_set(service, &own) },
                Statement::Verdict(goto(own.as_str())),
            ]);
            table.element(&map, vec![Datum::Index(index)], Value::Verdict(goto(own)));
        }
        rules.push(vec![Statement::Dispatch { key, map }]);
        table.chain(chain.clone(), rules);
        return Some(chain);
    }
    let rule = match endpoints {
        [only] => vec![protocol, Statement::DnatTo(only.address, only.port)],
        _ => {
            table.set(map.as_str(), &[Field::Index], Holds::Target(family));
            for (index, endpoint) in (0..count).zip(endpoints) {
                let value = Value::Target(endpoint.address, endpoint.port);
                table.element(&map, vec![Datum::Index(index)], value);
            }
            vec![protocol, Statement::DnatByMap { family, key, map }]
        }
    };
    table.chain(chain.clone(), vec![rule]);
    Some(chain)
}

fn endpoint_name(service: &ServicePort, family: Family, endpoint: &Endpoint) -> String {
    // Colons are not for names that nft(8) is to show.
    let address = endpoint.address.to_string().replace(':', "-");
    format!("{}/{address}/{}", service.chain(family, "endpoint"), endpoint.port)
}

/// The time-out is part of the name, since a set cannot change it.
fn affinity_set(service: &ServicePort, endpoint: &str) -> String {
    format!("{endpoint}/clients-{}", service.affinity.unwrap_or_default().as_secs())
}

/// With affinity each endpoint has a chain of its own that remembers the client.
fn write_affinity(table: &mut Ruleset, service: &ServicePort, family: Family, choice: &Choice<'_>) {
    let Some(timeout) = service.affinity else { return };
    for endpoint in choice.cluster.iter().chain(&choice.local) {
        let own = endpoint_name(service, family, endpoint);
        if table.chains.contains_key(&own) {
            continue;
        }
        let set = affinity_set(service, &own);
        table.set(set.as_str(), &[Field::Address(family)], Holds::Nothing);
        if let Some(set) = table.sets.get_mut(&set) {
            set.timeout = Some(timeout);
        }
        table.chain(
            own,
            vec![
                vec![Statement::Remember { key: vec![Load::Source(family)], set }],
                vec![
                    Statement::Protocol(service.protocol),
                    Statement::DnatTo(endpoint.address, endpoint.port),
                ],
            ],
        );
    }
}

#[cfg(test)]
mod tests;
