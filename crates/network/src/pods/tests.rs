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
