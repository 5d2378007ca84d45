//! The small core kinds.

use std::collections::BTreeSet;

use base64::Engine as _;
use serde_json::Value;

use super::common::{self, immutable, label_name, required};
use super::{resources, scheduling};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, same};
use crate::names;

const MOST_DATA: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";

fn keys(errors: &mut Errors, object: &Value, field: &str) {
    let path = Path::new(field);
    for (key, _) in object.entries(field) {
        errors.all_invalid(&path.key(key), key, names::config_map_key(key));
    }
}

fn decoded(value: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default()
}

pub(crate) fn config_map(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    keys(&mut errors, object, "data");
    keys(&mut errors, object, "binaryData");
    let path = Path::new("data");
    for (key, _) in object.entries("data") {
        if object.at("binaryData").has(key) {
            errors.invalid(&path.key(key), key.as_str(), "duplicate of key present in binaryData");
        }
    }
    let text: usize =
        object.entries("data").iter().map(|(_, value)| value.as_str().map_or(0, str::len)).sum();
    let binary: usize = object.entries("binaryData").iter().map(|(_, value)| decoded(value).len()).sum();
    if text + binary > MOST_DATA {
        // How upstream writes the path of the whole object.
        errors.too_long(&"[]", MOST_DATA);
    }
    errors.0
}

fn frozen(errors: &mut Errors, new: &Value, old: &Value, fields: &[&str]) {
    if !old.flag("immutable") {
        return;
    }
    if !new.flag("immutable") {
        errors.forbidden(&Path::new("immutable"), FROZEN);
    }
    for field in fields {
        if !same(new.at(field), old.at(field)) {
            errors.forbidden(&Path::new(field), FROZEN);
        }
    }
}

pub(crate) fn config_map_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    frozen(&mut errors, new, old, &["data", "binaryData"]);
    errors.0
}

pub(crate) fn secret(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    keys(&mut errors, object, "data");
    let data = object.at("data");
    let path = Path::new("data");
    let total: usize = object.entries("data").iter().map(|(_, value)| decoded(value).len()).sum();
    if total > MOST_DATA {
        errors.too_long(&path, MOST_DATA);
    }
    match object.text("type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if object.dig(&["metadata", "annotations"]).text(key).is_empty() {
                let meta = Path::new("metadata");
                errors.required(&meta.child("annotations").key(key), "");
            }
        }
        "kubernetes.io/dockercfg" => docker(&mut errors, data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => docker(&mut errors, data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !data.has("username") && !data.has("password") => {
            errors.required(&path.key("username"), "");
            errors.required(&path.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if data.text("ssh-privatekey").is_empty() => {
            errors.required(&path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if !data.has(key) {
                    errors.required(&path.key(key), "");
                }
            }
        }
        _ => {}
    }
    errors.0
}

fn docker(errors: &mut Errors, data: &Value, key: &str) {
    let path = Path::new("data");
    if !data.has(key) {
        errors.required(&path.key(key), "");
        return;
    }
    match serde_json::from_slice::<Value>(&decoded(data.at(key))) {
        Ok(Value::Object(_) | Value::Null) => {}
        Ok(_) => errors.invalid(
            &path.key(key),
            "<secret contents redacted>",
            "json: cannot unmarshal value into Go value of type map[string]interface {}",
        ),
        Err(_) => {
            errors.invalid(&path.key(key), "<secret contents redacted>", "unexpected end of JSON input");
        }
    }
}

pub(crate) fn secret_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    immutable(&mut errors, new.at("type"), old.at("type"), &Path::new("type"));
    frozen(&mut errors, new, old, &["data"]);
    errors.0
}

pub(crate) fn namespace(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let at = path.child("finalizers");
    for finalizer in object.at("spec").items("finalizers").iter().filter_map(Value::as_str) {
        finalizer_name(&mut errors, finalizer, &at);
    }
    errors.0
}

fn finalizer_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    errors.all_invalid(path, name, names::qualified_name(name));
    let standard = ["kubernetes", "foregroundDeletion", "orphan"];
    if !name.contains('/') && !standard.contains(&name) {
        let detail = "name is neither a standard finalizer name nor is it fully qualified";
        errors.invalid(path, name, detail);
    }
}

/// An update through `finalize`: the finalizers alone.
pub fn validate_finalize(new: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let list = path.child("finalizers");
    for (index, name) in new.at("spec").items("finalizers").iter().filter_map(Value::as_str).enumerate() {
        finalizer_name(&mut errors, name, &list.index(index));
    }
    errors.0
}

