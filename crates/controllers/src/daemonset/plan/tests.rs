use super::*;
use serde_json::{Value, json};

fn set(rolling: Value) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"name": "d", "namespace": "default"},
        "spec": {"selector": {}, "template": {"spec": {"containers": [], "nodeSelector": {"disk": "ssd"}}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}},
    }))
    .expect("a set")
}

fn node(name: &str, disk: &str, taints: Value) -> Arc<Node> {
    let node = json!({"metadata": {"name": name, "labels": {"disk": disk}}, "spec": {"taints": taints}});
    Arc::new(serde_json::from_value(node).expect("a node"))
}

fn pod(name: &str, node: &str, hash: &str, phase: &str, ready: bool) -> Arc<Pod> {
    let ready = if ready { "True" } else { "False" };
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {REVISION_HASH: hash}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .expect("a pod"),
    )
}

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

#[test]
fn one_pod_on_each_node_that_fits() {
    let nodes = [
        node("a", "ssd", json!([])),
        node("b", "hdd", json!([])),
        node("c", "ssd", json!([{"key": "k", "effect": "NoSchedule"}])),
        node("d", "ssd", json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}])),
    ];
    let pods = by_node(&[
        pod("b1", "b", "h", "Running", true),
        pod("c1", "c", "h", "Running", true),
        pod("d1", "d", "h", "Running", true),
        pod("d2", "d", "h", "Running", true),
    ]);
    let plan = manage(&set(json!({})), &nodes, &pods, "h", NOW);
    assert_eq!(plan.create, ["a"]);
    assert_eq!(plan.delete, ["b1", "d2"]);
    let status = status(&set(json!({})), &nodes, &pods, "h", NOW);
    assert_eq!((status.desired_number_scheduled, status.number_misscheduled, status.number_ready), (2, 2, 1));
}

#[test]
fn a_failed_pod_is_replaced() {
    let nodes = [node("a", "ssd", json!([]))];
    let plan = manage(&set(json!({})), &nodes, &by_node(&[pod("a1", "a", "h", "Failed", false)]), "h", NOW);
    assert_eq!(plan.failed, [("a".to_owned(), "a1".to_owned())]);
}

#[test]
fn a_rolling_update_keeps_within_its_allowance() {
    let nodes: Vec<_> = ["a", "b", "c"].map(|name| node(name, "ssd", json!([]))).into();
    let olds = |broken: &str| {
        let pods: Vec<_> = ["a", "b", "c"]
            .map(|node| pod(&format!("{node}1"), node, "old", "Running", node != broken))
            .into();
        by_node(&pods)
    };
    assert_eq!(roll(&set(json!({"maxUnavailable": 1})), &nodes, &olds(""), "new", NOW).delete, ["a1"]);
    assert_eq!(
        roll(&set(json!({"maxUnavailable": "50%"})), &nodes, &olds(""), "new", NOW).delete,
        ["a1", "b1"]
    );
    // A pod that is broken anyway goes first, and counts.
    assert_eq!(roll(&set(json!({"maxUnavailable": 1})), &nodes, &olds("c"), "new", NOW).delete, ["c1"]);
    let surge = set(json!({"maxSurge": 1, "maxUnavailable": 0}));
    assert_eq!(roll(&surge, &nodes, &olds(""), "new", NOW).create, ["a"]);
    let mut both = olds("");
    both.entry("a".into()).or_default().push(pod("a2", "a", "new", "Running", true));
    let plan = roll(&surge, &nodes, &both, "new", NOW);
    assert_eq!(
        (plan.delete.as_slice(), plan.create.as_slice()),
        (&["a1".to_owned()][..], &["b".to_owned()][..])
    );
}

#[test]
fn the_pod_of_a_node_says_which() {
    let template = template_for(&set(json!({})), "a", "h");
    let pod = Arc::new(Pod { metadata: Default::default(), spec: template.spec, status: None });
    assert_eq!(by_node(&[pod]).keys().collect::<Vec<_>>(), ["a"]);
}
