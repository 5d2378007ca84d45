//! The static memory policy: containers of Guaranteed pods get their memory and huge pages from as few NUMA nodes as will do, and
//! no two of them share a node unless they share all their nodes. Rules: KEP-1769.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::hints::{Hint, NodeSet};
use crate::machine::Machine;

/// Amounts in bytes by resource name: `memory` and `hugepages-<size>`.
pub type Amounts = BTreeMap<String, u64>;

/// Why a container gets no memory, or a state cannot be gone on from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    #[error("no NUMA nodes with enough memory are available")]
    Short,
    #[error("the preferred NUMA nodes hold memory of pods that have other ones")]
    Taken,
    #[error("memory is reserved on NUMA node {0}, which this machine lacks")]
    NoNode(u32),
    #[error("more {name} is reserved on NUMA node {node} than it has")]
    Reserved { node: u32, name: String },
    #[error("the memory in the state is not that of this machine and configuration")]
    Machine,
}

/// What a container has of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    pub numa_affinity: Vec<u32>,
    #[serde(rename = "type")]
    pub resource: String,
    pub size: u64,
    /// Of an init container that ends before the next one starts.
    #[serde(default)]
    pub passing: bool,
}

/// Who has what: by pod and container.
pub type Assignments = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// What is kept over a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What pods can have of each node; a state of another machine or configuration is told by it.
    pub nodes: BTreeMap<u32, Amounts>,
    pub entries: Assignments,
}

/// A container as the policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    pub pod: &'a str,
    pub container: &'a str,
    pub amounts: &'a Amounts,
    pub passing: bool,
}

/// The policy with its state.
#[derive(Debug, Clone)]
pub struct Static {
    state: State,
}

/// The name of a page size's resource, such as `hugepages-2Mi`.
pub fn huge_pages_name(bytes: u64) -> String {
    for (shift, unit) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("hugepages-{}{unit}", bytes >> shift);
        }
    }
    format!("hugepages-{bytes}")
}

impl Static {
    /// With nothing given yet; `reserved` is what pods may not have of each node.
    pub fn new(machine: &Machine, reserved: &BTreeMap<u32, Amounts>) -> Result<Self, MemoryError> {
        if let Some(node) = reserved.keys().find(|node| !machine.nodes.contains_key(node)) {
            return Err(MemoryError::NoNode(*node));
        }
        let mut nodes = BTreeMap::new();
        for (number, node) in &machine.nodes {
            let pages = node.huge_pages.iter().map(|(size, count)| (huge_pages_name(*size), size * count));
            let in_pages: u64 = node.huge_pages.iter().map(|(size, count)| size * count).sum();
            let plain = [("memory".to_owned(), node.memory.saturating_sub(in_pages))];
            let mut amounts: Amounts = plain.into_iter().chain(pages).collect();
            for (name, held) in reserved.get(number).into_iter().flatten() {
                let left = amounts.get(name).and_then(|has| has.checked_sub(*held));
                let left = left.ok_or_else(|| MemoryError::Reserved { node: *number, name: name.clone() })?;
                amounts.insert(name.clone(), left);
            }
            nodes.insert(*number, amounts);
        }
        Ok(Static { state: State { nodes, entries: Assignments::new() } })
    }

