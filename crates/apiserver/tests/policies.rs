//! Admission policies: what they refuse and change, with bindings, parameters, conditions and variables.

mod support;

use serde_json::{Value, json};
use support::{Got, Hooks, Running, patch, start};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn rules(operations: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"resourceRules": [
        {"operations": operations, "apiGroups": [group], "apiVersions": ["*"], "resources": resources},
    ]})
}

/// Makes a policy for writes of ConfigMaps; `spec` is put over that.
async fn policy(running: &Running, mutating: bool, name: &str, spec: Value) -> Got {
    let mut whole = json!({"matchConstraints": rules(&["CREATE", "UPDATE"], "", &["configmaps"])});
    if mutating {
        whole["reinvocationPolicy"] = "Never".into();
    }
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    let path = format!("{GROUP}/{}admissionpolicies", if mutating { "mutating" } else { "validating" });
    running.post(&path, json!({"metadata": {"name": name}, "spec": whole})).await
}

async fn bind(running: &Running, mutating: bool, policy: &str, name: &str, spec: Value) {
    let mut whole = json!({"policyName": policy});
    if !mutating {
        whole["validationActions"] = json!(["Deny"]);
    }
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    let kind = if mutating { "mutating" } else { "validating" };
    let path = format!("{GROUP}/{kind}admissionpolicybindings");
    running.post(&path, json!({"metadata": {"name": name}, "spec": whole})).await.ok();
}

fn map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

#[tokio::test]
async fn a_policy_refuses_with_reason_and_message() {
    let running = start().await;
    let validations = json!([
        {"expression": "!has(object.data) || size(object.data) < 2", "reason": "Forbidden",
            "messageExpression": "'too many: ' + string(size(object.data))"},
        {"expression": "!object.metadata.name.startsWith('x')", "message": "no x"},
        {"expression": "object.data.size() >= 0"},
    ]);
    policy(&running, false, "p", json!({"validations": validations})).await.ok();
    // Without a binding a policy does nothing.
    running.post(MAPS, map("a", json!({"a": "1", "b": "2"}))).await.ok();
    bind(&running, false, "p", "b", json!({})).await;
    let denied = running.post(MAPS, map("b", json!({"a": "1", "b": "2"}))).await;
    let why = "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: too many: 2";
    assert_eq!(denied.message(), format!("configmaps \"b\" is forbidden: {why}"));
    assert_eq!((denied.code, &denied.body["reason"]), (403, &json!("Forbidden")));
    assert_eq!(denied.body["details"]["causes"], json!([{"message": why}]));
    let denied = running.post(MAPS, map("x", json!({"a": "1"}))).await;
    assert_eq!((denied.code, &denied.body["reason"]), (422, &json!("Invalid")));
    assert!(denied.message().ends_with("denied request: no x"), "{}", denied.message());
    // A failing expression is a refusal, unless failures are ignored.
    let failed = running.post(MAPS, json!({"metadata": {"name": "c"}})).await;
    assert!(
        failed
            .message()
            .ends_with("expression 'object.data.size() >= 0' resulted in error: no such key: data"),
        "{}",
        failed.message()
    );
    let path = format!("{GROUP}/validatingadmissionpolicies/p");
    running.send("PATCH", &path, json!({"spec": {"failurePolicy": "Ignore"}})).await.ok();
    running.post(MAPS, json!({"metadata": {"name": "c"}})).await.ok();
}

#[tokio::test]
async fn actions_conditions_variables_and_the_authorizer() {
    let running = start().await;
    let spec = json!({
        "variables": [{"name": "n", "expression": "size(object.data)"},
            {"name": "big", "expression": "variables.n > 1"}],
        "matchConditions": [{"name": "named", "expression": "object.metadata.name != 'exempt'"}],
        "validations": [
            {"expression": "!variables.big", "message": "big"},
            {"expression": "namespaceObject.metadata.name == request.namespace"},
            {"expression": "authorizer.group('').resource('pods').check('create').allowed()"},
            {"expression": "authorizer.requestResource.check('create').allowed()"},
            {"expression": "!authorizer.serviceAccount('default', 'default').path('/x').check('get').allowed()"},
            {"expression": "request.operation == 'CREATE' && request.userInfo.username == 'test' && oldObject == null"},
        ],
    });
    policy(&running, false, "p", spec).await.ok();
    bind(&running, false, "p", "b", json!({"validationActions": ["Warn", "Audit"]})).await;
    let data = || json!({"a": "1", "b": "2"});
    let warned = running.post(MAPS, map("a", data())).await;
    let want = "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': big\"";
    assert_eq!(warned.warnings, [want]);
    warned.ok();
    let exempt = running.post(MAPS, map("exempt", data())).await;
    assert!(exempt.warnings.is_empty());
    exempt.ok();
    let small = running.post(MAPS, map("small", json!({"a": "1"}))).await;
    assert_eq!((small.code, small.warnings), (201, Vec::new()));
}

