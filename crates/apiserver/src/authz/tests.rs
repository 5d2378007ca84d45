//! Rules, bindings, nodes, escalation and reviews, on a cluster in memory.

use std::sync::Arc;

use futures::FutureExt;
use serde_json::{Value, json};

use super::*;
use crate::read::Read;
use crate::testing::{FakeCluster, ask, bind, role, user};

const RBAC: &str = "rbac.authorization.k8s.io";

fn authorizer(cluster: &Arc<FakeCluster>) -> Arc<Authorizer> {
    Authorizer::new(cluster.shared(), crate::bootstrap::node_rules())
}

impl Authorizer {
    fn decided(&self, request: &Attributes) -> Decision {
        self.decide_here(request).expect("no webhook has to be asked")
    }
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "apiGroup": RBAC, "name": name})
}

fn person(name: &str) -> Value {
    json!({"kind": "User", "apiGroup": RBAC, "name": name})
}

#[test]
fn a_rule_allows_what_it_names_and_no_more() {
    let rule = |value: Value| Rule::from_value(&value);
    let who = user("u", &[]);
    let check = |rule: &Rule, verb: &str, resource: &str, name: &str, allowed: bool| {
        let request = ask(&who, verb, resource, "n", name);
        assert_eq!(rule.allows(&request), allowed, "{rule:?} {verb} {resource} {name}");
    };
    let pods = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/status"]}));
    check(&pods, "get", "/pods", "x", true);
    check(&pods, "list", "/pods", "", false);
    check(&pods, "get", "apps/pods", "x", false);
    check(&pods, "get", "/pods/log", "x", false);
    check(&pods, "get", "/nodes/status", "x", true);
    let named = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["a"]}));
    check(&named, "delete", "apps/deployments/scale", "a", true);
    check(&named, "delete", "apps/deployments", "b", false);
    check(&named, "list", "apps/deployments", "", false);
    let urls = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]}));
    for (path, allowed) in [("/healthz", true), ("/healthz/x", false), ("/apis/apps", true), ("/api", false)]
    {
        let request =
            Attributes { path: path.into(), resource_request: false, ..ask(&who, "get", "", "", "") };
        assert_eq!(urls.allows(&request), allowed, "{path}");
    }
}

#[test]
fn bindings_hold_in_their_namespace_and_follow_changes() {
    let cluster = FakeCluster::new();
    let authorizer = authorizer(&cluster);
    let jane = user("jane", &["dev"]);
    let request = ask(&jane, "get", "/pods", "a", "x");
    assert!(!authorizer.decided(&request).allowed());
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    cluster.put(RBAC, "clusterroles", role("", "reader", rules));
    cluster.put(RBAC, "rolebindings", bind("a", "b", "ClusterRole", "reader", group("dev")));
    let decision = authorizer.decided(&request);
    assert_eq!(
        decision,
        Decision::allow("RBAC: allowed by RoleBinding \"b/a\" of ClusterRole \"reader\" to Group \"dev\"")
    );
    assert!(!authorizer.decided(&ask(&jane, "get", "/pods", "other", "x")).allowed());
    assert!(!authorizer.decided(&ask(&user("joe", &[]), "get", "/pods", "a", "x")).allowed());
    cluster.remove(RBAC, "rolebindings", "a", "b");
    assert!(!authorizer.decided(&request).allowed());
}

#[test]
fn service_accounts_are_subjects_by_namespace() {
    let cluster = FakeCluster::new();
    let authorizer = authorizer(&cluster);
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    cluster.put(RBAC, "roles", role("a", "r", rules));
    let local = json!({"kind": "ServiceAccount", "name": "s"});
    cluster.put(RBAC, "rolebindings", bind("a", "local", "Role", "r", local.clone()));
    let foreign = json!({"kind": "ServiceAccount", "name": "s", "namespace": "b"});
    cluster.put(RBAC, "rolebindings", bind("a", "foreign", "Role", "r", foreign));
    cluster.put(RBAC, "clusterrolebindings", bind("", "none", "ClusterRole", "r", local));
    for (name, allowed) in [("a:s", true), ("b:s", true), ("c:s", false)] {
        let who = user(&format!("system:serviceaccount:{name}"), &[]);
        assert_eq!(authorizer.decided(&ask(&who, "get", "/pods", "a", "x")).allowed(), allowed, "{name}");
    }
}

#[test]
fn a_missing_role_is_told_of_and_masters_need_none() {
    let cluster = FakeCluster::new();
    let authorizer = authorizer(&cluster);
    cluster.put(RBAC, "clusterrolebindings", bind("", "b", "ClusterRole", "gone", person("u")));
    let decision = authorizer.decided(&ask(&user("u", &[]), "get", "/pods", "a", "x"));
    assert_eq!(decision.reason, "RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found");
    assert!(authorizer.decided(&ask(&user("root", &["system:masters"]), "x", "y/z", "", "")).allowed());
}

