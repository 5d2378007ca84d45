//! The statuses that have little to check.

use serde_json::Value;

use super::common::{self, subdomain};
use super::control::meta_conditions;
use super::resources::quantity;
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

pub(crate) fn autoscaler(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    for key in ["currentReplicas", "desiredReplicas"] {
        common::not_negative(&mut errors, new.at("status"), &Path::new("status"), key);
    }
    errors.0
}

pub(crate) fn ingress(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let status = Path::new("status");
    let (at, entries) = (status.child("loadBalancer"), new.dig(&["status", "loadBalancer"]).items("ingress"));
    let list = at.child("ingress");
    for (index, entry) in entries.iter().enumerate() {
        entry_point(&mut errors, entry, &list.index(index));
    }
    errors.0
}

fn entry_point(errors: &mut Errors, entry: &Value, path: &Path<'_>) {
    if !entry.text("ip").is_empty() {
        common::ip(errors, entry.text("ip"), &path.child("ip"));
    }
    let (host, at) = (entry.text("hostname"), path.child("hostname"));
    if !host.is_empty() {
        subdomain(errors, host, &at);
        if common::parse_ip(host).is_some() {
            errors.invalid(&at, host, "must be a DNS name, not an IP address");
        }
    }
}

pub(crate) fn service(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let status = Path::new("status");
    let at = status.child("loadBalancer");
    let list = at.child("ingress");
    let entries = new.dig(&["status", "loadBalancer"]).items("ingress");
    if new.at("spec").text("type") != "LoadBalancer" {
        if !entries.is_empty() {
            errors.forbidden(&list, "may only be used when `spec.type` is 'LoadBalancer'");
        }
        return errors.0;
    }
    for (index, entry) in entries.iter().enumerate() {
        let at = list.index(index);
        entry_point(&mut errors, entry, &at);
        let (mode, has_ip) = (entry.at("ipMode").as_str(), !entry.text("ip").is_empty());
        let at = at.child("ipMode");
        match mode {
            None if has_ip => errors.required(&at, "must be specified when `ip` is set"),
            Some(_) if !has_ip => errors.forbidden(&at, "may not be specified when `ip` is not set"),
            Some(mode) if !matches!(mode, "VIP" | "Proxy") => {
                errors.not_supported(&at, mode, &["Proxy", "VIP"]);
            }
            _ => {}
        }
    }
    errors.0
}

const RESIZES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

pub(crate) fn claim(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (status, path) = (new.at("status"), Path::new("status"));
    if new.at("spec").items("accessModes").is_empty() {
        let spec = Path::new("Spec");
        errors.required(&spec.child("accessModes"), "");
    }
    let negative = |value: &Value| quantity(value).is_some_and(|amount| amount.is_negative());
    let at = path.child("capacity");
    for (name, amount) in status.entries("capacity").into_iter().filter(|(_, amount)| negative(amount)) {
        errors.invalid(&at.key(name), amount.clone(), "must be a valid resource quantity");
    }
    let at = path.child("allocatedResourceStatuses");
    for (name, state) in status.entries("allocatedResourceStatuses") {
        resource_key(&mut errors, name, &at);
        if !RESIZES.contains(&state.as_str().unwrap_or_default()) {
            errors.not_supported(&at, name.as_str(), &RESIZES);
        }
    }
    let at = path.child("allocatedResources");
    for (name, amount) in status.entries("allocatedResources") {
        if !resource_key(&mut errors, name, &at) {
            continue;
        }
        if negative(amount) {
            errors.invalid(&at.key(name), amount.clone(), "must be a valid resource quantity");
        } else if quantity(amount).is_some_and(|amount| !amount.is_whole()) {
            errors.invalid(&at.key(name), amount.clone(), "must be an integer");
        }
    }
    errors.0
}

/// A resource that a claim may have beside its own: only `storage` is Kubernetes' own.
fn resource_key(errors: &mut Errors, name: &str, path: &Path<'_>) -> bool {
    let wrong = names::qualified_name(name);
    let fine = wrong.is_empty();
    errors.all_invalid(path, name, wrong);
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    if fine && native && name != "storage" {
        errors.not_supported(path, name, &["storage"]);
        return false;
    }
    fine
}

pub(crate) fn disruption_budget(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (status, path) = (new.at("status"), Path::new("status"));
    meta_conditions(&mut errors, status.items("conditions"), &path.child("conditions"));
    for key in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        common::not_negative(&mut errors, status, &path, key);
    }
    errors.0
}
