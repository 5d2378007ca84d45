//! DaemonSets: a pod of the template on every node that fits.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use scheduling::selector::{is_empty, labels_of, matches};

use crate::kit::expect::Expectations;
use crate::kit::history::{self, History, REVISION_HASH, hash_of};
use crate::kit::refs::{claim, controller_key, controller_of};
use crate::kit::{Context, Error, Result, all, now, pods, slow_start};
use plan::{Plan, by_node};

const BURST: usize = 250;
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(15 * 60);

struct Controller {
    client: Client,
    recorder: Recorder,
    sets: Arc<Informer<DaemonSet>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    revisions: Arc<Informer<ControllerRevision>>,
    queue: Arc<Queue<Key>>,
    expectations: Expectations,
    /// When a failed pod of a set was last replaced on a node, and how long the next must wait.
    backoff: Mutex<HashMap<(String, String), (Instant, Duration)>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("daemonset-controller"),
        sets: context.informer(),
        pods: context.informer(),
        nodes: context.informer(),
        revisions: context.informer(),
        queue: Queue::new(),
        expectations: Expectations::default(),
        backoff: Mutex::default(),
    });
    let to = this.clone();
    this.sets.on_change(move |change| to.queue.add(Key::of(change.latest().as_ref())));
    this.sets.synced().await;
    let to = this.clone();
    this.nodes.on_change(move |change| to.node_changed(change));
    this.nodes.synced().await;
    let to = this.clone();
    this.pods.on_change(move |change| to.pod_changed(change));
    this.pods.synced().await;
    this.revisions.synced().await;
    let queue = this.queue.clone();
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("daemonset", 4, queue, sync).await;
}