#[test]
fn refusals_use_upstreams_words() {
    let request = ask(&user("u<", &[]), "get", "/pods/log", "ns", "p");
    assert_eq!(
        forbidden(&request, "why").message(),
        "pods \"p\" is forbidden: User \"u&lt;\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"ns\": why"
    );
    let request = ask(&user("u", &[]), "list", "apps/deployments", "", "");
    assert_eq!(
        forbidden(&request, "").message(),
        "deployments.apps is forbidden: User \"u\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope"
    );
    let request =
        Attributes { path: "/x".into(), resource_request: false, ..ask(&user("u", &[]), "get", "", "", "") };
    assert_eq!(forbidden(&request, "").message(), "forbidden: User \"u\" cannot get path \"/x\"");
}

fn pod(namespace: &str, name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": node,
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env-secret"}}}]}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "env-map"}}]}],
            "volumes": [
                {"name": "s", "secret": {"secretName": "mounted"}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "projected-map"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "e", "ephemeral": {}},
            ],
        },
    })
}

#[test]
fn a_node_sees_what_its_pods_need() {
    let cluster = FakeCluster::new();
    let authorizer = authorizer(&cluster);
    cluster.put("", "pods", pod("a", "p", "n1"));
    let mut mirror = pod("b", "mirror", "n1");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    cluster.put("", "pods", mirror);
    cluster.put(
        "",
        "persistentvolumes",
        json!({
            "metadata": {"name": "pv"},
            "spec": {
                "claimRef": {"namespace": "a", "name": "claim"},
                "csi": {
                    "nodePublishSecretRef": {"namespace": "secrets", "name": "csi"},
                    "controllerPublishSecretRef": {"namespace": "secrets", "name": "controller"},
                },
            },
        }),
    );
    cluster.put(
        "storage.k8s.io",
        "volumeattachments",
        json!({"metadata": {"name": "va"}, "spec": {"nodeName": "n1"}}),
    );
    let own = user("system:node:n1", &["system:nodes"]);
    let other = user("system:node:n2", &["system:nodes"]);
    let cases = [
        ("get", "/secrets", "a", "mounted"),
        ("watch", "/secrets", "a", "env-secret"),
        ("get", "/secrets", "a", "pull"),
        ("get", "/secrets", "secrets", "csi"),
        ("list", "/configmaps", "a", "env-map"),
        ("get", "/configmaps", "a", "projected-map"),
        ("get", "/persistentvolumeclaims", "a", "claim"),
        ("get", "/persistentvolumeclaims", "a", "p-e"),
        ("get", "/persistentvolumes", "", "pv"),
        ("get", "storage.k8s.io/volumeattachments", "", "va"),
        ("create", "/serviceaccounts/token", "a", "sa"),
        ("get", "/serviceaccounts", "a", "sa"),
        ("get", "/pods", "a", "p"),
        ("get", "/nodes", "", "n1"),
        ("update", "coordination.k8s.io/leases", "kube-node-lease", "n1"),
        ("patch", "storage.k8s.io/csinodes", "", "n1"),
    ];
    for (verb, resource, namespace, name) in cases {
        let allowed = |who| authorizer.decided(&ask(who, verb, resource, namespace, name)).allowed();
        assert!(allowed(&own), "{verb} {resource} {namespace} {name}");
        assert!(!allowed(&other), "other: {verb} {resource} {namespace} {name}");
    }
    let refused = [
        ("get", "/secrets", "b", "mounted"),
        ("get", "/secrets", "a", "unknown"),
        ("get", "/secrets", "secrets", "controller"),
        ("list", "/secrets", "a", ""),
        ("update", "/secrets", "a", "mounted"),
        ("list", "/nodes", "", ""),
        ("delete", "/nodes", "", "n1"),
        ("list", "/pods", "", ""),
        ("update", "/pods", "a", "p"),
        ("create", "/serviceaccounts/token", "b", "sa"),
        ("update", "coordination.k8s.io/leases", "default", "n1"),
        ("get", "certificates.k8s.io/podcertificaterequests", "a", "x"),
    ];
    for (verb, resource, namespace, name) in refused {
        let decision = authorizer.decided(&ask(&own, verb, resource, namespace, name));
        assert!(!decision.allowed(), "{verb} {resource} {namespace} {name}");
    }
    let mut scoped = ask(&own, "watch", "/pods", "", "");
    for (selector, allowed) in [
        ("spec.nodeName=n1", true),
        ("spec.nodeName==n1", true),
        ("spec.nodeName!=n1", false),
        ("spec.nodeName=n2", false),
    ] {
        scoped.field_selector = Some(selector.into());
        assert_eq!(authorizer.decided(&scoped).allowed(), allowed, "{selector}");
    }
    assert!(authorizer.decided(&ask(&own, "list", "/services", "", "")).allowed(), "by the role's rules");
    let nameless = user("system:node:", &["system:nodes"]);
    assert!(!authorizer.decided(&ask(&nameless, "list", "/services", "", "")).allowed());
    let impostor = user("system:node:n1", &["system:authenticated"]);
    assert!(!authorizer.decided(&ask(&impostor, "get", "/secrets", "a", "mounted")).allowed());
}

