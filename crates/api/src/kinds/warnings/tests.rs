//! What is told of objects that are accepted.

use serde_json::{Value, json};

use super::warnings_for;

fn check(group: &str, kind: &str, new: Value, old: Option<Value>, want: &[&str]) {
    let got = (warnings_for(group, kind).0)(&new, old.as_ref());
    assert_eq!(got, want, "{kind}: {new}");
}

#[test]
fn addresses() {
    let endpoints = |ip: &str| json!({"subsets": [{"addresses": [{"ip": ip}]}]});
    let at = "subsets[0].addresses[0].ip";
    check("", "Endpoints", endpoints("10.1.2.3"), None, &[]);
    check("", "Endpoints", endpoints("fe80::1"), None, &[]);
    let told = format!("{at}: non-standard IP address \"010.1.2.3\" is invalid: use \"10.1.2.3\"");
    check("", "Endpoints", endpoints("010.1.2.3"), None, &[&told]);
    let told = format!("{at}: non-standard IP address \"::ffff:1.2.3.4\" is invalid: use \"1.2.3.4\"");
    check("", "Endpoints", endpoints("::ffff:1.2.3.4"), None, &[&told]);
    let told =
        format!("{at}: IPv6 address \"FE80:0::1\" should be in RFC 5952 canonical format (\"fe80::1\")");
    check("", "Endpoints", endpoints("FE80:0::1"), None, &[&told]);
    let service = |range: &str| json!({"spec": {"loadBalancerSourceRanges": [range]}});
    let at = "spec.loadBalancerSourceRanges[0]";
    check("", "Service", service("10.0.0.0/8"), None, &[]);
    let told = format!(
        "{at}: CIDR value \"10.1.0.0/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.1.0.0/32\"?)"
    );
    check("", "Service", service("10.1.0.0/8"), None, &[&told]);
    let told = format!("{at}: non-standard CIDR value \"010.0.0.0/8\" is invalid: use \"10.0.0.0/8\"");
    check("", "Service", service("010.0.0.0/8"), None, &[&told]);
}

#[test]
fn services() {
    let told = ["spec.externalIPs is deprecated and may no longer be implemented in some clusters"];
    check("", "Service", json!({"spec": {"type": "ClusterIP", "externalIPs": ["1.2.3.4"]}}), None, &told);
    let told = ["spec.externalName is ignored when spec.type is not \"ExternalName\""];
    check("", "Service", json!({"spec": {"type": "ClusterIP", "externalName": "x"}}), None, &told);
}

#[test]
fn pods() {
    let pod = json!({"metadata": {"name": "a.b", "annotations": {}}, "spec": {
        "volumes": [{"name": "v", "gitRepo": {}},
            {"name": "c", "configMap": {"name": "m", "items": [{"key": "a", "path": "x/"}, {"key": "b", "path": "x/y"}]}}],
        "containers": [{"name": "c", "resources": {"limits": {"memory": "1m"}},
            "env": [{"name": "X", "value": "1"}, {"name": "X", "value": "$(X)2"}, {"name": "X", "value": "3"}],
            "ports": [{"containerPort": 80, "protocol": "TCP", "name": "a"},
                {"containerPort": 80, "protocol": "TCP", "name": "a"}]}],
    }});
    let told = [
        "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
         recommended: [must not contain dots]",
        "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
        "volume \"c\" (ConfigMap \"m\"): overlapping paths: \"x/y\" with \"x\"",
        "spec.containers[0].resources.limits[memory]: fractional byte value \"1m\" is invalid, must be an integer",
        "spec.containers[0].env[2]: hides previous definition of \"X\", which may be dropped when using apply",
        "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
        "spec.containers[0].ports[1]: duplicate port name \"a\" with spec.containers[0].ports[0], services and probes \
         that select ports by name will use spec.containers[0].ports[0]",
    ];
    check("", "Pod", pod.clone(), None, &told);
    check("", "Pod", pod.clone(), Some(pod), &[]);
}

#[test]
fn templates_by_generation() {
    let object = |generation: i64| {
        json!({"metadata": {"name": "d", "generation": generation},
            "spec": {"template": {"spec": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}}}}})
    };
    let told = [
        "spec.template.spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ];
    check("apps", "Deployment", object(1), None, &told);
    check("apps", "Deployment", object(2), Some(object(1)), &told);
    check("apps", "Deployment", object(1), Some(object(1)), &[]);
}

#[test]
fn others() {
    let quota = json!({"spec": {"hard": {"requests.cpu": "2", "limits.cpu": "1"}}});
    check(
        "",
        "ResourceQuota",
        quota,
        None,
        &["ResourceQuota requests.cpu (2) should be less than limits.cpu (1)"],
    );
    let secret = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "", "tls.key": ""}});
    check("", "Secret", secret, None, &["tls: failed to find any PEM data in certificate input"]);
    let driver = json!({"spec": {"tokenRequests": [{"audience": ""}]}});
    let told = (warnings_for("storage.k8s.io", "CSIDriver").0)(&driver, None);
    assert_eq!(told.len(), 1);
    check("storage.k8s.io", "CSIDriver", driver.clone(), Some(driver), &[]);
}
