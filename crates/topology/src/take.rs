//! Which processors of those that are free make up a request: whole sockets or NUMA nodes first, then whole cores, then
//! threads of the fullest core, so that what is left over is as whole as it can be. Or evenly over NUMA nodes, if asked.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::cpus::Options;
use crate::cpuset::CpuSet;
use crate::machine::{Cpu, Machine};

/// Nodes that are looked at in every combination.
const MOST_NODES: usize = 8;

/// What is asked for cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not enough cpus available to satisfy request: requested={wanted}, available={free}")]
pub struct Short {
    pub wanted: usize,
    pub free: usize,
}

struct Taker<'a> {
    machine: &'a Machine,
    free: CpuSet,
    needed: usize,
    taken: CpuSet,
}

/// Takes `count` of the free processors.
pub(crate) fn take(
    machine: &Machine,
    free: &CpuSet,
    count: usize,
    options: &Options,
) -> Result<CpuSet, Short> {
    if options.distribute_cpus_across_numa {
        let group = if options.full_pcpus_only { machine.threads_per_core() } else { 1 };
        if let Some(found) = distributed(machine, free, count, group, options) {
            return Ok(found);
        }
    }
    packed(machine, free, count, options)
}

fn packed(machine: &Machine, free: &CpuSet, count: usize, options: &Options) -> Result<CpuSet, Short> {
    if free.len() < count {
        return Err(Short { wanted: count, free: free.len() });
    }
    let mut taker = Taker { machine, free: free.clone(), needed: count, taken: CpuSet::default() };
    // The larger unit first.
    let sockets_first = machine.ids(|cpu| cpu.socket).len() < machine.nodes.len();
    let (first, second): (fn(&Cpu) -> u32, fn(&Cpu) -> u32) =
        if sockets_first { (|cpu| cpu.socket, |cpu| cpu.node) } else { (|cpu| cpu.node, |cpu| cpu.socket) };
    taker.whole(first, &[]);
    taker.whole(second, &[first]);
    if options.prefer_align_cpus_by_uncorecache {
        taker.caches(first, second);
    }
    if !options.distribute_cpus_across_cores {
        taker.whole(|cpu| cpu.core, &[first, second]);
    }
    taker.rest(first, second, options.distribute_cpus_across_cores);
    Ok(taker.taken)
}

impl Taker<'_> {
    fn claim(&mut self, cpus: &CpuSet) {
        self.free = self.free.difference(cpus);
        self.needed -= cpus.len().min(self.needed);
        self.taken = self.taken.union(cpus);
    }

    fn place(&self, cpu: u32) -> Option<&Cpu> {
        self.machine.cpus.get(&cpu)
    }

    /// Units with free processors, the fullest first, within the order of the units around them.
    fn ordered(&self, of: fn(&Cpu) -> u32, around: &[fn(&Cpu) -> u32]) -> Vec<u32> {
        let count = |of: fn(&Cpu) -> u32, unit: u32| {
            self.free.iter().filter(|cpu| self.place(*cpu).is_some_and(|cpu| of(cpu) == unit)).count()
        };
        let mut units: BTreeMap<u32, Vec<(usize, u32)>> = BTreeMap::new();
        for cpu in self.free.iter() {
            let Some(place) = self.place(cpu) else { continue };
            let unit = of(place);
            units.entry(unit).or_insert_with(|| {
                around.iter().chain([&of]).map(|level| (count(*level, level(place)), level(place))).collect()
            });
        }
        let mut units: Vec<(u32, Vec<(usize, u32)>)> = units.into_iter().collect();
        units.sort_by(|a, b| a.1.cmp(&b.1));
        units.into_iter().map(|(unit, _)| unit).collect()
    }

    /// Takes whole units that are free and not larger than what is needed.
    fn whole(&mut self, of: fn(&Cpu) -> u32, around: &[fn(&Cpu) -> u32]) {
        for unit in self.ordered(of, around) {
            let cpus = self.machine.those(|cpu| of(cpu) == unit);
            if self.needed > 0 && cpus.is_subset(&self.free) && cpus.len() <= self.needed {
                self.claim(&cpus);
            }
        }
    }

    /// Whole shared caches, then a part of the first one that has enough whole cores for all that is left.
    fn caches(&mut self, first: fn(&Cpu) -> u32, second: fn(&Cpu) -> u32) {
        self.whole(|cpu| cpu.cache, &[first, second]);
        for cache in self.ordered(|cpu| cpu.cache, &[first, second]) {
            let inside = self.free.filter(|cpu| self.place(cpu).is_some_and(|cpu| cpu.cache == cache));
            if self.needed == 0 || inside.len() < self.needed {
                continue;
            }
            let options = Options::default();
            if let Ok(found) = packed(self.machine, &inside, self.needed, &options) {
                self.claim(&found);
            }
        }
    }

    fn rest(&mut self, first: fn(&Cpu) -> u32, second: fn(&Cpu) -> u32, spread: bool) {
        let units: Vec<u32> = if spread {
            self.ordered(second, &[first])
        } else {
            self.ordered(|cpu| cpu.core, &[first, second])
        };
        let of: fn(&Cpu) -> u32 = if spread { second } else { |cpu| cpu.core };
        for unit in units {
            let inside = self.free.filter(|cpu| self.place(cpu).is_some_and(|cpu| of(cpu) == unit));
            for cpu in inside.iter() {
                if self.needed == 0 {
                    return;
                }
                self.claim(&CpuSet::from_iter([cpu]));
            }
        }
    }
}

