//! Priority and fairness on a whole server: configured through its API, felt by clients.

use std::time::Duration;

use apiserver::UserInfo;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{Answer, Running, start, user};

const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A server with one seat for the group `testers`, and queues of this form; the answer is the level's uid.
async fn tight(running: &Running, queuing: Value) -> String {
    let binding = json!({
        "metadata": {"name": "testers"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "testers"}],
    });
    running.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
    let level = json!({
        "metadata": {"name": "tight"},
        "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 1,
            "borrowingLimitPercent": 0,
            "limitResponse": {"type": "Queue", "queuing": queuing},
        }},
    });
    let level = running.create(LEVELS, level).await;
    let schema = json!({
        "metadata": {"name": "tight"},
        "spec": {
            "priorityLevelConfiguration": {"name": "tight"},
            "matchingPrecedence": 10,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{
                "subjects": [{"kind": "Group", "group": {"name": "testers"}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}],
            }],
        },
    });
    running.create(SCHEMAS, schema).await;
    let uid = level["metadata"]["uid"].as_str().expect("a uid").to_owned();
    loop {
        let answer = running.ask_as(tester("probe"), Method::GET, MAPS, None).await;
        if answer.header("x-kubernetes-pf-prioritylevel-uid") == uid {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    uid
}

fn tester(name: &str) -> UserInfo {
    user(name, &["testers"])
}

/// The frames of a body that comes later.
type Frames = futures::stream::BoxStream<'static, Result<Frame<Bytes>, String>>;

/// A create whose body comes when it is told to.
fn held() -> (mpsc::Sender<Bytes>, Request<StreamBody<Frames>>) {
    let (send, receive) = mpsc::channel::<Bytes>(1);
    let frames = ReceiverStream::new(receive).map(|bytes| Ok(Frame::data(bytes))).boxed();
    let request = Request::post(MAPS).header("content-type", "application/json");
    (send, request.body(StreamBody::new(frames)).expect("a request"))
}

async fn release(send: mpsc::Sender<Bytes>, name: &str) {
    send.send(json!({"metadata": {"name": name}}).to_string().into()).await.expect("somebody reads");
}

#[tokio::test]
async fn a_flood_by_one_user_does_not_keep_another_from_being_served() {
    let running = start(|config| config.protection.max_requests_inflight = 20).await;
    // A hand of one queue: the order in which requests are served is then known.
    tight(&running, json!({"queues": 64, "handSize": 1, "queueLengthLimit": 50})).await;
    let names: Vec<String> = (0..20).map(|i| format!("flood-{i}")).collect();
    let mut flood = FuturesUnordered::new();
    let mut senders = Vec::new();
    for name in &names {
        let (send, request) = held();
        senders.push((send, name));
        flood.push(running.send(tester("flood"), request));
    }
    // All of them are taken in: one is served, the others wait.
    assert!(futures::poll!(flood.next()).is_pending());
    let mut calm = std::pin::pin!(running.ask_as(tester("calm"), Method::GET, MAPS, None));
    assert!(futures::poll!(&mut calm).is_pending(), "there is one seat, and it is taken");
    let other = running.ask_as(user("nobody", &[]), Method::GET, MAPS, None).await;
    assert_eq!(other.code(), 403, "other levels feel nothing");
    // One request of the flood ends; the next to be served is the other user's.
    let mut senders = senders.into_iter();
    let (send, name) = senders.next().expect("the first");
    release(send, name).await;
    let first: Answer = flood.next().await.expect("an answer");
    assert_eq!(first.code(), 201, "{}", first.text());
    let answer = tokio::time::timeout(Duration::from_secs(20), &mut calm).await.expect("served in its turn");
    assert_eq!(answer.code(), 200);
    assert!(futures::poll!(flood.next()).is_pending());
    assert_eq!(flood.len(), 19, "all others of the flood still wait");
    for (send, name) in senders {
        release(send, name).await;
    }
    while let Some(answer) = flood.next().await {
        assert_eq!(answer.code(), 201, "{}", answer.text());
    }
}

#[tokio::test]
async fn what_finds_no_room_is_told_when_to_come_back() {
    let running = start(|config| config.protection.max_requests_inflight = 20).await;
    let level = tight(&running, json!({"queues": 1, "handSize": 1, "queueLengthLimit": 2})).await;
    let mut open = FuturesUnordered::new();
    let mut senders = Vec::new();
    for i in 0..3 {
        let name = format!("held-{i}");
        let (send, request) = held();
        senders.push((send, name));
        open.push(running.send(tester("flood"), request));
    }
    assert!(futures::poll!(open.next()).is_pending());
    let refused = running.ask_as(tester("flood"), Method::GET, MAPS, None).await;
    assert_eq!(refused.code(), 429);
    assert_eq!(refused.text(), "Too many requests, please try again later.\n");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.header("x-kubernetes-pf-prioritylevel-uid"), level);
    assert!(!refused.header("x-kubernetes-pf-flowschema-uid").is_empty());
    let metrics = running.ask(Method::GET, "/metrics", None).await;
    let rejected = "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"tight\",priority_level=\"tight\",reason=\"queue-full\"}";
    assert!(metrics.text().contains(rejected), "{}", metrics.text());
    for (send, name) in senders {
        release(send, &name).await;
    }
    while let Some(answer) = open.next().await {
        assert_eq!(answer.code(), 201, "{}", answer.text());
    }
}