pub(crate) fn namespace_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let phase = new.at("status").text("phase");
    let deleted = new.at("metadata").has("deletionTimestamp");
    let path = Path::new("status");
    if !deleted && phase != "Active" {
        let detail = "may only be 'Active' if `deletionTimestamp` is empty";
        errors.invalid(&path.child("Phase"), phase, detail);
    } else if deleted && phase != "Terminating" {
        let detail = "may only be 'Terminating' if `deletionTimestamp` is not empty";
        errors.invalid(&path.child("Phase"), phase, detail);
    }
    errors.0
}

fn taints(errors: &mut Errors, node: &Value) {
    let meta = Path::new("metadata");
    let path = meta.child("taints");
    let mut seen = BTreeSet::new();
    for (index, taint) in node.at("spec").items("taints").iter().enumerate() {
        let at = path.index(index);
        let (key, effect) = (taint.text("key"), taint.text("effect"));
        label_name(errors, key, &at.child("key"));
        let wrong = names::label_value(taint.text("value"));
        if !wrong.is_empty() {
            errors.invalid(&at.child("value"), taint.text("value"), wrong.join(";"));
        }
        scheduling::taint_effect(errors, effect, &at.child("effect"));
        if !seen.insert((effect, key)) {
            errors.duplicate(&at, taint.clone());
        }
    }
}

pub(crate) fn node(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    taints(&mut errors, object);
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let list = path.child("podCIDRs");
    let ranges: Vec<&str> = spec.items("podCIDRs").iter().filter_map(Value::as_str).collect();
    let mut families = Vec::new();
    for (index, range) in ranges.iter().enumerate() {
        common::cidr(&mut errors, range, &list.index(index));
        families.push(range.contains(':'));
    }
    if ranges.len() > 1 && (ranges.len() > 2 || families[0] == families[1]) {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.invalid(&list, ranges, detail);
    }
    let status = Path::new("status");
    for key in ["capacity", "allocatable"] {
        let at = status.child(key);
        for (name, value) in object.at("status").entries(key) {
            resources::amount(&mut errors, name, value, &at.key(name));
        }
    }
    errors.0
}

pub(crate) fn node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (spec, before) = (new.at("spec"), old.at("spec"));
    if !before.items("podCIDRs").is_empty() && !same(spec.at("podCIDRs"), before.at("podCIDRs")) {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.forbidden(&path.child("podCIDRs"), detail);
    }
    let provider = before.text("providerID");
    if !provider.is_empty() && provider != spec.text("providerID") {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.forbidden(&path.child("providerID"), detail);
    }
    addresses(&mut errors, new);
    errors.0
}

fn addresses(errors: &mut Errors, node: &Value) {
    let path = Path::new("status");
    let list = path.child("addresses");
    let all = node.at("status").items("addresses");
    for (index, address) in all.iter().enumerate() {
        if all[..index].contains(address) {
            errors.duplicate(&list.index(index), address.clone());
        }
    }
}

pub(crate) fn node_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    addresses(&mut errors, new);
    let status = Path::new("status");
    for key in ["capacity", "allocatable"] {
        let at = status.child(key);
        for (name, value) in new.at("status").entries(key) {
            resources::amount(&mut errors, name, value, &at.key(name));
        }
    }
    errors.0
}

pub(crate) fn limit_range(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let list = path.child("limits");
    let mut kinds = BTreeSet::new();
    for (index, limit) in object.at("spec").items("limits").iter().enumerate() {
        let at = list.index(index);
        let kind = limit.text("type");
        let wrong = names::qualified_name(kind);
        if !wrong.is_empty() {
            errors.all_invalid(&at.child("type"), kind, wrong);
        } else if !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
            let detail = "must be a standard limit type or fully qualified";
            errors.invalid(&at.child("type"), kind, detail);
        }
        if !kinds.insert(kind) {
            errors.duplicate(&at.child("type"), kind);
        }
        limit_amounts(&mut errors, limit, kind, &at);
    }
    errors.0
}

