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

#[tokio::test]
async fn an_old_webhook_is_asked_in_its_own_version() {
    let running = start().await;
    let hooks = Hooks::serve(|path, _| match path {
        // Of v1beta1 neither the uid nor the type of a patch was ever demanded.
        "/old" => json!({"uid": "", "patchType": null, "patch": patch(json!([
            {"op": "add", "path": "/data/old", "value": "1"}]))["patch"]}),
        _ => json!({"uid": "", "allowed": false, "status": {"message": "not this"}}),
    })
    .await;
    let rule = || rule(&["CREATE"], "", "v1", &["configmaps"]);
    let beta = json!({"admissionReviewVersions": ["v2", "v1beta1", "v1"]});
    configure(&running, true, "m", &[hook(&hooks, "/old", rule(), beta.clone())]).await;
    let made = running.post(MAPS, map("a")).await.ok();
    assert_eq!(made["data"], json!({"k": "1", "old": "1"}));
    let version = hooks.seen.lock()[0].1["apiVersion"].clone();
    assert_eq!(version, "admission.k8s.io/v1beta1");
    configure(&running, false, "v", &[hook(&hooks, "/deny", rule(), beta)]).await;
    let refused = running.post(MAPS, map("b")).await;
    assert_eq!(refused.message(), "admission webhook \"deny.example.com\" denied the request: not this");
}

#[tokio::test]
async fn connections_are_admitted_by_their_options() {
    let running = start().await;
    let hooks = Hooks::serve(|_, request| match request["name"].as_str() {
        Some("closed") => json!({"allowed": false, "status": {"message": "keep out"}}),
        _ => json!({}),
    })
    .await;
    running
        .post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}}))
        .await
        .ok();
    for name in ["open", "closed"] {
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        running.post("/api/v1/namespaces/default/pods", pod).await.ok();
    }
    let resources =
        ["pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "services/proxy", "nodes/proxy"];
    let rule = rule(&["CONNECT"], "", "v1", &resources);
    configure(&running, false, "v", &[hook(&hooks, "/v", rule, json!({}))]).await;
    let check = async |path: &str, kind: &str, want: Value| {
        let path = format!("/api/v1/{path}");
        // Nothing is at the other end; what counts is who was asked before.
        let answer = running.send("GET", &path, Value::Null).await;
        assert!(answer.code >= 400 && !answer.message().contains("denied"), "{path}: {}", answer.body);
        let seen = hooks.take("/v");
        let [request] = seen.as_slice() else { panic!("{path}: {seen:?}") };
        let gvk = json!({"group": "", "version": "v1", "kind": kind});
        assert_eq!((&request["operation"], &request["kind"]), (&json!("CONNECT"), &gvk), "{path}");
        let mut whole = want.clone();
        (whole["kind"], whole["apiVersion"]) = (kind.into(), "v1".into());
        assert_eq!(request["object"], whole, "{path}");
        assert_eq!((&request["oldObject"], &request["dryRun"]), (&Value::Null, &json!(false)), "{path}");
        let closed = path.replace("/open/", "/closed/");
        let refused = running.send("GET", &closed, Value::Null).await;
        let want = "admission webhook \"v.example.com\" denied the request: keep out";
        assert_eq!((refused.code, refused.message()), (400, want), "{closed}");
        hooks.take("/v");
    };
    let pods = "namespaces/default/pods/open";
    let exec = json!({"stdout": true, "stderr": true, "command": ["a", "b"]});
    check(&format!("{pods}/exec?stdout=true&stderr=true&command=a&command=b"), "PodExecOptions", exec).await;
    let attach = json!({"stdin": true, "stdout": true, "stderr": true, "container": "c"});
    check(&format!("{pods}/attach?stdin=true&container=c"), "PodAttachOptions", attach).await;
    check(&format!("{pods}/portforward?ports=80"), "PodPortForwardOptions", json!({"ports": [80]})).await;
    check(&format!("{pods}/proxy/a/b"), "PodProxyOptions", json!({"path": "/a/b"})).await;
    check("namespaces/default/services/open/proxy/x", "ServiceProxyOptions", json!({"path": "/x"})).await;
    check("nodes/open/proxy/x", "NodeProxyOptions", json!({"path": "/x"})).await;
}

