//! Pod: defaults, quality of service class, what a write may bring, selectable fields.

mod defaults;
mod qos;
mod resources;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use super::json::{Read, Write, keep, same};
use super::prepare;
use crate::Strategy;

pub use qos::qos_class;

pub(super) static POD: Strategy = Strategy {
    default: defaults::default,
    prepare_create,
    prepare_update,
    prepare_status,
    fields,
    field_labels: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
        "spec.host",
    ],
    has_graceful_delete: true,
    ..Strategy::GENERIC
};

fn prepare_create(pod: &mut Value) {
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    if !pod.at("spec").items("schedulingGates").is_empty() {
        status.put(
            "conditions",
            json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null,
                "lastTransitionTime": pod.dig(&["metadata", "creationTimestamp"]),
            }]),
        );
    }
    prepare::create_with(pod, status);
    merge_label_keys(pod);
}

fn prepare_update(pod: &mut Value, old: &Value) {
    prepare::update_counted(pod, old);
}

fn prepare_status(pod: &mut Value, old: &Value) {
    prepare::status(pod, old);
    let old_meta = old.at("metadata");
    let meta = pod.child("metadata");
    keep(meta, old_meta, "deletionTimestamp");
    keep(meta, old_meta, "ownerReferences");
    let old_status = old.at("status");
    let status = pod.child("status");
    status.fill_zero("qosClass", old_status.at("qosClass").clone());
    if status.num("observedGeneration") == 0 {
        keep(status, old_status, "observedGeneration");
    }
    // A condition that comes without observedGeneration keeps that of the old condition of its type, first to first.
    let mut left: Vec<&Value> = old_status.items("conditions").iter().collect();
    for condition in status.items_mut("conditions") {
        let found = left.iter().position(|old| old.text("type") == condition.text("type"));
        let generation = found.map_or(0, |index| left.remove(index).num("observedGeneration"));
        if condition.num("observedGeneration") == 0 && generation != 0 {
            condition.put("observedGeneration", generation);
        }
    }
}

/// Before an update through `ephemeralcontainers` is validated: nothing else may change.
pub fn prepare_ephemeral_containers(pod: &mut Value, old: &Value) {
    let containers = pod.at("spec").at("ephemeralContainers").clone();
    keep(pod, old, "spec");
    keep(pod, old, "status");
    prepare::reset_metadata(pod, old);
    if containers.is_null() {
        pod.child("spec").take_key("ephemeralContainers");
    } else {
        pod.child("spec").put("ephemeralContainers", containers);
    }
    prepare::counted(pod, old);
}

/// Before an update through `resize` is validated: only resources and resize policies may change.
pub fn prepare_resize(pod: &mut Value, old: &Value) {
    let lists = ["containers", "initContainers"];
    let sizes_match =
        lists.iter().all(|list| pod.at("spec").items(list).len() == old.at("spec").items(list).len());
    if sizes_match {
        let resources = pod.at("spec").at("resources").clone();
        let merged =
            lists.map(|list| (list, resized(pod.at("spec").items(list), old.at("spec").items(list))));
        keep(pod, old, "spec");
        keep(pod, old, "status");
        prepare::reset_metadata(pod, old);
        let spec = pod.child("spec");
        for (list, containers) in merged {
            if !containers.is_empty() {
                spec.put(list, containers);
            }
        }
        if resources.is_null() {
            spec.take_key("resources");
        } else {
            spec.put("resources", resources);
        }
    }
    prepare::counted(pod, old);
}

fn resized(new: &[Value], old: &[Value]) -> Vec<Value> {
    if new.iter().zip(old).any(|(new, old)| new.text("name") != old.text("name")) {
        return new.to_vec();
    }
    let mut merged = old.to_vec();
    for (container, new) in merged.iter_mut().zip(new) {
        keep(container, new, "resources");
        keep(container, new, "resizePolicy");
    }
    merged
}

/// Turns `matchLabelKeys` and `mismatchLabelKeys` into requirements of the selectors beside them.
fn merge_label_keys(pod: &mut Value) {
    let labels = pod.dig(&["metadata", "labels"]).clone();
    let spec = pod.child("spec");
    if let Some(affinity) = spec.existing("affinity") {
        for kind in ["podAffinity", "podAntiAffinity"] {
            let Some(affinity) = affinity.existing(kind) else { continue };
            for term in affinity.items_mut("preferredDuringSchedulingIgnoredDuringExecution") {
                merge_keys(term.child("podAffinityTerm"), &labels);
            }
            for term in affinity.items_mut("requiredDuringSchedulingIgnoredDuringExecution") {
                merge_keys(term, &labels);
            }
        }
    }
    for constraint in spec.items_mut("topologySpreadConstraints") {
        merge_keys(constraint, &labels);
    }
}

fn merge_keys(holder: &mut Value, labels: &Value) {
    if !holder.has("labelSelector") {
        return;
    }
    let mut added = Vec::new();
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in holder.items(list).iter().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key) {
                added.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if added.is_empty() {
        return;
    }
    let selector = holder.child("labelSelector");
    let mut expressions = selector.items("matchExpressions").to_vec();
    expressions.extend(added);
    selector.put("matchExpressions", expressions);
}

/// What the containers ask for together: the sums of `requests` or `limits` by resource.
pub(crate) fn totals(spec: &Value, list: &str) -> Vec<(String, crate::quantity::Quantity)> {
    let list = if list == "limits" { resources::List::Limits } else { resources::List::Requests };
    resources::aggregate(spec, list).into_iter().collect()
}

fn fields(pod: &Value) -> Vec<(&'static str, String)> {
    let (spec, status) = (pod.at("spec"), pod.at("status"));
    let text = |holder: &Value, key: &str| holder.text(key).to_owned();
    let ip = status.items("podIPs").first().map(|ip| text(ip, "ip")).unwrap_or_default();
    vec![
        ("spec.nodeName", text(spec, "nodeName")),
        ("spec.restartPolicy", text(spec, "restartPolicy")),
        ("spec.schedulerName", text(spec, "schedulerName")),
        ("spec.serviceAccountName", text(spec, "serviceAccountName")),
        ("spec.hostNetwork", spec.flag("hostNetwork").to_string()),
        ("status.phase", text(status, "phase")),
        ("status.podIP", ip),
        ("status.nominatedNodeName", text(status, "nominatedNodeName")),
    ]
}

/// Whether two pods have the same specification.
pub fn same_spec(a: &Value, b: &Value) -> bool {
    same(a.at("spec"), b.at("spec"))
}
