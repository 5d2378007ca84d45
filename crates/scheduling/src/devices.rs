//! Devices for ResourceClaims (DRA, KEP-4381 and those that build on it): which devices that a node can use satisfy all
//! requests and constraints of a pod's claims. Rules: upstream's structured allocator with the features of v1.36.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Node, NodeSelector, Pod};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceClaim, DeviceRequestAllocationResult, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::Refusal;
use crate::selector::node_selector;
use crate::snapshot::NodeInfo;

mod capacity;
mod extended;
mod inventory;
mod requests;
mod result;
mod search;
mod selectors;

pub use extended::Extended;
pub use inventory::Inventory;
pub use selectors::Selectors;

use capacity::Amounts;
use search::{Search, Stop};

/// Devices that are looked at for one pod on one node, and on all nodes, at most.
const MOST_STEPS: usize = 100_000;
const MOST_STEPS_OF_POD: usize = 3_000_000;
/// Alternatives of a request, at most (`FirstAvailableDeviceRequestMaxSize`).
const MOST_ALTERNATIVES: usize = 8;

type Exact = api::quantity::Quantity;

/// An amount; one that cannot be read counts as none.
fn exact(quantity: &Quantity) -> Exact {
    quantity.0.parse().unwrap_or_else(|_| Exact::new(0, api::quantity::Format::DecimalSi))
}

/// A device of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceId {
    pub driver: String,
    pub pool: String,
    pub device: String,
}

impl DeviceId {
    fn of(result: &DeviceRequestAllocationResult) -> Self {
        Self { driver: result.driver.clone(), pool: result.pool.clone(), device: result.device.clone() }
    }
}

/// What is allocated by now.
#[derive(Debug, Default)]
pub struct Taken {
    /// Those that one claim has for itself.
    devices: HashSet<DeviceId>,
    /// Those that several may have.
    shared: HashSet<DeviceId>,
    /// What is taken of the capacity of those.
    capacity: HashMap<DeviceId, Amounts>,
}

impl Taken {
    /// Counts an allocation. Access of administrators takes nothing.
    pub fn add(&mut self, allocation: &AllocationResult) {
        let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
        for result in results.filter(|result| result.admin_access != Some(true)) {
            let id = DeviceId::of(result);
            if result.share_id.is_none() {
                self.devices.insert(id);
                continue;
            }
            let amounts = self.capacity.entry(id.clone()).or_default();
            for (name, amount) in result.consumed_capacity.iter().flatten() {
                let sum = amounts.get(name).map_or_else(|| exact(amount), |sum| sum.add(&exact(amount)));
                amounts.insert(name.clone(), sum);
            }
            self.shared.insert(id);
        }
    }

    fn has(&self, id: &DeviceId) -> bool {
        self.devices.contains(id) || self.shared.contains(id)
    }
}

/// A claim of the pod that is allocated.
#[derive(Debug, Clone)]
pub struct Allocated {
    pub claim: Arc<ResourceClaim>,
    /// Its devices failed to get ready, so that others should be found.
    pub broken: bool,
}

impl Allocated {
    fn result(&self) -> Option<&AllocationResult> {
        self.claim.status.as_ref()?.allocation.as_ref()
    }

    fn selector(&self) -> Option<&NodeSelector> {
        self.result()?.node_selector.as_ref()
    }
}

/// What would be allocated on a node.
#[derive(Debug, Clone, Default)]
pub struct Allocation {
    /// For each claim that is open, in their order. A device that can be allocated several times has an empty share ID, in whose
    /// place a new one is to be put.
    pub results: Vec<AllocationResult>,
    /// For the pod's extended resources: what the claim asks for that is to be made, and its devices.
    pub extended: Option<(Extended, AllocationResult)>,
    /// How well the preferred alternatives are met.
    score: i64,
}

/// What a pod needs of devices. Nodes are asked one by one; each answer is kept.
pub struct DeviceNeeds {
    inventory: Arc<Inventory>,
    selectors: Arc<Selectors>,
    taken: Taken,
    pod: Arc<Pod>,
    allocated: Vec<Allocated>,
    open: Vec<Arc<ResourceClaim>>,
    /// Extended resources that the pod asks for and a class stands behind, with the class's name.
    resources: BTreeMap<String, String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<String, Result<Allocation, Refusal>>,
    unavailable: BTreeSet<usize>,
    fault: Option<String>,
    steps: usize,
}

impl fmt::Debug for DeviceNeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceNeeds")
            .field("allocated", &self.allocated.len())
            .field("open", &self.open.len())
            .field("resources", &self.resources)
            .finish_non_exhaustive()
    }
}