impl Controller {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let wants = |set: &DaemonSet, node: &Node| plan::should_run(set, node);
        for set in self.sets.list() {
            let concerned = match change {
                Change::Applied { old: Some(old), new } => {
                    let same = old.spec == new.spec && old.metadata.labels == new.metadata.labels;
                    !same && wants(&set, old) != wants(&set, new)
                }
                _ => true,
            };
            if concerned {
                self.queue.add(Key::of(set.as_ref()));
            }
        }
    }

    fn owner_of(&self, pod: &Pod) -> Option<Key> {
        let (key, uid) = controller_key::<DaemonSet>(&pod.metadata)?;
        let set = self.sets.get(&key)?;
        (set.metadata.uid.as_deref() == Some(uid)).then_some(key)
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let latest = change.latest();
        if let Some(key) = self.owner_of(latest) {
            let pod = Key::of(latest.as_ref());
            match change {
                Change::Applied { old: None, .. } => self.expectations.created(&key),
                Change::Applied { .. } => {}
                Change::Deleted(_) => self.expectations.deleted(&key, &pod),
            }
            if latest.metadata.deletion_timestamp.is_some() {
                self.expectations.deleted(&key, &pod);
            }
            self.queue.add(key);
        } else if matches!(change, Change::Applied { .. }) && controller_of(&latest.metadata).is_none() {
            let labels = labels_of(&latest.metadata.labels);
            for set in self.sets.in_namespace(latest.metadata.namespace.as_deref().unwrap_or_default()) {
                let selector = set.spec.as_ref().map(|spec| &spec.selector);
                if selector.is_some_and(|selector| !is_empty(selector) && matches(selector, labels)) {
                    self.queue.add(Key::of(set.as_ref()));
                }
            }
        }
    }

    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(set) = self.sets.get(&key) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let spec = set.spec.clone().unwrap_or_default();
        if is_empty(&spec.selector) || set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let mut history = History::of(&self.client, &self.revisions, set.as_ref(), &spec.selector).await?;
        let current = self.current(&set, &mut history).await?;
        let hash = hash_of(&current).to_owned();
        let nodes = self.nodes.list();

        let mut waited = None;
        let mut result = Ok(());
        if self.expectations.satisfied(&key) {
            let pods = by_node(&self.pods_of(&set).await?);
            let mut plan = plan::manage(&set, &nodes, &pods, &hash, now());
            waited = self.hold_back_failed(&set, &mut plan);
            result = self.apply(&key, &set, plan, &hash).await;
            let rolls =
                spec.update_strategy.as_ref().and_then(|one| one.type_.as_deref()) != Some("OnDelete");
            if result.is_ok() && rolls && self.expectations.satisfied(&key) {
                let plan = plan::roll(&set, &nodes, &pods, &hash, now());
                result = self.apply(&key, &set, plan, &hash).await;
            }
            if result.is_ok() {
                let in_use = |one: &str| {
                    one == hash
                        || pods.values().flatten().any(|pod| {
                            let labels = pod.metadata.labels.as_ref();
                            labels.and_then(|all| all.get(REVISION_HASH)).is_some_and(|label| label == one)
                        })
                };
                let limit = spec.revision_history_limit.unwrap_or(10);
                history.truncate(&self.client, &set.metadata, limit, in_use).await?;
            }
        }
        let again = self.write_status(&set, &nodes, &hash).await?;
        result?;
        Ok(again.into_iter().chain(waited).min())
    }

    async fn pods_of(&self, set: &DaemonSet) -> Result<Vec<Arc<Pod>>> {
        let mut all = self.pods.controlled_by(set.metadata.uid.as_deref().unwrap_or_default());
        all.extend(self.pods.orphans(set.metadata.namespace.as_deref().unwrap_or_default()));
        let Some(spec) = &set.spec else { return Ok(Vec::new()) };
        let selects = |pod: &Pod| matches(&spec.selector, labels_of(&pod.metadata.labels));
        claim(&self.client, set, all, selects, &[]).await
    }

    async fn current(&self, set: &DaemonSet, history: &mut History) -> Result<Arc<ControllerRevision>> {
        let spec = set.spec.clone().unwrap_or_default();
        let patch = history::template_patch(&spec.template)?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let hash = history::hash(&spec.template, collisions);
        let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
        let found = history.current(&self.client, set, labels, &patch, (REVISION_HASH, &hash)).await;
        if let Err(Error::Collision(_)) = &found {
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let api = Api::<DaemonSet>::namespaced(self.client.clone(), namespace);
            let mut fresh = api.get(name).await?;
            let status = fresh.status.get_or_insert_default();
            if status.collision_count == collisions {
                status.collision_count = Some(collisions.unwrap_or_default() + 1);
                api.replace_status(name, &PostParams::default(), &fresh).await?;
            }
        }
        found
    }

    /// Lets failed pods be replaced only as often as their back-off allows; when the next may be.
    fn hold_back_failed(&self, set: &Arc<DaemonSet>, plan: &mut Plan) -> Option<Duration> {
        let mut wait = None;
        let mut backoff = self.backoff.lock();
        for (node, pod) in std::mem::take(&mut plan.failed) {
            let uid = set.metadata.uid.clone().unwrap_or_default();
            let entry = backoff.entry((uid, node.clone()));
            let entry = entry.or_insert((Instant::now(), Duration::ZERO));
            let left = entry.1.saturating_sub(entry.0.elapsed());
            if !left.is_zero() {
                wait = Some(wait.map_or(left, |wait: Duration| wait.min(left)));
                continue;
            }
            let calm = entry.0.elapsed() > 2 * LAST_BACKOFF;
            let next =
                if entry.1.is_zero() || calm { FIRST_BACKOFF } else { (entry.1 * 2).min(LAST_BACKOFF) };
            *entry = (Instant::now(), next);
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            let message =
                format!("Found failed daemon pod {namespace}/{pod} on node {node}, will try to kill it");
            self.recorder.event(reference(set.as_ref()), EventType::Warning, "FailedDaemonPod", message);
            plan.delete.push(pod);
        }
        wait
    }

    async fn apply(&self, key: &Key, set: &Arc<DaemonSet>, mut plan: Plan, hash: &str) -> Result<()> {
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(());
        }
        let doomed = plan.delete.iter().map(|name| Key::new(key.namespace.clone(), name.clone()));
        let doomed: Vec<Key> = doomed.collect();
        self.expectations.expect(key, plan.create.len(), doomed.iter().cloned());
        let (created, result) = slow_start(plan.create.len(), |at| {
            let template = plan::template_for(set, &plan.create[at], hash);
            let pod = pods::from_template(&template, set.as_ref());
            let create = pods::create(self.client.clone(), self.recorder.clone(), set.clone(), pod);
            async {
                match create.await {
                    Err(error) if !error.is_namespace_terminating() => Err(error),
                    _ => Ok(()),
                }
            }
        })
        .await;
        for _ in created..plan.create.len() {
            self.expectations.created(key);
        }
        let mut calls = Vec::new();
        for doomed in &doomed {
            match self.pods.get(doomed) {
                Some(pod) => {
                    let (client, recorder) = (self.client.clone(), self.recorder.clone());
                    let delete = pods::delete(client, recorder, set.clone(), pod);
                    calls.push(async { delete.await.map(drop) });
                }
                None => self.expectations.deleted(key, doomed),
            }
        }
        let deleted = all(calls).await;
        if deleted.is_err() {
            self.expectations.forget(key);
        }
        result.and(deleted)
    }

    async fn write_status(
        &self,
        set: &DaemonSet,
        nodes: &[Arc<Node>],
        hash: &str,
    ) -> Result<Option<Duration>> {
        let pods = by_node(&self.pods_of(set).await?);
        let mut status = plan::status(set, nodes, &pods, hash, now());
        status.observed_generation = set.metadata.generation;
        let minimum = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or_default();
        let again = (minimum > 0 && Some(status.number_ready) != status.number_available)
            .then(|| Duration::from_secs(u64::try_from(minimum).unwrap_or_default()));
        let old = set.status.clone().unwrap_or_default();
        let count = |number: Option<i32>| Some(number.unwrap_or_default());
        let same = k8s_openapi::api::apps::v1::DaemonSetStatus {
            updated_number_scheduled: count(old.updated_number_scheduled),
            number_available: count(old.number_available),
            number_unavailable: count(old.number_unavailable),
            ..old
        } == status;
        if !same {
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            let mut copy = set.clone();
            copy.status = Some(status);
            let api = Api::<DaemonSet>::namespaced(self.client.clone(), namespace);
            api.replace_status(name, &PostParams::default(), &copy).await?;
        }
        Ok(again)
    }
}
