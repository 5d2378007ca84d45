//! Volumes of a pod.

use std::collections::HashMap;

use serde_json::Value;

use super::common::{self, required, unreserved_path};
use super::container::{field_selector, resource_field_selector};
use super::storage;
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const DOWNWARD_PATHS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// The sound volumes by name.
pub(crate) type Volumes<'a> = HashMap<&'a str, &'a Value>;

pub(crate) fn volumes<'a>(
    errors: &mut Errors,
    list: &'a [Value],
    pod_name: Option<&str>,
    path: &Path<'_>,
) -> Volumes<'a> {
    let mut sound = Volumes::new();
    for (index, volume) in list.iter().enumerate() {
        let at = path.index(index);
        let name = volume.text("name");
        let before = errors.0.len();
        source(errors, volume, pod_name, &at);
        match name {
            "" => errors.required(&at.child("name"), ""),
            name => common::label(errors, name, &at.child("name")),
        }
        if sound.contains_key(name) {
            errors.duplicate(&at.child("name"), name);
        }
        if errors.0.len() == before {
            sound.insert(name, volume);
        }
        let claim = volume.at("persistentVolumeClaim").text("claimName");
        let made = list.iter().any(|other| {
            other.has("ephemeral")
                && pod_name.is_some_and(|pod| claim == format!("{pod}-{}", other.text("name")))
        });
        if made {
            errors.invalid(
                &at.child("persistentVolumeClaim").child("claimName"),
                claim,
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
    sound
}

const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn source(errors: &mut Errors, volume: &Value, pod_name: Option<&str>, path: &Path<'_>) {
    let mut found = 0;
    for kind in SOURCES {
        let value = volume.at(kind);
        if value.is_null() {
            continue;
        }
        found += 1;
        let at = path.child(kind);
        if found > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type");
            continue;
        }
        one_source(errors, kind, value, volume.text("name"), pod_name, &at, path);
    }
    if found == 0 {
        errors.required(path, "must specify a volume type");
    }
}

fn one_source(
    errors: &mut Errors,
    kind: &str,
    value: &Value,
    name: &str,
    pod_name: Option<&str>,
    at: &Path<'_>,
    path: &Path<'_>,
) {
    match kind {
        "emptyDir" => {
            let limit = super::resources::quantity(value.at("sizeLimit"));
            if limit.is_some_and(|limit| limit.is_negative()) {
                let detail = "SizeLimit field must be a valid resource quantity";
                errors.forbidden(&at.child("sizeLimit"), detail);
            }
        }
        "secret" => {
            required(errors, value, at, "secretName");
            mode(errors, value, at, "defaultMode");
            keys_to_paths(errors, value, at);
        }
        "configMap" => {
            required(errors, value, at, "name");
            mode(errors, value, at, "defaultMode");
            keys_to_paths(errors, value, at);
        }
        "persistentVolumeClaim" => required(errors, value, at, "claimName"),
        "downwardAPI" => {
            mode(errors, value, at, "defaultMode");
            for file in value.items("items") {
                downward_file(errors, file, at);
            }
        }
        "projected" => projected(errors, value, at),
        "csi" => {
            storage::driver_name(errors, value.text("driver"), &at.child("driver"));
            let secret = value.at("nodePublishSecretRef");
            if secret.is_object() {
                let name = secret.text("name");
                match name {
                    "" => errors.required(&at.child("nodePublishSecretRef").child("name"), ""),
                    name => common::subdomain(errors, name, &at.child("name")),
                }
            }
        }
        "ephemeral" => {
            let template = value.at("volumeClaimTemplate");
            if !template.is_object() {
                errors.required(&at.child("volumeClaimTemplate"), "");
                return;
            }
            let at = at.child("volumeClaimTemplate");
            common::labels(
                errors,
                template.dig(&["metadata", "labels"]),
                &at.child("metadata").child("labels"),
            );
            storage::claim_spec(errors, template.at("spec"), &at.child("spec"));
            if let Some(pod) = pod_name.filter(|_| !name.is_empty()) {
                let claim = format!("{pod}-{name}");
                for message in names::dns1123_subdomain(&claim) {
                    errors.invalid(&path.child("name"), name, format!("PVC name {claim:?}: {message}"));
                }
            }
        }
        "image" => {
            required(errors, value, at, "reference");
            let policy = value.text("pullPolicy");
            common::one_of(errors, policy, &at.child("pullPolicy"), &["Always", "IfNotPresent", "Never"]);
        }
        _ => storage::shared_source(errors, kind, value, at),
    }
}

fn mode(errors: &mut Errors, holder: &Value, path: &Path<'_>, key: &str) {
    if let Some(mode) = holder.int(key).filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(&path.child(key), mode, FILE_MODE);
    }
}

