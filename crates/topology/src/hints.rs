//! The topology manager: who gives something of a NUMA node says where it could be from, and a policy brings these hints
//! together. Rules: KEP-693.

use std::collections::BTreeMap;

use crate::machine::Machine;
use crate::{OptionError, flag};

/// Beyond this many NUMA nodes, combinations are too many to look at.
const MOST_NODES: usize = 8;
/// Combinations of hints that are looked at, at most: a bound on time, far above what real machines need.
const MOST_PERMUTATIONS: usize = 1 << 20;

/// A set of NUMA nodes, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeSet(u64);

impl NodeSet {
    pub fn new(nodes: impl IntoIterator<Item = u32>) -> Self {
        NodeSet(nodes.into_iter().filter(|node| *node < 64).fold(0, |mask, node| mask | 1 << node))
    }

    pub fn contains(self, node: u32) -> bool {
        node < 64 && self.0 >> node & 1 == 1
    }

    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |node| self.contains(*node))
    }

    fn and(self, other: Self) -> Self {
        NodeSet(self.0 & other.0)
    }

    /// Fewer nodes first, then lower ones.
    fn is_narrower(self, other: Self) -> bool {
        (self.count(), self.0) < (other.count(), other.0)
    }

    /// Every set of these nodes but the empty one.
    pub fn subsets(self) -> impl Iterator<Item = NodeSet> {
        let nodes: Vec<u32> = self.iter().take(16).collect();
        (1u32..1 << nodes.len()).map(move |mask| {
            NodeSet::new(
                nodes.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, node)| *node),
            )
        })
    }
}

/// A place that would do. Without nodes, any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    pub nodes: Option<NodeSet>,
    /// As few nodes as the machine could ever do it with.
    pub preferred: bool,
}

/// Hints by resource; `None` for a resource is "no preference", an empty list "nowhere".
pub type Hints = BTreeMap<String, Option<Vec<Hint>>>;

/// How hints are obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    #[default]
    None,
    BestEffort,
    Restricted,
    SingleNumaNode,
}

impl Policy {
    /// Upstream's name of it.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "none" | "" => Policy::None,
            "best-effort" => Policy::BestEffort,
            "restricted" => Policy::Restricted,
            "single-numa-node" => Policy::SingleNumaNode,
            _ => return None,
        })
    }
}

/// `topologyManagerPolicyOptions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub prefer_closest_numa_nodes: bool,
    pub max_allowable_numa_nodes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { prefer_closest_numa_nodes: false, max_allowable_numa_nodes: MOST_NODES }
    }
}

impl Options {
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self, OptionError> {
        let mut parsed = Options::default();
        for (name, value) in options {
            match name.as_str() {
                "prefer-closest-numa-nodes" => parsed.prefer_closest_numa_nodes = flag(name, value)?,
                "max-allowable-numa-nodes" => {
                    let number = value.parse().ok().filter(|number| (MOST_NODES..=16).contains(number));
                    parsed.max_allowable_numa_nodes = number.ok_or_else(|| OptionError::Value {
                        name: name.clone(),
                        value: value.clone(),
                        wanted: "number from 8 to 16",
                    })?;
                }
                _ => {
                    return Err(OptionError::Unknown {
                        name: name.clone(),
                        known: "prefer-closest-numa-nodes, max-allowable-numa-nodes".to_owned(),
                    });
                }
            }
        }
        Ok(parsed)
    }
}

/// The machine's nodes as the merger sees them.
#[derive(Debug, Clone)]
pub struct Merger {
    policy: Policy,
    options: Options,
    all: NodeSet,
    distances: BTreeMap<(u32, u32), u32>,
}

