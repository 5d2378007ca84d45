//! Where a pod should run: `plan(snapshot, pod)` filters the nodes, scores those that are left, and says
//! for each other node why not. Pure: no clock, no randomness, no client; the same input gives the same answer.
//!
//! Filters, scores, weights and words are those of the reference's default profile.

pub mod devices;
mod filter;
mod interpod;
mod preempt;
pub mod resources;
mod score;
pub mod selector;
mod snapshot;
mod spread;
mod volumes;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use filter::insufficient;
pub use preempt::{Budget, Preemption, preempt};
pub use snapshot::{HostPort, NodeInfo, PodInfo, Snapshot, host_ports};
pub use volumes::{Counted, Delayed, Handle, Provisioned, VolumeNeeds};

use filter::Prepared;

/// Why a node is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In the reference's words; several only for resources.
    pub reasons: Vec<String>,
    /// Whether removing pods from the node could change it.
    pub resolvable: bool,
}

impl Refusal {
    pub(crate) fn resolvable(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], resolvable: true }
    }

    pub(crate) fn lasting(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], resolvable: false }
    }
}

/// Why a pod has no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unschedulable {
    /// There are no nodes at all.
    NoNodes,
    /// The pod cannot run anywhere, whatever the nodes.
    Impossible { nodes: usize, reason: String },
    /// Every node refuses it.
    Refused { nodes: usize, refusals: BTreeMap<String, Refusal> },
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unschedulable::NoNodes => f.write_str("no nodes available to schedule pods"),
            Unschedulable::Impossible { nodes, reason } => {
                write!(f, "0/{nodes} nodes are available: {reason}.")
            }
            Unschedulable::Refused { nodes, refusals } => {
                let reasons = refusals.values().flat_map(|refusal| &refusal.reasons);
                f.write_str(&histogram(*nodes, reasons))
            }
        }
    }
}

pub(crate) fn histogram<'a>(nodes: usize, reasons: impl Iterator<Item = &'a String>) -> String {
    let mut counts = BTreeMap::<&String, usize>::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut lines: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    let mut text = format!("0/{nodes} nodes are available:");
    if !lines.is_empty() {
        text.push_str(&format!(" {}.", lines.join(", ")));
    }
    text
}

/// The name of the best node for the pod. Of equally good ones `choice` picks one.
pub fn plan(
    snapshot: &Snapshot,
    pod: &PodInfo,
    volumes: &VolumeNeeds,
    choice: u64,
) -> Result<String, Unschedulable> {
    let nodes = snapshot.nodes().count();
    if nodes == 0 {
        return Err(Unschedulable::NoNodes);
    }
    if let Some(reason) = &volumes.impossible {
        return Err(Unschedulable::Impossible { nodes, reason: reason.clone() });
    }
    let prepared = Prepared::new(snapshot, pod, volumes);
    let mut feasible: Vec<&Arc<NodeInfo>> = Vec::new();
    let mut refusals = BTreeMap::new();
    for node in snapshot.nodes() {
        match prepared.check(snapshot, node) {
            Ok(()) => feasible.push(node),
            Err(refusal) => {
                refusals.insert(node.name().to_owned(), refusal);
            }
        }
    }
    // An error in a claim is told, also where a node could do without it.
    if let Some(reason) = volumes.devices.as_ref().and_then(|devices| devices.fault()) {
        return Err(Unschedulable::Impossible { nodes, reason });
    }
    match feasible.as_slice() {
        [] => Err(Unschedulable::Refused { nodes, refusals }),
        [only] => Ok(only.name().to_owned()),
        _ => {
            let scores = score::scores(snapshot, pod, &feasible, volumes.devices.as_deref());
            let best = scores.iter().max().copied().unwrap_or_default();
            let equals: Vec<_> = feasible
                .iter()
                .zip(&scores)
                .filter(|(_, score)| **score == best)
                .map(|(node, _)| node)
                .collect();
            let at = usize::try_from(choice % equals.len() as u64).unwrap_or_default();
            Ok(equals[at].name().to_owned())
        }
    }
}

/// Whether one node would take the pod as things stand; for callers that place pods themselves.
pub fn check_node(
    snapshot: &Snapshot,
    pod: &PodInfo,
    volumes: &VolumeNeeds,
    node: &str,
) -> Option<Result<(), Refusal>> {
    let node = snapshot.node(node)?;
    Some(Prepared::new(snapshot, pod, volumes).check(snapshot, node))
}

#[cfg(test)]
mod tests;
