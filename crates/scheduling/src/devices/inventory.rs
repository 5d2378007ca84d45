//! What there is to allocate from: ResourceSlices by pool, which of them a node can use, and the classes of devices.
//! A pool counts in its newest generation, and only once all its slices are there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelector};
use k8s_openapi::api::resource::v1::{Device, DeviceClass, ResourceSlice};

use super::{DeviceId, Exact, exact};
use crate::selector::node_selector;

/// The prefix of resources that are named after a class.
const OF_CLASS: &str = "deviceclass.resource.kubernetes.io/";

type PoolId = (String, String);

/// Slices and classes, with what is read off them once.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Of one node, by its name.
    local: HashMap<String, Vec<Arc<ResourceSlice>>>,
    /// Those that are not of one node alone, and those with counters.
    shared: Vec<Arc<ResourceSlice>>,
    by_pool: HashMap<PoolId, Vec<Arc<ResourceSlice>>>,
    classes: BTreeMap<String, Arc<DeviceClass>>,
    /// Classes that stand for extended resources, by the resource's name.
    extended: BTreeMap<String, Arc<DeviceClass>>,
}

impl Inventory {
    /// Sorts what there is.
    pub fn new(slices: Vec<Arc<ResourceSlice>>, classes: Vec<Arc<DeviceClass>>) -> Self {
        let mut all = Self::default();
        for slice in slices {
            let spec = &slice.spec;
            let pool = (spec.driver.clone(), spec.pool.name.clone());
            all.by_pool.entry(pool).or_default().push(slice.clone());
            match spec.node_name.as_deref() {
                Some(node) if !node.is_empty() && !has_counters(&slice) => {
                    all.local.entry(node.to_owned()).or_default().push(slice);
                }
                _ => all.shared.push(slice),
            }
        }
        for class in classes {
            let name = class.metadata.name.clone().unwrap_or_default();
            if let Some(resource) = &class.spec.extended_resource_name {
                // Of several the newest, then the first by name.
                let rank = |class: &DeviceClass| {
                    let created = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
                    (created, std::cmp::Reverse(class.metadata.name.clone()))
                };
                let known = all.extended.get(resource);
                if known.is_none_or(|known| rank(known) < rank(&class)) {
                    all.extended.insert(resource.clone(), class.clone());
                }
            }
            all.classes.insert(name, class);
        }
        all
    }

    /// The class of a name.
    pub fn class(&self, name: &str) -> Option<&Arc<DeviceClass>> {
        self.classes.get(name)
    }

    /// The class behind an extended resource.
    pub fn class_of_resource(&self, resource: &str) -> Option<&Arc<DeviceClass>> {
        match resource.strip_prefix(OF_CLASS) {
            Some(name) => self.classes.get(name),
            None => self.extended.get(resource),
        }
    }

    /// The pools that have something for the node: those whose devices can wait for conditions last, else by driver and name.
    pub(super) fn pools(&self, node: &Node) -> Vec<Pool<'_>> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut found: BTreeMap<(&str, &str), Vec<&ResourceSlice>> = BTreeMap::new();
        let local = self.local.get(name).into_iter().flatten();
        for slice in local.chain(&self.shared).filter(|slice| is_for(slice, node)) {
            let pool = found.entry((&slice.spec.driver, &slice.spec.pool.name)).or_default();
            let known = pool.first().map(|first| first.spec.pool.generation);
            match known.map(|known| slice.spec.pool.generation.cmp(&known)) {
                Some(std::cmp::Ordering::Less) => {}
                Some(std::cmp::Ordering::Greater) => *pool = vec![slice],
                _ => pool.push(slice),
            }
        }
        let made =
            found.into_iter().filter_map(|((driver, name), slices)| self.pool(driver, name, slices, node));
        let (waiting, ready): (Vec<_>, Vec<_>) = made.partition(Pool::has_conditions);
        ready.into_iter().chain(waiting).collect()
    }

    /// A pool of these slices, all for the node; `None` if a newer generation, elsewhere, has replaced them.
    fn pool<'a>(
        &'a self,
        driver: &'a str,
        name: &'a str,
        mut slices: Vec<&'a ResourceSlice>,
        node: &Node,
    ) -> Option<Pool<'a>> {
        let of = &slices.first()?.spec.pool;
        let (generation, count) = (of.generation, of.resource_slice_count);
        let is_count = |len: usize| i64::try_from(len).is_ok_and(|len| len == count);
        let mut elsewhere: Vec<&ResourceSlice> = Vec::new();
        let mut state = PoolState::Ready;
        if !is_count(slices.len()) {
            let all = self.by_pool.get(&(driver.to_owned(), name.to_owned()))?;
            if all.iter().any(|slice| slice.spec.pool.generation > generation) {
                return None;
            }
            let here: BTreeSet<_> = slices.iter().map(|slice| &slice.metadata.name).collect();
            let current = all.iter().filter(|slice| slice.spec.pool.generation == generation);
            elsewhere =
                current.map(|slice| &**slice).filter(|slice| !here.contains(&slice.metadata.name)).collect();
            if !is_count(slices.len() + elsewhere.len()) {
                state = PoolState::Incomplete;
            }
        }
        slices.sort_by_key(|slice| &slice.metadata.name);
        let mut pool =
            Pool { driver, name, state, devices: Vec::new(), counters: BTreeMap::new(), users: Vec::new() };
        if matches!(pool.state, PoolState::Ready)
            && let Err(why) = pool.fill(&slices, &elsewhere, node)
        {
            pool.state = PoolState::Invalid(why);
        }
        Some(pool)
    }
}