impl Merger {
    pub fn new(policy: Policy, options: Options, machine: &Machine) -> Self {
        let distances = machine
            .nodes
            .iter()
            .flat_map(|(from, node)| node.distances.iter().map(|(to, distance)| ((*from, *to), *distance)));
        let all = NodeSet::new(machine.nodes.keys().copied());
        Merger { policy, options, all, distances: distances.collect() }
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// All nodes of the machine.
    pub fn all(&self) -> NodeSet {
        self.all
    }

    /// Whether the machine has more nodes than the options allow.
    pub fn too_many(&self) -> bool {
        self.policy != Policy::None && self.all.count() as usize > self.options.max_allowable_numa_nodes
    }

    /// The place that suits all best, and whether the policy lets the pod in with it.
    pub fn merge(&self, providers: &[Hints]) -> (Hint, bool) {
        let any = Hint { nodes: None, preferred: true };
        let mut lists: Vec<Vec<Hint>> = Vec::new();
        for hints in providers {
            if hints.is_empty() {
                lists.push(vec![any]);
            }
            for list in hints.values() {
                lists.push(match list {
                    None => vec![any],
                    Some(list) if list.is_empty() => vec![Hint { nodes: None, preferred: false }],
                    Some(list) => list.clone(),
                });
            }
        }
        match self.policy {
            Policy::None => (any, true),
            Policy::BestEffort => (self.best(&lists), true),
            Policy::Restricted => {
                let best = self.best(&lists);
                (best, best.preferred)
            }
            Policy::SingleNumaNode => {
                for list in &mut lists {
                    list.retain(|hint| match hint.nodes {
                        None => hint.preferred,
                        Some(nodes) => nodes.count() == 1 && hint.preferred,
                    });
                }
                let mut best = self.best(&lists);
                if best.nodes == Some(self.all) {
                    best.nodes = None;
                }
                (best, best.preferred)
            }
        }
    }

    fn best(&self, lists: &[Vec<Hint>]) -> Hint {
        // The least number of nodes that the most demanding resource needs.
        let narrowest =
            |list: &Vec<Hint>| list.iter().filter_map(|hint| hint.nodes).map(NodeSet::count).min();
        let aim = lists.iter().filter_map(narrowest).max().unwrap_or(0);
        let mut best: Option<(NodeSet, bool)> = None;
        let total = lists.iter().map(Vec::len).try_fold(1usize, |all, one| all.checked_mul(one));
        let total = total.unwrap_or(MOST_PERMUTATIONS).min(MOST_PERMUTATIONS);
        for number in 0..total {
            let mut rest = number;
            let permutation = lists.iter().map(|list| {
                let hint = list[rest % list.len()];
                rest /= list.len();
                hint
            });
            let (mut nodes, mut preferred, mut first) = (self.all, true, None);
            for hint in permutation {
                preferred &= hint.preferred;
                if let Some(own) = hint.nodes {
                    preferred &= *first.get_or_insert(own) == own;
                    nodes = nodes.and(own);
                }
            }
            if nodes.count() > 0 && best.is_none_or(|best| self.better((nodes, preferred), best, aim)) {
                best = Some((nodes, preferred));
            }
        }
        let (nodes, preferred) = best.unwrap_or((self.all, false));
        Hint { nodes: Some(nodes), preferred }
    }

    /// Whether the candidate is to be taken instead of what is the best so far.
    fn better(&self, candidate: (NodeSet, bool), best: (NodeSet, bool), aim: u32) -> bool {
        if candidate.1 != best.1 {
            return candidate.1;
        }
        let nearer = || candidate.0 != best.0 && self.nearer(candidate.0, best.0);
        if candidate.1 {
            return nearer();
        }
        let (new, old) = (candidate.0.count(), best.0.count());
        // Nothing is as it should be: as close as possible to the number of nodes that are needed.
        if old > aim || (old == aim && new == aim) {
            return nearer();
        }
        if old == aim || new > aim {
            return false;
        }
        if new == aim || new > old {
            return true;
        }
        new == old && nearer()
    }

    fn nearer(&self, one: NodeSet, other: NodeSet) -> bool {
        if self.options.prefer_closest_numa_nodes
            && self.policy != Policy::SingleNumaNode
            && one.count() == other.count()
        {
            let (a, b) = (self.distance(one), self.distance(other));
            if a != b {
                return a < b;
            }
        }
        one.is_narrower(other)
    }

    /// Mean distance between the nodes of a set.
    fn distance(&self, nodes: NodeSet) -> f64 {
        let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from, to)));
        let (mut sum, mut count) = (0.0, 0.0);
        for pair in pairs {
            sum += f64::from(self.distances.get(&pair).copied().unwrap_or(0));
            count += 1.0;
        }
        if count > 0.0 { sum / count } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::sample;

    fn hint(nodes: &[u32], preferred: bool) -> Hint {
        Hint { nodes: Some(NodeSet::new(nodes.iter().copied())), preferred }
    }

    fn hints(name: &str, list: Option<Vec<Hint>>) -> Hints {
        Hints::from([(name.to_owned(), list)])
    }

    #[test]
    fn policies_decide() {
        let machine = sample(2, 2);
        let on = |policy, providers: &[Hints]| {
            let (best, admit) = Merger::new(policy, Options::default(), &machine).merge(providers);
            (best.nodes.map(|nodes| nodes.iter().collect::<Vec<_>>()), best.preferred, admit)
        };
        let cpus = || hints("cpu", Some(vec![hint(&[0], true), hint(&[1], true), hint(&[0, 1], false)]));
        let card = || hints("card", Some(vec![hint(&[1], true), hint(&[0, 1], false)]));
        let wide = || hints("cpu", Some(vec![hint(&[0, 1], true)]));
        let none = || hints("card", Some(vec![]));
        let any = || hints("card", None);
        use Policy::{BestEffort, None as Never, Restricted, SingleNumaNode};
        for (policy, providers, wanted) in [
            (Never, vec![cpus(), card()], (None, true, true)),
            (BestEffort, vec![cpus(), card()], (Some(vec![1]), true, true)),
            (Restricted, vec![cpus(), card()], (Some(vec![1]), true, true)),
            (SingleNumaNode, vec![cpus(), card()], (Some(vec![1]), true, true)),
            (Restricted, vec![cpus(), any()], (Some(vec![0]), true, true)),
            (BestEffort, vec![wide(), card()], (Some(vec![0, 1]), false, true)),
            (Restricted, vec![wide(), Hints::new()], (Some(vec![0, 1]), true, true)),
            (SingleNumaNode, vec![wide(), Hints::new()], (None, false, false)),
            (Restricted, vec![cpus(), none()], (Some(vec![0]), false, false)),
            (SingleNumaNode, vec![any(), Hints::new()], (None, true, true)),
        ] {
            assert_eq!(on(policy, &providers), wanted, "{policy:?} {providers:?}");
        }
    }

    #[test]
    fn near_nodes_are_preferred_if_asked() {
        let mut machine = sample(4, 2);
        for (from, node) in &mut machine.nodes {
            for (to, distance) in &mut node.distances {
                *distance = if from == to {
                    10
                } else if from / 2 != to / 2 {
                    12
                } else {
                    30
                };
            }
        }
        let list = || hints("cpu", Some(vec![hint(&[0, 1], true), hint(&[0, 2], true)]));
        let closest = Options { prefer_closest_numa_nodes: true, ..Options::default() };
        let nodes = |options| Merger::new(Policy::Restricted, options, &machine).merge(&[list()]).0.nodes;
        assert_eq!(nodes(closest), Some(NodeSet::new([0, 2])));
        assert_eq!(nodes(Options::default()), Some(NodeSet::new([0, 1])));
        let bad = BTreeMap::from([("near".to_owned(), "true".to_owned())]);
        assert!(matches!(Options::parse(&bad), Err(OptionError::Unknown { .. })));
    }
}
