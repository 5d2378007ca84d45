use super::*;
use serde_json::{Value, json};

fn set(spec: Value) -> StatefulSet {
    let mut all = json!({"selector": {}, "template": {}, "serviceName": "s"});
    all.as_object_mut().expect("an object").extend(spec.as_object().cloned().unwrap_or_default());
    serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "default"}, "spec": all}))
        .expect("a set")
}

fn pod(ordinal: i32, revision: &str, ready: bool) -> Arc<Pod> {
    let name = format!("db-{ordinal}");
    let ready = if ready { "True" } else { "False" };
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {REVISION_HASH: revision, "statefulset.kubernetes.io/pod-name": name}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .expect("a pod"),
    )
}

fn check(spec: Value, pods: &[Arc<Pod>], expected: &[Step]) {
    assert_eq!(plan(&set(spec.clone()), pods, "new", Timestamp::UNIX_EPOCH), expected, "{spec}");
}

fn create(ordinal: i32) -> Step {
    Step::Create { ordinal, updated: true }
}

fn delete(ordinal: i32) -> Step {
    Step::Delete(format!("db-{ordinal}"))
}

#[test]
fn pods_come_one_after_another_or_all_at_once() {
    check(json!({"replicas": 3}), &[], &[create(0)]);
    check(json!({"replicas": 3}), &[pod(0, "new", false)], &[]);
    check(json!({"replicas": 3}), &[pod(0, "new", true)], &[create(1)]);
    check(json!({"replicas": 2, "podManagementPolicy": "Parallel"}), &[], &[create(0), create(1)]);
    check(json!({"replicas": 1, "ordinals": {"start": 5}}), &[], &[create(5)]);
}

#[test]
fn pods_go_from_the_end() {
    let pods = [pod(0, "new", true), pod(1, "new", true), pod(2, "new", true)];
    check(json!({"replicas": 1}), &pods, &[delete(2)]);
    check(json!({"replicas": 1, "podManagementPolicy": "Parallel"}), &pods, &[delete(2), delete(1)]);
    // Nothing goes while one that stays is not ready.
    check(json!({"replicas": 1}), &[pod(0, "new", false), pod(1, "new", true)], &[]);
}

#[test]
fn an_update_goes_backwards_down_to_the_partition() {
    let old = [pod(0, "old", true), pod(1, "old", true), pod(2, "old", true)];
    check(json!({"replicas": 3}), &old, &[delete(2)]);
    let next = [pod(0, "old", true), pod(1, "old", true), pod(2, "new", true)];
    check(json!({"replicas": 3}), &next, &[delete(1)]);
    let rolling =
        |partition: i32| json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition}});
    check(json!({"replicas": 3, "updateStrategy": rolling(2)}), &next, &[]);
    check(json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}}), &old, &[]);
    // A pod below the partition is made anew as it was.
    let made = [Step::Create { ordinal: 0, updated: false }];
    check(json!({"replicas": 1, "updateStrategy": rolling(1)}), &[], &made);
}

#[test]
fn the_revision_moves_on_when_all_have_it() {
    let now = Timestamp::UNIX_EPOCH;
    let pods = [pod(0, "old", true), pod(1, "new", true)];
    let half = status(&set(json!({"replicas": 2})), &pods, ("old", "new"), None, now);
    assert_eq!((half.current_revision.as_deref(), half.updated_replicas), (Some("old"), Some(1)));
    let pods = [pod(0, "new", true), pod(1, "new", true)];
    let whole = status(&set(json!({"replicas": 2})), &pods, ("old", "new"), None, now);
    assert_eq!((whole.current_revision.as_deref(), whole.current_replicas), (Some("new"), Some(2)));
}
