//! In namespaces of their own: one is the node, the others are pods.

use super::*;
use crate::Namespace;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

struct Node {
    namespace: Namespace,
    _state: tempfile::TempDir,
    pods: PodNetwork,
}

fn config(state: &tempfile::TempDir) -> PodNetworkConfig {
    PodNetworkConfig {
        state_dir: state.path().join("pods"),
        ranges: vec!["10.244.0.0/24".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()],
        cluster_ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        mtu: None,
    }
}

fn node() -> Node {
    let namespace = Namespace::new().expect("needs root");
    let state = tempfile::tempdir().unwrap();
    let pods = namespace.run(|| PodNetwork::new(config(&state))).unwrap().unwrap();
    Node { namespace, _state: state, pods }
}

impl Node {
    fn add(&self, id: &str, host_ports: &[HostPort]) -> (Namespace, Vec<IpAddr>) {
        let pod = Namespace::new().unwrap();
        let addresses = self.namespace.run(|| self.pods.add(id, &pod.path(), host_ports)).unwrap().unwrap();
        (pod, addresses)
    }
}

/// Answers each connection with the address it saw, until dropped from the outside by the process's end.
fn serve(namespace: &Namespace, address: SocketAddr) {
    let listener = namespace.run(|| TcpListener::bind(address)).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip();
            let _ = stream.write_all(peer.to_string().as_bytes());
        }
    });
}

fn ask(namespace: &Namespace, address: SocketAddr) -> std::io::Result<IpAddr> {
    namespace
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text.parse().expect("an address"))
        })
        .unwrap()
}

#[test]
fn host_and_pods_reach_each_other_over_both_families() {
    let node = node();
    let (first, first_ips) = node.add("a", &[]);
    let (second, second_ips) = node.add("b", &[]);
    for (from, to) in first_ips.iter().zip(&second_ips) {
        serve(&second, SocketAddr::new(*to, 8080));
        assert_eq!(ask(&first, SocketAddr::new(*to, 8080)).unwrap(), *from);
        let host = ask(&node.namespace, SocketAddr::new(*to, 8080)).unwrap();
        assert_eq!(host, nth(&IpNet::new(*to, if to.is_ipv4() { 24 } else { 64 }).unwrap(), 1));
        serve(&node.namespace, SocketAddr::new(host, 8081));
        assert_eq!(ask(&first, SocketAddr::new(host, 8081)).unwrap(), *from);
    }
}

#[test]
fn add_and_del_may_be_repeated() {
    let node = node();
    let (pod, ips) = node.add("a", &[]);
    let again = node.namespace.run(|| node.pods.add("a", &pod.path(), &[])).unwrap().unwrap();
    assert_eq!(again, ips);
    node.namespace
        .run(|| {
            node.pods.del("a")?;
            node.pods.del("a")?;
            assert_eq!(node.pods.addresses("a"), None);
            assert!(Links::open()?.list()?.iter().all(|link| link.group != GROUP));
            Ok::<_, crate::Error>(())
        })
        .unwrap()
        .unwrap();
}

#[test]
fn gc_keeps_only_what_is_known_even_after_a_restart() {
    let node = node();
    let (_a, ips) = node.add("a", &[]);
    let (_b, _) = node.add("b", &[]);
    let pods = node.namespace.run(|| PodNetwork::new(config(&node._state))).unwrap().unwrap();
    let links = node
        .namespace
        .run(|| {
            pods.gc(&HashSet::from(["a".to_owned()]))?;
            Links::open()?.list()
        })
        .unwrap()
        .unwrap();
    let ours: Vec<_> =
        links.iter().filter(|link| link.group == GROUP).map(|link| link.name.clone()).collect();
    assert_eq!(ours, [link_name("a")]);
    assert_eq!(pods.addresses("a"), Some(ips));
    assert_eq!(pods.addresses("b"), None);
}

#[test]
fn a_missing_namespace_is_an_error_that_leaves_nothing() {
    let node = node();
    let result = node.namespace.run(|| node.pods.add("a", Path::new("/nonexistent/netns"), &[])).unwrap();
    assert!(matches!(result, Err(crate::Error::Namespace { .. })));
    assert_eq!(node.pods.addresses("a"), None);
}

