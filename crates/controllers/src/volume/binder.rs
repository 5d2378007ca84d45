//! Binds claims to volumes, and lets volumes go when their claim is gone (upstream: `pkg/controller/volume/persistentvolume`).
//! Both sides are written, the volume first: a claim is bound when both agree.

use std::sync::Arc;
use std::time::Duration;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::{Api, PostParams};

use super::rules::{
    BETA_PROVISIONER, BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONED_BY, PROVISIONER, SELECTED_NODE,
    annotation, best_match, bind_claim, bind_volume, claim_class, default_class, has_class, is_bound_to,
    modes_differ, unsuitable, waits_for_consumer,
};
use crate::kit::error::found;
use crate::kit::{Context, Error, Result, now, time};

struct Binder {
    client: Client,
    recorder: Recorder,
    volumes: Arc<Informer<PersistentVolume>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    classes: Arc<Informer<StorageClass>>,
    volume_queue: Arc<Queue<Key>>,
    claim_queue: Arc<Queue<Key>>,
}

fn completed(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Binder {
        client: context.client.clone(),
        recorder: context.recorder("persistentvolume-controller"),
        volumes: context.informer(),
        claims: context.informer(),
        classes: context.informer(),
        volume_queue: Queue::new(),
        claim_queue: Queue::new(),
    });
    this.volumes.synced().await;
    this.claims.synced().await;
    this.classes.synced().await;
    let to = this.clone();
    this.volumes.on_change(move |change| to.volume_changed(change));
    let to = this.clone();
    this.claims.on_change(move |change| to.claim_changed(change));
    let to = this.clone();
    // Another default, or a way to provision.
    this.classes.on_change(move |_| to.look_for_volumes());
    let (volumes, claims) = (this.volume_queue.clone(), this.claim_queue.clone());
    let binder = this.clone();
    let sync_volume = move |key: Key| {
        let this = binder.clone();
        async move { this.sync_volume(&key).await.map(|()| None) }
    };
    let sync_claim = move |key: Key| {
        let this = this.clone();
        async move { this.sync_claim(&key).await.map(|()| None::<Duration>) }
    };
    tokio::join!(
        context.work("persistentvolume", 4, volumes, sync_volume),
        context.work("persistentvolumeclaim", 4, claims, sync_claim),
    );
}

impl Binder {
    fn look_for_volumes(&self) {
        for claim in self.claims.list().iter().filter(|claim| !completed(claim)) {
            self.claim_queue.add(Key::of(claim.as_ref()));
        }
    }

