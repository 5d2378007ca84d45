//! What is written: the binding, the condition that says why not, and the removal of pods for a better one.

use informer::{EventType, reference};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use scheduling::{PodInfo, Preemption};
use serde_json::{Value, json};

use crate::core::Core;

impl Core {
    /// Binds an assumed pod; what fails is taken back and tried again.
    pub(crate) async fn bind(&self, info: &PodInfo, node: &str) {
        let pod = &info.pod;
        let name = pod.metadata.name.clone().unwrap_or_default();
        let namespace = info.namespace();
        if let Err(error) = self.volumes.bind(&self.client, pod, node).await {
            self.bind_failed(info, &error);
            return;
        }
        let pending = || {
            let message = format!("waiting for binding conditions for device on node {node}");
            self.recorder.event(
                reference(pod.as_ref()),
                EventType::Normal,
                "BindingConditionsPending",
                message,
            );
        };
        if let Err(error) = self.claims.bind(&self.client, pod, pending).await {
            self.claims.undo(&self.client, pod).await;
            self.bind_failed(info, &error);
            return;
        }
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                uid: pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let with = PostParams::default();
        match api.create_subresource::<_, Value>("binding", &name, &with, &binding).await {
            Ok(_) => {
                self.claims.bound(pod);
                self.recorder.event(
                    reference(pod.as_ref()),
                    EventType::Normal,
                    "Scheduled",
                    format!("Successfully assigned {namespace}/{name} to {node}"),
                );
            }
            Err(error) => {
                self.claims.undo(&self.client, pod).await;
                match error {
                    kube::Error::Api(status) if status.code == 404 => self.unassume(info),
                    error => self.bind_failed(info, &error),
                }
            }
        }
    }

    fn bind_failed(&self, info: &PodInfo, error: &dyn std::fmt::Display) {
        tracing::debug!(pod = %informer::Key::of(info.pod.as_ref()), %error, "binding failed");
        self.unassume(info);
        let message = format!("binding rejected: {error}");
        self.recorder.event(reference(info.pod.as_ref()), EventType::Warning, "FailedScheduling", message);
    }

    /// Writes the condition that says why a pod waits, unless it already says so.
    pub(crate) async fn report_refusal(&self, pod: &Pod, message: &str, preemption: Option<&Preemption>) {
        let status = pod.status.as_ref();
        let old = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| conditions.iter().find(|one| one.type_ == "PodScheduled"));
        let same = old.is_some_and(|old| {
            old.status == "False"
                && old.reason.as_deref() == Some("Unschedulable")
                && old.message.as_deref() == Some(message)
        });
        let nominated = status.and_then(|status| status.nominated_node_name.as_deref());
        let nominate = preemption.map(|preemption| preemption.node.as_str());
        if same && (nominate.is_none() || nominate == nominated) {
            return;
        }
        let since = old.filter(|old| old.status == "False").and_then(|old| old.last_transition_time.clone());
        let condition = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.to_owned()),
            last_transition_time: since.or_else(|| Some(Time(jiff::Timestamp::now()))),
            observed_generation: old.and_then(|old| old.observed_generation),
            ..PodCondition::default()
        };
        let mut patch = json!({"status": {"conditions": [condition]}});
        if let Some(node) = nominate {
            patch["status"]["nominatedNodeName"] = json!(node);
        }
        self.patch_status(pod, patch).await;
    }

    async fn patch_status(&self, pod: &Pod, patch: Value) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let mut patch = patch;
        patch["metadata"] = json!({"uid": pod.metadata.uid});
        if let Err(error) = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            tracing::debug!(pod = %informer::Key::of(pod), %error, "the pod's status was not written");
        }
    }

    /// Removes pods to make room for a better one.
    pub(crate) async fn evict(&self, pod: &Pod, preemption: &Preemption) {
        for victim in &preemption.victims {
            let namespace = victim.metadata.namespace.as_deref().unwrap_or_default();
            let name = victim.metadata.name.as_deref().unwrap_or_default();
            if victim.metadata.deletion_timestamp.is_none() {
                let condition = PodCondition {
                    type_: "DisruptionTarget".into(),
                    status: "True".into(),
                    reason: Some("PreemptionByScheduler".into()),
                    message: Some(format!("{}: preempting to accommodate a higher priority pod", self.name)),
                    last_transition_time: Some(Time(jiff::Timestamp::now())),
                    ..PodCondition::default()
                };
                self.patch_status(victim, json!({"status": {"conditions": [condition]}})).await;
                let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
                if let Err(error) = api.delete(name, &DeleteParams::default()).await {
                    tracing::debug!(pod = %informer::Key::of(victim.as_ref()), %error, "preemption failed");
                    continue;
                }
                let message = format!(
                    "Preempted by pod {} on node {}",
                    pod.metadata.uid.as_deref().unwrap_or_default(),
                    preemption.node
                );
                self.recorder.event(reference(victim.as_ref()), EventType::Normal, "Preempted", message);
            }
        }
    }
}
