//! Which volume suits a claim (upstream: `component-helpers/storage/volume`). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity as Exact;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;
use scheduling::selector::{labels_of, matches};

pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub(crate) const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
pub(crate) const BETA_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const BETA_DEFAULT_CLASS: &str = "storageclass.beta.kubernetes.io/is-default-class";

pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The class that a claim names; the older annotation goes before the field.
pub(crate) fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let field = || claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&claim.metadata, BETA_CLASS).or_else(field).unwrap_or_default()
}

/// Whether a claim says which class it wants, be it none.
pub(crate) fn has_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, BETA_CLASS).is_some()
        || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
}

fn volume_class(volume: &PersistentVolume) -> &str {
    let field = || volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    annotation(&volume.metadata, BETA_CLASS).or_else(field).unwrap_or_default()
}

/// The class that claims without one get: of several the newest.
pub(crate) fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let is_default = |class: &&Arc<StorageClass>| {
        [DEFAULT_CLASS, BETA_DEFAULT_CLASS].iter().any(|key| annotation(&class.metadata, key) == Some("true"))
    };
    let age = |class: &Arc<StorageClass>| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
    // The last of equals by reverse name is the first by name.
    classes
        .iter()
        .filter(is_default)
        .min_by(|a, b| age(b).cmp(&age(a)).then_with(|| a.metadata.name.cmp(&b.metadata.name)))
}

pub(crate) fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

fn storage(amounts: Option<&BTreeMap<String, Quantity>>) -> Exact {
    let amount = amounts.and_then(|all| all.get("storage")).and_then(|one| one.0.parse().ok());
    amount.unwrap_or_else(|| Exact::new(0, api::quantity::Format::BinarySi))
}

/// What a claim asks for.
pub(crate) fn requested(claim: &PersistentVolumeClaim) -> Exact {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

/// What a volume holds.
pub(crate) fn capacity(volume: &PersistentVolume) -> Exact {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

fn claim_spec(claim: &PersistentVolumeClaim) -> PersistentVolumeClaimSpec {
    claim.spec.clone().unwrap_or_default()
}

fn volume_spec(volume: &PersistentVolume) -> PersistentVolumeSpec {
    volume.spec.clone().unwrap_or_default()
}

/// Whether one is a block device and the other a file system.
pub(crate) fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let mode = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
    let wanted = mode(claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()));
    wanted != mode(volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()))
}

fn attributes_class(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> (String, String) {
    (
        claim_spec(claim).volume_attributes_class_name.unwrap_or_default(),
        volume_spec(volume).volume_attributes_class_name.unwrap_or_default(),
    )
}

/// Whether the volume is kept for this claim, or already its own.
pub(crate) fn is_bound_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(to) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    to.name == claim.metadata.name
        && to.namespace == claim.metadata.namespace
        && to.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

/// The volume for a claim that names none: one that is kept for it, or else the smallest that suits. While the choice
/// waits for a consumer only the first kind counts.
pub(crate) fn best_match(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    waits: bool,
) -> Option<Arc<PersistentVolume>> {
    let wanted = requested(claim);
    let spec = claim_spec(claim);
    let modes = spec.access_modes.unwrap_or_default();
    let mut best: Option<&Arc<PersistentVolume>> = None;
    for volume in volumes {
        let own = volume_spec(volume);
        let kept = is_bound_to(volume, claim);
        let (class, volume_attributes) = attributes_class(claim, volume);
        let has = own.access_modes.unwrap_or_default();
        if (own.claim_ref.is_some() && !kept)
            || capacity(volume) < wanted
            || modes_differ(claim, volume)
            || class != volume_attributes
            || !modes.iter().all(|mode| has.contains(mode))
            || volume.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        if kept {
            return Some(volume.clone());
        }
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        if waits
            || phase != Some("Available")
            || spec.selector.as_ref().is_some_and(|one| !matches(one, labels_of(&volume.metadata.labels)))
            || volume_class(volume) != claim_class(claim)
        {
            continue;
        }
        // Those with the fewest modes go first, so that claims that need more find theirs.
        let rank = |volume: &PersistentVolume| {
            (volume_spec(volume).access_modes.map_or(0, |modes| modes.len()), capacity(volume))
        };
        if best.is_none_or(|best| rank(volume) < rank(best)) {
            best = Some(volume);
        }
    }
    best.cloned()
}

/// Why a volume that the claim names does not suit it.
pub(crate) fn unsuitable(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let (wanted, own) = attributes_class(claim, volume);
    let has = volume_spec(volume).access_modes.unwrap_or_default();
    let modes = claim_spec(claim).access_modes.unwrap_or_default();
    Some(if volume.metadata.deletion_timestamp.is_some() {
        format!("the volume is marked for deletion {name:?}")
    } else if capacity(volume) < requested(claim) {
        "requested PV is too small".into()
    } else if volume_class(volume) != claim_class(claim) {
        "storageClassName does not match".into()
    } else if wanted != own {
        "volumeAttributesClassName does not match".into()
    } else if modes_differ(claim, volume) {
        "incompatible volumeMode".into()
    } else if !modes.iter().all(|mode| has.contains(mode)) {
        "incompatible accessMode".into()
    } else {
        return None;
    })
}

/// The volume with its reference to the claim; `None` if it has that already.
pub(crate) fn bind_volume(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<PersistentVolume> {
    let mut new = volume.clone();
    let ours = !is_bound_to(volume, claim);
    let own = new.spec.get_or_insert_default();
    let complete = own.claim_ref.as_ref().is_some_and(|one| one.uid == claim.metadata.uid);
    if ours || !complete {
        own.claim_ref = Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolumeClaim".into()),
            name: claim.metadata.name.clone(),
            namespace: claim.metadata.namespace.clone(),
            uid: claim.metadata.uid.clone(),
            resource_version: claim.metadata.resource_version.clone(),
            field_path: None,
        });
    }
    if ours {
        mark(&mut new.metadata, BOUND_BY_CONTROLLER);
    }
    (new != *volume).then_some(new)
}

