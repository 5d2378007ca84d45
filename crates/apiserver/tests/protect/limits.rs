//! Clients that ask too much or too slowly, and the end of a server.

use std::time::Duration;

use apiserver::UserInfo;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Answer, Running, start};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn admin() -> UserInfo {
    UserInfo::system_master("test")
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_ended() {
    let running = start(|_| {}).await;
    // A body that never comes.
    let frames = futures::stream::pending::<Result<Frame<Bytes>, String>>();
    let request = Request::post(format!("{MAPS}?timeout=50ms")).header("content-type", "application/json");
    let answer = running.send(admin(), request.body(StreamBody::new(frames)).expect("a request")).await;
    assert_eq!(answer.code(), 504);
    let status = answer.json();
    assert_eq!(status["reason"], "Timeout");
    assert_eq!(status["message"], "Timeout: request did not complete within the allotted timeout");
    let answer = running.ask(Method::GET, &format!("{MAPS}?timeout=soon"), None).await;
    assert_eq!(answer.code(), 400);
    let expect = "invalid timeout specified in the request URL - time: invalid duration \"soon\"";
    assert_eq!(answer.json()["message"], expect);
    let answer = running.ask(Method::GET, &format!("{MAPS}?timeout=0s"), None).await;
    assert_eq!(answer.code(), 200);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let running = start(|_| {}).await;
    let body = json!({"metadata": {"name": "m"}, "data": {"k": "x".repeat(4 << 20)}});
    let answer = running.ask(Method::POST, MAPS, Some(body)).await;
    assert_eq!(answer.code(), 413);
    assert_eq!(answer.json()["message"], "Request entity too large: limit is 3145728");
}

#[tokio::test]
async fn without_fairness_only_the_number_of_requests_is_limited() {
    let running = start(|config| {
        config.protection.priority_and_fairness = false;
        config.protection.max_mutating_requests_inflight = 2;
    })
    .await;
    let user = || apiserver::UserInfo {
        name: "u".to_owned(),
        groups: vec!["writers".to_owned()],
        ..UserInfo::default()
    };
    let binding = json!({
        "metadata": {"name": "writers"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "writers"}],
    });
    running.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    while running.ask_as(user(), Method::GET, MAPS, None).await.code() != 200 {
        tokio::task::yield_now().await;
    }
    let never = || StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, String>>());
    let mut open = FuturesUnordered::new();
    for _ in 0..2 {
        let request = Request::post(MAPS).header("content-type", "application/json").body(never());
        open.push(running.send(user(), request.expect("a request")));
    }
    assert!(futures::poll!(open.next()).is_pending());
    let refused = running.ask_as(user(), Method::DELETE, &format!("{MAPS}/none"), None).await;
    assert_eq!((refused.code(), refused.header("retry-after")), (429, "1"));
    assert_eq!(
        running.ask_as(user(), Method::GET, MAPS, None).await.code(),
        200,
        "reads have their own number"
    );
    let looked_after = running.ask(Method::DELETE, &format!("{MAPS}/none"), None).await;
    assert_eq!(looked_after.code(), 404, "administrators are let through");
}

