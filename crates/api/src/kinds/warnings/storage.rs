//! Volumes, claims and drivers.

use serde_json::Value;

use super::{annotated, fractional, selectors, unlike};
use crate::kinds::json::Read;

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const CLASS_TOLD: &str = "deprecated since v1.8; use \"storageClassName\" attribute instead";

pub(super) fn volume(volume: &Value) -> Vec<String> {
    let spec = volume.at("spec");
    let mut out = Vec::new();
    let annotations = [
        (CLASS, CLASS_TOLD),
        (
            "volume.beta.kubernetes.io/mount-options",
            "deprecated since v1.31; use \"mountOptions\" attribute instead",
        ),
    ];
    for (key, told) in annotations.into_iter().filter(|(key, _)| annotated(volume, key)) {
        out.push(format!("metadata.annotations[{key}]: {told}"));
    }
    if spec.text("persistentVolumeReclaimPolicy") == "Recycle" {
        out.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    let required = spec.dig(&["nodeAffinity", "required"]);
    selectors::terms(&mut out, required, "spec.nodeAffinity.required");
    for (key, since, gone) in [
        ("cephfs", "v1.28", "v1.31"),
        ("photonPersistentDisk", "v1.11", "v1.16"),
        ("scaleIO", "v1.16", "v1.22"),
        ("storageos", "v1.22", "v1.25"),
        ("glusterfs", "v1.25", "v1.26"),
        ("rbd", "v1.28", "v1.31"),
    ] {
        if spec.has(key) {
            let shown = if key == "storageos" { "storageOS" } else { key };
            out.push(format!("spec.{shown}: deprecated in {since}, non-functional in {gone}+"));
        }
    }
    out
}

pub(super) fn claim(claim: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if annotated(claim, CLASS) {
        out.push(format!("metadata.annotations[{CLASS}]: {CLASS_TOLD}"));
    }
    claim_spec(&mut out, claim.at("spec"), "spec");
    out
}

pub(super) fn claim_spec(out: &mut Vec<String>, spec: &Value, path: &str) {
    for list in ["requests", "limits"] {
        let amounts = spec.at("resources").at(list);
        fractional(out, amounts, "storage", &format!("{path}.resources.{list}"));
    }
}

pub(super) fn csi_driver(driver: &Value, old: Option<&Value>) -> Vec<String> {
    let spec = driver.at("spec");
    let asked = !spec.items("tokenRequests").is_empty() && !spec.has("serviceAccountTokenInSecrets");
    if !asked || !unlike(driver, old, &["spec", "tokenRequests"]) {
        return Vec::new();
    }
    vec![
        "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible \
         logging of tokens in volume attributes"
            .to_owned(),
    ]
}
