//! A pod's volumes: made ready before its containers, kept up to date, and taken away after them.
//! Everything lies under `<root>/pods/<uid>`; setting up again is idempotent and doubles as the update.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::csi::{CsiError, Order};
use crate::objects::{Held, ObjectError};
use crate::podutil::{self, spec};
use crate::quantity;

pub(crate) mod atomic;
mod claim;
mod host_path;
pub(crate) mod mounts;
pub(crate) mod ownership;
mod payload;
mod trust;

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
    #[error(transparent)]
    Csi(#[from] CsiError),
    #[error("mount option {0:?} is not one of a bind mount")]
    MountOption(String),
    #[error("emptyDir of huge pages: {0}")]
    HugePages(String),
    #[error("ClusterTrustBundle {0}: {1}")]
    TrustBundle(String, String),
    #[error("podCertificate sources are not supported by this node")]
    PodCertificate,
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
    /// Volumes that no container may write to, whatever its mount says.
    pub read_only: BTreeSet<String>,
    /// Block devices by volume name, with whether they are only to be read.
    pub devices: BTreeMap<String, (PathBuf, bool)>,
    /// Objects whose change asks for another setup.
    pub held: Vec<Held>,
    /// When to set up again: a token has to be renewed, or what cannot be watched is looked at again.
    pub renew_at: Option<Timestamp>,
}

/// How often the claims of CSI volumes are looked at, which a kubelet may read but not watch.
const CLAIM_LOOK: SignedDuration = SignedDuration::from_secs(60);

impl Mounted {
    /// Asks for another setup at that time, or earlier.
    fn renew(&mut self, at: Timestamp) {
        self.renew_at = Some(self.renew_at.map_or(at, |before| before.min(at)));
    }
}

