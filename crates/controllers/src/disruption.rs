//! PodDisruptionBudgets: how many of the pods that they protect may go now.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use informer::{EventType, Informer, Key, Queue, Recorder, reference};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Client;
use kube::api::{Api, DynamicObject, PostParams};
use scheduling::selector::{labels_of, matches};

use crate::kit::discovery::Known;
use crate::kit::error::found;
use crate::kit::intstr::scaled;
use crate::kit::pods::{is_ready, is_terminal};
use crate::kit::refs::controller_of;
use crate::kit::{Context, Error, Result, now, plus_seconds, time, until};

/// A pod whose eviction was allowed and that is still there after this time was not evicted.
const EVICTION_SECONDS: i64 = 120;

struct Controller {
    client: Client,
    recorder: Recorder,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pods: Arc<Informer<Pod>>,
    sets: Arc<Informer<ReplicaSet>>,
    controllers: Arc<Informer<ReplicationController>>,
    stateful: Arc<Informer<StatefulSet>>,
    deployments: Arc<Informer<Deployment>>,
    kinds: Known,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("controllermanager"),
        budgets: context.informer(),
        pods: context.informer(),
        sets: context.informer(),
        controllers: context.informer(),
        stateful: context.informer(),
        deployments: context.informer(),
        kinds: Known::new(context.client.clone()),
    });
    this.sets.synced().await;
    this.controllers.synced().await;
    this.stateful.synced().await;
    this.deployments.synced().await;
    let queue = Queue::new();
    let to = queue.clone();
    this.budgets.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    this.budgets.synced().await;
    let (to, budgets) = (queue.clone(), this.budgets.clone());
    this.pods.on_change(move |change| {
        let pod = change.latest();
        for budget in budgets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if protects(&budget, pod) {
                to.add(Key::of(budget.as_ref()));
            }
        }
    });
    this.pods.synced().await;
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("disruption", 4, queue, sync).await;
}

/// In `policy/v1` an empty selector means every pod of the namespace.
fn protects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| matches(selector, labels_of(&pod.metadata.labels)))
}

impl Controller {
    /// The UID and the size of what controls a pod, if the caches know its kind.
    fn known_scale(&self, owner: &OwnerReference, namespace: &str) -> Option<(String, i32)> {
        let (uid, size) = match (owner.api_version.as_str(), owner.kind.as_str()) {
            ("apps/v1", "ReplicaSet") => {
                let set = self.sets.find(namespace, &owner.name)?;
                let above = controller_of(&set.metadata).filter(|above| above.kind == "Deployment");
                match above {
                    Some(above) => {
                        let deployment = self.deployments.find(namespace, &above.name)?;
                        (above.uid.clone(), deployment.spec.as_ref()?.replicas)
                    }
                    None => (owner.uid.clone(), set.spec.as_ref()?.replicas),
                }
            }
            ("v1", "ReplicationController") => {
                (owner.uid.clone(), self.controllers.find(namespace, &owner.name)?.spec.as_ref()?.replicas)
            }
            ("apps/v1", "StatefulSet") => {
                (owner.uid.clone(), self.stateful.find(namespace, &owner.name)?.spec.as_ref()?.replicas)
            }
            _ => return None,
        };
        Some((uid, size.unwrap_or(1)))
    }

