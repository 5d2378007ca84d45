//! ReplicaSets and ReplicationControllers: as many pods of a template as asked for. One controller over the
//! small trait [`Replicated`], run once per kind.

mod kinds;
mod status;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Change, Informer, Key, Object, Queue, Recorder};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, PostParams};
use kube::{Client, Resource};
use scheduling::selector::{is_empty, labels_of, matches};
use serde::Serialize;

use crate::kit::expect::Expectations;
use crate::kit::pods::{deletion_order, is_active, is_ready, is_terminating, next_available, node_name};
use crate::kit::refs::{claim, controller_key, controller_of, is_controlled_by};
use crate::kit::{Context, Result, all, now, pods, slow_start};
use status::Status;

/// No more pods than this are created or deleted in one go.
const BURST: usize = 500;

/// What a kind that keeps replicas has.
pub(crate) trait Replicated:
    Object + Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize
{
    /// How the controller signs its events.
    const COMPONENT: &'static str;
    /// Whether the status counts pods on their way out.
    const HAS_TERMINATING: bool;
    fn replicas(&self) -> i32;
    fn selector(&self) -> LabelSelector;
    fn template(&self) -> PodTemplateSpec;
    fn min_ready_seconds(&self) -> i32;
    fn status(&self) -> Status;
    fn set_status(&mut self, status: Status);
}

struct Controller<K> {
    client: Client,
    recorder: Recorder,
    sets: Arc<Informer<K>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<Queue<Key>>,
    expectations: Expectations,
}

/// Runs the controller for ReplicaSets.
pub(crate) async fn replica_sets(context: Context) {
    run::<ReplicaSet>(context).await;
}

/// Runs the controller for ReplicationControllers.
pub(crate) async fn replication_controllers(context: Context) {
    run::<ReplicationController>(context).await;
}

async fn run<K: Replicated>(context: Context) {
    let this = Arc::new(Controller::<K> {
        client: context.client.clone(),
        recorder: context.recorder(K::COMPONENT),
        sets: context.informer(),
        pods: context.informer(),
        queue: Queue::new(),
        expectations: Expectations::default(),
    });
    let to = this.clone();
    this.sets.on_change(move |change| to.queue.add(Key::of(change.latest().as_ref())));
    this.sets.synced().await;
    let to = this.clone();
    this.pods.on_change(move |change| to.pod_changed(change));
    this.pods.synced().await;
    let queue = this.queue.clone();
    let work = move |key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work(K::COMPONENT, 16, queue, work).await;
}

impl<K: Replicated> Controller<K> {
    fn owner_of(&self, pod: &Pod) -> Option<Arc<K>> {
        let (key, uid) = controller_key::<K>(&pod.metadata)?;
        self.sets.get(&key).filter(|set| set.meta().uid.as_deref() == Some(uid))
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        match change {
            Change::Deleted(last) => {
                if let Some(owner) = self.owner_of(last) {
                    let key = Key::of(owner.as_ref());
                    self.expectations.deleted(&key, &Key::of(last.as_ref()));
                    self.queue.add(key);
                }
            }
            Change::Applied { old, new } => {
                let moved = old.is_some_and(|old| {
                    controller_of(&old.metadata).map(|owner| &owner.uid)
                        != controller_of(&new.metadata).map(|owner| &owner.uid)
                });
                if let Some(before) = old.filter(|_| moved).and_then(|old| self.owner_of(old)) {
                    self.queue.add(Key::of(before.as_ref()));
                }
                if let Some(owner) = self.owner_of(new) {
                    let key = Key::of(owner.as_ref());
                    if old.is_none() {
                        self.expectations.created(&key);
                    }
                    if new.metadata.deletion_timestamp.is_some() {
                        self.expectations.deleted(&key, &Key::of(new.as_ref()));
                    }
                    self.queue.add(key);
                } else if controller_of(&new.metadata).is_none() {
                    let relabelled = old.is_none_or(|old| old.metadata.labels != new.metadata.labels);
                    if relabelled || moved {
                        self.offer(new);
                    }
                }
            }
        }
    }

