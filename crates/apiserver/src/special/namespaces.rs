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

/// `finalize` changes `spec.finalizers` alone.
pub static FINALIZE: PartRules = PartRules {
    name: "finalize",
    prepare: |new, old| {
        let finalizers = new.pointer("/spec/finalizers").cloned();
        let mut kept = old.clone();
        for field in ["resourceVersion", "managedFields"] {
            let value = new.pointer(&format!("/metadata/{field}")).cloned();
            if let (Some(metadata), Some(value)) = (kept.get_mut("metadata"), value) {
                metadata[field] = value;
            }
        }
        if let Some(spec) = kept.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("finalizers");
            if let Some(finalizers) = finalizers {
                spec.insert("finalizers".to_owned(), finalizers);
            }
        }
        *new = kept;
    },
    validate: |_, _| Vec::new(),
};
