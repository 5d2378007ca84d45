use super::*;
use ruleset::Protocol;

fn open(directory: &tempfile::TempDir, ranges: &[&str]) -> Leases {
    let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    Leases::open(directory.path().join("leases"), ranges).unwrap()
}

fn port(host_port: u16, host_ip: Option<&str>) -> HostPort {
    HostPort {
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        host_port,
        container_port: 80,
        protocol: Protocol::Tcp,
    }
}

#[test]
fn gives_an_address_of_each_family_and_keeps_it_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut leases = open(&directory, &["10.244.0.0/24", "fd00:10:244::/64"]);
    let first = leases.reserve("a", &[]).unwrap();
    assert_eq!(first.addresses, ["10.244.0.2".parse::<IpAddr>().unwrap(), "fd00:10:244::2".parse().unwrap()]);
    leases.set_ready("a").unwrap();
    drop(leases);
    let mut leases = open(&directory, &["10.244.0.0/24", "fd00:10:244::/64"]);
    assert!(leases.get("a").unwrap().ready);
    assert_eq!(leases.reserve("b", &[]).unwrap().addresses[0], "10.244.0.3".parse::<IpAddr>().unwrap());
}

#[test]
fn a_freed_address_rests_until_the_range_has_been_gone_through() {
    let directory = tempfile::tempdir().unwrap();
    let mut leases = open(&directory, &["10.0.0.0/29"]);
    let first = leases.reserve("a", &[]).unwrap().addresses[0];
    leases.release("a").unwrap();
    let mut seen = vec![first];
    for id in ["b", "c", "d", "e"] {
        let address = leases.reserve(id, &[]).unwrap().addresses[0];
        assert!(!seen.contains(&address), "{address} came back too early");
        seen.push(address);
    }
    assert_eq!(leases.reserve("f", &[]).unwrap().addresses[0], first);
    assert!(matches!(leases.reserve("g", &[]), Err(Error::Exhausted { .. })));
    leases.release("c").unwrap();
    assert_eq!(leases.reserve("g", &[]).unwrap().addresses[0], seen[2]);
}

#[test]
fn refuses_a_host_port_that_another_sandbox_has() {
    let directory = tempfile::tempdir().unwrap();
    let mut leases = open(&directory, &["10.0.0.0/24"]);
    leases.reserve("a", &[port(8080, None)]).unwrap();
    assert!(matches!(
        leases.reserve("b", &[port(8080, Some("192.0.2.1"))]),
        Err(Error::HostPortTaken { .. })
    ));
    leases.reserve("c", &[port(8081, Some("192.0.2.1"))]).unwrap();
    leases.reserve("d", &[port(8081, Some("192.0.2.2"))]).unwrap();
}

#[test]
fn survives_torn_files_and_refuses_ids_that_are_paths() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(&directory, &["10.0.0.0/24"]));
    fs::write(directory.path().join("leases/torn"), b"{\"addre").unwrap();
    fs::write(directory.path().join("leases/.half"), b"{").unwrap();
    let mut leases = open(&directory, &["10.0.0.0/24"]);
    assert_eq!(leases.iter().count(), 0);
    for id in ["", "..", "a/b", ".x", "a\0"] {
        assert!(matches!(leases.reserve(id, &[]), Err(Error::BadId(_))), "{id:?}");
    }
}
