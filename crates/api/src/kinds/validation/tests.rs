use serde_json::{Value, json};

use crate::kinds::strategy_for;

/// What is found wrong with a new object after its defaults: `Reason field`, sorted.
fn check(group: &str, kind: &str, mut object: Value) -> Vec<String> {
    let strategy = strategy_for(group, kind).expect("a strategy");
    object["metadata"]["name"] = "a".into();
    object["metadata"]["uid"] = "u".into();
    (strategy.default)(&mut object);
    (strategy.prepare_create)(&mut object);
    let mut found: Vec<String> = (strategy.validate)(&object)
        .into_iter()
        .map(|error| format!("{} {}", error.kind.reason().trim_start_matches("FieldValue"), error.field))
        .collect();
    found.sort();
    found
}

fn pod(extra: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"spec": spec})
}

#[test]
fn pods() {
    let cases = [
        (json!({}), vec![]),
        (json!({"containers": []}), vec!["Required spec.containers"]),
        (json!({"restartPolicy": "x"}), vec!["NotSupported spec.restartPolicy"]),
        (
            json!({"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}),
            vec!["NotFound spec.containers[0].volumeMounts[0].name"],
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}]}),
            vec!["Invalid spec.containers[0].resources.requests"],
        ),
        (json!({"volumes": [{"name": "v", "hostPath": {}}]}), vec!["Required spec.volumes[0].hostPath.path"]),
        (
            json!({"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}),
            vec!["Invalid spec.tolerations[0].operator"],
        ),
        (json!({"dnsPolicy": "None"}), vec!["Required spec.dnsConfig"]),
        (
            json!({"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}]}),
            vec!["Invalid spec.containers[0].env[0].valueFrom"],
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(check("", "Pod", pod(spec.clone())), expected, "{spec}");
    }
}

#[test]
fn a_running_pod_changes_little() {
    let strategy = strategy_for("", "Pod").expect("Pod");
    let mut old = pod(json!({"tolerations": [{"key": "a", "operator": "Exists"}]}));
    (strategy.default)(&mut old);
    let changed = |change: fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        let found = (strategy.validate_update)(&new, &old);
        found.into_iter().map(|error| error.field).collect::<Vec<_>>()
    };
    assert_eq!(changed(|pod| pod["spec"]["containers"][0]["image"] = "j".into()), Vec::<String>::new());
    assert_eq!(changed(|pod| pod["spec"]["activeDeadlineSeconds"] = 5.into()), Vec::<String>::new());
    assert_eq!(changed(|pod| pod["spec"]["tolerations"] = json!([])), ["spec.tolerations"]);
    assert_eq!(changed(|pod| pod["spec"]["hostname"] = "h".into()), ["spec"]);
}

#[test]
fn workloads() {
    let template =
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "a"}});
    for kind in ["Deployment", "ReplicaSet", "DaemonSet", "StatefulSet"] {
        let good = json!({"spec": {"selector": selector, "template": template}});
        assert_eq!(check("apps", kind, good), Vec::<String>::new(), "{kind}");
        let other = json!({"spec": {"selector": {"matchLabels": {"app": "b"}}, "template": template}});
        assert_eq!(check("apps", kind, other), ["Invalid spec.template.metadata.labels"], "{kind}");
    }
    let job = |policy: &str| json!({"spec": {"template": {"spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}}}});
    assert_eq!(check("batch", "Job", job("Never")), Vec::<String>::new());
    assert_eq!(check("batch", "Job", job("Always")), ["Required spec.template.spec.restartPolicy"]);
}

#[test]
fn services() {
    let good =
        json!({"spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80}]}});
    assert_eq!(check("", "Service", good), Vec::<String>::new());
    let bad = json!({"spec": {"ports": [{"port": 0}, {"port": 80, "name": "Bad"}]}});
    assert_eq!(
        check("", "Service", bad),
        [
            "Invalid spec.ports[0].port",
            "Invalid spec.ports[0].targetPort",
            "Invalid spec.ports[1].name",
            "Required spec.ports[0].name"
        ]
    );
}
