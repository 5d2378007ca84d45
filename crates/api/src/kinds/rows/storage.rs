//! Rows of volumes, claims and the kinds of storage.k8s.io.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, name, or, strings};
use crate::kinds::json::Read;

fn access_modes(list: &Value, key: &str) -> String {
    let modes = strings(list, key);
    let shown: Vec<&str> = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .into_iter()
    .filter(|(mode, _)| modes.contains(mode))
    .map(|(_, short)| short)
    .collect();
    shown.join(",")
}

fn phase(object: &Value) -> Value {
    match object.at("metadata").has("deletionTimestamp") {
        true => "Terminating".into(),
        false => object.at("status").text("phase").into(),
    }
}

fn storage_class(object: &Value) -> Value {
    let annotation = object.dig(&["metadata", "annotations"]).at("volume.beta.kubernetes.io/storage-class");
    annotation.as_str().unwrap_or_else(|| object.at("spec").text("storageClassName")).into()
}

fn set<'a>(holder: &'a Value, key: &str) -> &'a str {
    if holder.has(key) { holder.text(key) } else { "<unset>" }
}

pub(super) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let claim = match spec.at("claimRef") {
        Value::Null => String::new(),
        claim => format!("{}/{}", claim.text("namespace"), claim.text("name")),
    };
    vec![
        name(object),
        or(spec.at("capacity").text("storage"), "0").into(),
        access_modes(spec, "accessModes").into(),
        spec.text("persistentVolumeReclaimPolicy").into(),
        phase(object),
        claim.into(),
        storage_class(object),
        set(spec, "volumeAttributesClassName").into(),
        object.at("status").text("reason").into(),
        age(object, now),
        set(spec, "volumeMode").into(),
    ]
}

pub(super) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let bound = !spec.text("volumeName").is_empty();
    let capacity = if bound { or(status.at("capacity").text("storage"), "0") } else { "" };
    let modes = if bound { access_modes(status, "accessModes") } else { String::new() };
    vec![
        name(object),
        phase(object),
        spec.text("volumeName").into(),
        capacity.into(),
        modes.into(),
        storage_class(object),
        set(spec, "volumeAttributesClassName").into(),
        age(object, now),
        set(spec, "volumeMode").into(),
    ]
}

pub(super) fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let annotations = object.dig(&["metadata", "annotations"]);
    let default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            .iter()
            .any(|key| annotations.text(key) == "true");
    let mut shown = object.at("metadata").text("name").to_owned();
    if default {
        shown.push_str(" (default)");
    }
    vec![
        shown.into(),
        object.text("provisioner").into(),
        or(object.text("reclaimPolicy"), "Delete").into(),
        or(object.text("volumeBindingMode"), "Immediate").into(),
        object.flag("allowVolumeExpansion").into(),
        age(object, now),
    ]
}

pub(super) fn csi_driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    let tokens = match spec.has("tokenRequests") {
        false => "<unset>".to_owned(),
        true => {
            let audiences: Vec<&str> =
                spec.items("tokenRequests").iter().map(|t| t.text("audience")).collect();
            audiences.join(",")
        }
    };
    vec![
        name(object),
        spec.at("attachRequired").as_bool().unwrap_or(true).into(),
        spec.flag("podInfoOnMount").into(),
        spec.flag("storageCapacity").into(),
        tokens.into(),
        spec.flag("requiresRepublish").into(),
        or(&strings(spec, "volumeLifecycleModes").join(","), "<none>").into(),
        age(object, now),
    ]
}

pub(super) fn csi_node(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.at("spec").items("drivers").len().into(), age(object, now)]
}

pub(super) fn attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = object.at("spec");
    vec![
        name(object),
        spec.text("attacher").into(),
        spec.at("source").text("persistentVolumeName").into(),
        spec.text("nodeName").into(),
        object.at("status").flag("attached").into(),
        age(object, now),
    ]
}

pub(super) fn attributes_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), object.text("driverName").into(), age(object, now)]
}

pub(super) fn migration(object: &Value, _: Timestamp) -> Vec<Value> {
    let resource = object.dig(&["spec", "resource"]);
    let resource = match resource.text("group") {
        "" => resource.text("resource").to_owned(),
        group => format!("{}.{group}", resource.text("resource")),
    };
    let holds = |one: &&Value| {
        one.text("status") == "True" && ["Running", "Failed", "Succeeded"].contains(&one.text("type"))
    };
    let state = object.at("status").items("conditions").iter().rfind(holds);
    vec![name(object), resource.into(), state.map_or("Unknown", |one| one.text("type")).into()]
}
