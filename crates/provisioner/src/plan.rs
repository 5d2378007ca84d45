//! What is to be done for a claim and for a volume: pure functions of the objects.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use crate::PROVISIONER;

const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// A claim that names no size gets this many bytes.
const DEFAULT_SIZE: u64 = 1 << 30;

/// What to do for a claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ForClaim {
    Nothing,
    /// Make a volume of that many bytes.
    Provision {
        size: u64,
    },
    /// Grow its volume to that many bytes.
    Grow {
        volume: String,
        size: u64,
    },
    /// It cannot be had; why.
    Refuse(String),
}

fn bytes(quantity: Option<&Quantity>) -> Option<u64> {
    let exact = quantity?.0.parse::<api::quantity::Quantity>().ok()?;
    u64::try_from(exact.value()).ok()
}

/// The name of the volume that is made for a claim.
pub(crate) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

fn annotation<'a>(claim: &'a PersistentVolumeClaim, key: &str) -> Option<&'a str> {
    claim.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Looks at a claim; `volume` is the one it is bound to.
pub(crate) fn for_claim(
    claim: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
    node: &str,
) -> ForClaim {
    let Some(spec) = claim.spec.as_ref().filter(|_| claim.metadata.deletion_timestamp.is_none()) else {
        return ForClaim::Nothing;
    };
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let wanted = bytes(requests.and_then(|requests| requests.get("storage"))).unwrap_or(DEFAULT_SIZE);
    if let Some(name) = spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
        let Some(volume) = volume.filter(|volume| is_ours(volume, node)) else { return ForClaim::Nothing };
        let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
        let has = bytes(capacity.and_then(|capacity| capacity.get("storage"))).unwrap_or(0);
        let status = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
        let shown = bytes(status.and_then(|capacity| capacity.get("storage")));
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if bound && (wanted > has || shown.is_some_and(|shown| shown < has && wanted > shown)) {
            return ForClaim::Grow { volume: name.to_owned(), size: wanted };
        }
        return ForClaim::Nothing;
    }
    if annotation(claim, STORAGE_PROVISIONER) != Some(PROVISIONER)
        || annotation(claim, SELECTED_NODE) != Some(node)
    {
        return ForClaim::Nothing;
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return ForClaim::Refuse(
            "spec.volumeMode: Block volumes are not provisioned; use Filesystem".to_owned(),
        );
    }
    let mut modes = spec.access_modes.iter().flatten();
    if let Some(mode) = modes.find(|mode| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod")) {
        return ForClaim::Refuse(format!(
            "spec.accessModes: {mode} is not supported by volumes of one node; use ReadWriteOnce"
        ));
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return ForClaim::Refuse("spec.dataSource: local volumes are not made from a source".to_owned());
    }
    ForClaim::Provision { size: wanted }
}

/// Whether the volume is one that this provisioner made on this node.
pub(crate) fn is_ours(volume: &PersistentVolume, node: &str) -> bool {
    let made = volume.metadata.annotations.as_ref().and_then(|all| all.get(PROVISIONED_BY));
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    let here = affinity.into_iter().flat_map(|selector| &selector.node_selector_terms).any(|term| {
        let mut rules = term.match_expressions.iter().flatten();
        rules.any(|rule| rule.key == HOSTNAME && rule.values.iter().flatten().any(|value| value == node))
    });
    made.is_some_and(|made| made == PROVISIONER) && here
}

/// Whether the volume is to be taken away: its claim is gone, and its owner wants that.
pub(crate) fn is_to_go(volume: &PersistentVolume, node: &str) -> bool {
    let released = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Released");
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    released && policy == Some("Delete") && is_ours(volume, node)
}

/// The object of a volume made for a claim.
pub(crate) fn volume(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    size: u64,
    path: &str,
    node: &str,
) -> Value {
    let meta = &claim.metadata;
    let spec = claim.spec.as_ref();
    let policy = class.and_then(|class| class.reclaim_policy.as_deref()).unwrap_or("Delete");
    let requests = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let asked = requests.and_then(|requests| requests.get("storage")).map(|quantity| quantity.0.clone());
    json!({
        "metadata": {"name": volume_name(claim), "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": asked.unwrap_or_else(|| size.to_string())},
            "accessModes": spec.and_then(|spec| spec.access_modes.clone()),
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": policy,
            "storageClassName": spec.and_then(|spec| spec.storage_class_name.clone()),
            "mountOptions": class.and_then(|class| class.mount_options.clone()),
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": meta.namespace,
                "name": meta.name,
                "uid": meta.uid,
            },
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [node]}]},
            ]}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value, node: &str) -> PersistentVolumeClaim {
        let claim = json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "1",
                "annotations": {STORAGE_PROVISIONER: PROVISIONER, SELECTED_NODE: node}},
            "spec": spec,
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        });
        serde_json::from_value(claim).expect("a claim")
    }

    fn spec(size: &str, mode: &str) -> Value {
        json!({"accessModes": [mode], "resources": {"requests": {"storage": size}}})
    }

    #[test]
    fn claims() {
        let refused = |plan| matches!(plan, ForClaim::Refuse(_));
        let rwo = claim(spec("2Gi", "ReadWriteOnce"), "a");
        assert_eq!(for_claim(&rwo, None, "a"), ForClaim::Provision { size: 2 << 30 });
        assert_eq!(for_claim(&rwo, None, "b"), ForClaim::Nothing);
        assert!(refused(for_claim(&claim(spec("1Gi", "ReadWriteMany"), "a"), None, "a")));
        let mut block = spec("1Gi", "ReadWriteOnce");
        block["volumeMode"] = "Block".into();
        assert!(refused(for_claim(&claim(block, "a"), None, "a")));
    }

    #[test]
    fn volumes_grow_and_go() {
        let wanted = claim(spec("1Gi", "ReadWriteOnce"), "a");
        let mut made = volume(&wanted, None, 1 << 30, "/v/pvc-1", "a");
        let parse =
            |value: &Value| serde_json::from_value::<PersistentVolume>(value.clone()).expect("a volume");
        assert!(is_ours(&parse(&made), "a") && !is_ours(&parse(&made), "b"));
        let mut larger = spec("3Gi", "ReadWriteOnce");
        larger["volumeName"] = "pvc-1".into();
        let grow = ForClaim::Grow { volume: "pvc-1".to_owned(), size: 3 << 30 };
        assert_eq!(for_claim(&claim(larger, "a"), Some(&parse(&made)), "a"), grow);
        made["status"] = json!({"phase": "Released"});
        assert!(is_to_go(&parse(&made), "a"));
        made["spec"]["persistentVolumeReclaimPolicy"] = "Retain".into();
        assert!(!is_to_go(&parse(&made), "a"));
    }
}
