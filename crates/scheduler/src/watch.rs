//! From changes of pods, nodes and what else counts to the snapshot and the queue.

use std::sync::Arc;

use informer::{Change, Factory, Key};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use scheduling::PodInfo;
use tokio::time::Instant;

use crate::claims::{allocation, claims_something, is_extended, may_want_devices, uses};
use crate::core::{Core, is_terminal};

/// Registers the handlers and waits until the caches are filled.
pub(crate) async fn connect(core: &Arc<Core>, informers: &Factory) {
    let nodes = informers.informer::<Node>();
    let namespaces = informers.informer::<Namespace>();
    let claims = informers.informer::<PersistentVolumeClaim>();
    let volumes = informers.informer::<PersistentVolume>();
    let classes = informers.informer::<StorageClass>();
    let csi_nodes = informers.informer::<CSINode>();
    let drivers = informers.informer::<CSIDriver>();
    let capacities = informers.informer::<CSIStorageCapacity>();
    let attachments = informers.informer::<VolumeAttachment>();
    let resource_claims = informers.informer::<ResourceClaim>();
    let slices = informers.informer::<ResourceSlice>();
    let device_classes = informers.informer::<DeviceClass>();

    let to = core.clone();
    namespaces.on_change(move |change| {
        let (name, labels) = match change {
            Change::Applied { new, .. } => {
                (&new.metadata.name, Some(new.metadata.labels.clone().unwrap_or_default()))
            }
            Change::Deleted(last) => (&last.metadata.name, None),
        };
        to.state.lock().snapshot.set_namespace(name.as_deref().unwrap_or_default(), labels);
    });
    let to = core.clone();
    nodes.on_change(move |change| to.node_changed(change));
    // Nodes first, so that the first pods find them.
    nodes.synced().await;
    namespaces.synced().await;
    claims.synced().await;
    volumes.synced().await;
    classes.synced().await;
    csi_nodes.synced().await;
    drivers.synced().await;
    capacities.synced().await;
    attachments.synced().await;
    resource_claims.synced().await;
    slices.synced().await;
    device_classes.synced().await;
    let to = core.clone();
    claims.on_change(move |change| to.volume_changed(matches!(change, Change::Deleted(_))));
    let to = core.clone();
    volumes.on_change(move |change| to.volume_changed(matches!(change, Change::Deleted(_))));
    let to = core.clone();
    classes.on_change(move |change| to.volume_changed(matches!(change, Change::Deleted(_))));
    let to = core.clone();
    csi_nodes.on_change(move |change| to.volume_changed(matches!(change, Change::Deleted(_))));
    let to = core.clone();
    drivers.on_change(move |change| to.volume_changed(matches!(change, Change::Deleted(_))));
    let to = core.clone();
    capacities.on_change(move |change| to.volume_changed(matches!(change, Change::Deleted(_))));
    let to = core.clone();
    // Only one that goes makes room.
    attachments.on_change(move |change| to.volume_changed(matches!(change, Change::Applied { .. })));
    let to = core.clone();
    resource_claims.on_change(move |change| to.resource_claim_changed(change));
    let to = core.clone();
    slices.on_change(move |_| to.inventory_changed());
    let to = core.clone();
    device_classes.on_change(move |_| to.inventory_changed());
    let to = core.clone();
    core.pods.on_change(move |change| to.pod_changed(change));
    core.pods.synced().await;
}

