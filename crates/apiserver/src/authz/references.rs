//! What a pod or a volume refers to by name.

use serde_json::Value;

use crate::read::Read;

/// All containers of a pod spec: init containers, containers, ephemeral ones.
pub(crate) fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|key| spec.items(key))
}

fn volumes(pod: &Value) -> &[Value] {
    pod.items("spec.volumes")
}

/// The names at `path` in the environment of all containers (`env[].valueFrom` and `envFrom[]`).
fn environment<'a>(pod: &'a Value, value_from: &'a str, from: &'a str) -> impl Iterator<Item = &'a str> + 'a {
    containers(pod.at("spec")).flat_map(move |container| {
        let single =
            container.items("env").iter().map(move |e| e.at("valueFrom").at(value_from).text("name"));
        single.chain(container.items("envFrom").iter().map(move |e| e.at(from).text("name")))
    })
}

fn projected<'a>(pod: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a str> + 'a {
    volumes(pod)
        .iter()
        .flat_map(|volume| volume.items("projected.sources"))
        .map(move |source| source.at(kind).text("name"))
}

/// The Secrets that a pod refers to, in its own namespace.
pub(crate) fn secrets(pod: &Value) -> impl Iterator<Item = &str> {
    const PATHS: [&str; 10] = [
        "azureFile.secretName",
        "cephfs.secretRef.name",
        "cinder.secretRef.name",
        "flexVolume.secretRef.name",
        "rbd.secretRef.name",
        "secret.secretName",
        "scaleIO.secretRef.name",
        "iscsi.secretRef.name",
        "storageos.secretRef.name",
        "csi.nodePublishSecretRef.name",
    ];
    let pull = pod.items("spec.imagePullSecrets").iter().map(|s| s.text("name"));
    let mounted = volumes(pod).iter().flat_map(|volume| PATHS.map(|path| volume.text(path)));
    pull.chain(environment(pod, "secretKeyRef", "secretRef"))
        .chain(mounted)
        .chain(projected(pod, "secret"))
        .filter(|name| !name.is_empty())
}

/// The ConfigMaps that a pod refers to, in its own namespace.
pub(crate) fn config_maps(pod: &Value) -> impl Iterator<Item = &str> {
    let mounted = volumes(pod).iter().map(|volume| volume.text("configMap.name"));
    environment(pod, "configMapKeyRef", "configMapRef")
        .chain(mounted)
        .chain(projected(pod, "configMap"))
        .filter(|name| !name.is_empty())
}

/// The PersistentVolumeClaims of a pod, those of ephemeral volumes included.
pub(crate) fn volume_claims(pod: &Value) -> impl Iterator<Item = String> {
    volumes(pod).iter().filter_map(|volume| {
        let claim = volume.text("persistentVolumeClaim.claimName");
        if !claim.is_empty() {
            Some(claim.to_owned())
        } else if volume.has("ephemeral") {
            Some(format!("{}-{}", pod.name(), volume.text("name")))
        } else {
            None
        }
    })
}

/// The ResourceClaims of a pod, those made from templates included.
pub(crate) fn resource_claims(pod: &Value) -> impl Iterator<Item = &str> {
    let named = pod.items("spec.resourceClaims").iter().map(|claim| {
        let own = claim.text("resourceClaimName");
        if !own.is_empty() {
            return own;
        }
        let statuses = pod.items("status.resourceClaimStatuses");
        let made = statuses.iter().find(|status| status.text("name") == claim.text("name"));
        made.map_or("", |status| status.text("resourceClaimName"))
    });
    named
        .chain([pod.text("status.extendedResourceClaimStatus.resourceClaimName")])
        .filter(|name| !name.is_empty())
}

/// The Secrets (namespace, name) that a node needs for a PersistentVolume.
pub(crate) fn volume_secrets(volume: &Value) -> impl Iterator<Item = (&str, &str)> {
    let claim_namespace = volume.text("spec.claimRef.namespace");
    let spec = volume.at("spec");
    let azure = (spec.text("azureFile.secretNamespace"), spec.text("azureFile.secretName"));
    const REFERENCES: [&str; 10] = [
        "cephfs.secretRef",
        "cinder.secretRef",
        "flexVolume.secretRef",
        "rbd.secretRef",
        "scaleIO.secretRef",
        "iscsi.secretRef",
        "storageos.secretRef",
        "csi.nodePublishSecretRef",
        "csi.nodeStageSecretRef",
        "csi.nodeExpandSecretRef",
    ];
    let references = REFERENCES.into_iter().map(move |path| {
        let reference = spec.at(path);
        (reference.text("namespace"), reference.text("name"))
    });
    references
        .chain([azure])
        .filter(|(_, name)| !name.is_empty())
        .map(move |(namespace, name)| (if namespace.is_empty() { claim_namespace } else { namespace }, name))
}
