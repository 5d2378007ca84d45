//! Each plug-in by what it lets pass, changes and refuses.

use std::sync::{Arc, Mutex};

use futures::FutureExt;
use serde_json::{Value, json};

use super::*;
use crate::testing::{FakeCluster, ask, user};
use crate::{Attributes, Cluster, UserInfo};

struct World {
    cluster: Arc<FakeCluster>,
    admission: Admission,
    warnings: Mutex<Vec<String>>,
}

fn world() -> World {
    let cluster = FakeCluster::new();
    cluster.put("", "namespaces", json!({"metadata": {"name": "ns"}, "status": {"phase": "Active"}}));
    cluster.put("", "serviceaccounts", json!({"metadata": {"name": "default", "namespace": "ns"}}));
    let authorizer = Authorizer::new(cluster.shared(), crate::bootstrap::node_rules());
    let admission = Admission::new(cluster.shared(), authorizer, webhook::Client::new(cluster.shared()));
    World { cluster, admission, warnings: Mutex::default() }
}

impl World {
    fn run(
        &self,
        attributes: &Attributes,
        operation: Operation,
        mut object: Value,
        old: Option<&Value>,
    ) -> Result<Value, Status> {
        let request = AdmissionRequest {
            attributes,
            operation,
            group: "",
            version: "v1",
            kind: "",
            dry_run: false,
            options: &Value::Null,
            warnings: &self.warnings,
            audit: &crate::audit::Record::off(),
        };
        async {
            self.admission.mutate(&request, &mut object, old).await?;
            self.admission.validate(&request, &object, old).await?;
            Ok(object)
        }
        .now_or_never()
        .expect("nothing to wait for")
    }

    fn create(&self, resource: &str, object: Value) -> Result<Value, Status> {
        let attributes = ask(&user("u", &[]), "create", resource, object.namespace(), "");
        self.run(&attributes, Operation::Create, object, None)
    }

    fn as_node(
        &self,
        node: &Arc<UserInfo>,
        operation: Operation,
        resource: &str,
        object: Value,
        old: Option<Value>,
    ) -> Result<Value, String> {
        let named = old.as_ref().unwrap_or(&object);
        let attributes = ask(node, operation.name(), resource, named.namespace(), named.name());
        self.run(&attributes, operation, object, old.as_ref()).map_err(|s| s.message().to_owned())
    }

    fn warned(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().expect("warnings"))
    }

    fn label_namespace(&self, labels: Value) {
        let namespace = json!({"metadata": {"name": "ns", "labels": labels}, "status": {"phase": "Active"}});
        self.cluster.put("", "namespaces", namespace);
    }
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "ns"},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i"}]},
    });
    for (key, value) in spec.as_object().expect("an object") {
        pod["spec"][key] = value.clone();
    }
    pod
}

#[test]
fn objects_need_a_living_namespace() {
    let w = world();
    let map = |namespace: &str| json!({"metadata": {"name": "m", "namespace": namespace}});
    w.create("/configmaps", map("ns")).expect("active");
    assert_eq!(w.create("/configmaps", map("none")).expect_err("missing").code(), 404);
    w.cluster.put(
        "",
        "namespaces",
        json!({"metadata": {"name": "going"}, "status": {"phase": "Terminating"}}),
    );
    let refused = w.create("/configmaps", map("going")).expect_err("terminating");
    assert_eq!(refused.causes()[0].reason, "NamespaceTerminating");
    let going = ask(&user("u", &[]), "update", "/configmaps", "going", "m");
    w.run(&going, Operation::Update, map("going"), Some(&map("going"))).expect("updates go on");
    for (name, kept) in [("default", true), ("kube-system", true), ("ns", false)] {
        let delete = ask(&user("u", &[]), "delete", "/namespaces", name, name);
        assert_eq!(w.run(&delete, Operation::Delete, Value::Null, None).is_err(), kept, "{name}");
    }
}

