//! CSIDriver, CSINode, CSIStorageCapacity and VolumeAttachment.

use std::collections::BTreeSet;

use serde_json::Value;

use super::common::{self, immutable, label_name};
use super::{resources, storage};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, same};
use crate::names;

/// The name of a CSIDriver is a driver's name.
pub(crate) fn driver_object_name(name: &str) -> Vec<String> {
    let mut wrong = names::dns1123_subdomain(&name.to_lowercase());
    if name.len() > 63 {
        wrong.push(names::max_length(63));
    }
    wrong
}

pub(crate) fn driver(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    for (key, told) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
        ("seLinuxMount", "seLinuxMount"),
    ] {
        if !spec.has(key) {
            errors.required(&path.child(told), "");
        }
    }
    common::one_of(
        &mut errors,
        spec.text("fsGroupPolicy"),
        &path.child("fsGroupPolicy"),
        &["File", "None", "ReadWriteOnceWithFSType"],
    );
    let list = path.child("tokenRequests");
    let mut audiences = BTreeSet::new();
    for (index, request) in spec.items("tokenRequests").iter().enumerate() {
        let at = list.index(index);
        let audience = request.text("audience");
        if !audiences.insert(audience) {
            errors.duplicate(&at.child("audience"), audience);
        }
        match request.int("expirationSeconds") {
            Some(seconds) if seconds < 600 => {
                let detail = "may not specify a duration less than 10 minutes";
                errors.invalid(&at.child("expirationSeconds"), seconds, detail);
            }
            Some(seconds) if seconds > 1 << 32 => {
                let detail = "may not specify a duration larger than 2^32 seconds";
                errors.invalid(&at.child("expirationSeconds"), seconds, detail);
            }
            _ => {}
        }
    }
    for mode in spec.items("volumeLifecycleModes").iter().filter_map(Value::as_str) {
        if !matches!(mode, "Ephemeral" | "Persistent") {
            let at = path.child("volumeLifecycleModes");
            errors.not_supported(&at, mode, &["Persistent", "Ephemeral"]);
        }
    }
    if let Some(seconds) = spec.int("nodeAllocatableUpdatePeriodSeconds").filter(|seconds| *seconds < 10) {
        let at = path.child("nodeAllocatableUpdatePeriodSeconds");
        errors.invalid(&at, seconds, "must be greater than or equal to 10 seconds");
    }
    errors.0
}

pub(crate) fn driver_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    for (key, told) in
        [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
    {
        immutable(&mut errors, new.at("spec").at(key), old.at("spec").at(key), &path.child(told));
    }
    errors.0
}

pub(crate) fn node(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let list = path.child("drivers");
    let mut seen = BTreeSet::new();
    for (index, driver) in object.at("spec").items("drivers").iter().enumerate() {
        let at = list.index(index);
        let name = driver.text("name");
        storage::driver_name(&mut errors, name, &at.child("name"));
        let node = driver.text("nodeID");
        if node.is_empty() {
            errors.required(&at.child("nodeID"), "");
        } else if node.len() > 256 {
            let detail = "must be 256 characters or less";
            errors.invalid(&at.child("nodeID"), node, detail);
        }
        if let Some(count) = driver.at("allocatable").int("count").filter(|count| *count < 0) {
            let at = at.child("allocatable");
            errors.invalid(&at.child("count"), count, common::NOT_NEGATIVE);
        }
        if !seen.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        let mut keys = BTreeSet::new();
        for key in driver.items("topologyKeys").iter().filter_map(Value::as_str) {
            if key.is_empty() {
                errors.required(&at, "");
            }
            if !keys.insert(key) {
                errors.duplicate(&at, key);
            }
            label_name(&mut errors, key, &at);
        }
    }
    errors.0
}

/// A driver that is registered stays as it is, but for what its node can take.
pub(crate) fn node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let list = path.child("drivers");
    let drivers = new.at("spec").items("drivers");
    for before in old.at("spec").items("drivers") {
        let found = drivers.iter().enumerate().find(|(_, driver)| driver.text("name") == before.text("name"));
        if let Some((index, after)) = found {
            let alike = ["nodeID", "topologyKeys"].iter().all(|key| same(after.at(key), before.at(key)));
            if !alike {
                errors.invalid(&list.index(index), after.clone(), common::IMMUTABLE);
            }
        }
    }
    errors.0
}

pub(crate) fn capacity(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let name = object.text("storageClassName");
    errors.all_invalid(&Path::new("storageClassName"), name, names::dns1123_subdomain(name));
    for key in ["capacity", "maximumVolumeSize"] {
        if let Some(amount) = resources::quantity(object.at(key)).filter(|amount| amount.is_negative()) {
            errors.invalid(&Path::new(key), amount.to_string(), common::NOT_NEGATIVE);
        }
    }
    common::label_selector(&mut errors, object.at("nodeTopology"), &Path::new("nodeTopology"));
    errors.0
}

pub(crate) fn capacity_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    for key in ["nodeTopology", "storageClassName"] {
        immutable(&mut errors, new.at(key), old.at(key), &Path::new(key));
    }
    errors.0
}

pub(crate) fn attachment(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    storage::driver_name(&mut errors, spec.text("attacher"), &path.child("attacher"));
    let source = spec.at("source");
    let at = path.child("source");
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (source.has("inlineVolumeSpec"), source.at("persistentVolumeName").as_str()) {
        (false, None) => errors.required(&at, ONE),
        (true, Some(_)) => errors.forbidden(&at, ONE),
        (false, Some("")) => {
            let detail = "must specify non empty persistentVolumeName";
            errors.required(&at.child("persistentVolumeName"), detail);
        }
        _ => {}
    }
    let node = spec.text("nodeName");
    errors.all_invalid(&path.child("nodeName"), node, names::dns1123_subdomain(node));
    errors.0
}

pub(crate) fn attachment_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    immutable(&mut errors, new.at("spec"), old.at("spec"), &Path::new("spec"));
    errors.0
}
