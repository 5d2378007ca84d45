//! Rows of the kinds of resource.k8s.io.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, name};
use crate::kinds::json::Read;

pub(super) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = object.at("status");
    let deleted = object.at("metadata").has("deletionTimestamp");
    let allocated = status.has("allocation");
    let mut states = Vec::new();
    if deleted {
        states.push("deleted");
    }
    if allocated {
        states.push("allocated");
        if !status.items("reservedFor").is_empty() {
            states.push("reserved");
        }
    } else if !deleted {
        states.push("pending");
    }
    vec![name(object), states.join(",").into(), age(object, now)]
}

pub(super) fn slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    vec![
        name(object),
        spec.text("nodeName").into(),
        spec.text("driver").into(),
        spec.at("pool").text("name").into(),
        age(object, now),
    ]
}
