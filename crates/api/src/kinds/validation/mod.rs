//! Validation: what each kind refuses, with upstream's reasons, paths and words.

mod access;
mod admission;
mod batch;
pub(crate) mod common;
mod container;
pub(crate) mod control;
pub(crate) mod core;
mod cron;
mod csi;
pub mod definition;
pub mod devices;
mod events;
mod job_status;
mod migration;
mod network;
pub(crate) mod pem;
pub(crate) mod pod;
mod podspec;
mod policy;
mod probes;
mod resources;
mod scheduling;
mod security;
mod service;
mod statuses;
mod storage;
#[cfg(test)]
mod tests;
mod volumes;
mod workloads;

use serde_json::Value;

use crate::{FieldError, names};

/// The checks of a kind.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    pub validate: fn(&Value) -> Vec<FieldError>,
    pub validate_update: fn(&Value, &Value) -> Vec<FieldError>,
    pub validate_status: fn(&Value, &Value) -> Vec<FieldError>,
    pub name: fn(&str) -> Vec<String>,
}

const NONE: Rules = Rules {
    validate: |_| Vec::new(),
    validate_update: |_, _| Vec::new(),
    validate_status: |_, _| Vec::new(),
    name: names::dns1123_subdomain,
};

fn no_update(_: &Value, _: &Value) -> Vec<FieldError> {
    Vec::new()
}

const fn rules(
    validate: fn(&Value) -> Vec<FieldError>,
    validate_update: fn(&Value, &Value) -> Vec<FieldError>,
) -> Rules {
    Rules { validate, validate_update, ..NONE }
}

const fn with_status(rules: Rules, validate_status: fn(&Value, &Value) -> Vec<FieldError>) -> Rules {
    Rules { validate_status, ..rules }
}

const fn named(rules: Rules, name: fn(&str) -> Vec<String>) -> Rules {
    Rules { name, ..rules }
}

