use super::*;
use crate::{Step, diff};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn node() -> Node {
    Node {
        name: "one".into(),
        zone: Some("a".into()),
        pod_ranges: vec!["10.244.0.0/24".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()],
        service_ranges: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        served_here: vec!["10.96.0.10".parse().unwrap()],
    }
}

fn endpoint(address: &str, is_local: bool) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        port: 8080,
        ready: true,
        serving: true,
        terminating: false,
        is_local,
        node_hints: vec![],
        zone_hints: vec![],
    }
}

fn service(endpoints: Vec<Endpoint>) -> ServicePort {
    ServicePort {
        namespace: "default".into(),
        name: "web".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: 0,
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        external_local: false,
        internal_local: false,
        affinity: None,
        endpoints,
    }
}

/// What the table does with a new packet: the endpoints it may reach, or the fate that keeps it from any.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Endpoints(Vec<(IpAddr, u16)>),
    Rejected,
    Dropped,
    Untouched,
}

struct Packet {
    source: IpAddr,
    source_is_local: bool,
    destination: IpAddr,
    to_node: bool,
    port: u16,
}

/// A small evaluator of the table for one family and TCP.
fn follow(table: &Ruleset, packet: &Packet) -> Fate {
    let mut seen = Vec::new();
    if let Some(fate) = walk(table, "sources", packet, &mut seen) {
        return fate;
    }
    walk(table, "dispatch", packet, &mut seen);
    if !seen.is_empty() {
        seen.sort();
        seen.dedup();
        return Fate::Endpoints(seen);
    }
    for chain in ["missing-node-ports", "missing", "unknown"] {
        if let Some(fate) = walk(table, chain, packet, &mut seen) {
            return fate;
        }
    }
    Fate::Untouched
}

fn walk(table: &Ruleset, chain: &str, packet: &Packet, seen: &mut Vec<(IpAddr, u16)>) -> Option<Fate> {
    'rules: for rule in &table.chains[chain].rules {
        for statement in rule {
            let datum = |load: &Load| match load {
                Load::Source(_) => Datum::Address(packet.source),
                Load::Destination(_) => Datum::Address(packet.destination),
                Load::Protocol => Datum::Protocol(Protocol::Tcp),
                Load::DestinationPort => Datum::Port(packet.port),
                Load::Random(_) => Datum::Index(0),
            };
            let holds = match statement {
                Statement::Family(family) => *family == Family::of(packet.destination),
                Statement::Protocol(protocol) => *protocol == Protocol::Tcp,
                Statement::DestinationIsLocal => packet.to_node,
                Statement::SourceIsLocal => packet.source_is_local,
                Statement::InRange { load, range, negate } => {
                    let Datum::Address(address) = datum(load) else { unreachable!() };
                    range.contains(&address) != *negate
                }
                Statement::InSet { key, set } => {
                    let key: Vec<_> = key.iter().map(datum).collect();
                    table.sets[set].elements.contains_key(&key)
                }
                Statement::Dispatch { key, map } if matches!(key[..], [Load::Random(_)]) => {
                    for value in table.sets[map].elements.values() {
                        let Value::Verdict(Verdict::Goto(next)) = value else { unreachable!() };
                        walk(table, next, packet, seen);
                    }
                    return None;
                }
                Statement::Dispatch { key, map } => {
                    let key: Vec<_> = key.iter().map(datum).collect();
                    match table.sets[map].elements.get(&key) {
                        Some(Value::Verdict(Verdict::Goto(next))) => return walk(table, next, packet, seen),
                        Some(Value::Verdict(Verdict::Drop)) => return Some(Fate::Dropped),
                        Some(other) => panic!("{other:?}"),
                        None => true,
                    }
                }
                Statement::DnatTo(address, port) => {
                    seen.push((*address, *port));
                    true
                }
                Statement::DnatByMap { map, key, .. } => {
                    let elements = &table.sets[map].elements;
                    let Load::Random(modulus) = key[0] else { unreachable!() };
                    assert_eq!(elements.len(), modulus as usize, "every number leads somewhere");
                    assert!((0..modulus).all(|index| elements.contains_key(&vec![Datum::Index(index)])));
                    for value in elements.values() {
                        let Value::Target(address, port) = value else { unreachable!() };
                        seen.push((*address, *port));
                    }
                    true
                }
                Statement::Reject | Statement::Reset => return Some(Fate::Rejected),
                Statement::Verdict(Verdict::Drop) => return Some(Fate::Dropped),
                Statement::Verdict(Verdict::Return) => return None,
                Statement::Verdict(Verdict::Goto(next)) => return walk(table, next, packet, seen),
                Statement::Verdict(Verdict::Jump(next)) => match walk(table, next, packet, seen) {
                    Some(fate) => return Some(fate),
                    None => true,
                },
                _ => true,
            };
            if !holds {
                continue 'rules;
            }
        }
    }
    None
}

