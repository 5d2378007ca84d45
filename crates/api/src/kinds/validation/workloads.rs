//! Deployment, ReplicaSet, DaemonSet, StatefulSet, ReplicationController, ControllerRevision, PodTemplate.

use serde_json::{Value, json};

use super::common::{
    self, at_most_hundred, immutable, is_empty_selector, label_selector, not_negative, number_or_percent,
    percent, whole,
};
use super::{podspec, storage};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, Write, keep, same};
use crate::labels::Selector;

const MISMATCH: &str = "`selector` does not match template `labels`";
const ALWAYS: [&str; 1] = ["Always"];

/// Selector and template: the selector is there, not empty, and matches; pods restart always.
fn selector_and_template(errors: &mut Errors, spec: &Value, template: &Value, path: &Path<'_>, kind: &str) {
    let at = path.child("selector");
    let selector = spec.at("selector");
    if selector.is_null() {
        errors.required(&at, "");
    } else {
        label_selector(errors, selector, &at);
        if is_empty_selector(selector) {
            errors.invalid(&at, selector.clone(), format!("empty selector is invalid for {kind}"));
        }
    }
    let template_path = path.child("template");
    match Selector::from_json(selector) {
        Err(_) => errors.invalid(&at, selector.clone(), "invalid label selector"),
        Ok(found) => {
            let labels = template.dig(&["metadata", "labels"]);
            if !found.is_everything() && !found.matches_labels(labels) {
                errors.invalid(&template_path.child("metadata").child("labels"), labels.clone(), MISMATCH);
            }
            podspec::template(errors, template, &template_path);
            always_restarting(errors, template, &template_path, "ReplicaSet");
        }
    }
}

fn always_restarting(errors: &mut Errors, template: &Value, path: &Path<'_>, kind: &str) {
    let spec = template.at("spec");
    let at = path.child("spec");
    let policy = spec.text("restartPolicy");
    if policy != "Always" {
        errors.not_supported(&at.child("restartPolicy"), policy, &ALWAYS);
    }
    if spec.has("activeDeadlineSeconds") {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&at.child("activeDeadlineSeconds"), detail);
    }
}