impl DeviceNeeds {
    /// Needs of a pod whose claims are `allocated` or `open`, and of those of its extended resources that are given with the name
    /// of their class.
    ///
    /// # Errors
    /// If no node can do, and why.
    pub fn new(
        inventory: Arc<Inventory>,
        selectors: Arc<Selectors>,
        taken: Taken,
        pod: Arc<Pod>,
        (allocated, open): (Vec<Allocated>, Vec<Arc<ResourceClaim>>),
        resources: BTreeMap<String, String>,
    ) -> Result<Self, String> {
        for claim in &open {
            requests::read(&inventory, claim)?;
        }
        let state = Mutex::default();
        Ok(Self { inventory, selectors, taken, pod, allocated, open, resources, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the node gives the resource as devices, rather than counting it.
    pub(crate) fn is_delegated(&self, resource: &str, info: &NodeInfo) -> bool {
        self.resources.contains_key(resource)
            && info.allocatable.scalar.get(resource).copied().unwrap_or_default() == 0
    }

    /// Whether some extended resource may be given as devices.
    pub(crate) fn has_resources(&self) -> bool {
        !self.resources.is_empty()
    }

    /// Whether the node can have the pod's devices.
    pub(crate) fn check(&self, info: &NodeInfo) -> Result<(), Refusal> {
        let Some(node) = &info.node else { return Ok(()) };
        let mut state = self.state();
        if let Some(known) = state.nodes.get(info.name()) {
            return known.as_ref().map(|_| ()).map_err(Refusal::clone);
        }
        let answer = self.find(info, node, &mut state);
        let said = answer.as_ref().map(|_| ()).map_err(Refusal::clone);
        state.nodes.insert(info.name().to_owned(), answer);
        said
    }

    fn find(&self, info: &NodeInfo, node: &Node, state: &mut State) -> Result<Allocation, Refusal> {
        if let Some(why) = &state.fault {
            return Err(Refusal::lasting(why));
        }
        let unavailable: Vec<usize> = (0..self.allocated.len())
            .filter(|at| {
                let one = &self.allocated[*at];
                one.broken || one.selector().is_some_and(|selector| !node_selector(selector, node))
            })
            .collect();
        let allocation = self.allocate(info, node, state)?;
        if unavailable.is_empty() {
            return Ok(allocation);
        }
        state.unavailable.extend(unavailable);
        Err(Refusal::lasting("resourceclaim not available on the node"))
    }

    fn allocate(&self, info: &NodeInfo, node: &Node, state: &mut State) -> Result<Allocation, Refusal> {
        let here = self.resources.iter().filter(|(resource, _)| self.is_delegated(resource, info));
        let here: BTreeMap<String, String> = here.map(|(a, b)| (a.clone(), b.clone())).collect();
        let extended = (!here.is_empty()).then(|| extended::requests(&self.pod, &here));
        let extended = extended.filter(|extended| !extended.requests.is_empty());
        let made = extended.as_ref().map(|extended| ResourceClaim {
            spec: ResourceClaimSpec {
                devices: Some(DeviceClaim {
                    requests: Some(extended.requests.clone()),
                    ..DeviceClaim::default()
                }),
            },
            ..ResourceClaim::default()
        });
        let claims: Vec<&ResourceClaim> = self.open.iter().map(Arc::as_ref).chain(&made).collect();
        let mut results = Vec::new();
        if !claims.is_empty() {
            let asked: Result<Vec<_>, String> =
                claims.iter().map(|claim| requests::read(&self.inventory, claim)).collect();
            let asked = asked.map_err(|why| Refusal::lasting(&why))?;
            let pools = self.inventory.pools(node);
            let steps = MOST_STEPS.min(MOST_STEPS_OF_POD.saturating_sub(state.steps));
            let mut search = Search::new(&asked, &pools, &self.taken, &self.selectors, steps);
            let done = search.run();
            state.steps += steps - search.left();
            match done {
                Ok(true) => {}
                Ok(false) => return Err(Refusal::lasting("cannot allocate all claims")),
                Err(Stop::Node(why)) => return Err(Refusal::lasting(&why)),
                Err(Stop::Fault(why)) => {
                    state.fault = Some(why.clone());
                    return Err(Refusal::lasting(&why));
                }
            }
            let of = |(at, asked)| result::allocation(at, asked, &search.chosen, node);
            results = asked.iter().enumerate().map(of).collect();
        }
        let mut score = 0;
        let allocated = self.allocated.iter().filter_map(|one| Some((one.claim.as_ref(), one.result()?)));
        for (claim, result) in allocated.chain(claims.iter().copied().zip(&results)) {
            score += preference(claim, result);
        }
        let extended = extended.and_then(|extended| Some((extended, results.pop()?)));
        Ok(Allocation { results, extended, score })
    }

    /// What would be allocated on a node that was found fit.
    pub fn on(&self, node: &str) -> Option<Allocation> {
        self.state().nodes.get(node).and_then(|answer| answer.as_ref().ok().cloned())
    }

    pub(crate) fn score(&self, node: &str) -> i64 {
        let state = self.state();
        state.nodes.get(node).and_then(|answer| answer.as_ref().ok()).map_or(0, |found| found.score)
    }

    /// What is wrong with the claims or their classes, whatever the node.
    pub(crate) fn fault(&self) -> Option<String> {
        self.state().fault.clone()
    }

    /// Claims whose devices some node could not reach, and without which it would have done.
    pub fn unavailable(&self) -> Vec<Arc<ResourceClaim>> {
        self.state().unavailable.iter().map(|at| self.allocated[*at].claim.clone()).collect()
    }

    /// The claims that are to be allocated.
    pub fn open(&self) -> &[Arc<ResourceClaim>] {
        &self.open
    }
}

/// How much the alternatives that were chosen are the preferred ones.
fn preference(claim: &ResourceClaim, result: &AllocationResult) -> i64 {
    let results = result.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    let names: BTreeSet<&str> = results.map(|result| result.request.as_str()).collect();
    let requests = claim.spec.devices.iter().flat_map(|devices| devices.requests.iter().flatten());
    let of = |request: &k8s_openapi::api::resource::v1::DeviceRequest| -> usize {
        let alternatives = request.first_available.iter().flatten().enumerate();
        let chosen =
            alternatives.filter(|(_, one)| names.contains(format!("{}/{}", request.name, one.name).as_str()));
        chosen.map(|(at, _)| MOST_ALTERNATIVES.saturating_sub(at)).sum()
    };
    requests.map(|request| i64::try_from(of(request)).unwrap_or_default()).sum()
}

#[cfg(test)]
mod tests;