fn keys_to_paths(errors: &mut Errors, holder: &Value, path: &Path<'_>) {
    let list = path.child("items");
    for (index, item) in holder.items("items").iter().enumerate() {
        let at = list.index(index);
        required(errors, item, &at, "key");
        required(errors, item, &at, "path");
        unreserved_path(errors, item.text("path"), &at.child("path"));
        mode(errors, item, &at, "mode");
    }
}

fn downward_file(errors: &mut Errors, file: &Value, path: &Path<'_>) {
    required(errors, file, path, "path");
    unreserved_path(errors, file.text("path"), &path.child("path"));
    if file.has("fieldRef") {
        field_selector(errors, file.at("fieldRef"), &DOWNWARD_PATHS, &path.child("fieldRef"));
        if file.has("resourceFieldRef") {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.invalid(path, "resource", detail);
        }
    } else if file.has("resourceFieldRef") {
        let at = path.child("resourceFieldRef");
        resource_field_selector(errors, file.at("resourceFieldRef"), &at, true);
    } else {
        errors.required(path, "one of fieldRef and resourceFieldRef is required");
    }
    mode(errors, file, path, "mode");
}

fn projected(errors: &mut Errors, value: &Value, path: &Path<'_>) {
    mode(errors, value, path, "defaultMode");
    let list = path.child("sources");
    let mut paths: Vec<String> = Vec::new();
    for (index, source) in value.items("sources").iter().enumerate() {
        let at = list.index(index);
        let mut found = 0;
        for kind in ["secret", "configMap"] {
            let Some(part) = source.get(kind).filter(|part| part.is_object()) else { continue };
            found += 1;
            let at = at.child(kind);
            required(errors, part, &at, "name");
            keys_to_paths(errors, part, &at);
            for item in part.items("items") {
                unique(errors, &mut paths, item.text("path"), part.text("name"), path);
            }
        }
        let downward = source.at("downwardAPI");
        if downward.is_object() {
            found += 1;
            for file in downward.items("items") {
                downward_file(errors, file, &at.child("downwardAPI"));
                unique(errors, &mut paths, file.text("path"), file.text("path"), path);
            }
        }
        let token = source.at("serviceAccountToken");
        if token.is_object() {
            found += 1;
            service_account_token(errors, token, &at.child("serviceAccountToken"), path);
        }
        let bundle = source.at("clusterTrustBundle");
        if bundle.is_object() {
            found += 1;
            trust_bundle(errors, bundle, &at.child("clusterTrustBundle"));
            unique(errors, &mut paths, bundle.text("path"), bundle.text("path"), path);
        }
        if found > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
}

fn unique(errors: &mut Errors, paths: &mut Vec<String>, target: &str, told: &str, path: &Path<'_>) {
    if target.is_empty() {
        return;
    }
    if paths.iter().any(|path| path == target) {
        errors.invalid(path, told, "conflicting duplicate paths");
    } else {
        paths.push(target.to_owned());
    }
}

fn service_account_token(errors: &mut Errors, token: &Value, at: &Path<'_>, path: &Path<'_>) {
    let seconds = token.num("expirationSeconds");
    if seconds < 600 {
        let detail = "may not specify a duration less than 10 minutes";
        errors.invalid(&at.child("expirationSeconds"), seconds, detail);
    }
    if seconds > 1 << 32 {
        let detail = "may not specify a duration larger than 2^32 seconds";
        errors.invalid(&at.child("expirationSeconds"), seconds, detail);
    }
    match token.text("path") {
        "" => errors.required(&path.child("path"), ""),
        target => unreserved_path(errors, target, &path.child("path")),
    }
}

fn trust_bundle(errors: &mut Errors, bundle: &Value, at: &Path<'_>) {
    match (bundle.at("name").as_str(), bundle.at("signerName").as_str()) {
        (Some(_), Some(_)) => {
            errors.invalid(at, bundle.clone(), "only one of name and signerName may be used");
        }
        (Some(""), None) => errors.required(&at.child("name"), "must be a valid object name"),
        (Some(_), None) if bundle.has("labelSelector") => errors.invalid(
            &at.child("labelSelector"),
            bundle.at("labelSelector").clone(),
            "labelSelector must be unset if name is specified",
        ),
        (Some(_), None) => {}
        (None, Some(signer)) => {
            if signer.is_empty() {
                errors.required(&at.child("signerName"), "must be a valid signer name");
            }
            common::label_selector(errors, bundle.at("labelSelector"), &at.child("labelSelector"));
        }
        (None, None) => errors.required(at, "either name or signerName must be specified"),
    }
    required(errors, bundle, at, "path");
    unreserved_path(errors, bundle.text("path"), &at.child("path"));
}