fn limit_amounts(errors: &mut Errors, limit: &Value, kind: &str, at: &Path<'_>) {
    let lists = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    if kind == "Pod" {
        for key in ["default", "defaultRequest"] {
            if !limit.at(key).is_empty_value() {
                errors.forbidden(&at.child(key), "may not be specified when `type` is 'Pod'");
            }
        }
    }
    if kind == "PersistentVolumeClaim" && !limit.at("min").has("storage") && !limit.at("max").has("storage") {
        errors.required(at, "either minimum or maximum storage value is required, but neither was provided");
    }
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for list in lists {
        let path = at.child(list);
        for (name, value) in limit.entries(list) {
            resources::name(errors, name, &path.key(name));
            if kind == "Pod" && list.starts_with("default") {
                continue;
            }
            resources::amount(errors, name, value, &path.key(name));
            names.insert(name);
        }
    }
    for name in names {
        let get = |list: &str| resources::quantity(limit.at(list).at(name));
        let (max, min, default, request, ratio) =
            (get("max"), get("min"), get("default"), get("defaultRequest"), get("maxLimitRequestRatio"));
        let mut order = |low: &Option<crate::quantity::Quantity>,
                         high: &Option<crate::quantity::Quantity>,
                         list: &str,
                         words: &str| {
            if let (Some(low), Some(high)) = (low, high)
                && low > high
            {
                let path = at.child(list);
                errors.invalid(&path.key(name), low.to_string(), format!("{words} {high}"));
            }
        };
        order(&min, &max, "min", &format!("min value {} is greater than max value", text(&min)));
        order(
            &min,
            &request,
            "defaultRequest",
            &format!("min value {} is greater than default request value", text(&min)),
        );
        order(
            &request,
            &max,
            "defaultRequest",
            &format!("default request value {} is greater than max value", text(&request)),
        );
        order(
            &request,
            &default,
            "defaultRequest",
            &format!("default request value {} is greater than default limit value", text(&request)),
        );
        order(&min, &default, "default", &format!("min value {} is greater than default value", text(&min)));
        order(
            &default,
            &max,
            "default",
            &format!("default value {} is greater than max value", text(&default)),
        );
        let one = crate::quantity::Quantity::new(1, crate::quantity::Format::DecimalSi);
        if let Some(ratio) = ratio.filter(|ratio| *ratio < one) {
            let path = at.child("maxLimitRequestRatio");
            errors.invalid(&path.key(name), ratio.to_string(), format!("ratio {ratio} is less than 1"));
        }
    }
}

fn text(amount: &Option<crate::quantity::Quantity>) -> String {
    amount.as_ref().map(ToString::to_string).unwrap_or_default()
}

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

pub(crate) fn resource_quota(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    quota_list(&mut errors, spec, &path, "hard");
    let at = path.child("scopes");
    let scopes: Vec<&str> = spec.items("scopes").iter().filter_map(Value::as_str).collect();
    for scope in scopes.iter().filter(|scope| !SCOPES.contains(scope)) {
        errors.invalid(&at, scopes.clone(), "unsupported scope");
        let _ = scope;
    }
    for (a, b) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if scopes.contains(&a) && scopes.contains(&b) {
            errors.invalid(&at, scopes.clone(), "conflicting scopes");
        }
    }
    let selector = path.child("scopeSelector");
    let list = selector.child("matchExpressions");
    for requirement in spec.at("scopeSelector").items("matchExpressions") {
        let name = requirement.text("scopeName");
        if !SCOPES.contains(&name) {
            errors.invalid(&list.child("scopeName"), name, "unsupported scope");
        }
        let values = requirement.items("values");
        match requirement.text("operator") {
            "In" | "NotIn" if values.is_empty() => errors.required(
                &list.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
                &list.child("values"),
                values.to_vec(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&list.child("operator"), other, "not a valid selector operator"),
        }
    }
    errors.0
}

fn quota_list(errors: &mut Errors, holder: &Value, path: &Path<'_>, key: &str) {
    let at = path.child(key);
    for (name, value) in holder.entries(key) {
        let at = at.key(name);
        if resources::name(errors, name, &at) && !name.contains('/') && !is_quota_name(name) {
            errors.invalid(&at, name.as_str(), "must be a standard resource for quota");
        }
        resources::amount(errors, name, value, &at);
    }
}

fn is_quota_name(name: &str) -> bool {
    !matches!(name, "storage") || name.starts_with("count/")
}

pub(crate) fn resource_quota_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let sorted = |object: &Value| {
        let mut scopes = object.at("spec").items("scopes").to_vec();
        scopes.sort_by_key(ToString::to_string);
        scopes
    };
    if sorted(new) != sorted(old) {
        errors.invalid(&path.child("scopes"), new.at("spec").at("scopes").clone(), common::IMMUTABLE);
    }
    errors.0
}

pub(crate) fn resource_quota_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("status");
    for key in ["hard", "used"] {
        quota_list(&mut errors, new.at("status"), &path, key);
    }
    errors.0
}