#[test]
fn a_pod_gets_its_account_token_and_pull_secrets() {
    let w = world();
    let account =
        json!({"metadata": {"name": "sa", "namespace": "ns"}, "imagePullSecrets": [{"name": "reg"}]});
    w.cluster.put("", "serviceaccounts", account);
    let mut wanted = pod(json!({"serviceAccountName": "sa", "initContainers": [{"name": "i"}]}));
    wanted["spec"].as_object_mut().expect("spec").remove("automountServiceAccountToken");
    let made = w.create("/pods", wanted.clone()).expect("pod");
    let volume = made["spec"]["volumes"][0]["name"].as_str().expect("volume").to_owned();
    assert!(volume.starts_with("kube-api-access-") && volume.len() == 21, "{volume}");
    for list in ["containers", "initContainers"] {
        assert_eq!(made["spec"][list][0]["volumeMounts"][0]["name"], volume.as_str());
    }
    assert_eq!(made["spec"]["imagePullSecrets"], json!([{"name": "reg"}]));
    assert_eq!(made["spec"]["serviceAccount"], "sa");
    let again = w.create("/pods", made.clone()).expect("the same again");
    assert_eq!(again["spec"]["volumes"].as_array().map(Vec::len), Some(1));
    wanted["spec"]["serviceAccountName"] = "nobody".into();
    assert_eq!(w.create("/pods", wanted).expect_err("no account").code(), 403);
    let plain = w.create("/pods", pod(json!({}))).expect("pod");
    assert_eq!(plain["spec"]["serviceAccountName"], "default");
    assert!(plain["spec"]["volumes"].is_null());
}

