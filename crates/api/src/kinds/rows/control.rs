//! Rows of the kinds of the control plane.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, name};
use crate::kinds::json::Read;

pub(super) fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = match object.dig(&["spec", "service"]) {
        Value::Null => "Local".to_owned(),
        service => format!("{}/{}", service.text("namespace"), service.text("name")),
    };
    let condition = object.at("status").items("conditions").iter().find(|c| c.text("type") == "Available");
    let available = match condition {
        None => "Unknown".to_owned(),
        Some(condition) if condition.text("status") == "True" || condition.text("reason").is_empty() => {
            condition.text("status").to_owned()
        }
        Some(condition) => format!("{} ({})", condition.text("status"), condition.text("reason")),
    };
    vec![name(object), service.into(), available.into(), age(object, now)]
}

pub(super) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.at("spec").text("holderIdentity").into(), age(object, now)]
}

pub(super) fn runtime_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.text("handler").into(), age(object, now)]
}

pub(super) fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        object.num("value").into(),
        object.flag("globalDefault").into(),
        age(object, now),
        object.text("preemptionPolicy").into(),
    ]
}

pub(super) fn flow_schema(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let method = match spec.at("distinguisherMethod") {
        Value::Null => "<none>",
        method => method.text("type"),
    };
    let dangling = object.at("status").items("conditions").iter().find(|c| c.text("type") == "Dangling");
    vec![
        name(object),
        spec.at("priorityLevelConfiguration").text("name").into(),
        spec.num("matchingPrecedence").into(),
        method.into(),
        age(object, now),
        dangling.map_or("?", |condition| condition.text("status")).into(),
    ]
}

pub(super) fn priority_level(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let limited = spec.at("limited");
    let queuing = limited.dig(&["limitResponse", "queuing"]);
    let number = |holder: &Value, key: &str| -> Value {
        if holder.is_null() { "<none>".into() } else { holder.num(key).into() }
    };
    vec![
        name(object),
        spec.text("type").into(),
        number(limited, "nominalConcurrencyShares"),
        number(queuing, "queues"),
        number(queuing, "handSize"),
        number(queuing, "queueLengthLimit"),
        age(object, now),
    ]
}
