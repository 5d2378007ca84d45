//! ResourceClaims of pods (DRA): what they demand of nodes, and what is assumed of them until the API shows it. The choice of
//! devices is `scheduling`'s; what is written is in `write`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use informer::{Change, Factory, Informer};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceClass, DeviceRequestAllocationResult, ResourceClaim,
    ResourceClaimConsumerReference, ResourceSlice,
};
use parking_lot::Mutex;
use scheduling::PodInfo;
use scheduling::devices::{Allocated, DeviceNeeds, Extended, Inventory, Selectors, Taken};

mod write;

/// Marks a claim that was made for a pod's extended resources.
const EXTENDED: &str = "resource.kubernetes.io/extended-resource-claim";
/// Pods that may use a claim at once (`ResourceClaimReservedForMaxSize`).
const MOST_USERS: usize = 256;
/// How long devices have to get ready (upstream's default for `bindingTimeout`).
const LONGEST_BINDING: Duration = Duration::from_secs(600);

/// Why no node can do for a pod's claims.
#[derive(Debug)]
pub(crate) struct Impossible {
    pub reason: String,
    /// A claim of an earlier attempt, which is in the way.
    pub stale: Option<Arc<ResourceClaim>>,
}

impl From<String> for Impossible {
    fn from(reason: String) -> Self {
        Self { reason, stale: None }
    }
}

/// An allocation that the cache does not show yet.
#[derive(Clone)]
struct Assumed {
    pod: String,
    result: AllocationResult,
    /// The revision that the API has it in.
    written: Option<u64>,
}

/// What is assumed, between the choice of a node and the cache's knowing of it.
#[derive(Default)]
struct Assumptions {
    /// By the claim's uid.
    claims: HashMap<String, Assumed>,
    /// Claims that are to be made for extended resources, by the pod's uid.
    extended: HashMap<String, (Extended, AllocationResult)>,
    /// Those that were made, until the pod is bound.
    made: HashMap<String, ResourceClaim>,
}

/// The caches that decide about claims.
pub(crate) struct Claims {
    claims: Arc<Informer<ResourceClaim>>,
    slices: Arc<Informer<ResourceSlice>>,
    classes: Arc<Informer<DeviceClass>>,
    selectors: Arc<Selectors>,
    /// Made of slices and classes; none after one of them changed.
    inventory: Mutex<Option<Arc<Inventory>>>,
    assumed: Mutex<Assumptions>,
}

/// The claims that a pod names, and those made for it: each with its name in the pod, and whether it must be the pod's own. The
/// name is an error where the claim has not been made yet.
fn claims_of(pod: &Pod) -> impl Iterator<Item = (&str, Result<&str, ()>, bool)> {
    let listed = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    listed.filter_map(|one| {
        if let Some(name) = &one.resource_claim_name {
            return Some((one.name.as_str(), Ok(name.as_str()), false));
        }
        let mut statuses =
            pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
        match statuses.find(|status| status.name == one.name) {
            // None is needed if it has no name.
            Some(status) => Some((&one.name, Ok(status.resource_claim_name.as_deref()?), true)),
            None => Some((&one.name, Err(()), true)),
        }
    })
}

/// Whether the pod claims anything by name.
pub(crate) fn claims_something(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.resource_claims.as_ref().is_some_and(|list| !list.is_empty()))
}

/// Whether changes of claims, slices and classes can matter to the pod.
pub(crate) fn may_want_devices(pod: &Pod) -> bool {
    let asks = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        requests.into_iter().flatten().any(|(name, _)| name.contains('/'))
    };
    claims_something(pod)
        || pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.init_containers.iter().flatten().chain(&spec.containers).any(asks))
}