#[test]
fn nobody_grants_more_than_they_hold() {
    let cluster = FakeCluster::new();
    let authorizer = authorizer(&cluster);
    let rules = json!([
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["bind"], "apiGroups": [RBAC], "resources": ["roles"], "resourceNames": ["bindable"]},
    ]);
    cluster.put(RBAC, "roles", role("a", "mine", rules));
    cluster.put(RBAC, "rolebindings", bind("a", "mine", "Role", "mine", person("u")));
    let big = json!([{"verbs": ["delete"], "apiGroups": [""], "resources": ["pods"]}]);
    cluster.put(RBAC, "roles", role("a", "big", big.clone()));
    cluster.put(RBAC, "roles", role("a", "bindable", big.clone()));
    let who = user("u", &["g"]);
    let write = |resource: &str, object: Value| {
        let request = ask(&who, "create", &format!("{RBAC}/{resource}"), "a", "");
        authorizer.check_escalation(&request, &object, None).now_or_never().expect("nothing to wait for")
    };
    write("roles", role("a", "x", json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}])))
        .expect("held");
    let refused = write("roles", role("a", "x", big.clone())).expect_err("not held");
    assert_eq!(refused.code(), 403);
    assert!(
        refused.message().ends_with(
            "user \"u\" (groups=[\"g\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
        ),
        "{}",
        refused.message()
    );
    write("rolebindings", bind("a", "x", "Role", "bindable", person("v"))).expect("may bind");
    assert_eq!(
        write("rolebindings", bind("a", "x", "Role", "big", person("v"))).expect_err("big").code(),
        403
    );
    assert_eq!(
        write("rolebindings", bind("a", "x", "Role", "gone", person("v"))).expect_err("gone").code(),
        404
    );
    // An update that changes nothing that counts passes.
    let old = role("a", "big", big.clone());
    let mut new = old.clone();
    new["metadata"]["finalizers"] = json!(["x"]);
    let update = ask(&who, "update", &format!("{RBAC}/roles"), "a", "big");
    authorizer
        .check_escalation(&update, &new, Some(&old))
        .now_or_never()
        .expect("nothing to wait for")
        .expect("finalizers only");
    new["metadata"]["labels"] = json!({"a": "b"});
    assert!(
        authorizer
            .check_escalation(&update, &new, Some(&old))
            .now_or_never()
            .expect("nothing to wait for")
            .is_err()
    );
    let mut aggregated = role("", "x", json!([]));
    aggregated["aggregationRule"] = json!({"clusterRoleSelectors": [{}]});
    let request = ask(&who, "create", &format!("{RBAC}/clusterroles"), "", "");
    assert!(
        authorizer
            .check_escalation(&request, &aggregated, None)
            .now_or_never()
            .expect("nothing to wait for")
            .is_err()
    );
    let root = ask(&user("root", &["system:masters"]), "create", &format!("{RBAC}/roles"), "a", "");
    authorizer
        .check_escalation(&root, &role("a", "x", big), None)
        .now_or_never()
        .expect("nothing to wait for")
        .expect("masters");
}

#[test]
fn rules_of_a_caller_are_listed_once() {
    let cluster = FakeCluster::new();
    let authorizer = authorizer(&cluster);
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    cluster.put(RBAC, "clusterroles", role("", "r", rules));
    let mut binding = bind("", "b", "ClusterRole", "r", person("u"));
    binding["subjects"] = json!([person("u"), group("g")]);
    cluster.put(RBAC, "clusterrolebindings", binding);
    let found = authorizer.rules_for(&user("u", &["g"]), "any");
    assert_eq!(found.rules.len(), 1);
    assert!(!found.incomplete);
    assert!(authorizer.rules_for(&user("system:node:n", &["system:nodes"]), "any").incomplete);
}

#[test]
fn bound_escalation_messages_are_merged() {
    let wanted = [Rule::from_value(
        &json!({"verbs": ["get", "list"], "apiGroups": ["apps"], "resources": ["deployments"]}),
    )];
    assert_eq!(
        super::rule::missing(&[], &wanted),
        ["{APIGroups:[\"apps\"], Resources:[\"deployments\"], Verbs:[\"get\" \"list\"]}"]
    );
    assert_eq!(json!({"a": {"b": 1}}).at("a.b"), &json!(1));
}
