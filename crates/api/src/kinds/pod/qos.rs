//! The quality of service class of a pod.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kinds::json::Read;
use crate::quantity::Quantity;

/// `Guaranteed`, `Burstable` or `BestEffort`, from the resources of the pod or, where it has none, of its containers.
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = pod.at("spec");
    let pod_level = spec.at("resources");
    let mut requests = BTreeMap::new();
    let mut limits = BTreeMap::new();
    let mut guaranteed = true;
    if pod_level.is_object() {
        sum(&mut requests, pod_level.at("requests"));
        if !pod_level.at("limits").is_empty_value() {
            guaranteed = sum(&mut limits, pod_level.at("limits")) == 2;
        }
    } else {
        for container in spec.items("containers").iter().chain(spec.items("initContainers")) {
            let resources = container.at("resources");
            sum(&mut requests, resources.at("requests"));
            guaranteed &= sum(&mut limits, resources.at("limits")) == 2;
        }
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Adds the positive amounts of CPU and memory, and counts them.
fn sum(totals: &mut BTreeMap<&'static str, Quantity>, list: &Value) -> usize {
    let mut found = 0;
    for name in ["cpu", "memory"] {
        let Ok(amount) = list.text(name).parse::<Quantity>() else { continue };
        if amount.is_zero() || amount.is_negative() {
            continue;
        }
        found += 1;
        let total = totals.get(name).map_or_else(|| amount.clone(), |have| have.add(&amount));
        totals.insert(name, total);
    }
    found
}
