//! Deployments: one ReplicaSet per revision of the template, and moving pods from the old ones to the new.

mod plan;
mod revision;
mod rollout;
mod status;

use std::sync::Arc;
use std::time::Duration;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use scheduling::selector::{is_empty, labels_of, matches};

use crate::kit::error::found;
use crate::kit::refs::{claim, controller_key, controller_of};
use crate::kit::{Context, Result, now};

struct Controller {
    client: Client,
    recorder: Recorder,
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<Queue<Key>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("deployment-controller"),
        deployments: context.informer(),
        sets: context.informer(),
        pods: context.informer(),
        queue: Queue::new(),
    });
    let to = this.clone();
    this.deployments.on_change(move |change| to.queue.add(Key::of(change.latest().as_ref())));
    this.deployments.synced().await;
    let to = this.clone();
    this.sets.on_change(move |change| to.set_changed(change));
    this.sets.synced().await;
    let to = this.clone();
    this.pods.on_change(move |change| to.pod_changed(change));
    this.pods.synced().await;
    let queue = this.queue.clone();
    let work = move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("deployment", 8, queue, work).await;
}

fn spec_of(deployment: &Deployment) -> DeploymentSpec {
    deployment.spec.clone().unwrap_or_default()
}

impl Controller {
    fn owner_of(&self, set: &ReplicaSet) -> Option<Key> {
        let (key, uid) = controller_key::<Deployment>(&set.metadata)?;
        let deployment = self.deployments.get(&key)?;
        (deployment.metadata.uid.as_deref() == Some(uid)).then_some(key)
    }

    fn set_changed(&self, change: &Change<'_, ReplicaSet>) {
        let latest = change.latest();
        if let Change::Applied { old: Some(old), new } = change
            && controller_of(&old.metadata).map(|owner| &owner.uid)
                != controller_of(&new.metadata).map(|owner| &owner.uid)
            && let Some(key) = self.owner_of(old)
        {
            self.queue.add(key);
        }
        if let Some(key) = self.owner_of(latest) {
            self.queue.add(key);
        } else if controller_of(&latest.metadata).is_none() {
            let labels = labels_of(&latest.metadata.labels);
            let namespace = latest.metadata.namespace.as_deref().unwrap_or_default();
            for deployment in self.deployments.in_namespace(namespace) {
                let selector = spec_of(&deployment).selector;
                if !is_empty(&selector) && matches(&selector, labels) {
                    self.queue.add(Key::of(deployment.as_ref()));
                }
            }
        }
    }