impl Core {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let mut state = self.state.lock();
        match change {
            Change::Applied { old, new } => {
                state.snapshot.set_node((*new).clone());
                if old.is_some_and(|old| !matters(old, new)) {
                    return;
                }
            }
            Change::Deleted(last) => {
                state.snapshot.remove_node(last.metadata.name.as_deref().unwrap_or_default());
            }
        }
        state.queue.changed(Instant::now(), |_| true);
        drop(state);
        self.wake.notify_one();
    }

    fn volume_changed(&self, deleted: bool) {
        if !deleted {
            let has_volumes = |key: &Key| {
                self.pods
                    .get(key)
                    .is_some_and(|pod| pod.spec.as_ref().is_some_and(|spec| spec.volumes.is_some()))
            };
            self.state.lock().queue.changed(Instant::now(), has_volumes);
            self.wake.notify_one();
        }
    }

    /// What there is to claim changed.
    fn inventory_changed(&self) {
        self.claims.inventory_changed();
        let wants = |key: &Key| self.pods.get(key).is_some_and(|pod| may_want_devices(&pod));
        self.state.lock().queue.changed(Instant::now(), wants);
        self.wake.notify_one();
    }

    /// A claim was made, or what is allocated to it or uses it changed.
    fn resource_claim_changed(&self, change: &Change<'_, ResourceClaim>) {
        self.claims.seen(change);
        let claim = change.latest();
        let (is_new, freed, same) = match change {
            // One for extended resources kept its pod waiting.
            Change::Deleted(last) => (false, allocation(last).is_some() || is_extended(last), true),
            Change::Applied { old: None, .. } => (true, false, false),
            Change::Applied { old: Some(old), new } => {
                (false, allocation(old).is_some() && allocation(new).is_none(), old.status == new.status)
            }
        };
        if same && !freed {
            return;
        }
        let mut state = self.state.lock();
        state.queue.changed(Instant::now(), |key| {
            self.pods
                .get(key)
                .is_some_and(|pod| if freed { may_want_devices(&pod) } else { uses(&pod, claim) })
        });
        if is_new {
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let mine = state.awaiting.iter().filter(|key| key.namespace == namespace).cloned();
            let ready: Vec<Key> = mine
                .filter(|key| self.pods.get(key).is_none_or(|pod| !self.claims.are_awaited(&pod)))
                .collect();
            for key in ready {
                state.awaiting.remove(&key);
                if let Some(pod) = self.pods.get(&key).filter(|pod| self.wants(pod)) {
                    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default();
                    state.queue.add(key, priority);
                }
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        match change {
            Change::Deleted(last) => self.pod_gone(last),
            Change::Applied { new, .. } if is_terminal(new) => self.pod_gone(new),
            Change::Applied { old, new } => {
                let node = new.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
                if node.is_empty() {
                    self.pod_waits(old.map(|old| old.as_ref()), new);
                } else {
                    self.pod_placed(old.map(|old| old.as_ref()), new, node);
                }
            }
        }
    }

    fn pod_waits(&self, old: Option<&Pod>, new: &Arc<Pod>) {
        let key = Key::of(new.as_ref());
        let mut state = self.state.lock();
        if !self.wants(new) {
            state.queue.remove(&key);
            state.awaiting.remove(&key);
            if new.metadata.deletion_timestamp.is_some() {
                state.snapshot.withdraw(new.metadata.uid.as_deref().unwrap_or_default());
            }
            return;
        }
        // Its own status says nothing new; an assumed pod is on its way.
        let unchanged =
            old.is_some_and(|old| old.spec == new.spec && old.metadata.labels == new.metadata.labels);
        let assumed = state.placed.contains_key(new.metadata.uid.as_deref().unwrap_or_default());
        if assumed || (unchanged && state.queue.contains(&key)) {
            return;
        }
        if claims_something(new) {
            if self.claims.are_awaited(new) {
                state.queue.remove(&key);
                state.awaiting.insert(key);
                return;
            }
            state.awaiting.remove(&key);
        }
        let nominated = new.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        if let Some(node) = nominated.filter(|node| !node.is_empty()) {
            state.snapshot.nominate(node, PodInfo::new(new.clone()));
        }
        let priority = new.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default();
        state.queue.add(key, priority);
        drop(state);
        self.wake.notify_one();
    }

    fn pod_placed(&self, old: Option<&Pod>, new: &Arc<Pod>, node: &str) {
        let uid = new.metadata.uid.as_deref().unwrap_or_default();
        let mut state = self.state.lock();
        let known = state.placed.get(uid).is_some_and(|at| at == node);
        let unchanged = old.is_some_and(|old| {
            old.spec == new.spec
                && old.metadata.labels == new.metadata.labels
                && old.metadata.deletion_timestamp == new.metadata.deletion_timestamp
        });
        if known && unchanged {
            return;
        }
        if let Some(before) = state.placed.insert(uid.to_owned(), node.to_owned())
            && before != node
        {
            state.snapshot.remove_pod(&before, uid);
        }
        state.snapshot.set_pod(node, PodInfo::new(new.clone()));
        state.snapshot.withdraw(uid);
        state.queue.remove(&Key::of(new.as_ref()));
        // A pod that arrives can only help those that want to be near it; one that shrinks helps all.
        let pods = &self.pods;
        let shrunk = known && old.is_some_and(|old| old.spec != new.spec);
        state.queue.changed(Instant::now(), |key| {
            shrunk
                || pods.get(key).is_some_and(|pod| {
                    pod.spec.as_ref().is_some_and(|spec| {
                        spec.affinity.is_some() || spec.topology_spread_constraints.is_some()
                    })
                })
        });
        drop(state);
        self.wake.notify_one();
    }

    fn pod_gone(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut state = self.state.lock();
        state.queue.remove(&Key::of(pod));
        state.awaiting.remove(&Key::of(pod));
        state.snapshot.withdraw(uid);
        if let Some(node) = state.placed.remove(uid) {
            state.snapshot.remove_pod(&node, uid);
            state.queue.changed(Instant::now(), |_| true);
        }
        drop(state);
        self.wake.notify_one();
    }
}

/// Whether a node's change can matter to a pod that found no place.
fn matters(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || allocatable(old) != allocatable(new)
        || old.metadata.annotations != new.metadata.annotations
}
