//! Storage: claims and the volumes that they are bound to.

mod attach;
mod binder;
mod ephemeral;
mod expand;
mod protection;
mod rules;

pub(crate) use attach::run as attach;
pub(crate) use binder::run as binder;
pub(crate) use ephemeral::run as ephemeral;
pub(crate) use expand::run as expand;
pub(crate) use protection::{
    claims as protect_claims, classes as protect_classes, volumes as protect_volumes,
};

use k8s_openapi::api::core::v1::{Pod, Volume};

/// The name of the claim behind a pod's volume; that of a generic ephemeral volume is made from the pod's name.
fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            Some(format!("{name}-{}", volume.name))
        }
        (None, None) => None,
    }
}

fn volumes_of(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}
