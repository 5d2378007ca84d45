//! What each pod of the node has been allotted of CPU and memory, which may differ from what its spec asks for while a
//! resize waits. Kept on disk beside the pod, so that a restart neither forgets a resize nor grants one by itself.
//! The rules are those of upstream's allocation manager (KEP-1287).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::durable;
use crate::podutil::{self, init_containers, is_sidecar, spec};
use crate::quantity;
use crate::volumes::pod_dir;

/// The resources that can change while a pod runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];
const FILE: &str = "allocation.json";

/// A resize that is not granted (yet).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    /// `Deferred` or `Infeasible`.
    pub reason: &'static str,
    pub message: String,
}

/// What became of a pod's wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The spec asks for what the pod has.
    Unchanged,
    /// What the spec asks for has been allotted just now.
    Granted,
    Pending(Pending),
}

/// Resources by container name.
type Allotted = BTreeMap<String, Resources>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Resources {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    requests: BTreeMap<String, Quantity>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    limits: BTreeMap<String, Quantity>,
}

struct Share {
    allotted: Allotted,
    /// Thousandths of a core, and bytes, that the pod counts for on the node.
    cpu: i64,
    memory: i64,
}

/// The allotments of all pods of the node.
pub(crate) struct Allocations {
    root: PathBuf,
    shares: Mutex<HashMap<String, Share>>,
    freed: watch::Sender<u64>,
}

impl Allocations {
    pub(crate) fn new(root: &Path) -> Self {
        Allocations { root: root.to_owned(), shares: Mutex::default(), freed: watch::channel(0).0 }
    }

    /// Changes whenever a pod gives something back.
    pub(crate) fn freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }

    /// The pod with what it has been allotted; a pod that is new here is allotted what its spec asks for.
    pub(crate) fn adopt(&self, pod: &Pod) -> Pod {
        let uid = podutil::uid(pod);
        let mut shares = self.shares.lock();
        if !shares.contains_key(uid) {
            let kept = self.read(uid);
            let allotted = kept.clone().unwrap_or_else(|| wanted(pod));
            // A pod that is on its way out gets no folder again that may have been taken away already.
            if kept.is_none() && !podutil::leaving(pod) {
                self.keep(uid, &allotted);
            }
            let share = share(&with(pod, &allotted), allotted);
            shares.insert(uid.to_owned(), share);
        }
        shares.get(uid).map_or_else(|| pod.clone(), |share| with(pod, &share.allotted))
    }

    /// Grants what the spec now asks for, if the node has it. Gives the pod with what it is allotted afterwards.
    /// `fixed` says why nothing of it can be granted, if so.
    pub(crate) fn ask(
        &self,
        pod: &Pod,
        allocatable: &BTreeMap<String, Quantity>,
        fixed: Option<&str>,
    ) -> (Pod, Outcome) {
        let uid = podutil::uid(pod);
        let mut shares = self.shares.lock();
        let Some(own) = shares.get(uid) else {
            drop(shares);
            return (self.adopt(pod), Outcome::Unchanged);
        };
        let wish = wanted(pod);
        if own.allotted == wish {
            return (pod.clone(), Outcome::Unchanged);
        }
        if let Some(why) = fixed {
            let pending = Pending { reason: "Infeasible", message: why.to_owned() };
            return (with(pod, &own.allotted), Outcome::Pending(pending));
        }
        let (cpu, memory) = counted(pod);
        let others = || shares.iter().filter(|(other, _)| *other != uid).map(|(_, share)| share);
        let cases = [
            (
                "cpu",
                cpu,
                quantity::milli_amount(Some(allocatable), "cpu"),
                others().map(|s| s.cpu).sum::<i64>(),
            ),
            (
                "memory",
                memory,
                quantity::amount(Some(allocatable), "memory"),
                others().map(|s| s.memory).sum(),
            ),
        ];
        let mut pending = None;
        for (name, asked, capacity, used) in cases {
            let capacity = capacity.unwrap_or(0);
            if asked > capacity {
                let message = format!(
                    "Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}"
                );
                pending = Some(Pending { reason: "Infeasible", message });
                break;
            }
            if asked > 0 && used + asked > capacity && pending.is_none() {
                let message = format!(
                    "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
                );
                pending = Some(Pending { reason: "Deferred", message });
            }
        }
        if let Some(pending) = pending {
            return (with(pod, &own.allotted), Outcome::Pending(pending));
        }
        self.keep(uid, &wish);
        let less = cpu < own.cpu || memory < own.memory;
        shares.insert(uid.to_owned(), Share { allotted: wish, cpu, memory });
        drop(shares);
        if less {
            self.freed.send_modify(|count| *count = count.wrapping_add(1));
        }
        (pod.clone(), Outcome::Granted)
    }

    /// What a pod counts for: thousandths of a core, and bytes.
    pub(crate) fn of(&self, uid: &str) -> Option<(i64, i64)> {
        self.shares.lock().get(uid).map(|share| (share.cpu, share.memory))
    }

    /// The pod runs no more.
    pub(crate) fn release(&self, uid: &str) {
        if self.shares.lock().remove(uid).is_some() {
            self.freed.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn read(&self, uid: &str) -> Option<Allotted> {
        let text = std::fs::read(pod_dir(&self.root, uid).join(FILE)).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(%error, uid, "the record of a pod's allotment is unreadable"))
            .ok()
    }

    fn keep(&self, uid: &str, allotted: &Allotted) {
        let dir = pod_dir(&self.root, uid);
        let write = || {
            failpoint::step("kubelet.allocation.folder");
            std::fs::create_dir_all(&dir)?;
            let (path, text) = (dir.join(FILE), serde_json::to_vec(allotted)?);
            if path.exists() {
                return durable::write(&path, &text);
            }
            // What the spec asks for anyway need not outlive a power cut, and many pods may come at once.
            let fresh = path.with_extension("new");
            std::fs::write(&fresh, text)?;
            failpoint::step("kubelet.allocation.rename");
            std::fs::rename(fresh, path)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, uid, "cannot keep the record of a pod's allotment");
        }
    }
}