    /// Wakes every set that might adopt the pod.
    fn offer(&self, pod: &Pod) {
        let labels = labels_of(&pod.metadata.labels);
        if labels.is_empty() {
            return;
        }
        for set in self.sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            let selector = set.selector();
            if !is_empty(&selector) && matches(&selector, labels) {
                self.queue.add(Key::of(set.as_ref()));
            }
        }
    }

    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(set) = self.sets.get(&key) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let settled = self.expectations.satisfied(&key);
        let selector = set.selector();
        if is_empty(&selector) {
            return Ok(None);
        }
        let uid = set.meta().uid.as_deref().unwrap_or_default();
        let mut all = self.pods.controlled_by(uid);
        let terminating = all
            .iter()
            .filter(|pod| is_terminating(pod) && matches(&selector, labels_of(&pod.metadata.labels)))
            .count();
        all.extend(self.pods.orphans(&key.namespace));
        all.retain(|pod| is_active(pod));
        let selects = |pod: &Pod| matches(&selector, labels_of(&pod.metadata.labels));
        let active = claim(&self.client, set.as_ref(), all, selects, &[]).await?;

        let managed = if settled && set.meta().deletion_timestamp.is_none() {
            self.manage(&key, &set, &active).await
        } else {
            Ok(())
        };
        let now = now();
        let mut status = status::plan(set.as_ref(), &active, terminating, managed.as_ref().err(), now);
        status.observed_generation = set.meta().generation;
        if status != set.status() {
            self.write_status(&set, status.clone()).await?;
        }
        managed?;
        let minimum = set.min_ready_seconds();
        if minimum > 0 && status.ready != status.available {
            return Ok(next_available(&active, minimum, now)
                .or(Some(Duration::from_secs(u64::try_from(minimum).unwrap_or_default()))));
        }
        Ok(None)
    }

    async fn write_status(&self, set: &K, status: Status) -> Result<()> {
        let api =
            Api::<K>::namespaced(self.client.clone(), set.meta().namespace.as_deref().unwrap_or_default());
        let name = set.meta().name.as_deref().unwrap_or_default();
        let mut copy = set.clone();
        copy.set_status(status.clone());
        match api.replace_status(name, &PostParams::default(), &copy).await.map_err(Into::into) {
            Ok(_) => Ok(()),
            Err(error @ crate::kit::Error::Client(_)) if error.is_conflict() => {
                let mut fresh = api.get(name).await?;
                if fresh.meta().uid != set.meta().uid {
                    return Ok(());
                }
                fresh.set_status(status);
                api.replace_status(name, &PostParams::default(), &fresh).await?;
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn manage(&self, key: &Key, set: &Arc<K>, active: &[Arc<Pod>]) -> Result<()> {
        let wanted = usize::try_from(set.replicas()).unwrap_or_default();
        if active.len() < wanted {
            let missing = (wanted - active.len()).min(BURST);
            self.expectations.expect(key, missing, []);
            let pod = pods::from_template(&set.template(), set.as_ref());
            let (created, result) = slow_start(missing, |_| {
                let create =
                    pods::create(self.client.clone(), self.recorder.clone(), set.clone(), pod.clone());
                async {
                    match create.await {
                        Err(error) if !error.is_namespace_terminating() => Err(error),
                        _ => Ok(()),
                    }
                }
            })
            .await;
            for _ in created..missing {
                self.expectations.created(key);
            }
            result
        } else if active.len() > wanted {
            let surplus = (active.len() - wanted).min(BURST);
            let victims = self.choose(set, active, surplus);
            self.expectations.expect(key, 0, victims.iter().map(|pod| Key::of(pod.as_ref())));
            let mut calls = Vec::new();
            for pod in &victims {
                calls.push(pods::delete(
                    self.client.clone(),
                    self.recorder.clone(),
                    set.clone(),
                    pod.clone(),
                ));
            }
            let ended = all(calls.into_iter().map(|call| async { call.await.map(drop) })).await;
            if ended.is_err() {
                // The pods that are still there are counted anew next time.
                self.expectations.forget(key);
            }
            ended
        } else {
            Ok(())
        }
    }

    /// The pods to delete: the least useful ones, and of equals those with the most siblings on their node.
    fn choose(&self, set: &Arc<K>, active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
        if count == active.len() {
            return active.to_vec();
        }
        let mut on_node = HashMap::<String, usize>::new();
        let siblings = match controller_of(set.meta()) {
            None => active.to_vec(),
            Some(owner) => {
                let sets = self.sets.controlled_by(&owner.uid);
                sets.iter()
                    .flat_map(|set| self.pods.controlled_by(set.meta().uid.as_deref().unwrap_or_default()))
                    .collect()
            }
        };
        for pod in siblings.iter().filter(|pod| is_active(pod)) {
            *on_node.entry(node_name(pod).to_owned()).or_default() += 1;
        }
        let rank = |pod: &Pod| on_node.get(node_name(pod)).copied().unwrap_or_default();
        let now = now();
        let mut sorted = active.to_vec();
        sorted.sort_by(|a, b| deletion_order((a, rank(a)), (b, rank(b)), now));
        sorted.truncate(count);
        sorted
    }
}

/// The pods of a set that count, for those that look at sets from above.
pub(crate) fn pods_of(pods: &Informer<Pod>, set: &ReplicaSet) -> Vec<Arc<Pod>> {
    let owned = pods.controlled_by(set.metadata.uid.as_deref().unwrap_or_default());
    owned.into_iter().filter(|pod| is_controlled_by(&pod.metadata, &set.metadata)).collect()
}

fn ready_count(pods: &[Arc<Pod>]) -> i32 {
    i32::try_from(pods.iter().filter(|pod| is_ready(pod)).count()).unwrap_or(i32::MAX)
}
