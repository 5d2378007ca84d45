//! Devices that plug-ins offer (deviceplugin v1beta1): what there is, what each container was given, and what the plug-in
//! said has to be done for it. Rules: upstream's device manager. The plug-ins themselves are met in `service`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, ResourceHealth, ResourceStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use plugins::device::device_plugin_client::DevicePluginClient;
use plugins::device::{ContainerAllocateResponse, DevicePluginOptions, PreStartContainerRequest};
use tokio::sync::watch;
use tonic::transport::Channel;
use topology::hints::{Hint, NodeSet};

use crate::podutil::{self, init_containers, is_sidecar};
use crate::quantity;

mod allocate;
mod checkpoint;
mod service;

pub(crate) use service::{PluginHandler, run};

/// How long a resource is still shown after its plug-in went: it may only have been restarted.
const GRACE: Duration = Duration::from_secs(300);

/// A device as its plug-in last told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Device {
    healthy: bool,
    /// NUMA nodes that it is near to; none if it does not matter.
    nodes: BTreeSet<u32>,
}

/// A plug-in's resource.
struct Resource {
    devices: BTreeMap<String, Device>,
    /// How the plug-in is reached, while it is.
    plugin: Option<DevicePluginClient<Channel>>,
    options: DevicePluginOptions,
    /// When the plug-in went.
    gone: Option<Instant>,
    /// Which plug-in it is: a later one of the same resource takes its place.
    generation: u64,
}

/// What a container has of a resource.
#[derive(Debug, Clone, Default, PartialEq)]
struct Given {
    ids: BTreeSet<String>,
    answer: ContainerAllocateResponse,
}

/// By pod, container and resource.
type Assignments = BTreeMap<String, BTreeMap<String, BTreeMap<String, Given>>>;

#[derive(Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    given: Assignments,
    /// Devices of init containers, to be used again by containers of the same pod: by pod and resource.
    reusable: HashMap<String, BTreeMap<String, BTreeSet<String>>>,
    generation: u64,
}

impl State {
    /// What a container was given, by resource.
    fn given_to(&self, uid: &str, container: &str) -> impl Iterator<Item = (&String, &Given)> {
        self.given.get(uid).and_then(|containers| containers.get(container)).into_iter().flatten()
    }

    /// The resource, unless its plug-in has come again since.
    fn current(&mut self, name: &str, generation: u64) -> Option<&mut Resource> {
        self.resources.get_mut(name).filter(|one| one.generation == generation)
    }

    fn save(&self, folder: &Path) {
        let names: Vec<String> = self.resources.keys().cloned().collect();
        checkpoint::write(folder, &self.given, &names);
    }
}

/// Why a container gets no devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("requested number of devices unavailable for {name}. Requested: {wanted}, Available: {free}")]
    Short { name: String, wanted: usize, free: usize },
    #[error("no healthy devices present; cannot allocate unhealthy devices {0}")]
    Unhealthy(String),
    #[error("cannot allocate unregistered device {0}")]
    Unregistered(String),
    #[error("the plug-in of {name} failed: {message}")]
    Plugin { name: String, message: String },
}

/// The devices of the node.
pub(crate) struct Devices {
    folder: PathBuf,
    state: Mutex<State>,
    /// Counts changes of what there is, or of its health.
    changed: watch::Sender<u64>,
    /// Pods whose devices' health changed.
    sick: Mutex<BTreeSet<String>>,
}

/// What a container is to be made with for its devices.
#[derive(Debug, Clone, Default)]
pub(crate) struct Equipment {
    pub envs: Vec<(String, String)>,
    pub mounts: Vec<(String, String, bool)>,
    /// In the container, on the node, permissions.
    pub devices: Vec<(String, String, String)>,
    pub annotations: Vec<(String, String)>,
    pub cdi: Vec<String>,
}

impl Devices {
    /// With what an earlier run gave. Of what there is nothing is known until the plug-ins come.
    pub(crate) fn new(root: &Path) -> Self {
        let folder = root.join("device-plugins");
        let mut state = State::default();
        let (given, resources) = checkpoint::read(&folder);
        state.given = given;
        for name in resources {
            state.resources.insert(name, Resource::absent());
        }
        Devices { folder, state: Mutex::new(state), changed: watch::channel(0).0, sick: Mutex::default() }
    }

