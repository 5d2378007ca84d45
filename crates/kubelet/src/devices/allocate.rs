//! Choosing devices for a container: those that are near what else it has, in the order that the plug-in prefers; and asking
//! the plug-in to make them ready.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod};
use plugins::device::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest,
    PreferredAllocationRequest,
};
use topology::hints::Hints;

use super::{DeviceError, Devices, Given, Hint, NodeSet, init_containers, is_sidecar, podutil, service};

impl Devices {
    /// Where the container's devices could be from, of the machine's `nodes`.
    pub(crate) fn hints(&self, pod: &Pod, container: &Container, nodes: NodeSet) -> Hints {
        let uid = podutil::uid(pod);
        let wanted = self.wanted(container);
        let state = self.state.lock();
        let mut hints = Hints::new();
        for (name, count) in wanted {
            let Some(resource) = state.resources.get(&name) else { continue };
            if resource.devices.values().all(|device| device.nodes.is_empty()) {
                hints.insert(name, None);
                continue;
            }
            let own = state.given.get(uid).and_then(|containers| containers.get(&container.name)?.get(&name));
            let usable = match own {
                Some(own) if own.ids.len() != count => BTreeSet::new(),
                Some(own) => own.ids.clone(),
                None => self.free(&state, uid, &name),
            };
            hints.insert(name, Some(places(&usable, &resource.devices, count, nodes)));
        }
        hints
    }

    /// Healthy devices that no other pod has, those of the pod's own ended init containers among them.
    fn free(&self, state: &super::State, uid: &str, name: &str) -> BTreeSet<String> {
        let Some(resource) = state.resources.get(name) else { return BTreeSet::new() };
        let reusable = state.reusable.get(uid).and_then(|of_pod| of_pod.get(name));
        let taken: BTreeSet<&String> = state
            .given
            .values()
            .flat_map(std::collections::BTreeMap::values)
            .filter_map(|resources| resources.get(name))
            .flat_map(|given| &given.ids)
            .collect();
        let free = resource.devices.iter().filter(|(id, device)| {
            device.healthy && (!taken.contains(id) || reusable.is_some_and(|own| own.contains(*id)))
        });
        free.map(|(id, _)| id.clone()).collect()
    }

    /// Gives the container its devices, near `place` if they can be. One that has some keeps them.
    pub(crate) async fn allocate(
        &self,
        pod: &Pod,
        container: &Container,
        place: Hint,
    ) -> Result<(), DeviceError> {
        let uid = podutil::uid(pod);
        for (name, count) in self.wanted(container) {
            let Some((ids, plugin)) = self.choose(uid, container, &name, count, place).await? else {
                continue;
            };
            let Some(mut plugin) = plugin else { return Err(DeviceError::Unregistered(name)) };
            let failed = |message: String| DeviceError::Plugin { name: name.clone(), message };
            let request = AllocateRequest {
                container_requests: vec![ContainerAllocateRequest {
                    devices_ids: ids.iter().cloned().collect(),
                }],
            };
            let answer = tokio::time::timeout(service::PATIENCE, plugin.allocate(request)).await;
            let answer = answer
                .map_err(|_| failed("it does not allocate in time".to_owned()))?
                .map_err(|status| failed(status.message().to_owned()))?
                .into_inner();
            let answer = answer.container_responses.into_iter().next();
            let answer = answer.ok_or_else(|| failed("its answer is empty".to_owned()))?;
            self.keep(pod, container, &name, Given { ids, answer });
        }
        Ok(())
    }

    fn keep(&self, pod: &Pod, container: &Container, name: &str, given: Given) {
        let uid = podutil::uid(pod);
        let passing =
            !is_sidecar(container) && init_containers(pod).iter().any(|init| init.name == container.name);
        let mut state = self.state.lock();
        let reusable = state.reusable.entry(uid.to_owned()).or_default().entry(name.to_owned()).or_default();
        for id in &given.ids {
            if passing {
                reusable.insert(id.clone());
            } else {
                reusable.remove(id);
            }
        }
        let containers = state.given.entry(uid.to_owned()).or_default();
        containers.entry(container.name.clone()).or_default().insert(name.to_owned(), given);
        state.save(&self.folder);
    }

