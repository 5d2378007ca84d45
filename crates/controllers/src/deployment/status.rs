//! The status of a deployment: counts over its sets, and whether it gets on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetStatus,
};

use super::{Controller, plan, spec_of};
use crate::kit::{Result, now, plus_seconds, time, until};

pub(super) const PROGRESSING: &str = "Progressing";
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub(super) const PAUSED: &str = "DeploymentPaused";
const AVAILABLE: &str = "NewReplicaSetAvailable";

pub(super) fn has_deadline(spec: &DeploymentSpec) -> bool {
    spec.progress_deadline_seconds.is_some_and(|seconds| seconds != i32::MAX)
}

pub(super) fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|one| one.type_ == kind)
}

/// Sets a condition unless it already has this status and reason.
pub(super) fn set(
    status: &mut DeploymentStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let old = condition(status, kind);
    if old.is_some_and(|old| old.status == value && old.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = old.filter(|old| old.status == value).and_then(|old| old.last_transition_time.clone());
    let new = DeploymentCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(time(now)),
        last_transition_time: since.or_else(|| Some(time(now))),
    };
    remove(status, kind);
    status.conditions.get_or_insert_default().push(new);
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|one| one.type_ != kind);
    }
}

/// Whether all pods are of the new revision and available.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let desired = Some(plan::desired(&spec_of(deployment)));
    let count = |number: Option<i32>| Some(number.unwrap_or_default());
    count(status.updated_replicas) == desired
        && count(status.replicas) == desired
        && count(status.available_replicas) == desired
        && status.observed_generation >= deployment.metadata.generation
}

fn counts(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> DeploymentStatus {
    let spec = spec_of(deployment);
    let sum = |of: &dyn Fn(&ReplicaSet, &ReplicaSetStatus) -> i32| -> i32 {
        old.iter().chain(new).map(|set| of(set, &set.status.clone().unwrap_or_default())).sum()
    };
    let available = sum(&|_, status| status.available_replicas.unwrap_or_default());
    let total = sum(&|set, _| plan::size(set));
    let terminating = old.iter().chain(new).try_fold(0, |sum, set| {
        let status = set.status.clone().unwrap_or_default();
        match status.terminating_replicas {
            Some(count) => Some(sum + count),
            None if status.observed_generation.unwrap_or_default() == 0 => Some(sum),
            None => None,
        }
    });
    let before = deployment.status.clone().unwrap_or_default();
    let updated = new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(&|_, status| status.replicas)),
        updated_replicas: Some(updated),
        ready_replicas: Some(sum(&|_, status| status.ready_replicas.unwrap_or_default())),
        available_replicas: Some(available),
        unavailable_replicas: Some((total - available).max(0)),
        terminating_replicas: terminating,
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let (value, reason, message) = if available >= plan::desired(&spec) - plan::max_unavailable(&spec) {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status, "Available", value, reason, message.to_owned(), now);
    status
}