#[tokio::test]
async fn parameters_are_found_by_name_and_selector() {
    let running = start().await;
    let limit = |name: &str, most: &str| json!({"metadata": {"name": name, "labels": {"limit": "yes"}}, "data": {"most": most}});
    running.post(MAPS, limit("limit", "2")).await.ok();
    let spec = json!({
        "matchConstraints": rules(&["CREATE"], "", &["secrets"]),
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "validations": [{"expression": "size(object.data) <= int(params.data.most)"}],
    });
    policy(&running, false, "p", spec).await.ok();
    let named =
        json!({"paramRef": {"name": "limit", "namespace": "default", "parameterNotFoundAction": "Deny"}});
    bind(&running, false, "p", "b", named).await;
    let secret = |name: &str, n: usize| {
        let data: serde_json::Map<String, Value> = (0..n).map(|i| (format!("k{i}"), "dg==".into())).collect();
        json!({"metadata": {"name": name}, "data": data})
    };
    let path = "/api/v1/namespaces/default/secrets";
    running.post(path, secret("a", 2)).await.ok();
    assert_eq!(running.post(path, secret("b", 3)).await.code, 422);
    running.send("DELETE", &format!("{MAPS}/limit"), Value::Null).await.ok();
    let missing = running.post(path, secret("b", 1)).await;
    assert!(
        missing.message().ends_with(
            "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
        ),
        "{}",
        missing.message()
    );
    // All that are selected count; none is as good as nothing to say.
    running.send("DELETE", &format!("{GROUP}/validatingadmissionpolicybindings/b"), Value::Null).await.ok();
    let selected = json!({"paramRef": {"selector": {"matchLabels": {"limit": "yes"}}, "parameterNotFoundAction": "Allow"}});
    bind(&running, false, "p", "c", selected).await;
    running.post(path, secret("b", 5)).await.ok();
    running.post(MAPS, limit("one", "3")).await.ok();
    running.post(MAPS, limit("two", "1")).await.ok();
    assert_eq!(running.post(path, secret("c", 2)).await.code, 422);
    running.post(path, secret("c", 1)).await.ok();
}

#[tokio::test]
async fn a_policy_chooses_requests() {
    let running = start().await;
    let mut matches = rules(&["*"], "", &["configmaps"]);
    matches["excludeResourceRules"] = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
        "resources": ["configmaps"], "resourceNames": ["spared"]}]);
    let spec =
        json!({"matchConstraints": matches, "validations": [{"expression": "false", "message": "no"}]});
    policy(&running, false, "p", spec).await.ok();
    let chosen = json!({"matchResources": {"objectSelector": {"matchLabels": {"l": "1"}}}});
    bind(&running, false, "p", "b", chosen).await;
    let labelled = |name: &str| json!({"metadata": {"name": name, "labels": {"l": "1"}}});
    running.post(MAPS, json!({"metadata": {"name": "a"}})).await.ok();
    running.post(MAPS, labelled("spared")).await.ok();
    assert_eq!(running.post(MAPS, labelled("b")).await.code, 422);
    // Deletes see the object that goes.
    assert_eq!(running.send("DELETE", &format!("{MAPS}/a"), Value::Null).await.code, 200);
}

