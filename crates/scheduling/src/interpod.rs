//! Affinity and anti-affinity between pods: counts of matching pods by topology value.

use std::collections::HashMap;

use crate::Refusal;
use crate::selector::Labels;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot, Term};

type Counts = HashMap<(String, String), i64>;

/// Matching pods per topology key and value.
pub(crate) struct AffinityState {
    /// Pods already placed that want none like this pod near.
    refused_by: Counts,
    affinity: Counts,
    anti_affinity: Counts,
    matches_itself: bool,
}

fn count(counts: &mut Counts, labels: &Labels, key: &str) {
    if let Some(value) = labels.get(key) {
        *counts.entry((key.to_owned(), value.clone())).or_default() += 1;
    }
}

fn matches_all(terms: &[Term], other: &PodInfo, snapshot: &Snapshot) -> bool {
    !terms.is_empty() && terms.iter().all(|term| term.matches(&other.pod, &snapshot.namespaces))
}

impl AffinityState {
    pub(crate) fn new(snapshot: &Snapshot, pod: &PodInfo) -> Self {
        let mut state = Self {
            refused_by: Counts::new(),
            affinity: Counts::new(),
            anti_affinity: Counts::new(),
            matches_itself: matches_all(&pod.affinity, pod, snapshot),
        };
        let wants = !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        for node in snapshot.nodes() {
            if !wants && node.with_anti_affinity == 0 {
                continue;
            }
            for other in &node.pods {
                for term in &other.anti_affinity {
                    if term.matches(&pod.pod, &snapshot.namespaces) {
                        count(&mut state.refused_by, node.labels(), &term.topology_key);
                    }
                }
                if matches_all(&pod.affinity, other, snapshot) {
                    for term in &pod.affinity {
                        count(&mut state.affinity, node.labels(), &term.topology_key);
                    }
                }
                for term in &pod.anti_affinity {
                    if term.matches(&other.pod, &snapshot.namespaces) {
                        count(&mut state.anti_affinity, node.labels(), &term.topology_key);
                    }
                }
            }
        }
        state
    }

    pub(crate) fn check(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Refusal> {
        let near = |counts: &Counts, key: &str| {
            let value = node.labels().get(key)?;
            Some(counts.get(&(key.to_owned(), value.clone())).copied().unwrap_or_default())
        };
        let mut all_near = true;
        for term in &pod.affinity {
            match near(&self.affinity, &term.topology_key) {
                None => return Err(Refusal::lasting("node(s) didn't match pod affinity rules")),
                Some(0) => all_near = false,
                Some(_) => {}
            }
        }
        // The first pod of a group that wants to be together may go anywhere.
        if !(all_near || self.affinity.is_empty() && self.matches_itself) {
            return Err(Refusal::lasting("node(s) didn't match pod affinity rules"));
        }
        if pod
            .anti_affinity
            .iter()
            .any(|term| near(&self.anti_affinity, &term.topology_key).is_some_and(|count| count > 0))
        {
            return Err(Refusal::resolvable("node(s) didn't match pod anti-affinity rules"));
        }
        if !self.refused_by.is_empty()
            && node.labels().iter().any(|(key, value)| {
                self.refused_by.get(&(key.clone(), value.clone())).is_some_and(|count| *count > 0)
            })
        {
            return Err(Refusal::resolvable("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }
}

/// The preference for each node, raw.
pub(crate) fn preferences(
    snapshot: &Snapshot,
    pod: &PodInfo,
    nodes: &[&std::sync::Arc<NodeInfo>],
) -> Vec<i64> {
    let has_own = !pod.preferred_affinity.is_empty() || !pod.preferred_anti_affinity.is_empty();
    let mut weights = Counts::new();
    let mut add = |node: &NodeInfo, key: &str, weight: i64| {
        if let Some(value) = node.labels().get(key) {
            *weights.entry((key.to_owned(), value.clone())).or_default() += weight;
        }
    };
    let means = |term: &Term, pod: &PodInfo| term.matches(&pod.pod, &snapshot.namespaces);
    for node in snapshot.nodes() {
        if !has_own && node.with_affinity == 0 {
            continue;
        }
        for other in &node.pods {
            for term in pod.preferred_affinity.iter().filter(|term| means(term, other)) {
                add(node, &term.topology_key, term.weight);
            }
            for term in pod.preferred_anti_affinity.iter().filter(|term| means(term, other)) {
                add(node, &term.topology_key, -term.weight);
            }
            // A required term of a placed pod counts as a slight preference the other way round.
            for term in other.affinity.iter().filter(|term| means(term, pod)) {
                add(node, &term.topology_key, 1);
            }
            for term in other.preferred_affinity.iter().filter(|term| means(term, pod)) {
                add(node, &term.topology_key, term.weight);
            }
            for term in other.preferred_anti_affinity.iter().filter(|term| means(term, pod)) {
                add(node, &term.topology_key, -term.weight);
            }
        }
    }
    let of = |node: &&std::sync::Arc<NodeInfo>| -> i64 {
        weights
            .iter()
            .filter(|((key, value), _)| node.labels().get(key) == Some(value))
            .map(|(_, sum)| sum)
            .sum()
    };
    nodes.iter().map(of).collect()
}