/// The status while rolling out, with what it says about progress.
fn progress(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> DeploymentStatus {
    let spec = spec_of(deployment);
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = counts(deployment, new, old, now);
    if !has_deadline(&spec) {
        remove(&mut status, PROGRESSING);
    }
    let current = condition(&before, PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|one| one.reason.as_deref()).unwrap_or_default();
    let done = status.replicas == status.updated_replicas && reason == AVAILABLE;
    let about = match new {
        Some(set) => format!("ReplicaSet {:?}", set.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if has_deadline(&spec) && !done {
        if is_complete(deployment, &status) {
            set(
                &mut status,
                PROGRESSING,
                "True",
                AVAILABLE,
                format!("{about} has successfully progressed."),
                now,
            );
        } else if has_progressed(&before, &status) {
            // Set anew also with the same reason: the time of the update is what the deadline counts from.
            let since = current
                .as_ref()
                .filter(|one| one.status == "True")
                .and_then(|one| one.last_transition_time.clone());
            remove(&mut status, PROGRESSING);
            set(
                &mut status,
                PROGRESSING,
                "True",
                "ReplicaSetUpdated",
                format!("{about} is progressing."),
                now,
            );
            if let (Some(since), Some(one)) =
                (since, status.conditions.as_mut().and_then(|conditions| conditions.last_mut()))
            {
                one.last_transition_time = Some(since);
            }
        } else if has_timed_out(&spec, current.as_ref(), now) {
            set(
                &mut status,
                PROGRESSING,
                "False",
                TIMED_OUT,
                format!("{about} has timed out progressing."),
                now,
            );
        }
    }
    let failure = new.into_iter().chain(old).find_map(|set| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|one| one.type_ == "ReplicaFailure")
    });
    match failure {
        Some(failure) => {
            let message = failure.message.clone().unwrap_or_default();
            let reason = failure.reason.clone().unwrap_or_default();
            set(&mut status, "ReplicaFailure", &failure.status, &reason, message, now);
        }
        None => remove(&mut status, "ReplicaFailure"),
    }
    status
}

fn has_progressed(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    let count = |number: Option<i32>| number.unwrap_or_default();
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(now.updated_replicas) > count(before.updated_replicas)
        || old(now) < old(before)
        || count(now.ready_replicas) > count(before.ready_replicas)
        || count(now.available_replicas) > count(before.available_replicas)
}

fn deadline(spec: &DeploymentSpec, progressing: &DeploymentCondition) -> Option<Timestamp> {
    let seconds = spec.progress_deadline_seconds?;
    Some(plus_seconds(progressing.last_update_time.as_ref()?.0, i64::from(seconds)))
}

fn has_timed_out(spec: &DeploymentSpec, current: Option<&DeploymentCondition>, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref().unwrap_or_default() {
        AVAILABLE => false,
        TIMED_OUT => true,
        _ => deadline(spec, current).is_some_and(|deadline| deadline < now),
    }
}

impl Controller {
    pub(super) async fn sync_status(
        &self,
        deployment: &Deployment,
        new: Option<&Arc<ReplicaSet>>,
        old: &[Arc<ReplicaSet>],
    ) -> Result<Option<Duration>> {
        let status = counts(deployment, new, old, now());
        if !same(deployment.status.as_ref(), &status) {
            let mut copy = deployment.clone();
            copy.status = Some(status);
            self.write_status(&mut copy).await?;
        }
        Ok(None)
    }

    /// Writes the status; if there is nothing to write, says when the deadline must be looked at.
    pub(super) async fn sync_progress(
        &self,
        deployment: &Deployment,
        new: Option<&Arc<ReplicaSet>>,
        old: &[Arc<ReplicaSet>],
    ) -> Result<Option<Duration>> {
        let now = now();
        let status = progress(deployment, new, old, now);
        if !same(deployment.status.as_ref(), &status) {
            let mut copy = deployment.clone();
            copy.status = Some(status);
            self.write_status(&mut copy).await?;
            return Ok(None);
        }
        let spec = spec_of(deployment);
        let Some(current) = condition(&status, PROGRESSING).filter(|_| has_deadline(&spec)) else {
            return Ok(None);
        };
        if is_complete(deployment, &status) || current.reason.as_deref() == Some(TIMED_OUT) {
            return Ok(None);
        }
        let left = deadline(&spec, current).and_then(|deadline| until(deadline, now)).unwrap_or_default();
        Ok(Some(left + Duration::from_secs(1)))
    }
}

/// Whether two statuses say the same; a count that is left out is none.
fn same(a: Option<&DeploymentStatus>, b: &DeploymentStatus) -> bool {
    let plain = |status: &DeploymentStatus| {
        let mut status = status.clone();
        for count in [
            &mut status.replicas,
            &mut status.updated_replicas,
            &mut status.ready_replicas,
            &mut status.available_replicas,
            &mut status.unavailable_replicas,
        ] {
            count.get_or_insert_default();
        }
        status.conditions.take_if(|conditions| conditions.is_empty());
        status
    };
    a.is_some_and(|a| plain(a) == plain(b))
}
