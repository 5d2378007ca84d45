//! Rows of the small core kinds.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{age, name, or};
use crate::kinds::json::Read;

pub(super) fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

pub(super) fn component_status(object: &Value, _: Timestamp) -> Vec<Value> {
    let healthy = object.items("conditions").iter().find(|c| c.text("type") == "Healthy");
    match healthy {
        None => vec![name(object), "Unknown".into(), "".into(), "".into()],
        Some(condition) => {
            let status = if condition.text("status") == "True" { "Healthy" } else { "Unhealthy" };
            vec![
                name(object),
                status.into(),
                condition.text("message").into(),
                condition.text("error").into(),
            ]
        }
    }
}

fn entries(object: &Value, key: &str) -> usize {
    object.at(key).as_object().map_or(0, serde_json::Map::len)
}

pub(super) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = entries(object, "data") + entries(object, "binaryData");
    vec![name(object), count.into(), age(object, now)]
}

pub(super) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.text("type").into(), entries(object, "data").into(), age(object, now)]
}

pub(super) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.at("status").text("phase").into(), age(object, now)]
}

pub(super) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = object.at("status");
    let info = status.at("nodeInfo");
    let ready = status.items("conditions").iter().rfind(|c| c.text("type") == "Ready");
    let mut state = match ready.map(|condition| condition.text("status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object.at("spec").flag("unschedulable") {
        state.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| -> Value {
        let found = status.items("addresses").iter().find(|address| address.text("type") == kind);
        found.map_or("<none>", |address| address.text("address")).into()
    };
    let mut kernel = or(info.text("kernelVersion"), "<unknown>").to_owned();
    if !info.text("architecture").is_empty() {
        kernel = format!("{kernel} ({})", info.text("architecture"));
    }
    vec![
        name(object),
        state.into(),
        roles(object).into(),
        age(object, now),
        info.text("kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        or(info.text("osImage"), "<unknown>").into(),
        kernel.into(),
        or(info.text("containerRuntimeVersion"), "<unknown>").into(),
    ]
}

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in node.at("metadata").entries("labels") {
        let role = match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => role,
            None if key == "kubernetes.io/role" => value.as_str().unwrap_or_default(),
            None => continue,
        };
        if !role.is_empty() {
            roles.insert(role);
        }
    }
    let joined = roles.into_iter().collect::<Vec<_>>().join(",");
    or(&joined, "<none>").to_owned()
}
