use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn node(name: &str, labels: Value, spec: Value, cpu: &str) -> Arc<Node> {
    let mut labels = labels;
    labels["kubernetes.io/hostname"] = json!(name);
    let allocatable = json!({"cpu": cpu, "memory": "8Gi", "pods": "10", "example.com/gpu": "1"});
    let node = json!({"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"allocatable": allocatable}});
    Arc::new(serde_json::from_value(node).expect("a node"))
}

fn pod(name: &str, labels: Value, spec: Value) -> Arc<PodInfo> {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    let pod = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels}, "spec": spec});
    PodInfo::new(Arc::new(serde_json::from_value::<Pod>(pod).expect("a pod")))
}

fn asks(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
}

fn place(snapshot: &Snapshot, pod: &PodInfo) -> String {
    match plan(snapshot, pod, &VolumeNeeds::default(), 0) {
        Ok(node) => node,
        Err(why) => why.to_string(),
    }
}

fn two_nodes() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(node("a", json!({"zone": "1"}), json!({}), "4"));
    snapshot.set_node(node("b", json!({"zone": "2"}), json!({}), "4"));
    snapshot
}

#[test]
fn reasons_are_counted_in_the_references_words() {
    let mut snapshot = Snapshot::default();
    assert_eq!(place(&snapshot, &pod("p", json!({}), json!({}))), "no nodes available to schedule pods");
    snapshot.set_node(node("a", json!({}), json!({"unschedulable": true}), "4"));
    snapshot.set_node(node("b", json!({}), json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}), "4"));
    snapshot.set_node(node("c", json!({}), json!({}), "1"));
    snapshot.set_node(node("d", json!({}), json!({}), "1"));
    assert_eq!(
        place(&snapshot, &pod("p", json!({}), asks("2"))),
        "0/4 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable, 2 Insufficient cpu."
    );
    assert_eq!(
        place(
            &snapshot,
            &pod(
                "p",
                json!({}),
                json!({"nodeSelector": {"no": "such"}, "tolerations": [{"operator": "Exists"}]})
            )
        ),
        "0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector."
    );
}

#[test]
fn host_ports_are_taken_once_per_node() {
    let mut snapshot = two_nodes();
    let spec = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    for name in ["p1", "p2"] {
        let pod = pod(name, json!({}), spec.clone());
        let node = plan(&snapshot, &pod, &VolumeNeeds::default(), 0).expect("a node");
        snapshot.set_pod(&node, pod);
    }
    assert_eq!(
        place(&snapshot, &pod("p3", json!({}), spec)),
        "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports."
    );
}

#[test]
fn the_emptier_node_is_better() {
    let mut snapshot = two_nodes();
    snapshot.set_pod("a", pod("p1", json!({}), asks("3")));
    assert_eq!(place(&snapshot, &pod("p2", json!({}), asks("500m"))), "b");
}

#[test]
fn affinity_and_anti_affinity() {
    let mut snapshot = two_nodes();
    snapshot.set_pod("a", pod("web", json!({"app": "web"}), json!({})));
    let term = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let far =
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    assert_eq!(place(&snapshot, &pod("p", json!({}), near)), "a");
    let lonely = pod("lonely", json!({}), far);
    assert_eq!(place(&snapshot, &lonely), "b");
    // It works both ways round: a pod already there keeps others off.
    snapshot.set_pod("b", lonely);
    snapshot.remove_node("a");
    assert_eq!(
        place(&snapshot, &pod("p", json!({"app": "web"}), json!({}))),
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
    );
}

#[test]
fn the_first_of_a_group_may_go_anywhere() {
    let term = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    assert_eq!(place(&two_nodes(), &pod("p", json!({"app": "web"}), near.clone())), "a");
    assert_eq!(
        place(&two_nodes(), &pod("p", json!({"app": "db"}), near)),
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules."
    );
}

#[test]
fn spreading() {
    let mut snapshot = two_nodes();
    let spread = |when: &str| {
        json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}}]})
    };
    let labels = json!({"app": "web"});
    snapshot.set_pod("a", pod("p1", labels.clone(), json!({})));
    assert_eq!(place(&snapshot, &pod("p2", labels.clone(), spread("DoNotSchedule"))), "b");
    assert_eq!(place(&snapshot, &pod("p2", labels.clone(), spread("ScheduleAnyway"))), "b");
    snapshot.set_node(node("b", json!({"zone": "2"}), json!({"unschedulable": true}), "4"));
    assert_eq!(
        place(&snapshot, &pod("p2", labels, spread("DoNotSchedule"))),
        "0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, 1 node(s) were unschedulable."
    );
}

#[test]
fn preemption_takes_the_least_and_says_why_not() {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(node("a", json!({}), json!({}), "4"));
    let with = |cpu: &str, priority: i32| {
        let mut spec = asks(cpu);
        spec["priority"] = json!(priority);
        spec
    };
    snapshot.set_pod("a", pod("small", json!({}), with("1", 1)));
    snapshot.set_pod("a", pod("big", json!({}), with("2", 1)));
    snapshot.set_pod("a", pod("dear", json!({}), with("1", 9)));
    let none = VolumeNeeds::default();
    let try_for = |pod: &PodInfo| {
        let why = plan(&snapshot, pod, &none, 0).expect_err("full");
        preempt(&snapshot, pod, &none, &why, &[])
    };
    let found = try_for(&pod("p", json!({}), with("2", 5))).expect("room can be made");
    let names: BTreeSet<_> = found.victims.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
    assert_eq!(names, BTreeSet::from(["big"]));
    assert_eq!(
        try_for(&pod("p", json!({}), with("2", 0))).expect_err("nobody is lower"),
        "0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    assert_eq!(
        try_for(&pod("p", json!({}), with("9", 9))).expect_err("the node is too small"),
        "0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    );
}

#[test]
fn room_is_kept_for_a_nominated_pod() {
    let mut snapshot = Snapshot::default();
    snapshot.set_node(node("a", json!({}), json!({}), "4"));
    let mut spec = asks("3");
    spec["priority"] = json!(10);
    let waiting = pod("waiting", json!({}), spec);
    snapshot.nominate("a", waiting.clone());
    assert_eq!(
        place(&snapshot, &pod("p", json!({}), asks("2"))),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    assert_eq!(place(&snapshot, &waiting), "a");
    snapshot.withdraw("waiting");
    assert_eq!(place(&snapshot, &pod("p", json!({}), asks("2"))), "a");
}

proptest! {
    #[test]
    fn never_overcommits(
        nodes in prop::collection::vec(1i64..8, 1..5),
        pods in prop::collection::vec((1i64..4000, 0i64..2), 1..40),
        choice in any::<u64>(),
    ) {
        let mut snapshot = Snapshot::default();
        for (at, cpus) in nodes.iter().enumerate() {
            snapshot.set_node(node(&format!("n{at}"), json!({}), json!({}), &cpus.to_string()));
        }
        for (at, (cpu, gpus)) in pods.iter().enumerate() {
            let requests = json!({"cpu": format!("{cpu}m"), "example.com/gpu": gpus.to_string()});
            let spec = json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
            let pod = pod(&format!("p{at}"), json!({}), spec);
            if let Ok(node) = plan(&snapshot, &pod, &VolumeNeeds::default(), choice) {
                snapshot.set_pod(&node, pod);
            }
        }
        for node in snapshot.nodes() {
            prop_assert!(node.requested.cpu <= node.allocatable.cpu);
            prop_assert!(node.pods.len() <= 10);
            let gpus = node.requested.scalar.get("example.com/gpu").copied().unwrap_or_default();
            prop_assert!(gpus <= 1);
        }
    }
}
