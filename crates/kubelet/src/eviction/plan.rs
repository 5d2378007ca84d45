//! Whether the node is short of something, and which pod goes first: pure functions of signals, pods and their use.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::podutil::{self, spec};
use crate::quantity;

/// Upstream's hard thresholds.
const MEMORY_LEFT: u64 = 100 << 20;
const INODES_LEFT: u64 = 20;
/// A tenth of a large disk is no need: with this many bytes free a node is never short of disk.
const ENOUGH_DISK: u64 = 10 << 30;
/// A node with fewer process ids left than this part of all can hardly do anything.
const PIDS_LEFT: u64 = 20;

/// What a node can be short of, in the order in which it is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Pressure {
    Memory,
    Disk,
    Inodes,
    Pids,
}

impl Pressure {
    /// The resource as messages name it.
    fn word(self) -> &'static str {
        match self {
            Pressure::Memory => "memory",
            Pressure::Disk => "ephemeral-storage",
            Pressure::Inodes => "inodes",
            Pressure::Pids => "pids",
        }
    }
}

/// A file system, in bytes and inodes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    pub size: u64,
    pub free: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// The levels that thresholds are compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signals {
    pub memory_available: u64,
    pub disk: Option<Disk>,
    /// All process ids, and those in use.
    pub pids: Option<(u64, u64)>,
}

/// What a pod uses.
#[derive(Debug, Clone, Default)]
pub(super) struct Use {
    /// Working set in bytes.
    pub memory: u64,
    /// Bytes of writable layers, logs and emptyDirs on disk.
    pub disk: u64,
    pub inodes: u64,
    pub processes: u64,
    /// Bytes on disk of each container (writable layer and logs) and working set, by name.
    pub containers: Vec<(String, u64, u64)>,
    /// Bytes of each emptyDir on disk, by volume name.
    pub empty_dirs: Vec<(String, u64)>,
}

fn disk_threshold(disk: &Disk) -> u64 {
    (disk.size / 10).min(ENOUGH_DISK)
}

/// What the node is short of.
pub(super) fn met(signals: &Signals) -> Vec<Pressure> {
    let mut met = Vec::new();
    if signals.memory_available < MEMORY_LEFT {
        met.push(Pressure::Memory);
    }
    if let Some(disk) = &signals.disk {
        if disk.free < disk_threshold(disk) {
            met.push(Pressure::Disk);
        }
        if disk.inodes > 0 && disk.inodes_free < disk.inodes / INODES_LEFT {
            met.push(Pressure::Inodes);
        }
    }
    if signals.pids.is_some_and(|(all, used)| all.saturating_sub(used) < all / PIDS_LEFT) {
        met.push(Pressure::Pids);
    }
    met
}

/// The pods by who goes first (indexes): those that use more than they asked for, then by priority, then by how much more.
pub(super) fn rank(pressure: Pressure, pods: &[Arc<Pod>], uses: &[Use]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..pods.len().min(uses.len())).collect();
    order.sort_by_key(|index| {
        let (pod, used) = (&pods[*index], &uses[*index]);
        let priority = spec(pod).priority.unwrap_or(0);
        let (within, over) = match pressure {
            Pressure::Memory => over(used.memory, request(pod, "memory")),
            Pressure::Disk => over(used.disk, request(pod, "ephemeral-storage")),
            Pressure::Inodes => (false, i128::from(used.inodes)),
            Pressure::Pids => (false, i128::from(used.processes)),
        };
        (within, priority, Reverse(over))
    });
    order
}

fn over(used: u64, asked: u64) -> (bool, i128) {
    (used <= asked, i128::from(used) - i128::from(asked))
}

fn request(pod: &Pod, name: &str) -> u64 {
    u64::try_from(crate::admission::request(pod, name, false)).unwrap_or(0)
}

/// What the evicted pod's status tells.
pub(super) fn message(pressure: Pressure, signals: &Signals, pod: &Pod, used: &Use) -> String {
    let word = pressure.word();
    let mut text = format!("The node was low on resource: {word}. ");
    let threshold = match (pressure, &signals.disk, signals.pids) {
        (Pressure::Memory, _, _) => Some((bytes(MEMORY_LEFT), bytes(signals.memory_available))),
        (Pressure::Disk, Some(disk), _) => Some((bytes(disk_threshold(disk)), bytes(disk.free))),
        (Pressure::Inodes, Some(disk), _) => {
            Some(((disk.inodes / INODES_LEFT).to_string(), disk.inodes_free.to_string()))
        }
        (Pressure::Pids, _, Some((all, used))) => {
            Some(((all / PIDS_LEFT).to_string(), all.saturating_sub(used).to_string()))
        }
        _ => None,
    };
    if let Some((threshold, available)) = threshold {
        text.push_str(&format!("Threshold quantity: {threshold}, available: {available}. "));
    }
    let everyone = spec(pod).containers.iter().chain(podutil::init_containers(pod));
    for container in everyone {
        let Some((_, disk, memory)) = used.containers.iter().find(|(name, ..)| *name == container.name)
        else {
            continue;
        };
        let found = match pressure {
            Pressure::Memory => *memory,
            Pressure::Disk => *disk,
            Pressure::Inodes | Pressure::Pids => continue,
        };
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let asked = quantity::amount(requests, word).and_then(|asked| u64::try_from(asked).ok()).unwrap_or(0);
        if found > asked {
            let name = &container.name;
            let (found, asked) = (bytes(found), bytes(asked));
            text.push_str(&format!(
                "Container {name} was using {found}, request is {asked}, has larger consumption of {word}. "
            ));
        }
    }
    text
}

/// Bytes as a quantity with the largest unit that keeps it exact.
pub(super) fn bytes(count: u64) -> String {
    let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let whole = units.into_iter().find(|(_, shift)| count > 0 && count.is_multiple_of(1 << shift));
    whole.map_or_else(|| count.to_string(), |(unit, shift)| format!("{}{unit}", count >> shift))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32, memory: &str) -> Arc<Pod> {
        let resources = json!({"requests": {"memory": memory}});
        let pod = json!({"metadata": {"name": name, "uid": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}]}});
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn who_uses_more_than_asked_goes_first() {
        let pods =
            [pod("within", -5, "1Gi"), pod("much", 10, "0"), pod("more", 0, "10Mi"), pod("most", 0, "10Mi")];
        let uses = [900, 500, 20, 30].map(|memory| Use { memory: memory << 20, ..Use::default() });
        assert_eq!(rank(Pressure::Memory, &pods, &uses), [3, 2, 1, 0]);
    }

    #[test]
    fn thresholds() {
        const GIB: u64 = 1 << 30;
        let calm = Signals {
            memory_available: GIB,
            disk: Some(Disk { size: 500 * GIB, free: 20 * GIB, inodes: 100, inodes_free: 50 }),
            pids: Some((1000, 100)),
        };
        assert!(met(&calm).is_empty(), "a large disk is full later");
        let small = Disk { size: 50 * GIB, free: 4 * GIB, inodes: 100, inodes_free: 4 };
        let bad = Signals { memory_available: 50 << 20, disk: Some(small), pids: Some((1000, 960)) };
        assert_eq!(met(&bad), [Pressure::Memory, Pressure::Disk, Pressure::Inodes, Pressure::Pids]);
        let used = Use { memory: 64 << 20, containers: vec![("c".into(), 0, 64 << 20)], ..Use::default() };
        assert_eq!(
            message(Pressure::Memory, &bad, &pod("p", 0, "10Mi"), &used),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 64Mi, request is 10Mi, has larger consumption of memory. "
        );
    }
}
