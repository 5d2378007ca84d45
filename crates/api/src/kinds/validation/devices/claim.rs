//! ResourceClaim, ResourceClaimTemplate and DeviceClass.

use serde_json::Value;

use super::shared::{
    CONFIGS, EFFECTS, REQUESTS, Requests, fully_qualified_name, label_value, list, opaque, selectors, set,
};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::kinds::validation::common::{self, immutable, label, required_subdomain};
use crate::names;

pub(crate) fn claim(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    claim_spec(&mut errors, object.at("spec"), &Path::new("spec"));
    errors.0
}

pub(crate) fn claim_template(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let meta = path.child("metadata");
    common::labels(&mut errors, spec.at("metadata").at("labels"), &meta.child("labels"));
    common::annotations(&mut errors, spec.at("metadata").at("annotations"), &meta.child("annotations"));
    claim_spec(&mut errors, spec.at("spec"), &path.child("spec"));
    errors.0
}

/// The specification stays.
pub(crate) fn same_spec(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    immutable(&mut errors, new.at("spec"), old.at("spec"), &Path::new("spec"));
    errors.0
}

pub(crate) fn class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    selectors(&mut errors, spec, &path);
    list(&mut errors, spec.items("config"), CONFIGS, &path.child("config"), opaque);
    let name = spec.text("extendedResourceName");
    if spec.has("extendedResourceName") && !is_extended(name) {
        let detail = "must be a valid extended resource name";
        errors.invalid(&path.child("extendedResourceName"), name, detail);
    }
    errors.0
}

fn is_extended(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    !native && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn claim_spec(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let (devices, path) = (spec.at("devices"), path.child("devices"));
    let requests = Requests::of(spec);
    let name = |request| Read::text(request, "name");
    set(errors, devices.items("requests"), REQUESTS, &path.child("requests"), name, request);
    list(errors, devices.items("constraints"), 32, &path.child("constraints"), |errors, constraint, at| {
        requests.references(errors, constraint, at);
        let names = ["matchAttribute", "distinctAttribute"];
        match names.into_iter().find(|key| constraint.has(key)) {
            Some(key) => fully_qualified_name(errors, constraint.text(key), &at.child(key)),
            None => {
                errors.required(at, "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required")
            }
        }
    });
    list(errors, devices.items("config"), CONFIGS, &path.child("config"), |errors, config, at| {
        requests.references(errors, config, at);
        opaque(errors, config, at);
    });
}

fn request(errors: &mut Errors, request: &Value, path: &Path<'_>) {
    label(errors, request.text("name"), &path.child("name"));
    let (exactly, available) = (request.at("exactly"), request.items("firstAvailable"));
    match (exactly.is_null(), available.is_empty()) {
        (true, true) => errors.required(path, "exactly one of `exactly` or `firstAvailable` is required"),
        (false, false) => errors.invalid(
            path,
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (false, true) => exact(errors, exactly, &path.child("exactly")),
        (true, false) => {
            let name = |request| Read::text(request, "name");
            set(errors, available, 8, &path.child("firstAvailable"), name, |errors, request, at| {
                label(errors, request.text("name"), &at.child("name"));
                exact(errors, request, at);
            });
        }
    }
}

fn exact(errors: &mut Errors, request: &Value, path: &Path<'_>) {
    required_subdomain(errors, request.text("deviceClassName"), &path.child("deviceClassName"));
    selectors(errors, request, path);
    let count = request.num("count");
    match request.text("allocationMode") {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.invalid(&path.child("count"), count, detail);
        }
        "All" => {}
        "ExactCount" => common::positive_count(errors, count, &path.child("count")),
        other => errors.not_supported(&path.child("allocationMode"), other, &["All", "ExactCount"]),
    }
    list(errors, request.items("tolerations"), 16, &path.child("tolerations"), toleration);
}

fn toleration(errors: &mut Errors, toleration: &Value, path: &Path<'_>) {
    if !toleration.text("key").is_empty() {
        common::label_name(errors, toleration.text("key"), &path.child("key"));
    }
    let (value, at) = (toleration.text("value"), path.child("value"));
    match toleration.text("operator") {
        "Exists" if !value.is_empty() => errors.invalid(&at, value, "must be empty for operator `Exists`"),
        "Exists" => {}
        "Equal" => label_value(errors, value, &at),
        "" => errors.required(&path.child("operator"), ""),
        other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
    }
    let effect = toleration.text("effect");
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errors.not_supported(&path.child("effect"), effect, &EFFECTS);
    }
}
