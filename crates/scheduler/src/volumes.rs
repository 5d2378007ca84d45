//! What a pod's claims demand of a node, and the wait until they are bound.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity as Exact;
use informer::{Factory, Informer};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use scheduling::selector::{labels_of, matches};
use scheduling::{Counted, Delayed, Handle, Provisioned, VolumeNeeds};
use serde_json::json;
use thiserror::Error;

const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Why a pod's volumes are not ready to be bound to.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("persistentvolumeclaim \"{0}\" not found")]
    ClaimGone(String),
    #[error("timed out waiting for the claim \"{0}\" to be bound")]
    NotBound(String),
    #[error("the volumes that were chosen for node {0:?} are not free any more")]
    Taken(String),
    #[error(transparent)]
    Client(#[from] kube::Error),
}

/// The caches that decide about volumes.
pub(crate) struct Volumes {
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
    nodes: Arc<Informer<Node>>,
    csi_nodes: Arc<Informer<CSINode>>,
    drivers: Arc<Informer<CSIDriver>>,
    capacities: Arc<Informer<CSIStorageCapacity>>,
    attachments: Arc<Informer<VolumeAttachment>>,
    pods: Arc<Informer<Pod>>,
}

/// The names of the claims that a pod uses; those of generic ephemeral volumes are made from the pod's name.
fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter_map(move |volume| {
        match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
            (None, None) => None,
        }
    })
}

fn annotated(annotations: &Option<BTreeMap<String, String>>, key: &str) -> bool {
    annotations.as_ref().is_some_and(|all| all.contains_key(key))
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().is_some_and(|spec| spec.volume_name.as_deref().is_some_and(|name| !name.is_empty()))
        && annotated(&claim.metadata.annotations, BIND_COMPLETED)
}

fn storage(amounts: Option<&BTreeMap<String, Quantity>>) -> Exact {
    let amount = amounts.and_then(|all| all.get("storage")).and_then(|one| one.0.parse().ok());
    amount.unwrap_or_else(|| Exact::new(0, api::quantity::Format::BinarySi))
}

fn requested(claim: &PersistentVolumeClaim) -> Exact {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

fn capacity(volume: &PersistentVolume) -> Exact {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

/// Whether an unbound volume can be bound to the claim, its place aside.
fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(own), Some(wanted)) = (&volume.spec, &claim.spec) else { return false };
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let free = match &own.claim_ref {
        None => phase == Some("Available"),
        Some(to) => {
            to.name == claim.metadata.name
                && to.namespace == claim.metadata.namespace
                && to
                    .uid
                    .as_ref()
                    .is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
        }
    };
    let mode = |mode: &Option<String>| mode.as_deref().unwrap_or("Filesystem").to_owned();
    let has = own.access_modes.as_deref().unwrap_or_default();
    free && volume.metadata.deletion_timestamp.is_none()
        && own.storage_class_name.as_deref().unwrap_or_default()
            == wanted.storage_class_name.as_deref().unwrap_or_default()
        && mode(&own.volume_mode) == mode(&wanted.volume_mode)
        && own.volume_attributes_class_name.as_deref().unwrap_or_default()
            == wanted.volume_attributes_class_name.as_deref().unwrap_or_default()
        && wanted.access_modes.iter().flatten().all(|mode| has.contains(mode))
        && capacity(volume) >= requested(claim)
        && wanted.selector.as_ref().is_none_or(|one| matches(one, labels_of(&volume.metadata.labels)))
}

impl Volumes {
    pub(crate) fn new(informers: &Factory) -> Self {
        Self {
            claims: informers.informer(),
            volumes: informers.informer(),
            classes: informers.informer(),
            nodes: informers.informer(),
            csi_nodes: informers.informer(),
            drivers: informers.informer(),
            capacities: informers.informer(),
            attachments: informers.informer(),
            pods: informers.informer(),
        }
    }

    fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
        let name = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
        self.classes.find("", name.unwrap_or_default())
    }

    fn waits_for_consumer(&self, claim: &PersistentVolumeClaim) -> bool {
        self.class_of(claim)
            .is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
    }

    /// What nodes must offer for the pod's claims.
    pub(crate) fn needs(&self, pod: &Pod) -> VolumeNeeds {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut needs = VolumeNeeds::default();
        let mut waiting = Vec::new();
        for name in claims_of(pod) {
            let Some(claim) = self.claims.find(namespace, &name) else {
                needs.impossible = Some(format!("persistentvolumeclaim \"{name}\" not found"));
                return needs;
            };
            if claim.metadata.deletion_timestamp.is_some() {
                needs.impossible = Some(format!("persistentvolumeclaim \"{name}\" is being deleted"));
                return needs;
            }
            let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
            if modes.into_iter().flatten().any(|mode| mode == "ReadWriteOncePod") {
                needs.exclusive.insert(name.clone());
            }
            if !is_bound(&claim) {
                if !self.waits_for_consumer(&claim) {
                    needs.impossible = Some("pod has unbound immediate PersistentVolumeClaims".into());
                    return needs;
                }
                waiting.push(claim);
                continue;
            }
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
            let Some(volume) = self.volumes.find("", volume) else {
                needs.impossible =
                    Some("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)".into());
                return needs;
            };
            let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
            needs.bound.extend(affinity.and_then(|affinity| affinity.required.clone()));
            let labels = labels_of(&volume.metadata.labels);
            for key in ZONES {
                if let Some(values) = labels.get(key) {
                    let values = values.split("__").map(|value| value.trim().to_owned()).collect();
                    needs.zones.push((key.to_owned(), values));
                }
            }
        }
        // The smallest first, so that none takes the one that only suits a larger.
        waiting.sort_by_key(|claim| requested(claim));
        needs.delayed = waiting.iter().map(|claim| self.delayed(claim)).collect();
        needs.counted = self.counted(pod);
        needs
    }

    fn delayed(&self, claim: &PersistentVolumeClaim) -> Delayed {
        let mut candidates: Vec<Arc<PersistentVolume>> =
            self.volumes.list().into_iter().filter(|volume| suits(volume, claim)).collect();
        let kept =
            |volume: &PersistentVolume| volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
        candidates.sort_by(|a, b| {
            let rank =
                |volume: &PersistentVolume| (!kept(volume), capacity(volume), volume.metadata.name.clone());
            rank(a).cmp(&rank(b))
        });
        let affinity =
            |volume: &PersistentVolume| volume.spec.as_ref()?.node_affinity.as_ref()?.required.clone();
        Delayed {
            claim: claim.metadata.name.clone().unwrap_or_default(),
            candidates: candidates
                .iter()
                .map(|volume| (volume.metadata.name.clone().unwrap_or_default(), affinity(volume)))
                .collect(),
            provisioned: self.provisioned(claim),
        }
    }

    /// Where a volume can be made for a claim.
    fn provisioned(&self, claim: &PersistentVolumeClaim) -> Option<Provisioned> {
        let class = self.class_of(claim).filter(|class| class.provisioner != NO_PROVISIONER)?;
        let tells = self.drivers.find("", &class.provisioner);
        let tells = tells.is_some_and(|driver| driver.spec.storage_capacity == Some(true));
        let wanted = requested(claim);
        let enough = |one: &CSIStorageCapacity| {
            let most = one.maximum_volume_size.as_ref().or(one.capacity.as_ref());
            let most = most.and_then(|most| most.0.parse::<Exact>().ok());
            Some(&one.storage_class_name) == class.metadata.name.as_ref()
                && most.is_some_and(|most| most >= wanted)
        };
        let room = tells.then(|| {
            let all = self.capacities.list();
            all.iter().filter(|one| enough(one)).filter_map(|one| one.node_topology.clone()).collect()
        });
        Some(Provisioned { topologies: class.allowed_topologies.clone().unwrap_or_default(), room })
    }

    /// The volumes of a pod that count against what nodes can have of their drivers.
    fn handles(&self, pod: &Pod) -> Vec<Handle> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let one = |name: String| {
            let claim = self.claims.find(namespace, &name)?;
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
            match volume.filter(|name| !name.is_empty()) {
                Some(volume) => {
                    let volume = self.volumes.find("", volume)?;
                    let csi = volume.spec.as_ref()?.csi.as_ref()?;
                    Some((csi.driver.clone(), csi.volume_handle.clone()))
                }
                // It will be one of the driver that its class names.
                None => {
                    let class = self.class_of(&claim)?;
                    Some((class.provisioner.clone(), format!("{namespace}/{name}")))
                }
            }
        };
        claims_of(pod).filter_map(one).collect()
    }

    fn counted(&self, pod: &Pod) -> Counted {
        let wanted: BTreeSet<Handle> = self.handles(pod).into_iter().collect();
        let drivers: BTreeSet<&str> = wanted.iter().map(|(driver, _)| driver.as_str()).collect();
        if drivers.is_empty() {
            return Counted::default();
        }
        let mut limits: HashMap<String, BTreeMap<String, usize>> = HashMap::new();
        for node in self.csi_nodes.list() {
            let of = node.spec.drivers.iter().filter(|driver| drivers.contains(driver.name.as_str()));
            for driver in of {
                let count = driver.allocatable.as_ref().and_then(|allocatable| allocatable.count);
                if let Some(count) = count.and_then(|count| usize::try_from(count).ok()) {
                    let name = node.metadata.name.clone().unwrap_or_default();
                    limits.entry(name).or_default().insert(driver.name.clone(), count);
                }
            }
        }
        if limits.is_empty() {
            return Counted::default();
        }
        let mut held = HashMap::new();
        for other in self.pods.list() {
            // Also those that only this process knows to have a node by now.
            let handles = self.handles(&other);
            if !handles.is_empty() {
                held.insert(other.metadata.uid.clone().unwrap_or_default(), handles);
            }
        }
        let mut attached: HashMap<String, Vec<Handle>> = HashMap::new();
        for one in self.attachments.list().iter().filter(|one| limits.contains_key(&one.spec.node_name)) {
            let volume = one.spec.source.persistent_volume_name.as_deref();
            let volume = volume.and_then(|name| self.volumes.find("", name));
            let handle =
                volume.and_then(|volume| Some(volume.spec.as_ref()?.csi.as_ref()?.volume_handle.clone()));
            if let Some(handle) = handle {
                attached
                    .entry(one.spec.node_name.clone())
                    .or_default()
                    .push((one.spec.attacher.clone(), handle));
            }
        }
        Counted { wanted, held, attached, limits }
    }

    /// Binds the claims that wait for the pod to the volumes that its node offers, or tells them where to get theirs, and
    /// waits until all are bound.
    pub(crate) async fn bind(&self, client: &Client, pod: &Pod, node: &str) -> Result<(), Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
        let needs = self.needs(pod);
        let found = self.nodes.find("", node).ok_or_else(|| Error::Taken(node.to_owned()))?;
        let chosen = needs.choose(&found).map_err(|_| Error::Taken(node.to_owned()))?;
        for (name, volume) in &chosen {
            let claim =
                self.claims.find(namespace, name).ok_or_else(|| Error::ClaimGone((*name).to_owned()))?;
            match volume {
                Some(volume) => self.reserve(client, volume, &claim).await?,
                None => {
                    let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
                    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                }
            }
        }
        for (name, _) in chosen {
            let bound = async {
                let mut events = std::pin::pin!(kube::runtime::wait::await_condition(
                    api.clone(),
                    name,
                    |claim: Option<&PersistentVolumeClaim>| claim.is_none_or(is_bound),
                ));
                events.as_mut().await
            };
            match tokio::time::timeout(LONGEST_WAIT, bound).await {
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => return Err(Error::ClaimGone(name.to_owned())),
                _ => return Err(Error::NotBound(name.to_owned())),
            }
        }
        Ok(())
    }

    /// Keeps a volume for a claim; the controller completes the binding. Fails if somebody else was quicker.
    async fn reserve(&self, client: &Client, name: &str, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let volume = self.volumes.find("", name).filter(|volume| suits(volume, claim));
        let volume = volume.ok_or_else(|| Error::Taken(name.to_owned()))?;
        let to = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if to.is_some_and(|to| to.uid == claim.metadata.uid) {
            return Ok(());
        }
        let mut patch = json!({
            "metadata": {"resourceVersion": volume.metadata.resource_version},
            "spec": {"claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim.metadata.name,
                "namespace": claim.metadata.namespace, "uid": claim.metadata.uid,
            }},
        });
        if to.is_none() {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        let api = Api::<PersistentVolume>::all(client.clone());
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }
}