/// Takes groups of `group` processors evenly from as few NUMA nodes as will do; `None` if that cannot be.
fn distributed(
    machine: &Machine,
    free: &CpuSet,
    count: usize,
    group: usize,
    options: &Options,
) -> Option<CpuSet> {
    if count == 0 || !count.is_multiple_of(group) || free.len() < count || machine.nodes.len() > MOST_NODES {
        return None;
    }
    let of_node = |node: u32| machine.those(|cpu| cpu.node == node).intersection(free);
    let nodes: Vec<(u32, usize)> = machine
        .nodes
        .keys()
        .map(|node| (*node, of_node(*node).len()))
        .filter(|(_, size)| *size > 0)
        .collect();
    let groups_per_node = (machine.cpus.len().div_ceil(group)).div_ceil(machine.nodes.len().max(1)).max(1);
    let fewest = (count / group).div_ceil(groups_per_node);
    for size in fewest..=nodes.len().min(count / group) {
        let best = subsets(nodes.len(), size)
            .filter_map(|subset| {
                let chosen: Vec<usize> = subset.clone();
                let share = count / size / group * group;
                let mut left: Vec<usize> = nodes.iter().map(|(_, free)| *free).collect();
                for index in &chosen {
                    left[*index] = left[*index].checked_sub(share)?;
                }
                let mut shares: BTreeMap<usize, usize> = chosen.iter().map(|index| (*index, share)).collect();
                // What does not divide goes group by group to the node that has most left.
                for _ in 0..(count - share * size) / group {
                    let index = *chosen.iter().max_by_key(|index| (left[**index], Reverse(**index)))?;
                    left[index] = left[index].checked_sub(group)?;
                    *shares.entry(index).or_default() += group;
                }
                Some((deviation(&left), subset, shares))
            })
            .min_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        let Some((_, _, shares)) = best else { continue };
        let inner = Options { distribute_cpus_across_numa: false, ..options.clone() };
        let parts: Option<Vec<CpuSet>> = shares
            .into_iter()
            .map(|(index, share)| packed(machine, &of_node(nodes[index].0), share, &inner).ok())
            .collect();
        if let Some(parts) = parts {
            return Some(parts.iter().fold(CpuSet::default(), |all, part| all.union(part)));
        }
    }
    None
}

fn deviation(values: &[usize]) -> f64 {
    let mean = values.iter().sum::<usize>() as f64 / values.len() as f64;
    values.iter().map(|value| (*value as f64 - mean).powi(2)).sum::<f64>() / values.len() as f64
}

/// The subsets of `0..total` with `size` members.
fn subsets(total: usize, size: usize) -> impl Iterator<Item = Vec<usize>> {
    (0u32..1 << total)
        .filter(move |mask| mask.count_ones() as usize == size)
        .map(move |mask| (0..total).filter(|bit| mask >> bit & 1 == 1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::sample;

    #[test]
    fn whole_units_go_first() {
        // Two sockets of four cores of two threads: 0-3,8-11 and 4-7,12-15.
        let machine = sample(2, 4);
        let plain = Options::default();
        let spread = Options { distribute_cpus_across_cores: true, ..Options::default() };
        let even = Options { distribute_cpus_across_numa: true, ..Options::default() };
        let even_cores = Options { full_pcpus_only: true, ..even.clone() };
        for (free, count, options, wanted) in [
            ("0-15", 8, &plain, "0-3,8-11"),
            ("1-15", 8, &plain, "4-7,12-15"),
            ("0-15", 2, &plain, "0,8"),
            ("1-15", 1, &plain, "8"),
            ("1-15", 3, &plain, "1,8-9"),
            ("0-15", 4, &spread, "0-3"),
            ("0-15", 4, &even, "0-1,8-9"),
            ("0-15", 12, &even, "0-2,4-6,8-10,12-14"),
            ("0-15", 12, &even_cores, "0-2,4-6,8-10,12-14"),
        ] {
            let found = take(&machine, &CpuSet::parse(free).expect("a set"), count, options);
            let found = found.expect("enough").to_string();
            assert_eq!(found, wanted, "{count} of {free}");
        }
        let error = take(&machine, &CpuSet::parse("0-1").expect("a set"), 3, &plain);
        assert_eq!(error, Err(Short { wanted: 3, free: 2 }));
    }
}
