use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2024-01-01T01:00:00Z".parse().expect("a time")
}

#[test]
fn durations() {
    for (seconds, text) in [
        (-5, "<invalid>"),
        (-1, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (3600, "60m"),
        (4 * 3600, "4h"),
        (4 * 3600 + 60, "4h1m"),
        (30 * 3600, "30h"),
        (50 * 3600, "2d2h"),
        (9 * 86400, "9d"),
        (800 * 86400, "2y70d"),
        (3000 * 86400, "8y"),
    ] {
        assert_eq!(human_duration(seconds), text);
    }
}

#[test]
fn every_kind_with_columns_has_as_many_cells() {
    for resource in crate::resources().iter().filter(|r| !r.columns.is_empty()) {
        let object = json!({"apiVersion": resource.api_version(), "kind": resource.kind,
            "metadata": {"name": "a", "creationTimestamp": "2024-01-01T00:00:00Z"}, "spec": {}});
        let row = resource.strategy.row(&object, now());
        assert_eq!(row.len(), resource.columns.len(), "{}", resource.plural);
    }
}

fn pod(spec: Value, status: Value) -> Vec<Value> {
    let pod = json!({"metadata": {"name": "p", "creationTimestamp": "2024-01-01T00:59:00Z"}, "spec": spec, "status": status});
    pod::row(&pod, now())
}

#[test]
fn pods() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let row = pod(two.clone(), json!({"phase": "Pending"}));
    assert_eq!(row[..5], [json!("p"), json!("0/2"), json!("Pending"), json!("0"), json!("60s")]);

    let row = pod(
        two.clone(),
        json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}},
            {"name": "b", "ready": false, "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
             "lastState": {"terminated": {"finishedAt": "2024-01-01T00:59:50Z", "exitCode": 1}}}]}),
    );
    assert_eq!(row[1..4], [json!("1/2"), json!("CrashLoopBackOff"), json!("2 (10s ago)")]);

    let row = pod(
        json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]}),
        json!({"phase": "Pending", "initContainerStatuses": [
            {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}),
    );
    assert_eq!(row[2], "Init:1/2");

    let row = pod(
        two,
        json!({"phase": "Succeeded", "containerStatuses": [
        {"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
        {"name": "b", "state": {"terminated": {"exitCode": 3, "reason": "Error"}}}]}),
    );
    assert_eq!(row[2], "Error");
}

#[test]
fn services() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.9"],
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}], "selector": {"a": "b"}}});
    let row = network::service(&service, now());
    assert_eq!(
        row,
        ["s", "NodePort", "10.96.0.9", "<none>", "80:30080/TCP", "<unknown>", "a=b"].map(Value::from)
    );
}

#[test]
fn jobs() {
    let job = json!({"metadata": {"name": "j"}, "spec": {"completions": 2}, "status": {"succeeded": 1,
        "startTime": "2024-01-01T00:00:00Z", "completionTime": "2024-01-01T00:00:30Z",
        "conditions": [{"type": "Complete", "status": "True"}]}});
    let row = workloads::job(&job, now());
    assert_eq!(row[1..4], [json!("Complete"), json!("1/2"), json!("30s")]);
}
