//! The node's own storage: claims of a class whose provisioner is `carrack.dev/local` get a volume on the node that the
//! scheduler chose, with its size as a real limit. It reaches the cluster through the API alone; the kubelet mounts what it
//! makes as any `local` volume.

mod disk;
mod plan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use informer::{EventType, Factory, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use disk::{Disk, DiskError};
use failpoint::step;
use plan::ForClaim;

/// The name in a StorageClass.
pub const PROVISIONER: &str = "carrack.dev/local";

/// What a node's provisioner is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name, also its `kubernetes.io/hostname`.
    pub node: String,
    /// Where volumes lie.
    pub root: PathBuf,
}

/// Why something could not be done for a claim or volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the volume's object cannot be made: {0}")]
    Object(#[from] serde_json::Error),
    #[error("the work was broken off: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Mounts every volume of the node: to be done before pods start.
pub fn mount_all(root: &Path) -> Result<(), DiskError> {
    Disk::all(root).iter().try_for_each(Disk::mount)
}

/// Unmounts every volume of the node; their content stays. No pod may use them any more.
pub fn unmount_all(root: &Path) -> Result<(), DiskError> {
    Disk::all(root).iter().try_for_each(Disk::unmount)
}

/// Provides for the claims of this node until shutdown.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let root = config.root.clone();
    tokio::task::spawn_blocking(move || mount_all(&root)).await??;
    let informers = Factory::new(client.clone(), shutdown.clone());
    let this = Arc::new(Provisioner {
        recorder: Recorder::new(client.clone(), PROVISIONER, shutdown.clone()),
        claims: informers.informer(),
        volumes: informers.informer(),
        classes: informers.informer(),
        client,
        config,
    });
    let queue = Queue::new();
    let to = queue.clone();
    this.claims.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    // A volume's key has no namespace, a claim's always has one.
    let to = queue.clone();
    this.volumes.on_change(move |change| {
        let volume = change.latest();
        to.add(Key::of(volume.as_ref()));
        if let Some(claim) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
            to.add(Key::new(
                claim.namespace.clone().unwrap_or_default(),
                claim.name.clone().unwrap_or_default(),
            ));
        }
    });
    this.claims.synced().await;
    this.volumes.synced().await;
    this.classes.synced().await;
    this.remove_lost().await;
    let work = move |key: Key| {
        let this = this.clone();
        async move { this.reconcile(&key).await.map(|()| None) }
    };
    queue.run("local-provisioner", 2, shutdown, work).await;
    Ok(())
}

struct Provisioner {
    client: Client,
    config: Config,
    recorder: Recorder,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    volumes: Arc<Informer<PersistentVolume>>,
    classes: Arc<Informer<StorageClass>>,
}

impl Provisioner {
    async fn reconcile(&self, key: &Key) -> Result<(), Error> {
        if let Some(volume) = self.volumes.get(key).filter(|volume| plan::is_to_go(volume, &self.config.node))
        {
            return self.remove(&volume).await;
        }
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        let volume = self.volumes.find("", &bound);
        match plan::for_claim(&claim, volume.as_deref(), &self.config.node) {
            ForClaim::Nothing => Ok(()),
            ForClaim::Refuse(why) => {
                self.warn(&claim, "ProvisioningFailed", why);
                Ok(())
            }
            ForClaim::Provision { size } => {
                let done = self.provision(&claim, size).await;
                done.inspect_err(|error| self.warn(&claim, "ProvisioningFailed", error.to_string()))
            }
            ForClaim::Grow { volume, size } => {
                let done = self.grow(&claim, &volume, size).await;
                done.inspect_err(|error| self.warn(&claim, "VolumeResizeFailed", error.to_string()))
            }
        }
    }

    /// Removes volumes whose claim went before their object was there. One that had an object stays, whatever became of that:
    /// its owner may want to keep it.
    async fn remove_lost(&self) {
        for name in Disk::pending(&self.config.root) {
            let made = self.volumes.find("", &name).is_some();
            let claimed = || self.claims.list().iter().any(|claim| plan::volume_name(claim) == name);
            if !made && claimed() {
                continue;
            }
            let disk = self.disk(&name);
            let work = move || if made { disk.settle() } else { disk.remove() };
            match tokio::task::spawn_blocking(work).await {
                Ok(Err(error)) => {
                    tracing::warn!(%error, volume = name, "cannot clear up a volume that was begun")
                }
                _ => tracing::info!(volume = name, made, "cleared up a volume that was begun"),
            }
        }
    }

    fn warn(&self, claim: &PersistentVolumeClaim, reason: &str, message: String) {
        self.recorder.event(reference(claim), EventType::Warning, reason, message);
    }

    fn disk(&self, name: &str) -> Disk {
        Disk::new(&self.config.root, name)
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, size: u64) -> Result<(), Error> {
        let name = plan::volume_name(claim);
        let disk = self.disk(&name);
        let path = disk.dir.to_string_lossy().into_owned();
        let enforced = tokio::task::spawn_blocking(move || disk.create(size)).await??;
        step("provisioner.create.object");
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
        let class = self.classes.find("", &class);
        let object = plan::volume(claim, class.as_deref(), size, &path, &self.config.node);
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &serde_json::from_value(object)?).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
        step("provisioner.create.settle");
        let disk = self.disk(&name);
        tokio::task::spawn_blocking(move || disk.settle()).await??;
        let mut message = format!("Successfully provisioned volume {name}");
        if !enforced {
            message.push_str("; its size is not enforced, for the node has no mkfs.ext4");
        }
        self.recorder.event(reference(claim), EventType::Normal, "ProvisioningSucceeded", message);
        Ok(())
    }

    async fn grow(&self, claim: &PersistentVolumeClaim, volume: &str, size: u64) -> Result<(), Error> {
        let disk = self.disk(volume);
        tokio::task::spawn_blocking(move || disk.grow(size)).await??;
        step("provisioner.grow.volume");
        let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.clone());
        let capacity: BTreeMap<_, _> =
            requests.unwrap_or_default().into_iter().filter(|(name, _)| name == "storage").collect();
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let patch = json!({"spec": {"capacity": capacity}});
        volumes.patch(volume, &PatchParams::default(), &Patch::Merge(patch)).await?;
        let meta = &claim.metadata;
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(self.client.clone(), meta.namespace.as_deref().unwrap_or_default());
        let patch = json!({"status": {"capacity": capacity, "conditions": null}});
        let name = meta.name.as_deref().unwrap_or_default();
        claims.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        let message = format!("Resized volume {volume}");
        self.recorder.event(reference(claim), EventType::Normal, "VolumeResizeSuccessful", message);
        Ok(())
    }

    async fn remove(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let disk = self.disk(&name);
        tokio::task::spawn_blocking(move || disk.remove()).await??;
        step("provisioner.remove.object");
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: volume.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        match Api::<PersistentVolume>::all(self.client.clone()).delete(&name, &params).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            other => other.map(drop).map_err(Error::from),
        }
    }
}
