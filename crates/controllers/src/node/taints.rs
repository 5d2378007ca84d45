//! The taints that a node's state calls for. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{condition, readiness};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const BY_CONDITION: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];

fn is_ours(taint: &Taint) -> bool {
    let by_condition = BY_CONDITION.iter().any(|(_, key)| taint.key == *key);
    let by_readiness = taint.key == NOT_READY || taint.key == UNREACHABLE;
    match taint.effect.as_str() {
        "NoSchedule" => by_condition || by_readiness || taint.key == UNSCHEDULABLE,
        "NoExecute" => by_readiness,
        _ => false,
    }
}

/// The taints that the node should have, or `None` if it has them. With `may_evict` false, pods are left where
/// they are: when no node is ready, it is more likely that we are the ones cut off.
pub(super) fn plan(node: &Node, may_evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.clone().unwrap_or_default();
    let old = spec.taints.unwrap_or_default();
    let mut wanted = Vec::<(&str, &str)>::new();
    let readiness = match (condition(node, "Ready"), readiness(node)) {
        (None, _) | (_, "True") => None,
        (_, "False") => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    if let Some(key) = readiness {
        wanted.push((key, "NoSchedule"));
        if may_evict {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, key) in BY_CONDITION {
        if condition(node, kind).is_some_and(|one| one.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if spec.unschedulable == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut new: Vec<Taint> =
        old.iter().filter(|taint| !is_ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in &wanted {
        if !new.iter().any(|taint| taint.key == *key && taint.effect == *effect) {
            new.push(Taint {
                key: (*key).to_owned(),
                effect: (*effect).to_owned(),
                time_added: Some(Time(now)),
                ..Taint::default()
            });
        }
    }
    (new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(ready: &str, spec: Value, may_evict: bool, expected: &[&str]) {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": ready}, {"type": "DiskPressure", "status": "False"}]},
        }))
        .expect("a node");
        let old = node.spec.clone().and_then(|spec| spec.taints).unwrap_or_default();
        let taints = plan(&node, may_evict, Timestamp::UNIX_EPOCH).unwrap_or(old);
        let names: Vec<_> = taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn taints_follow_the_conditions() {
        check("True", json!({}), true, &[]);
        check(
            "False",
            json!({}),
            true,
            &["node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"],
        );
        check("Unknown", json!({}), false, &["node.kubernetes.io/unreachable:NoSchedule"]);
        let stale = json!({"taints": [
            {"key": "mine", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
            {"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"},
        ]});
        check("True", stale, true, &["mine:NoSchedule"]);
        check("True", json!({"unschedulable": true}), true, &["node.kubernetes.io/unschedulable:NoSchedule"]);
    }
}