    /// The same of any kind that has a scale.
    async fn other_scale(&self, owner: &OwnerReference, namespace: &str) -> Result<Option<(String, i32)>> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let Some(kind) = self.kinds.find(group, &owner.kind).await? else {
            return Err(Error::UnknownKind(format!("{}/{}", owner.api_version, owner.kind)));
        };
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &kind.resource);
        let Some(scale) = found(api.get_scale(&owner.name).await)? else { return Ok(None) };
        let size = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
        Ok(scale.metadata.uid.filter(|uid| *uid == owner.uid).map(|uid| (uid, size)))
    }

    /// How many pods the controllers of these pods want in all. A pod without a controller counts for nothing.
    async fn expected(&self, pods: &[Arc<Pod>]) -> std::result::Result<i32, String> {
        let mut sizes = BTreeMap::new();
        let mut seen = HashSet::new();
        for pod in pods {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let Some(owner) = controller_of(&pod.metadata) else { continue };
            if !seen.insert(owner.uid.clone()) {
                continue;
            }
            let size = match self.known_scale(owner, namespace) {
                Some(size) => Some(size),
                None => self.other_scale(owner, namespace).await.map_err(|error| error.message())?,
            };
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let (uid, size) = size.ok_or_else(|| format!("found no controllers for pod {name:?}"))?;
            sizes.insert(uid, size);
        }
        Ok(sizes.values().fold(0, |sum: i32, size| sum.saturating_add(*size)))
    }

    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(budget) = self.budgets.get(&key) else { return Ok(None) };
        let spec = budget.spec.clone().unwrap_or_default();
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|pod| protects(&budget, pod) && !is_terminal(pod));
        let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
        let needs_scale =
            spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)));
        let expected = if needs_scale { self.expected(&pods).await } else { Ok(count) };
        if let Err(why) = &expected {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            self.recorder.event(
                reference(budget.as_ref()),
                EventType::Warning,
                "CalculateExpectedPodCountFailed",
                message,
            );
        }
        let expected = expected.ok();
        let desired = match (&spec.max_unavailable, &spec.min_available, expected) {
            (Some(most), _, Some(all)) => (all - scaled(most, all, true).unwrap_or_default()).max(0),
            (_, Some(IntOrString::Int(least)), _) => *least,
            (_, Some(least), Some(all)) => scaled(least, all, true).unwrap_or_default(),
            _ => 0,
        };
        let now = now();
        let old = budget.status.clone().unwrap_or_default();
        let (disrupted, again) = still_disrupted(&old, &pods, now);
        let healthy = pods.iter().filter(|pod| {
            is_ready(pod)
                && pod.metadata.deletion_timestamp.is_none()
                && !disrupted.contains_key(pod.metadata.name.as_deref().unwrap_or_default())
        });
        let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
        let all = expected.unwrap_or_default();
        let allowed = if all <= 0 || expected.is_none() { 0 } else { (healthy - desired).max(0) };
        let (value, reason) = match (expected, allowed) {
            (None, _) => ("False", "SyncFailed"),
            (_, 0) => ("False", "InsufficientPods"),
            _ => ("True", "SufficientPods"),
        };
        let generation = budget.metadata.generation;
        let status = PodDisruptionBudgetStatus {
            conditions: Some(conditions(&old, value, reason, generation, now)),
            current_healthy: Some(healthy),
            desired_healthy: Some(desired),
            disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
            disruptions_allowed: Some(allowed),
            expected_pods: Some(all),
            observed_generation: generation,
        };
        if status != old {
            let mut copy = budget.as_ref().clone();
            copy.status = Some(status);
            let api = Api::<PodDisruptionBudget>::namespaced(self.client.clone(), &key.namespace);
            found(api.replace_status(&key.name, &PostParams::default(), &copy).await)?;
        }
        Ok(again)
    }
}

/// The evictions that were allowed and are still to come, and when the first of them is given up.
fn still_disrupted(
    old: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let mut again: Option<Duration> = None;
    let mut kept = BTreeMap::new();
    for (name, at) in old.disrupted_pods.iter().flatten() {
        let waiting = pods
            .iter()
            .any(|pod| pod.metadata.name.as_ref() == Some(name) && pod.metadata.deletion_timestamp.is_none());
        if let (true, Some(left)) = (waiting, until(plus_seconds(at.0, EVICTION_SECONDS), now)) {
            kept.insert(name.clone(), at.clone());
            again = Some(again.map_or(left, |again| again.min(left)));
        }
    }
    (kept, again)
}

fn conditions(
    old: &PodDisruptionBudgetStatus,
    value: &str,
    reason: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let kind = "DisruptionAllowed";
    let mut all = old.conditions.clone().unwrap_or_default();
    let before = all.iter().position(|one| one.type_ == kind).map(|at| all.remove(at));
    let since = before.filter(|one| one.status == value).map(|one| one.last_transition_time);
    all.push(Condition {
        type_: kind.into(),
        status: value.into(),
        reason: reason.into(),
        message: String::new(),
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| time(now)),
    });
    all
}
