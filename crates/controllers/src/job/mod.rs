//! Jobs: pods until enough have succeeded. Each pod carries a finalizer until it is counted in the status, so
//! that none is counted twice or lost (KEP-2307).

mod pods;
mod rules;
mod sync;
mod ttl;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use informer::{Change, Informer, Key, Queue, Recorder};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use parking_lot::Mutex;
use scheduling::selector::{labels_of, matches};

use crate::kit::Context;
use crate::kit::expect::Expectations;
use crate::kit::refs::{controller_key, controller_of};
use rules::TRACKING;

pub(crate) use rules::is_finished;
pub(crate) use ttl::run as ttl;

/// Failures in a row and the time of the last one.
type Failures = (u32, Option<Timestamp>);

struct Controller {
    client: Client,
    recorder: Recorder,
    jobs: Arc<Informer<Job>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<Queue<Key>>,
    expectations: Expectations,
    /// Pods whose finalizer was taken off and may still show it in the cache, by job.
    released: Mutex<HashMap<Key, HashSet<String>>>,
    failures: Mutex<HashMap<Key, Failures>>,
    /// Jobs written as finished, whose finish the cache may not show yet.
    finished: Mutex<HashSet<String>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("job-controller"),
        jobs: context.informer(),
        pods: context.informer(),
        queue: Queue::new(),
        expectations: Expectations::default(),
        released: Mutex::default(),
        failures: Mutex::default(),
        finished: Mutex::default(),
    });
    let orphans = Queue::new();
    let (to, lost) = (this.clone(), orphans.clone());
    this.jobs.on_change(move |change| {
        let job = change.latest();
        if matches!(change, Change::Deleted(_)) || is_finished(job) {
            for pod in to.pods.controlled_by(job.metadata.uid.as_deref().unwrap_or_default()) {
                lost.add(Key::of(pod.as_ref()));
            }
        }
        to.queue.add(Key::of(job.as_ref()));
    });
    this.jobs.synced().await;
    let (to, lost) = (this.clone(), orphans.clone());
    this.pods.on_change(move |change| to.pod_changed(change, &lost));
    this.pods.synced().await;
    let queue = this.queue.clone();
    let there = this.clone();
    let sync = move |key: Key| {
        let this = there.clone();
        async move { this.sync(key).await }
    };
    let release = move |key: Key| {
        let this = this.clone();
        async move { this.release_orphan(key).await }
    };
    tokio::join!(context.work("job", 8, queue, sync), context.work("job-orphans", 4, orphans, release));
}

fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|one| one == TRACKING)
}

impl Controller {
    fn owner_of(&self, pod: &Pod) -> Option<Arc<Job>> {
        let (key, uid) = controller_key::<Job>(&pod.metadata)?;
        self.jobs.get(&key).filter(|job| job.metadata.uid.as_deref() == Some(uid))
    }

    fn pod_changed(&self, change: &Change<'_, Pod>, orphans: &Queue<Key>) {
        let pod = change.latest();
        let deleted = matches!(change, Change::Deleted(_));
        let owner = self.owner_of(pod);
        if !deleted && has_finalizer(pod) && owner.as_ref().is_none_or(|job| is_finished(job)) {
            orphans.add(Key::of(pod.as_ref()));
        }
        if let Some(job) = owner {
            let key = Key::of(job.as_ref());
            let pod_key = Key::of(pod.as_ref());
            if let Change::Applied { old: None, .. } = change {
                self.expectations.created(&key);
            }
            if deleted || pod.metadata.deletion_timestamp.is_some() {
                self.expectations.deleted(&key, &pod_key);
            }
            if (deleted || !has_finalizer(pod))
                && let Some(released) = self.released.lock().get_mut(&key)
            {
                released.remove(pod.metadata.uid.as_deref().unwrap_or_default());
            }
            self.queue.add(key);
        } else if !deleted && controller_of(&pod.metadata).is_none() {
            let labels = labels_of(&pod.metadata.labels);
            for job in self.jobs.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                if selector.is_some_and(|selector| matches(selector, labels)) {
                    self.queue.add(Key::of(job.as_ref()));
                }
            }
        }
    }
}
