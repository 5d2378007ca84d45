//! Whether the node is short of something, and which pod goes first: pure functions of thresholds, levels, pods and their use.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use super::thresholds::{ENOUGH_DISK, Level, Signal, Threshold};
use crate::podutil::{self, spec};
use crate::quantity;

/// What a node can be short of.
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

impl Signal {
    pub(super) fn pressure(self) -> Pressure {
        match self {
            Signal::Memory | Signal::AllocatableMemory => Pressure::Memory,
            Signal::NodeFs | Signal::ImageFs | Signal::ContainerFs => Pressure::Disk,
            Signal::NodeInodes | Signal::ImageInodes | Signal::ContainerInodes => Pressure::Inodes,
            Signal::Pids => Pressure::Pids,
        }
    }
}

/// A level of the machine: the whole of something, and what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observed {
    pub whole: u64,
    pub left: u64,
}

/// The levels that thresholds are compared with.
pub(super) type Signals = BTreeMap<Signal, Observed>;

/// What a pod uses.
#[derive(Debug, Clone, Default)]
pub(super) struct Use {
    /// Working set in bytes.
    pub memory: u64,
    /// Bytes of writable layers, logs and emptyDirs on disk.
    pub disk: u64,
    /// Of these, the bytes of writable layers.
    pub layers: u64,
    pub inodes: u64,
    pub processes: u64,
    /// Bytes on disk of each container (writable layer and logs) and working set, by name.
    pub containers: Vec<(String, u64, u64)>,
    /// Bytes of each emptyDir on disk, by volume name.
    pub empty_dirs: Vec<(String, u64)>,
}

/// The thresholds in force, and which of them have been crossed since when.
pub(super) struct Watch {
    thresholds: Vec<Threshold>,
    /// The standard disk thresholds hold only while little is left in absolute terms.
    lenient: bool,
    since: Vec<Option<Instant>>,
}

impl Watch {
    pub(super) fn new(thresholds: Vec<Threshold>, lenient: bool) -> Self {
        let since = vec![None; thresholds.len()];
        Watch { thresholds, lenient, since }
    }

    /// The level below which the threshold is crossed.
    fn level(&self, threshold: &Threshold, whole: u64) -> u64 {
        let level = threshold.level.of(whole);
        match (threshold.signal.pressure(), threshold.level) {
            (Pressure::Disk, Level::Part(_)) if self.lenient => level.min(ENOUGH_DISK),
            _ => level,
        }
    }

    fn crossed(&self, index: usize, signals: &Signals) -> bool {
        let threshold = &self.thresholds[index];
        let Some(seen) = signals.get(&threshold.signal) else { return false };
        let mut level = self.level(threshold, seen.whole);
        if self.since[index].is_some() {
            // Once crossed, there has to be some more before it is over.
            level = level.saturating_add(threshold.reclaim.map_or(0, |more| more.of(seen.whole)));
        }
        seen.left < level
    }

    /// Takes note of the levels; tells what the node is short of, whether or not it is time to act.
    pub(super) fn note(&mut self, signals: &Signals, now: Instant) -> Vec<Pressure> {
        let mut short = Vec::new();
        for index in 0..self.thresholds.len() {
            let crossed = self.crossed(index, signals);
            self.since[index] = if crossed { self.since[index].or(Some(now)) } else { None };
            if crossed {
                short.push(self.thresholds[index].signal.pressure());
            }
        }
        short.sort_unstable();
        short.dedup();
        short
    }

    /// The first threshold that has been crossed for as long as it has to be; hard ones before soft ones of a signal.
    pub(super) fn due(&self, now: Instant) -> Option<Threshold> {
        let waited = |threshold: &Threshold, since: &Option<Instant>| {
            since.is_some_and(|since| now.duration_since(since) >= threshold.grace.unwrap_or(Duration::ZERO))
        };
        let mut due = self.thresholds.iter().zip(&self.since).filter(|(one, since)| waited(one, since));
        due.next().map(|(threshold, _)| *threshold)
    }

    /// Whether what is left satisfies the threshold now.
    pub(super) fn satisfied(&self, threshold: &Threshold, signals: &Signals) -> bool {
        let index = self.thresholds.iter().position(|one| one == threshold);
        index.is_none_or(|index| !self.crossed(index, signals))
    }

    /// What the evicted pod's status tells.
    pub(super) fn message(&self, threshold: &Threshold, signals: &Signals, pod: &Pod, used: &Use) -> String {
        let pressure = threshold.signal.pressure();
        let word = pressure.word();
        let mut text = format!("The node was low on resource: {word}. ");
        if let Some(seen) = signals.get(&threshold.signal) {
            let level = self.level(threshold, seen.whole);
            let show = |count: u64| match pressure {
                Pressure::Memory | Pressure::Disk => bytes(count),
                Pressure::Inodes | Pressure::Pids => count.to_string(),
            };
            text.push_str(&format!("Threshold quantity: {}, available: {}. ", show(level), show(seen.left)));
        }
        consumers(pressure, pod, used, &mut text);
        text
    }
}

/// Names the containers that use more than they asked for.
fn consumers(pressure: Pressure, pod: &Pod, used: &Use, text: &mut String) {
    let word = pressure.word();
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
}

