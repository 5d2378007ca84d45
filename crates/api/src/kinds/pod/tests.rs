use serde_json::json;

use super::*;

#[test]
fn classes() {
    let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
    let both = json!({"cpu": "1", "memory": "1Gi"});
    for (resources, class) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": both, "requests": both}), "Guaranteed"),
        (json!({"limits": both, "requests": {"cpu": "500m", "memory": "1Gi"}}), "Burstable"),
        (json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}), "Burstable"),
    ] {
        assert_eq!(qos_class(&pod(resources.clone())), class, "{resources}");
    }
}

#[test]
fn requests_follow_limits() {
    let mut pod = json!({"spec": {"containers": [
        {"name": "a", "image": "i", "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "1m"}}}]}});
    (POD.default)(&mut pod);
    assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "1m", "memory": "64Mi"}));
}

#[test]
fn pod_level_requests_follow_containers_then_limits() {
    let mut pod = json!({"spec": {"resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
        "containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": "1"}}}]}});
    (POD.default)(&mut pod);
    assert_eq!(pod["spec"]["resources"]["requests"], json!({"cpu": "1", "memory": "1Gi"}));
}

#[test]
fn a_changed_spec_is_a_new_generation() {
    let old = json!({"metadata": {"generation": 3}, "spec": {"a": []}, "status": {"phase": "Running"}});
    let mut new = json!({"metadata": {"generation": 9}, "spec": {}, "status": {}});
    (POD.prepare_update)(&mut new, &old);
    assert_eq!(new, json!({"metadata": {"generation": 3}, "spec": {}, "status": {"phase": "Running"}}));
    new["spec"] = json!({"activeDeadlineSeconds": 4});
    (POD.prepare_update)(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 4);
}

#[test]
fn gates_are_told_in_the_status() {
    let mut pod = json!({"metadata": {}, "spec": {"schedulingGates": [{"name": "g"}]}});
    (POD.prepare_create)(&mut pod);
    assert_eq!(pod["status"]["conditions"][0]["reason"], "SchedulingGated");
}
