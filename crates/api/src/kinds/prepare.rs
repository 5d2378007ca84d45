//! What most kinds do before a write is validated: status and generation.

use serde_json::Value;

use super::json::{Read, Write, empty, keep, same};

/// Leaves the object as it is.
pub(crate) fn nothing(_: &mut Value) {}

/// Leaves the update as it is, but for the generation, which is the system's.
pub(crate) fn keep_generation(new: &mut Value, old: &Value) {
    set_generation(new, old.dig(&["metadata", "generation"]).as_i64());
}

/// A new object without status.
pub(crate) fn create(object: &mut Value) {
    object.put("status", empty());
}

/// A new object without status, in its first generation.
pub(crate) fn create_first(object: &mut Value) {
    create(object);
    set_generation(object, Some(1));
}

/// A new object of a kind without status, in its first generation.
pub(crate) fn first(object: &mut Value) {
    set_generation(object, Some(1));
}

/// A new object in its first generation, with the status that is empty for its kind.
pub(crate) fn create_with(object: &mut Value, status: Value) {
    object.put("status", status);
    set_generation(object, Some(1));
}

/// Status stays.
pub(crate) fn update(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    keep_generation(new, old);
}

/// Status stays; a changed specification is a new generation.
pub(crate) fn update_counted(new: &mut Value, old: &Value) {
    update(new, old);
    count(new, old, same(new.at("spec"), old.at("spec")));
}

/// A changed specification is a new generation (kinds without status).
pub(crate) fn counted(new: &mut Value, old: &Value) {
    count(new, old, same(new.at("spec"), old.at("spec")));
}

/// Sets the old generation, or the next if something changed.
pub(crate) fn count(new: &mut Value, old: &Value, unchanged: bool) {
    let generation = old.dig(&["metadata", "generation"]).as_i64();
    match unchanged {
        true => set_generation(new, generation),
        false => set_generation(new, Some(generation.unwrap_or(0) + 1)),
    }
}

/// The specification stays.
pub(crate) fn status(new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    keep_generation(new, old);
}

/// The specification and all of the metadata but the managed fields stay.
pub(crate) fn status_only(new: &mut Value, old: &Value) {
    status(new, old);
    reset_metadata(new, old);
}

/// The metadata that a status writer may not touch stays.
pub(crate) fn reset_metadata(new: &mut Value, old: &Value) {
    let old = old.at("metadata");
    let meta = new.child("metadata");
    for key in [
        "deletionTimestamp",
        "generation",
        "selfLink",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
    ] {
        keep(meta, old, key);
    }
}

pub(crate) fn set_generation(object: &mut Value, generation: Option<i64>) {
    let meta = object.child("metadata");
    match generation {
        Some(generation) if generation != 0 => meta.put("generation", generation),
        _ => {
            meta.take_key("generation");
        }
    }
}
