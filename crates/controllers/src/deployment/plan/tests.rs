use super::*;
use serde_json::{Value, json};

fn spec(replicas: i32, surge: Value, unavailable: Value) -> DeploymentSpec {
    serde_json::from_value(json!({
        "replicas": replicas, "selector": {}, "template": {},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
    }))
    .expect("a spec")
}

fn set(name: &str, replicas: i32, available: i32, before: (i32, i32)) -> Arc<ReplicaSet> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:0{}Z", &name[1..]),
                "annotations": {revision::DESIRED: before.0.to_string(), MAXIMUM: before.1.to_string()}},
            "spec": {"replicas": replicas, "selector": {}},
            "status": {"replicas": replicas, "availableReplicas": available},
        }))
        .expect("a set"),
    )
}

fn sizes(sizes: Sizes) -> Vec<(String, i32)> {
    sizes.into_iter().map(|(set, size)| (set.metadata.name.clone().unwrap_or_default(), size)).collect()
}

#[test]
fn the_new_set_grows_as_far_as_the_surge_allows() {
    let spec = spec(10, json!("25%"), json!("25%"));
    assert_eq!((max_surge(&spec), max_unavailable(&spec)), (3, 2));
    assert_eq!(new_size(&spec, 0, 10), 3);
    assert_eq!(new_size(&spec, 3, 13), 3);
    assert_eq!(new_size(&spec, 8, 10), 10);
}

#[test]
fn old_sets_shrink_by_broken_pods_first_and_keep_enough_available() {
    let spec = spec(10, json!(3), json!(2));
    let check = |new: &ReplicaSet, old: &[Arc<ReplicaSet>], expected: &[(&str, i32)]| {
        let expected: Vec<_> = expected.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        assert_eq!(sizes(shrink(&spec, new, old)), expected);
    };
    // All available: two may go at once.
    check(&set("n2", 3, 0, (10, 13)), &[set("o1", 10, 10, (10, 13))], &[("o1", 8)]);
    // The new pods do not come up: nothing more may go.
    check(&set("n2", 5, 0, (10, 13)), &[set("o1", 8, 8, (10, 13))], &[]);
    // Broken ones go first, whichever set has them.
    check(
        &set("n3", 3, 3, (10, 13)),
        &[set("o1", 5, 5, (10, 13)), set("o2", 5, 2, (10, 13))],
        &[("o1", 3), ("o2", 2)],
    );
}

#[test]
fn a_change_of_size_in_a_rollout_is_shared_in_proportion() {
    let deployment = |replicas: i32| Deployment {
        spec: Some(spec(replicas, json!(3), json!(2))),
        ..Deployment::default()
    };
    let new = set("n2", 5, 5, (10, 13));
    let old = [set("o1", 8, 8, (10, 13))];
    let shared = sizes(scale(&deployment(20), Some(&new), &old));
    assert_eq!(shared, [("o1".to_owned(), 14), ("n2".to_owned(), 9)]);
    let none = sizes(scale(&deployment(0), Some(&new), &old));
    assert_eq!(none, [("o1".to_owned(), 0), ("n2".to_owned(), 0)]);
    let alone = sizes(scale(&deployment(4), Some(&new), &[set("o1", 0, 0, (10, 13))]));
    assert_eq!(alone, [("n2".to_owned(), 4)]);
}
