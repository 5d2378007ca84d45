//! With a scripted API server, in a network namespace of its own with real pods' namespaces and connections.

use super::*;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use network::{Namespace, PodNetwork, PodNetworkConfig};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;
use tokio::sync::broadcast;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Answers lists with what it was made with, and watches with what is sent later.
#[derive(Clone)]
struct Server {
    lists: [(&'static str, Value); 3],
    events: broadcast::Sender<(&'static str, Value)>,
}

impl Server {
    fn answer(&self, request: &http::Request<kube::client::Body>) -> http::Response<Body> {
        let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let (_, items) =
            self.lists.iter().find(|(known, _)| *known == plural).expect("only what it may watch");
        if !request.uri().query().unwrap_or_default().contains("watch=true") {
            let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
            return http::Response::new(Full::from(list.to_string()).boxed_unsync());
        }
        let stream = stream::unfold(self.events.subscribe(), move |mut receiver| {
            let plural = plural.clone();
            async move {
                loop {
                    let (kind, event) = receiver.recv().await.ok()?;
                    if kind == plural {
                        let frame = hyper_frame(&event);
                        return Some((Ok(frame), receiver));
                    }
                }
            }
        });
        http::Response::new(BodyExt::boxed_unsync(StreamBody::new(stream)))
    }
}

fn hyper_frame(event: &Value) -> http_body::Frame<Bytes> {
    http_body::Frame::data(format!("{event}\n").into())
}

struct Cluster {
    node: Namespace,
    pods: PodNetwork,
    events: broadcast::Sender<(&'static str, Value)>,
    shutdown: CancellationToken,
    proxy: Option<std::thread::JoinHandle<Result<(), Error>>>,
    _state: tempfile::TempDir,
}

fn ranges(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

impl Cluster {
    fn start(services: Value, slices: Value) -> Self {
        let node = Namespace::new().expect("needs root");
        let state = tempfile::tempdir().unwrap();
        let config = PodNetworkConfig {
            state_dir: state.path().join("pods"),
            ranges: ranges(&["10.244.0.0/24", "fd00:10:244::/64"]),
            cluster_ranges: ranges(&["10.244.0.0/16", "fd00:10:244::/56"]),
            mtu: None,
        };
        let pods = node.run(|| PodNetwork::new(config)).unwrap().unwrap();
        let (events, _) = broadcast::channel(64);
        let this =
            json!({"metadata": {"name": "one"}, "spec": {"podCIDRs": ["10.244.0.0/24", "fd00:10:244::/64"]}});
        let server = Server {
            lists: [("services", services), ("endpointslices", slices), ("nodes", json!([this]))],
            events: events.clone(),
        };
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let path = node.path();
        let proxy = std::thread::spawn(move || {
            network::within(&path, || Ok(serve_proxy(server, stop))).expect("the namespace can be entered")
        });
        Self { node, pods, events, shutdown, proxy: Some(proxy), _state: state }
    }

    fn pod(&self, name: &str) -> (Namespace, Vec<IpAddr>) {
        let pod = Namespace::new().unwrap();
        let addresses = self.node.run(|| self.pods.add(name, &pod.path(), &[])).unwrap().unwrap();
        (pod, addresses)
    }

    fn send(&self, plural: &'static str, kind: &str, object: &Value) {
        self.events.send((plural, json!({"type": kind, "object": object}))).unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let result = self.proxy.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            result.unwrap().unwrap().unwrap();
        }
    }
}

fn serve_proxy(server: Server, shutdown: CancellationToken) -> Result<(), Error> {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let response = server.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let config = ProxyConfig {
        node_name: "one".into(),
        service_ranges: ranges(&["10.96.0.0/16", "fd00:10:96::/112"]),
        ..ProxyConfig::default()
    };
    // One thread, so that all of it is in the namespace.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { run(Client::new(service, "default"), config, shutdown).await })
}

/// Names itself to whoever connects, and tells whom it saw.
fn serve(pod: &Namespace, address: SocketAddr, name: &'static str) {
    let listener = pod.run(|| TcpListener::bind(address)).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip();
            let _ = write!(stream, "{name} {peer}");
        }
    });
}

fn ask(from: &Namespace, to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(500))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
    .unwrap()
}