/// Whether the pod uses the claim.
pub(crate) fn uses(pod: &Pod, claim: &ResourceClaim) -> bool {
    pod.metadata.namespace == claim.metadata.namespace
        && claims_of(pod).any(|(_, name, _)| name.ok() == claim.metadata.name.as_deref())
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

fn revision(claim: &ResourceClaim) -> u64 {
    claim.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn users(claim: &ResourceClaim) -> impl Iterator<Item = &ResourceClaimConsumerReference> {
    claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten())
}

fn is_reserved(claim: &ResourceClaim, pod: &Pod) -> bool {
    users(claim).any(|user| user.uid == uid(pod))
}

/// What is allocated to the claim, as the object says.
pub(crate) fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let devices = allocation(claim).and_then(|allocation| allocation.devices.as_ref());
    devices.into_iter().flat_map(|devices| devices.results.iter().flatten())
}

fn owned_by(claim: &ResourceClaim, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == uid(pod))
}

/// Whether it was made for a pod's extended resources.
pub(crate) fn is_extended(claim: &ResourceClaim) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(EXTENDED)).is_some_and(|value| value == "true")
}

/// Whether the devices wait for nothing any more; an error says what failed (KEP-5007).
fn is_ready(claim: &ResourceClaim) -> Result<bool, String> {
    let statuses = || claim.status.iter().flat_map(|status| status.devices.iter().flatten());
    let mut ready = true;
    for result in results(claim) {
        let wanted = result.binding_conditions.as_deref().unwrap_or_default();
        if wanted.is_empty() {
            continue;
        }
        let own = statuses().find(|status| {
            status.driver == result.driver && status.pool == result.pool && status.device == result.device
        });
        let own = own.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let is_true = |kind: &String| own.iter().find(|one| one.type_ == *kind && one.status == "True");
        let failed = result.binding_failure_conditions.iter().flatten().find_map(is_true);
        if let Some(failed) = failed {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            return Err(format!(
                "device binding failed: claim={name}, reason={}, message={:?}",
                failed.reason, failed.message
            ));
        }
        ready &= wanted.iter().all(|kind| is_true(kind).is_some());
    }
    Ok(ready)
}

/// Whether other devices should be found for the claim: its own failed, or took too long.
fn is_broken(claim: &ResourceClaim, now: jiff::Timestamp) -> bool {
    let late = || {
        let since = allocation(claim).and_then(|allocation| allocation.allocation_timestamp.as_ref());
        since.is_some_and(|since| {
            now.duration_since(since.0).unsigned_abs() > LONGEST_BINDING && now > since.0
        })
    };
    match is_ready(claim) {
        Ok(ready) => !ready && late(),
        Err(_) => true,
    }
}

impl Claims {
    pub(crate) fn new(informers: &Factory) -> Self {
        Self {
            claims: informers.informer(),
            slices: informers.informer(),
            classes: informers.informer(),
            selectors: Arc::default(),
            inventory: Mutex::default(),
            assumed: Mutex::default(),
        }
    }

    /// What there is to allocate from has changed.
    pub(crate) fn inventory_changed(&self) {
        *self.inventory.lock() = None;
    }

    fn inventory(&self) -> Arc<Inventory> {
        // A change meanwhile waits for the lock, and makes this one outdated.
        let mut known = self.inventory.lock();
        known.get_or_insert_with(|| Arc::new(Inventory::new(self.slices.list(), self.classes.list()))).clone()
    }

    /// The cache has a claim in this state: what was assumed of it is known, or past.
    pub(crate) fn seen(&self, change: &Change<'_, ResourceClaim>) {
        let claim = change.latest();
        let Some(key) = &claim.metadata.uid else { return };
        let mut assumed = self.assumed.lock();
        let known = match change {
            Change::Applied { new, .. } => {
                let written = assumed.claims.get(key).and_then(|one| one.written);
                written.is_some_and(|written| revision(new) >= written)
            }
            Change::Deleted(_) => true,
        };
        if known {
            assumed.claims.remove(key);
        }
    }

    /// Whether claims of the pod are still being made from their templates.
    pub(crate) fn are_awaited(&self, pod: &Pod) -> bool {
        claims_of(pod).any(|(_, name, made)| match name {
            Ok(name) => made && self.claims.find(namespace(pod), name).is_none(),
            Err(()) => true,
        })
    }