/// Containers whose resources may change: regular ones and sidecars.
fn resizable(pod: &Pod) -> impl Iterator<Item = &Container> {
    spec(pod).containers.iter().chain(init_containers(pod).iter().filter(|container| is_sidecar(container)))
}

fn wanted(pod: &Pod) -> Allotted {
    let pick = |list: Option<&BTreeMap<String, Quantity>>| {
        let list = list.into_iter().flatten();
        list.filter(|(name, _)| RESIZABLE.contains(&name.as_str()))
            .map(|(n, q)| (n.clone(), q.clone()))
            .collect()
    };
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        Resources {
            requests: pick(resources.and_then(|resources| resources.requests.as_ref())),
            limits: pick(resources.and_then(|resources| resources.limits.as_ref())),
        }
    };
    resizable(pod).map(|container| (container.name.clone(), of(container))).collect()
}

/// The pod with its containers' CPU and memory as allotted.
fn with(pod: &Pod, allotted: &Allotted) -> Pod {
    let mut pod = pod.clone();
    let Some(spec) = pod.spec.as_mut() else { return pod };
    let sidecars = spec.init_containers.iter_mut().flatten().filter(|container| is_sidecar(container));
    for container in spec.containers.iter_mut().chain(sidecars) {
        let Some(own) = allotted.get(&container.name) else { continue };
        let resources = container.resources.get_or_insert_default();
        replace(&mut resources.requests, &own.requests);
        replace(&mut resources.limits, &own.limits);
        if *resources == ResourceRequirements::default() {
            container.resources = None;
        }
    }
    pod
}

fn replace(list: &mut Option<BTreeMap<String, Quantity>>, own: &BTreeMap<String, Quantity>) {
    let mut merged = list.take().unwrap_or_default();
    merged.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
    merged.extend(own.iter().map(|(name, quantity)| (name.clone(), quantity.clone())));
    *list = (!merged.is_empty()).then_some(merged);
}

fn share(pod: &Pod, allotted: Allotted) -> Share {
    let (cpu, memory) = counted(pod);
    Share { allotted, cpu, memory }
}

/// What the scheduler counts for the pod.
fn counted(pod: &Pod) -> (i64, i64) {
    (crate::admission::request(pod, "cpu", true), crate::admission::request(pod, "memory", false))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, cpu: &str) -> Pod {
        let resources = json!({"requests": {"cpu": cpu, "x.io/y": "1"}});
        let pod = json!({"metadata": {"name": uid, "uid": uid},
            "spec": {"containers": [{"name": "a", "resources": resources}]}});
        serde_json::from_value(pod).expect("a pod")
    }

    fn cpu(pod: &Pod) -> String {
        let resources = spec(pod).containers[0].resources.clone().unwrap_or_default();
        resources.requests.unwrap_or_default().get("cpu").map_or(String::new(), |q| q.0.clone())
    }

    #[test]
    fn a_resize_is_granted_deferred_or_infeasible() {
        let dir = tempfile::tempdir().expect("a directory");
        let allocations = Allocations::new(dir.path());
        let node = BTreeMap::from([("cpu".to_owned(), Quantity("2".to_owned()))]);
        allocations.adopt(&pod("a", "500m"));
        allocations.adopt(&pod("b", "1"));
        assert_eq!(allocations.ask(&pod("a", "500m"), &node, None).1, Outcome::Unchanged);
        assert_eq!(allocations.ask(&pod("a", "1"), &node, None).1, Outcome::Granted);
        let reason = |outcome| match outcome {
            Outcome::Pending(pending) => pending.reason,
            _ => "",
        };
        let (allotted, outcome) = allocations.ask(&pod("a", "1500m"), &node, None);
        assert_eq!((cpu(&allotted).as_str(), reason(outcome)), ("1", "Deferred"));
        assert_eq!(reason(allocations.ask(&pod("a", "3"), &node, None).1), "Infeasible");
        let fixed = allocations.ask(&pod("a", "500m"), &node, Some("it is fixed")).1;
        assert_eq!(reason(fixed), "Infeasible");
        allocations.release("b");
        assert_eq!(allocations.ask(&pod("a", "1500m"), &node, None).1, Outcome::Granted);
        // A later run of the kubelet knows what was allotted, whatever the spec asks for by then.
        let later = Allocations::new(dir.path());
        let adopted = later.adopt(&pod("a", "7"));
        assert_eq!(cpu(&adopted), "1500m");
        assert_eq!(later.of("a").map(|(cpu, _)| cpu), Some(1500));
    }
}