fn packet(source: &str, destination: &str, port: u16) -> Packet {
    Packet {
        source: source.parse().unwrap(),
        source_is_local: source.starts_with("192.0.2.1"),
        destination: destination.parse().unwrap(),
        to_node: destination.starts_with("192.0.2.1"),
        port,
    }
}

fn check(service: &ServicePort, source: &str, destination: &str, port: u16, expected: &[&str]) {
    let fate = follow(&services(&node(), [service]), &packet(source, destination, port));
    let expected: Vec<_> = expected.iter().map(|ip| (ip.parse().unwrap(), 8080)).collect();
    assert_eq!(fate, Fate::Endpoints(expected), "{source} -> {destination}:{port}");
}

fn refused(service: &ServicePort, source: &str, destination: &str, port: u16, expected: Fate) {
    let fate = follow(&services(&node(), [service]), &packet(source, destination, port));
    assert_eq!(fate, expected, "{source} -> {destination}:{port}");
}

const POD: &str = "10.244.0.9";
const HOST: &str = "192.0.2.1";
const OUTSIDE: &str = "198.51.100.7";

#[test]
fn a_cluster_address_leads_to_all_ready_endpoints() {
    let mut web = service(vec![endpoint("10.244.0.2", true), endpoint("10.244.1.2", false)]);
    check(&web, POD, "10.96.0.1", 80, &["10.244.0.2", "10.244.1.2"]);
    refused(&web, POD, "10.96.0.1", 81, Fate::Rejected);
    refused(&web, POD, "10.96.9.9", 80, Fate::Dropped);
    refused(&web, POD, "10.96.0.10", 53, Fate::Untouched);
    refused(&web, POD, OUTSIDE, 80, Fate::Untouched);
    web.endpoints[0].ready = false;
    check(&web, POD, "10.96.0.1", 80, &["10.244.1.2"]);
    web.endpoints[1].ready = false;
    refused(&web, POD, "10.96.0.1", 80, Fate::Rejected);
    web.endpoints[1].terminating = true;
    check(&web, POD, "10.96.0.1", 80, &["10.244.1.2"]);
    web.endpoints.clear();
    refused(&web, POD, "10.96.0.1", 80, Fate::Rejected);
}

#[test]
fn node_ports_and_external_addresses_under_both_policies() {
    let mut web = service(vec![endpoint("10.244.0.2", true), endpoint("10.244.1.2", false)]);
    web.node_port = 30080;
    web.external_ips = vec!["203.0.113.5".parse().unwrap()];
    web.load_balancer_ips = vec!["203.0.113.6".parse().unwrap()];
    for (address, port) in [(HOST, 30080), ("203.0.113.5", 80), ("203.0.113.6", 80)] {
        web.external_local = false;
        check(&web, OUTSIDE, address, port, &["10.244.0.2", "10.244.1.2"]);
        web.external_local = true;
        check(&web, OUTSIDE, address, port, &["10.244.0.2"]);
        check(&web, POD, address, port, &["10.244.0.2", "10.244.1.2"]);
        check(&web, HOST, address, port, &["10.244.0.2", "10.244.1.2"]);
        web.endpoints[0].is_local = false;
        refused(&web, OUTSIDE, address, port, Fate::Dropped);
        check(&web, POD, address, port, &["10.244.0.2", "10.244.1.2"]);
        web.endpoints[0].is_local = true;
    }
    web.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    check(&web, OUTSIDE, "203.0.113.6", 80, &["10.244.0.2"]);
    refused(&web, "198.51.101.1", "203.0.113.6", 80, Fate::Dropped);
    check(&web, "198.51.101.1", "203.0.113.5", 80, &["10.244.0.2"]);
    web.endpoints.clear();
    refused(&web, OUTSIDE, HOST, 30080, Fate::Rejected);
}

