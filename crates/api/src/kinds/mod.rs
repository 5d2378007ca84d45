//! The strategies of the built-in kinds: for each a row of functions over its JSON form.

mod access;
mod admission;
mod batch;
mod control;
mod core;
mod devices;
pub(crate) mod json;
mod network;
pub mod pod;
mod podspec;
mod policy;
pub(crate) mod prepare;
pub(crate) mod rows;
mod service;
mod storage;
pub(crate) mod validation;
mod warnings;
mod workloads;

use std::sync::LazyLock;

use crate::Strategy;

pub use control::prepare_approval;
pub use policy::AUTOSCALER_ANNOTATIONS;
pub use rows::human_duration;
pub(crate) use validation::common::is_legacy_form;
pub use validation::control::validate_approval;
pub use validation::core::validate_finalize;
pub use validation::definition::{Approval, approval_state, is_protected};
pub use validation::devices::selector_env;
pub use validation::pod::{validate_ephemeral_containers, validate_resize};

/// The kinds that have rules of their own.
const KINDS: &[(&str, &str)] = &[
    ("", "ComponentStatus"),
    ("", "ConfigMap"),
    ("", "Endpoints"),
    ("", "Event"),
    ("", "LimitRange"),
    ("", "Namespace"),
    ("", "Node"),
    ("", "PersistentVolume"),
    ("", "PersistentVolumeClaim"),
    ("", "Pod"),
    ("", "PodTemplate"),
    ("", "ReplicationController"),
    ("", "ResourceQuota"),
    ("", "Secret"),
    ("", "Service"),
    ("", "ServiceAccount"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apiregistration.k8s.io", "APIService"),
    ("apps", "ControllerRevision"),
    ("apps", "DaemonSet"),
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("apps", "StatefulSet"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("batch", "CronJob"),
    ("batch", "Job"),
    ("certificates.k8s.io", "CertificateSigningRequest"),
    ("coordination.k8s.io", "Lease"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("events.k8s.io", "Event"),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"),
    ("networking.k8s.io", "IPAddress"),
    ("networking.k8s.io", "Ingress"),
    ("networking.k8s.io", "IngressClass"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("networking.k8s.io", "ServiceCIDR"),
    ("node.k8s.io", "RuntimeClass"),
    ("policy", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("resource.k8s.io", "DeviceClass"),
    ("resource.k8s.io", "ResourceClaim"),
    ("resource.k8s.io", "ResourceClaimTemplate"),
    ("resource.k8s.io", "ResourceSlice"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("storage.k8s.io", "CSIDriver"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "CSIStorageCapacity"),
    ("storage.k8s.io", "StorageClass"),
    ("storage.k8s.io", "VolumeAttachment"),
    ("storage.k8s.io", "VolumeAttributesClass"),
    ("storagemigration.k8s.io", "StorageVersionMigration"),
];

/// Each kind's strategy with its table row.
static WHOLE: LazyLock<Vec<(&'static str, &'static str, Strategy)>> = LazyLock::new(|| {
    KINDS
        .iter()
        .map(|&(group, kind)| {
            let mut strategy = own(group, kind).unwrap_or(&Strategy::GENERIC).clone();
            if let Some(row) = rows::row_for(group, kind) {
                strategy.row = row;
            }
            let rules = validation::rules_for(group, kind);
            strategy.validate = rules.validate;
            strategy.validate_update = rules.validate_update;
            strategy.validate_status = rules.validate_status;
            strategy.name = rules.name;
            // These groups are no part of upstream's own validation library.
            strategy.standard_finalizers = !matches!(
                group,
                "admissionregistration.k8s.io" | "apiextensions.k8s.io" | "apiregistration.k8s.io"
            );
            (strategy.warnings, strategy.warnings_status) = warnings::warnings_for(group, kind);
            (group, kind, strategy)
        })
        .collect()
});

/// The row of a kind; `None` if the kind has nothing beside the generic rules.
pub fn strategy_for(group: &str, kind: &str) -> Option<&'static Strategy> {
    WHOLE.iter().find(|row| row.0 == group && row.1 == kind).map(|row| &row.2)
}

fn own(group: &str, kind: &str) -> Option<&'static Strategy> {
    Some(match (group, kind) {
        ("", "ConfigMap") => &core::CONFIG_MAP,
        ("", "Endpoints") => &service::ENDPOINTS,
        ("", "Event") => &core::EVENT,
        ("", "LimitRange") => &core::LIMIT_RANGE,
        ("", "Namespace") => &core::NAMESPACE,
        ("", "Node") => &core::NODE,
        ("", "PersistentVolume") => &storage::PERSISTENT_VOLUME,
        ("", "PersistentVolumeClaim") => &storage::PERSISTENT_VOLUME_CLAIM,
        ("", "Pod") => &pod::POD,
        ("", "PodTemplate") => &workloads::POD_TEMPLATE,
        ("", "ReplicationController") => &workloads::REPLICATION_CONTROLLER,
        ("", "ResourceQuota") => &core::RESOURCE_QUOTA,
        ("", "Secret") => &core::SECRET,
        ("", "Service") => &service::SERVICE,
        ("", "ServiceAccount") => &core::SERVICE_ACCOUNT,
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => &admission::MUTATING_POLICY,
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding") => &admission::POLICY_BINDING,
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => &admission::MUTATING_WEBHOOKS,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => &admission::VALIDATING_POLICY,
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => &admission::POLICY_BINDING,
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => &admission::VALIDATING_WEBHOOKS,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => &control::CUSTOM_RESOURCE_DEFINITION,
        ("apiregistration.k8s.io", "APIService") => &control::API_SERVICE,
        ("apps", "ControllerRevision") => &workloads::CONTROLLER_REVISION,
        ("apps", "DaemonSet") => &workloads::DAEMON_SET,
        ("apps", "Deployment") => &workloads::DEPLOYMENT,
        ("apps", "ReplicaSet") => &workloads::REPLICA_SET,
        ("apps", "StatefulSet") => &workloads::STATEFUL_SET,
        ("autoscaling", "HorizontalPodAutoscaler") => &policy::HORIZONTAL_POD_AUTOSCALER,
        ("batch", "CronJob") => &batch::CRON_JOB,
        ("batch", "Job") => &batch::JOB,
        ("certificates.k8s.io", "CertificateSigningRequest") => &control::CERTIFICATE_SIGNING_REQUEST,
        ("coordination.k8s.io", "Lease") => &control::LEASE,
        ("discovery.k8s.io", "EndpointSlice") => &service::ENDPOINT_SLICE,
        ("events.k8s.io", "Event") => &core::NEW_EVENT,
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => &control::FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => &control::PRIORITY_LEVEL,
        ("networking.k8s.io", "IPAddress") => &network::IP_ADDRESS,
        ("networking.k8s.io", "Ingress") => &network::INGRESS,
        ("networking.k8s.io", "IngressClass") => &network::INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => &network::NETWORK_POLICY,
        ("networking.k8s.io", "ServiceCIDR") => &network::SERVICE_CIDR,
        ("node.k8s.io", "RuntimeClass") => &control::RUNTIME_CLASS,
        ("policy", "PodDisruptionBudget") => &policy::POD_DISRUPTION_BUDGET,
        ("rbac.authorization.k8s.io", "ClusterRole") => &access::CLUSTER_ROLE,
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => &access::CLUSTER_ROLE_BINDING,
        ("rbac.authorization.k8s.io", "Role") => &access::ROLE,
        ("rbac.authorization.k8s.io", "RoleBinding") => &access::ROLE_BINDING,
        ("resource.k8s.io", "DeviceClass") => &devices::DEVICE_CLASS,
        ("resource.k8s.io", "ResourceClaim") => &devices::RESOURCE_CLAIM,
        ("resource.k8s.io", "ResourceClaimTemplate") => &devices::RESOURCE_CLAIM_TEMPLATE,
        ("resource.k8s.io", "ResourceSlice") => &devices::RESOURCE_SLICE,
        ("scheduling.k8s.io", "PriorityClass") => &control::PRIORITY_CLASS,
        ("storage.k8s.io", "CSIDriver") => &storage::CSI_DRIVER,
        ("storage.k8s.io", "CSINode" | "CSIStorageCapacity") => &storage::CONDITIONAL,
        ("storage.k8s.io", "StorageClass") => &storage::STORAGE_CLASS,
        ("storage.k8s.io", "VolumeAttachment") => &storage::VOLUME_ATTACHMENT,
        ("storage.k8s.io", "VolumeAttributesClass") => &storage::VOLUME_ATTRIBUTES_CLASS,
        ("storagemigration.k8s.io", "StorageVersionMigration") => &storage::STORAGE_VERSION_MIGRATION,
        _ => return None,
    })
}
