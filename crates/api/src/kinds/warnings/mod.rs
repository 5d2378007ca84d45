//! Warnings: what a write is told about although it is accepted (deprecated fields, values that other software reads otherwise).
//! The rules are upstream's `pkg/api/*/warnings.go` and the `WarningsOnCreate` and `WarningsOnUpdate` of its strategies.

mod address;
mod keypair;
mod pod;
mod selectors;
mod service;
mod storage;
#[cfg(test)]
mod tests;
mod workloads;

use serde_json::Value;

use super::json::{Read, same};
use crate::quantity::Quantity;

/// Warnings of a write: the new object, and the old one of an update.
pub(crate) type Warn = fn(&Value, Option<&Value>) -> Vec<String>;

/// The warnings of a kind's writes, and of writes to its status.
pub(crate) fn warnings_for(group: &str, kind: &str) -> (Warn, Warn) {
    const NONE: Warn = |_, _| Vec::new();
    let main: Warn = match (group, kind) {
        ("", "Endpoints") => service::endpoints,
        ("", "Node") => node,
        ("", "PersistentVolume") => |new, _| storage::volume(new),
        ("", "PersistentVolumeClaim") => |new, _| storage::claim(new),
        ("", "Pod") => pod::create,
        ("", "PodTemplate") => workloads::pod_template,
        ("", "ReplicationController") => workloads::replication_controller,
        ("", "ResourceQuota") => quota,
        ("", "Secret") => |new, _| keypair::secret(new),
        ("", "Service") => |new, _| service::service(new),
        ("", "ServiceAccount") => service_account,
        ("admissionregistration.k8s.io", _) => |new, _| static_suffix(new),
        ("apps", "DaemonSet") => workloads::daemon_set,
        ("apps", "Deployment" | "ReplicaSet") => workloads::named_template,
        ("apps", "StatefulSet") => workloads::stateful_set,
        ("batch", "CronJob") => workloads::cron_job,
        ("batch", "Job") => workloads::job,
        ("discovery.k8s.io", "EndpointSlice") => service::endpoint_slice,
        ("networking.k8s.io", "Ingress") => service::ingress,
        ("networking.k8s.io", "NetworkPolicy") => |new, _| service::network_policy(new),
        ("node.k8s.io", "RuntimeClass") => |new, _| selectors::runtime_class(new),
        ("resource.k8s.io", "ResourceSlice") => |new, _| driver_case(new),
        ("storage.k8s.io", "CSIDriver") => storage::csi_driver,
        ("storage.k8s.io", "CSIStorageCapacity") => |new, _| selectors::capacity(new),
        ("storage.k8s.io", "StorageClass") => |new, _| selectors::storage_class(new),
        _ => NONE,
    };
    let status: Warn = match (group, kind) {
        ("", "Pod") => |new, _| pod::status(new),
        ("", "Service") | ("networking.k8s.io", "Ingress") => |new, _| service::load_balancer(new),
        _ => NONE,
    };
    (main, status)
}

fn annotated(object: &Value, key: &str) -> bool {
    object.dig(&["metadata", "annotations"]).has(key)
}

fn changed(new: &Value, old: Option<&Value>) -> bool {
    let generation = |object: &Value| object.at("metadata").num("generation");
    old.is_none_or(|old| generation(new) != generation(old))
}

/// An amount that is no whole number where only whole numbers make sense.
fn fractional(out: &mut Vec<String>, list: &Value, resource: &str, path: &str) {
    let Some(text) = list.at(resource).as_str() else { return };
    if text.parse::<Quantity>().is_ok_and(|amount| amount.milli_value() % 1000 != 0) {
        out.push(format!(
            "{path}[{resource}]: fractional byte value {text:?} is invalid, must be an integer"
        ));
    }
}

fn node(new: &Value, _: Option<&Value>) -> Vec<String> {
    let spec = new.at("spec");
    let mut out = Vec::new();
    if spec.has("configSource") {
        out.push("spec.configSource: the feature is removed".to_owned());
    }
    if !spec.text("externalID").is_empty() {
        out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
    }
    for (index, range) in spec.items("podCIDRs").iter().enumerate() {
        let range = range.as_str().unwrap_or_default();
        out.extend(address::cidr(&format!("spec.podCIDRs[{index}]"), range));
    }
    out
}

fn quota(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if old.is_some() {
        return out;
    }
    let hard = new.at("spec").at("hard");
    for resource in ["cpu", "memory", "storage", "ephemeral-storage"] {
        let mut request = format!("requests.{resource}");
        if !hard.has(&request) && matches!(resource, "cpu" | "memory") && hard.has(resource) {
            request = resource.to_owned();
        }
        let limit = format!("limits.{resource}");
        let amount = |key: &str| hard.at(key).as_str().and_then(|text| text.parse::<Quantity>().ok());
        if let (Some(asked), Some(most)) = (amount(&request), amount(&limit))
            && asked > most
        {
            out.push(format!("ResourceQuota {request} ({asked}) should be less than {limit} ({most})"));
        }
    }
    out
}

fn service_account(new: &Value, old: Option<&Value>) -> Vec<String> {
    const KEY: &str = "kubernetes.io/enforce-mountable-secrets";
    if old.is_some_and(|old| annotated(old, KEY)) || !annotated(new, KEY) {
        return Vec::new();
    }
    let why = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
    vec![format!("metadata.annotations[{KEY}]: {why}")]
}

/// Names that configuration from files keeps for itself.
fn static_suffix(new: &Value) -> Vec<String> {
    const SUFFIX: &str = ".static.k8s.io";
    if !new.at("metadata").text("name").ends_with(SUFFIX) {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: names ending with {SUFFIX:?} are reserved for static manifest-based configurations and cannot \
         be managed via the API"
    )]
}

fn driver_case(new: &Value) -> Vec<String> {
    let driver = new.at("spec").text("driver");
    if driver.to_lowercase() == driver {
        return Vec::new();
    }
    vec![format!("spec.driver: driver names should be lowercase; {driver:?} contains uppercase characters")]
}

fn unlike(new: &Value, old: Option<&Value>, path: &[&str]) -> bool {
    old.is_none_or(|old| !same(new.dig(path), old.dig(path)))
}
