//! A pod's volumes: made ready before its containers, kept up to date, and taken away after them.
//! Everything lies under `<root>/pods/<uid>`; setting up again is idempotent and doubles as the update.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::Api;

use crate::context::Context;
use crate::objects::{Held, ObjectError};
use crate::podutil::{self, spec};
use crate::quantity;

pub(crate) mod atomic;
mod host_path;
pub(crate) mod mounts;
mod ownership;
mod payload;

/// Why a volume cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("references non-existent {kind} key: {key}")]
    Key { kind: &'static str, key: String },
    #[error("invalid path {0:?}")]
    Path(String),
    #[error("hostPath type check failed: {path} is not a {wanted}")]
    HostPathType { path: String, wanted: String },
    #[error(transparent)]
    Downward(#[from] crate::downward::DownwardError),
    #[error("failed to fetch token: {0}")]
    Token(kube::Error),
    #[error("persistentvolumeclaim {0:?}: {1}")]
    Claim(String, String),
    #[error("volume {0:?} is of a kind this node does not support")]
    Unsupported(String),
    #[error("{0} still holds a mount and is left as it is")]
    StillMounted(PathBuf),
}

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> VolumeError {
    let what = what.into();
    move |source| VolumeError::Io { what, source }
}

/// The volumes of a pod, ready for use.
#[derive(Default)]
pub(crate) struct Mounted {
    /// Host path by volume name.
    pub paths: BTreeMap<String, PathBuf>,
    /// Images by volume name, mounted by the runtime.
    pub images: BTreeMap<String, String>,
    /// Objects whose change asks for another setup.
    pub held: Vec<Held>,
    /// When a token has to be renewed.
    pub renew_at: Option<Timestamp>,
}

/// Where a pod's own files lie.
pub(crate) fn pod_dir(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

fn volume_dir(root: &Path, uid: &str, plugin: &str, name: &str) -> PathBuf {
    pod_dir(root, uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
}

/// Sets up, or brings up to date, every volume of the pod.
pub(crate) async fn setup(
    context: &Context,
    pod: &Pod,
    ips: &[String],
) -> Result<Mounted, (String, VolumeError)> {
    let mut mounted = Mounted::default();
    for volume in spec(pod).volumes.iter().flatten() {
        one(context, pod, volume, ips, &mut mounted).await.map_err(|error| (volume.name.clone(), error))?;
    }
    Ok(mounted)
}

async fn one(
    context: &Context,
    pod: &Pod,
    volume: &Volume,
    ips: &[String],
    mounted: &mut Mounted,
) -> Result<(), VolumeError> {
    let root = &context.config.root_dir;
    let uid = podutil::uid(pod);
    let fs_group = spec(pod).security_context.as_ref().and_then(|security| security.fs_group);
    let dir = |plugin: &str| volume_dir(root, uid, plugin, &volume.name);
    let path = if let Some(source) = &volume.empty_dir {
        let dir = dir("empty-dir");
        // The mark tells a restart that the folder was not finished.
        let mark = dir.with_file_name(format!(".{}.pending", volume.name));
        let fresh = !dir.exists() || mark.exists();
        if fresh {
            dir.parent().map_or(Ok(()), make_dir)?;
            std::fs::write(&mark, "").map_err(io(format!("cannot write {}", mark.display())))?;
        }
        failpoint::step("kubelet.volume.folder");
        make_dir(&dir)?;
        if source.medium.as_deref() == Some("Memory") {
            mounts::tmpfs(&dir, source.size_limit.as_ref().and_then(quantity::value))?;
        }
        if fresh {
            failpoint::step("kubelet.volume.owner");
            ownership::open_to_all(&dir)?;
            ownership::apply(&dir, fs_group, false)?;
            failpoint::step("kubelet.volume.done");
            std::fs::remove_file(&mark).map_err(io(format!("cannot remove {}", mark.display())))?;
        }
        dir
    } else if let Some(source) = &volume.host_path {
        host_path::check(Path::new(&source.path), source.type_.as_deref().unwrap_or_default())?;
        PathBuf::from(&source.path)
    } else if let Some(image) = &volume.image {
        mounted.images.insert(volume.name.clone(), image.reference.clone().unwrap_or_default());
        return Ok(());
    } else if let Some(claim) = &volume.persistent_volume_claim {
        claimed(context, pod, &claim.claim_name).await?
    } else if volume.ephemeral.is_some() {
        claimed(context, pod, &format!("{}-{}", podutil::name(pod), volume.name)).await?
    } else if let Some(plugin) = payload::plugin(volume) {
        let files = payload::collect(context, pod, volume, ips, mounted).await?;
        let dir = dir(plugin);
        make_dir(&dir)?;
        if plugin != "configmap" && plugin != "downward-api" {
            // Nothing secret ever reaches a disk.
            mounts::tmpfs(&dir, None)?;
        }
        atomic::write(&dir, &files, |staged| ownership::apply(staged, fs_group, true))?;
        ownership::apply_to_root(&dir, fs_group)?;
        dir
    } else {
        return Err(VolumeError::Unsupported(volume.name.clone()));
    };
    mounted.paths.insert(volume.name.clone(), path);
    Ok(())
}

pub(crate) fn make_dir(dir: &Path) -> Result<(), VolumeError> {
    std::fs::create_dir_all(dir).map_err(io(format!("cannot create {}", dir.display())))
}

/// The path behind a bound claim; only volumes of the node itself can be resolved here.
async fn claimed(context: &Context, pod: &Pod, name: &str) -> Result<PathBuf, VolumeError> {
    let fail = |reason: String| VolumeError::Claim(name.to_owned(), reason);
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(context.config.client.clone(), podutil::namespace(pod));
    let claim = claims.get(name).await.map_err(|error| fail(error.to_string()))?;
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.and_then(|spec| spec.volume_name).filter(|_| bound);
    let volume = volume.ok_or_else(|| fail("is not bound".to_owned()))?;
    let volumes: Api<PersistentVolume> = Api::all(context.config.client.clone());
    let volume = volumes.get(&volume).await.map_err(|error| fail(error.to_string()))?;
    let spec = volume.spec.unwrap_or_default();
    if let Some(local) = spec.local {
        host_path::check(Path::new(&local.path), "")?;
        return Ok(PathBuf::from(local.path));
    }
    if let Some(source) = spec.host_path {
        host_path::check(Path::new(&source.path), source.type_.as_deref().unwrap_or("DirectoryOrCreate"))?;
        return Ok(PathBuf::from(source.path));
    }
    Err(fail("its volume is of a kind this node does not support".to_owned()))
}

/// Unmounts and removes everything under the pod's directory. Refuses to remove while any mount is left, for what lies
/// behind it may be the user's.
pub(crate) fn teardown(root: &Path, uid: &str) -> Result<(), VolumeError> {
    let dir = pod_dir(root, uid);
    if !dir.exists() {
        return Ok(());
    }
    mounts::unmount_below(&dir)?;
    if !mounts::below(&dir)?.is_empty() {
        return Err(VolumeError::StillMounted(dir));
    }
    failpoint::step("kubelet.volume.remove");
    std::fs::remove_dir_all(&dir).map_err(io(format!("cannot remove {}", dir.display())))
}
