//! What is written down of requests, and where it goes.

use std::path::Path;
use std::time::Duration;

use apiserver::UserInfo;
use apiserver::audit::{AuditConfig, BatchConfig, LogConfig, Mode, Rotation};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Running, start, user};

/// A policy by which every stage of every request is told.
const EVERYTHING: &str = "rules: [{level: Metadata}]\n";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn log(dir: &Path, policy: &str, mode: Mode) -> AuditConfig {
    let file = dir.join("policy.yaml");
    std::fs::write(&file, format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{policy}")).expect("written");
    let rotation = Rotation { size: 0, backups: 0, age: Duration::ZERO, compress: false };
    let log = LogConfig { path: dir.join("audit.log"), rotation, mode, buffer: 1000 };
    AuditConfig { policy: Some(file), log: Some(log), webhook: None }
}

fn events(running: &Running) -> Vec<Value> {
    let text = std::fs::read_to_string(running.dir.path().join("audit.log")).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is an event")).collect()
}

#[tokio::test]
async fn events_hold_what_the_policy_asks_for() {
    let policy = "omitManagedFields: true\n\
        rules:\n\
        - {level: None, users: [quiet]}\n\
        - {level: Metadata, resources: [{group: \"\", resources: [secrets]}]}\n\
        - {level: RequestResponse, resources: [{group: \"\", resources: [configmaps]}], omitStages: [RequestReceived]}\n\
        - {level: Request, resources: [{group: rbac.authorization.k8s.io}]}\n";
    let running = start(|config| config.audit = log(&config.data_dir, policy, Mode::Blocking)).await;
    let map = json!({"metadata": {"name": "m"}, "data": {"k": "v"}});
    let made = running.ask(Method::POST, MAPS, Some(map)).await;
    assert_eq!(made.code(), 201);
    let id = made.header("audit-id").to_owned();
    assert!(!id.is_empty());
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "hidden"}});
    running.create("/api/v1/namespaces/default/secrets", secret).await;
    running.ask_as(user("quiet", &[]), Method::GET, MAPS, None).await;
    running.ask_as(user("nosy", &[]), Method::GET, MAPS, None).await;
    let request = Request::get("/apis/rbac.authorization.k8s.io/v1/clusterroles/none")
        .header("impersonate-user", "other")
        .header("impersonate-group", "system:masters")
        .header("audit-id", "chosen")
        .header("user-agent", "a-test/1.0");
    let request = request.body(Full::new(Bytes::new())).expect("a request");
    running.send(UserInfo::system_master("test"), request).await;

    let events = events(&running);
    let of = |name: &str, stage: &str| {
        let found = events.iter().find(|e| e["objectRef"]["resource"] == name && e["stage"] == stage);
        found.unwrap_or_else(|| panic!("no event of {name} at {stage}")).clone()
    };
    let event = of("configmaps", "ResponseComplete");
    assert_eq!(event["kind"], "Event");
    assert_eq!(event["apiVersion"], "audit.k8s.io/v1");
    assert_eq!(event["level"], "RequestResponse");
    assert_eq!(event["auditID"], id.as_str());
    assert_eq!(event["verb"], "create");
    assert_eq!(event["requestURI"], MAPS);
    assert_eq!(event["user"]["username"], "test");
    assert_eq!(event["objectRef"]["name"], "m");
    assert_eq!(event["objectRef"]["apiVersion"], "v1");
    assert_eq!(event["requestObject"]["data"]["k"], "v");
    assert_eq!(event["responseObject"]["metadata"]["name"], "m");
    assert!(event["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(event["responseStatus"]["code"], 201);
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");
    assert!(!events.iter().any(|e| e["auditID"] == id.as_str() && e["stage"] == "RequestReceived"));

    of("secrets", "RequestReceived");
    let event = of("secrets", "ResponseComplete");
    assert_eq!((&event["level"], event.get("requestObject")), (&json!("Metadata"), None));
    assert!(!std::fs::read_to_string(running.dir.path().join("audit.log")).expect("read").contains("hidden"));

    assert!(!events.iter().any(|e| e["user"]["username"] == "quiet"));
    let refused = events.iter().find(|e| e["user"]["username"] == "nosy").expect("an event");
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(refused["responseStatus"]["code"], 403);
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");

    let event = of("clusterroles", "ResponseComplete");
    assert_eq!(event["auditID"], "chosen");
    assert_eq!(event["userAgent"], "a-test/1.0");
    assert_eq!(event["impersonatedUser"]["username"], "other");
    assert_eq!(event["responseStatus"]["status"], "Failure");
    assert_eq!(event["responseStatus"]["code"], 404);
}

#[tokio::test]
async fn a_watch_is_written_down_when_it_begins_and_when_it_ends() {
    let running = start(|config| {
        config.audit = log(&config.data_dir, "rules: [{level: Metadata}]\n", Mode::Blocking);
    })
    .await;
    let mut service = running.server.in_process(UserInfo::system_master("test"));
    let request = Request::get(format!("{MAPS}?watch=1&timeoutSeconds=600")).body(Full::new(Bytes::new()));
    let Ok(response) = tower::Service::call(&mut service, request.expect("a request")).await;
    let id = response.headers()["audit-id"].to_str().expect("text").to_owned();
    let mut body = response.into_body();
    running.create(MAPS, json!({"metadata": {"name": "seen"}})).await;
    while let Some(Ok(frame)) = body.frame().await {
        if frame.data_ref().is_some_and(|data| data.windows(4).any(|w| w == b"seen")) {
            break;
        }
    }
    let stages = |running: &Running| {
        let events = events(running).into_iter().filter(|e| e["auditID"] == id.as_str());
        events.map(|e| e["stage"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(stages(&running), ["RequestReceived", "ResponseStarted"]);
    drop(body);
    assert_eq!(stages(&running), ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
}

#[tokio::test]
async fn batches_are_written_before_the_server_ends() {
    let mut running = start(|config| {
        config.audit = log(&config.data_dir, "rules: [{level: Metadata}]\n", Mode::Batch);
    })
    .await;
    for i in 0..50 {
        running.ask(Method::GET, &format!("{MAPS}/none-{i}"), None).await;
    }
    running.shutdown.cancel();
    (&mut running.done).await.expect("the server ended");
    let asked =
        events(&running).iter().filter(|e| e["stage"] == "ResponseComplete" && e["verb"] == "get").count();
    assert!(asked >= 50, "{asked}");
}

/// Answers one HTTP request after the other with 200 and hands their bodies on.
async fn collector() -> (u16, tokio::sync::mpsc::Receiver<Value>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let (send, receive) = tokio::sync::mpsc::channel(100);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let send = send.clone();
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                loop {
                    let head = buffer.windows(4).position(|w| w == b"\r\n\r\n");
                    let whole = head.and_then(|end| {
                        let text = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
                        let length = text.lines().find_map(|l| l.strip_prefix("content-length: "))?;
                        let total = end + 4 + length.trim().parse::<usize>().ok()?;
                        (buffer.len() >= total).then_some((end + 4, total))
                    });
                    if let Some((start, total)) = whole {
                        let body = serde_json::from_slice(&buffer[start..total]).expect("JSON");
                        buffer.drain(..total);
                        if send.send(body).await.is_err() {
                            return;
                        }
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    } else if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                        return;
                    }
                }
            });
        }
    });
    (port, receive)
}

