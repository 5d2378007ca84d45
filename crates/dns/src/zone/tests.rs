use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(name: &str) -> Key {
    ("default".into(), name.into())
}

fn port(name: &str, protocol: &str, number: u16) -> Port {
    Port { name: name.into(), protocol: protocol.into(), number }
}

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local.", vec!["10.96.0.0/16".parse().unwrap()]);
    zone.namespaces.insert("default".into());
    let addresses = vec![ip("10.96.0.1"), ip("fd00:10:96::1")];
    let ports = vec![port("http", "tcp", 80), port("dns", "udp", 53)];
    zone.put_service(key("web"), Some(Service::Cluster { addresses, ports }));
    zone.put_service(key("db"), Some(Service::Headless));
    zone.put_service(key("empty"), Some(Service::Headless));
    zone.put_service(key("alias"), Some(Service::External("example.com".into())));
    let endpoint = |address: &str, hostname: Option<&str>| Endpoint {
        address: ip(address),
        hostname: hostname.map(str::to_owned),
        ports: vec![port("sql", "tcp", 5432)],
    };
    zone.put_endpoints(
        key("db"),
        "db-1".into(),
        Some(vec![endpoint("10.244.0.5", Some("db-0")), endpoint("10.244.0.6", None)]),
    );
    zone.put_endpoints(key("db"), "db-2".into(), Some(vec![endpoint("fd00:10:244::5", Some("db-0"))]));
    zone.put_endpoints(key("web"), "web-1".into(), Some(vec![endpoint("10.244.0.9", None)]));
    zone
}

fn ask(name: &str, kind: u16) -> Answer {
    zone().lookup(&Name::parse(name).unwrap(), kind)
}

fn check(name: &str, kind: u16, expected: &[&str]) {
    let Answer::Records { answers, .. } = ask(name, kind) else {
        panic!("{name}: {:?}", ask(name, kind));
    };
    let mut found: Vec<String> = answers
        .iter()
        .map(|data| match data {
            Data::A(ip) => ip.to_string(),
            Data::Aaaa(ip) => ip.to_string(),
            Data::Ptr(name) | Data::Ns(name) => name.to_string(),
            Data::Srv { priority, weight, port, target } => format!("{priority} {weight} {port} {target}"),
            Data::Txt(parts) => String::from_utf8_lossy(&parts[0]).into_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    found.sort();
    assert_eq!(found, expected, "{name}");
}

#[test]
fn services_and_their_ports() {
    check("web.default.svc.cluster.local", kind::A, &["10.96.0.1"]);
    check("WEB.Default.svc.Cluster.local", kind::AAAA, &["fd00:10:96::1"]);
    check(
        "_http._tcp.web.default.svc.cluster.local",
        kind::SRV,
        &["0 100 80 web.default.svc.cluster.local."],
    );
    check(
        "web.default.svc.cluster.local",
        kind::SRV,
        &["0 50 53 web.default.svc.cluster.local.", "0 50 80 web.default.svc.cluster.local."],
    );
    assert_eq!(ask("web.default.svc.cluster.local", kind::TXT), Answer::NoData);
    assert_eq!(ask("_http._tcp.web.default.svc.cluster.local", kind::A), Answer::NoData);
    assert_eq!(ask("_tcp.web.default.svc.cluster.local", kind::A), Answer::NoData);
    assert_eq!(ask("_http._udp.web.default.svc.cluster.local", kind::SRV), Answer::NoName);
    assert_eq!(ask("_sctp.web.default.svc.cluster.local", kind::A), Answer::NoName);
}

#[test]
fn headless_services_name_their_endpoints() {
    check("db.default.svc.cluster.local", kind::A, &["10.244.0.5", "10.244.0.6"]);
    check("db.default.svc.cluster.local", kind::AAAA, &["fd00:10:244::5"]);
    check("db-0.db.default.svc.cluster.local", kind::A, &["10.244.0.5"]);
    check("10-244-0-6.db.default.svc.cluster.local", kind::A, &["10.244.0.6"]);
    check(
        "_sql._tcp.db.default.svc.cluster.local",
        kind::SRV,
        &[
            "0 50 5432 10-244-0-6.db.default.svc.cluster.local.",
            "0 50 5432 db-0.db.default.svc.cluster.local.",
        ],
    );
    assert_eq!(ask("db-1.db.default.svc.cluster.local", kind::A), Answer::NoName);
    assert_eq!(ask("10-244-0-6.db.default.svc.cluster.local", kind::AAAA), Answer::NoData);
    assert_eq!(ask("empty.default.svc.cluster.local", kind::A), Answer::NoName);
    // Endpoints of a service with an address of its own have no names.
    assert_eq!(ask("10-244-0-9.web.default.svc.cluster.local", kind::A), Answer::NoName);
}

#[test]
fn what_exists_without_records_and_what_does_not() {
    for name in
        ["cluster.local", "svc.cluster.local", "default.svc.cluster.local", "default.pod.cluster.local"]
    {
        assert_eq!(ask(name, kind::A), Answer::NoData, "{name}");
    }
    for name in [
        "x.cluster.local",
        "other.svc.cluster.local",
        "no.default.svc.cluster.local",
        "a.b.c.d.svc.cluster.local",
    ] {
        assert_eq!(ask(name, kind::A), Answer::NoName, "{name}");
    }
    for name in ["example.com", "notcluster.local", "1.0.0.127.in-addr.arpa", "local"] {
        assert_eq!(ask(name, kind::A), Answer::NotOurs, "{name}");
    }
    assert_eq!(
        ask("alias.default.svc.cluster.local", kind::A),
        Answer::Alias(Name::parse("example.com").unwrap())
    );
    check("dns-version.cluster.local", kind::TXT, &["1.1.0"]);
    check("cluster.local", kind::NS, &["ns.dns.cluster.local."]);
}

#[test]
fn pods_by_address() {
    check("10-244-0-77.default.pod.cluster.local", kind::A, &["10.244.0.77"]);
    check("fd00-10-244--5.default.pod.cluster.local", kind::AAAA, &["fd00:10:244::5"]);
    assert_eq!(ask("10-244-0-77.other.pod.cluster.local", kind::A), Answer::NoName);
    assert_eq!(ask("10-244-0-777.default.pod.cluster.local", kind::A), Answer::NoName);
}

#[test]
fn addresses_have_names_while_somebody_has_them() {
    check("1.0.96.10.in-addr.arpa", kind::PTR, &["web.default.svc.cluster.local."]);
    check("5.0.244.10.in-addr.arpa", kind::PTR, &["db-0.db.default.svc.cluster.local."]);
    check(
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa",
        kind::PTR,
        &["web.default.svc.cluster.local."],
    );
    assert_eq!(ask("9.9.96.10.in-addr.arpa", kind::PTR), Answer::NoName);
    assert_eq!(ask("9.0.244.10.in-addr.arpa", kind::PTR), Answer::NoName);
    let mut zone = zone();
    zone.put_service(key("web"), None);
    zone.put_endpoints(key("db"), "db-1".into(), None);
    let ask = |name: &str| zone.lookup(&Name::parse(name).unwrap(), kind::PTR);
    assert_eq!(ask("1.0.96.10.in-addr.arpa"), Answer::NoName);
    assert_eq!(ask("5.0.244.10.in-addr.arpa"), Answer::NotOurs);
}