#[allow(
    clippy::disallowed_methods,
    reason = "what is waited for is the kernel's behaviour, which tells nobody"
)]
/// Asks until the answer is as wanted: rules follow events soon, not at once.
fn until<T: std::fmt::Debug>(what: &str, mut ask: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = ask();
        if wanted(&answer) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {answer:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn says(answer: &std::io::Result<String>, name: &str) -> bool {
    answer.as_ref().is_ok_and(|text| text.starts_with(name))
}

fn refused(answer: &std::io::Result<String>) -> bool {
    answer.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn service(more: Value) -> Value {
    let mut spec = json!({
        "type": "NodePort",
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1", "fd00:10:96::1"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"namespace": "default", "name": "web", "resourceVersion": "1"}, "spec": spec})
}

fn slice(family: &str, endpoints: &[(&IpAddr, bool)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready, "serving": ready}, "nodeName": "one"}))
        .collect();
    json!({
        "metadata": {
            "namespace": "default",
            "name": format!("web-{family}"),
            "labels": {"kubernetes.io/service-name": "web"},
            "resourceVersion": "2",
        },
        "addressType": family,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints,
    })
}

#[test]
fn services_lead_to_their_endpoints_and_follow_readiness() {
    let cluster = Cluster::start(json!([service(json!({}))]), json!([]));
    let (client, client_ips) = cluster.pod("client");
    let (first, first_ips) = cluster.pod("first");
    let (second, second_ips) = cluster.pod("second");
    for (pod, ips, name) in [(&first, &first_ips, "first"), (&second, &second_ips, "second")] {
        for ip in ips {
            serve(pod, SocketAddr::new(*ip, 8080), name);
        }
    }
    // No endpoints: refused, not left hanging.
    until("no endpoints", || ask(&client, "10.96.0.1:80"), refused);
    until("no endpoints", || ask(&cluster.node, "[fd00:10:96::1]:80"), refused);
    until("no endpoints", || ask(&cluster.node, "10.244.0.1:30080"), refused);

    cluster.send("endpointslices", "ADDED", &slice("IPv4", &[(&first_ips[0], true)]));
    cluster.send("endpointslices", "ADDED", &slice("IPv6", &[(&first_ips[1], true)]));
    let wanted = format!("first {}", client_ips[0]);
    until("cluster address", || ask(&client, "10.96.0.1:80"), |answer| says(answer, &wanted));
    let wanted = format!("first {}", client_ips[1]);
    until("cluster address, IPv6", || ask(&client, "[fd00:10:96::1]:80"), |answer| says(answer, &wanted));
    assert!(refused(&ask(&client, "10.96.0.1:81")));
    for target in [
        "10.96.0.1:80",
        "[fd00:10:96::1]:80",
        "10.244.0.1:30080",
        "127.0.0.1:30080",
        "[fd00:10:244::1]:30080",
    ] {
        let answer = ask(&cluster.node, target);
        assert!(says(&answer, "first"), "host -> {target}: {answer:?}");
    }
    let answer = ask(&client, "10.244.0.1:30080");
    assert!(says(&answer, "first"), "pod -> node port: {answer:?}");
    // The endpoint reaches itself.
    let answer = ask(&first, "10.96.0.1:80");
    assert!(says(&answer, "first"), "hairpin: {answer:?}");
    let answer = ask(&first, "[fd00:10:96::1]:80");
    assert!(says(&answer, "first"), "hairpin, IPv6: {answer:?}");

    let both = slice("IPv4", &[(&first_ips[0], true), (&second_ips[0], true)]);
    cluster.send("endpointslices", "MODIFIED", &both);
    until("second endpoint", || ask(&client, "10.96.0.1:80"), |answer| says(answer, "second"));
    until("first endpoint too", || ask(&client, "10.96.0.1:80"), |answer| says(answer, "first"));

    let one = slice("IPv4", &[(&first_ips[0], false), (&second_ips[0], true)]);
    cluster.send("endpointslices", "MODIFIED", &one);
    until(
        "only the ready one",
        || (0..8).map(|_| ask(&client, "10.96.0.1:80")).collect::<Vec<_>>(),
        |answers| answers.iter().all(|answer| says(answer, "second")),
    );

    cluster.send("services", "DELETED", &service(json!({})));
    until("service gone", || ask(&client, "10.96.0.1:80"), |answer| answer.is_err() && !refused(answer));
}

#[test]
fn clients_stay_with_their_endpoint_under_affinity() {
    let affinity =
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    let cluster = Cluster::start(json!([service(affinity)]), json!([]));
    let (client, _) = cluster.pod("client");
    let (first, first_ips) = cluster.pod("first");
    let (second, second_ips) = cluster.pod("second");
    serve(&first, SocketAddr::new(first_ips[0], 8080), "first");
    serve(&second, SocketAddr::new(second_ips[0], 8080), "second");
    let both = slice("IPv4", &[(&first_ips[0], true), (&second_ips[0], true)]);
    cluster.send("endpointslices", "ADDED", &both);
    until("any", || ask(&client, "10.96.0.1:80"), Result::is_ok);
    let first_answer = ask(&client, "10.96.0.1:80").unwrap();
    for _ in 0..12 {
        assert_eq!(ask(&client, "10.96.0.1:80").unwrap(), first_answer);
    }
    // The endpoint goes: on to the other one.
    let (left, other) =
        if first_answer.starts_with("first") { (second_ips[0], "second") } else { (first_ips[0], "first") };
    cluster.send("endpointslices", "MODIFIED", &slice("IPv4", &[(&left, true)]));
    until("the other one", || ask(&client, "10.96.0.1:80"), |answer| says(answer, other));
}

#[test]
fn udp_flows_move_when_their_endpoint_goes() {
    let udp = json!({"ports": [{"name": "http", "protocol": "UDP", "port": 53}], "type": "ClusterIP"});
    let cluster = Cluster::start(json!([service(udp)]), json!([]));
    let (client, _) = cluster.pod("client");
    let pods = [cluster.pod("first"), cluster.pod("second")];
    for ((pod, ips), name) in pods.iter().zip(["first", "second"]) {
        let socket = pod.run(|| UdpSocket::bind((ips[0], 8080))).unwrap().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }
    let slice = |ip: &IpAddr| {
        let mut slice = slice("IPv4", &[(ip, true)]);
        slice["ports"][0]["protocol"] = "UDP".into();
        slice
    };
    // One socket all along, so that it is one flow for the kernel.
    let socket = client.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let ask = || {
        let _ = socket.send_to(b"?", "10.96.0.1:53");
        let mut buffer = [0; 64];
        match socket.recv(&mut buffer) {
            Ok(length) => String::from_utf8_lossy(&buffer[..length]).into_owned(),
            Err(_) => String::new(),
        }
    };
    cluster.send("endpointslices", "ADDED", &slice(&pods[0].1[0]));
    until("first", ask, |answer| answer == "first");
    cluster.send("endpointslices", "MODIFIED", &slice(&pods[1].1[0]));
    until("second", ask, |answer| answer == "second");
}

#[test]
fn load_balancers_learn_of_local_endpoints() {
    let balancer = json!({
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30090,
    });
    let cluster = Cluster::start(json!([service(balancer)]), json!([]));
    let probe = || {
        cluster
            .node
            .run(|| {
                let mut stream = TcpStream::connect("127.0.0.1:30090")?;
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok::<_, std::io::Error>(text)
            })
            .unwrap()
    };
    until("none", probe, |answer| answer.as_ref().is_ok_and(|text| text.contains(" 503 ")));
    let ip = "10.244.0.7".parse().unwrap();
    cluster.send("endpointslices", "ADDED", &slice("IPv4", &[(&ip, true)]));
    until("one", probe, |answer| answer.as_ref().is_ok_and(|text| text.contains(" 200 ")));
    let answer = probe().unwrap();
    assert!(
        answer.contains("X-Load-Balancing-Endpoint-Weight: 1") && answer.contains("\"localEndpoints\": 1")
    );
}
