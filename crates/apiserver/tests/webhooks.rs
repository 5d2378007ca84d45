//! Admission webhooks against a server on loopback: what they see, change and refuse.

mod support;

use serde_json::{Value, json};
use support::{Hooks, Running, patch, start};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn rule(operations: &[&str], group: &str, version: &str, resources: &[&str]) -> Value {
    json!({"operations": operations, "apiGroups": [group], "apiVersions": [version], "resources": resources})
}

/// One webhook; `more` is put over the usual fields.
fn hook(hooks: &Hooks, path: &str, rule: Value, more: Value) -> Value {
    let name = format!("{}.example.com", path.trim_matches('/').replace('/', "-"));
    let mut hook = json!({
        "name": name, "clientConfig": hooks.config(path), "rules": [rule],
        "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 20,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        hook[key] = value.clone();
    }
    hook
}

async fn configure(running: &Running, mutating: bool, name: &str, webhooks: &[Value]) {
    let kind = if mutating { "Mutating" } else { "Validating" };
    let path = format!("/apis/admissionregistration.k8s.io/v1/{}webhookconfigurations", kind.to_lowercase());
    let body = json!({"metadata": {"name": name}, "webhooks": webhooks});
    running.post(&path, body).await.ok();
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "data": {"k": "1"}})
}

#[tokio::test]
async fn webhooks_see_the_request() {
    let running = start().await;
    let hooks = Hooks::serve(|_, _| json!({})).await;
    let all = rule(&["*"], "*", "*", &["*/*"]);
    configure(&running, false, "v", &[hook(&hooks, "/v", all, json!({}))]).await;

    running.post(&format!("{MAPS}?fieldManager=me"), map("a")).await.ok();
    let seen = hooks.take("/v");
    let [request] = seen.as_slice() else { panic!("{seen:?}") };
    let mut want = json!({
        "uid": request["uid"],
        "kind": {"group": "", "version": "v1", "kind": "ConfigMap"},
        "resource": {"group": "", "version": "v1", "resource": "configmaps"},
        "requestKind": {"group": "", "version": "v1", "kind": "ConfigMap"},
        "requestResource": {"group": "", "version": "v1", "resource": "configmaps"},
        "name": "a", "namespace": "default", "operation": "CREATE",
        "userInfo": {"username": "test", "groups": ["system:masters", "system:authenticated"]},
        "object": request["object"], "oldObject": null, "dryRun": false,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1", "fieldManager": "me"},
    });
    assert_eq!(*request, want);
    assert_eq!(request["object"]["kind"], "ConfigMap");
    assert_eq!(request["object"]["data"], json!({"k": "1"}));

    running.send("PATCH", &format!("{MAPS}/a"), json!({"data": {"k": "2"}})).await.ok();
    let seen = hooks.take("/v");
    let [request] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(request["operation"], "UPDATE");
    assert_eq!(request["options"]["kind"], "UpdateOptions");
    assert_eq!(
        (&request["object"]["data"]["k"], &request["oldObject"]["data"]["k"]),
        (&json!("2"), &json!("1"))
    );

    running.send("DELETE", &format!("{MAPS}/a?dryRun=All"), Value::Null).await.ok();
    let seen = hooks.take("/v");
    let [request] = seen.as_slice() else { panic!("{seen:?}") };
    want = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "dryRun": ["All"]});
    assert_eq!(
        (&request["operation"], &request["object"], &request["options"]),
        (&json!("DELETE"), &Value::Null, &want)
    );
    assert_eq!((&request["dryRun"], &request["oldObject"]["data"]["k"]), (&json!(true), &json!("2")));

    // A collection is asked about object by object.
    running.post(MAPS, map("b")).await.ok();
    hooks.take("/v");
    running.send("DELETE", &format!("{MAPS}?labelSelector=app"), Value::Null).await.ok();
    let mut names: Vec<_> =
        hooks.take("/v").iter().map(|r| r["oldObject"]["metadata"]["name"].to_string()).collect();
    names.sort();
    assert_eq!(names, ["\"a\"", "\"b\""]);
}

