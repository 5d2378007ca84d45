//! The static CPU policy: containers of Guaranteed pods that ask for whole processors get some for themselves; all others run
//! on what is left. Rules: KEP-3570 and its options.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cpuset::CpuSet;
use crate::hints::{Hint, NodeSet};
use crate::machine::Machine;
use crate::take::{self, Short};
use crate::{OptionError, flag};

/// `cpuManagerPolicyOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Only whole cores are given.
    pub full_pcpus_only: bool,
    /// Where several NUMA nodes are needed, evenly from each.
    pub distribute_cpus_across_numa: bool,
    /// Sockets count for as much as NUMA nodes do.
    pub align_by_socket: bool,
    /// One thread of each core, rather than whole cores.
    pub distribute_cpus_across_cores: bool,
    /// Nothing runs on the reserved processors but what is not of pods.
    pub strict_cpu_reservation: bool,
    /// From as few shared caches as will do.
    pub prefer_align_cpus_by_uncorecache: bool,
}

impl Options {
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self, OptionError> {
        let mut parsed = Options::default();
        for (name, value) in options {
            let field = match name.as_str() {
                "full-pcpus-only" => &mut parsed.full_pcpus_only,
                "distribute-cpus-across-numa" => &mut parsed.distribute_cpus_across_numa,
                "align-by-socket" => &mut parsed.align_by_socket,
                "distribute-cpus-across-cores" => &mut parsed.distribute_cpus_across_cores,
                "strict-cpu-reservation" => &mut parsed.strict_cpu_reservation,
                "prefer-align-cpus-by-uncorecache" => &mut parsed.prefer_align_cpus_by_uncorecache,
                _ => {
                    let known = "full-pcpus-only, distribute-cpus-across-numa, align-by-socket, \
                        distribute-cpus-across-cores, strict-cpu-reservation, prefer-align-cpus-by-uncorecache";
                    return Err(OptionError::Unknown { name: name.clone(), known: known.to_owned() });
                }
            };
            *field = flag(name, value)?;
        }
        for (one, other, both) in [
            (
                "full-pcpus-only",
                "distribute-cpus-across-cores",
                parsed.full_pcpus_only && parsed.distribute_cpus_across_cores,
            ),
            (
                "distribute-cpus-across-numa",
                "distribute-cpus-across-cores",
                parsed.distribute_cpus_across_numa && parsed.distribute_cpus_across_cores,
            ),
            (
                "prefer-align-cpus-by-uncorecache",
                "distribute-cpus-across-cores",
                parsed.prefer_align_cpus_by_uncorecache && parsed.distribute_cpus_across_cores,
            ),
            (
                "prefer-align-cpus-by-uncorecache",
                "distribute-cpus-across-numa",
                parsed.prefer_align_cpus_by_uncorecache && parsed.distribute_cpus_across_numa,
            ),
        ] {
            if both {
                return Err(OptionError::Both(one, other));
            }
        }
        Ok(parsed)
    }
}

/// Why a container gets no processors, or a state cannot be gone on from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    #[error(transparent)]
    Short(#[from] Short),
    /// The word before the colon is the reason of the pod's failure.
    #[error(
        "SMT Alignment Error: requested {wanted} cpus not multiple cpus per core = {threads}{}",
        .free.map(|free| format!(", available physical cpus: {free}")).unwrap_or_default()
    )]
    Alignment { wanted: usize, threads: usize, free: Option<usize> },
    #[error("reserved processors {0} are not all of this machine")]
    Reserved(CpuSet),
    #[error("the reserved CPU leaves no processor for pods")]
    NothingLeft,
    #[error("current set of available CPUs {now:?} does not match with CPUs in state {kept:?}")]
    Machine { now: CpuSet, kept: CpuSet },
    #[error(
        "processors {0} are in the shared pool and given to a container as well, or reserved ones are missing"
    )]
    Inconsistent(CpuSet),
}

/// Who has which processors: by pod and container.
pub type Assignments = BTreeMap<String, BTreeMap<String, CpuSet>>;

/// What is kept over a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The shared pool.
    pub default_cpu_set: CpuSet,
    pub entries: Assignments,
}