/// The pods by who goes first (indexes): those that use more than they asked for, then by priority, then by how much more.
/// Where images and layers have a file system of their own (`apart`), only what lies on the one that is short counts.
pub(super) fn rank(signal: Signal, apart: bool, pods: &[Arc<Pod>], uses: &[Use]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..pods.len().min(uses.len())).collect();
    order.sort_by_key(|index| {
        let (pod, used) = (&pods[*index], &uses[*index]);
        let priority = spec(pod).priority.unwrap_or(0);
        let (within, over) = match signal.pressure() {
            Pressure::Memory => over(used.memory, request(pod, "memory")),
            Pressure::Disk => {
                let disk = match signal {
                    Signal::NodeFs if apart => used.disk - used.layers.min(used.disk),
                    Signal::ImageFs | Signal::ContainerFs if apart => used.layers,
                    _ => used.disk,
                };
                over(disk, request(pod, "ephemeral-storage"))
            }
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

/// Bytes as a quantity with the largest unit that keeps it exact.
pub(super) fn bytes(count: u64) -> String {
    let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let whole = units.into_iter().find(|(_, shift)| count > 0 && count.is_multiple_of(1 << shift));
    whole.map_or_else(|| count.to_string(), |(unit, shift)| format!("{}{unit}", count >> shift))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::thresholds;
    use super::*;
    use crate::configuration;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn pod(name: &str, priority: i32, memory: &str) -> Arc<Pod> {
        let resources = json!({"requests": {"memory": memory}});
        let pod = json!({"metadata": {"name": name, "uid": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": resources}]}});
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn watch(fields: &str) -> Watch {
        let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}");
        let loaded = configuration::parse(&text).expect("a configuration").configuration;
        Watch::new(thresholds::of(&loaded).expect("thresholds"), loaded.eviction_hard.is_none())
    }

    fn levels(list: &[(Signal, u64, u64)]) -> Signals {
        list.iter().map(|(signal, whole, left)| (*signal, Observed { whole: *whole, left: *left })).collect()
    }

    #[test]
    fn who_uses_more_than_asked_goes_first() {
        let pods =
            [pod("within", -5, "1Gi"), pod("much", 10, "0"), pod("more", 0, "10Mi"), pod("most", 0, "10Mi")];
        let uses = [900, 500, 20, 30].map(|memory| Use { memory: memory << 20, ..Use::default() });
        assert_eq!(rank(Signal::Memory, false, &pods, &uses), [3, 2, 1, 0]);
        let uses =
            [(10, 1), (9, 8), (0, 0), (1, 0)].map(|(disk, layers)| Use { disk, layers, ..Use::default() });
        let plain = [pod("a", 0, "0"), pod("b", 0, "0"), pod("c", 0, "0"), pod("d", 0, "0")];
        assert_eq!(rank(Signal::NodeFs, false, &plain, &uses)[0], 0);
        assert_eq!(rank(Signal::ContainerFs, true, &plain, &uses)[0], 1, "layers alone count");
    }

    #[test]
    fn the_standard_thresholds() {
        let mut watch = watch("");
        let now = Instant::now();
        let calm = levels(&[
            (Signal::Memory, 4 * GIB, GIB),
            (Signal::NodeFs, 500 * GIB, 20 * GIB),
            (Signal::NodeInodes, 100, 50),
            (Signal::Pids, 1000, 900),
        ]);
        assert!(watch.note(&calm, now).is_empty(), "a large disk is full later");
        let bad = levels(&[
            (Signal::Memory, 4 * GIB, 50 * MIB),
            (Signal::NodeFs, 50 * GIB, 4 * GIB),
            (Signal::NodeInodes, 100, 4),
            (Signal::Pids, 1000, 40),
        ]);
        let all = [Pressure::Memory, Pressure::Disk, Pressure::Inodes, Pressure::Pids];
        assert_eq!(watch.note(&bad, now), all);
        let due = watch.due(now).expect("due at once");
        let used = Use { memory: 64 * MIB, containers: vec![("c".into(), 0, 64 * MIB)], ..Use::default() };
        assert_eq!(
            watch.message(&due, &bad, &pod("p", 0, "10Mi"), &used),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 64Mi, request is 10Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn soft_thresholds_wait_and_some_more_is_reclaimed() {
        let mut watch = watch(
            "evictionHard: {memory.available: 100Mi}\nevictionSoft: {memory.available: 500Mi}\n\
             evictionSoftGracePeriod: {memory.available: 1m}\nevictionMinimumReclaim: {memory.available: 200Mi}\n",
        );
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let left = |left| levels(&[(Signal::Memory, GIB, left * MIB)]);
        assert_eq!(watch.note(&left(400), start), [Pressure::Memory], "told at once");
        assert_eq!(watch.due(at(59)), None);
        let due = watch.due(at(60)).expect("due");
        assert_eq!(due.grace, Some(Duration::from_secs(60)));
        assert!(!watch.satisfied(&due, &left(600)) && watch.satisfied(&due, &left(700)));
        watch.note(&left(600), at(70));
        assert!(watch.due(at(70)).is_some(), "less than the minimum was reclaimed");
        watch.note(&left(700), at(80));
        assert_eq!(watch.due(at(90)), None);
        watch.note(&left(50), at(100));
        assert_eq!(watch.due(at(100)).expect("hard").grace, None);
    }
}
