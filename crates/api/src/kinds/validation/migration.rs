//! StorageVersionMigration (upstream: `pkg/apis/storagemigration/validation`).

use serde_json::Value;

use super::common;
use super::control::meta_conditions;
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

pub(crate) fn spec(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (resource, path) = (object.dig(&["spec", "resource"]), Path::new("spec"));
    let path = path.child("resource");
    match resource.text("resource") {
        "" => errors.required(&path.child("resource"), "resource is required to be set"),
        name => {
            let wrong = names::dns1035_label(name);
            if !wrong.is_empty() {
                errors.invalid(&path.child("resource"), name, wrong.join(","));
            }
        }
    }
    let group = resource.text("group");
    let wrong = names::dns1123_subdomain(group);
    if !group.is_empty() && !wrong.is_empty() {
        errors.invalid(&path.child("group"), group, wrong.join(","));
    }
    errors.0
}

pub(crate) fn same_spec(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    common::immutable(&mut errors, new.at("spec"), old.at("spec"), &Path::new("spec"));
    errors.0
}

/// What was recorded once stays: the version up to which is migrated, and how it ended.
pub(crate) fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (status, path) = (new.at("status"), Path::new("status"));
    let (list, at_list) = (status.at("conditions"), path.child("conditions"));
    let (version, at_version) = (status.text("resourceVersion"), path.child("resourceVersion"));
    if !version.is_empty() && !is_version(version) {
        errors.invalid(&at_version, version, format!("resource version is not well formed: {version}"));
    }
    meta_conditions(&mut errors, status.items("conditions"), &at_list);
    let before = old.at("status").text("resourceVersion");
    if !before.is_empty() && before != version {
        errors.invalid(&at_version, version, common::IMMUTABLE);
    }
    if holds(new, "Succeeded") && holds(new, "Failed") {
        let why = "Both success and failed conditions cannot be true at the same time";
        errors.invalid(&at_list, list.clone(), why);
    }
    for (kind, word) in [("Succeeded", "Success"), ("Failed", "Failed")] {
        if holds(old, kind) && !holds(new, kind) {
            let why = format!("{word} condition cannot be set to false once it is true");
            errors.invalid(&at_list, list.clone(), why);
        }
    }
    errors.0
}

/// A number above zero without leading zeros, of any length.
fn is_version(text: &str) -> bool {
    !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit())
}

fn holds(object: &Value, kind: &str) -> bool {
    let first = object.at("status").items("conditions").iter().find(|one| one.text("type") == kind);
    first.is_some_and(|one| one.text("status") == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(errors: Vec<FieldError>) -> Vec<String> {
        errors.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_resource_is_named() {
        let check = |group: &str, resource: &str, expect: &[&str]| {
            let object = json!({"spec": {"resource": {"group": group, "resource": resource}}});
            assert_eq!(told(spec(&object)), expect, "{group}/{resource}");
        };
        check("", "secrets", &[]);
        check("example.com", "widgets", &[]);
        check("", "", &["spec.resource.resource"]);
        check("A", "1b", &["spec.resource.resource", "spec.resource.group"]);
    }

    #[test]
    fn what_is_recorded_stays() {
        let of = |version: &str, conditions: &[(&str, &str)]| {
            let conditions: Vec<Value> = conditions
                .iter()
                .map(|(kind, status)| {
                    json!({"type": kind, "status": status, "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"})
                })
                .collect();
            json!({"status": {"resourceVersion": version, "conditions": conditions}})
        };
        let check =
            |new: &Value, old: &Value, expect: &[&str]| assert_eq!(told(status(new, old)), expect, "{new}");
        let begun = of("7", &[("Running", "True")]);
        let ended = of("7", &[("Running", "False"), ("Succeeded", "True")]);
        check(&begun, &of("", &[]), &[]);
        check(&ended, &begun, &[]);
        check(&begun, &ended, &["status.conditions"]);
        check(&of("8", &[]), &begun, &["status.resourceVersion"]);
        check(&of("07", &[]), &of("", &[]), &["status.resourceVersion"]);
        check(&of("7", &[("Failed", "True"), ("Succeeded", "True")]), &ended, &["status.conditions"]);
    }
}