/// A container as the policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    pub pod: &'a str,
    pub container: &'a str,
    /// Whole processors.
    pub count: usize,
    /// An init container that ends before the next one starts.
    pub passing: bool,
}

/// The policy with its state.
#[derive(Debug, Clone)]
pub struct Static {
    machine: Machine,
    options: Options,
    reserved: CpuSet,
    state: State,
    /// What init containers of a pod leave to the containers after them.
    reusable: BTreeMap<String, CpuSet>,
}

impl Static {
    /// With nothing given yet. `explicit` are the reserved processors, if named; else `reserved_milli` thousandths of a
    /// processor are rounded up.
    pub fn new(
        machine: Machine,
        options: Options,
        explicit: &CpuSet,
        reserved_milli: u64,
    ) -> Result<Self, CpuError> {
        let all = machine.all();
        if !explicit.is_subset(&all) {
            return Err(CpuError::Reserved(explicit.clone()));
        }
        let count = usize::try_from(reserved_milli.div_ceil(1000)).unwrap_or(usize::MAX);
        let reserved = match explicit.is_empty() {
            true => take::take(&machine, &all, count, &Options::default())?,
            false => explicit.clone(),
        };
        if reserved.len() >= all.len() && options.strict_cpu_reservation {
            return Err(CpuError::NothingLeft);
        }
        let default_cpu_set = if options.strict_cpu_reservation { all.difference(&reserved) } else { all };
        let state = State { default_cpu_set, entries: Assignments::new() };
        Ok(Static { machine, options, reserved, state, reusable: BTreeMap::new() })
    }