/// Where a pod's own files lie.
pub(crate) fn pod_dir(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

fn volume_dir(root: &Path, uid: &str, plugin: &str, name: &str) -> PathBuf {
    pod_dir(root, uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
}

/// Sets up, or brings up to date, every volume of the pod. What only waits ends with `ending`.
pub(crate) async fn setup(
    context: &Context,
    pod: &Pod,
    ips: &[String],
    ending: &CancellationToken,
) -> Result<Mounted, (String, VolumeError)> {
    let mut mounted = Mounted::default();
    for volume in spec(pod).volumes.iter().flatten() {
        one(context, pod, volume, ips, ending, &mut mounted)
            .await
            .map_err(|error| (volume.name.clone(), error))?;
    }
    Ok(mounted)
}

async fn one(
    context: &Context,
    pod: &Pod,
    volume: &Volume,
    ips: &[String],
    ending: &CancellationToken,
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
        let medium = source.medium.as_deref().unwrap_or_default();
        let lost = !medium.is_empty() && dir.exists() && !mounts::is_mounted(&dir);
        let fresh = !dir.exists() || mark.exists() || lost;
        if fresh {
            dir.parent().map_or(Ok(()), make_dir)?;
            failpoint::step("kubelet.volume.mark");
            std::fs::write(&mark, "").map_err(io(format!("cannot write {}", mark.display())))?;
        }
        failpoint::step("kubelet.volume.folder");
        make_dir(&dir)?;
        if medium == "Memory" {
            let limit = source.size_limit.as_ref().and_then(quantity::value);
            mounts::tmpfs(&dir, memory_size(pod, limit, context.memory))?;
        } else if !medium.is_empty() {
            mounts::huge_pages(&dir, page_size(pod, medium).map_err(VolumeError::HugePages)?)?;
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
    } else if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() {
        return claim::setup(context, pod, volume, ending, mounted).await;
    } else if let Some(source) = &volume.csi {
        let order = Order::inline(pod, &volume.name, source);
        mounted.renew(Timestamp::now() + CLAIM_LOOK);
        if source.read_only == Some(true) {
            mounted.read_only.insert(volume.name.clone());
        }
        context.csi.mount(context, &order, ending).await?
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
        mounted.read_only.insert(volume.name.clone());
        dir
    } else {
        return Err(VolumeError::Unsupported(volume.name.clone()));
    };
    mounted.paths.insert(volume.name.clone(), path);
    Ok(())
}

/// Bytes that an emptyDir in memory may hold: its limit, what the pod's containers may use together, or what the node has.
fn memory_size(pod: &Pod, limit: Option<i64>, node: i64) -> Option<i64> {
    let of = |container: &Container| {
        quantity::amount(
            container.resources.as_ref().and_then(|resources| resources.limits.as_ref()),
            "memory",
        )
    };
    let containers: Option<i64> = spec(pod).containers.iter().map(of).sum();
    let most = containers.map_or(node, |sum| sum.min(node));
    Some(limit.filter(|limit| *limit > 0).map_or(most, |limit| limit.min(most)))
}

/// The size of the huge pages of an emptyDir, as `2Mi`: the medium's own, or the only one that the pod asks for.
fn page_size(pod: &Pod, medium: &str) -> Result<i64, String> {
    let mut sizes: Vec<&str> = match medium.strip_prefix("HugePages-") {
        Some(size) => vec![size],
        None => {
            let containers = spec(pod).containers.iter().chain(spec(pod).init_containers.iter().flatten());
            let requests = containers.filter_map(|container| container.resources.as_ref()?.requests.as_ref());
            requests.flat_map(|all| all.keys()).filter_map(|name| name.strip_prefix("hugepages-")).collect()
        }
    };
    sizes.sort_unstable();
    sizes.dedup();
    match sizes.as_slice() {
        [size] => quantity::value(&Quantity((*size).to_owned()))
            .ok_or_else(|| format!("{size:?} is no size of pages")),
        [] => Err("the pod requests no huge pages".to_owned()),
        _ => {
            Err("the pod requests huge pages of several sizes, so the medium has to name one (HugePages-2Mi)"
                .to_owned())
        }
    }
}

pub(crate) fn make_dir(dir: &Path) -> Result<(), VolumeError> {
    std::fs::create_dir_all(dir).map_err(io(format!("cannot create {}", dir.display())))
}

/// Takes the pod's volumes away: those of CSI by their drivers, the others with the pod's directory.
pub(crate) async fn teardown(context: &Context, uid: &str) -> Result<(), VolumeError> {
    let dir = pod_dir(&context.config.root_dir, uid);
    // What is bound from a volume keeps it busy, and a driver from letting go of it.
    mounts::unmount_below(&dir.join("volume-subpaths"))?;
    context.csi.release(uid).await?;
    tokio::task::spawn_blocking(move || remove(dir))
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Unmounts and removes everything under the pod's directory. Refuses to remove while any mount is left, for what lies
/// behind it may be the user's.
fn remove(dir: PathBuf) -> Result<(), VolumeError> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).expect("a pod")
    }

    #[test]
    fn memory_volumes_are_no_larger_than_the_pod_may_grow() {
        let limited = json!({"name": "a", "resources": {"limits": {"memory": "100"}}});
        let one = pod(json!([limited, limited]));
        assert_eq!(memory_size(&one, None, 1000), Some(200));
        assert_eq!(memory_size(&one, Some(50), 1000), Some(50));
        assert_eq!(memory_size(&one, Some(500), 1000), Some(200));
        assert_eq!(memory_size(&pod(json!([limited, {"name": "b"}])), None, 1000), Some(1000));
    }

    #[test]
    fn huge_pages_have_one_size() {
        let with =
            |requests: serde_json::Value| pod(json!([{"name": "a", "resources": {"requests": requests}}]));
        let (none, two) = (with(json!({})), with(json!({"hugepages-2Mi": "4Mi"})));
        let both = with(json!({"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}));
        assert_eq!(page_size(&two, "HugePages"), Ok(2 << 20));
        assert_eq!(page_size(&both, "HugePages-1Gi"), Ok(1 << 30));
        assert!(page_size(&none, "HugePages").is_err() && page_size(&both, "HugePages").is_err());
    }
}