#[tokio::test]
async fn objects_are_changed_by_configurations_and_patches() {
    let running = start().await;
    let mutations = json!([
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{labels: {'who': request.userInfo.username, 'n': string(params.data.n)}}}"}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'test', path: '/metadata/name', value: 'a'}, JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('e.com/x'), value: 'y'}]"}},
    ]);
    running.post("/api/v1/namespaces/kube-system/configmaps", map("param", json!({"n": "7"}))).await.ok();
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "mutations": mutations,
        "matchConstraints": rules(&["CREATE"], "", &["configmaps"])});
    policy(&running, true, "m", spec).await.ok();
    let param =
        json!({"paramRef": {"name": "param", "namespace": "kube-system", "parameterNotFoundAction": "Deny"}});
    bind(&running, true, "m", "b", param).await;
    let made = running.post(MAPS, json!({"metadata": {"name": "a", "labels": {"own": "1"}}})).await.ok();
    assert_eq!(made["metadata"]["labels"], json!({"own": "1", "who": "test", "n": "7", "e.com/x": "y"}));
    // A test that fails leaves the object as it is.
    let made = running.post(MAPS, json!({"metadata": {"name": "b"}})).await.ok();
    assert_eq!(made["metadata"]["labels"], json!({"who": "test", "n": "7"}));

    // Lists that are owned as a whole cannot be changed in part.
    let atomic = json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
        "Object{spec: Object.spec{tolerations: [Object.spec.tolerations{key: 'k', operator: 'Exists'}]}}"}}],
        "matchConstraints": rules(&["CREATE"], "", &["pods"])});
    policy(&running, true, "atomic", atomic).await.ok();
    bind(&running, true, "atomic", "atomic", json!({})).await;
    running
        .post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}}))
        .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let refused = running.post("/api/v1/namespaces/default/pods", pod).await;
    assert_eq!(
        refused.message(),
        "policy 'atomic' with binding 'atomic' denied request: error applying patch: invalid ApplyConfiguration: \
         may not mutate atomic arrays, maps or structs: .spec.tolerations"
    );
}

#[tokio::test]
async fn mutations_come_before_webhooks_and_validations_and_again() {
    let running = start().await;
    let hooks = Hooks::serve(|_, request| match request["object"]["data"]["hook"].as_str() {
        None => {
            patch(json!([{"op": "add", "path": "/data/hook", "value": request["object"]["data"]["policy"]}]))
        }
        Some(_) => json!({}),
    })
    .await;
    let webhook = json!({"name": "a.example.com", "clientConfig": hooks.config("/m"), "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 20,
        "matchConditions": [{"name": "c", "expression": "object.metadata.name == 'a'"}],
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    let body = json!({"metadata": {"name": "m"}, "webhooks": [webhook]});
    running.post(&format!("{GROUP}/mutatingwebhookconfigurations"), body).await.ok();
    let spec = json!({"reinvocationPolicy": "IfNeeded", "mutations": [
        {"patchType": "JSONPatch", "jsonPatch": {"expression":
            "has(object.data.hook) ? [JSONPatch{op: 'add', path: '/data/again', value: 'yes'}] \
             : [JSONPatch{op: 'add', path: '/data/policy', value: 'first'}]"}}]});
    policy(&running, true, "m", spec).await.ok();
    bind(&running, true, "m", "b", json!({})).await;
    policy(&running, false, "v", json!({"validations": [{"expression": "object.data.policy == 'first'"}]}))
        .await
        .ok();
    bind(&running, false, "v", "b", json!({})).await;
    let made = running.post(MAPS, map("a", json!({"k": "v"}))).await.ok();
    assert_eq!(made["data"], json!({"k": "v", "policy": "first", "hook": "first", "again": "yes"}));
    let other = running.post(MAPS, map("b", json!({"k": "v"}))).await.ok();
    assert_eq!(other["data"], json!({"k": "v", "policy": "first"}));
    assert!(hooks.take("/m").iter().all(|request| request["name"] == "a"));
}

#[tokio::test]
async fn wrong_expressions_are_refused_where_they_stand() {
    let running = start().await;
    let check = async |mutating: bool, spec: Value, field: &str, text: &str| {
        let got = policy(&running, mutating, "p", spec).await;
        let cause = &got.body["details"]["causes"][0];
        let message = cause["message"].as_str().unwrap_or_default();
        assert_eq!((got.code, cause["field"].as_str()), (422, Some(field)), "{}", got.body);
        assert!(message.contains(text), "{message}");
    };
    let validation = |v: Value| json!({"validations": [v]});
    check(false, validation(json!({"expression": "1 +"})), "spec.validations[0].expression", "Syntax error")
        .await;
    check(
        false,
        validation(json!({"expression": "1"})),
        "spec.validations[0].expression",
        "must evaluate to bool but got int",
    )
    .await;
    check(
        false,
        validation(json!({"expression": "true", "messageExpression": "1"})),
        "spec.validations[0].messageExpression",
        "must evaluate to string but got int",
    )
    .await;
    check(
        false,
        validation(json!({"expression": "params == null"})),
        "spec.validations[0].expression",
        "undeclared reference to 'params'",
    )
    .await;
    let variables = json!({"validations": [{"expression": "true"}], "variables": [{"name": "a", "expression": "variables.b"}]});
    check(false, variables, "spec.variables[0].expression", "undefined field 'b'").await;
    let conditions = json!({"validations": [{"expression": "true"}], "matchConditions": [{"name": "c", "expression": "2"}]});
    check(false, conditions, "spec.matchConditions[0].expression", "must evaluate to bool but got int").await;
    let annotations = json!({"auditAnnotations": [{"key": "k", "valueExpression": "1"}]});
    check(
        false,
        annotations,
        "spec.auditAnnotations[0].valueExpression",
        "must evaluate to one of [string null_type] but got int",
    )
    .await;
    let apply = json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "1"}}]});
    check(
        true,
        apply,
        "spec.mutations[0].applyConfiguration.expression",
        "must evaluate to Object but got int",
    )
    .await;
    let json_patch = json!({"mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[1]"}}]});
    check(
        true,
        json_patch,
        "spec.mutations[0].jsonPatch.expression",
        "must evaluate to list(JSONPatch) but got list(int)",
    )
    .await;
}

