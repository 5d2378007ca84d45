//! The table of the pod network: host ports, masquerading of what leaves the cluster, and the guard of the host's loopback range.

use crate::pods::HostPort;
use ipnet::IpNet;
use ruleset::Family::{self, V4, V6};
use ruleset::Ruleset;
use ruleset::nft::{Datum, Field, Holds, HookKind, HookPoint, Key, Load, Rule, Statement, Value, Verdict};
use std::net::IpAddr;

/// Name of the table.
pub(crate) const TABLE: &str = "carrack-pods";
const DNAT: i32 = -100;
const SNAT: i32 = 100;
/// After connection tracking, before destination NAT.
const MANGLE: i32 = -150;

fn loopback(family: Family) -> IpNet {
    match family {
        V4 => "127.0.0.0/8",
        V6 => "::1/128",
    }
    .parse()
    .expect("a literal range")
}

/// The rules for pods in `ranges`, without any host port or pod yet.
pub(crate) fn table(ranges: &[IpNet], cluster_ranges: &[IpNet]) -> Ruleset {
    let mut table = Ruleset::new(TABLE);
    let mut host_ports: Vec<Rule> = Vec::new();
    let mut leaving: Vec<Rule> = Vec::new();
    for family in Family::BOTH {
        let address = Field::Address(family);
        table.set(one_address_map(family), &[address, Field::Protocol, Field::Port], Holds::Target(family));
        table.set(all_addresses_map(family), &[Field::Protocol, Field::Port], Holds::Target(family));
        table.set(hairpin_set(family), &[address, address], Holds::Nothing);
        host_ports.push(vec![
            Statement::Family(family),
            Statement::DnatByMap {
                family,
                key: vec![Load::Destination(family), Load::Protocol, Load::DestinationPort],
                map: one_address_map(family).into(),
            },
        ]);
        let mut everywhere = vec![Statement::Family(family), Statement::DestinationIsLocal];
        if family == V6 {
            // There is no route_localnet for IPv6: a packet to ::1 cannot leave the host.
            everywhere.push(Statement::InRange {
                load: Load::Destination(V6),
                range: loopback(V6),
                negate: true,
            });
        }
        everywhere.push(Statement::DnatByMap {
            family,
            key: vec![Load::Protocol, Load::DestinationPort],
            map: all_addresses_map(family).into(),
        });
        host_ports.push(everywhere);
        leaving.push(vec![
            Statement::Family(family),
            Statement::Translated,
            Statement::InSet {
                key: vec![Load::Source(family), Load::Destination(family)],
                set: hairpin_set(family).into(),
            },
            Statement::Masquerade,
        ]);
        for range in ranges.iter().filter(|range| Family::of(range.addr()) == family) {
            let multicast: IpNet =
                if family == V4 { "224.0.0.0/4" } else { "ff00::/8" }.parse().expect("a literal range");
            let inside = [*range, multicast];
            let mut rule = vec![
                Statement::Family(family),
                Statement::InRange { load: Load::Source(family), range: *range, negate: false },
            ];
            let stay =
                cluster_ranges.iter().filter(|range| Family::of(range.addr()) == family).chain(&inside);
            rule.extend(stay.map(|range| Statement::InRange {
                load: Load::Destination(family),
                range: *range,
                negate: true,
            }));
            rule.push(Statement::Masquerade);
            leaving.push(rule);
        }
    }
    // A connection of the host to 127.0.0.1 that was led to a pod must carry an address that the pod can answer.
    leaving.push(vec![
        Statement::Family(V4),
        Statement::InRange { load: Load::Source(V4), range: loopback(V4), negate: false },
        Statement::InRange { load: Load::Destination(V4), range: loopback(V4), negate: true },
        Statement::Masquerade,
    ]);
    // With route_localnet on, nothing else keeps a neighbour from talking to servers on 127.0.0.1.
    let guard = [Load::Source(V4), Load::Destination(V4)].map(|load| {
        vec![
            Statement::Family(V4),
            Statement::FromLoopback(false),
            Statement::InRange { load, range: loopback(V4), negate: false },
            Statement::Verdict(Verdict::Drop),
        ]
    });
    table.base("guard", HookKind::Filter, HookPoint::Prerouting, MANGLE, guard.into());
    table.chain("host-ports", host_ports);
    let jump = || vec![vec![Statement::Verdict(Verdict::Jump("host-ports".into()))]];
    table.base("prerouting", HookKind::Nat, HookPoint::Prerouting, DNAT, jump());
    table.base("output", HookKind::Nat, HookPoint::Output, DNAT, jump());
    table.base("postrouting", HookKind::Nat, HookPoint::Postrouting, SNAT, leaving);
    table
}

/// Adds what one pod needs.
pub(crate) fn add_pod(table: &mut Ruleset, addresses: &[IpAddr], host_ports: &[HostPort]) {
    for (set, key, value) in elements(addresses, host_ports) {
        table.element(set, key, value);
    }
}

/// Removes what [`add_pod`] added.
pub(crate) fn remove_pod(table: &mut Ruleset, addresses: &[IpAddr], host_ports: &[HostPort]) {
    for (set, key, value) in elements(addresses, host_ports) {
        if let Some(set) = table.sets.get_mut(set)
            && set.elements.get(&key) == Some(&value)
        {
            set.elements.remove(&key);
        }
    }
}

fn elements(addresses: &[IpAddr], host_ports: &[HostPort]) -> Vec<(&'static str, Key, Value)> {
    let mut elements = Vec::new();
    // A transaction takes longer than all else together, so a pod without host ports must not need one.
    if host_ports.is_empty() {
        return elements;
    }
    for &address in addresses {
        let family = Family::of(address);
        elements.push((hairpin_set(family), vec![Datum::Address(address); 2], Value::Nothing));
        for port in host_ports {
            let mut key = vec![Datum::Protocol(port.protocol), Datum::Port(port.host_port)];
            let target = Value::Target(address, port.container_port);
            match port.host_ip.filter(|ip| !ip.is_unspecified()) {
                None => elements.push((all_addresses_map(family), key, target)),
                Some(ip) if Family::of(ip) == family => {
                    key.insert(0, Datum::Address(ip));
                    elements.push((one_address_map(family), key, target));
                }
                Some(_) => {}
            }
        }
    }
    elements
}

fn one_address_map(family: Family) -> &'static str {
    if family == V4 { "host-ports-of-address-v4" } else { "host-ports-of-address-v6" }
}

fn all_addresses_map(family: Family) -> &'static str {
    if family == V4 { "host-ports-v4" } else { "host-ports-v6" }
}

fn hairpin_set(family: Family) -> &'static str {
    if family == V4 { "hairpin-v4" } else { "hairpin-v6" }
}