#[tokio::test]
async fn schemas_tell_whether_their_level_exists_and_mandatory_objects_come_back() {
    let running = start(|_| {}).await;
    let dangling = |value: &Value| {
        let conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == "Dangling")
    };
    let path = format!("{SCHEMAS}/lost");
    let wait = async |path: &str, status: &str| loop {
        let value = running.ask(Method::GET, path, None).await.json();
        if dangling(&value).is_some_and(|c| c["status"] == status) {
            break value;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    // Also of what was there before anything changed.
    wait(&format!("{SCHEMAS}/catch-all"), "False").await;
    let schema = json!({
        "metadata": {"name": "lost"},
        "spec": {"priorityLevelConfiguration": {"name": "nowhere"}, "matchingPrecedence": 500},
    });
    running.create(SCHEMAS, schema).await;
    let value = wait(&path, "True").await;
    let message = dangling(&value).expect("a condition")["message"].clone();
    let expect = "This FlowSchema references the PriorityLevelConfiguration object named \"nowhere\" but there is no such object";
    assert_eq!(message, expect);
    let level = json!({"metadata": {"name": "nowhere"}, "spec": {"type": "Limited",
        "limited": {"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}}}});
    running.create(LEVELS, level).await;
    wait(&path, "False").await;

    let gone = running.ask(Method::DELETE, &format!("{LEVELS}/catch-all"), None).await;
    assert_eq!(gone.code(), 200);
    let old = running.ask(Method::GET, &format!("{SCHEMAS}/catch-all"), None).await;
    assert_eq!(old.code(), 200);
    loop {
        let level = running.ask(Method::GET, &format!("{LEVELS}/catch-all"), None).await;
        if level.code() == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let change = json!({"spec": {"matchingPrecedence": 9999}});
    let request =
        Request::patch(format!("{SCHEMAS}/catch-all")).header("content-type", "application/merge-patch+json");
    let request =
        request.body(http_body_util::Full::new(Bytes::from(change.to_string()))).expect("a request");
    let patched = running.send(UserInfo::system_master("test"), request).await;
    // Either validation refuses what the mandatory schema must be, or the server restores it.
    if patched.code() == 200 {
        loop {
            let value = running.ask(Method::GET, &format!("{SCHEMAS}/catch-all"), None).await.json();
            if value["spec"]["matchingPrecedence"] == 10_000 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