    /// The devices to be given and their plug-in; `None` if the container has them.
    async fn choose(
        &self,
        uid: &str,
        container: &Container,
        name: &str,
        count: usize,
        place: Hint,
    ) -> Result<Option<(BTreeSet<String>, Option<super::DevicePluginClient<super::Channel>>)>, DeviceError>
    {
        let (groups, again, plugin, asks) = {
            let state = self.state.lock();
            let Some(resource) = state.resources.get(name) else { return Ok(None) };
            let own = state.given.get(uid).and_then(|containers| containers.get(&container.name)?.get(name));
            if own.is_some_and(|own| own.ids.len() >= count) {
                return Ok(None);
            }
            if resource.plugin.is_none() {
                return Err(DeviceError::Unregistered(name.to_owned()));
            }
            if !resource.devices.values().any(|device| device.healthy) {
                return Err(DeviceError::Unhealthy(name.to_owned()));
            }
            let free = self.free(&state, uid, name);
            if free.len() < count {
                return Err(DeviceError::Short { name: name.to_owned(), wanted: count, free: free.len() });
            }
            let again =
                state.reusable.get(uid).and_then(|of_pod| of_pod.get(name)).cloned().unwrap_or_default();
            let again: BTreeSet<String> = again.intersection(&free).take(count).cloned().collect();
            let near = |id: &String| match (place.nodes, resource.devices.get(id)) {
                (Some(nodes), Some(device)) if !device.nodes.is_empty() => {
                    // A device that is near to nodes of both kinds is as good as near.
                    if device.nodes.iter().any(|node| nodes.contains(*node)) { 0 } else { 2 }
                }
                _ => 1,
            };
            let mut groups: [Vec<String>; 3] = Default::default();
            for id in free.difference(&again) {
                groups[near(id)].push(id.clone());
            }
            let asks = resource.options.get_preferred_allocation_available;
            (groups, again, resource.plugin.clone(), asks)
        };
        let mut ids = again;
        for group in groups {
            let missing = count - ids.len();
            if missing == 0 {
                break;
            }
            if group.len() <= missing {
                ids.extend(group);
                continue;
            }
            let mut ordered = group;
            if let Some(plugin) = plugin.clone().filter(|_| asks) {
                let preferred = prefer(plugin, &ordered, missing).await;
                // What it names goes first, as long as it may be named.
                ordered.sort_by_key(|id| !preferred.contains(id));
            }
            ids.extend(ordered.into_iter().take(missing));
        }
        Ok(Some((ids, plugin)))
    }
}

/// What the plug-in would rather have given; nothing if it does not say.
async fn prefer(
    mut plugin: super::DevicePluginClient<super::Channel>,
    available: &[String],
    count: usize,
) -> Vec<String> {
    let request = PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_i_ds: available.to_vec(),
            must_include_device_i_ds: Vec::new(),
            allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
        }],
    };
    match tokio::time::timeout(service::PATIENCE, plugin.get_preferred_allocation(request)).await {
        Ok(Ok(answer)) => {
            let first = answer.into_inner().container_responses.into_iter().next();
            first.map(|answer| answer.device_i_ds).unwrap_or_default()
        }
        Ok(Err(status)) => {
            tracing::warn!(
                status = status.message(),
                "a device plug-in does not say which devices it prefers"
            );
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

fn places(
    usable: &BTreeSet<String>,
    devices: &std::collections::BTreeMap<String, super::Device>,
    count: usize,
    nodes: NodeSet,
) -> Vec<Hint> {
    let inside = |set: NodeSet, device: &super::Device| {
        device.nodes.is_empty() || device.nodes.iter().all(|node| set.contains(*node))
    };
    let could = |set: &NodeSet| devices.values().filter(|device| inside(*set, device)).count() >= count;
    let least = nodes.subsets().filter(could).map(NodeSet::count).min();
    let has = |set: &NodeSet| {
        let found = usable.iter().filter_map(|id| devices.get(id)).filter(|device| inside(*set, device));
        found.count() >= count
    };
    let hint = |set: NodeSet| Hint { nodes: Some(set), preferred: Some(set.count()) == least };
    nodes.subsets().filter(has).map(hint).collect()
}