/// The checks of a kind; what a kind does not name is unchecked, but for its name, which is a subdomain.
pub(crate) fn rules_for(group: &str, kind: &str) -> Rules {
    match (group, kind) {
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            with_status(rules(definition::validate, definition::update), definition::status_update)
        }
        ("", "ConfigMap") => rules(core::config_map, core::config_map_update),
        ("", "Endpoints") => rules(service::endpoints, no_update),
        ("", "Event") | ("events.k8s.io", "Event") => rules(events::event, events::update),
        ("", "LimitRange") => rules(core::limit_range, no_update),
        ("", "Namespace") => named(
            with_status(rules(core::namespace, no_update), core::namespace_status),
            names::dns1123_label,
        ),
        ("", "Node") => with_status(rules(core::node, core::node_update), core::node_status),
        ("", "PersistentVolume") => rules(storage::volume, storage::volume_update),
        ("", "PersistentVolumeClaim") => {
            with_status(rules(storage::claim, storage::claim_update), statuses::claim)
        }
        ("", "Pod") => with_status(rules(pod::validate_write, pod::validate_update), pod::validate_status),
        ("", "PodTemplate") => rules(workloads::pod_template, no_update),
        ("", "ReplicationController") => {
            with_status(rules(workloads::replication_controller, no_update), workloads::status)
        }
        ("", "ResourceQuota") => {
            with_status(rules(core::resource_quota, core::resource_quota_update), core::resource_quota_status)
        }
        ("", "Secret") => rules(core::secret, core::secret_update),
        ("", "Service") => named(
            with_status(rules(service::service, service::service_update), statuses::service),
            names::dns1123_label,
        ),
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => {
            rules(admission::mutating_policy, no_update)
        }
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding") => {
            rules(admission::mutating_binding, no_update)
        }
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => {
            rules(admission::mutating_webhooks, no_update)
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            rules(admission::validating_policy, no_update)
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            rules(admission::validating_binding, no_update)
        }
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => {
            rules(admission::validating_webhooks, no_update)
        }
        ("apiregistration.k8s.io", "APIService") => {
            named(rules(control::api_service, no_update), names::path_segment)
        }
        ("apps", "ControllerRevision") => {
            rules(workloads::controller_revision, workloads::controller_revision_update)
        }
        ("apps", "DaemonSet") => {
            with_status(rules(workloads::daemon_set, workloads::same_selector), workloads::status)
        }
        ("apps", "Deployment") => {
            with_status(rules(workloads::deployment, workloads::same_selector), workloads::status)
        }
        ("apps", "ReplicaSet") => {
            with_status(rules(workloads::replica_set, workloads::same_selector), workloads::status)
        }
        ("apps", "StatefulSet") => {
            with_status(rules(workloads::stateful_set, workloads::stateful_set_update), workloads::status)
        }
        ("autoscaling", "HorizontalPodAutoscaler") => {
            with_status(rules(policy::autoscaler, no_update), statuses::autoscaler)
        }
        ("batch", "CronJob") => named(rules(batch::cron_job, no_update), cron_job_name),
        ("batch", "Job") => with_status(rules(batch::job, batch::job_update), job_status::job_status),
        ("certificates.k8s.io", "CertificateSigningRequest") => named(
            with_status(
                rules(control::signing_request, control::signing_request_update),
                control::signing_request_status,
            ),
            |_| Vec::new(),
        ),
        ("coordination.k8s.io", "Lease") => rules(core::lease, no_update),
        ("discovery.k8s.io", "EndpointSlice") => {
            rules(service::endpoint_slice, service::endpoint_slice_update)
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => rules(control::flow_schema, no_update),
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            rules(control::priority_level, no_update)
        }
        ("networking.k8s.io", "IPAddress") => {
            named(rules(network::ip_address, network::ip_address_update), network::ip_address_name)
        }
        ("networking.k8s.io", "Ingress") => {
            with_status(rules(network::ingress, no_update), statuses::ingress)
        }
        ("networking.k8s.io", "IngressClass") => rules(network::ingress_class, network::ingress_class_update),
        ("networking.k8s.io", "NetworkPolicy") => rules(network::network_policy, no_update),
        ("networking.k8s.io", "ServiceCIDR") => rules(network::service_cidr, network::service_cidr_update),
        ("node.k8s.io", "RuntimeClass") => rules(core::runtime_class, core::runtime_class_update),
        ("policy", "PodDisruptionBudget") => {
            with_status(rules(policy::disruption_budget, no_update), statuses::disruption_budget)
        }
        ("rbac.authorization.k8s.io", "ClusterRole") => {
            named(rules(access::cluster_role, no_update), names::path_segment)
        }
        ("rbac.authorization.k8s.io", "Role") => named(rules(access::role, no_update), names::path_segment),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => {
            named(rules(access::cluster_role_binding, access::binding_update), names::path_segment)
        }
        ("rbac.authorization.k8s.io", "RoleBinding") => {
            named(rules(access::role_binding, access::binding_update), names::path_segment)
        }
        ("resource.k8s.io", "DeviceClass") => rules(devices::class, no_update),
        ("resource.k8s.io", "ResourceClaim") => {
            with_status(rules(devices::claim, devices::same_spec), devices::claim_status)
        }
        ("resource.k8s.io", "ResourceClaimTemplate") => rules(devices::claim_template, devices::same_spec),
        ("resource.k8s.io", "ResourceSlice") => rules(devices::slice, devices::slice_update),
        ("scheduling.k8s.io", "PriorityClass") => rules(core::priority_class, core::priority_class_update),
        ("storage.k8s.io", "CSIDriver") => {
            named(rules(csi::driver, csi::driver_update), csi::driver_object_name)
        }
        ("storage.k8s.io", "CSINode") => rules(csi::node, csi::node_update),
        ("storage.k8s.io", "CSIStorageCapacity") => rules(csi::capacity, csi::capacity_update),
        ("storage.k8s.io", "VolumeAttachment") => rules(csi::attachment, csi::attachment_update),
        ("storage.k8s.io", "VolumeAttributesClass") => {
            rules(storage::attributes_class, storage::attributes_class_update)
        }
        ("storage.k8s.io", "StorageClass") => rules(storage::class, storage::class_update),
        ("storagemigration.k8s.io", "StorageVersionMigration") => {
            with_status(rules(migration::spec, migration::same_spec), migration::status)
        }
        _ => NONE,
    }
}

/// A cron job's name leaves room for the time that its jobs' names end with.
fn cron_job_name(name: &str) -> Vec<String> {
    let mut wrong = names::dns1123_subdomain(name);
    if name.len() > 52 {
        wrong.push(names::max_length(52));
    }
    wrong
}