    /// Goes on from a state of an earlier run, if it is of this machine and configuration.
    pub fn restore(&mut self, state: State) -> Result<(), CpuError> {
        let pool = &state.default_cpu_set;
        let mut known = pool.clone();
        for given in state.entries.values().flat_map(BTreeMap::values) {
            if !given.intersection(pool).is_empty() {
                return Err(CpuError::Inconsistent(given.intersection(pool)));
            }
            known = known.union(given);
        }
        let shared = self.reserved.intersection(pool);
        if self.options.strict_cpu_reservation {
            if !shared.is_empty() {
                return Err(CpuError::Inconsistent(shared));
            }
            known = known.union(&self.reserved);
        } else if shared != self.reserved {
            return Err(CpuError::Inconsistent(self.reserved.difference(&shared)));
        }
        if known != self.machine.all() {
            return Err(CpuError::Machine { now: self.machine.all(), kept: known });
        }
        self.state = state;
        Ok(())
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Processors that nobody has for himself; never empty.
    pub fn shared(&self) -> &CpuSet {
        &self.state.default_cpu_set
    }

    /// Processors that could be given at all.
    pub fn allocatable(&self) -> CpuSet {
        self.machine.all().difference(&self.reserved)
    }

    /// What the container has for itself.
    pub fn given(&self, pod: &str, container: &str) -> Option<&CpuSet> {
        self.state.entries.get(pod)?.get(container)
    }

    fn free(&self) -> CpuSet {
        let held = if self.options.full_pcpus_only {
            // A core of which a thread is reserved is no whole core.
            let cores: Vec<u32> =
                self.reserved.iter().filter_map(|cpu| Some(self.machine.cpus.get(&cpu)?.core)).collect();
            self.machine.those(|cpu| cores.contains(&cpu.core))
        } else {
            self.reserved.clone()
        };
        self.state.default_cpu_set.difference(&held)
    }

    /// Where the container's processors could be from.
    pub fn hints(&self, want: Want<'_>) -> Option<Vec<Hint>> {
        if want.count == 0 {
            return None;
        }
        if let Some(given) = self.given(want.pod, want.container) {
            if given.len() != want.count {
                return Some(Vec::new());
            }
            return Some(self.places(&CpuSet::default(), given, want.count));
        }
        let reusable = self.reusable.get(want.pod).cloned().unwrap_or_default();
        Some(self.places(&self.free(), &reusable, want.count))
    }

    /// Hints for `count` processors of those free; those that can be used again have to be among them.
    fn places(&self, free: &CpuSet, reusable: &CpuSet, count: usize) -> Vec<Hint> {
        let machine = &self.machine;
        let mut least = machine.nodes.len() as u32;
        let mut found = Vec::new();
        for nodes in NodeSet::new(machine.nodes.keys().copied()).subsets() {
            let inside = machine.those(|cpu| nodes.contains(cpu.node));
            if inside.len() >= count {
                least = least.min(nodes.count());
            }
            let have = free.union(reusable).intersection(&inside).len();
            if reusable.is_subset(&inside) && have >= count {
                found.push(nodes);
            }
        }
        let sockets_of = |nodes: NodeSet| {
            let of = machine.cpus.values().filter(|cpu| nodes.contains(cpu.node)).map(|cpu| cpu.socket);
            of.collect::<std::collections::BTreeSet<_>>().len() as u32
        };
        let preferred = |nodes: NodeSet| {
            nodes.count() == least
                || (self.options.align_by_socket && sockets_of(nodes) == 1 && nodes.count() > least)
        };
        found.into_iter().map(|nodes| Hint { nodes: Some(nodes), preferred: preferred(nodes) }).collect()
    }

    /// Gives the container its processors, from `nodes` first. One that has some keeps them.
    pub fn allocate(&mut self, want: Want<'_>, nodes: Option<NodeSet>) -> Result<(), CpuError> {
        if want.count == 0 {
            return Ok(());
        }
        if let Some(given) = self.given(want.pod, want.container).cloned() {
            self.note_reuse(want, &given);
            return Ok(());
        }
        let threads = self.machine.threads_per_core();
        let free = self.free();
        if self.options.full_pcpus_only {
            let (wanted, alignment) =
                (want.count, |free| CpuError::Alignment { wanted: want.count, threads, free });
            if !wanted.is_multiple_of(threads) {
                return Err(alignment(None));
            }
            let reusable = self.reusable.get(want.pod).map_or(0, CpuSet::len);
            if free.len() + reusable < wanted {
                return Err(alignment(Some(free.len())));
            }
        }
        let reusable = self.reusable.get(want.pod).cloned().unwrap_or_default();
        let usable = free.union(&reusable);
        let mut given = CpuSet::default();
        if let Some(nodes) = nodes {
            let near =
                usable.filter(|cpu| self.machine.cpus.get(&cpu).is_some_and(|c| nodes.contains(c.node)));
            let count = near.len().min(want.count);
            given = take::take(&self.machine, &near, count, &self.options)?;
        }
        let rest = usable.difference(&given);
        let more = take::take(&self.machine, &rest, want.count - given.len(), &self.options)?;
        given = given.union(&more);
        self.state.default_cpu_set = self.state.default_cpu_set.difference(&given);
        let entry = self.state.entries.entry(want.pod.to_owned()).or_default();
        entry.insert(want.container.to_owned(), given.clone());
        self.note_reuse(want, &given);
        Ok(())
    }

    fn note_reuse(&mut self, want: Want<'_>, given: &CpuSet) {
        // Pods are let in one after another: what others leave over is of no use any more.
        self.reusable.retain(|pod, _| pod == want.pod);
        let own = self.reusable.entry(want.pod.to_owned()).or_default();
        *own = if want.passing { own.union(given) } else { own.difference(given) };
    }

    /// Takes back what the pod has; tells whether it had something.
    pub fn release(&mut self, pod: &str) -> bool {
        self.reusable.remove(pod);
        let Some(entries) = self.state.entries.remove(pod) else { return false };
        for given in entries.values() {
            self.state.default_cpu_set = self.state.default_cpu_set.union(given);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::sample;

    fn want<'a>(pod: &'a str, container: &'a str, count: usize) -> Want<'a> {
        Want { pod, container, count, passing: false }
    }

    fn set(text: &str) -> CpuSet {
        CpuSet::parse(text).expect("a set")
    }

    #[test]
    fn processors_are_given_and_taken_back() {
        let mut policy = Static::new(sample(2, 4), Options::default(), &set(""), 500).expect("a policy");
        assert_eq!(policy.allocatable().to_string(), "1-15");
        policy.allocate(want("p", "a", 2), Some(NodeSet::new([1]))).expect("enough");
        assert_eq!(policy.given("p", "a"), Some(&set("4,12")));
        assert_eq!(policy.shared().to_string(), "0-3,5-11,13-15");
        policy.allocate(want("p", "a", 2), None).expect("has them");
        let kept = policy.state().clone();
        let short = policy.allocate(want("q", "a", 14), None).expect_err("too many");
        assert_eq!(
            short.to_string(),
            "not enough cpus available to satisfy request: requested=14, available=13"
        );
        let mut later = Static::new(sample(2, 4), Options::default(), &set(""), 500).expect("a policy");
        later.restore(kept.clone()).expect("same machine");
        assert_eq!(later.given("p", "a"), Some(&set("4,12")));
        assert!(later.release("p") && !later.release("p"));
        assert_eq!(later.shared(), &set("0-15"));
        let mut other = Static::new(sample(2, 2), Options::default(), &set(""), 500).expect("a policy");
        assert!(matches!(other.restore(kept), Err(CpuError::Machine { .. })));
    }

    #[test]
    fn init_containers_leave_theirs_to_those_after_them() {
        let mut policy = Static::new(sample(1, 4), Options::default(), &set("0"), 0).expect("a policy");
        policy.allocate(Want { passing: true, ..want("p", "init", 4) }, None).expect("enough");
        policy.allocate(want("p", "a", 4), None).expect("the same ones");
        assert_eq!(policy.given("p", "init"), policy.given("p", "a"));
        policy.allocate(want("p", "b", 2), None).expect("others");
        assert!(policy.given("p", "b").expect("given").is_subset(&set("1-7")));
        policy.release("p");
        assert_eq!(policy.shared().to_string(), "0-7");
    }

    #[test]
    fn options_are_heeded() {
        let options = |list: &[&str]| {
            let pairs = list.iter().map(|name| ((*name).to_owned(), "true".to_owned()));
            Options::parse(&pairs.collect())
        };
        let full = options(&["full-pcpus-only"]).expect("good");
        let mut policy = Static::new(sample(1, 4), full, &set("0"), 0).expect("a policy");
        let odd = policy.allocate(want("p", "a", 3), None).expect_err("no whole cores");
        assert_eq!(odd.to_string(), "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2");
        policy.allocate(want("p", "a", 6), None).expect("three cores");
        assert_eq!(policy.given("p", "a"), Some(&set("1-3,5-7")));
        let strict = options(&["strict-cpu-reservation"]).expect("good");
        let policy = Static::new(sample(1, 4), strict, &set("0,4"), 0).expect("a policy");
        assert_eq!(policy.shared(), &set("1-3,5-7"));
        assert!(matches!(options(&["fast"]), Err(OptionError::Unknown { .. })));
        let both = options(&["full-pcpus-only", "distribute-cpus-across-cores"]);
        assert!(matches!(both, Err(OptionError::Both(..))));
    }

    #[test]
    fn hints_name_the_fewest_nodes() {
        let mut policy = Static::new(sample(2, 4), Options::default(), &set("0"), 0).expect("a policy");
        let shown = |policy: &Static, count| {
            let hints = policy.hints(want("p", "a", count)).expect("hints");
            hints
                .iter()
                .map(|hint| (hint.nodes.expect("nodes").iter().collect::<Vec<_>>(), hint.preferred))
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(&policy, 2), [(vec![0], true), (vec![1], true), (vec![0, 1], false)]);
        assert_eq!(shown(&policy, 8), [(vec![1], true), (vec![0, 1], false)], "0 is reserved");
        assert_eq!(shown(&policy, 10), [(vec![0, 1], true)]);
        policy.allocate(want("p", "a", 2), Some(NodeSet::new([1]))).expect("enough");
        assert_eq!(shown(&policy, 2), [(vec![1], true), (vec![0, 1], false)], "what it has");
        assert_eq!(policy.hints(want("q", "a", 0)), None);
    }
}