#[tokio::test]
async fn custom_resources_pass_the_webhooks_with_their_parts() {
    let running = start().await;
    support::ships(&running).await;
    let hooks = Hooks::serve(|path, request| match (path, request["object"]["spec"]["masts"].as_i64()) {
        ("/m", Some(_)) if request["operation"] == "CREATE" => {
            patch(json!([{"op": "add", "path": "/spec/sails", "value": ["main"]}]))
        }
        ("/v", Some(9)) => json!({"allowed": false, "status": {"message": "too many masts"}}),
        _ => json!({}),
    })
    .await;
    let rule = || rule(&["*"], "fleet.example.com", "v1", &["ships", "ships/status", "ships/scale"]);
    configure(&running, true, "m", &[hook(&hooks, "/m", rule(), json!({}))]).await;
    let conditions =
        json!({"matchConditions": [{"name": "c", "expression": "request.operation != 'DELETE'"}]});
    configure(&running, false, "v", &[hook(&hooks, "/v", rule(), conditions)]).await;
    let ships = "/apis/fleet.example.com/v1/namespaces/default/ships";
    let made = running.post(ships, support::ship("a", 3)).await.ok();
    assert_eq!(made["spec"], json!({"masts": 3, "sails": ["main"]}));
    let refused = running.post(ships, support::ship("b", 9)).await;
    assert!(refused.message().ends_with("denied the request: too many masts"), "{}", refused.body);
    hooks.take("/v");
    let status = json!({"status": {"sailing": true}});
    running.send("PATCH", &format!("{ships}/a/status"), status).await.ok();
    let request = hooks.take("/v").remove(0);
    assert_eq!((&request["subResource"], &request["kind"]["kind"]), (&json!("status"), &json!("Ship")));
    running.send("PATCH", &format!("{ships}/a/scale"), json!({"spec": {"replicas": 2}})).await.ok();
    let request = hooks.take("/v").remove(0);
    assert_eq!((&request["subResource"], &request["kind"]["kind"]), (&json!("scale"), &json!("Scale")));
    assert_eq!(request["object"]["spec"]["replicas"], 2);
    running.send("DELETE", &format!("{ships}/a"), Value::Null).await.ok();
    assert!(hooks.take("/v").is_empty(), "the condition leaves deletions out");
}

/// The value of the series of this name that has all of these labels.
fn counted(text: &str, name: &str, labels: &[&str]) -> f64 {
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let mut found = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    let line = found.next().unwrap_or_else(|| panic!("no {name} with {labels:?}"));
    line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
}

