//! The next steps of a set: which pods to make, which to delete, in which order. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use crate::kit::history::REVISION_HASH;
use crate::kit::intstr::scaled;
use crate::kit::pods::{is_available, is_ready, is_terminal, phase};

/// One step.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Make the pod of this ordinal, of the update's revision or of the current one.
    Create { ordinal: i32, updated: bool },
    /// Delete this pod.
    Delete(String),
    /// Make what claims this pod lacks.
    Claims(String),
    /// Give this pod its label and volumes back.
    Repair(String),
}

pub(super) fn start(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or_default()
}

fn replicas(spec: &StatefulSetSpec) -> i32 {
    spec.replicas.unwrap_or(1)
}

fn minimum(spec: &StatefulSetSpec) -> i32 {
    spec.min_ready_seconds.unwrap_or_default()
}

/// The ordinal of a pod of this set, from its name.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    name.strip_prefix(set.metadata.name.as_deref()?)?
        .strip_prefix('-')?
        .parse()
        .ok()
        .filter(|number| *number >= 0)
}

/// Whether an ordinal is one that the set should have.
pub(super) fn in_range(spec: &StatefulSetSpec, ordinal: i32) -> bool {
    (start(spec)..start(spec) + replicas(spec)).contains(&ordinal)
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_running_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

fn is_usable(pod: &Pod, spec: &StatefulSetSpec, now: Timestamp) -> bool {
    phase(pod) == "Running" && is_available(pod, minimum(spec), now) && !is_leaving(pod)
}

fn has_revision(pod: &Pod, revision: &str) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(REVISION_HASH)).is_some_and(|label| label == revision)
}

fn partition(spec: &StatefulSetSpec) -> Option<i32> {
    spec.update_strategy.as_ref()?.rolling_update.as_ref()?.partition
}

fn is_rolling(spec: &StatefulSetSpec) -> bool {
    spec.update_strategy.as_ref().and_then(|one| one.type_.as_deref()) != Some("OnDelete")
}

/// Whether a new pod must be of the current revision rather than the update's.
fn keeps_current(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32) -> bool {
    let current = set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or_default();
    is_rolling(spec) && ordinal < start(spec) + partition(spec).unwrap_or(current)
}

fn is_whole(set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
    let spec = set.spec.clone().unwrap_or_default();
    let labels = pod.metadata.labels.as_ref();
    let named =
        labels.and_then(|all| all.get("statefulset.kubernetes.io/pod-name")) == pod.metadata.name.as_ref();
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.clone()).unwrap_or_default();
    named
        && spec.volume_claim_templates.iter().flatten().all(|template| {
            let template_name = template.metadata.name.clone().unwrap_or_default();
            let wanted = claim_name(set, &template_name, ordinal);
            volumes.iter().any(|volume| {
                volume.name == template_name
                    && volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.claim_name == wanted)
            })
        })
}