#[tokio::test]
async fn custom_resources_are_judged_and_can_be_parameters() {
    let running = start().await;
    support::ships(&running).await;
    let ships = "/apis/fleet.example.com/v1/namespaces/default/ships";
    running.post(ships, support::ship("limit", 4)).await.ok();
    let spec = json!({
        "paramKind": {"apiVersion": "fleet.example.com/v1", "kind": "Ship"},
        "matchConstraints": rules(&["CREATE", "UPDATE"], "fleet.example.com", &["ships", "ships/scale"]),
        "validations": [{"expression": "has(request.subResource) && request.subResource == 'scale' ? object.spec.replicas <= params.spec.masts \
            : object.spec.masts <= params.spec.masts", "message": "more masts than the limit"}],
    });
    policy(&running, false, "p", spec).await.ok();
    let param = json!({"name": "limit", "namespace": "default", "parameterNotFoundAction": "Deny"});
    bind(&running, false, "p", "b", json!({"paramRef": param})).await;
    running.post(ships, support::ship("a", 4)).await.ok();
    let refused = running.post(ships, support::ship("b", 5)).await;
    assert!(refused.message().ends_with("denied request: more masts than the limit"), "{}", refused.body);
    let scale = async |replicas: i64| {
        running.send("PATCH", &format!("{ships}/a/scale"), json!({"spec": {"replicas": replicas}})).await
    };
    assert_eq!(scale(5).await.code, 422);
    scale(3).await.ok();
    // The limit follows its object; without it nothing passes.
    running.send("PATCH", &format!("{ships}/limit"), json!({"spec": {"masts": 1}})).await;
    assert_eq!(scale(2).await.code, 422);

    // A mutation of a kind whose fields merge by its own schema.
    let mutations = json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
        "Object{spec: Object.spec{masts: 1}}"}}]);
    let spec = json!({"mutations": mutations,
        "matchConstraints": rules(&["CREATE"], "fleet.example.com", &["ships"])});
    policy(&running, true, "m", spec).await.ok();
    bind(&running, true, "m", "m", json!({})).await;
    let made = running.post(ships, support::ship("c", 9)).await.ok();
    assert_eq!(made["spec"]["masts"], 1);
    let text = running.text("/metrics").await;
    let series = [
        "apiserver_validating_admission_policy_check_total{enforcement_action=\"deny\",error_type=\"no_error\",policy=\"p\",policy_binding=\"b\"}",
        "apiserver_mutating_admission_policy_check_total{error_type=\"no_error\",policy=\"m\",policy_binding=\"m\"}",
    ];
    for series in series {
        assert!(text.contains(series), "{series}");
    }
}

#[tokio::test]
async fn connections_are_judged() {
    let running = start().await;
    let spec = json!({
        "matchConstraints": rules(&["CONNECT"], "", &["pods/exec", "pods/proxy"]),
        "validations": [{"expression": "request.subResource == 'proxy' || !has(object.command) || object.command[0] != 'rm'"}],
    });
    policy(&running, false, "p", spec).await.ok();
    bind(&running, false, "p", "b", json!({})).await;
    running
        .post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}}))
        .await
        .ok();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    running.post("/api/v1/namespaces/default/pods", pod).await.ok();
    let exec = async |command: &str| {
        let path = format!("/api/v1/namespaces/default/pods/p/exec?command={command}&stdout=1");
        running.send("GET", &path, Value::Null).await
    };
    let denied = exec("rm").await;
    assert_eq!(denied.code, 422, "{}", denied.body);
    assert!(denied.message().contains("ValidatingAdmissionPolicy 'p' with binding 'b' denied request"));
    let passed = exec("ls").await;
    assert!(!passed.message().contains("denied"), "{}", passed.body);
}
