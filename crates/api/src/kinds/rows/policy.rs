//! Rows of budgets, quotas and autoscalers.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, name, or, plain};
use crate::kinds::json::Read;

pub(super) fn disruption_budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let amount = |key: &str| match spec.at(key) {
        Value::Null => "N/A".to_owned(),
        value => plain(value),
    };
    vec![
        name(object),
        amount("minAvailable").into(),
        amount("maxUnavailable").into(),
        object.at("status").num("disruptionsAllowed").into(),
        age(object, now),
    ]
}

pub(super) fn resource_quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = object.at("status");
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in status.entries("hard") {
        let used = or(status.at("used").text(resource), "0");
        let list = if resource.starts_with("limits.") { &mut limits } else { &mut requests };
        list.push(format!("{resource}: {used}/{}", plain(hard)));
    }
    vec![name(object), requests.join(", ").into(), limits.join(", ").into(), age(object, now)]
}

pub(super) fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let target = spec.at("scaleTargetRef");
    let least = spec.int("minReplicas").map_or("<unset>".to_owned(), |n| n.to_string());
    vec![
        name(object),
        format!("{}/{}", target.text("kind"), target.text("name")).into(),
        metrics(spec, status).into(),
        least.into(),
        spec.num("maxReplicas").into(),
        status.num("currentReplicas").into(),
        age(object, now),
    ]
}

fn metrics(spec: &Value, status: &Value) -> String {
    if let Some(target) = spec.int("targetCPUUtilizationPercentage") {
        let current = status.int("currentCPUUtilizationPercentage");
        let current = current.map_or("<unknown>".to_owned(), |percent| format!("{percent}%"));
        return format!("cpu: {current}/{target}%");
    }
    let specs = spec.items("metrics");
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let statuses = status.items("currentMetrics");
    let mut list: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| metric(spec, statuses.get(index).unwrap_or(&Value::Null)))
        .collect();
    match list.len() {
        0..=2 => list.join(", "),
        count => {
            list.truncate(2);
            format!("{} + {} more...", list.join(", "), count - 2)
        }
    }
}

fn metric(spec: &Value, status: &Value) -> String {
    let (key, average_suffix) = match spec.text("type") {
        "External" => ("external", " (avg)"),
        "Object" => ("object", " (avg)"),
        "Pods" => ("pods", ""),
        "Resource" => ("resource", ""),
        "ContainerResource" => ("containerResource", ""),
        _ => return "<unknown type>".to_owned(),
    };
    let (source, current) = (spec.at(key), status.at(key).at("current"));
    let target = source.at("target");
    let known = |field: &str| or(current.text(field), "<unknown>").to_owned();
    let percent = |holder: &Value, otherwise: &str| {
        holder.int("averageUtilization").map_or(otherwise.to_owned(), |percent| format!("{percent}%"))
    };
    let prefix = match key {
        "resource" | "containerResource" => format!("{}: ", source.text("name")),
        _ => String::new(),
    };
    if target.has("averageValue") || key == "pods" {
        return format!("{prefix}{}/{}{average_suffix}", known("averageValue"), target.text("averageValue"));
    }
    match key {
        "external" | "object" => format!("{}/{}", known("value"), target.text("value")),
        _ => format!("{prefix}{}/{}", percent(current, "<unknown>"), percent(target, "<auto>")),
    }
}