#[test]
fn internal_traffic_policy_local_drops_where_no_endpoint_is() {
    let mut web = service(vec![endpoint("10.244.0.2", true), endpoint("10.244.1.2", false)]);
    web.internal_local = true;
    check(&web, POD, "10.96.0.1", 80, &["10.244.0.2"]);
    web.endpoints[0].ready = false;
    refused(&web, POD, "10.96.0.1", 80, Fate::Dropped);
    web.endpoints[0].terminating = true;
    check(&web, POD, "10.96.0.1", 80, &["10.244.0.2"]);
    web.endpoints.clear();
    refused(&web, POD, "10.96.0.1", 80, Fate::Rejected);
}

#[test]
fn families_are_apart() {
    let mut web = service(vec![endpoint("10.244.0.2", true), endpoint("fd00:10:244::2", true)]);
    web.cluster_ips.push("fd00:10:96::1".parse().unwrap());
    check(&web, POD, "10.96.0.1", 80, &["10.244.0.2"]);
    check(&web, "fd00:10:244::9", "fd00:10:96::1", 80, &["fd00:10:244::2"]);
    refused(&web, "fd00:10:244::9", "fd00:10:96::1", 81, Fate::Rejected);
}

#[test]
fn hints_are_followed_only_if_complete() {
    let mut web = service(vec![endpoint("10.244.0.2", true), endpoint("10.244.1.2", false)]);
    web.endpoints[0].zone_hints = vec!["a".into()];
    check(&web, POD, "10.96.0.1", 80, &["10.244.0.2", "10.244.1.2"]);
    web.endpoints[1].zone_hints = vec!["b".into()];
    check(&web, POD, "10.96.0.1", 80, &["10.244.0.2"]);
    for endpoint in &mut web.endpoints {
        endpoint.node_hints = vec!["two".into()];
    }
    check(&web, POD, "10.96.0.1", 80, &["10.244.0.2"]);
    web.endpoints[1].node_hints = vec!["one".into()];
    check(&web, POD, "10.96.0.1", 80, &["10.244.1.2"]);
}

#[test]
fn affinity_remembers_clients_in_a_set_per_endpoint() {
    let mut web = service(vec![endpoint("10.244.0.2", true), endpoint("10.244.1.2", false)]);
    web.affinity = Some(Duration::from_secs(10800));
    check(&web, POD, "10.96.0.1", 80, &["10.244.0.2", "10.244.1.2"]);
    let table = services(&node(), [&web]);
    assert_eq!(table.sets.values().filter(|set| set.timeout == web.affinity).count(), 2);
    // A new time-out makes new sets, so the old ones go.
    let before = table;
    web.affinity = Some(Duration::from_secs(60));
    let steps = diff(&before, &services(&node(), [&web])).steps;
    assert!(steps.iter().filter(|step| matches!(step, Step::DeleteSet(_))).count() == 2);
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    (0u8..6, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0u8..3).prop_map(
        |(host, ready, serving, terminating, v6, hint)| Endpoint {
            address: if v6 {
                format!("fd00:10:244::{host}").parse().unwrap()
            } else {
                format!("10.244.0.{host}").parse().unwrap()
            },
            port: 8080,
            ready,
            serving,
            terminating,
            is_local: host % 2 == 0,
            node_hints: if hint == 1 { vec!["one".into()] } else { vec![] },
            zone_hints: if hint == 2 { vec!["a".into()] } else { vec![] },
        },
    )
}

