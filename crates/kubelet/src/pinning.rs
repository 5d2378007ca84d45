//! Which processors, memory nodes and devices the containers of this node have: the CPU, memory and topology managers. A pod gets
//! all of its before it starts, or is refused. What was given is kept in files under upstream's names, so that a restart
//! gives nothing twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use topology::hints::{self, Hint, Hints, Merger, NodeSet, Policy};
use topology::{CpuSet, Machine, cpus, memory};

use crate::config::KubeletConfig;
use crate::context::Context;
use crate::devices::Devices;
use crate::node::capacity;
use crate::podutil::{self, init_containers, is_sidecar, spec};
use crate::quantity;
use crate::status::Verdict;

mod follow;

pub(crate) use follow::run;

const CPU_FILE: &str = "cpu_manager_state";
const MEMORY_FILE: &str = "memory_manager_state";

/// Why the managers cannot work.
#[derive(Debug, thiserror::Error)]
pub enum PinningError {
    #[error(transparent)]
    Machine(#[from] topology::MachineError),
    #[error("CPU manager: {0}")]
    Cpu(#[from] cpus::CpuError),
    #[error("memory manager: {0}")]
    Memory(#[from] memory::MemoryError),
    #[error("{path}: {why}; drain the node and remove the file if the policy was changed on purpose")]
    State { path: PathBuf, why: String },
    #[error("the machine has more NUMA nodes than max-allowable-numa-nodes of topologyManagerPolicyOptions")]
    Nodes,
    #[error(
        "memory manager: reservedMemory has {has} bytes of memory, but kubeReserved, systemReserved and evictionHard make {wanted}"
    )]
    Reserved { has: u64, wanted: u64 },
}

/// A file of what was given.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept<T> {
    policy_name: String,
    #[serde(flatten)]
    state: T,
}

#[derive(Default)]
struct Inner {
    cpus: Option<cpus::Static>,
    memory: Option<memory::Static>,
}

/// The managers of the node.
pub(crate) struct Pinning {
    root: PathBuf,
    merger: Merger,
    whole_pods: bool,
    inner: Mutex<Inner>,
    /// Pods are let in one after another.
    turn: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
}

impl Pinning {
    /// Sets the managers up as the configuration says, going on from what is kept.
    pub(crate) fn new(config: &KubeletConfig) -> Result<Self, PinningError> {
        let settings = &config.settings;
        let policy = Policy::parse(&settings.topology_manager_policy).unwrap_or_default();
        let with_cpus = settings.cpu_manager_policy == "static";
        let with_memory = settings.memory_manager_policy == "Static";
        let machine = match policy != Policy::None || with_cpus || with_memory {
            true => Machine::read(&config.sysfs)?,
            // Nobody asks; devices alone may have hints, and those are for the policy.
            false => Machine::default(),
        };
        let options = hints::Options::parse(&settings.topology_manager_policy_options).unwrap_or_default();
        let merger = Merger::new(policy, options, &machine);
        if merger.too_many() {
            return Err(PinningError::Nodes);
        }
        let mut inner = Inner::default();
        let path = config.root_dir.join(CPU_FILE);
        if with_cpus {
            let explicit = CpuSet::parse(&settings.reserved_system_cpus).unwrap_or_default();
            let options = cpus::Options::parse(&settings.cpu_manager_policy_options).unwrap_or_default();
            let reserved = capacity::reserved(settings, "cpu");
            let mut manager = cpus::Static::new(machine.clone(), options, &explicit, reserved)?;
            if let Some(state) = read::<cpus::State>(&path, "static")? {
                let why = |error: cpus::CpuError| PinningError::State {
                    path: path.clone(),
                    why: error.to_string(),
                };
                manager.restore(state).map_err(why)?;
            }
            inner.cpus = Some(manager);
        } else {
            read::<cpus::State>(&path, "none")?;
        }
        let path = config.root_dir.join(MEMORY_FILE);
        if with_memory {
            let mut manager = memory::Static::new(&machine, &reserved_memory(config)?)?;
            if let Some(state) = read::<memory::State>(&path, "Static")? {
                let why = |error: memory::MemoryError| PinningError::State {
                    path: path.clone(),
                    why: error.to_string(),
                };
                manager.restore(state).map_err(why)?;
            }
            inner.memory = Some(manager);
        } else {
            read::<memory::State>(&path, "None")?;
        }
        let pinning = Pinning {
            root: config.root_dir.clone(),
            merger,
            whole_pods: settings.topology_manager_scope == "pod",
            inner: Mutex::new(inner),
            turn: tokio::sync::Mutex::default(),
            changed: watch::channel(0).0,
        };
        pinning.keep();
        Ok(pinning)
    }