#[test]
fn tolerations_priority_and_taints_are_filled_in() {
    let w = world();
    let made = w.create("/pods", pod(json!({"tolerations": [{"key": "node.kubernetes.io/not-ready"}]})));
    let made = made.expect("pod");
    assert_eq!(made.items("spec.tolerations").len(), 2);
    assert_eq!(made["spec"]["priority"], 0);
    assert_eq!(made["spec"]["preemptionPolicy"], "PreemptLowerPriority");
    let all = w.create("/pods", pod(json!({"tolerations": [{"operator": "Exists"}]}))).expect("pod");
    assert_eq!(all.items("spec.tolerations").len(), 1);
    let class = |name: &str, value: i64, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default});
    w.cluster.put("scheduling.k8s.io", "priorityclasses", class("hi", 10, false));
    w.cluster.put("scheduling.k8s.io", "priorityclasses", class("def", 5, true));
    let high = w.create("/pods", pod(json!({"priorityClassName": "hi"}))).expect("pod");
    assert_eq!(high["spec"]["priority"], 10);
    let default = w.create("/pods", pod(json!({}))).expect("pod");
    assert_eq!(default["spec"]["priorityClassName"], "def");
    assert!(w.create("/pods", pod(json!({"priorityClassName": "none"}))).is_err());
    assert!(w.create("/pods", pod(json!({"priorityClassName": "hi", "priority": 3}))).is_err());
    let second = w.create("scheduling.k8s.io/priorityclasses", class("def2", 6, true));
    assert_eq!(second.expect_err("two defaults").code(), 403);
    let node = w.create("/nodes", json!({"metadata": {"name": "n"}})).expect("node");
    assert_eq!(node["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
}

#[test]
fn limit_ranges_fill_in_and_bound() {
    let w = world();
    w.cluster.put(
        "",
        "limitranges",
        json!({"metadata": {"name": "l", "namespace": "ns"}, "spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
             "max": {"cpu": "1"}, "min": {"cpu": "10m"}, "maxLimitRequestRatio": {"cpu": "8"}},
            {"type": "Pod", "max": {"cpu": "1500m"}},
            {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}},
        ]}}),
    );
    let made = w.create("/pods", pod(json!({}))).expect("defaults");
    assert_eq!(made["spec"]["containers"][0]["resources"]["limits"]["cpu"], "500m");
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let with = |resources: Value| {
        let container = json!({"name": "c", "resources": resources});
        w.create("/pods", pod(json!({"containers": [container]}))).map_err(|s| s.message().to_owned())
    };
    let high = with(json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}})).expect_err("max");
    assert!(high.contains("maximum cpu usage per Container is 1, but limit is 2"), "{high}");
    let low = with(json!({"limits": {"cpu": "20m"}, "requests": {"cpu": "5m"}})).expect_err("min");
    assert!(low.contains("minimum cpu usage per Container is 10m, but request is 5m"), "{low}");
    let ratio = with(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}})).expect_err("ratio");
    assert!(ratio.contains("cpu max limit to request ratio per Container is 8"), "{ratio}");
    let two = json!([{"name": "a", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}},
        {"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}]);
    let sum = w.create("/pods", pod(json!({"containers": two}))).expect_err("pod max");
    assert!(
        sum.message().contains("maximum cpu usage per Pod is 1500m, but limit is 2"),
        "{}",
        sum.message()
    );
    let claim = json!({"metadata": {"name": "c", "namespace": "ns"}, "spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    assert!(w.create("/persistentvolumeclaims", claim).is_err());
}

#[test]
fn pod_security_holds_pods_to_the_namespace() {
    let w = world();
    let good = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
    let with = |context: &Value| pod(json!({"containers": [{"name": "c", "securityContext": context}]}));
    w.create("/pods", pod(json!({"hostNetwork": true}))).expect("privileged by default");
    w.label_namespace(json!({"pod-security.kubernetes.io/enforce": "restricted"}));
    w.create("/pods", with(&good)).expect("restricted");
    let refused = w.create("/pods", pod(json!({}))).expect_err("plain");
    assert_eq!(
        refused.message(),
        "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": \
         allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    let bad = |key: &str, value: Value| {
        let mut context = good.clone();
        context[key] = value;
        w.create("/pods", with(&context)).expect_err(key).message().to_owned()
    };
    assert!(bad("runAsUser", json!(0)).ends_with("runAsUser=0 (container \"c\" must not set runAsUser=0)"));
    assert!(bad("privileged", json!(true)).contains("privileged (container \"c\" must not set"));
    assert!(bad("procMount", json!("Unmasked")).contains("procMount (container \"c\""));
    assert!(bad("seccompProfile", json!({"type": "Unconfined"})).contains("type to \"Unconfined\""));
    assert!(
        bad("seLinuxOptions", json!({"type": "t", "user": "u"})).contains("type \"t\"; user may not be set")
    );
    let mut nfs = with(&good);
    nfs["spec"]["volumes"] = json!([{"name": "v", "nfs": {}}]);
    let nfs = w.create("/pods", nfs).expect_err("nfs");
    assert!(
        nfs.message().contains("(volume \"v\" uses restricted volume type \"nfs\")"),
        "{}",
        nfs.message()
    );

    w.label_namespace(json!({"pod-security.kubernetes.io/enforce": "baseline"}));
    w.create("/pods", pod(json!({}))).expect("baseline");
    for (spec, what) in [
        (json!({"hostNetwork": true, "hostPID": true}), "host namespaces (hostNetwork=true, hostPID=true)"),
        (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")"),
        (
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}]}, {"name": "b", "ports": [{"hostPort": 81}]}]}),
            "hostPort (containers \"a\", \"b\" use hostPorts 80, 81)",
        ),
        (
            json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "h"}}}]}),
            "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"h\")",
        ),
        (
            json!({"containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]}),
            "non-default capabilities (container \"c\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
        ),
    ] {
        let refused = w.create("/pods", pod(spec)).expect_err(what);
        assert!(refused.message().ends_with(what), "{}", refused.message());
    }
    w.label_namespace(json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.20"}));
    let probe = json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "h"}}}]});
    w.create("/pods", pod(probe)).expect("an older version had no such check");
}