/// The claim with its reference to the volume and the mark of a finished binding; `None` if it has both already.
pub(crate) fn bind_claim(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Option<PersistentVolumeClaim> {
    let mut new = claim.clone();
    let spec = new.spec.get_or_insert_default();
    if spec.volume_name != volume.metadata.name {
        spec.volume_name = volume.metadata.name.clone();
        mark(&mut new.metadata, BOUND_BY_CONTROLLER);
    }
    if annotation(&new.metadata, BIND_COMPLETED).is_none() {
        mark(&mut new.metadata, BIND_COMPLETED);
    }
    (new != *claim).then_some(new)
}

fn mark(meta: &mut ObjectMeta, key: &str) {
    meta.annotations.get_or_insert_default().insert(key.to_owned(), "yes".to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let claim = json!({"metadata": {"name": "c", "namespace": "d", "uid": "u"}, "spec": spec});
        serde_json::from_value(claim).expect("a claim")
    }

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut spec = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]});
        spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        let volume = json!({"metadata": {"name": name}, "spec": spec, "status": {"phase": "Available"}});
        Arc::new(serde_json::from_value(volume).expect("a volume"))
    }

    #[test]
    fn the_smallest_that_suits_or_the_one_that_is_kept() {
        let volumes = [
            volume("big", "10Gi", json!({})),
            volume("small", "2Gi", json!({})),
            volume("tiny", "1Gi", json!({})),
            volume("fast", "2Gi", json!({"storageClassName": "fast"})),
            volume("block", "2Gi", json!({"volumeMode": "Block"})),
            volume("taken", "2Gi", json!({"claimRef": {"name": "x", "namespace": "d", "uid": "v"}})),
        ];
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}});
        let check = |volumes: &[Arc<PersistentVolume>], waits: bool, more: Value, expected: Option<&str>| {
            let mut spec = spec.clone();
            spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            let found = best_match(&claim(spec), volumes, waits);
            assert_eq!(found.and_then(|one| one.metadata.name.clone()).as_deref(), expected);
        };
        check(&volumes, false, json!({}), Some("small"));
        check(&volumes, true, json!({}), None);
        check(&volumes, false, json!({"storageClassName": "fast"}), Some("fast"));
        check(&volumes, false, json!({"volumeMode": "Block"}), Some("block"));
        check(&volumes, false, json!({"accessModes": ["ReadWriteMany"]}), None);
        let kept = volume("kept", "3Gi", json!({"claimRef": {"name": "c", "namespace": "d"}}));
        check(&[volumes[1].clone(), kept], true, json!({}), Some("kept"));
    }

    #[test]
    fn binding_is_written_once_on_each_side() {
        let (volume, claim) = (volume("v", "1Gi", json!({})), claim(json!({})));
        let volume = bind_volume(&volume, &claim).expect("unbound");
        assert_eq!(annotation(&volume.metadata, BOUND_BY_CONTROLLER), Some("yes"));
        assert_eq!(bind_volume(&volume, &claim), None);
        let claim = bind_claim(&claim, &volume).expect("unbound");
        assert_eq!(claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()), Some("v"));
        assert_eq!(bind_claim(&claim, &volume), None);
    }

    #[test]
    fn a_volume_that_is_asked_for_must_suit() {
        let asks = claim(json!({"resources": {"requests": {"storage": "2Gi"}}}));
        let why = unsuitable(&volume("v", "1Gi", json!({})), &asks);
        assert_eq!(why.as_deref(), Some("requested PV is too small"));
        assert_eq!(unsuitable(&volume("v", "2Gi", json!({})), &asks), None);
    }
}