async fn client(running: &Running) -> kube::Client {
    let path = running.dir.path().join("admin.kubeconfig");
    let kubeconfig = kube::config::Kubeconfig::read_from(path).expect("the kubeconfig reads");
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("it is whole");
    let port = running.server.address().port();
    config.cluster_url = format!("https://127.0.0.1:{port}").parse().expect("a URL");
    kube::Client::try_from(config).expect("a client")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_clients_are_closed_and_nobody_else_notices() {
    let running = start(|config| config.protection.header_timeout = Duration::from_secs(2)).await;
    let address = running.server.address();
    let mut slow = Vec::new();
    for i in 0..1000 {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        // Some send nothing, some the beginning of a handshake, some nonsense that is never finished.
        match i % 3 {
            0 => {}
            1 => stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.expect("sent"),
            _ => stream.write_all(&[0x16, 3, 1]).await.expect("sent"),
        }
        slow.push(stream);
    }
    let client = client(&running).await;
    for _ in 0..20 {
        assert_eq!(client.apiserver_version().await.expect("answered").minor, "36");
    }
    // Every one of them is closed in the end.
    let mut closing: FuturesUnordered<_> = slow
        .into_iter()
        .map(|mut stream| async move {
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest).await);
        })
        .collect();
    while closing.next().await.is_some() {}
    assert_eq!(client.apiserver_version().await.expect("answered").minor, "36");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ends_is_not_ready_and_serves_until_others_know() {
    // Longer than anything here takes: the server is dropped while it waits.
    let running = start(|config| config.protection.shutdown_delay = Duration::from_secs(3600)).await;
    let client = client(&running).await;
    running.shutdown.cancel();
    let ready = loop {
        let answer = running.ask(Method::GET, "/readyz", None).await;
        if answer.code() != 200 {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert!(ready.text().contains("[-]shutdown failed: reason withheld\n"), "{}", ready.text());
    assert_eq!(running.ask(Method::GET, "/livez", None).await.code(), 200, "it lives");
    // It still takes connections.
    assert_eq!(client.apiserver_version().await.expect("answered").minor, "36");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ends_lets_requests_end_and_closes_watches_cleanly() {
    let mut running = start(|_| {}).await;
    let watch = Request::get(format!("{MAPS}?watch=1&timeoutSeconds=600")).body(Full::new(Bytes::new()));
    let mut service = running.server.in_process(admin());
    let Ok(watch) = tower::Service::call(&mut service, watch.expect("a request")).await;
    // A write over a connection whose body is still to come.
    let (send, receive) = tokio::sync::mpsc::channel::<Bytes>(1);
    let frames =
        tokio_stream::wrappers::ReceiverStream::new(receive).map(|b| Ok::<_, String>(Frame::data(b)));
    let write = Request::post(MAPS).header("content-type", "application/json").body(StreamBody::new(frames));
    let mut writer = running.server.in_process(admin());
    let mut write = Box::pin(async move {
        let Ok(response) = tower::Service::call(&mut writer, write.expect("a request")).await;
        Answer::read(response).await
    });
    assert!(futures::poll!(&mut write).is_pending());
    running.shutdown.cancel();
    let body = watch.into_body().collect().await.expect("the watch ends").to_bytes();
    assert!(!String::from_utf8_lossy(&body).contains("\"ERROR\""), "{body:?}");
    send.send(json!({"metadata": {"name": "late"}}).to_string().into()).await.expect("it is still read");
    drop(send);
    assert_eq!(write.await.code(), 201);
    (&mut running.done).await.expect("the server ended");
}

/// The events of a watch as they come.
struct Events {
    body: apiserver::Body,
    rest: Vec<u8>,
}

impl Events {
    async fn open(running: &Running, path: &str) -> Self {
        let request = Request::get(path).body(Full::new(Bytes::new())).expect("a request");
        let Ok(response) = tower::Service::call(&mut running.server.in_process(admin()), request).await;
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), rest: Vec::new() }
    }

    async fn next(&mut self) -> Option<serde_json::Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event"));
            }
            let Ok(frame) = self.body.frame().await?;
            self.rest.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
    }
}

#[tokio::test]
async fn a_watcher_that_does_not_keep_up_is_cut_and_others_do_not_notice() {
    let running = start(|_| {}).await;
    let object = |round: usize| {
        let data = format!("{round:04}").repeat(225_000);
        json!({"metadata": {"name": "large"}, "data": {"k": data}})
    };
    let made = running.create(MAPS, object(0)).await;
    let version = made["metadata"]["resourceVersion"].as_str().expect("a version");
    let path = format!("{MAPS}?watch=1&resourceVersion={version}");
    let mut slow = Events::open(&running, &path).await;
    let mut quick = Events::open(&running, &path).await;
    // More than what is kept for watchers that fall behind.
    for round in 1..=45 {
        let answer = running.ask(Method::PUT, &format!("{MAPS}/large"), Some(object(round))).await;
        assert_eq!(answer.code(), 200, "{}", answer.text());
        let event = quick.next().await.expect("it goes on");
        assert_eq!(event["type"], "MODIFIED");
        assert!(event["object"]["data"]["k"].as_str().expect("data").starts_with(&format!("{round:04}")));
    }
    let mut last = slow.next().await.expect("it is told");
    while last["type"] == "MODIFIED" {
        last = slow.next().await.expect("it is told");
    }
    assert_eq!((&last["type"], &last["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(slow.next().await, None, "and cut");
}