    /// What the pod demands of nodes; `None` if it wants no devices.
    pub(crate) fn needs(&self, pod: &PodInfo) -> Result<Option<DeviceNeeds>, Impossible> {
        let claims = claims_something(&pod.pod);
        if !claims && pod.request.scalar.is_empty() {
            return Ok(None);
        }
        let inventory = self.inventory();
        let mut resources = BTreeMap::new();
        for (name, _) in pod.request.scalar.iter().filter(|(_, amount)| **amount > 0) {
            if let Some(class) = inventory.class_of_resource(name) {
                resources.insert(name.clone(), class.metadata.name.clone().unwrap_or_default());
            }
        }
        if !claims && resources.is_empty() {
            return Ok(None);
        }
        let pod = &pod.pod;
        let (mut allocated, mut open) = (Vec::new(), Vec::new());
        for (own, name, made) in claims_of(pod) {
            let Ok(name) = name else {
                return Err(format!("the resourceclaim of the pod's claim \"{own}\" is not made yet").into());
            };
            let claim = self.claim(pod, name, made)?;
            match allocation(&claim) {
                Some(_) => {
                    let broken = is_broken(&claim, jiff::Timestamp::now());
                    allocated.push(Allocated { claim, broken });
                }
                None => open.push(claim),
            }
        }
        if !resources.is_empty() {
            let mut own = self.claims.controlled_by(uid(pod)).into_iter();
            if let Some(stale) = own.find(|claim| is_extended(claim)) {
                // Its devices may not be right any more.
                let stale = Some(stale).filter(|stale| stale.metadata.deletion_timestamp.is_none());
                return Err(Impossible {
                    reason: "cannot schedule extended resource claim".to_owned(),
                    stale,
                });
            }
        }
        let taken = if open.is_empty() && resources.is_empty() { Taken::default() } else { self.taken() };
        let claims = (allocated, open);
        let needs =
            DeviceNeeds::new(inventory, self.selectors.clone(), taken, pod.clone(), claims, resources);
        Ok(Some(needs?))
    }

    /// A claim that the pod may use.
    fn claim(&self, pod: &Pod, name: &str, made: bool) -> Result<Arc<ResourceClaim>, String> {
        let found = self.claims.find(namespace(pod), name);
        let claim = found.ok_or_else(|| format!("resourceclaim.resource.k8s.io \"{name}\" not found"))?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim \"{name}\" is being deleted"));
        }
        if made && !owned_by(&claim, pod) {
            return Err(format!("resourceclaim \"{name}\" was not created for the pod"));
        }
        if allocation(&claim).is_some() && !is_reserved(&claim, pod) && users(&claim).count() >= MOST_USERS {
            return Err("resourceclaim in use".to_owned());
        }
        // Of another pod that wants it too: whether that one gets it must be known first.
        let key = claim.metadata.uid.as_deref().unwrap_or_default();
        if self.assumed.lock().claims.contains_key(key) {
            let namespace = namespace(pod);
            return Err(format!("resource claim {namespace}/{name} is in the process of being allocated"));
        }
        Ok(claim)
    }

    fn taken(&self) -> Taken {
        let mut taken = Taken::default();
        let assumed = self.assumed.lock();
        let key = |claim: &ResourceClaim| claim.metadata.uid.clone().unwrap_or_default();
        for claim in self.claims.list() {
            if let Some(result) = allocation(&claim)
                && !assumed.claims.contains_key(&key(&claim))
            {
                taken.add(result);
            }
        }
        let extended = assumed.extended.values().map(|(_, result)| result);
        for result in assumed.claims.values().map(|one| &one.result).chain(extended) {
            taken.add(result);
        }
        taken
    }

    /// Counts what the pod gets on its node as taken, until the cache shows it.
    pub(crate) fn assume(&self, pod: &Pod, needs: &DeviceNeeds, node: &str) {
        let Some(found) = needs.on(node) else { return };
        let mut assumed = self.assumed.lock();
        for (claim, result) in needs.open().iter().zip(found.results) {
            let one = Assumed { pod: uid(pod).to_owned(), result: with_shares(result), written: None };
            assumed.claims.insert(claim.metadata.uid.clone().unwrap_or_default(), one);
        }
        if let Some((extended, result)) = found.extended {
            assumed.extended.insert(uid(pod).to_owned(), (extended, with_shares(result)));
        }
    }

    /// Takes back what was assumed for the pod and not written.
    pub(crate) fn forget(&self, pod: &str) {
        let mut assumed = self.assumed.lock();
        assumed.claims.retain(|_, one| one.pod != pod || one.written.is_some());
        assumed.extended.remove(pod);
    }

    /// Of claims that keep the pod from all nodes, one that is nobody else's and can be allocated anew.
    pub(crate) fn to_give_up(&self, pod: &Pod, needs: &DeviceNeeds) -> Option<Arc<ResourceClaim>> {
        let free = |claim: &Arc<ResourceClaim>| users(claim).all(|user| user.uid == uid(pod));
        needs.unavailable().into_iter().find(free)
    }
}