pub(super) fn claim_name(set: &StatefulSet, template: &str, ordinal: i32) -> String {
    format!("{template}-{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default())
}

/// The next steps. A set that is kept in order takes one at a time and waits for what is not ready; one that is
/// managed in parallel takes all at once.
pub(super) fn plan(set: &StatefulSet, pods: &[Arc<Pod>], update: &str, now: Timestamp) -> Vec<Step> {
    let spec = set.spec.clone().unwrap_or_default();
    let in_order = spec.pod_management_policy.as_deref() != Some("Parallel");
    let mut steps = Vec::new();
    let mut members = BTreeMap::<i32, &Arc<Pod>>::new();
    let mut condemned = BTreeMap::<i32, &Arc<Pod>>::new();
    for pod in pods {
        match ordinal(set, pod) {
            Some(ordinal) if in_range(&spec, ordinal) => drop(members.insert(ordinal, pod)),
            Some(ordinal) => drop(condemned.insert(ordinal, pod)),
            None => {}
        }
    }
    let wanted = start(&spec)..start(&spec) + replicas(&spec);
    let usable = |pod: &Pod| is_usable(pod, &spec, now);

    for ordinal in wanted.clone() {
        let Some(pod) = members.get(&ordinal) else {
            steps.push(Step::Create { ordinal, updated: !keeps_current(set, &spec, ordinal) });
            if in_order {
                return steps;
            }
            continue;
        };
        if is_terminal(pod) {
            if !is_leaving(pod) {
                steps.push(Step::Delete(name(pod)));
            }
            if in_order {
                return steps;
            }
            continue;
        }
        if phase(pod) == "Pending" {
            steps.push(Step::Claims(name(pod)));
        }
        if in_order && (is_leaving(pod) || !usable(pod)) {
            return steps;
        }
        if !is_whole(set, pod, ordinal) {
            steps.push(Step::Repair(name(pod)));
        }
    }

    let missing = wanted.clone().find(|ordinal| members.get(ordinal).is_none_or(|pod| !usable(pod)));
    let broken = condemned.values().find(|pod| !usable(pod)).map(|pod| name(pod));
    let first_broken = if missing.is_some() { None } else { broken };
    for pod in condemned.values().rev() {
        if is_leaving(pod) {
            if in_order {
                return steps;
            }
            continue;
        }
        let troubled = !is_running_ready(pod) || !usable(pod);
        if in_order && troubled && first_broken.as_ref() != Some(&name(pod)) {
            return steps;
        }
        steps.push(Step::Delete(name(pod)));
        if in_order {
            return steps;
        }
    }
    if !is_rolling(&spec) || !steps.iter().all(|step| matches!(step, Step::Claims(_) | Step::Repair(_))) {
        return steps;
    }

    let rolling = spec.update_strategy.as_ref().and_then(|one| one.rolling_update.as_ref());
    let allowed = rolling
        .and_then(|rolling| rolling.max_unavailable.as_ref())
        .and_then(|value| scaled(value, replicas(&spec), false))
        .unwrap_or(1)
        .max(1);
    let out = wanted.clone().filter(|ordinal| members.get(ordinal).is_none_or(|pod| !usable(pod))).count();
    let mut room = usize::try_from(allowed).unwrap_or(1).saturating_sub(out);
    let first = start(&spec) + partition(&spec).unwrap_or_default();
    for ordinal in wanted.rev().take_while(|ordinal| *ordinal >= first) {
        if room == 0 {
            break;
        }
        if let Some(pod) = members.get(&ordinal)
            && !has_revision(pod, update)
            && !is_leaving(pod)
        {
            steps.push(Step::Delete(name(pod)));
            room -= 1;
        }
    }
    steps
}

/// The status; the revision moves on when every pod has it.
pub(super) fn status(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    (current, update): (&str, &str),
    collisions: Option<i32>,
    now: Timestamp,
) -> StatefulSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let count = |holds: &dyn Fn(&Pod) -> bool| -> i32 {
        i32::try_from(pods.iter().filter(|pod| holds(pod)).count()).unwrap_or(i32::MAX)
    };
    let is_there = |pod: &Pod| !phase(pod).is_empty();
    let of = |revision: &str| count(&|pod| is_there(pod) && !is_leaving(pod) && has_revision(pod, revision));
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: count(&is_there),
        ready_replicas: Some(count(&is_running_ready)),
        available_replicas: Some(count(&|pod| {
            phase(pod) == "Running" && is_available(pod, minimum(&spec), now)
        })),
        current_replicas: Some(of(current)),
        updated_replicas: Some(of(update)),
        current_revision: Some(current.to_owned()),
        update_revision: Some(update.to_owned()),
        collision_count: Some(collisions.unwrap_or_default()),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    };
    let all = replicas(&spec);
    let everywhere =
        status.updated_replicas == Some(all) && status.ready_replicas == Some(all) && status.replicas == all;
    if is_rolling(&spec) && everywhere {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
    status
}

#[cfg(test)]
mod tests;
