//! CSI volumes on this node: drivers that register, staging and publishing for pods, growing, usage, and taking away what no
//! pod needs any more. The paths and records on disk are upstream's (`pkg/volume/csi`), which drivers rely on.
//!
//! The disk is the truth: a record is written before a driver is asked for anything, and removed after it undid it, so that
//! a kubelet that was killed at any moment finds what is left to undo.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::Client;
use kube::runtime::reflector::{ObjectRef, Store};
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use crate::config::KubeletConfig;

mod attach;
mod block;
mod driver;
mod expand;
mod mount;
mod node_info;
mod order;
mod record;
mod registrar;
mod release;
mod stats;

pub(crate) use order::Order;
pub(crate) use registrar::Registrar;
pub(crate) use stats::Usage;

/// The plug-in's name in paths.
const PLUGIN: &str = "kubernetes.io/csi";
/// The same below a pod's folder, where a slash cannot be.
const ESCAPED: &str = "kubernetes.io~csi";

/// Why a CSI volume cannot be made ready or be taken away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsiError {
    #[error("driver name {0} not found in the list of registered CSI drivers")]
    NotRegistered(String),
    #[error(transparent)]
    Connect(#[from] plugins::ConnectError),
    #[error("{call} of driver {driver}: rpc error: code = {:?} desc = {}", status.code(), status.message())]
    Rpc { driver: String, call: &'static str, status: Box<tonic::Status> },
    #[error("{call} of driver {driver} did not end in time")]
    Late { driver: String, call: &'static str },
    #[error("the driver's CSIDriver object is not known yet: the API server has not answered")]
    NotSynced,
    #[error("volume mode {mode:?} not supported by driver {driver} ({why})")]
    Mode { driver: String, mode: &'static str, why: &'static str },
    #[error("volume {0} has not been added to the list of VolumesInUse in the node's status yet")]
    NotReported(String),
    #[error("timed out waiting for the volume {0} to be attached to this node")]
    NotAttached(String),
    #[error("cannot read the attachment of volume {0}: {1}")]
    Attachment(String, kube::Error),
    #[error("attachment of volume {0}: {1}")]
    AttachFailed(String, String),
    #[error("fetching secret {0}: {1}")]
    Secret(String, crate::objects::ObjectError),
    #[error("fetching a service account token: {0}")]
    Token(kube::Error),
    #[error("volume uses the ReadWriteOncePod access mode and is already in use by another pod")]
    Taken,
    #[error("the pod is ending")]
    Ending,
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("the record {} of a volume cannot be read: {why}", path.display())]
    Record { path: PathBuf, why: String },
    #[error("{0} is still mounted after the driver unpublished it")]
    StillMounted(PathBuf),
    #[error("the driver published no device at {0}")]
    NoDevice(PathBuf),
    #[error("cannot write the claim's new size: {0}")]
    Claim(kube::Error),
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> CsiError {
    let what = what.into();
    move |source| CsiError::Io { what, source }
}

/// A registered driver.
struct Registered {
    /// Its socket.
    endpoint: PathBuf,
    /// Keeps the CSINode up to date; ends with the registration.
    _renewal: tokio_util::task::AbortOnDropHandle<()>,
}

/// What all CSI volumes of the node share.
pub(crate) struct Csi {
    client: Client,
    node_name: String,
    root: PathBuf,
    /// The boot of the machine: mounts of an earlier one are gone.
    boot: String,
    /// The registered drivers, by name.
    registered: Mutex<BTreeMap<String, Registered>>,
    objects: Store<CSIDriver>,
    /// One lock per volume, for as long as somebody works on it.
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Volumes (`kubernetes.io/csi/DRIVER^HANDLE`) that must stay attached to this node.
    in_use: watch::Sender<BTreeSet<String>>,
    /// The Node as the API has it.
    node: watch::Receiver<Option<Arc<Node>>>,
}

impl Csi {
    /// Starts what runs beside the pods, until `stop`.
    pub(crate) fn start(
        config: &KubeletConfig,
        node: watch::Receiver<Option<Arc<Node>>>,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let csi = Arc::new(Csi {
            client: config.client.clone(),
            node_name: config.node_name.clone(),
            root: config.root_dir.clone(),
            boot: boot.trim().to_owned(),
            registered: Mutex::default(),
            objects: driver::follow(config.client.clone(), stop.clone()),
            locks: Mutex::default(),
            in_use: watch::channel(record::in_use(&config.root_dir)).0,
            node,
        });
        let (own, ending) = (csi.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                ((), ()) = async { tokio::join!(own.report_in_use(), own.keep_csi_node()) } => {}
                () = ending.cancelled() => {}
            }
        });
        csi
    }

    fn object(&self, driver: &str) -> Option<Arc<CSIDriver>> {
        self.objects.get(&ObjectRef::new(driver))
    }

    /// Holds a volume against everybody else who would stage or unstage it.
    async fn lock(&self, driver: &str, handle: &str) -> OwnedMutexGuard<()> {
        let key = unique_name(driver, handle);
        let lock = {
            let mut locks = self.locks.lock();
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(&key).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::default();
                    locks.insert(key, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }

    fn plugin_dir(&self) -> PathBuf {
        self.root.join("plugins").join(PLUGIN)
    }

    /// Where a volume's shared files lie: its `globalmount` and its record.
    fn global_dir(&self, driver: &str, handle: &str) -> PathBuf {
        self.plugin_dir().join(driver).join(hex_hash(handle))
    }

    fn devices_dir(&self) -> PathBuf {
        self.plugin_dir().join("volumeDevices")
    }
}

/// Where a pod's CSI volumes lie, each by the name of its PersistentVolume, or of the volume in the pod if it has none.
fn pod_volumes(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid).join("volumes").join(ESCAPED)
}

/// The folder of one of them: a record, and `mount`, which the driver makes.
fn pod_volume(root: &Path, uid: &str, spec_name: &str) -> PathBuf {
    pod_volumes(root, uid).join(spec_name)
}

/// What a volume is called in the status of nodes.
fn unique_name(driver: &str, handle: &str) -> String {
    format!("{PLUGIN}/{driver}^{handle}")
}

/// The name of the VolumeAttachment of a volume on a node.
fn attachment_name(driver: &str, handle: &str, node: &str) -> String {
    format!("csi-{}", hex_hash(&format!("{handle}{driver}{node}")))
}

/// The handle of an inline volume, which has none of its own.
fn inline_handle(pod_uid: &str, volume: &str) -> String {
    format!("csi-{}", hex_hash(&format!("{pod_uid}{volume}")))
}

fn hex_hash(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_drivers_expect() {
        // As sha256sum gives them.
        let hash = "f2868e1aa7cab669517cd9f5ab1b7957c0b92df38fef583267e34e1acc8253fe";
        assert_eq!(hex_hash("pvc-1"), hash);
        assert_eq!(inline_handle("pvc", "-1"), format!("csi-{hash}"));
        let hash = "b392fd7a2346f14b4d82851efb5f5a6986736a475e2d8a75dacfc432409bd9ad";
        assert_eq!(attachment_name("x.io", "h", "n"), format!("csi-{hash}"));
        assert_eq!(unique_name("x.io", "h"), "kubernetes.io/csi/x.io^h");
    }
}
