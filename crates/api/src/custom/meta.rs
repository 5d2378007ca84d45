//! What is wrong with the metadata of an embedded resource; its names may be anything that fits into a path.

use serde_json::Value;

use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::kinds::validation::common;
use crate::{FieldError, names};

/// What is wrong with an ObjectMeta in normal form, at a path.
pub fn object_meta(meta: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new(path);
    for (key, prefix) in [("generateName", true), ("name", false)] {
        let name = meta.text(key);
        let found = names::path_segment(name);
        let dots = prefix && matches!(name, "." | "..");
        if !name.is_empty() && !dots {
            errors.all_invalid(&path.child(key), name, found);
        }
    }
    let namespace = meta.text("namespace");
    if !namespace.is_empty() {
        errors.all_invalid(&path.child("namespace"), namespace, names::dns1123_label(namespace));
    }
    common::labels(&mut errors, meta.at("labels"), &path.child("labels"));
    common::annotations(&mut errors, meta.at("annotations"), &path.child("annotations"));
    let finalizers = path.child("finalizers");
    for finalizer in meta.items("finalizers").iter().filter_map(Value::as_str) {
        errors.all_invalid(&finalizers, finalizer, names::qualified_name(finalizer));
    }
    let owners = path.child("ownerReferences");
    for (index, owner) in meta.items("ownerReferences").iter().enumerate() {
        let path = owners.index(index);
        if owner.text("apiVersion").is_empty() {
            errors.invalid(&path.child("apiVersion"), "", "version must not be empty");
        }
        for key in ["kind", "name", "uid"] {
            if owner.text(key).is_empty() {
                errors.invalid(&path.child(key), "", format!("{key} must not be empty"));
            }
        }
    }
    errors.0
}