    /// Goes on from a state of an earlier run, if it is of this machine and configuration.
    pub fn restore(&mut self, state: State) -> Result<(), MemoryError> {
        let same = state.nodes == self.state.nodes;
        let blocks = || state.entries.values().flat_map(BTreeMap::values).flatten();
        if !same || blocks().flat_map(|b| &b.numa_affinity).any(|node| !state.nodes.contains_key(node)) {
            return Err(MemoryError::Machine);
        }
        self.state = state;
        Ok(())
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// What the container has.
    pub fn given(&self, pod: &str, container: &str) -> Option<&[Block]> {
        self.state.entries.get(pod)?.get(container).map(Vec::as_slice)
    }

    /// The nodes that the container's memory is from.
    pub fn nodes(&self, pod: &str, container: &str) -> Option<NodeSet> {
        let block = self.given(pod, container)?.first()?;
        Some(NodeSet::new(block.numa_affinity.iter().copied()))
    }

    fn capacity(&self, nodes: NodeSet, name: &str) -> u64 {
        let of = |node: u32| self.state.nodes.get(&node).and_then(|amounts| amounts.get(name)).copied();
        nodes.iter().filter_map(of).sum()
    }

    /// Bytes of a resource that pods have from exactly these nodes, with `more` for one of them.
    fn used(&self, nodes: NodeSet, name: &str, more: Want<'_>) -> u64 {
        let numbers: Vec<u32> = nodes.iter().collect();
        let wanted = more.amounts.get(name).copied().unwrap_or(0);
        let mut total = 0u64;
        let mut seen = false;
        let of_pod = |containers: Option<&BTreeMap<String, Vec<Block>>>, extra: Option<(bool, u64)>| {
            // Init containers run one after another, and before what stays.
            let (mut lasting, mut passing) = (0u64, 0u64);
            let blocks = containers.into_iter().flat_map(BTreeMap::values).flatten();
            let blocks = blocks.filter(|block| block.resource == name && block.numa_affinity == numbers);
            for (goes, size) in blocks.map(|block| (block.passing, block.size)).chain(extra) {
                if goes { passing = passing.max(size) } else { lasting = lasting.saturating_add(size) }
            }
            lasting.max(passing)
        };
        for (pod, containers) in &self.state.entries {
            let own = pod == more.pod;
            seen |= own;
            total = total.saturating_add(of_pod(Some(containers), own.then_some((more.passing, wanted))));
        }
        if !seen {
            total = total.saturating_add(of_pod(None, Some((more.passing, wanted))));
        }
        total
    }

    fn fits(&self, nodes: NodeSet, want: Want<'_>) -> bool {
        want.amounts.keys().all(|name| self.used(nodes, name, want) <= self.capacity(nodes, name))
    }

    /// Whether another set of nodes that is in use has some of these.
    fn taken(&self, nodes: NodeSet) -> bool {
        let blocks = self.state.entries.values().flat_map(BTreeMap::values).flatten();
        blocks
            .map(|block| NodeSet::new(block.numa_affinity.iter().copied()))
            .any(|other| other != nodes && other.iter().any(|node| nodes.contains(node)))
    }

    /// Where the container's memory could be from.
    pub fn hints(&self, want: Want<'_>) -> Option<Vec<Hint>> {
        if want.amounts.is_empty() {
            return None;
        }
        if let Some(nodes) = self.nodes(want.pod, want.container) {
            return Some(vec![Hint { nodes: Some(nodes), preferred: true }]);
        }
        let all = NodeSet::new(self.state.nodes.keys().copied());
        let could = |nodes: &NodeSet| {
            want.amounts.iter().all(|(name, amount)| self.capacity(*nodes, name) >= *amount)
        };
        let least = all.subsets().filter(could).map(NodeSet::count).min();
        let can = all.subsets().filter(|nodes| !self.taken(*nodes) && self.fits(*nodes, want));
        Some(can.map(|nodes| Hint { nodes: Some(nodes), preferred: Some(nodes.count()) == least }).collect())
    }

    /// Gives the container its memory, from `nodes` if they have it, else from these and more. One that has some keeps it.
    pub fn allocate(&mut self, want: Want<'_>, nodes: Option<NodeSet>) -> Result<(), MemoryError> {
        if want.amounts.is_empty() || self.given(want.pod, want.container).is_some() {
            return Ok(());
        }
        let hints = self.hints(want).unwrap_or_default();
        let within = |hint: &Hint| match (nodes, hint.nodes) {
            (Some(wanted), Some(found)) => wanted.iter().all(|node| found.contains(node)),
            _ => true,
        };
        let best = hints
            .iter()
            .filter(|hint| within(hint))
            .min_by_key(|hint| (!hint.preferred, hint.nodes.map(NodeSet::count), hint.nodes));
        let chosen = match (best.and_then(|hint| hint.nodes), nodes) {
            (Some(chosen), _) => chosen,
            (None, Some(wanted)) if self.taken(wanted) => return Err(MemoryError::Taken),
            (None, _) => return Err(MemoryError::Short),
        };
        let blocks = want.amounts.iter().map(|(name, size)| Block {
            numa_affinity: chosen.iter().collect(),
            resource: name.clone(),
            size: *size,
            passing: want.passing,
        });
        let entry = self.state.entries.entry(want.pod.to_owned()).or_default();
        entry.insert(want.container.to_owned(), blocks.collect());
        Ok(())
    }

    /// Takes back what the pod has; tells whether it had something.
    pub fn release(&mut self, pod: &str) -> bool {
        self.state.entries.remove(pod).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::sample;

    const GIB: u64 = 1 << 30;

    fn memory(gib: u64) -> Amounts {
        Amounts::from([("memory".to_owned(), gib * GIB)])
    }

    fn want<'a>(pod: &'a str, amounts: &'a Amounts) -> Want<'a> {
        Want { pod, container: "a", amounts, passing: false }
    }

    #[test]
    fn memory_is_of_as_few_nodes_as_will_do() {
        // Two nodes of 8 GiB, of which 1 GiB of the first is reserved.
        let reserved = BTreeMap::from([(0, memory(1))]);
        let mut policy = Static::new(&sample(2, 2), &reserved).expect("a policy");
        let nodes =
            |policy: &Static, pod| policy.nodes(pod, "a").map(|nodes| nodes.iter().collect::<Vec<_>>());
        let (five, eight, ten) = (memory(5), memory(8), memory(10));
        let hints = policy.hints(want("p", &eight)).expect("hints");
        assert_eq!((hints.len(), hints[0].nodes, hints[0].preferred), (2, Some(NodeSet::new([1])), true));
        policy.allocate(want("p", &five), Some(NodeSet::new([1]))).expect("enough");
        assert_eq!(nodes(&policy, "p"), Some(vec![1]));
        assert_eq!(policy.allocate(want("q", &ten), None), Err(MemoryError::Short), "a node of it is taken");
        policy.allocate(want("q", &five), None).expect("the other node");
        assert_eq!(nodes(&policy, "q"), Some(vec![0]));
        let kept = policy.state().clone();
        policy.release("p");
        policy.release("q");
        policy.allocate(want("r", &ten), None).expect("both nodes");
        assert_eq!(nodes(&policy, "r"), Some(vec![0, 1]));
        assert_eq!(policy.allocate(want("s", &eight), Some(NodeSet::new([0]))), Err(MemoryError::Taken));
        policy.allocate(want("s", &five), None).expect("from both as well");
        policy.restore(kept.clone()).expect("the same machine");
        assert_eq!(nodes(&policy, "q"), Some(vec![0]));
        let mut other = Static::new(&sample(2, 2), &BTreeMap::new()).expect("a policy");
        assert_eq!(other.restore(kept), Err(MemoryError::Machine));
        let beyond = Static::new(&sample(1, 2), &BTreeMap::from([(3, memory(1))]));
        assert!(matches!(beyond, Err(MemoryError::NoNode(3))));
    }

    #[test]
    fn init_containers_leave_theirs_to_those_after_them() {
        let mut policy = Static::new(&sample(1, 2), &BTreeMap::new()).expect("a policy");
        let (six, three) = (memory(6), memory(3));
        let init = Want { container: "init", passing: true, ..want("p", &six) };
        policy.allocate(init, None).expect("enough");
        policy.allocate(want("p", &six), None).expect("the same memory");
        assert_eq!(policy.allocate(want("q", &three), None), Err(MemoryError::Short));
        assert_eq!(huge_pages_name(2 << 20), "hugepages-2Mi");
    }
}
