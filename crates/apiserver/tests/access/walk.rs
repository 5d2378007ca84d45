//! Every endpoint with every verb, asked by nobody, by somebody with a wrong token and by a user without rights: 401 or 403,
//! whatever stands behind it: built-in kinds, custom resources, an extension server, subresources, paths.

use apiserver::AccessOptions;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::support::{Running, start};

/// What every user may, by the roles that a new cluster has.
const EVERYBODYS: [&str; 3] = ["selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"];

/// Paths that are no resources, and nobody's business. Others are open to all or to every user.
const PATHS: [&str; 8] =
    ["/metrics", "/metrics/slis", "/statusz", "/flagz", "/logs", "/debug/pprof", "/readyz/ping", "/nosuch"];
const OPEN: [&str; 4] = ["/livez", "/readyz", "/healthz", "/version"];

async fn prepared(anonymous: bool) -> (Running, tempfile::TempDir) {
    let files = tempfile::tempdir().expect("a directory");
    let tokens = files.path().join("tokens.csv");
    std::fs::write(&tokens, "known,jane,1\n").expect("written");
    let running = start(|config| {
        config.anonymous = anonymous;
        config.access = AccessOptions { token_auth_file: Some(tokens), ..AccessOptions::default() };
        // A flood by one user is not what is looked at.
        config.protection.priority_and_fairness = false;
    })
    .await;
    let definition = json!({"metadata": {"name": "ships.fleet.example.com"}, "spec": {
        "group": "fleet.example.com", "scope": "Namespaced", "names": {"plural": "ships", "kind": "Ship"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    running.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    let service = json!({"metadata": {"name": "v1.ext.example.com"}, "spec": {
        "group": "ext.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100,
        "service": {"namespace": "default", "name": "none"}, "insecureSkipTLSVerify": true}});
    running.create("/apis/apiregistration.k8s.io/v1/apiservices", &service).await;
    running.until("/apis/fleet.example.com/v1", |answer| answer.code == 200).await;
    (running, files)
}

/// Method and path of every verb of every resource that discovery knows.
async fn endpoints(running: &Running) -> Vec<(&'static str, String)> {
    let admin = running.admin();
    let mut all = Vec::new();
    let mut bases = vec!["/api/v1".to_owned()];
    let groups = running.get(Some(&admin), "/apis").await.json();
    for group in groups["groups"].as_array().expect("groups") {
        for version in group["versions"].as_array().expect("versions") {
            bases.push(format!("/apis/{}", version["groupVersion"].as_str().expect("a version")));
        }
    }
    for base in bases.iter().filter(|base| !base.contains("ext.example.com")) {
        let list = running.get(Some(&admin), base).await.json();
        for resource in list["resources"].as_array().unwrap_or_else(|| panic!("{base}: {list}")) {
            add(&mut all, base, resource);
        }
    }
    let things = json!({"name": "things", "namespaced": true, "verbs": [
        "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]});
    add(&mut all, "/apis/ext.example.com/v1", &things);
    all
}

fn add(all: &mut Vec<(&'static str, String)>, base: &str, resource: &Value) {
    let name = resource["name"].as_str().expect("a name");
    let (plural, part) = name.split_once('/').map_or((name, None), |(plural, part)| (plural, Some(part)));
    let scope = if resource["namespaced"] == true { "/namespaces/default" } else { "" };
    let collection = format!("{base}{scope}/{plural}");
    let one = match part {
        Some(part) => format!("{collection}/x/{part}"),
        None => format!("{collection}/x"),
    };
    for verb in resource["verbs"].as_array().expect("verbs").iter().filter_map(Value::as_str) {
        let (method, path) = match verb {
            "get" => ("GET", one.clone()),
            "list" => ("GET", collection.clone()),
            "watch" => ("GET", format!("{collection}?watch=1")),
            "create" if part.is_some() => ("POST", one.clone()),
            "create" => ("POST", collection.clone()),
            "update" => ("PUT", one.clone()),
            "patch" => ("PATCH", one.clone()),
            "delete" => ("DELETE", one.clone()),
            "deletecollection" => ("DELETE", collection.clone()),
            other => panic!("{name}: an unknown verb {other}"),
        };
        all.push((method, path));
    }
    if part == Some("proxy") {
        all.push(("GET", format!("{one}/deeper")));
    }
    if matches!(part, Some("exec" | "attach" | "portforward")) {
        all.push(("GET", one));
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn ask(sender: &mut Sender, method: &str, path: &str, token: Option<&str>) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if matches!(method, "GET" | "DELETE") { "" } else { "{}" };
    let request = request.header("content-type", kind).body(Full::new(Bytes::from(body))).expect("a request");
    sender.ready().await.expect("the connection stands");
    let answer = sender.send_request(request).await.expect("answered");
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or_default())
}

fn check(method: &str, path: &str, (code, body): (u16, Value), expect: u16, who: &str) {
    let reason = if expect == 401 { "Unauthorized" } else { "Forbidden" };
    assert_eq!((code, body["reason"].as_str()), (expect, Some(reason)), "{who}: {method} {path}: {body}");
}

#[tokio::test]
async fn nobody_and_the_wrong_user_are_refused_everywhere() {
    let (running, _files) = prepared(true).await;
    let mut sender = running.connect(None).await;
    let all = endpoints(&running).await;
    assert!(all.len() > 600, "{} endpoints", all.len());
    assert!(all.iter().any(|(_, path)| path.ends_with("/ships/x/scale")));
    for (method, path) in &all {
        let answer = ask(&mut sender, method, path, None).await;
        check(method, path, answer, 403, "nobody");
        let answer = ask(&mut sender, method, path, Some("wrong")).await;
        check(method, path, answer, 401, "a wrong token");
        if EVERYBODYS.iter().any(|own| path.ends_with(own)) {
            continue;
        }
        let answer = ask(&mut sender, method, path, Some("known")).await;
        check(method, path, answer, 403, "jane");
    }
    for path in PATHS {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let answer = ask(&mut sender, method, path, None).await;
            check(method, path, answer, 403, "nobody");
            let answer = ask(&mut sender, method, path, Some("known")).await;
            check(method, path, answer, 403, "jane");
        }
    }
    for path in ["/api", "/apis", "/apis/apps/v1", "/openapi/v2", "/openapi/v3"] {
        check("GET", path, ask(&mut sender, "GET", path, None).await, 403, "nobody");
        assert_eq!(ask(&mut sender, "GET", path, Some("known")).await.0, 200, "{path}");
    }
    for path in OPEN {
        assert_eq!(ask(&mut sender, "GET", path, None).await.0, 200, "{path}");
        check("POST", path, ask(&mut sender, "POST", path, None).await, 403, "nobody");
    }
}

#[tokio::test]
async fn without_anonymous_access_nobody_comes_in() {
    let (running, _files) = prepared(false).await;
    let mut sender = running.connect(None).await;
    for (method, path) in endpoints(&running).await {
        check(method, &path, ask(&mut sender, method, &path, None).await, 401, "nobody");
    }
    for path in PATHS.iter().chain(&OPEN).chain(&["/api", "/apis", "/openapi/v2"]) {
        check("GET", path, ask(&mut sender, "GET", path, None).await, 401, "nobody");
    }
}