fn has_counters(slice: &ResourceSlice) -> bool {
    slice.spec.shared_counters.as_ref().is_some_and(|counters| !counters.is_empty())
}

/// Whether the node is one of those that are meant; `None` if nothing says which are.
fn node_matches(
    node: &Node,
    name: Option<&str>,
    all: Option<bool>,
    selector: Option<&NodeSelector>,
) -> Option<bool> {
    match name {
        Some(name) if !name.is_empty() => Some(node.metadata.name.as_deref() == Some(name)),
        _ if all == Some(true) => Some(true),
        _ => selector.map(|selector| node_selector(selector, node)),
    }
}

fn device_matches(node: &Node, device: &Device) -> bool {
    let name = device.node_name.as_deref();
    node_matches(node, name, device.all_nodes, device.node_selector.as_ref()).unwrap_or(false)
}

fn is_for(slice: &ResourceSlice, node: &Node) -> bool {
    let spec = &slice.spec;
    // Counters are needed wherever a device of the pool is.
    has_counters(slice)
        || node_matches(node, spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref())
            .unwrap_or_else(|| {
                spec.per_device_node_selection == Some(true)
                    && spec.devices.iter().flatten().any(|device| device_matches(node, device))
            })
}

/// What can be made of a pool.
#[derive(Debug)]
pub(super) enum PoolState {
    Ready,
    /// Some of its slices are not there.
    Incomplete,
    /// Its slices contradict each other.
    Invalid(String),
}

/// A device that the node can use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub device: &'a Device,
    pub slice: &'a ResourceSlice,
}

/// A counter of a pool: the set's name and its own.
pub(super) type CounterId<'a> = (&'a str, &'a str);

/// What a device takes of its pool's counters.
pub(super) type Uses<'a> = Vec<(CounterId<'a>, Exact)>;

/// A pool as a node sees it.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    pub driver: &'a str,
    pub name: &'a str,
    pub state: PoolState,
    /// In the order in which they are tried.
    pub devices: Vec<Candidate<'a>>,
    pub counters: BTreeMap<CounterId<'a>, Exact>,
    /// All devices of the pool that take of its counters, also those of other nodes.
    pub users: Vec<&'a Device>,
}

impl<'a> Pool<'a> {
    fn fill(
        &mut self,
        slices: &[&'a ResourceSlice],
        elsewhere: &[&'a ResourceSlice],
        node: &Node,
    ) -> Result<(), String> {
        let mut sets = BTreeSet::new();
        for set in slices.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten()) {
            if !sets.insert(set.name.as_str()) {
                return Err(format!("duplicate counter set name {}", set.name));
            }
            for (name, counter) in &set.counters {
                self.counters.insert((&set.name, name), exact(&counter.value));
            }
        }
        let mut names = BTreeSet::new();
        for slice in slices.iter().filter(|slice| !has_counters(slice)) {
            for device in slice.spec.devices.iter().flatten() {
                if !names.insert(device.name.as_str()) {
                    return Err(format!("duplicate device name {}", device.name));
                }
                if slice.spec.per_device_node_selection != Some(true) || device_matches(node, device) {
                    self.devices.push(Candidate { device, slice });
                }
            }
        }
        for device in slices.iter().chain(elsewhere).flat_map(|slice| slice.spec.devices.iter().flatten()) {
            let uses = uses(device);
            for ((set, counter), _) in &uses {
                if !sets.contains(set) {
                    return Err(format!("counter set {set} not found"));
                }
                if !self.counters.contains_key(&(*set, *counter)) {
                    return Err(format!("counter {counter} not found in counter set {set}"));
                }
            }
            if !uses.is_empty() {
                self.users.push(device);
            }
        }
        Ok(())
    }

    fn has_conditions(&self) -> bool {
        self.devices.iter().any(|one| one.device.binding_conditions.is_some())
    }

    pub(super) fn id(&self, device: &Device) -> DeviceId {
        DeviceId { driver: self.driver.to_owned(), pool: self.name.to_owned(), device: device.name.clone() }
    }
}

/// What the device takes of its pool's counters.
pub(super) fn uses(device: &Device) -> Uses<'_> {
    let sets = device.consumes_counters.iter().flatten();
    sets.flat_map(|set| {
        set.counters
            .iter()
            .map(|(name, counter)| ((set.counter_set.as_str(), name.as_str()), exact(&counter.value)))
    })
    .collect()
}
