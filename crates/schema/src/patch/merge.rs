//! JSON merge patch, RFC 7386.

use serde_json::{Map, Value};

/// The object with the patch merged in: null deletes, objects merge, everything else replaces.
pub fn merge_patch(object: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut merged = match object {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    for (key, change) in patch {
        if change.is_null() {
            merged.remove(key);
        } else {
            let merged_value = merge_patch(merged.get(key).unwrap_or(&Value::Null), change);
            merged.insert(key.clone(), merged_value);
        }
    }
    Value::Object(merged)
}