    /// Changes whenever what there is changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Pods whose devices' health changed since the last call.
    pub(crate) fn take_sick(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.sick.lock())
    }

    /// Adds the devices to the node's capacity and allocatable.
    pub(crate) fn add_to(
        &self,
        capacity: &mut BTreeMap<String, Quantity>,
        allocatable: &mut BTreeMap<String, Quantity>,
    ) {
        let mut state = self.state.lock();
        for (name, resource) in &mut state.resources {
            if resource.gone.is_some_and(|since| since.elapsed() > GRACE) {
                resource.devices.clear();
            }
            let healthy = resource.devices.values().filter(|device| device.healthy).count();
            capacity.insert(name.clone(), Quantity(resource.devices.len().to_string()));
            allocatable.insert(name.clone(), Quantity(healthy.to_string()));
        }
    }

    /// Whether the resource is of a plug-in, now or before.
    fn manages(&self, name: &str) -> bool {
        self.state.lock().resources.contains_key(name)
    }

    /// What the container asks for of plug-ins' resources.
    fn wanted(&self, container: &Container) -> Vec<(String, usize)> {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        let listed = limits.into_iter().flatten().filter(|(name, _)| self.manages(name));
        listed
            .filter_map(|(name, amount)| {
                let count = usize::try_from(quantity::value(amount)?).ok()?;
                (count > 0).then(|| (name.clone(), count))
            })
            .collect()
    }

    /// A plug-in has come, or come again. Gives its generation.
    fn register(&self, name: &str, plugin: DevicePluginClient<Channel>, options: DevicePluginOptions) -> u64 {
        let mut state = self.state.lock();
        state.generation += 1;
        let generation = state.generation;
        let resource = state.resources.entry(name.to_owned()).or_insert_with(Resource::absent);
        resource.plugin = Some(plugin);
        resource.options = options;
        resource.gone = None;
        resource.generation = generation;
        generation
    }

    /// The plug-in says what there is now.
    fn update(&self, name: &str, generation: u64, devices: BTreeMap<String, Device>) {
        let mut state = self.state.lock();
        let Some(resource) = state.current(name, generation) else { return };
        if resource.devices == devices {
            return;
        }
        let before = std::mem::replace(&mut resource.devices, devices);
        self.note_health(&state, name, &before);
        state.save(&self.folder);
        drop(state);
        self.tell();
    }

    /// The plug-in of that generation is gone: its devices are nobody's to give.
    fn lose(&self, name: &str, generation: u64) {
        let mut state = self.state.lock();
        let Some(resource) = state.current(name, generation) else { return };
        resource.plugin = None;
        resource.gone = Some(Instant::now());
        let before = resource.devices.clone();
        resource.devices.values_mut().for_each(|device| device.healthy = false);
        self.note_health(&state, name, &before);
        drop(state);
        self.tell();
    }

    fn note_health(&self, state: &State, name: &str, before: &BTreeMap<String, Device>) {
        let Some(resource) = state.resources.get(name) else { return };
        let healthy =
            |list: &BTreeMap<String, Device>, id: &String| list.get(id).map(|device| device.healthy);
        for (uid, containers) in &state.given {
            let ids =
                containers.values().filter_map(|resources| resources.get(name)).flat_map(|given| &given.ids);
            if ids.into_iter().any(|id| healthy(before, id) != healthy(&resource.devices, id)) {
                self.sick.lock().insert(uid.clone());
            }
        }
    }

    /// What the container is to be made with.
    pub(crate) fn equipment(&self, uid: &str, container: &str) -> Equipment {
        let state = self.state.lock();
        let mut all = Equipment::default();
        for (_, one) in state.given_to(uid, container) {
            let answer = &one.answer;
            all.envs.extend(answer.envs.iter().map(|(key, value)| (key.clone(), value.clone())));
            let mounts = answer.mounts.iter();
            all.mounts.extend(mounts.map(|m| (m.container_path.clone(), m.host_path.clone(), m.read_only)));
            let devices = answer.devices.iter();
            all.devices.extend(
                devices.map(|d| (d.container_path.clone(), d.host_path.clone(), d.permissions.clone())),
            );
            all.annotations
                .extend(answer.annotations.iter().map(|(key, value)| (key.clone(), value.clone())));
            all.cdi.extend(answer.cdi_devices.iter().map(|device| device.name.clone()));
        }
        // In an order of their own, so that the same devices make the same container.
        all.envs.sort();
        all.annotations.sort();
        all
    }

    /// Asks the plug-ins that want to be asked before the container starts.
    pub(crate) async fn before_start(&self, uid: &str, container: &str) -> Result<(), DeviceError> {
        let calls: Vec<(String, DevicePluginClient<Channel>, Vec<String>)> = {
            let state = self.state.lock();
            state
                .given_to(uid, container)
                .filter_map(|(name, given)| {
                    let resource = state.resources.get(name)?;
                    let plugin = resource.plugin.clone().filter(|_| resource.options.pre_start_required)?;
                    Some((name.clone(), plugin, given.ids.iter().cloned().collect()))
                })
                .collect()
        };
        for (name, mut plugin, devices_ids) in calls {
            let request = PreStartContainerRequest { devices_ids };
            let answer = tokio::time::timeout(service::PATIENCE, plugin.pre_start_container(request)).await;
            let failed = |message: String| DeviceError::Plugin { name: name.clone(), message };
            answer
                .map_err(|_| failed("it does not prepare the devices in time".to_owned()))?
                .map_err(|status| failed(status.message().to_owned()))?;
        }
        Ok(())
    }

    /// What the container has, by resource, with the NUMA nodes of its devices.
    pub(crate) fn of(&self, uid: &str, container: &str) -> Vec<(String, Vec<String>, NodeSet)> {
        let state = self.state.lock();
        state
            .given_to(uid, container)
            .map(|(name, given)| {
                let known = state.resources.get(name).map(|resource| &resource.devices);
                let nodes = given.ids.iter().filter_map(|id| known?.get(id)).flat_map(|device| &device.nodes);
                (name.clone(), given.ids.iter().cloned().collect(), NodeSet::new(nodes.copied()))
            })
            .collect()
    }

    /// All healthy devices: resource, id, NUMA nodes.
    pub(crate) fn all(&self) -> Vec<(String, String, NodeSet)> {
        let state = self.state.lock();
        let each = state.resources.iter().flat_map(|(name, resource)| {
            let healthy = resource.devices.iter().filter(|(_, device)| device.healthy);
            healthy.map(move |(id, device)| {
                (name.clone(), id.clone(), NodeSet::new(device.nodes.iter().copied()))
            })
        });
        each.collect()
    }

    /// The health of the container's devices, as its status shows it.
    pub(crate) fn health(&self, uid: &str, container: &str) -> Vec<ResourceStatus> {
        let state = self.state.lock();
        state
            .given_to(uid, container)
            .map(|(name, given)| {
                let resource = state.resources.get(name);
                let health = |id: &String| {
                    let known = resource.filter(|resource| resource.plugin.is_some());
                    match known.and_then(|resource| resource.devices.get(id)) {
                        Some(device) if device.healthy => "Healthy",
                        Some(_) => "Unhealthy",
                        None => "Unknown",
                    }
                };
                let devices = given.ids.iter().map(|id| ResourceHealth {
                    resource_id: id.clone(),
                    health: Some(health(id).to_owned()),
                    ..ResourceHealth::default()
                });
                ResourceStatus { name: name.clone(), resources: Some(devices.collect()) }
            })
            .collect()
    }

    /// Takes back what the pod has.
    pub(crate) fn release(&self, uid: &str) {
        let mut state = self.state.lock();
        state.reusable.remove(uid);
        if state.given.remove(uid).is_some() {
            state.save(&self.folder);
        }
    }

    /// Takes back what pods have that are not there any more.
    pub(crate) fn retain(&self, there: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.state.lock().given.keys().filter(|uid| !there(uid)).cloned().collect();
        gone.iter().for_each(|uid| self.release(uid));
    }
}

impl Resource {
    fn absent() -> Self {
        Resource {
            devices: BTreeMap::new(),
            plugin: None,
            options: DevicePluginOptions::default(),
            gone: Some(Instant::now()),
            generation: 0,
        }
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