fn host_port(host_port: u16, host_ip: Option<IpAddr>) -> HostPort {
    HostPort { host_ip, host_port, container_port: 8080, protocol: Protocol::Tcp }
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    let node = node();
    let node_ip: IpAddr = "10.244.0.1".parse().unwrap();
    let (web, web_ips) = node.add("web", &[host_port(80, None), host_port(81, Some(node_ip))]);
    let (other, other_ips) = node.add("other", &[]);
    for &ip in &web_ips {
        serve(&web, SocketAddr::new(ip, 8080));
    }
    let node_v6: IpAddr = "fd00:10:244::1".parse().unwrap();
    assert_eq!(ask(&other, SocketAddr::new(node_ip, 80)).unwrap(), other_ips[0]);
    assert_eq!(ask(&other, SocketAddr::new(node_v6, 80)).unwrap(), other_ips[1]);
    assert_eq!(ask(&other, SocketAddr::new(node_ip, 81)).unwrap(), other_ips[0]);
    assert!(ask(&other, SocketAddr::new(node_v6, 81)).is_err());
    // The pod itself (hairpin), the host, and the host by its loopback address.
    assert_eq!(ask(&web, SocketAddr::new(node_ip, 80)).unwrap(), node_ip);
    assert_eq!(ask(&node.namespace, SocketAddr::new(node_ip, 80)).unwrap(), node_ip);
    assert_eq!(ask(&node.namespace, "127.0.0.1:80".parse().unwrap()).unwrap(), node_ip);
    node.namespace.run(|| node.pods.del("web")).unwrap().unwrap();
    assert!(ask(&other, SocketAddr::new(node_ip, 80)).is_err());
    node.add("again", &[host_port(80, None)]);
}

#[test]
fn pods_reach_the_outside_under_the_node_address() {
    let node = node();
    let outside = Namespace::new().unwrap();
    let file = netns::open(&outside.path()).unwrap();
    let wire = |from: &str, to: &str, name: &str| -> Result<()> {
        let mut links = Links::open()?;
        let index = links.index(name)?.unwrap();
        links.set_up(index, true)?;
        for (address, range) in [from, to].iter().zip(["192.0.2.0/24", "2001:db8::/64"]) {
            let range: IpNet = range.parse().unwrap();
            let address = IpNet::new(address.parse().unwrap(), range.prefix_len()).unwrap();
            links.add_address(index, address, Scope::Universe)?;
        }
        Ok(())
    };
    node.namespace
        .run(|| {
            Links::open()?.add_veth(("up", [2, 0, 0, 0, 0, 1]), ("up", [2, 0, 0, 0, 0, 2]), &file, 1500)?;
            wire("192.0.2.1", "2001:db8::1", "up")
        })
        .unwrap()
        .unwrap();
    outside.run(|| wire("192.0.2.2", "2001:db8::2", "up")).unwrap().unwrap();
    let (pod, _) = node.add("a", &[]);
    for (server, seen) in [("192.0.2.2:80", "192.0.2.1"), ("[2001:db8::2]:80", "2001:db8::1")] {
        serve(&outside, server.parse().unwrap());
        assert_eq!(ask(&pod, server.parse().unwrap()).unwrap(), seen.parse::<IpAddr>().unwrap());
    }
}

#[test]
fn teardown_leaves_nothing() {
    let node = node();
    node.add("a", &[host_port(80, None)]);
    node.namespace
        .run(|| {
            crate::add_service_routes(&[
                "10.96.0.0/16".parse().unwrap(),
                "fd00:10:96::/112".parse().unwrap(),
            ])?;
            crate::add_local_addresses(&["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()])?;
            crate::teardown()?;
            crate::teardown()?;
            let mut links = Links::open()?;
            assert!(links.list()?.iter().all(|link| ![GROUP, LEAVING].contains(&link.group)));
            assert_eq!(links.own_routes()?, []);
            assert!(links.addresses()?.iter().all(|(_, _, ours, _)| !ours));
            Ok::<_, crate::Error>(())
        })
        .unwrap()
        .unwrap();
}

#[test]
fn the_node_speaks_to_services_under_its_pod_address_in_whatever_order_things_start() {
    let services: Vec<IpNet> = vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()];
    let source = |to: &str| -> IpAddr {
        let socket =
            std::net::UdpSocket::bind(if to.contains('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
        socket.connect(to).unwrap();
        socket.local_addr().unwrap().ip()
    };
    for proxy_first in [true, false] {
        let namespace = Namespace::new().unwrap();
        let state = tempfile::tempdir().unwrap();
        namespace
            .run(|| {
                if proxy_first {
                    crate::add_service_routes(&services).unwrap();
                }
                PodNetwork::new(config(&state)).unwrap();
                if !proxy_first {
                    crate::add_service_routes(&services).unwrap();
                }
                assert_eq!(source("10.96.0.1:80").to_string(), "10.244.0.1");
                assert_eq!(source("[fd00:10:96::1]:80").to_string(), "fd00:10:244::1");
            })
            .unwrap();
    }
}

#[test]
fn hosts_with_ipv6_switched_off_by_default_get_it_for_pods() {
    let namespace = Namespace::new().unwrap();
    let state = tempfile::tempdir().unwrap();
    let pods = namespace
        .run(|| {
            for link in ["all", "default", "lo"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1").unwrap();
            }
            PodNetwork::new(config(&state))
        })
        .unwrap()
        .unwrap();
    let node = Node { namespace, _state: state, pods };
    let (pod, ips) = node.add("a", &[]);
    serve(&pod, SocketAddr::new(ips[1], 8080));
    ask(&node.namespace, SocketAddr::new(ips[1], 8080)).unwrap();
}