    /// Only Recreate waits for pods, and only for their end.
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let Change::Deleted(pod) = change else { return };
        let Some((set, _)) = controller_key::<ReplicaSet>(&pod.metadata) else { return };
        let Some(key) = self.sets.get(&set).and_then(|set| self.owner_of(&set)) else { return };
        let recreate =
            self.deployments.get(&key).is_some_and(|deployment| plan::is_recreate(&spec_of(&deployment)));
        if recreate {
            self.queue.add(key);
        }
    }

    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(cached) = self.deployments.get(&key) else { return Ok(None) };
        let mut deployment = cached.as_ref().clone();
        let spec = spec_of(&deployment);
        if is_empty(&spec.selector) {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(reference(&deployment), EventType::Warning, "SelectingAll", message);
            return Ok(None);
        }
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let mut sets = self.sets.controlled_by(uid);
        sets.extend(self.sets.orphans(&key.namespace));
        let selects = |set: &ReplicaSet| matches(&spec.selector, labels_of(&set.metadata.labels));
        let mut sets = claim(&self.client, &deployment, sets, selects, &[]).await?;
        sets.sort_by_key(|set| revision::age(set));

        if deployment.metadata.deletion_timestamp.is_some() {
            let (new, old) = self.revisions(&mut deployment, &sets, false).await?;
            return self.sync_status(&deployment, new.as_ref(), &old).await;
        }
        self.check_paused(&mut deployment).await?;
        if spec.paused == Some(true) || self.is_scaling(&mut deployment, &sets).await? {
            return self.scale_only(&mut deployment, &sets).await;
        }
        if plan::is_recreate(&spec) {
            self.recreate(&mut deployment, &sets).await
        } else {
            self.roll(&mut deployment, &sets).await
        }
    }

    /// Scaled by a user since the sets were last sized for it.
    async fn is_scaling(&self, deployment: &mut Deployment, sets: &[Arc<ReplicaSet>]) -> Result<bool> {
        let (new, old) = self.revisions(deployment, sets, false).await?;
        let desired = plan::desired(&spec_of(deployment));
        Ok(new
            .iter()
            .chain(&old)
            .filter(|set| plan::size(set) > 0)
            .any(|set| revision::number(set, revision::DESIRED).is_some_and(|before| before != desired)))
    }

    async fn scale_only(
        &self,
        deployment: &mut Deployment,
        sets: &[Arc<ReplicaSet>],
    ) -> Result<Option<Duration>> {
        let (mut new, mut old) = self.revisions(deployment, sets, false).await?;
        for (set, size) in plan::scale(deployment, new.as_ref(), &old) {
            let scaled = self.resize(deployment, &set, size).await?;
            let uid = scaled.metadata.uid.clone();
            for one in new.iter_mut().chain(&mut old).filter(|one| one.metadata.uid == uid) {
                *one = scaled.clone();
            }
        }
        if spec_of(deployment).paused == Some(true) {
            self.clean_up(deployment, &old).await?;
        }
        self.sync_status(deployment, new.as_ref(), &old).await
    }

    /// Writes a set's size and what it is to be measured against.
    async fn resize(
        &self,
        deployment: &Deployment,
        set: &Arc<ReplicaSet>,
        size: i32,
    ) -> Result<Arc<ReplicaSet>> {
        let spec = spec_of(deployment);
        let before = plan::size(set);
        let mut copy = set.as_ref().clone();
        let noted = revision::note_sizes(&mut copy, &spec);
        if before == size && !noted {
            return Ok(set.clone());
        }
        if let Some(spec) = &mut copy.spec {
            spec.replicas = Some(size);
        }
        let name = copy.metadata.name.clone().unwrap_or_default();
        let api = self.sets_of(deployment);
        let written = api.replace(&name, &PostParams::default(), &copy).await?;
        if before != size {
            let direction = if size > before { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {name} from {before} to {size}");
            self.recorder.event(reference(deployment), EventType::Normal, "ScalingReplicaSet", message);
        }
        Ok(Arc::new(written))
    }

    /// Deletes old sets beyond the history that is kept.
    async fn clean_up(&self, deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Result<()> {
        let limit = spec_of(deployment).revision_history_limit.unwrap_or(10);
        if limit == i32::MAX {
            return Ok(());
        }
        let mut alive: Vec<_> = old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
        let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
        alive.sort_by_key(|set| (revision::of_set(set), revision::age(set)));
        for set in alive.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let observed = status.observed_generation.unwrap_or_default();
            if status.replicas != 0
                || plan::size(set) != 0
                || set.metadata.generation.unwrap_or_default() > observed
            {
                continue;
            }
            let name = set.metadata.name.as_deref().unwrap_or_default();
            found(self.sets_of(deployment).delete(name, &DeleteParams::background()).await)?;
        }
        Ok(())
    }

    fn sets_of(&self, deployment: &Deployment) -> Api<ReplicaSet> {
        Api::namespaced(self.client.clone(), deployment.metadata.namespace.as_deref().unwrap_or_default())
    }

    async fn write_status(&self, deployment: &mut Deployment) -> Result<()> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<Deployment>::namespaced(self.client.clone(), namespace);
        let name = deployment.metadata.name.clone().unwrap_or_default();
        let written = api.replace_status(&name, &PostParams::default(), deployment).await?;
        deployment.metadata.resource_version = written.metadata.resource_version;
        Ok(())
    }

    /// Notes in the Progressing condition that the rollout is paused or goes on.
    async fn check_paused(&self, deployment: &mut Deployment) -> Result<()> {
        let spec = spec_of(deployment);
        if !status::has_deadline(&spec) {
            return Ok(());
        }
        let mut new = deployment.status.clone().unwrap_or_default();
        let reason = status::condition(&new, status::PROGRESSING)
            .and_then(|one| one.reason.clone())
            .unwrap_or_default();
        let paused = spec.paused == Some(true);
        let condition = match reason.as_str() {
            status::TIMED_OUT => return Ok(()),
            status::PAUSED if !paused => ("DeploymentResumed", "Deployment is resumed"),
            reason if reason != status::PAUSED && paused => (status::PAUSED, "Deployment is paused"),
            _ => return Ok(()),
        };
        status::set(&mut new, status::PROGRESSING, "Unknown", condition.0, condition.1.to_owned(), now());
        deployment.status = Some(new);
        self.write_status(deployment).await
    }
}
