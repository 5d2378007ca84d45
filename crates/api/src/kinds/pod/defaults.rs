//! Defaults that a pod has beyond those of a pod template.

use serde_json::{Map, Value};

use super::resources::{self, List};
use crate::kinds::json::{Read, Write};
use crate::kinds::podspec;

pub(super) fn default(pod: &mut Value) {
    let spec = pod.child("spec");
    podspec::default_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in spec.items_mut(list) {
            if let Some(resources) = container.existing("resources") {
                requests_from_limits(resources);
            }
        }
    }
    if spec.at("resources").is_object() {
        default_huge_page_limits(spec);
        default_pod_requests(spec);
    }
    spec.fill("enableServiceLinks", true);
    if spec.flag("hostNetwork") {
        for list in ["containers", "initContainers"] {
            for container in spec.items_mut(list) {
                for port in container.items_mut("ports") {
                    let number = port.at("containerPort").clone();
                    port.fill_zero("hostPort", number);
                }
            }
        }
    }
    status(pod);
}

/// The single addresses are written beside the lists.
fn status(pod: &mut Value) {
    let Some(status) = pod.existing("status") else { return };
    for (single, list) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let address = status.text(single).to_owned();
        if !address.is_empty() && status.items(list).is_empty() {
            status.put(list, vec![serde_json::json!({"ip": address})]);
        } else if let Some(first) = status.items(list).first().map(|ip| ip.text("ip").to_owned())
            && address.is_empty()
        {
            status.put(single, first);
        }
    }
}

fn requests_from_limits(resources: &mut Value) {
    let Some(limits) = resources.at("limits").as_object().cloned() else { return };
    let requests = resources.child("requests");
    for (name, limit) in limits {
        requests.fill(&name, limit);
    }
    if requests.as_object().is_some_and(Map::is_empty) {
        resources.take_key("requests");
    }
}

fn default_huge_page_limits(spec: &mut Value) {
    let resources = spec.at("resources");
    if resources.at("limits").is_empty_value() && resources.at("requests").is_empty_value() {
        return;
    }
    let total = resources::aggregate(spec, List::Limits);
    let resources = spec.child("resources");
    for (name, amount) in total {
        if name.starts_with(resources::HUGE_PAGES) && !resources.at("requests").has(&name) {
            resources.child("limits").fill(&name, amount.to_string());
        }
    }
}

fn default_pod_requests(spec: &mut Value) {
    let limits = spec.at("resources").at("limits").as_object().cloned().unwrap_or_default();
    if limits.is_empty() {
        return;
    }
    let total = resources::aggregate(spec, List::Requests);
    let resources = spec.child("resources");
    for (name, amount) in total {
        if matches!(name.as_str(), "cpu" | "memory") {
            resources.child("requests").fill(&name, amount.to_string());
        }
    }
    for (name, limit) in limits {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with(resources::HUGE_PAGES) {
            resources.child("requests").fill(&name, limit);
        }
    }
}
