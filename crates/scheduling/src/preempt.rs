//! Preemption: whose removal would make room for a pod, doing the least harm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::filter::Prepared;
use crate::selector::{is_empty, labels_of, matches};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::{Refusal, Unschedulable, VolumeNeeds, histogram};

/// What of a PodDisruptionBudget counts here.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Where it holds.
    pub namespace: String,
    /// Which pods it protects.
    pub selector: Option<LabelSelector>,
    /// How many more may go now.
    pub allowed: i32,
    /// Pods whose going is already counted.
    pub disrupted: BTreeSet<String>,
}

/// Where room can be made, and by removing whom.
#[derive(Clone, Debug)]
pub struct Preemption {
    /// The node.
    pub node: String,
    /// The pods to remove, the most important first.
    pub victims: Vec<Arc<Pod>>,
}

struct Candidate {
    node: String,
    victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

/// Looks for a node where removing pods of lower priority lets the pod in. The error is the explanation that is
/// added to the pod's event.
pub fn preempt(
    snapshot: &Snapshot,
    pod: &PodInfo,
    volumes: &VolumeNeeds,
    why: &Unschedulable,
    budgets: &[Budget],
) -> Result<Preemption, String> {
    let spec = pod.pod.spec.as_ref();
    if spec.and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.".into());
    }
    let (nodes, refusals) = match why {
        Unschedulable::Refused { nodes, refusals } => (*nodes, refusals),
        Unschedulable::Impossible { nodes, .. } => (*nodes, &BTreeMap::new()),
        Unschedulable::NoNodes => return Err(String::new()),
    };
    let nominated = pod.pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
    if let Some(name) = nominated.filter(|name| !name.is_empty())
        && refusals.get(name).is_none_or(|refusal| refusal.resolvable)
        && snapshot.node(name).is_some_and(|node| {
            node.pods.iter().any(|other| other.priority() < pod.priority() && leaving_for_another(&other.pod))
        })
    {
        return Err("not eligible due to a terminating pod on the nominated node.".into());
    }

    let mut candidates = Vec::new();
    let mut reasons = Vec::new();
    for (name, _) in refusals.iter().filter(|(_, refusal)| refusal.resolvable) {
        let Some(node) = snapshot.node(name) else { continue };
        match victims(snapshot, pod, volumes, node, budgets) {
            Ok(candidate) => candidates.push(candidate),
            Err(refusal) => reasons.extend(refusal.reasons),
        }
    }
    match pick(candidates) {
        Some(best) => Ok(Preemption {
            node: best.node,
            victims: best.victims.iter().map(|victim| victim.pod.clone()).collect(),
        }),
        None => {
            let tried = refusals.values().filter(|refusal| refusal.resolvable).count();
            let absent = nodes.saturating_sub(tried);
            reasons.extend((0..absent).map(|_| "Preemption is not helpful for scheduling".to_owned()));
            Err(histogram(nodes, reasons.iter()))
        }
    }
}

fn leaving_for_another(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
        && pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(|condition| {
            condition.type_ == "DisruptionTarget"
                && condition.status == "True"
                && condition.reason.as_deref() == Some("PreemptionByScheduler")
        })
}

fn victims(
    snapshot: &Snapshot,
    pod: &PodInfo,
    volumes: &VolumeNeeds,
    node: &Arc<NodeInfo>,
    budgets: &[Budget],
) -> Result<Candidate, Refusal> {
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|other| other.priority() < pod.priority()).cloned().collect();
    if lower.is_empty() {
        return Err(Refusal::lasting("No preemption victims found for incoming pod"));
    }
    let mut trial = node.as_ref().clone();
    for one in &lower {
        trial.remove(one.uid());
    }
    let check = |trial: &NodeInfo| {
        let mut with = snapshot.clone();
        let trial = Arc::new(trial.clone());
        with.replace(trial.name(), trial.clone());
        Prepared::new(&with, pod, volumes).check(&with, &trial)
    };
    check(&trial)?;

    lower.sort_by(by_importance);
    let (violating, other) = split_by_budgets(&lower, budgets);
    let mut removed = Vec::new();
    let mut violations = 0;
    for (one, violates) in
        violating.into_iter().map(|one| (one, true)).chain(other.into_iter().map(|one| (one, false)))
    {
        trial.add(one.clone());
        if check(&trial).is_err() {
            trial.remove(one.uid());
            violations += usize::from(violates);
            removed.push(one);
        }
    }
    removed.sort_by(by_importance);
    Ok(Candidate { node: node.name().to_owned(), victims: removed, violations })
}

fn started(pod: &PodInfo) -> Option<k8s_openapi::jiff::Timestamp> {
    Some(pod.pod.status.as_ref()?.start_time.as_ref()?.0)
}

/// The more important first: by priority, then by age.
fn by_importance(a: &Arc<PodInfo>, b: &Arc<PodInfo>) -> std::cmp::Ordering {
    let never = k8s_openapi::jiff::Timestamp::MAX;
    let key = |pod: &PodInfo| started(pod).unwrap_or(never);
    b.priority().cmp(&a.priority()).then_with(|| key(a).cmp(&key(b))).then_with(|| a.uid().cmp(b.uid()))
}

fn split_by_budgets(pods: &[Arc<PodInfo>], budgets: &[Budget]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut allowed: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    pods.iter().cloned().partition(|pod| {
        let labels = labels_of(&pod.pod.metadata.labels);
        let name = pod.pod.metadata.name.as_deref().unwrap_or_default();
        let mut violates = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            let protects = !labels.is_empty()
                && budget.namespace == pod.namespace()
                && budget
                    .selector
                    .as_ref()
                    .is_some_and(|selector| !is_empty(selector) && matches(selector, labels))
                && !budget.disrupted.contains(name);
            if protects {
                *allowed -= 1;
                violates |= *allowed < 0;
            }
        }
        violates
    })
}

/// The least harmful: fewest broken budgets, then lowest highest priority, lowest sum, fewest pods, latest start.
fn pick(candidates: Vec<Candidate>) -> Option<Candidate> {
    let highest = |one: &Candidate| one.victims.iter().map(|pod| pod.priority()).max();
    let sum = |one: &Candidate| -> i64 {
        one.victims.iter().map(|pod| i64::from(pod.priority()) + i64::from(i32::MAX) + 1).sum()
    };
    let earliest = |one: &Candidate| {
        let top = highest(one);
        one.victims.iter().filter(|pod| Some(pod.priority()) == top).filter_map(|pod| started(pod)).min()
    };
    candidates.into_iter().filter(|one| !one.victims.is_empty()).min_by(|a, b| {
        (a.violations.cmp(&b.violations))
            .then_with(|| highest(a).cmp(&highest(b)))
            .then_with(|| sum(a).cmp(&sum(b)))
            .then_with(|| a.victims.len().cmp(&b.victims.len()))
            .then_with(|| earliest(b).cmp(&earliest(a)))
    })
}
