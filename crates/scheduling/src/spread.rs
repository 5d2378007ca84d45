//! Topology spread constraints (KEP-895, with minDomains, matchLabelKeys and the inclusion policies).

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::Refusal;
use crate::selector::{Labels, is_empty, matches, node_affinity, untolerated};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

const HOSTNAME: &str = "kubernetes.io/hostname";

struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: usize,
    selector: Option<LabelSelector>,
    own: Labels,
    honor_affinity: bool,
    honor_taints: bool,
}

impl Constraint {
    fn of(pod: &PodInfo, when: &str) -> Vec<Self> {
        let constraints = pod
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.topology_spread_constraints.as_ref())
            .into_iter()
            .flatten();
        constraints.filter(|one| one.when_unsatisfiable == when).map(|one| Self::new(one, pod)).collect()
    }

    fn new(from: &TopologySpreadConstraint, pod: &PodInfo) -> Self {
        let keys = from.match_label_keys.iter().flatten();
        Self {
            key: from.topology_key.clone(),
            max_skew: i64::from(from.max_skew),
            min_domains: from.min_domains.and_then(|count| usize::try_from(count).ok()).unwrap_or(1),
            selector: from.label_selector.clone(),
            own: keys.filter_map(|key| Some((key.clone(), pod.labels().get(key)?.clone()))).collect(),
            honor_affinity: from.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: from.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| matches(selector, labels))
            && self.own.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    fn includes(&self, pod: &PodInfo, info: &NodeInfo) -> bool {
        let Some(node) = &info.node else { return false };
        if self.honor_affinity && !node_affinity(&pod.pod, node) {
            return false;
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let tolerations = pod.pod.spec.as_ref().and_then(|spec| spec.tolerations.as_ref());
        !self.honor_taints || untolerated(taints, tolerations, &["NoSchedule", "NoExecute"]).is_none()
    }

    fn count(&self, pod: &PodInfo, info: &NodeInfo) -> i64 {
        let Some(selector) = &self.selector else { return 0 };
        if is_empty(selector) && self.own.is_empty() {
            return 0;
        }
        let like = info.pods.iter().filter(|other| {
            other.pod.metadata.deletion_timestamp.is_none()
                && other.namespace() == pod.namespace()
                && self.selects(other.labels())
        });
        i64::try_from(like.count()).unwrap_or(i64::MAX)
    }
}

fn has_all_keys(constraints: &[Constraint], node: &NodeInfo) -> bool {
    constraints.iter().all(|constraint| node.labels().contains_key(&constraint.key))
}

/// Pods per domain, for each constraint that must hold.
pub(crate) struct SpreadState {
    constraints: Vec<(Constraint, HashMap<String, i64>)>,
}

impl SpreadState {
    pub(crate) fn new(snapshot: &Snapshot, pod: &PodInfo) -> Self {
        let constraints = Constraint::of(pod, "DoNotSchedule");
        let mut domains: Vec<HashMap<String, i64>> = constraints.iter().map(|_| HashMap::new()).collect();
        if !constraints.is_empty() {
            for node in snapshot.nodes().filter(|node| has_all_keys(&constraints, node)) {
                for (constraint, domains) in constraints.iter().zip(&mut domains) {
                    if constraint.includes(pod, node)
                        && let Some(value) = node.labels().get(&constraint.key)
                    {
                        *domains.entry(value.clone()).or_default() += constraint.count(pod, node);
                    }
                }
            }
        }
        Self { constraints: constraints.into_iter().zip(domains).collect() }
    }

    pub(crate) fn check(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
        for (constraint, domains) in &self.constraints {
            let Some(value) = node.labels().get(&constraint.key) else {
                return Err(Refusal::lasting(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let fewest = if domains.len() < constraint.min_domains {
                0
            } else {
                domains.values().min().copied().unwrap_or(i64::from(i32::MAX))
            };
            let itself = i64::from(constraint.selects(pod.labels()));
            let here = domains.get(value).copied().unwrap_or_default();
            if here + itself - fewest > constraint.max_skew {
                return Err(Refusal::resolvable("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }
}

/// The score for each node by the constraints that should hold, already on the scale of 0 to 100; `None` if there
/// are no such constraints.
pub(crate) fn scores(snapshot: &Snapshot, pod: &PodInfo, nodes: &[&Arc<NodeInfo>]) -> Option<Vec<i64>> {
    let constraints = Constraint::of(pod, "ScheduleAnyway");
    if constraints.is_empty() {
        return None;
    }
    let counted: Vec<bool> = nodes.iter().map(|node| has_all_keys(&constraints, node)).collect();
    let known = || nodes.iter().zip(&counted).filter(|(_, counted)| **counted).map(|(node, _)| node);
    let mut domains = Vec::new();
    for constraint in &constraints {
        let mut counts: HashMap<String, i64> =
            known().filter_map(|node| Some((node.labels().get(&constraint.key)?.clone(), 0))).collect();
        for node in snapshot.nodes().filter(|node| has_all_keys(&constraints, node)) {
            if constraint.includes(pod, node)
                && let Some(count) =
                    node.labels().get(&constraint.key).and_then(|value| counts.get_mut(value))
            {
                *count += constraint.count(pod, node);
            }
        }
        let size = if constraint.key == HOSTNAME { known().count() } else { counts.len() };
        // Few domains weigh less than many: the reference's log(size + 2).
        domains.push((constraint, counts, ((size + 2) as f64).ln()));
    }
    let raw = |node: &NodeInfo| -> i64 {
        let sum: f64 = domains
            .iter()
            .filter_map(|(constraint, counts, weight)| {
                let value = node.labels().get(&constraint.key)?;
                let count = if constraint.key == HOSTNAME {
                    constraint.count(pod, node)
                } else {
                    counts.get(value).copied().unwrap_or_default()
                };
                Some(count as f64 * weight + (constraint.max_skew - 1) as f64)
            })
            .sum();
        sum.round() as i64
    };
    let raw: Vec<Option<i64>> =
        nodes.iter().zip(&counted).map(|(node, counted)| counted.then(|| raw(node))).collect();
    let least = raw.iter().flatten().min().copied().unwrap_or_default();
    let most = raw.iter().flatten().max().copied().unwrap_or_default();
    let scaled = raw.into_iter().map(|score| match score {
        None => 0,
        Some(_) if most == 0 => 100,
        Some(score) => 100 * (most + least - score) / most,
    });
    Some(scaled.collect())
}
