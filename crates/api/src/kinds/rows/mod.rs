//! Table rows: the cells of each kind in the order of its columns, the wide ones included.

mod access;
mod admission;
mod control;
mod core;
mod devices;
mod events;
mod network;
pub(crate) mod pod;
mod policy;
mod storage;
#[cfg(test)]
mod tests;
mod workloads;

use jiff::Timestamp;
use serde_json::Value;

use super::json::Read;
use crate::labels::Selector;

/// The rows of a kind that has columns of its own.
pub(crate) fn row_for(group: &str, kind: &str) -> Option<fn(&Value, Timestamp) -> Vec<Value>> {
    Some(match (group, kind) {
        ("", "ComponentStatus") => core::component_status,
        ("", "ConfigMap") => core::config_map,
        ("", "Endpoints") => network::endpoints,
        ("", "Event") | ("events.k8s.io", "Event") => events::event,
        ("", "Namespace") => core::namespace,
        ("", "Node") => core::node,
        ("", "PersistentVolume") => storage::volume,
        ("", "PersistentVolumeClaim") => storage::claim,
        ("", "Pod") => pod::row,
        ("", "PodTemplate") => workloads::pod_template,
        ("", "ReplicationController") => workloads::replication_controller,
        ("", "ResourceQuota") => policy::resource_quota,
        ("", "Secret") => core::secret,
        ("", "Service") => network::service,
        ("", "ServiceAccount") | ("resource.k8s.io", "DeviceClass" | "ResourceClaimTemplate") => {
            core::name_and_age
        }
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy" | "ValidatingAdmissionPolicy") => {
            admission::policy
        }
        (
            "admissionregistration.k8s.io",
            "MutatingAdmissionPolicyBinding" | "ValidatingAdmissionPolicyBinding",
        ) => admission::binding,
        (
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration",
        ) => admission::webhooks,
        ("apiregistration.k8s.io", "APIService") => control::api_service,
        ("apps", "ControllerRevision") => workloads::controller_revision,
        ("apps", "DaemonSet") => workloads::daemon_set,
        ("apps", "Deployment") => workloads::deployment,
        ("apps", "ReplicaSet") => workloads::replica_set,
        ("apps", "StatefulSet") => workloads::stateful_set,
        ("autoscaling", "HorizontalPodAutoscaler") => policy::autoscaler,
        ("batch", "CronJob") => workloads::cron_job,
        ("batch", "Job") => workloads::job,
        ("certificates.k8s.io", "CertificateSigningRequest") => access::signing_request,
        ("coordination.k8s.io", "Lease") => control::lease,
        ("discovery.k8s.io", "EndpointSlice") => network::endpoint_slice,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => control::flow_schema,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => control::priority_level,
        ("networking.k8s.io", "IPAddress") => network::ip_address,
        ("networking.k8s.io", "Ingress") => network::ingress,
        ("networking.k8s.io", "IngressClass") => network::ingress_class,
        ("networking.k8s.io", "NetworkPolicy") => network::network_policy,
        ("networking.k8s.io", "ServiceCIDR") => network::service_cidr,
        ("node.k8s.io", "RuntimeClass") => control::runtime_class,
        ("policy", "PodDisruptionBudget") => policy::disruption_budget,
        ("rbac.authorization.k8s.io", "ClusterRoleBinding" | "RoleBinding") => access::role_binding,
        ("resource.k8s.io", "ResourceClaim") => devices::claim,
        ("resource.k8s.io", "ResourceSlice") => devices::slice,
        ("scheduling.k8s.io", "PriorityClass") => control::priority_class,
        ("storage.k8s.io", "CSIDriver") => storage::csi_driver,
        ("storage.k8s.io", "CSINode") => storage::csi_node,
        ("storage.k8s.io", "StorageClass") => storage::class,
        ("storage.k8s.io", "VolumeAttachment") => storage::attachment,
        ("storage.k8s.io", "VolumeAttributesClass") => storage::attributes_class,
        ("storagemigration.k8s.io", "StorageVersionMigration") => storage::migration,
        _ => return None,
    })
}

/// A span in the short form of tables: `5s`, `3m20s`, `2d`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    let pair = |a: i64, a_unit: &str, b: i64, b_unit: &str| match b {
        0 => format!("{a}{a_unit}"),
        _ => format!("{a}{a_unit}{b}{b_unit}"),
    };
    match () {
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => pair(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    // Whole seconds, cut towards zero as Go's durations are.
    let nanos = to.as_nanosecond() - from.as_nanosecond();
    i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX)
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str().and_then(|text| text.parse().ok())
}

/// How long ago a time was.
fn since(value: &Value, now: Timestamp) -> String {
    time(value).map_or_else(|| "<unknown>".to_owned(), |then| human_duration(seconds_between(then, now)))
}

fn age(object: &Value, now: Timestamp) -> Value {
    since(object.dig(&["metadata", "creationTimestamp"]), now).into()
}

fn name(object: &Value) -> Value {
    object.at("metadata").text("name").into()
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// The containers' names and images, each joined by commas.
fn containers(spec: &Value) -> [Value; 2] {
    ["name", "image"].map(|key| {
        let all: Vec<&str> = spec.items("containers").iter().map(|container| container.text(key)).collect();
        all.join(",").into()
    })
}

/// A map of labels as `a=b,c=d`.
fn labels(map: &Value) -> Value {
    let text = Selector::from_map(map).to_string();
    or(&text, "<none>").into()
}

/// A LabelSelector in its string form.
fn selector(selector: &Value) -> Value {
    match Selector::from_json(selector) {
        Ok(found) => or(&found.to_string(), "<none>").into(),
        Err(_) => "<error>".into(),
    }
}

fn strings<'a>(object: &'a Value, key: &str) -> Vec<&'a str> {
    object.items(key).iter().filter_map(Value::as_str).collect()
}

/// A number or string as text.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