#[tokio::test]
async fn mutations_are_applied_in_order_and_repeated() {
    let running = start().await;
    let hooks = Hooks::serve(|path, request| {
        let object = &request["object"];
        match path {
            "/first" if object["data"]["second"].is_null() => {
                patch(json!([{"op": "add", "path": "/data/first", "value": "1"}]))
            }
            "/first" => patch(json!([{"op": "add", "path": "/data/again", "value": "1"}])),
            "/second" => patch(json!([
                {"op": "test", "path": "/data/first", "value": "1"},
                {"op": "add", "path": "/data/second", "value": "2"},
                {"op": "add", "path": "/unknown", "value": 3}
            ])),
            _ => json!({}),
        }
    })
    .await;
    let rule = || rule(&["CREATE"], "", "v1", &["configmaps"]);
    let repeat = json!({"reinvocationPolicy": "IfNeeded"});
    configure(&running, true, "b", &[hook(&hooks, "/second", rule(), json!({}))]).await;
    configure(&running, true, "a", &[hook(&hooks, "/first", rule(), repeat)]).await;
    configure(&running, false, "c", &[hook(&hooks, "/last", rule(), json!({}))]).await;
    let made = running.post(MAPS, map("a")).await.ok();
    assert_eq!(made["data"], json!({"k": "1", "first": "1", "second": "2", "again": "1"}));
    assert!(made.get("unknown").is_none());
    let order: Vec<String> = hooks.seen.lock().iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(order, ["/first", "/second", "/first", "/last"]);
    let last = hooks.take("/last");
    assert_eq!(last[0]["object"]["data"], made["data"]);
}

