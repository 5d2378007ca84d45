//! How many replicas a measurement asks for (upstream: `pkg/controller/podautoscaler/replica_calculator.go`). Pure. All values
//! are in thousandths.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::kit::pods::{condition, is_ready, phase};

/// How long after a pod's start its use of CPU may be that of starting up.
const INITIALIZATION: SignedDuration = SignedDuration::from_mins(5);
/// A pod that was last unready this soon after its start never was ready.
const FIRST_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What one pod was measured to use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) value: i64,
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
}

pub(super) type Samples = BTreeMap<String, Sample>;

/// By how much the ratio of use to target may differ from one before anything is changed, down and up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    fn within(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// A proposal of a number of replicas and the value that led to it, per pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    pub(super) value: i64,
    /// In percent of what is requested.
    pub(super) utilization: Option<i32>,
}

/// The target of a metric of pods.
pub(super) enum Target<'a> {
    /// An average value.
    Value(i64),
    /// A percentage of what each pod requests.
    Utilization(i32, &'a BTreeMap<String, i64>),
}

fn ceil(value: f64) -> i32 {
    // Saturates.
    value.ceil() as i32
}

struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn name_of(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Whether what a pod uses of CPU is not yet what it uses at work.
fn is_starting(pod: &Pod, sample: Sample, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let (Some(ready), Some(started)) = (condition(pod, "Ready"), started) else { return true };
    let since = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0);
    let unready = ready.status == "False";
    if started.saturating_add(INITIALIZATION).is_ok_and(|end| end > now) {
        unready || since.saturating_add(sample.window).is_ok_and(|first| sample.at < first)
    } else {
        unready && started.saturating_add(FIRST_READINESS).is_ok_and(|first| first > since)
    }
}

