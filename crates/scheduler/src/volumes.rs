//! What a pod's claims demand of a node, and the wait until they are bound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Factory, Informer};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use scheduling::VolumeNeeds;
use serde_json::json;
use thiserror::Error;

const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Why a pod's volumes are not ready to be bound to.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("persistentvolumeclaim \"{0}\" not found")]
    ClaimGone(String),
    #[error("timed out waiting for the claim \"{0}\" to be bound")]
    NotBound(String),
    #[error(transparent)]
    Client(#[from] kube::Error),
}

/// The caches that decide about volumes.
pub(crate) struct Volumes {
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
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

impl Volumes {
    pub(crate) fn new(informers: &Factory) -> Self {
        Self { claims: informers.informer(), volumes: informers.informer(), classes: informers.informer() }
    }

    fn waits_for_consumer(&self, claim: &PersistentVolumeClaim) -> bool {
        let class =
            claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
        self.classes
            .find("", class)
            .is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
    }

    /// What nodes must offer for the pod's claims.
    pub(crate) fn needs(&self, pod: &Pod) -> VolumeNeeds {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut needs = VolumeNeeds::default();
        for name in claims_of(pod) {
            let Some(claim) = self.claims.find(namespace, &name) else {
                needs.impossible = Some(format!("persistentvolumeclaim \"{name}\" not found"));
                return needs;
            };
            if claim.metadata.deletion_timestamp.is_some() {
                needs.impossible = Some(format!("persistentvolumeclaim \"{name}\" is being deleted"));
                return needs;
            }
            if !is_bound(&claim) {
                if !self.waits_for_consumer(&claim) {
                    needs.impossible = Some("pod has unbound immediate PersistentVolumeClaims".into());
                    return needs;
                }
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
        }
        needs
    }

    /// Tells the claims that wait for a consumer which node it is on, and waits until they are bound.
    pub(crate) async fn bind(&self, client: &Client, pod: &Pod, node: &str) -> Result<(), Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
        for name in claims_of(pod) {
            let claim = self.claims.find(namespace, &name).ok_or_else(|| Error::ClaimGone(name.clone()))?;
            if is_bound(&claim) {
                continue;
            }
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
            api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            let bound = async {
                let mut events = std::pin::pin!(kube::runtime::wait::await_condition(
                    api.clone(),
                    &name,
                    |claim: Option<&PersistentVolumeClaim>| claim.is_none_or(is_bound),
                ));
                events.as_mut().await
            };
            match tokio::time::timeout(LONGEST_WAIT, bound).await {
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => return Err(Error::ClaimGone(name)),
                _ => return Err(Error::NotBound(name)),
            }
        }
        Ok(())
    }
}