    fn volume_changed(&self, change: &Change<'_, PersistentVolume>) {
        let volume = change.latest();
        if let Change::Applied { .. } = change {
            self.volume_queue.add(Key::of(volume.as_ref()));
        }
        let spec = volume.spec.as_ref();
        match spec.and_then(|spec| spec.claim_ref.as_ref()) {
            Some(to) => {
                let namespace = to.namespace.clone().unwrap_or_default();
                self.claim_queue.add(Key::new(namespace, to.name.clone().unwrap_or_default()));
            }
            // It may be what a claim waits for.
            None if volume_phase(volume) == "Available" => self.look_for_volumes(),
            None => {}
        }
        for claim in self.claims.list() {
            let names = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_ref());
            if names.is_some() && names == volume.metadata.name.as_ref() {
                self.claim_queue.add(Key::of(claim.as_ref()));
            }
        }
    }

    fn claim_changed(&self, change: &Change<'_, PersistentVolumeClaim>) {
        let claim = change.latest();
        if let Change::Applied { .. } = change {
            self.claim_queue.add(Key::of(claim.as_ref()));
        }
        if let Some(name) = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()) {
            self.volume_queue.add(Key::new("", name));
        }
    }

    fn note(&self, claim: &PersistentVolumeClaim, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder.event(reference(claim), kind, reason, message);
    }

    async fn sync_claim(&self, key: &Key) -> Result<()> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        if completed(&claim) { self.check_bound(claim).await } else { self.find_volume(claim).await }
    }

    /// A claim that was bound once: its volume must still be there and still be its own.
    async fn check_bound(&self, claim: Arc<PersistentVolumeClaim>) -> Result<()> {
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        if name.is_empty() {
            let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return self.lose(&claim, "ClaimLost", message).await;
        }
        let Some(volume) = self.volumes.get(&Key::new("", name)) else {
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            return self.lose(&claim, "ClaimLost", message).await;
        };
        let to = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if to.is_none_or(|to| to.uid == claim.metadata.uid) {
            return self.bind(&volume, &claim).await;
        }
        let message = "Two claims are bound to the same volume, this one is bound incorrectly";
        self.lose(&claim, "ClaimMisbound", message).await
    }

    async fn lose(&self, claim: &PersistentVolumeClaim, reason: &str, message: &str) -> Result<()> {
        if claim_phase(claim) != "Lost" {
            self.set_claim(claim, "Lost", None).await?;
            self.note(claim, EventType::Warning, reason, message);
        }
        Ok(())
    }

    async fn find_volume(&self, claim: Arc<PersistentVolumeClaim>) -> Result<()> {
        let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        if wanted.is_empty() {
            return self.choose(claim).await;
        }
        let Some(volume) = self.volumes.get(&Key::new("", wanted)) else {
            return self.set_claim(&claim, "Pending", None).await.map(drop);
        };
        let name = volume.metadata.name.clone().unwrap_or_default();
        if is_bound_to(&volume, &claim) {
            return self.bind(&volume, &claim).await;
        }
        let message = if volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some()) {
            (
                EventType::Warning,
                "FailedBinding",
                format!("volume {name:?} already bound to a different claim."),
            )
        } else if let Some(why) = unsuitable(&volume, &claim) {
            (EventType::Warning, "VolumeMismatch", format!("Cannot bind to requested volume {name:?}: {why}"))
        } else {
            return self.bind(&volume, &claim).await;
        };
        self.note(&claim, message.0, message.1, message.2);
        self.set_claim(&claim, "Pending", None).await.map(drop)
    }

    /// For a claim that takes any volume.
    async fn choose(&self, claim: Arc<PersistentVolumeClaim>) -> Result<()> {
        let class_name = claim_class(&claim).to_owned();
        let class = self.classes.get(&Key::new("", class_name.clone()));
        let waits = class.as_ref().is_some_and(|class| waits_for_consumer(class));
        let node = annotation(&claim.metadata, SELECTED_NODE).is_some_and(|node| !node.is_empty());
        if let Some(volume) = best_match(&claim, &self.volumes.list(), waits) {
            return self.bind(&volume, &claim).await;
        }
        if !has_class(&claim)
            && let Some(default) = default_class(&self.classes.list())
        {
            let mut new = claim.as_ref().clone();
            new.spec.get_or_insert_default().storage_class_name = default.metadata.name.clone();
            return self.update_claim(&new).await.map(drop);
        }
        if waits && !node {
            let message = "waiting for first consumer to be created before binding";
            self.note(&claim, EventType::Normal, "WaitForFirstConsumer", message);
        } else if !class_name.is_empty() {
            return self.provision(&claim, &class_name, class.as_deref()).await;
        } else {
            let message = "no persistent volumes available for this claim and no storage class is set";
            self.note(&claim, EventType::Normal, "FailedBinding", message);
        }
        self.set_claim(&claim, "Pending", None).await.map(drop)
    }

    /// Tells an external provisioner that a volume is wanted.
    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        name: &str,
        class: Option<&StorageClass>,
    ) -> Result<()> {
        let Some(class) = class else {
            let message = format!("storageclass.storage.k8s.io {name:?} not found");
            self.note(claim, EventType::Warning, "ProvisioningFailed", message);
            return Ok(());
        };
        let provisioner = &class.provisioner;
        if provisioner != "kubernetes.io/no-provisioner" {
            let mut new = claim.clone();
            let annotations = new.metadata.annotations.get_or_insert_default();
            annotations.insert(BETA_PROVISIONER.to_owned(), provisioner.clone());
            annotations.insert(PROVISIONER.to_owned(), provisioner.clone());
            if new != *claim {
                self.update_claim(&new).await?;
            }
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually \
                 by the system administrator. If volume creation is delayed, please verify that the provisioner is \
                 running and correctly registered."
            );
            self.note(claim, EventType::Normal, "ExternalProvisioning", message);
        } else {
            let message = "no volume plugin matched name: kubernetes.io/no-provisioner";
            self.note(claim, EventType::Warning, "ProvisioningFailed", message);
        }
        Ok(())
    }

    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<()> {
        let volume = match bind_volume(volume, claim) {
            Some(new) => self.update_volume(&new).await?,
            None => Some(volume.clone()),
        };
        let Some(volume) = volume else { return Ok(()) };
        let Some(volume) = self.set_volume(&volume, "Bound", None).await? else { return Ok(()) };
        let claim = match bind_claim(claim, &volume) {
            Some(new) => self.update_claim(&new).await?,
            None => Some(claim.clone()),
        };
        let Some(claim) = claim else { return Ok(()) };
        self.set_claim(&claim, "Bound", Some(&volume)).await.map(drop)
    }

    async fn sync_volume(&self, key: &Key) -> Result<()> {
        let Some(volume) = self.volumes.get(key) else { return Ok(()) };
        let spec = volume.spec.clone().unwrap_or_default();
        let to = spec.claim_ref.clone().unwrap_or_default();
        let uid = to.uid.clone().filter(|uid| !uid.is_empty());
        if uid.is_none() {
            return self.set_volume(&volume, "Available", None).await.map(drop);
        }
        let claim_key = Key::new(to.namespace.unwrap_or_default(), to.name.unwrap_or_default());
        let mut claim = self.claims.get(&claim_key).map(|claim| claim.as_ref().clone());
        if claim.as_ref().is_none_or(|claim| claim.metadata.uid != uid)
            && !matches!(volume_phase(&volume), "Released" | "Failed")
        {
            // Before its data are given up, the server is asked.
            let api = Api::namespaced(self.client.clone(), &claim_key.namespace);
            claim = api.get_opt(&claim_key.name).await?;
        }
        let Some(claim) = claim.filter(|claim| claim.metadata.uid == uid) else {
            return self.release(&volume, &spec).await;
        };
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
        if name.is_empty() {
            if modes_differ(&claim, &volume) {
                let (of, from) = (&claim_key.name, &key.name);
                let message = format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim {of:?} due to incompatible volumeMode."
                );
                self.recorder.event(
                    reference(volume.as_ref()),
                    EventType::Warning,
                    "VolumeMismatch",
                    message,
                );
                let message = format!(
                    "Cannot bind PersistentVolume {from:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
                );
                self.note(&claim, EventType::Warning, "VolumeMismatch", message);
            } else {
                self.claim_queue.add(claim_key);
            }
            return Ok(());
        }
        if name == key.name {
            return self.set_volume(&volume, "Bound", None).await.map(drop);
        }
        // The claim found another volume.
        let provisioned = annotation(&volume.metadata, PROVISIONED_BY).is_some();
        if provisioned && spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") {
            return self.release(&volume, &spec).await;
        }
        self.unbind(&volume).await
    }

    async fn unbind(&self, volume: &PersistentVolume) -> Result<()> {
        let mut new = volume.clone();
        let ours = annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some();
        let spec = new.spec.get_or_insert_default();
        if ours {
            spec.claim_ref = None;
            new.metadata.annotations.get_or_insert_default().remove(BOUND_BY_CONTROLLER);
        } else if let Some(to) = &mut spec.claim_ref {
            to.uid = None;
        }
        let Some(new) = self.update_volume(&new).await? else { return Ok(()) };
        self.set_volume(&new, "Available", None).await.map(drop)
    }

    /// The claim of the volume is gone.
    async fn release(
        &self,
        volume: &PersistentVolume,
        spec: &k8s_openapi::api::core::v1::PersistentVolumeSpec,
    ) -> Result<()> {
        let mut volume = volume.clone();
        if !matches!(volume_phase(&volume), "Released" | "Failed") {
            let Some(new) = self.set_volume(&volume, "Released", None).await? else { return Ok(()) };
            volume = new;
        }
        let failure = match spec.persistent_volume_reclaim_policy.as_deref() {
            Some("Recycle") => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()),
            Some("Delete") if annotation(&volume.metadata, PROVISIONED_BY).is_none() => {
                let name = volume.metadata.name.as_deref().unwrap_or_default();
                let message = format!(
                    "error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"
                );
                ("VolumeFailedDelete", message)
            }
            // Who provisioned it deletes it.
            Some("Delete") => return Ok(()),
            _ => return Ok(()),
        };
        let changed = volume_phase(&volume) != "Failed";
        self.set_volume(&volume, "Failed", Some(&failure.1)).await?;
        if changed {
            self.recorder.event(reference(&volume), EventType::Warning, failure.0, failure.1);
        }
        Ok(())
    }

    async fn update_volume(&self, volume: &PersistentVolume) -> Result<Option<PersistentVolume>> {
        let api = Api::<PersistentVolume>::all(self.client.clone());
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        found(api.replace(name, &PostParams::default(), volume).await)
    }

    async fn update_claim(&self, claim: &PersistentVolumeClaim) -> Result<Option<PersistentVolumeClaim>> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        found(api.replace(name, &PostParams::default(), claim).await)
    }

    async fn set_volume(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<Option<PersistentVolume>> {
        if volume_phase(volume) == phase {
            return Ok(Some(volume.clone()));
        }
        let mut new = volume.clone();
        let status = new.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.message = message.map(str::to_owned);
        status.last_phase_transition_time = Some(time(now()));
        let api = Api::<PersistentVolume>::all(self.client.clone());
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        found(api.replace_status(name, &PostParams::default(), &new).await)
    }

    async fn set_claim(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<Option<PersistentVolumeClaim>> {
        let mut new = claim.clone();
        let before = claim_phase(claim).to_owned();
        let status = new.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        match volume.and_then(|volume| volume.spec.as_ref()) {
            None => {
                status.access_modes = None;
                status.capacity = None;
                status.current_volume_attributes_class_name = None;
            }
            Some(spec) => {
                status.access_modes = spec.access_modes.clone();
                // Later the file system may be smaller than its device for a while.
                if before != phase {
                    if spec.capacity.as_ref().is_none_or(|all| !all.contains_key("storage")) {
                        return Err(Error::Remains("the volume has no storage capacity".into()));
                    }
                    status.capacity = spec.capacity.clone();
                }
                if before == "Pending" {
                    status.current_volume_attributes_class_name = spec.volume_attributes_class_name.clone();
                }
            }
        }
        if new == *claim {
            return Ok(Some(new));
        }
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        found(api.replace_status(name, &PostParams::default(), &new).await)
    }
}