fn group(pods: &[Arc<Pod>], samples: &Samples, is_cpu: bool, now: Timestamp) -> Groups {
    let mut groups =
        Groups { ready: 0, unready: BTreeSet::new(), missing: BTreeSet::new(), ignored: BTreeSet::new() };
    for pod in pods {
        let name = name_of(pod).to_owned();
        if pod.metadata.deletion_timestamp.is_some() || phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else {
            match samples.get(&name) {
                None => {
                    groups.missing.insert(name);
                }
                Some(sample) if is_cpu && is_starting(pod, *sample, now) => {
                    groups.unready.insert(name);
                }
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

struct Ratio {
    ratio: f64,
    value: i64,
    utilization: Option<i32>,
}

fn ratio(samples: &Samples, target: &Target<'_>) -> Result<Ratio, String> {
    let count = i64::try_from(samples.len()).unwrap_or(i64::MAX).max(1);
    match target {
        Target::Value(target) => {
            let total: i64 = samples.values().fold(0i64, |sum, one| sum.saturating_add(one.value));
            let value = total / count;
            Ok(Ratio { ratio: value as f64 / *target as f64, value, utilization: None })
        }
        Target::Utilization(target, requests) => {
            let (mut used, mut requested, mut counted) = (0i64, 0i64, 0i64);
            for (name, sample) in samples {
                // A pod that has gone since.
                let Some(request) = requests.get(name) else { continue };
                used = used.saturating_add(sample.value);
                requested = requested.saturating_add(*request);
                counted += 1;
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let percent = i32::try_from(i128::from(used) * 100 / i128::from(requested)).unwrap_or(i32::MAX);
            Ok(Ratio {
                ratio: f64::from(percent) / f64::from(*target),
                value: used / counted.max(1),
                utilization: Some(percent),
            })
        }
    }
}

/// For a metric that each pod has.
pub(super) fn per_pod(
    current: i32,
    pods: &[Arc<Pod>],
    mut samples: Samples,
    target: &Target<'_>,
    is_cpu: bool,
    tolerances: Tolerances,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    let groups = group(pods, &samples, is_cpu, now);
    samples.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let first = ratio(&samples, target)?;
    let proposal = |replicas| Proposal { replicas, value: first.value, utilization: first.utilization };
    let up_with_unready = !groups.unready.is_empty() && first.ratio > 1.0;
    if !up_with_unready && groups.missing.is_empty() {
        if tolerances.within(first.ratio) {
            return Ok(proposal(current));
        }
        return Ok(proposal(ceil(first.ratio * groups.ready as f64)));
    }
    // What is not known is taken to be whatever changes least.
    let mut suppose = |name: &String, value: i64| {
        samples.insert(name.clone(), Sample { value, at: now, window: SignedDuration::ZERO });
    };
    for name in &groups.missing {
        if first.ratio < 1.0 {
            suppose(
                name,
                match target {
                    Target::Value(target) => *target,
                    Target::Utilization(target, requests) => {
                        let request = requests.get(name).copied().unwrap_or_default();
                        request.saturating_mul(i64::from((*target).max(100))) / 100
                    }
                },
            );
        } else if first.ratio > 1.0 {
            suppose(name, 0);
        }
    }
    if up_with_unready {
        groups.unready.iter().for_each(|name| suppose(name, 0));
    }
    let second = ratio(&samples, target)?.ratio;
    let turned = (first.ratio < 1.0 && second > 1.0) || (first.ratio > 1.0 && second < 1.0);
    if tolerances.within(second) || turned {
        return Ok(proposal(current));
    }
    let replicas = ceil(second * samples.len() as f64);
    if (second < 1.0 && replicas > current) || (second > 1.0 && replicas < current) {
        return Ok(proposal(current));
    }
    Ok(proposal(replicas))
}

/// For a metric of something else whose whole value has a target.
pub(super) fn of_whole(
    current: i32,
    pods: &[Arc<Pod>],
    value: i64,
    target: i64,
    tolerances: Tolerances,
) -> Result<Proposal, String> {
    let ratio = value as f64 / target as f64;
    let proposal = |replicas| Proposal { replicas, value, utilization: None };
    if current == 0 {
        return Ok(proposal(ceil(ratio)));
    }
    if tolerances.within(ratio) {
        return Ok(proposal(current));
    }
    if pods.is_empty() {
        let why = "no pods returned by selector while calculating replica count";
        return Err(format!("unable to calculate ready pods: {why}"));
    }
    let ready = pods.iter().filter(|pod| phase(pod) == "Running" && is_ready(pod)).count();
    Ok(proposal(ceil(ratio * ready as f64)))
}

/// For a metric of something else of which each replica is to have a share.
pub(super) fn by_share(running: i32, value: i64, share: i64, tolerances: Tolerances) -> Proposal {
    let ratio = value as f64 / (share as f64 * f64::from(running));
    let replicas = if tolerances.within(ratio) { running } else { ceil(value as f64 / share as f64) };
    // Saturates; with no replica there is no average.
    let value = (value as f64 / f64::from(running)).ceil() as i64;
    Proposal { replicas, value, utilization: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TOLERANCES: Tolerances = Tolerances { down: 0.1, up: 0.1 };

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    fn pod(name: &str, phase: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name}, "status": {"phase": phase, "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}]}});
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn samples(values: &[(&str, i64)]) -> Samples {
        let sample = |value: i64| Sample { value, at: now(), window: SignedDuration::from_secs(60) };
        values.iter().map(|(name, value)| ((*name).to_owned(), sample(*value))).collect()
    }

    #[test]
    fn utilization_of_what_is_requested() {
        let requests = BTreeMap::from(["a", "b", "c"].map(|name| (name.to_owned(), 1000)));
        let check = |pods: &[Arc<Pod>], values: &[(&str, i64)], current: i32, expected: (i32, i32)| {
            let target = Target::Utilization(50, &requests);
            let found = per_pod(current, pods, samples(values), &target, true, TOLERANCES, now());
            let found = found.expect("a proposal");
            assert_eq!((found.replicas, found.utilization), (expected.0, Some(expected.1)), "{values:?}");
        };
        let all = [pod("a", "Running"), pod("b", "Running"), pod("c", "Running")];
        check(&all, &[("a", 500), ("b", 500), ("c", 500)], 3, (3, 50));
        // Within the tolerance.
        check(&all, &[("a", 540), ("b", 540), ("c", 540)], 3, (3, 54));
        check(&all, &[("a", 1000), ("b", 1000), ("c", 1000)], 3, (6, 100));
        check(&all, &[("a", 100), ("b", 100), ("c", 100)], 3, (1, 10));
        // A pod without a measurement is taken to use everything when going down, and nothing when going up.
        check(&all, &[("a", 100), ("b", 100)], 3, (3, 10));
        check(&all, &[("a", 1000), ("b", 1000)], 3, (4, 100));
        let pending = [pod("a", "Running"), pod("b", "Running"), pod("c", "Pending")];
        check(&pending, &[("a", 1000), ("b", 1000)], 3, (4, 100));
    }

    #[test]
    fn other_metrics() {
        let pods = [pod("a", "Running"), pod("b", "Running")];
        let whole = |value| of_whole(2, &pods, value, 1000, TOLERANCES).expect("a proposal").replicas;
        assert_eq!((whole(1000), whole(2000), whole(100)), (2, 4, 1));
        assert_eq!(of_whole(0, &[], 2500, 1000, TOLERANCES).map(|one| one.replicas), Ok(3));
        let shared = by_share(2, 10_000, 1000, TOLERANCES);
        assert_eq!((shared.replicas, shared.value), (10, 5000));
        let target = Target::Value(1000);
        let none = per_pod(2, &pods, Samples::new(), &target, false, TOLERANCES, now());
        assert!(none.is_err_and(|why| why.starts_with("did not receive metrics")));
    }
}
