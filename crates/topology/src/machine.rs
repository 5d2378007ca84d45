//! The machine's layout as sysfs tells it: processors with their core, socket, NUMA node and shared cache; memory and huge
//! pages of each NUMA node, and the distances between nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::cpuset::CpuSet;

/// What cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}: no processor is online")]
    Empty(PathBuf),
}

/// Where a processor (a hardware thread) stands. Ids are unique in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// The lowest processor of the same core.
    pub core: u32,
    pub socket: u32,
    pub node: u32,
    /// The lowest processor that shares the last cache.
    pub cache: u32,
}

/// A NUMA node's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Bytes.
    pub memory: u64,
    /// Huge pages: count by page size in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
    /// Distance to each node, by its number.
    pub distances: BTreeMap<u32, u32>,
}

/// A machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpus: BTreeMap<u32, Cpu>,
    pub nodes: BTreeMap<u32, NumaNode>,
}

impl Machine {
    /// Reads the machine from a sysfs folder, `/sys` as a rule.
    pub fn read(sysfs: &Path) -> Result<Self, MachineError> {
        let devices = sysfs.join("devices/system");
        let path = devices.join("cpu/online");
        let online = std::fs::read_to_string(&path)
            .map_err(|source| MachineError::Read { path: path.clone(), source })?;
        let online = CpuSet::parse(&online).unwrap_or_default();
        if online.is_empty() {
            return Err(MachineError::Empty(path));
        }
        let mut nodes = BTreeMap::new();
        let mut node_of = BTreeMap::new();
        for entry in std::fs::read_dir(devices.join("node")).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("node")?.parse::<u32>().ok());
            let Some(number) = number else { continue };
            for cpu in list(&entry.path().join("cpulist")).iter() {
                node_of.insert(cpu, number);
            }
            nodes.insert(number, node(&entry.path()));
        }
        let numbers: Vec<u32> = nodes.keys().copied().collect();
        for (number, node) in &mut nodes {
            let text = read(&devices.join(format!("node/node{number}/distance")));
            let distances = text.split_whitespace().filter_map(|word| word.parse().ok());
            node.distances = numbers.iter().copied().zip(distances).collect();
        }
        if nodes.is_empty() {
            // A kernel without NUMA: everything is one node.
            nodes.insert(0, NumaNode::default());
        }
        let cpus = online.iter().map(|number| {
            let dir = devices.join(format!("cpu/cpu{number}"));
            let siblings = list(&dir.join("topology/thread_siblings_list"));
            let socket = read(&dir.join("topology/physical_package_id")).trim().parse::<i64>().unwrap_or(0);
            let node = node_of.get(&number).copied().unwrap_or(0);
            let shared = list(&dir.join("cache/index3/shared_cpu_list"));
            let cpu = Cpu {
                core: siblings.iter().next().unwrap_or(number),
                socket: u32::try_from(socket).unwrap_or(0),
                node,
                // Without a shared last cache, a node is as one.
                cache: shared.iter().next().unwrap_or(u32::MAX - node),
            };
            (number, cpu)
        });
        Ok(Machine { cpus: cpus.collect(), nodes })
    }

    /// All processors.
    pub fn all(&self) -> CpuSet {
        self.cpus.keys().copied().collect()
    }

    /// The processors for which `keep` holds.
    pub fn those(&self, keep: impl Fn(&Cpu) -> bool) -> CpuSet {
        self.cpus.iter().filter(|(_, cpu)| keep(cpu)).map(|(number, _)| *number).collect()
    }

    pub(crate) fn ids(&self, of: impl Fn(&Cpu) -> u32) -> BTreeSet<u32> {
        self.cpus.values().map(of).collect()
    }

    /// Hardware threads of a core, at least 1.
    pub fn threads_per_core(&self) -> usize {
        let cores = self.ids(|cpu| cpu.core).len();
        self.cpus.len().checked_div(cores).unwrap_or(1).max(1)
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn list(path: &Path) -> CpuSet {
    CpuSet::parse(&read(path)).unwrap_or_default()
}

fn node(dir: &Path) -> NumaNode {
    // "Node 0 MemTotal:       32768000 kB"
    let text = read(&dir.join("meminfo"));
    let line = text.lines().find(|line| line.contains(" MemTotal:"));
    let memory = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    let mut huge_pages = BTreeMap::new();
    for entry in std::fs::read_dir(dir.join("hugepages")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size = name
            .to_str()
            .and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
        let count = read(&entry.path().join("nr_hugepages")).trim().parse().unwrap_or(0);
        if let Some(size) = size {
            huge_pages.insert(size * 1024, count);
        }
    }
    NumaNode { memory: memory.unwrap_or(0) * 1024, huge_pages, distances: BTreeMap::new() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine of `nodes` NUMA nodes, each its own socket, with `cores` cores of two threads; the second threads come after
    /// all the first ones, as the kernel numbers them.
    pub(crate) fn sample(nodes: u32, cores: u32) -> Machine {
        let first = nodes * cores;
        let cpus = (0..2 * first).map(|cpu| {
            let core = cpu % first;
            let node = core / cores;
            (cpu, Cpu { core, socket: node, node, cache: node * cores })
        });
        let numa = NumaNode { memory: 8 << 30, ..NumaNode::default() };
        let nodes = (0..nodes).map(|node| {
            let distances = (0..nodes).map(|other| (other, if other == node { 10 } else { 20 })).collect();
            (node, NumaNode { distances, ..numa.clone() })
        });
        Machine { cpus: cpus.collect(), nodes: nodes.collect() }
    }

    #[test]
    fn sysfs_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = dir.path().join("devices/system").join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        put("cpu/online", "0-3\n");
        for cpu in 0..4 {
            put(
                &format!("cpu/cpu{cpu}/topology/thread_siblings_list"),
                &format!("{},{}", cpu % 2, cpu % 2 + 2),
            );
            put(&format!("cpu/cpu{cpu}/topology/physical_package_id"), &(cpu % 2).to_string());
            put(
                &format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"),
                &format!("{},{}", cpu % 2, cpu % 2 + 2),
            );
        }
        for node in 0..2 {
            put(&format!("node/node{node}/cpulist"), &format!("{node},{}\n", node + 2));
            put(&format!("node/node{node}/meminfo"), &format!("Node {node} MemTotal:  1024 kB\n"));
            put(&format!("node/node{node}/distance"), "10 21\n");
            put(&format!("node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"), "4\n");
        }
        let machine = Machine::read(dir.path()).expect("a machine");
        assert_eq!(machine.cpus[&3], Cpu { core: 1, socket: 1, node: 1, cache: 1 });
        assert_eq!(machine.threads_per_core(), 2);
        let node = &machine.nodes[&1];
        assert_eq!((node.memory, node.huge_pages[&(2 << 20)], node.distances[&1]), (1 << 20, 4, 21));
        assert!(matches!(Machine::read(&dir.path().join("none")), Err(MachineError::Read { .. })));
    }
}