pub(crate) fn lease(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    if let Some(seconds) = spec.int("leaseDurationSeconds") {
        common::positive(&mut errors, seconds, &path.child("leaseDurationSeconds"));
    }
    if let Some(count) = spec.int("leaseTransitions").filter(|count| *count < 0) {
        errors.invalid(&path.child("leaseTransitions"), count, common::NOT_NEGATIVE);
    }
    errors.0
}

pub(crate) fn priority_class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let name = object.at("metadata").text("name");
    let value = object.num("value");
    let system = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
    if name.starts_with("system-") && !system.contains(&(name, value)) {
        let meta = Path::new("metadata");
        let detail = "priority class names with 'system-' prefix are reserved for system use only";
        errors.forbidden(&meta.child("name"), detail);
    } else if !name.starts_with("system-") && value > 1_000_000_000 {
        let detail = "maximum allowed value of a user defined priority is 1000000000";
        errors.forbidden(&Path::new("value"), detail);
    }
    if object.has("preemptionPolicy") {
        common::one_of(
            &mut errors,
            object.text("preemptionPolicy"),
            &Path::new("preemptionPolicy"),
            &["PreemptLowerPriority", "Never"],
        );
    }
    errors.0
}

pub(crate) fn priority_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    if new.num("value") != old.num("value") {
        errors.forbidden(&Path::new("value"), "may not be changed in an update.");
    }
    immutable(
        &mut errors,
        new.at("preemptionPolicy"),
        old.at("preemptionPolicy"),
        &Path::new("preemptionPolicy"),
    );
    errors.0
}

pub(crate) fn runtime_class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("handler");
    match object.text("handler") {
        "" => errors.required(&path, ""),
        handler => common::label(&mut errors, handler, &path),
    }
    // Upstream checks the overhead as a container's limits, and names it so.
    let overhead = Path::new("overhead");
    let at = overhead.child("limits");
    for (name, value) in object.at("overhead").entries("podFixed") {
        resources::name(&mut errors, name, &at.key(name));
        resources::amount(&mut errors, name, value, &at.key(name));
    }
    let scheduling_path = Path::new("scheduling");
    let scheduling = object.at("scheduling");
    common::labels(&mut errors, scheduling.at("nodeSelector"), &scheduling_path.child("nodeSelector"));
    super::scheduling::tolerations(
        &mut errors,
        scheduling.items("tolerations"),
        &scheduling_path.child("tolerations"),
    );
    errors.0
}

pub(crate) fn runtime_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    immutable(&mut errors, new.at("handler"), old.at("handler"), &Path::new("handler"));
    errors.0
}

pub(crate) fn service_reference(errors: &mut Errors, service: &Value, path: &Path<'_>) {
    required(errors, service, path, "name");
    required(errors, service, path, "namespace");
    let port = service.int("port").unwrap_or(443);
    let wrong = names::port_number(port);
    if !wrong.is_empty() {
        errors.invalid(&path.child("port"), port, format!("port is not valid: {}", wrong.join(", ")));
    }
    service_path(errors, service.text("path"), &path.child("path"));
}

/// The path of a webhook behind a Service: none, or segments that are subdomains.
fn service_path(errors: &mut Errors, target: &str, path: &Path<'_>) {
    if matches!(target, "" | "/") {
        return;
    }
    if target == "//" {
        return errors.invalid(path, target, "segment[0] may not be empty");
    }
    if !target.starts_with('/') {
        errors.invalid(path, target, "must start with a '/'");
    }
    let mut characters = target.chars();
    characters.next();
    let rest = characters.as_str();
    for (index, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(path, target, format!("segment[{index}] may not be empty"));
            continue;
        }
        for message in names::dns1123_subdomain(step) {
            errors.invalid(path, target, format!("segment[{index}]: {message}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_path_of_a_webhook_is_made_of_subdomains() {
        let cases = [
            ("", ""),
            ("/", ""),
            ("/a/b.c/", ""),
            ("//", "segment[0] may not be empty"),
            ("/a//b", "segment[1] may not be empty"),
            ("/A", "segment[0]: a lowercase RFC 1123 subdomain"),
            ("a", "must start with a '/'"),
        ];
        for (path, expected) in cases {
            let mut errors = Errors::new();
            let service = json!({"name": "n", "namespace": "s", "path": path});
            service_reference(&mut errors, &service, &Path::new("service"));
            let found = errors.0.first().map(|error| error.detail.clone()).unwrap_or_default();
            assert!(
                found.starts_with(expected) && found.is_empty() == expected.is_empty(),
                "{path}: {found}"
            );
        }
    }
}
