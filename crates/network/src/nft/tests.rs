//! Whole service tables, committed to the kernel in namespaces of their own.

use super::*;
use crate::Namespace;
use nix::errno::Errno;
use ruleset::nft::{Datum, Value, Verdict};
use ruleset::{Endpoint, Node, Protocol, SERVICES_TABLE, ServicePort, diff, services};
use std::time::Duration;

fn many(count: u16, endpoints: u8) -> Vec<ServicePort> {
    (0..count)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            let endpoint = |address: String| Endpoint {
                address: address.parse().unwrap(),
                port: 8080,
                ready: true,
                serving: true,
                terminating: false,
                is_local: true,
                node_hints: vec![],
                zone_hints: vec![],
            };
            ServicePort {
                namespace: "some-namespace".into(),
                name: format!("service-number-{number}"),
                protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(number % 3)],
                port: 80,
                node_port: 30000 + number,
                cluster_ips: vec![
                    format!("10.96.{high}.{low}").parse().unwrap(),
                    format!("fd00:10:96::{number:x}").parse().unwrap(),
                ],
                external_ips: vec!["203.0.113.5".parse().unwrap()],
                load_balancer_ips: vec!["203.0.113.6".parse().unwrap()],
                source_ranges: vec!["198.51.100.0/24".parse().unwrap()],
                external_local: number % 2 == 0,
                internal_local: number % 5 == 0,
                affinity: (number % 4 == 0).then_some(Duration::from_secs(60)),
                endpoints: (0..endpoints)
                    .flat_map(|host| {
                        [
                            endpoint(format!("10.244.{low}.{host}")),
                            endpoint(format!("fd00:10:244::{low:x}:{host:x}")),
                        ]
                    })
                    .collect(),
            }
        })
        .collect()
}

fn node() -> Node {
    Node {
        name: "one".into(),
        zone: None,
        pod_ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()],
        service_ranges: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        served_here: vec!["10.96.0.10".parse().unwrap()],
    }
}

#[test]
fn large_tables_are_taken_and_changed_in_one_transaction_each() {
    let namespace = Namespace::new().expect("needs root");
    namespace
        .run(|| {
            let stages = [many(400, 3), many(350, 2), many(400, 0), vec![], many(30, 4)];
            let tables: Vec<_> = stages.iter().map(|stage| services(&node(), stage)).collect();
            apply(&tables[0]).unwrap();
            for pair in tables.windows(2) {
                commit(&diff(&pair[0], &pair[1])).unwrap();
            }
            // Whatever is there.
            apply(&tables[0]).unwrap();
            commit(&Transaction::remove(SERVICES_TABLE)).unwrap();
            commit(&Transaction::remove(SERVICES_TABLE)).unwrap();
        })
        .unwrap();
}

#[test]
fn a_refused_step_leaves_everything_as_it_was_and_is_named() {
    let namespace = Namespace::new().expect("needs root");
    namespace
        .run(|| {
            let table = services(&node(), &many(2, 1));
            apply(&table).unwrap();
            let key = vec![
                Datum::Address("10.96.9.9".parse().unwrap()),
                Datum::Protocol(Protocol::Tcp),
                Datum::Port(1),
            ];
            let element = |verdict| {
                let value = Value::Verdict(verdict);
                Step::AddElements("services-v4".into(), vec![(key.clone(), value)])
            };
            let steps = vec![element(Verdict::Drop), Step::DeleteSet("no-such-set".into())];
            let error = commit(&Transaction { table: table.table.clone(), steps }).unwrap_err();
            assert!(error.is(Errno::ENOENT), "{error:?}");
            assert!(error.to_string().contains("no-such-set"), "{error}");
            // The first step is not in force, so it can be made now.
            commit(&Transaction { table: table.table.clone(), steps: vec![element(Verdict::Accept)] })
                .unwrap();
        })
        .unwrap();
}