#[test]
fn pod_security_warns_of_workloads_and_checks_labels() {
    let w = world();
    w.warned();
    w.label_namespace(json!({"pod-security.kubernetes.io/warn": "baseline"}));
    let template = json!({"spec": {"hostNetwork": true, "containers": []}});
    let deployment = json!({"metadata": {"name": "d", "namespace": "ns"}, "spec": {"template": template}});
    w.create("apps/deployments", deployment).expect("never refused");
    assert_eq!(
        w.warned(),
        ["would violate PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"]
    );
    let labelled = |labels: Value| json!({"metadata": {"name": "ns", "labels": labels}});
    let bad = labelled(json!({"pod-security.kubernetes.io/enforce": "odd"}));
    let refused = w.create("/namespaces", bad.clone()).expect_err("odd");
    assert_eq!(refused.code(), 422);
    assert_eq!(refused.causes()[0].field, "metadata.labels[pod-security.kubernetes.io/enforce]");
    let update = ask(&user("u", &[]), "update", "/namespaces", "ns", "ns");
    w.run(&update, Operation::Update, bad.clone(), Some(&bad)).expect("unchanged errors pass");
    let mut existing = pod(json!({"hostNetwork": true}));
    existing["metadata"]["name"] = "old".into();
    w.cluster.put("", "pods", existing);
    let strict = labelled(json!({"pod-security.kubernetes.io/enforce": "baseline"}));
    w.run(&update, Operation::Update, strict, Some(&labelled(json!({})))).expect("allowed");
    assert_eq!(
        w.warned(),
        [
            "existing pods in namespace \"ns\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "old: host namespaces"
        ]
    );
}

