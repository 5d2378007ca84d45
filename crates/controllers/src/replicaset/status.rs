//! The status of a set from its pods.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use scheduling::selector::{contains, labels_of};

use super::{Replicated, ready_count};
use crate::kit::pods::is_available;
use crate::kit::{Error, time};

/// A condition of either kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Condition {
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) since: Option<Time>,
}

/// The status of either kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Status {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    /// Only ReplicaSets have it.
    pub(crate) terminating: Option<i32>,
    pub(crate) observed_generation: Option<i64>,
    pub(crate) conditions: Vec<Condition>,
}

pub(super) fn plan<K: Replicated>(
    set: &K,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&Error>,
    now: Timestamp,
) -> Status {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let template = set.template().metadata.and_then(|meta| meta.labels);
    let labelled = active.iter().filter(|pod| contains(labels_of(&pod.metadata.labels), template.as_ref()));
    let minimum = set.min_ready_seconds();
    let old = set.status();
    let mut conditions = old.conditions;
    let failing = conditions.iter().any(|one| one.kind == "ReplicaFailure");
    match failure {
        Some(error) if !failing => {
            let missing = count(active.len()) < set.replicas();
            conditions.push(Condition {
                kind: "ReplicaFailure".into(),
                status: "True".into(),
                reason: Some(if missing { "FailedCreate" } else { "FailedDelete" }.into()),
                message: Some(error.message()),
                since: Some(time(now)),
            });
        }
        None if failing => conditions.retain(|one| one.kind != "ReplicaFailure"),
        _ => {}
    }
    Status {
        replicas: count(active.len()),
        fully_labeled: count(labelled.count()),
        ready: ready_count(active),
        available: count(active.iter().filter(|pod| is_available(pod, minimum, now)).count()),
        terminating: K::HAS_TERMINATING.then(|| count(terminating)),
        observed_generation: old.observed_generation,
        conditions,
    }
}