pub(crate) fn deployment(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    not_negative(&mut errors, spec, &path, "replicas");
    selector_and_template(&mut errors, spec, spec.at("template"), &path, "deployment");
    let strategy = spec.at("strategy");
    let at = path.child("strategy");
    let rolling = strategy.at("rollingUpdate");
    match strategy.text("type") {
        "Recreate" if !rolling.is_null() => errors
            .forbidden(&at.child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'"),
        "Recreate" => {}
        "RollingUpdate" if rolling.is_null() => {
            errors.required(&at.child("rollingUpdate"), "this should be defaulted and never be nil");
        }
        "RollingUpdate" => rolling_deployment(&mut errors, rolling, &at.child("rollingUpdate")),
        _ => errors.not_supported(&at, strategy.clone(), &["Recreate", "RollingUpdate"]),
    }
    not_negative(&mut errors, spec, &path, "minReadySeconds");
    not_negative(&mut errors, spec, &path, "revisionHistoryLimit");
    not_negative(&mut errors, spec, &path, "progressDeadlineSeconds");
    if let Some(deadline) = spec.int("progressDeadlineSeconds")
        && deadline <= spec.num("minReadySeconds")
    {
        let at = path.child("progressDeadlineSeconds");
        errors.invalid(&at, deadline, "must be greater than minReadySeconds");
    }
    errors.0
}

fn rolling_deployment(errors: &mut Errors, rolling: &Value, path: &Path<'_>) {
    let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
    let at = path.child("maxUnavailable");
    number_or_percent(errors, unavailable, &at);
    number_or_percent(errors, surge, &path.child("maxSurge"));
    let amount = |value: &Value| percent(value).unwrap_or_else(|| whole(value));
    if amount(unavailable) == 0 && amount(surge) == 0 {
        errors.invalid(&at, unavailable.clone(), "may not be 0 when `maxSurge` is 0");
    }
    at_most_hundred(errors, unavailable, &at);
}

/// The selector stays.
pub(crate) fn same_selector(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    immutable(
        &mut errors,
        new.dig(&["spec", "selector"]),
        old.dig(&["spec", "selector"]),
        &path.child("selector"),
    );
    errors.0
}

pub(crate) fn replica_set(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    not_negative(&mut errors, spec, &path, "replicas");
    not_negative(&mut errors, spec, &path, "minReadySeconds");
    selector_and_template(&mut errors, spec, spec.at("template"), &path, "deployment");
    errors.0
}

pub(crate) fn daemon_set(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let (selector, template) = (spec.at("selector"), spec.at("template"));
    label_selector(&mut errors, selector, &path.child("selector"));
    let labels = template.dig(&["metadata", "labels"]);
    let at = path.child("template");
    if Selector::from_json(selector).is_ok_and(|found| !found.matches_labels(labels)) {
        errors.invalid(&at.child("metadata").child("labels"), labels.clone(), MISMATCH);
    }
    if !selector.is_null() && is_empty_selector(selector) {
        let detail = "empty selector is invalid for daemonset";
        errors.invalid(&path.child("selector"), selector.clone(), detail);
    }
    podspec::template(&mut errors, template, &at);
    always_restarting(&mut errors, template, &at, "DaemonSet");
    not_negative(&mut errors, spec, &path, "minReadySeconds");
    not_negative(&mut errors, spec, &path, "revisionHistoryLimit");
    let strategy = spec.at("updateStrategy");
    let at = path.child("updateStrategy");
    match strategy.text("type") {
        "OnDelete" => {}
        "RollingUpdate" => match strategy.at("rollingUpdate") {
            Value::Null => errors.required(&at.child("rollingUpdate"), ""),
            rolling => rolling_daemon_set(&mut errors, rolling, &at.child("rollingUpdate")),
        },
        _ => errors.not_supported(&at, strategy.clone(), &["RollingUpdate", "OnDelete"]),
    }
    errors.0
}

fn rolling_daemon_set(errors: &mut Errors, rolling: &Value, path: &Path<'_>) {
    let mut set = [false, false];
    for (flag, key) in set.iter_mut().zip(["maxUnavailable", "maxSurge"]) {
        let value = rolling.at(key);
        let at = path.child(key);
        number_or_percent(errors, value, &at);
        at_most_hundred(errors, value, &at);
        *flag = percent(value).unwrap_or_else(|| whole(value)) != 0;
    }
    match set {
        [true, true] => errors.invalid(
            &path.child("maxSurge"),
            rolling.at("maxSurge").clone(),
            "may not be set when maxUnavailable is non-zero",
        ),
        [false, false] => {
            errors.required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0");
        }
        _ => {}
    }
}

pub(crate) fn stateful_set(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    match spec.text("podManagementPolicy") {
        "" => errors.required(&path.child("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => {
            errors.invalid(&path.child("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'")
        }
    }
    update_strategy(&mut errors, spec.at("updateStrategy"), &path.child("updateStrategy"));
    let retention = spec.at("persistentVolumeClaimRetentionPolicy");
    let at = path.child("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        let policy = retention.text(key);
        if retention.is_object() && !matches!(policy, "Retain" | "Delete") {
            errors.not_supported(&at.child(key), policy, &["Retain", "Delete"]);
        }
    }
    not_negative(&mut errors, spec, &path, "replicas");
    not_negative(&mut errors, spec, &path, "minReadySeconds");
    not_negative(&mut errors, spec, &path, "revisionHistoryLimit");
    not_negative(&mut errors, spec.at("ordinals"), &path, "start");
    let list = path.child("volumeClaimTemplates");
    for (index, claim) in spec.items("volumeClaimTemplates").iter().enumerate() {
        let at = list.index(index);
        storage::claim_spec(&mut errors, claim.at("spec"), &at.child("spec"));
    }
    let mut template = spec.at("template").clone();
    claims_as_volumes(&mut template, spec);
    selector_and_template(&mut errors, spec, &template, &path, "statefulset");
    errors.0
}

fn update_strategy(errors: &mut Errors, strategy: &Value, at: &Path<'_>) {
    let rolling = strategy.at("rollingUpdate");
    let path = at.child("rollingUpdate");
    match strategy.text("type") {
        "" => errors.required(at, ""),
        "OnDelete" if !rolling.is_null() => {
            errors.invalid(&path, rolling.clone(), "only allowed for updateStrategy 'RollingUpdate'");
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            not_negative(errors, rolling, &path, "partition");
            if rolling.has("maxUnavailable") {
                let at = path.child("maxUnavailable");
                let value = rolling.at("maxUnavailable");
                number_or_percent(errors, value, &at);
                if percent(value).unwrap_or_else(|| whole(value)) == 0 {
                    errors.invalid(&at, value.clone(), "cannot be 0");
                }
                at_most_hundred(errors, value, &at);
            }
        }
        _ => errors.invalid(at, strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

/// Mounts may name the claim templates, which become volumes; host name and subdomain are the set's to give.
fn claims_as_volumes(template: &mut Value, spec: &Value) {
    let claims: Vec<&str> = spec
        .items("volumeClaimTemplates")
        .iter()
        .map(|claim| claim.dig(&["metadata", "name"]).as_str().unwrap_or_default())
        .collect();
    let pod = template.child("spec");
    pod.take_key("hostname");
    pod.take_key("subdomain");
    if claims.is_empty() {
        return;
    }
    let own = pod.items("volumes").iter().filter(|volume| !claims.contains(&volume.text("name"))).cloned();
    let made = claims
        .iter()
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name, "readOnly": false}}));
    let all: Vec<Value> = made.chain(own).collect();
    pod.put("volumes", all);
}

pub(crate) fn stateful_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let mut munged = new.at("spec").clone();
    for key in [
        "replicas",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "ordinals",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
    ] {
        keep(&mut munged, old.at("spec"), key);
    }
    if !same(&munged, old.at("spec")) {
        errors.forbidden(
            &Path::new("spec"),
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
    errors.0
}

pub(crate) fn replication_controller(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    not_negative(&mut errors, spec, &path, "minReadySeconds");
    if spec.at("selector").is_empty_value() {
        errors.required(&path.child("selector"), "");
    }
    match spec.int("replicas") {
        None => errors.required(&path.child("replicas"), ""),
        Some(_) => not_negative(&mut errors, spec, &path, "replicas"),
    }
    let at = path.child("template");
    match spec.at("template") {
        Value::Null => errors.required(&at, ""),
        template => {
            let labels = template.dig(&["metadata", "labels"]);
            let selector = Selector::from_map(spec.at("selector"));
            if !selector.is_everything() && !selector.matches_labels(labels) {
                errors.invalid(&at.child("metadata").child("labels"), labels.clone(), MISMATCH);
            }
            podspec::template(&mut errors, template, &at);
            always_restarting(&mut errors, template, &at, "ReplicationController");
        }
    }
    errors.0
}

pub(crate) fn pod_template(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    podspec::template(&mut errors, object.at("template"), &Path::new("template"));
    errors.0
}

pub(crate) fn controller_revision(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    not_negative_at(&mut errors, object, "revision");
    match object.at("data") {
        Value::Null => errors.required(&Path::new("data"), "data is mandatory"),
        Value::Object(_) => {}
        _ => errors.required(&Path::new("data"), "data must be a valid JSON object"),
    }
    errors.0
}

fn not_negative_at(errors: &mut Errors, object: &Value, key: &str) {
    if let Some(number) = object.int(key).filter(|number| *number < 0) {
        errors.invalid(&Path::new(key), number, common::NOT_NEGATIVE);
    }
}

pub(crate) fn controller_revision_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    immutable(&mut errors, new.at("data"), old.at("data"), &Path::new("data"));
    errors.0
}

/// Status counters: not negative, and the parts not above the whole.
pub(crate) fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("status");
    let status = new.at("status");
    for (key, value) in new.entries("status") {
        if let Some(number) = value.as_i64().filter(|number| *number < 0) {
            errors.invalid(&path.child(key), number, common::NOT_NEGATIVE);
        }
    }
    let replicas = status.num("replicas");
    let is_daemon_set = status.has("desiredNumberScheduled");
    for key in
        ["updatedReplicas", "readyReplicas", "availableReplicas", "fullyLabeledReplicas", "currentReplicas"]
    {
        let number = status.num(key);
        if !is_daemon_set && number > replicas {
            errors.invalid(&path.child(key), number, "cannot be greater than status.replicas");
        }
    }
    let available = status.num("availableReplicas");
    if available > status.num("readyReplicas") {
        errors.invalid(&path.child("availableReplicas"), available, "cannot be greater than readyReplicas");
    }
    let collisions = |object: &Value| object.at("status").int("collisionCount");
    if let Some(before) = collisions(old) {
        let now = collisions(new).unwrap_or(0);
        if now < before {
            errors.invalid(&path.child("collisionCount"), now, "cannot be decremented");
        }
    }
    errors.0
}