#[tokio::test]
async fn refusals_failures_and_warnings_are_told() {
    let running = start().await;
    let hooks = Hooks::serve(|path, request| match path {
        "/deny" => json!({"allowed": false, "warnings": ["mind"], "status": {"message": "not this", "code": 418, "reason": "Teapot"}}),
        "/late" => Value::Null,
        "/strange" => json!({"uid": "other"}),
        "/patching" => patch(json!([{"op": "add", "path": "/x", "value": request["name"]}])),
        _ => json!({"warnings": ["one \"quoted\"", "two"]}),
    })
    .await;
    let rule = || json!({"operations": ["CREATE", "DELETE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]});
    let only = |name: &str, more: Value| {
        let mut only = json!({"objectSelector": {"matchLabels": {"app": name}}});
        for (key, value) in more.as_object().into_iter().flatten() {
            only[key] = value.clone();
        }
        only
    };
    let late = |policy: &str| json!({"timeoutSeconds": 1, "failurePolicy": policy});
    configure(
        &running,
        false,
        "v",
        &[
            hook(&hooks, "/deny", rule(), only("deny", json!({}))),
            hook(&hooks, "/warn", rule(), only("warn", json!({}))),
            hook(&hooks, "/late", rule(), only("late", late("Fail"))),
            hook(&hooks, "/strange", rule(), only("strange", json!({}))),
            hook(&hooks, "/unfit", rule(), only("unfit", json!({"sideEffects": "NoneOnDryRun"}))),
        ],
    )
    .await;
    let mut ignored = hook(&hooks, "/late", rule(), only("ignored", late("Ignore")));
    ignored["name"] = "ignored.example.com".into();
    configure(
        &running,
        true,
        "m",
        &[ignored, hook(&hooks, "/patching", rule(), only("patching", json!({})))],
    )
    .await;

    let denied = running.post(MAPS, map("deny")).await;
    let head = "admission webhook \"deny.example.com\" denied the request";
    assert_eq!((denied.code, denied.message()), (418, format!("{head}: not this").as_str()));
    assert_eq!(denied.body["reason"], "Teapot");
    assert_eq!(denied.warnings, ["299 - \"mind\""]);

    let warned = running.post(MAPS, map("warn")).await;
    assert_eq!(warned.warnings, ["299 - \"one \\\"quoted\\\"\"", "299 - \"two\""]);
    warned.ok();

    let late = running.post(MAPS, map("late")).await;
    let want = format!(
        "Internal error occurred: failed calling webhook \"late.example.com\": failed to call webhook: \
         Post \"https://localhost:{}/late?timeout=1s\": context deadline exceeded",
        hooks.port
    );
    assert_eq!((late.code, late.message()), (500, want.as_str()));
    running.post(MAPS, map("ignored")).await.ok();

    let strange = running.post(MAPS, map("strange")).await;
    assert!(
        strange.message().contains("received invalid webhook response: expected response.uid="),
        "{}",
        strange.body
    );
    running.post(&format!("{MAPS}?dryRun=All"), map("unfit")).await.ok();

    // A deletion has no object that a patch could change.
    running.post(MAPS, map("patching")).await.ok();
    let unpatched = running.send("DELETE", &format!("{MAPS}/patching"), Value::Null).await;
    assert!(unpatched.message().contains("attempted to modify the object"), "{}", unpatched.body);
}

#[tokio::test]
async fn an_equivalent_resource_is_converted() {
    let running = start().await;
    let hooks = Hooks::serve(|path, request| match path {
        "/v2" => patch(json!([{"op": "replace", "path": "/spec/maxReplicas", "value": request["object"]["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"]}])),
        _ => json!({}),
    })
    .await;
    let rule = |version: &str| rule(&["CREATE"], "autoscaling", version, &["horizontalpodautoscalers"]);
    let exact = json!({"matchPolicy": "Exact"});
    let webhooks = [hook(&hooks, "/exact", rule("v2"), exact), hook(&hooks, "/v2", rule("v2"), json!({}))];
    configure(&running, true, "m", &webhooks).await;
    let scaler = json!({"metadata": {"name": "a"}, "spec": {
        "maxReplicas": 3, "targetCPUUtilizationPercentage": 60,
        "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let path = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let made = running.post(path, scaler).await.ok();
    assert_eq!((&made["apiVersion"], &made["spec"]["maxReplicas"]), (&json!("autoscaling/v1"), &json!(60)));
    assert_eq!(made["spec"]["targetCPUUtilizationPercentage"], 60);
    assert!(hooks.seen.lock().iter().all(|(path, _)| path == "/v2"));
    let request = &hooks.take("/v2")[0];
    assert_eq!(
        (&request["kind"]["version"], &request["requestKind"]["version"]),
        (&json!("v2"), &json!("v1"))
    );
}

#[tokio::test]
async fn scopes_and_namespaces_choose() {
    let running = start().await;
    let hooks = Hooks::serve(|_, _| json!({})).await;
    let mut cluster = rule(&["CREATE"], "*", "*", &["*"]);
    cluster["scope"] = "Cluster".into();
    let chosen = json!({"namespaceSelector": {"matchLabels": {"hooked": "yes"}}});
    let webhooks = [
        hook(&hooks, "/cluster", cluster, json!({})),
        hook(&hooks, "/chosen", rule(&["CREATE"], "", "v1", &["*"]), chosen),
    ];
    configure(&running, false, "v", &webhooks).await;
    // The configurations themselves are nobody's.
    configure(&running, false, "another", &[]).await;
    assert!(hooks.seen.lock().is_empty());
    let namespace = json!({"metadata": {"name": "n", "labels": {"hooked": "yes"}}});
    running.post("/api/v1/namespaces", namespace).await.ok();
    let mut seen: Vec<String> = hooks.seen.lock().drain(..).map(|(path, _)| path).collect();
    seen.sort();
    assert_eq!(seen, ["/chosen", "/cluster"]);
    running.post("/api/v1/namespaces/n/configmaps", map("a")).await.ok();
    running.post(MAPS, map("a")).await.ok();
    let seen: Vec<String> = hooks.seen.lock().drain(..).map(|(path, _)| path).collect();
    assert_eq!(seen, ["/chosen"]);
}