/// Gives devices that can be allocated several times an ID for this time.
fn with_shares(mut result: AllocationResult) -> AllocationResult {
    let results = result.devices.iter_mut().flat_map(|devices| devices.results.iter_mut().flatten());
    for share in results.filter_map(|result| result.share_id.as_mut()) {
        *share = uuid::Uuid::new_v4().to_string();
    }
    result
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(conditions: Value, since: &str) -> ResourceClaim {
        let device = |more: Value| {
            let mut device = json!({"driver": "d", "pool": "p", "device": "x"});
            if let (Some(device), Some(more)) = (device.as_object_mut(), more.as_object()) {
                device.extend(more.clone());
            }
            device
        };
        let result = device(
            json!({"request": "r", "bindingConditions": ["a", "b"], "bindingFailureConditions": ["f"]}),
        );
        let plain = json!({"driver": "d", "pool": "p", "device": "y", "request": "r"});
        let claim = json!({"metadata": {"name": "c"}, "spec": {}, "status": {
            "allocation": {"allocationTimestamp": since, "devices": {"results": [plain, result]}},
            "devices": [device(json!({"conditions": conditions}))]}});
        serde_json::from_value(claim).expect("a claim")
    }

    #[test]
    fn devices_are_ready_once_all_conditions_are_true() {
        let since = "2026-01-01T00:00:00Z";
        let now = |text: &str| text.parse::<jiff::Timestamp>().expect("a time");
        let (soon, late) = (now("2026-01-01T00:09:00Z"), now("2026-01-01T00:11:00Z"));
        let check = |given: &[(&str, &str)], ready: Option<bool>, broken: (bool, bool)| {
            let condition = |(kind, status): &(&str, &str)| json!({"type": kind, "status": status, "reason": "R", "message": "m", "lastTransitionTime": since});
            let claim = claim(given.iter().map(condition).collect(), since);
            assert_eq!(is_ready(&claim).ok(), ready, "{given:?}");
            assert_eq!((is_broken(&claim, soon), is_broken(&claim, late)), broken, "{given:?}");
        };
        check(&[], Some(false), (false, true));
        check(&[("a", "True"), ("b", "False")], Some(false), (false, true));
        check(&[("a", "True"), ("b", "True")], Some(true), (false, false));
        check(&[("a", "True"), ("b", "True"), ("f", "True")], None, (true, true));
        check(&[("f", "False")], Some(false), (false, true));
    }

    #[test]
    fn pods_wait_for_claims_that_are_made_for_them() {
        let check = |status: Value, expected: &[(&str, Option<&str>)]| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status, "spec": {"containers": [],
                "resourceClaims": [{"name": "own", "resourceClaimTemplateName": "t"}, {"name": "other", "resourceClaimName": "o"}]}}))
            .expect("a pod");
            let found: Vec<_> = claims_of(&pod).map(|(own, name, _)| (own, name.ok())).collect();
            assert_eq!(found, expected);
        };
        check(json!({}), &[("own", None), ("other", Some("o"))]);
        let made = json!({"resourceClaimStatuses": [{"name": "own", "resourceClaimName": "p-own-x"}]});
        check(made, &[("own", Some("p-own-x")), ("other", Some("o"))]);
        check(json!({"resourceClaimStatuses": [{"name": "own"}]}), &[("other", Some("o"))]);
    }
}
