//! Volumes behind claims: those of CSI drivers, of the node itself (`local`), and folders of the node (`hostPath`).

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::Api;
use tokio_util::sync::CancellationToken;

use super::{CLAIM_LOOK, Mounted, VolumeError, host_path, mounts, ownership, volume_dir};
use crate::context::Context;
use crate::csi::Order;
use crate::podutil::{self, spec};

/// Makes the volume behind a claim ready.
pub(super) async fn setup(
    context: &Context,
    pod: &Pod,
    volume: &Volume,
    ending: &CancellationToken,
    mounted: &mut Mounted,
) -> Result<(), VolumeError> {
    let own = format!("{}-{}", podutil::name(pod), volume.name);
    let source = volume.persistent_volume_claim.as_ref();
    let name = source.map_or(own.as_str(), |source| &source.claim_name);
    let read_only = source.is_some_and(|source| source.read_only == Some(true));
    let (claim, persistent) = bound(context, pod, name, source.is_none()).await?;
    let block = persistent.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block");
    check_mode(pod, &volume.name, block).map_err(|why| VolumeError::Claim(name.to_owned(), why))?;
    if read_only {
        mounted.read_only.insert(volume.name.clone());
    }
    if let Some(order) = Order::persistent(pod, &persistent, &claim, read_only) {
        mounted.renew(Timestamp::now() + CLAIM_LOOK);
        if block {
            let device = context.csi.map(context, &order, ending).await?;
            mounted.devices.insert(volume.name.clone(), (device, read_only));
        } else {
            let path = context.csi.mount(context, &order, ending).await?;
            mounted.paths.insert(volume.name.clone(), path);
        }
        return Ok(());
    }
    let path = of_node(context, pod, name, &persistent, read_only)?;
    if block {
        mounted.devices.insert(volume.name.clone(), (path, read_only));
    } else {
        mounted.paths.insert(volume.name.clone(), path);
    }
    Ok(())
}

/// A claim of the pod and the volume that it is bound to.
async fn bound(
    context: &Context,
    pod: &Pod,
    name: &str,
    made_for_pod: bool,
) -> Result<(PersistentVolumeClaim, PersistentVolume), VolumeError> {
    let fail = |reason: String| VolumeError::Claim(name.to_owned(), reason);
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(context.config.client.clone(), podutil::namespace(pod));
    let claim = claims.get(name).await.map_err(|error| fail(error.to_string()))?;
    let mut owners = claim.metadata.owner_references.iter().flatten();
    if made_for_pod && !owners.any(|owner| owner.uid == podutil::uid(pod) && owner.controller == Some(true)) {
        return Err(fail(format!(
            "it was not created for pod {:?}, which does not own it",
            podutil::name(pod)
        )));
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if claim.metadata.deletion_timestamp.is_some() && phase.is_none_or(|phase| phase == "Pending") {
        return Err(fail("is being deleted".to_owned()));
    }
    let is_bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|_| is_bound);
    let volume = volume.ok_or_else(|| fail("is not bound".to_owned()))?;
    let volumes: Api<PersistentVolume> = Api::all(context.config.client.clone());
    let volume = volumes.get(&volume).await.map_err(|error| fail(error.to_string()))?;
    let to = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if to.is_none_or(|to| to.uid != claim.metadata.uid) {
        return Err(fail("its volume is bound to another claim".to_owned()));
    }
    Ok((claim, volume))
}

/// A block volume is used by `volumeDevices` alone, one with a file system by `volumeMounts`.
fn check_mode(pod: &Pod, volume: &str, block: bool) -> Result<(), String> {
    let spec = spec(pod);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        let mounts = container.volume_mounts.iter().flatten().any(|mount| mount.name == volume);
        let devices = container.volume_devices.iter().flatten().any(|device| device.name == volume);
        if block && mounts {
            return Err("has volumeMode Block, but is specified in volumeMounts".to_owned());
        }
        if !block && devices {
            return Err("has volumeMode Filesystem, but is specified in volumeDevices".to_owned());
        }
    }
    Ok(())
}

/// The path of a volume that lies on the node itself.
fn of_node(
    context: &Context,
    pod: &Pod,
    claim: &str,
    volume: &PersistentVolume,
    read_only: bool,
) -> Result<PathBuf, VolumeError> {
    let fail = |reason: &str| VolumeError::Claim(claim.to_owned(), reason.to_owned());
    let spec = volume.spec.clone().unwrap_or_default();
    let options = spec.mount_options.unwrap_or_default();
    if let Some(local) = spec.local {
        let path = Path::new(&local.path);
        if spec.volume_mode.as_deref() == Some("Block") {
            host_path::check(path, "BlockDevice")?;
            return Ok(path.to_owned());
        }
        host_path::check(path, "Directory")?;
        if !read_only {
            let security = podutil::spec(pod).security_context.as_ref();
            let policy = security.and_then(|security| security.fs_group_change_policy.as_deref());
            ownership::apply_to_volume(path, security.and_then(|security| security.fs_group), policy)?;
        }
        if options.is_empty() {
            return Ok(path.to_owned());
        }
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        let dir = volume_dir(&context.config.root_dir, podutil::uid(pod), "local-volume", name);
        mounts::bind(path, &dir, &options)?;
        return Ok(dir);
    }
    if let Some(source) = spec.host_path {
        if !options.is_empty() {
            return Err(fail("its volume has mount options, which a hostPath cannot have"));
        }
        host_path::check(Path::new(&source.path), source.type_.as_deref().unwrap_or("DirectoryOrCreate"))?;
        return Ok(PathBuf::from(source.path));
    }
    Err(fail("its volume is of a kind this node does not support"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_mode_of_a_volume_decides_how_it_is_used() {
        let pod = |key: &str| -> Pod {
            let container =
                json!({"name": "c", key: [{"name": "v", "mountPath": "/v", "devicePath": "/dev/v"}]});
            serde_json::from_value(json!({"spec": {"containers": [container]}})).expect("a pod")
        };
        assert!(check_mode(&pod("volumeMounts"), "v", false).is_ok());
        assert!(check_mode(&pod("volumeDevices"), "v", true).is_ok());
        assert!(check_mode(&pod("volumeMounts"), "v", true).is_err());
        assert!(check_mode(&pod("volumeDevices"), "v", false).is_err());
        assert!(check_mode(&pod("volumeDevices"), "w", false).is_ok());
    }
}