fn any_service() -> impl Strategy<Value = ServicePort> {
    (
        0u8..4,
        any::<[bool; 5]>(),
        prop::collection::vec(any_endpoint(), 0..5),
        prop::option::of(1u64..3),
        prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
    )
        .prop_map(|(id, flags, endpoints, affinity, protocol)| ServicePort {
            name: format!("s{id}"),
            protocol,
            node_port: if flags[0] { 30000 + u16::from(id) } else { 0 },
            cluster_ips: vec![
                format!("10.96.1.{id}").parse().unwrap(),
                format!("fd00:10:96::1:{id}").parse().unwrap(),
            ],
            load_balancer_ips: if flags[1] { vec!["203.0.113.6".parse().unwrap()] } else { vec![] },
            source_ranges: if flags[2] { vec!["198.51.100.0/24".parse().unwrap()] } else { vec![] },
            external_local: flags[3],
            internal_local: flags[4],
            affinity: affinity.map(Duration::from_secs),
            ..service(endpoints)
        })
}

/// Applies steps the way the kernel does, and fails where it would.
fn apply(table: &Ruleset, steps: &[Step]) -> Ruleset {
    let mut now = table.clone();
    let points_to = |now: &Ruleset, chain: &str| {
        let text = format!("\"{chain}\"");
        now.chains
            .values()
            .flat_map(|c| &c.rules)
            .any(|rule| format!("{rule:?}").contains(&format!("to({text})")))
            || now.sets.values().flat_map(|set| set.elements.values()).any(
                |value| matches!(value, Value::Verdict(Verdict::Goto(to) | Verdict::Jump(to)) if to == chain),
            )
    };
    for step in steps {
        match step {
            Step::AddTable => {}
            Step::DeleteTable => now = Ruleset::new(now.table.as_str()),
            Step::AddChain(name, hook) => {
                let chain = crate::nft::Chain { hook: *hook, rules: vec![] };
                assert!(now.chains.insert(name.clone(), chain).is_none());
            }
            Step::AddSet(name, set) => assert!(now.sets.insert(name.clone(), set.clone()).is_none()),
            Step::AddElements(name, elements) => {
                for (key, value) in elements {
                    if let Value::Verdict(Verdict::Goto(to)) = value {
                        assert!(now.chains.contains_key(to), "{to} does not exist yet");
                    }
                    let set = now.sets.get_mut(name).expect("set exists");
                    assert!(set.elements.insert(key.clone(), value.clone()).is_none());
                }
            }
            Step::DeleteElements(name, keys) => {
                for key in keys {
                    let set = now.sets.get_mut(name).expect("set exists");
                    assert!(set.elements.remove(key).is_some());
                }
            }
            Step::FlushChain(name) => now.chains.get_mut(name).expect("chain exists").rules.clear(),
            Step::AddRule(name, rule) => {
                now.chains.get_mut(name).expect("chain exists").rules.push(rule.clone());
            }
            Step::DeleteChain(name) => {
                assert!(!points_to(&now, name), "{name} is still in use");
                assert!(now.chains.remove(name).expect("chain exists").rules.is_empty());
            }
            Step::DeleteSet(name) => {
                let used = format!("{:?}", now.chains).contains(&format!("\"{name}\""));
                assert!(!used, "{name} is still in use");
                now.sets.remove(name).expect("set exists");
            }
        }
    }
    now
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_difference_leads_from_the_old_to_the_new(
        old in prop::collection::vec(any_service(), 0..5),
        new in prop::collection::vec(any_service(), 0..5),
    ) {
        let unique = |list: Vec<ServicePort>| -> BTreeMap<_, _> {
            list.into_iter().map(|port| ((port.name.clone(), port.protocol), port)).collect()
        };
        let (old, new) = (unique(old), unique(new));
        let old = services(&node(), old.values());
        let new = services(&node(), new.values());
        let steps = diff(&old, &new).steps;
        prop_assert_eq!(&apply(&old, &steps), &new);
        prop_assert!(diff(&new, &new).is_empty());
        prop_assert_eq!(&apply(&old, &crate::Transaction::replace(&new).steps), &new);
    }
}
