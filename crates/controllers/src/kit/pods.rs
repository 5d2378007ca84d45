//! Questions about pods, and making them from a template.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use informer::{EventType, Object, Recorder, reference};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Client, Resource};

use super::error::found;
use super::refs::reference_to;
use super::{Error, Result, plus_seconds, until};

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither ended nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// On its way out and not yet ended.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|one| one.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|one| one.status == "True")
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|one| one.status == "True")?;
    Some(ready.last_transition_time.as_ref()?.0)
}

/// Ready for at least as long as asked.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod)
        && (min_ready_seconds == 0
            || ready_since(pod).is_some_and(|since| plus_seconds(since, i64::from(min_ready_seconds)) <= now))
}

/// When the next of the pods that are ready becomes available.
pub(crate) fn next_available(pods: &[Arc<Pod>], min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if min_ready_seconds == 0 {
        return None;
    }
    let at = |pod: &Arc<Pod>| until(plus_seconds(ready_since(pod)?, i64::from(min_ready_seconds)), now);
    pods.iter().filter_map(at).min()
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn restarts(pod: &Pod) -> (i32, i32) {
    let status = pod.status.as_ref();
    let most = |statuses: Option<&Vec<k8s_openapi::api::core::v1::ContainerStatus>>,
                counts: &dyn Fn(&str) -> bool| {
        statuses.into_iter().flatten().filter(|one| counts(&one.name)).map(|one| one.restart_count).max()
    };
    let sidecar = |name: &str| {
        pod.spec
            .iter()
            .flat_map(|spec| spec.init_containers.iter().flatten())
            .any(|container| container.name == name && container.restart_policy.as_deref() == Some("Always"))
    };
    (
        most(status.and_then(|status| status.container_statuses.as_ref()), &|_| true).unwrap_or_default(),
        most(status.and_then(|status| status.init_container_statuses.as_ref()), &sidecar).unwrap_or_default(),
    )
}

/// Newer first, where ages of the same power of two count as equal.
fn by_age(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let rank = |at: Timestamp| {
        let age = now.duration_since(at).as_nanos();
        if age > 0 { i64::from(age.ilog2()) } else { -1 }
    };
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) => rank(a).cmp(&rank(b)),
    }
}

/// Which of two pods to delete first: the less far come, the more crowded, the younger, the more troubled.
pub(crate) fn deletion_order(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    let stage = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |pod: &Pod| -> i32 {
        let annotations = pod.metadata.annotations.as_ref();
        let cost = annotations.and_then(|all| all.get("controller.kubernetes.io/pod-deletion-cost"));
        cost.and_then(|cost| cost.parse().ok()).unwrap_or_default()
    };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let ((a, rank_a), (b, rank_b)) = (a, b);
    (!node_name(a).is_empty())
        .cmp(&!node_name(b).is_empty())
        .then_with(|| stage(a).cmp(&stage(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(|| by_age(ready_since(a), ready_since(b), now))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| by_age(created(a), created(b), now))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// A pod as a template describes it, controlled by `owner`.
pub(crate) fn from_template<O: Resource<DynamicType = ()>>(template: &PodTemplateSpec, owner: &O) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: owner.meta().name.as_ref().map(|name| format!("{name}-")),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![reference_to(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates a pod and records it with its owner.
pub(crate) async fn create<O>(client: Client, recorder: Recorder, owner: Arc<O>, pod: Pod) -> Result<Pod>
where
    O: Object + Resource<DynamicType = ()>,
{
    let api = Api::<Pod>::namespaced(client, owner.meta().namespace.as_deref().unwrap_or_default());
    match api.create(&PostParams::default(), &pod).await {
        Ok(pod) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Created pod: {name}");
            recorder.event(reference(owner.as_ref()), EventType::Normal, "SuccessfulCreate", message);
            Ok(pod)
        }
        Err(error) => {
            let error = Error::from(error);
            if !error.is_namespace_terminating() {
                let message = format!("Error creating: {}", error.message());
                recorder.event(reference(owner.as_ref()), EventType::Warning, "FailedCreate", message);
            }
            Err(error)
        }
    }
}

/// Deletes a pod and records it with its owner; `false` if it was gone already.
pub(crate) async fn delete<O>(
    client: Client,
    recorder: Recorder,
    owner: Arc<O>,
    pod: Arc<Pod>,
) -> Result<bool>
where
    O: Object + Resource<DynamicType = ()>,
{
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api = Api::<Pod>::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or_default());
    let params = DeleteParams::default()
        .preconditions(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
    match found(api.delete(name, &params).await) {
        Ok(deleted) => {
            if deleted.is_some() {
                let message = format!("Deleted pod: {name}");
                recorder.event(reference(owner.as_ref()), EventType::Normal, "SuccessfulDelete", message);
            }
            Ok(deleted.is_some())
        }
        // The name now belongs to another pod.
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => {
            let message = format!("Error deleting: {}", error.message());
            recorder.event(reference(owner.as_ref()), EventType::Warning, "FailedDelete", message);
            Err(error)
        }
    }
}