#[test]
fn nodes_write_only_what_is_theirs() {
    let w = world();
    w.cluster.put("", "namespaces", json!({"metadata": {"name": "kube-node-lease"}}));
    w.cluster.put("", "nodes", json!({"metadata": {"name": "n1"}}));
    let node = user("system:node:n1", &["system:nodes"]);
    let own = |labels: Value| json!({"metadata": {"name": "n1", "labels": labels}});
    let ok = |operation, resource: &str, object: Value, old: Option<Value>| {
        w.as_node(&node, operation, resource, object, old).expect(resource);
    };
    let refused = |operation, resource: &str, object: Value, old: Option<Value>| {
        w.as_node(&node, operation, resource, object, old).expect_err(resource)
    };
    ok(Create, "/nodes", own(json!({"kubernetes.io/hostname": "n1", "mine": "x"})), None);
    let labels = refused(Create, "/nodes", own(json!({"node-role.kubernetes.io/master": ""})), None);
    assert!(
        labels.contains("not allowed to set the following labels: node-role.kubernetes.io/master"),
        "{labels}"
    );
    refused(Create, "/nodes", own(json!({"x.node-restriction.kubernetes.io/a": ""})), None);
    refused(Create, "/nodes", json!({"metadata": {"name": "n2"}}), None);
    let mut tainted = own(json!({}));
    tainted["spec"] = json!({"taints": [{"key": "a"}]});
    refused(Update, "/nodes", own(json!({})), Some(tainted.clone()));
    ok(Update, "/nodes", tainted.clone(), Some(tainted));
    ok(Update, "/nodes", own(json!({"mine": "y"})), Some(own(json!({}))));
    refused(Update, "/nodes", own(json!({})), Some(own(json!({"kubernetes.io/role": "x"}))));

    let lease = |name: &str| json!({"metadata": {"name": name, "namespace": "kube-node-lease"}});
    ok(Create, "coordination.k8s.io/leases", lease("n1"), None);
    refused(Create, "coordination.k8s.io/leases", lease("n2"), None);
    ok(Create, "storage.k8s.io/csinodes", json!({"metadata": {"name": "n1"}}), None);
    refused(Create, "storage.k8s.io/csinodes", json!({"metadata": {"name": "n2"}}), None);

    let bound = |node: &str| {
        json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"nodeName": node, "serviceAccountName": "default",
            "volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]}})
    };
    let mut status = bound("n1");
    status["status"] = json!({"phase": "Running"});
    ok(Update, "/pods/status", status.clone(), Some(bound("n1")));
    refused(Update, "/pods/status", status.clone(), Some(bound("n2")));
    status["metadata"]["labels"] = json!({"a": "b"});
    refused(Update, "/pods/status", status, Some(bound("n1")));
    let plain = refused(Create, "/pods", bound("n1"), None);
    assert!(plain.contains("can only create mirror pods"), "{plain}");
    let owner =
        json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1-uid", "controller": true});
    let mirror = json!({
        "metadata": {"name": "m", "namespace": "ns", "annotations": {"kubernetes.io/config.mirror": "h"}, "ownerReferences": [owner]},
        "spec": {"nodeName": "n1", "containers": []},
    });
    ok(Create, "/pods", mirror.clone(), None);
    let mut secret = mirror.clone();
    secret["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "s"}}]);
    assert!(refused(Create, "/pods", secret, None).contains("secrets"));
    let mut foreign = mirror;
    foreign["metadata"]["ownerReferences"][0]["uid"] = "other".into();
    refused(Create, "/pods", foreign, None);

    w.cluster.put("", "pods", bound("n1"));
    let named = |name: &str| json!({"metadata": {"name": name, "namespace": "ns"}});
    ok(Delete, "/pods", Value::Null, Some(bound("n1")));
    ok(Create, "/pods/eviction", named("p"), None);
    let request = |spec: Value| {
        let mut request = named("default");
        request["spec"] = spec;
        request
    };
    let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p-uid"});
    ok(Create, "/serviceaccounts/token", request(json!({"boundObjectRef": reference})), None);
    refused(Create, "/serviceaccounts/token", request(json!({})), None);
    refused(
        Create,
        "/serviceaccounts/token",
        request(json!({"boundObjectRef": reference, "audiences": ["elsewhere"]})),
        None,
    );
    w.cluster.put("", "pods", bound("n2"));
    refused(Delete, "/pods", Value::Null, Some(bound("n2")));
    refused(Create, "/serviceaccounts/token", request(json!({"boundObjectRef": reference})), None);
}

#[test]
fn storage_classes_finalizers_and_growth() {
    let w = world();
    let class = |name: &str, created: &str, grows: bool| {
        json!({"metadata": {"name": name, "creationTimestamp": created,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "allowVolumeExpansion": grows})
    };
    w.cluster.put("storage.k8s.io", "storageclasses", class("old", "2020-01-01T00:00:00Z", false));
    w.cluster.put("storage.k8s.io", "storageclasses", class("new", "2021-01-01T00:00:00Z", true));
    let claim = |spec: Value, size: &str| {
        let mut claim =
            json!({"metadata": {"name": "c", "namespace": "ns"}, "spec": spec, "status": {"phase": "Bound"}});
        claim["spec"]["resources"] = json!({"requests": {"storage": size}});
        claim
    };
    let made = w.create("/persistentvolumeclaims", claim(json!({}), "1Gi")).expect("claim");
    assert_eq!(made["spec"]["storageClassName"], "new");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let none = w.create("/persistentvolumeclaims", claim(json!({"storageClassName": ""}), "1Gi"));
    assert_eq!(none.expect("claim")["spec"]["storageClassName"], "");
    let grow = |name: &str| {
        let update = ask(&user("u", &[]), "update", "/persistentvolumeclaims", "ns", "c");
        let spec = json!({"storageClassName": name});
        w.run(&update, Operation::Update, claim(spec.clone(), "2Gi"), Some(&claim(spec, "1Gi")))
    };
    grow("new").expect("the class allows it");
    assert_eq!(grow("old").expect_err("it does not").code(), 403);
}

#[test]
fn a_runtime_class_sets_overhead_and_place() {
    let w = world();
    w.cluster.put(
        "node.k8s.io",
        "runtimeclasses",
        json!({"metadata": {"name": "rc"}, "overhead": {"podFixed": {"cpu": "50m"}},
            "scheduling": {"nodeSelector": {"rt": "x"}, "tolerations": [{"key": "rt", "operator": "Exists"}]}}),
    );
    let made = w.create("/pods", pod(json!({"runtimeClassName": "rc"}))).expect("pod");
    assert_eq!(made["spec"]["overhead"], json!({"cpu": "50m"}));
    assert_eq!(made["spec"]["nodeSelector"], json!({"rt": "x"}));
    assert!(made.items("spec.tolerations").iter().any(|t| t.text("key") == "rt"));
    for bad in [
        json!({"runtimeClassName": "none"}),
        json!({"runtimeClassName": "rc", "overhead": {"cpu": "1"}}),
        json!({"runtimeClassName": "rc", "nodeSelector": {"rt": "y"}}),
        json!({"overhead": {"cpu": "1"}}),
    ] {
        assert_eq!(w.create("/pods", pod(bad.clone())).expect_err("refused").code(), 403, "{bad}");
    }
}

#[test]
fn signers_need_leave_and_masters_are_not_signed() {
    let w = world();
    let csr = json!({"metadata": {"name": "r"}, "spec": {"signerName": "example.com/s"}});
    let update = |part: &str, who: &Arc<UserInfo>, new: &Value| {
        let resource = format!("certificates.k8s.io/certificatesigningrequests/{part}");
        w.run(&ask(who, "update", &resource, "", "r"), Operation::Update, new.clone(), Some(&csr))
    };
    let forged =
        json!({"metadata": {"name": "r"}, "spec": {"username": "root", "groups": ["system:masters"]}});
    let made = w.create("certificates.k8s.io/certificatesigningrequests", forged).expect("created");
    assert_eq!(made["spec"], json!({"username": "u", "groups": []}));
    let mut signed = csr.clone();
    signed["status"] = json!({"certificate": "x"});
    let nobody = user("u", &[]);
    assert!(update("approval", &nobody, &csr).is_err());
    assert!(update("status", &nobody, &signed).is_err());
    update("status", &nobody, &csr).expect("nothing is signed");
    let rules = json!([{"verbs": ["approve", "sign"], "apiGroups": ["certificates.k8s.io"],
        "resources": ["signers"], "resourceNames": ["example.com/*"]}]);
    let rbac = "rbac.authorization.k8s.io";
    w.cluster.put(rbac, "clusterroles", crate::testing::role("", "r", rules));
    let subject = json!({"kind": "User", "name": "u"});
    w.cluster.put(rbac, "clusterrolebindings", crate::testing::bind("", "b", "ClusterRole", "r", subject));
    update("approval", &nobody, &csr).expect("by the domain");
    update("status", &nobody, &signed).expect("by the domain");
}

#[test]
fn ingress_classes_and_topology_labels_are_copied() {
    let w = world();
    w.cluster.put(
        "networking.k8s.io",
        "ingressclasses",
        json!({"metadata": {"name": "ic", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}}),
    );
    let ingress = json!({"metadata": {"name": "i", "namespace": "ns"}, "spec": {}});
    let made = w.create("networking.k8s.io/ingresses", ingress).expect("ingress");
    assert_eq!(made["spec"]["ingressClassName"], "ic");
    w.cluster.put(
        "",
        "nodes",
        json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}}}),
    );
    let binding =
        json!({"metadata": {"name": "p", "namespace": "ns"}, "target": {"kind": "Node", "name": "n"}});
    let made = w.create("/pods/binding", binding).expect("binding");
    assert_eq!(made["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
}

#[test]
fn a_quota_holds_from_the_moment_it_has_limits() {
    let w = world();
    let quota =
        |status: Value| json!({"metadata": {"name": "q", "namespace": "ns"}, "spec": {}, "status": status});
    w.cluster.put("", "resourcequotas", quota(json!({})));
    w.cluster.put_late("", "resourcequotas", quota(json!({"hard": {"pods": "1"}, "used": {"pods": "1"}})));
    let refused = w.create("/pods", pod(json!({}))).expect_err("one is used up");
    assert!(refused.message().contains("exceeded quota: q"), "{}", refused.message());
}

#[test]
fn quotas_are_charged_and_hold() {
    let w = world();
    let quota = |name: &str, hard: Value, used: Value, spec: Value| {
        w.cluster.put("", "resourcequotas", json!({
            "metadata": {"name": name, "namespace": "ns"}, "spec": spec, "status": {"hard": hard, "used": used},
        }));
    };
    let used = |name: &str| {
        let quota = w.cluster.get("", "resourcequotas", "ns", name).expect("quota");
        quota.at("status.used").clone()
    };
    quota(
        "q",
        json!({"pods": "2", "requests.cpu": "1", "limits.memory": "1Gi"}),
        json!({"pods": "0", "requests.cpu": "0", "limits.memory": "0"}),
        json!({}),
    );
    let sized = |cpu: &str, memory: &str| {
        let resources = json!({"requests": {"cpu": cpu}, "limits": {"memory": memory}});
        pod(json!({"containers": [{"name": "c", "resources": resources}]}))
    };
    let refused = w.create("/pods", pod(json!({}))).expect_err("says nothing");
    assert!(
        refused
            .message()
            .ends_with("failed quota: q: must specify limits.memory for: c; requests.cpu for: c"),
        "{}",
        refused.message()
    );
    w.create("/pods", sized("600m", "512Mi")).expect("fits");
    assert_eq!(used("q"), json!({"pods": "1", "requests.cpu": "600m", "limits.memory": "512Mi"}));
    let refused = w.create("/pods", sized("500m", "1Mi")).expect_err("too much");
    assert!(
        refused.message().ends_with("exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"),
        "{}", refused.message()
    );
    w.create("/pods", sized("400m", "512Mi")).expect("fits exactly");
    assert!(w.create("/pods", sized("0", "0")).is_err(), "a third pod");

    w.cluster.remove("", "resourcequotas", "ns", "q");
    quota("idle", json!({"pods": "1"}), json!({"pods": "0"}), json!({"scopes": ["BestEffort"]}));
    w.create("/pods", sized("1m", "1Mi")).expect("of another class");
    assert_eq!(used("idle"), json!({"pods": "0"}));
    w.create("/pods", pod(json!({}))).expect("fits");
    assert!(w.create("/pods", pod(json!({}))).is_err());
    w.cluster.remove("", "resourcequotas", "ns", "idle");

    quota("unknown", json!({"configmaps": "1"}), json!({}), json!({}));
    let map = json!({"metadata": {"name": "m", "namespace": "ns"}});
    let refused = w.create("/configmaps", map.clone()).expect_err("not counted yet");
    assert!(refused.message().ends_with("status unknown for quota: unknown, resources: configmaps"));
    quota(
        "unknown",
        json!({"configmaps": "1", "count/configmaps": "5"}),
        json!({"configmaps": "0", "count/configmaps": "0"}),
        json!({}),
    );
    w.create("/configmaps", map.clone()).expect("the first");
    assert_eq!(used("unknown"), json!({"configmaps": "1", "count/configmaps": "1"}));
    assert!(w.create("/configmaps", map).is_err());

    quota("net", json!({"services.nodeports": "1"}), json!({"services.nodeports": "0"}), json!({}));
    let service = |kind: &str| json!({"metadata": {"name": "s", "namespace": "ns", "resourceVersion": "1"}, "spec": {"type": kind, "ports": [{"port": 1}]}});
    w.create("/services", service("ClusterIP")).expect("no node port");
    let update = ask(&user("u", &[]), "update", "/services", "ns", "s");
    w.run(&update, Operation::Update, service("NodePort"), Some(&service("ClusterIP"))).expect("one");
    assert_eq!(used("net"), json!({"services.nodeports": "1"}));
    w.run(&update, Operation::Update, service("NodePort"), Some(&service("NodePort"))).expect("the same");
    assert!(w.create("/services", service("NodePort")).is_err());
}
