//! Namespaces: a deleted one stays, Terminating, until its own finalizers are gone.

use serde_json::{Value, json};

use super::{PartRules, Special};

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

/// `finalize` changes everything but the status; the main endpoint keeps `spec.finalizers`.
pub static FINALIZE: PartRules = PartRules {
    name: "finalize",
    prepare: |new, old| match old.get("status") {
        Some(status) => new["status"] = status.clone(),
        None => {
            new.as_object_mut().map(|o| o.remove("status"));
        }
    },
    validate: |_, _| Vec::new(),
};
