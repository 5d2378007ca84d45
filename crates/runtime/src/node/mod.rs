//! The node's sandboxes and containers: what is there, and the operations on it. Every operation may be repeated.

pub mod client;
mod cni;
mod container;
mod devices;
mod edits;
mod ending;
mod network;
pub mod records;
mod recover;
pub mod sandbox;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::v1::{ContainerEventResponse, ContainerEventType};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::cgroups::Cgroups;
use crate::config::RuntimeConfig;
use crate::error::Error;
use crate::images::Images;
use client::{Shim, Spawner};
pub use network::Network;
use records::{ContainerRecord, Phase, SandboxRecord};

/// A pod's sandbox.
pub struct Sandbox {
    /// Its name.
    pub id: String,
    /// What is known of it; also saved.
    pub record: Mutex<SandboxRecord>,
    /// Its shim.
    pub shim: Shim,
    /// Held by operations that change the sandbox as a whole.
    pub busy: tokio::sync::Mutex<()>,
}

/// A container.
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its sandbox's name.
    pub sandbox: String,
    /// What is known of it; also saved. Waiters see each change.
    pub record: watch::Sender<ContainerRecord>,
    /// Held by operations that change how far it is.
    pub busy: tokio::sync::Mutex<()>,
}

impl Container {
    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.record.borrow().phase()
    }
}

/// Events that a slow subscriber may be behind before it loses some and has to start again.
const EVENTS: usize = 1024;

/// Everything on this node.
pub struct Node {
    /// As it was started.
    pub config: RuntimeConfig,
    /// Images.
    pub images: Images,
    /// Cgroups.
    pub cgroups: Cgroups,
    /// Pod addresses.
    pub network: Network,
    /// Processor use over time.
    pub rates: accounting::Rates,
    spawner: Spawner,
    sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    events: broadcast::Sender<ContainerEventResponse>,
    boot: String,
    /// Ready once the built-in image is there.
    toolbox: watch::Sender<bool>,
    /// Serializes the making of names: the kubelet may repeat a call while the first is still at work.
    naming: tokio::sync::Mutex<()>,
}

/// Nanoseconds since 1970.
pub fn now() -> i64 {
    crate::shim::sys::now()
}

/// A new name of 64 hexadecimal digits.
fn new_id() -> String {
    crate::images::content::hex(&rand::random::<[u8; 32]>())
}

/// The part of a name that is used for short directory names.
fn short(id: &str) -> &str {
    &id[..id.len().min(20)]
}

fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(Error::io(format!("make {}", path.display())))
}

impl Node {
    /// Opens everything below the configured directories. Nothing runs yet; see [`Node::recover`].
    pub fn open(config: RuntimeConfig) -> Result<Self, Error> {
        make_dir(&config.root, 0o711)?;
        make_dir(&config.state_dir, 0o711)?;
        for dir in [config.root.join("pods"), config.root.join("containers"), config.root.join("trash")] {
            make_dir(&dir, 0o711)?;
        }
        let cgroups = Cgroups::detect()?;
        let images = Images::open(&config.root.join("images"), config.registry.clone())?;
        let network = Network::open(&config.network, &config.root)?;
        let spawner = Spawner::new(&config.state_dir);
        Ok(Self {
            images,
            cgroups,
            network,
            spawner,
            rates: accounting::Rates::default(),
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            events: broadcast::channel(EVENTS).0,
            boot: records::boot_id(),
            toolbox: watch::channel(false).0,
            naming: tokio::sync::Mutex::default(),
            config,
        })
    }

    /// The directory below which everything that is mounted for containers is mounted.
    pub fn mounts_dir(&self) -> PathBuf {
        self.config.state_dir.join("m")
    }

    fn shim_dir(&self, sandbox: &str) -> PathBuf {
        self.config.state_dir.join("p").join(short(sandbox))
    }

    fn sandbox_mounts(&self, sandbox: &str) -> PathBuf {
        self.mounts_dir().join(short(sandbox))
    }

    fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.config.root.join("pods").join(id)
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.config.root.join("containers").join(id)
    }

    /// Finds a sandbox by its name or the unambiguous start of it.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        find(&self.sandboxes.lock(), id).ok_or_else(|| Error::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    /// Finds a container by its name or the unambiguous start of it.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        find(&self.containers.lock(), id)
            .ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })
    }

    /// All sandboxes.
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes.lock().values().cloned().collect()
    }

    /// All containers.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.lock().values().cloned().collect()
    }

    /// The containers of a sandbox.
    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers.lock().values().filter(|c| c.sandbox == sandbox).cloned().collect()
    }

    /// Keys of all layers that containers need.
    pub fn layers_in_use(&self) -> BTreeSet<String> {
        self.containers().iter().flat_map(|c| c.record.borrow().layers.clone()).collect()
    }

    /// Subscribes to what happens to containers.
    pub fn events(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.events.subscribe()
    }

    /// Tells subscribers; without any this costs nothing.
    fn announce(&self, container: &str, sandbox: &str, kind: ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let pod = self.sandbox(sandbox).ok();
        let _ = self.events.send(ContainerEventResponse {
            container_id: container.to_owned(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: pod.map(|s| crate::service::status::sandbox(&s)),
            containers_statuses: self
                .containers_of(sandbox)
                .iter()
                .map(|c| crate::service::status::container(self, c))
                .collect(),
        });
    }

    /// Makes the built-in image, in the background of the start, and then removes what no image and no container needs.
    pub async fn make_toolbox(self: Arc<Self>) {
        let node = self.clone();
        let made = blocking(move || {
            let applets: Vec<&str> = node.config.toolbox_applets.iter().map(String::as_str).collect();
            Ok(node.images.ensure_toolbox(&applets)?)
        });
        if let Err(error) = made.await {
            tracing::error!(%error, "the built-in toolbox image could not be made");
        }
        self.toolbox.send_replace(true);
        // An earlier binary's image has lost its name to the new one.
        let stale: Vec<String> = self
            .images
            .list()
            .iter()
            .filter(|i| i.pinned && i.tags.is_empty())
            .map(|i| i.id.clone())
            .collect();
        for id in stale {
            let _ = self.images.remove(&id, &self.layers_in_use()).await;
        }
        if let Err(error) = self.images.collect(&self.layers_in_use()).await {
            tracing::warn!(%error, "cannot remove unused image content");
        }
    }

    /// Starts the process that shims are forked from, before the first pod needs it.
    pub fn warm(&self) {
        self.spawner.warm();
    }

    /// Waits until the built-in image is there, when `name` asks for it.
    pub async fn await_toolbox(&self, name: &str) {
        if name.starts_with("carrack.dev/toolbox") {
            let _ = self.toolbox.subscribe().wait_for(|ready| *ready).await;
        }
    }

    /// Removes a directory tree out of the way of the caller.
    fn discard(&self, dir: &Path) {
        let to = self.config.root.join("trash").join(new_id());
        if std::fs::rename(dir, &to).is_ok() {
            tokio::task::spawn_blocking(move || {
                let _ = std::fs::remove_dir_all(to);
            });
        } else {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

fn find<T>(all: &BTreeMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(found) = all.get(id) {
        return Some(found.clone());
    }
    if id.is_empty() {
        return None;
    }
    let mut matching = all.range(id.to_owned()..).take_while(|(name, _)| name.starts_with(id));
    match (matching.next(), matching.next()) {
        (Some((_, found)), None) => Some(found.clone()),
        _ => None,
    }
}

/// Runs work that blocks, in the pool for that.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Internal(e.to_string()))?
}
