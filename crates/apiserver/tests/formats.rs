//! What clients may ask for and send: CBOR behind its gate, scale by apply, lists that outlive their state, and warnings.

use apiserver::{ApiServer, Config, Features, UserInfo};
use bytes::Bytes;
use http_body_util::BodyExt;
use kube::Client;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

struct Running {
    _server: ApiServer,
    client: Client,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn start(features: &str) -> Running {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = Config::new(dir.path());
    config.bind.set_port(0);
    config.features = features.parse::<Features>().expect("feature gates");
    let store = store::embedded::open(&dir.path().join("store.redb")).expect("a new store opens");
    let server = apiserver::start(config, store).await.expect("the server starts");
    let shutdown = CancellationToken::new();
    tokio::spawn({
        let (server, shutdown) = (server.clone(), shutdown.clone());
        async move { server.serve(shutdown).await }
    });
    let client = Client::new(server.in_process(UserInfo::system_master("test")), "default");
    Running { _server: server, client, shutdown, _dir: dir }
}

struct Got {
    code: u16,
    kind: String,
    warnings: usize,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl Running {
    async fn send(&self, method: &str, path: &str, (content, accept): (&str, &str), body: Vec<u8>) -> Got {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .header("accept", accept)
            .body(kube::client::Body::from(body))
            .expect("a request");
        let response = self.client.send(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Got {
            code: parts.status.as_u16(),
            kind: header("content-type").to_owned(),
            warnings: parts.headers.get_all("warning").iter().count(),
            body: body.collect().await.expect("a body").to_bytes(),
        }
    }

    async fn json(&self, method: &str, path: &str, content: &str, body: Value) -> Got {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send(method, path, (content, "application/json"), body).await
    }
}

const CBOR: &str = "application/cbor";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "binaryData": {"b": "AQI="}})
}

#[tokio::test]
async fn cbor_needs_its_gate() {
    let running = start("").await;
    let body = schema::cbor::encode(None, &config_map("a")).expect("CBOR");
    assert_eq!(running.send("POST", MAPS, (CBOR, "*/*"), body).await.code, 415);
    assert_eq!(running.send("GET", MAPS, ("", CBOR), Vec::new()).await.code, 406);
    let apply = ("application/apply-patch+cbor", "*/*");
    let path = format!("{MAPS}/a?fieldManager=m");
    assert_eq!(running.send("PATCH", &path, apply, Vec::new()).await.code, 415);
}

#[tokio::test]
async fn cbor_in_and_out() {
    let running = start("CBORServingAndStorage=true").await;
    let body = schema::cbor::encode(None, &config_map("a")).expect("CBOR");
    let made = running.send("POST", MAPS, (CBOR, CBOR), body).await;
    assert_eq!((made.code, made.kind.as_str()), (201, CBOR));
    assert!(made.body.starts_with(schema::cbor::MAGIC));
    // Raw data travels raw.
    assert!(made.body.windows(4).any(|w| w == [0xd6, 0x42, 1, 2]));
    let value = schema::cbor::decode(&made.body).expect("CBOR");
    assert_eq!(value["binaryData"]["b"], "AQI=");

    let mut config = config_map("a");
    config["data"] = json!({"k": "v"});
    let body = schema::cbor::encode(None, &config).expect("CBOR");
    let apply = ("application/apply-patch+cbor", "application/json");
    let applied = running.send("PATCH", &format!("{MAPS}/a?fieldManager=m&force=true"), apply, body).await;
    assert_eq!((applied.code, &applied.json()["data"]), (200, &json!({"k": "v"})));

    let list = running.send("GET", MAPS, ("", CBOR), Vec::new()).await;
    let list = schema::cbor::decode(&list.body).expect("CBOR");
    assert_eq!(list["kind"], "ConfigMapList");
    let missing = running.send("GET", &format!("{MAPS}/none"), ("", CBOR), Vec::new()).await;
    assert_eq!((missing.code, missing.kind.as_str()), (404, CBOR));
    assert_eq!(schema::cbor::decode(&missing.body).expect("CBOR")["reason"], "NotFound");

    let path = format!("{MAPS}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Da");
    let watch = running.send("GET", &path, ("", "application/cbor-seq"), Vec::new()).await;
    assert_eq!(watch.kind, "application/cbor-seq");
    let length = schema::cbor::item_length(&watch.body).expect("a frame");
    let event = schema::cbor::decode(&watch.body[..length]).expect("CBOR");
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
    assert_eq!(running.send("POST", MAPS, (CBOR, CBOR), vec![0xff]).await.code, 400);
}

#[tokio::test]
async fn replicas_change_hands_by_apply() {
    let running = start("").await;
    let path = "/apis/apps/v1/namespaces/default/deployments/d";
    let apply = "application/apply-patch+yaml";
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let made = running.json("PATCH", &format!("{path}?fieldManager=m1"), apply, deployment).await;
    assert_eq!(made.code, 201);
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": 2}});
    let refused = running.json("PATCH", &format!("{path}/scale?fieldManager=m2"), apply, scale.clone()).await;
    assert_eq!(refused.code, 409);
    assert_eq!(refused.json()["details"]["causes"][0]["field"], ".spec.replicas");
    let path_scale = format!("{path}/scale?fieldManager=m2&force=true");
    assert_eq!(running.json("PATCH", &path_scale, apply, scale).await.code, 200);
    let got = running.json("GET", path, "", Value::Null).await.json();
    assert_eq!(got["spec"]["replicas"], 2);
    let entries = got["metadata"]["managedFields"].as_array().expect("managers").clone();
    let of = |name: &str| entries.iter().find(|e| e["manager"] == name).expect("a manager").clone();
    assert_eq!(of("m2")["operation"], "Apply");
    assert_eq!(of("m2")["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert!(of("m1")["fieldsV1"]["f:spec"].get("f:replicas").is_none());
}

#[tokio::test]
async fn odd_tokens_are_refused() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let running = start("").await;
    for name in ["a", "b"] {
        assert_eq!(running.json("POST", MAPS, "application/json", config_map(name)).await.code, 201);
    }
    let page = running.json("GET", &format!("{MAPS}?limit=1"), "", Value::Null).await.json();
    assert_eq!(page["metadata"]["remainingItemCount"], 1);
    let token = page["metadata"]["continue"].as_str().expect("a token");
    let next = running.json("GET", &format!("{MAPS}?limit=1&continue={token}"), "", Value::Null).await.json();
    assert_eq!(next["items"][0]["metadata"]["name"], "b");
    assert_eq!(next["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
    let check = async |token: Value, code: u16| {
        let token = URL_SAFE_NO_PAD.encode(token.to_string());
        let got = running.json("GET", &format!("{MAPS}?continue={token}"), "", Value::Null).await;
        assert_eq!(got.code, code, "{}", got.json());
    };
    check(json!({"v": "meta.k8s.io/v1", "rv": -1, "start": "default/a\u{0}"}), 200).await;
    check(json!({"v": "meta.k8s.io/v1", "rv": 0, "start": "default/a\u{0}"}), 400).await;
    check(json!({"v": "meta.k8s.io/v2", "rv": 1, "start": "default/a\u{0}"}), 400).await;
    check(json!({"v": "meta.k8s.io/v1", "rv": 1, "start": "default/../kube-system/a"}), 400).await;
}

#[tokio::test]
async fn warnings_come_with_refusals() {
    let running = start("").await;
    let mut body = config_map("Upper");
    body["odd"] = 1.into();
    let refused = running.json("POST", MAPS, "application/json", body).await;
    assert_eq!((refused.code, refused.warnings), (422, 1));
}