    /// Whether containers have processors of their own here.
    pub(crate) fn pins_cpus(&self) -> bool {
        self.inner.lock().cpus.is_some()
    }

    /// Changes whenever the shared pool does.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The processors on which the container runs, and whether they are its own; `None` if any.
    pub(crate) fn cpus(&self, uid: &str, container: &str) -> Option<(CpuSet, bool)> {
        let inner = self.inner.lock();
        let manager = inner.cpus.as_ref()?;
        let own = manager.given(uid, container).cloned();
        Some(own.map_or_else(|| (manager.shared().clone(), false), |own| (own, true)))
    }

    /// The memory nodes of the container; `None` if any.
    pub(crate) fn memory_nodes(&self, uid: &str, container: &str) -> Option<NodeSet> {
        self.inner.lock().memory.as_ref()?.nodes(uid, container)
    }

    /// Processors that pods could have for themselves.
    pub(crate) fn allocatable_cpus(&self) -> CpuSet {
        self.inner.lock().cpus.as_ref().map(cpus::Static::allocatable).unwrap_or_default()
    }

    /// What the container has of memory, by block.
    pub(crate) fn memory(&self, uid: &str, container: &str) -> Vec<memory::Block> {
        let inner = self.inner.lock();
        let found = inner.memory.as_ref().and_then(|manager| manager.given(uid, container));
        found.map(<[memory::Block]>::to_vec).unwrap_or_default()
    }

    /// What pods can have of each memory node.
    pub(crate) fn allocatable_memory(&self) -> BTreeMap<u32, memory::Amounts> {
        let inner = self.inner.lock();
        inner.memory.as_ref().map(|manager| manager.state().nodes.clone()).unwrap_or_default()
    }

    /// Gives the pod what it needs, or says why it cannot be let in. Asking again changes nothing.
    pub(crate) async fn admit(&self, context: &Context, pod: &Pod) -> Option<Verdict> {
        let _turn = self.turn.lock().await;
        let refused = self.place(context, pod).await;
        if refused.is_some() {
            self.release_now(pod);
            context.devices.release(podutil::uid(pod));
        }
        self.keep();
        refused
    }

    async fn place(&self, context: &Context, pod: &Pod) -> Option<Verdict> {
        let everyone: Vec<&Container> = init_containers(pod).iter().chain(&spec(pod).containers).collect();
        let whole = if self.whole_pods && self.merger.policy() != Policy::None {
            let (best, admit) = self.merger.merge(&self.pod_hints(context, pod));
            if !admit {
                return Some(misplaced());
            }
            Some(best)
        } else {
            None
        };
        for container in everyone {
            let best = match whole {
                Some(best) => best,
                None => {
                    let (best, admit) =
                        self.merger.merge(&self.container_hints(Some(&context.devices), pod, container));
                    if !admit {
                        return Some(misplaced());
                    }
                    best
                }
            };
            if let Some(verdict) = self.give(pod, container, best) {
                return Some(verdict);
            }
            if let Err(error) = context.devices.allocate(pod, container, best).await {
                return Some(unexpected(&error));
            }
        }
        None
    }

    fn container_hints(&self, devices: Option<&Devices>, pod: &Pod, container: &Container) -> Vec<Hints> {
        let inner = self.inner.lock();
        let mut all = Vec::new();
        if let Some(manager) = &inner.cpus {
            all.push(one("cpu", manager.hints(cpu_want(pod, container))));
        }
        if let Some(manager) = &inner.memory {
            let amounts = amounts(pod, container);
            let want = memory_want(pod, container, &amounts);
            all.push(one("memory", manager.hints(want)));
        }
        all.extend(devices.map(|devices| devices.hints(pod, container, self.merger.all())));
        all
    }