#[tokio::test]
async fn calls_are_counted_under_upstreams_names() {
    let running = start().await;
    let hooks = Hooks::serve(|path, _| match path {
        "/counted-deny" => json!({"allowed": false, "status": {"code": 418}}),
        _ => json!({"uid": "strange"}),
    })
    .await;
    let rule = |resource: &str| rule(&["CREATE"], "", "v1", &[resource]);
    let open = json!({"failurePolicy": "Ignore"});
    configure(
        &running,
        false,
        "v",
        &[
            hook(
                &hooks,
                "/counted-deny",
                rule("configmaps"),
                json!({"matchConditions": [
            {"name": "c", "expression": "object.metadata.name != 'spared'"}]}),
            ),
            hook(&hooks, "/counted-open", rule("secrets"), open),
            hook(&hooks, "/counted-fail", rule("endpoints"), json!({})),
        ],
    )
    .await;
    running.post(MAPS, map("refused")).await;
    running.post(MAPS, map("spared")).await.ok();
    running.post("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await.ok();
    running.post("/api/v1/namespaces/default/endpoints", json!({"metadata": {"name": "e"}})).await;
    let text = running.text("/metrics").await;
    let deny = "name=\"counted-deny.example.com\"";
    let (open, fail) = ("name=\"counted-open.example.com\"", "name=\"counted-fail.example.com\"");
    let check = |name: &str, labels: &[&str]| {
        assert_eq!(counted(&text, &format!("apiserver_admission_{name}"), labels), 1.0, "{name} {labels:?}");
    };
    let validating = "type=\"validating\"";
    let create = "operation=\"CREATE\"";
    check("webhook_admission_duration_seconds_count", &[deny, validating, create, "rejected=\"true\""]);
    check("webhook_request_total", &[deny, validating, create, "code=\"418\"", "rejected=\"true\""]);
    let no_error = "error_type=\"no_error\"";
    check("webhook_rejection_count", &[deny, validating, create, no_error, "rejection_code=\"418\""]);
    check("match_condition_exclusions_total", &[deny, "kind=\"webhook\"", create]);
    check("webhook_fail_open_count", &[open, validating]);
    check("webhook_request_total", &[open, "code=\"503\"", "rejected=\"false\""]);
    let calling = "error_type=\"calling_webhook_error\"";
    check("webhook_rejection_count", &[fail, calling, "rejection_code=\"503\""]);
}

#[tokio::test]
async fn a_callers_trace_goes_on_to_the_webhooks() {
    let running = start().await;
    let hooks = Hooks::serve(|_, _| json!({})).await;
    let rule = rule(&["CREATE"], "", "v1", &["configmaps"]);
    configure(&running, false, "v", &[hook(&hooks, "/v", rule, json!({}))]).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = http::Request::post(MAPS)
        .header("content-type", "application/json")
        .header("traceparent", trace)
        .body(kube::client::Body::from(map("a").to_string().into_bytes()))
        .expect("a request");
    let answer = running.client.send(request).await.expect("an answer");
    assert_eq!(answer.status(), 201);
    assert_eq!(*hooks.traces.lock(), [trace]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_comes_into_a_namespace_that_ended_while_it_was_admitted() {
    let running = start().await;
    let (called, mut calls) = tokio::sync::mpsc::unbounded_channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = parking_lot::Mutex::new(wait);
    let hooks = Hooks::serve(move |_, _| {
        called.send(()).expect("the test waits");
        tokio::task::block_in_place(|| wait.lock().recv()).expect("the test goes on");
        json!({})
    })
    .await;
    let rule = rule(&["CREATE"], "", "v1", &["configmaps"]);
    configure(&running, false, "v", &[hook(&hooks, "/v", rule, json!({}))]).await;
    let path = "/api/v1/namespaces/n";
    let finalize = async || {
        let mut namespace = running.send("GET", path, Value::Null).await.ok();
        namespace["spec"]["finalizers"] = json!([]);
        running.send("PUT", &format!("{path}/finalize"), namespace).await.ok();
        assert_eq!(running.send("GET", path, Value::Null).await.code, 404);
    };
    for (what, code, message) in [
        ("another label", 201, ""),
        ("marked", 403, "unable to create new content in namespace n because it is being terminated"),
        ("gone", 404, "namespaces \"n\" not found"),
    ] {
        running.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await.ok();
        let meanwhile = async {
            calls.recv().await.expect("the webhook is called");
            match what {
                "another label" => {
                    let labels = json!({"metadata": {"labels": {"a": "b"}}});
                    running.send("PATCH", path, labels).await.ok();
                }
                "marked" => drop(running.send("DELETE", path, Value::Null).await.ok()),
                _ => {
                    running.send("DELETE", path, Value::Null).await.ok();
                    finalize().await;
                }
            }
            go.send(()).expect("the webhook waits");
        };
        let path = format!("{path}/configmaps");
        let (got, ()) = tokio::join!(running.post(&path, map("a")), meanwhile);
        assert_eq!(got.code, code, "{what}: {}", got.body);
        assert!(got.message().contains(message), "{what}: {}", got.body);
        let left = running.send("GET", &path, Value::Null).await.ok();
        assert_eq!(left["items"].as_array().map(Vec::len), Some(usize::from(code == 201)), "{what}");
        if what == "another label" {
            running.send("DELETE", &format!("{path}/a"), Value::Null).await.ok();
            running.send("DELETE", "/api/v1/namespaces/n", Value::Null).await.ok();
        }
        if what != "gone" {
            finalize().await;
        }
    }
}