/// A webhook on loopback.
fn webhook(config: &apiserver::Config, port: u16, mode: Mode) -> (std::path::PathBuf, BatchConfig) {
    let file = config.data_dir.join("audit-webhook.kubeconfig");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": format!("http://127.0.0.1:{port}/audit")}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": ""}}],
        "users": [],
    });
    std::fs::write(&file, kubeconfig.to_string()).expect("written");
    (file, BatchConfig { mode, ..BatchConfig::default() })
}

#[tokio::test]
async fn a_webhook_is_sent_batches() {
    let (port, mut received) = collector().await;
    let running = start(|config| {
        let (file, batch) = webhook(config, port, Mode::Batch);
        config.audit.webhook =
            Some((file, BatchConfig { size: 4, wait: Duration::from_millis(20), ..batch }));
    })
    .await;
    running.create(MAPS, json!({"metadata": {"name": "told"}})).await;
    loop {
        let list = received.recv().await.expect("a batch");
        assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
        let items = list["items"].as_array().expect("events");
        assert!(items.len() <= 4);
        if items.iter().any(|e| e["objectRef"]["name"] == "told" && e["verb"] == "create") {
            break;
        }
    }
}

#[tokio::test]
async fn a_blocking_webhook_has_the_events_before_the_answer_comes() {
    let (port, mut received) = collector().await;
    let running = start(|config| {
        config.audit = log(&config.data_dir, EVERYTHING, Mode::Blocking);
        config.audit.log = None;
        config.audit.webhook = Some(webhook(config, port, Mode::Blocking));
    })
    .await;
    running.create(MAPS, json!({"metadata": {"name": "told"}})).await;
    let mut stages = Vec::new();
    while let Ok(list) = received.try_recv() {
        let items = list["items"].as_array().expect("events").clone();
        assert_eq!(items.len(), 1, "no batches");
        stages.extend(items.into_iter().filter(|e| e["verb"] == "create" && e["user"]["username"] == "test"));
    }
    let stages: Vec<&Value> = stages.iter().map(|e| &e["stage"]).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseComplete"]);
}

#[tokio::test]
async fn a_strict_webhook_that_cannot_be_reached_refuses_requests() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let running = start(|config| {
        let (file, mut batch) = webhook(config, port, Mode::BlockingStrict);
        batch.first_backoff = Duration::from_millis(1);
        config.audit = log(&config.data_dir, EVERYTHING, Mode::Blocking);
        config.audit.log = None;
        config.audit.webhook = Some((file, batch));
    })
    .await;
    let refused = running.ask(Method::GET, MAPS, None).await;
    assert_eq!(refused.code(), 500);
}

#[tokio::test]
async fn a_strict_log_that_cannot_be_written_refuses_requests() {
    // A file that takes no byte.
    let running = start(|config| {
        let mut audit = log(&config.data_dir, "rules: [{level: Metadata}]\n", Mode::BlockingStrict);
        if let Some(log) = &mut audit.log {
            log.path = "/dev/full".into();
        }
        config.audit = audit;
    })
    .await;
    let refused = running.ask(Method::GET, MAPS, None).await;
    assert_eq!(refused.code(), 500);
    assert!(refused.text().contains("failed to store audit event"), "{}", refused.text());
}