    /// Hints for the pod as a whole: for the most that it needs at any time.
    fn pod_hints(&self, context: &Context, pod: &Pod) -> Vec<Hints> {
        let inner = self.inner.lock();
        let uid = podutil::uid(pod);
        let mut all = Vec::new();
        if let Some(manager) = &inner.cpus {
            let count = peak(pod, |container| podutil::whole_cpus(pod, container) as u64);
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let held: usize = everyone(pod)
                .filter(|container| !passing(pod, container))
                .filter_map(|container| manager.given(uid, &container.name).map(CpuSet::len))
                .sum();
            let want = cpus::Want { pod: uid, container: "", count, passing: false };
            // A pod that has its processors already fits where they are.
            all.push(one("cpu", if held > 0 { None } else { manager.hints(want) }));
        }
        if let Some(manager) = &inner.memory {
            let mut total = memory::Amounts::new();
            for container in everyone(pod) {
                for name in amounts(pod, container).into_keys() {
                    let most = peak(pod, |one| amounts(pod, one).get(&name).copied().unwrap_or(0));
                    total.insert(name, most);
                }
            }
            let want = memory::Want { pod: uid, container: "", amounts: &total, passing: false };
            let held = everyone(pod).any(|container| manager.given(uid, &container.name).is_some());
            all.push(one("memory", if held { None } else { manager.hints(want) }));
        }
        // Devices of each container; a place that suits all of them suits the pod.
        all.extend(everyone(pod).map(|container| context.devices.hints(pod, container, self.merger.all())));
        all
    }

    fn give(&self, pod: &Pod, container: &Container, place: Hint) -> Option<Verdict> {
        let mut inner = self.inner.lock();
        if let Some(manager) = &mut inner.cpus {
            let before = manager.shared().clone();
            match manager.allocate(cpu_want(pod, container), place.nodes) {
                Ok(()) => {}
                Err(error @ cpus::CpuError::Alignment { .. }) => {
                    return Some(verdict("SMTAlignmentError", error.to_string()));
                }
                Err(error) => return Some(unexpected(&error)),
            }
            if *manager.shared() != before {
                self.changed.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
        if let Some(manager) = &mut inner.memory {
            let amounts = amounts(pod, container);
            if let Err(error) = manager.allocate(memory_want(pod, container, &amounts), place.nodes) {
                return Some(unexpected(&error));
            }
        }
        None
    }

    /// Takes back what the pod has.
    pub(crate) fn release(&self, pod: &Pod) {
        if self.release_now(pod) {
            self.keep();
        }
    }

    fn release_now(&self, pod: &Pod) -> bool {
        let uid = podutil::uid(pod);
        let mut inner = self.inner.lock();
        let processors = inner.cpus.as_mut().is_some_and(|manager| manager.release(uid));
        if processors {
            self.changed.send_modify(|count| *count = count.wrapping_add(1));
        }
        let memory = inner.memory.as_mut().is_some_and(|manager| manager.release(uid));
        processors || memory
    }

    /// Takes back what pods have that are not there any more.
    pub(crate) fn retain(&self, there: impl Fn(&str) -> bool) {
        let gone: Vec<String> = {
            let inner = self.inner.lock();
            let of_cpus = inner.cpus.iter().flat_map(|manager| manager.state().entries.keys());
            let of_memory = inner.memory.iter().flat_map(|manager| manager.state().entries.keys());
            of_cpus.chain(of_memory).filter(|uid| !there(uid)).cloned().collect()
        };
        for uid in &gone {
            let mut pod = Pod::default();
            pod.metadata.uid = Some(uid.clone());
            self.release_now(&pod);
        }
        if !gone.is_empty() {
            self.keep();
        }
    }

    fn keep(&self) {
        let inner = self.inner.lock();
        if let Some(manager) = &inner.cpus {
            write(&self.root.join(CPU_FILE), "static", manager.state());
        }
        if let Some(manager) = &inner.memory {
            write(&self.root.join(MEMORY_FILE), "Static", manager.state());
        }
    }
}

fn one(name: &str, hints: Option<Vec<Hint>>) -> Hints {
    Hints::from([(name.to_owned(), hints)])
}

fn verdict(reason: &str, message: String) -> Verdict {
    Verdict { reason: reason.to_owned(), message: format!("Pod was rejected: {message}") }
}

fn misplaced() -> Verdict {
    verdict("TopologyAffinityError", "Resources cannot be allocated with Topology locality".to_owned())
}

pub(crate) fn unexpected(error: &dyn std::fmt::Display) -> Verdict {
    verdict("UnexpectedAdmissionError", format!("Allocate failed due to {error}, which is unexpected"))
}

fn everyone(pod: &Pod) -> impl Iterator<Item = &Container> {
    init_containers(pod).iter().chain(&spec(pod).containers)
}

/// Whether the container ends before the next one starts.
fn passing(pod: &Pod, container: &Container) -> bool {
    !is_sidecar(container) && init_containers(pod).iter().any(|init| init.name == container.name)
}

fn cpu_want<'a>(pod: &'a Pod, container: &'a Container) -> cpus::Want<'a> {
    cpus::Want {
        pod: podutil::uid(pod),
        container: &container.name,
        count: podutil::whole_cpus(pod, container),
        passing: passing(pod, container),
    }
}

fn memory_want<'a>(pod: &'a Pod, container: &'a Container, amounts: &'a memory::Amounts) -> memory::Want<'a> {
    let passing = passing(pod, container);
    memory::Want { pod: podutil::uid(pod), container: &container.name, amounts, passing }
}

