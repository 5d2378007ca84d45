//! Namespaces: a deleted one stays, Terminating, until its own finalizers are gone.

use serde_json::{Value, json};

use super::Special;

pub static ROW: Special =
    Special { returns_deleted: true, keeps: Some(keeps), marked: Some(marked), ..Special::GENERIC };

/// The first delete only marks; what is marked waits for `spec.finalizers`.
fn keeps(object: &Value) -> bool {
    let marked = object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    !marked || object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty())
}

fn marked(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("deletionGracePeriodSeconds");
    }
    let mut status = object.get("status").cloned().unwrap_or_else(|| json!({}));
    status["phase"] = "Terminating".into();
    object["status"] = status;
}
