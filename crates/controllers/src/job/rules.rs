//! The rules of Jobs: indexes, when a pod's failure counts, when enough has succeeded, how long to wait. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::kit::pods::phase;

pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub(super) const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LAST_BACKOFF: Duration = Duration::from_secs(600);

pub(super) type Indexes = BTreeSet<i32>;

/// Reads `1,3-5`; what cannot be read or lies past the completions is left out.
pub(super) fn parse_indexes(text: &str, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(completions - 1));
        }
    }
    indexes
}

/// Writes indexes as `1,3-5`: from three in a row on as a range.
pub(super) fn format_indexes(indexes: &Indexes) -> String {
    let mut parts = Vec::new();
    let mut rest = indexes.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while let Some(next) = rest.next_if_eq(&(last + 1)) {
            last = next;
        }
        match last - first {
            0 => parts.push(first.to_string()),
            1 => parts.push(format!("{first},{last}")),
            _ => parts.push(format!("{first}-{last}")),
        }
    }
    parts.join(",")
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// The index that a pod works on, if it is one of the job's.
pub(super) fn index_of(pod: &Pod, spec: &JobSpec) -> Option<i32> {
    let index: i32 = pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()?;
    (0..spec.completions.unwrap_or_default()).contains(&index).then_some(index)
}

fn number(pod: &Pod, key: &str) -> i32 {
    let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(key));
    annotation.and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// How often a pod's index had failed before it, and how often that did not count.
pub(super) fn index_failures(pod: &Pod) -> (i32, i32) {
    (number(pod, INDEX_FAILURES), number(pod, INDEX_IGNORED))
}

pub(super) fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Whether a pod counts as failed; one that is being deleted does unless only those that have ended are replaced.
pub(super) fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    phase(pod) == "Failed"
        || (!replaces_only_failed(spec)
            && pod.metadata.deletion_timestamp.is_some()
            && phase(pod) != "Succeeded")
}

/// What the failure policy makes of a pod's failure.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

fn exit_code<'a>(pod: &'a Pod, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let failed = |one: &'a ContainerStatus| {
        let code = one.state.as_ref()?.terminated.as_ref()?.exit_code;
        let listed = wanted.values.contains(&code);
        let matching = match wanted.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        let named = wanted.container_name.as_ref().is_none_or(|name| *name == one.name);
        (code != 0 && named && matching).then_some((one.name.as_str(), code))
    };
    let containers = status.container_statuses.iter().flatten();
    containers.chain(status.init_container_statuses.iter().flatten()).find_map(failed)
}

/// The first rule of the policy that matches decides.
pub(super) fn judge(pod: &Pod, spec: &JobSpec) -> Verdict {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    for (at, rule) in rules.enumerate() {
        let why = if let Some(wanted) = &rule.on_exit_codes {
            exit_code(pod, wanted).map(|(container, code)| {
                format!("Container {container} for pod {namespace}/{name} failed with exit code {code}")
            })
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let found = conditions.find(|condition| {
                patterns.iter().any(|pattern| {
                    condition.type_ == pattern.type_
                        && condition.status == pattern.status.as_deref().unwrap_or("True")
                })
            });
            found.map(|condition| format!("Pod {namespace}/{name} has condition {}", condition.type_))
        };
        let Some(why) = why else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {at}")),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// The rule of the success policy that is met, in words.
pub(super) fn succeeds(
    policy: Option<&SuccessPolicy>,
    completions: i32,
    succeeded: &Indexes,
) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let enough = |count: usize, wanted: i32| count >= usize::try_from(wanted).unwrap_or_default();
    let met =
        policy?.rules.iter().position(|rule| match (&rule.succeeded_indexes, rule.succeeded_count) {
            (Some(text), count) => {
                let wanted = parse_indexes(text, completions);
                let got = wanted.intersection(succeeded).count();
                !wanted.is_empty() && (got == wanted.len() || count.is_some_and(|count| enough(got, count)))
            }
            (None, Some(count)) => enough(succeeded.len(), count),
            (None, None) => false,
        })?;
    Some(format!("Matched rules at index {met}"))
}

/// Whether containers that are restarted in place have failed too often.
pub(super) fn restarts_exceed(spec: &JobSpec, pods: &[std::sync::Arc<Pod>]) -> bool {
    let policy = spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let statuses = pods
        .iter()
        .filter(|pod| matches!(phase(pod), "Running" | "Pending"))
        .filter_map(|pod| pod.status.as_ref())
        .flat_map(|status| {
            let containers = status.container_statuses.iter().flatten();
            containers.chain(status.init_container_statuses.iter().flatten())
        });
    let restarts: i32 = statuses.map(|status| status.restart_count).sum();
    match spec.backoff_limit.unwrap_or(6) {
        0 => restarts > 0,
        limit => restarts >= limit,
    }
}

/// When a pod ended.
pub(super) fn finished_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends = statuses.filter_map(|one| one.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let meta = &pod.metadata;
    let otherwise =
        || meta.deletion_timestamp.as_ref().or(meta.creation_timestamp.as_ref()).map(|time| time.0);
    ends.map(|time| time.0).max().or_else(otherwise)
}

/// How long to wait after so many failures in a row before another pod is made.
pub(super) fn backoff(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => {
            let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
            FIRST_BACKOFF.saturating_mul(factor).min(LAST_BACKOFF)
        }
    }
}

/// The status of one of a job's conditions.
pub(super) fn has_condition(job: &Job, kind: &str) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == kind && one.status == "True")
}

pub(crate) fn is_finished(job: &Job) -> bool {
    has_condition(job, "Complete") || has_condition(job, "Failed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn indexes_read_and_written() {
        for text in ["", "0", "1,2", "1,3-5,7", "0-99"] {
            assert_eq!(format_indexes(&parse_indexes(text, 100)), text);
        }
        assert_eq!(format_indexes(&parse_indexes("3-9,x", 5)), "3,4");
    }

    #[test]
    fn the_failure_policy() {
        let spec: JobSpec = serde_json::from_value(json!({"template": {}, "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"containerName": "c", "operator": "NotIn", "values": [1]}},
        ]}}))
        .expect("a spec");
        let check = |status: serde_json::Value, expected: Verdict| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "d"}, "status": status,
            }))
            .expect("a pod");
            assert_eq!(judge(&pod, &spec), expected);
        };
        let ended = |code: i32| {
            json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code}}}]})
        };
        check(json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}]}), Verdict::Ignore);
        let why = "Container c for pod d/p failed with exit code 42 matching FailJob rule at index 1";
        check(ended(42), Verdict::FailJob(why.into()));
        check(ended(7), Verdict::FailIndex);
        check(ended(1), Verdict::Count);
    }

    #[test]
    fn the_success_policy() {
        let policy: SuccessPolicy = serde_json::from_value(json!({"rules": [
            {"succeededIndexes": "0-2", "succeededCount": 2}, {"succeededCount": 4},
        ]}))
        .expect("a policy");
        let check = |indexes: &str| succeeds(Some(&policy), 10, &parse_indexes(indexes, 10));
        assert_eq!(check("0,5,6"), None);
        assert_eq!(check("0,2").as_deref(), Some("Matched rules at index 0"));
        assert_eq!(check("5-8").as_deref(), Some("Matched rules at index 1"));
    }

    #[test]
    fn the_backoff_doubles_up_to_ten_minutes() {
        let seconds: Vec<_> = [0, 1, 2, 3, 9].map(|failures| backoff(failures).as_secs()).into();
        assert_eq!(seconds, [0, 10, 20, 40, 600]);
    }
}