/// Memory and huge pages that a container of a Guaranteed pod asks for.
fn amounts(pod: &Pod, container: &Container) -> memory::Amounts {
    if podutil::qos_class(pod) != "Guaranteed" {
        return memory::Amounts::new();
    }
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let kept = requests
        .into_iter()
        .flatten()
        .filter(|(name, _)| *name == "memory" || name.starts_with("hugepages-"));
    let amount = |quantity| quantity::value(quantity).and_then(|amount| u64::try_from(amount).ok());
    kept.filter_map(|(name, asked)| Some((name.clone(), amount(asked).filter(|amount| *amount > 0)?)))
        .collect()
}

/// The most that the pod needs at any time.
fn peak(pod: &Pod, of: impl Fn(&Container) -> u64) -> u64 {
    let (mut sidecars, mut peak) = (0u64, 0u64);
    for container in init_containers(pod) {
        if is_sidecar(container) {
            sidecars += of(container);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + of(container));
        }
    }
    peak.max(sidecars + spec(pod).containers.iter().map(of).sum::<u64>())
}

/// What `reservedMemory` keeps of each node; of plain memory it has to be what is kept in all.
fn reserved_memory(config: &KubeletConfig) -> Result<BTreeMap<u32, memory::Amounts>, PinningError> {
    let settings = &config.settings;
    let mut reserved = BTreeMap::new();
    for one in &settings.reserved_memory {
        let amounts = one.limits.iter().filter_map(|(name, amount)| {
            Some((name.clone(), quantity::value(amount).and_then(|amount| u64::try_from(amount).ok())?))
        });
        reserved.insert(one.numa_node, amounts.collect::<memory::Amounts>());
    }
    let has: u64 = reserved.values().filter_map(|amounts| amounts.get("memory")).sum();
    let kept = crate::eviction::thresholds::kept(settings, "memory.available", capacity::memory());
    let wanted = capacity::reserved(settings, "memory") + kept;
    if has != wanted {
        return Err(PinningError::Reserved { has, wanted });
    }
    Ok(reserved)
}

/// What an earlier run kept, if it was of the same policy.
fn read<T: DeserializeOwned>(path: &Path, policy: &str) -> Result<Option<T>, PinningError> {
    let failed = |why: String| PinningError::State { path: path.to_owned(), why };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let kept: Kept<T> = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    if kept.policy_name != policy {
        return Err(failed(format!(
            "configured policy {policy:?} differs from state checkpoint policy {:?}",
            kept.policy_name
        )));
    }
    Ok(Some(kept.state))
}

/// Writes a file anew, so that it is whole at any time.
fn write<T: Serialize>(path: &Path, policy: &str, state: &T) {
    let kept = Kept { policy_name: policy.to_owned(), state };
    let text = serde_json::to_vec(&kept).unwrap_or_default();
    if std::fs::read(path).is_ok_and(|now| now == text) {
        return;
    }
    let aside = path.with_extension("new");
    let done = std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, path));
    if let Err(error) = done {
        tracing::warn!(%error, path = %path.display(), "cannot keep what was given to containers");
    }
}

#[cfg(test)]
mod tests;
