//! What external-provisioner, external-attacher and external-resizer do for a driver, as little of it as the tests need.

use std::fmt::Debug;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::driver::{DATA, NAME};

/// While this file is there nothing is attached.
pub const HOLD: &str = "hold-attach";
const FINALIZER: &str = "external-attacher/csi-test-carrack-dev";

/// Runs all three.
pub async fn run() {
    let client = Client::try_default().await.expect("the pod's own account");
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let claims: Api<PersistentVolumeClaim> = Api::all(client.clone());
    let attachments: Api<VolumeAttachment> = Api::all(client.clone());
    let mut claims = heard(claims);
    let mut volumes = heard(volumes);
    let mut attachments = heard(attachments);
    loop {
        let done = tokio::select! {
            Some(claim) = claims.next() => provision(&client, &claim).await,
            Some(volume) = volumes.next() => delete(&client, &volume).await,
            Some(attachment) = attachments.next() => {
                tokio::spawn(attach(client.clone(), attachment));
                Ok(())
            }
            else => return,
        };
        if let Err(error) = done {
            println!("{error}");
        }
    }
}

/// What exists and what changes; failures are tried again, so that the driver outlives the server.
fn heard<K>(api: Api<K>) -> Pin<Box<dyn Stream<Item = K> + Send>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = watcher(api, watcher::Config::default()).default_backoff().applied_objects();
    events.filter_map(|event| std::future::ready(event.ok())).boxed()
}

async fn provision(client: &Client, claim: &PersistentVolumeClaim) -> Result<(), kube::Error> {
    if claim.annotations().get("volume.kubernetes.io/storage-provisioner").map(String::as_str) != Some(NAME) {
        return Ok(());
    }
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let spec = claim.spec.clone().unwrap_or_default();
    let size = spec.resources.and_then(|all| all.requests?.get("storage").cloned()).unwrap_or_default();
    let name = format!("pvc-{}", claim.uid().unwrap_or_default());
    if let Some(volume) = volumes.get_opt(&name).await? {
        let has = volume.spec.and_then(|spec| spec.capacity?.get("storage").cloned()).unwrap_or_default();
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if bound && has != size {
            let patch = json!({"spec": {"capacity": {"storage": size}}});
            volumes.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            let claims: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
            let status = json!({"status": {
                "allocatedResources": {"storage": size}, "allocatedResourceStatuses": {"storage": "NodeResizePending"},
                "conditions": [{"type": "FileSystemResizePending", "status": "True"}],
            }});
            claims
                .patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Strategic(status))
                .await?;
        }
        return Ok(());
    }
    let classes: Api<StorageClass> = Api::all(client.clone());
    let class = classes.get(&spec.storage_class_name.clone().unwrap_or_default()).await?;
    let waits = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    if waits && !claim.annotations().contains_key("volume.kubernetes.io/selected-node") {
        return Ok(());
    }
    let block = spec.volume_mode.as_deref() == Some("Block");
    let secret = json!({"name": "stage", "namespace": claim.namespace()});
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": NAME}},
        "spec": {
            "accessModes": spec.access_modes, "capacity": {"storage": size}, "volumeMode": spec.volume_mode,
            "persistentVolumeReclaimPolicy": "Delete", "storageClassName": spec.storage_class_name,
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim.name_any(),
                "namespace": claim.namespace(), "uid": claim.uid()},
            "csi": {
                "driver": NAME, "volumeHandle": name, "fsType": if block { "" } else { "ext4" },
                "volumeAttributes": {"size": "1048576"}, "nodeStageSecretRef": secret,
            },
        },
    });
    let volume = serde_json::from_value(volume).expect("a volume");
    volumes.create(&PostParams::default(), &volume).await.map(drop)
}

async fn delete(client: &Client, volume: &PersistentVolume) -> Result<(), kube::Error> {
    let released = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Released");
    let ours = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).is_some_and(|csi| csi.driver == NAME);
    if released && ours {
        Api::<PersistentVolume>::all(client.clone())
            .delete(&volume.name_any(), &DeleteParams::default())
            .await?;
    }
    Ok(())
}

async fn attach(client: Client, attachment: VolumeAttachment) {
    if attachment.spec.attacher != NAME {
        return;
    }
    let api: Api<VolumeAttachment> = Api::all(client);
    let (name, params) = (attachment.name_any(), PatchParams::default());
    let attached = attachment.status.as_ref().is_some_and(|status| status.attached);
    let done = if attachment.metadata.deletion_timestamp.is_some() {
        let patch = json!({"metadata": {"finalizers": null}});
        api.patch(&name, &params, &Patch::Merge(patch)).await.map(drop)
    } else if !attached {
        let patch = json!({"metadata": {"finalizers": [FINALIZER]}});
        if let Err(error) = api.patch(&name, &params, &Patch::Merge(patch)).await {
            println!("{error}");
        }
        while Path::new(DATA).join(HOLD).exists() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let patch = json!({"status": {"attached": true, "attachmentMetadata": {"lun": "7"}}});
        api.patch_status(&name, &params, &Patch::Merge(patch)).await.map(drop)
    } else {
        Ok(())
    };
    if let Err(error) = done {
        println!("{error}");
    }
}
