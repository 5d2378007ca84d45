//! Gives every pod of this node its worker, and passes on what concerns it: changes from the API and events from the runtime.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cri::v1::{GetEventsRequest, PodSandbox};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::context::Shared;
use crate::error::Error;
use crate::metrics::{EVENTS_BROKEN, EVENTS_CONNECTED, REJECTIONS};
use crate::mirrors::{self, Mirrors};
use crate::pod::{Inbox, Worker};
use crate::podutil;
use crate::static_pods::{self, StaticPods};
use crate::status::Verdict;
use crate::volumes;

/// How often what nobody owns is looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// The same while something of it could not be taken away: drivers register anew after a restart.
const HOUSEKEEPING_AGAIN: Duration = Duration::from_secs(3);

struct Entry {
    inbox: Arc<Inbox>,
    pod: Arc<Pod>,
}

/// The pods of this node; cheap to clone.
#[derive(Clone)]
pub(crate) struct Pods {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    /// Counts events of the runtime.
    events: watch::Sender<u64>,
    /// Questions to the loop whether it still turns.
    pings: mpsc::Sender<oneshot::Sender<()>>,
    inbound_pings: Arc<Mutex<Option<mpsc::Receiver<oneshot::Sender<()>>>>>,
}

impl Pods {
    pub(crate) fn new() -> Self {
        let (pings, inbound) = mpsc::channel(16);
        Pods {
            entries: Arc::default(),
            events: watch::channel(0).0,
            pings,
            inbound_pings: Arc::new(Mutex::new(Some(inbound))),
        }
    }

    /// Whether the loop that looks after all pods answers within five seconds.
    pub(crate) async fn answers(&self) -> bool {
        let (sender, receiver) = oneshot::channel();
        let asked = async {
            self.pings.send(sender).await.ok()?;
            receiver.await.ok()
        };
        matches!(tokio::time::timeout(Duration::from_secs(5), asked).await, Ok(Some(())))
    }

    /// All pods, as the API last had them.
    pub(crate) fn list(&self) -> Vec<Arc<Pod>> {
        self.entries.lock().values().map(|entry| entry.pod.clone()).collect()
    }

    /// The pod of that name.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let entries = self.entries.lock();
        let mut found = entries
            .values()
            .filter(|entry| podutil::namespace(&entry.pod) == namespace && podutil::name(&entry.pod) == name);
        found.next().map(|entry| entry.pod.clone())
    }

    /// Where the volumes of a pod lie on the node, by name.
    pub(crate) fn volumes(&self, uid: &str) -> BTreeMap<String, PathBuf> {
        self.entries.lock().get(uid).map(|entry| entry.inbox.volumes()).unwrap_or_default()
    }

    /// Whether the node still has anything of the pod.
    pub(crate) fn holds(&self, uid: &str) -> bool {
        self.entries.lock().get(uid).is_some_and(|entry| !entry.inbox.is_quiet())
    }

    /// Ends a pod because of the node's needs, with `grace` seconds to end by itself; tells whether there is such a pod.
    pub(crate) fn evict(&self, uid: &str, verdict: Verdict, grace: i64) -> bool {
        let entries = self.entries.lock();
        let entry = entries.get(uid);
        entry.inspect(|entry| entry.inbox.evict(verdict, grace)).is_some()
    }

    /// Changes whenever something happened to any container.
    pub(crate) fn events(&self) -> watch::Receiver<u64> {
        self.events.subscribe()
    }

    pub(crate) fn wake(&self, uid: &str) {
        if let Some(entry) = self.entries.lock().get(uid) {
            entry.inbox.runtime_changed();
        }
        self.events.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn wake_all(&self) {
        self.entries.lock().values().for_each(|entry| entry.inbox.runtime_changed());
        self.events.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Runs the pods of this node until shutdown. Containers live on after it.
pub(crate) async fn run(
    context: Shared,
    pods: Pods,
    node: watch::Receiver<Option<Arc<Node>>>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let events = tokio::spawn(follow_events(context.clone(), pods.clone(), shutdown.clone()));
    let mut manager = Manager {
        known: context.cri.sandboxes().await?,
        context: context.clone(),
        pods,
        workers: JoinSet::new(),
        node,
        statics: StaticPods::default(),
        mirrors: Mirrors::default(),
        listed: false,
        next_housekeeping: tokio::time::Instant::now() + HOUSEKEEPING,
        keepers: JoinSet::new(),
    };
    let api: Api<Pod> = Api::all(context.config.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.config.node_name));
    let mut stream = informer::follow(api, config).boxed();
    let mut listed: Vec<Arc<Pod>> = Vec::new();
    let (found, mut statics) = watch::channel(StaticPods::default());
    if let Some(dir) = context.config.static_pod_dir.clone() {
        let node = context.config.node_name.clone();
        tokio::spawn(static_pods::follow(dir, node, found, shutdown.child_token()));
    } else {
        // A closed channel is never heard of again.
        drop(found);
    }
    let (fetched, mut remote) = watch::channel(StaticPods::default());
    if let Some(url) = context.config.manifest_url.clone() {
        let node = context.config.node_name.clone();
        let every = context.config.settings.http_check_frequency.0;
        tokio::spawn(static_pods::url::follow(url, node, every, fetched, shutdown.child_token()));
    } else {
        drop(fetched);
    }
    let pings = manager.pods.inbound_pings.lock().take();
    let mut pings = pings.unwrap_or_else(|| mpsc::channel(1).1);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = manager.workers.join_next(), if !manager.workers.is_empty() => match ended {
                Ok(uid) => {
                    manager.pods.entries.lock().remove(&uid);
                    manager.known.remove(&uid);
                    manager.balance();
                    manager.start_statics();
                }
                Err(error) => tracing::error!(%error, "a pod worker ended unexpectedly"),
            },
            Ok(()) = statics.changed() => {
                let now = static_pods::merged(&statics.borrow_and_update(), &remote.borrow());
                manager.set_statics(now);
            }
            Ok(()) = remote.changed() => {
                let now = static_pods::merged(&statics.borrow(), &remote.borrow_and_update());
                manager.set_statics(now);
            }
            Some(Ok(name)) = manager.mirrors.tasks.join_next(), if !manager.mirrors.tasks.is_empty() => {
                manager.mirrors.ended(&name);
                manager.sync_mirrors();
            }
            event = stream.next() => match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    let pod = Arc::new(pod);
                    listed.push(pod.clone());
                    manager.apply(pod);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    manager.complete(&listed);
                    listed.clear();
                }
                Some(Ok(watcher::Event::Apply(pod))) => manager.apply(Arc::new(pod)),
                Some(Ok(watcher::Event::Delete(pod))) if static_pods::mirrored(&pod).is_some() => {
                    manager.mirrors.remove(&pod);
                    manager.sync_mirrors();
                }
                Some(Ok(watcher::Event::Delete(pod))) => manager.remove(podutil::uid(&pod)),
                Some(Err(error)) => tracing::warn!(%error, "watching pods failed"),
                None => break,
            },
            // A question whose asker is gone needs no answer.
            Some(ping) = pings.recv() => drop(ping.send(())),
            () = tokio::time::sleep_until(manager.next_housekeeping) => manager.housekeeping(),
            Some(Ok(all_gone)) = manager.keepers.join_next(), if !manager.keepers.is_empty() => {
                if !all_gone {
                    manager.next_housekeeping = tokio::time::Instant::now() + HOUSEKEEPING_AGAIN;
                }
            }
        }
    }
    events.abort();
    manager.workers.abort_all();
    Ok(())
}

struct Manager {
    context: Shared,
    pods: Pods,
    /// Sandboxes that were there at the start, by pod.
    known: HashMap<String, Vec<PodSandbox>>,
    workers: JoinSet<String>,
    node: watch::Receiver<Option<Arc<Node>>>,
    statics: StaticPods,
    mirrors: Mirrors,
    /// The API has told its pods at least once.
    listed: bool,
    next_housekeeping: tokio::time::Instant,
    /// Each tells whether everything that nobody owns is gone.
    keepers: JoinSet<bool>,
}

impl Manager {
    /// Takes over the folder's pods: new ones start, those that are gone end.
    fn set_statics(&mut self, now: StaticPods) {
        self.statics = now;
        for entry in self.pods.entries.lock().values() {
            if static_pods::is_static(&entry.pod) && !self.statics.contains_key(podutil::uid(&entry.pod)) {
                entry.inbox.remove();
            }
        }
        self.start_statics();
    }

    /// Starts static pods that have no worker yet. One whose manifest changed waits until its former self is gone.
    fn start_statics(&mut self) {
        let statics = self.statics.clone();
        for (uid, pod) in statics.iter() {
            let taken = {
                let entries = self.pods.entries.lock();
                let same = |entry: &Entry| mirrors::full_name(&entry.pod) == mirrors::full_name(pod);
                entries.contains_key(uid) || entries.values().any(same)
            };
            if !taken {
                self.apply(pod.clone());
            }
        }
        self.sync_mirrors();
    }

    /// Brings the API's copies in step, and tells the workers of theirs.
    fn sync_mirrors(&mut self) {
        let statics: Vec<Arc<Pod>> = self.statics.values().cloned().collect();
        let mut running = HashSet::new();
        for entry in self.pods.entries.lock().values().filter(|entry| static_pods::is_static(&entry.pod)) {
            running.insert(mirrors::full_name(&entry.pod));
            entry.inbox.mirror(self.mirrors.of(&entry.pod));
        }
        if self.listed {
            let node = self.node.borrow().clone();
            self.mirrors.sync(&self.context, node.as_deref(), &statics, &running);
        }
    }

    fn apply(&mut self, pod: Arc<Pod>) {
        if static_pods::mirrored(&pod).is_some() {
            self.mirrors.apply(pod);
            return self.sync_mirrors();
        }
        let uid = podutil::uid(&pod).to_owned();
        let inbox = Arc::new(Inbox::default());
        {
            let mut entries = self.pods.entries.lock();
            if let Some(entry) = entries.get_mut(&uid) {
                entry.pod = pod.clone();
                entry.inbox.update(pod);
                return;
            }
            entries.insert(uid.clone(), Entry { inbox: inbox.clone(), pod: pod.clone() });
        }
        let sandboxes = self.sandboxes(&uid);
        let fresh = sandboxes.is_empty();
        let mut worker = Worker::new(self.context.clone(), inbox, pod.clone(), sandboxes);
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        if fresh && phase == "Pending" && !podutil::deleting(&pod) {
            let others = self.pods.list();
            let node = self.node.borrow().clone();
            if let Some(verdict) = admission::check(&self.context, &pod, &others, node.as_deref()) {
                self.context.metrics.count(REJECTIONS, &[("reason", &verdict.reason)]);
                worker = worker.refused(verdict);
            } else {
                worker = worker.arriving();
            }
        }
        self.workers.spawn(async move {
            worker.run().await;
            uid
        });
        self.balance();
    }

    fn sandboxes(&self, uid: &str) -> Vec<String> {
        let mut found: Vec<&PodSandbox> = self.known.get(uid).into_iter().flatten().collect();
        found.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        found.into_iter().map(|sandbox| sandbox.id.clone()).collect()
    }

    fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.pods.entries.lock().get(uid) {
            entry.inbox.remove();
        }
    }

    /// The list is complete: pods it lacks are gone, and so are sandboxes of pods it lacks.
    fn complete(&mut self, listed: &[Arc<Pod>]) {
        let gone: Vec<String> = {
            let entries = self.pods.entries.lock();
            let listed: std::collections::HashSet<&str> =
                listed.iter().map(|pod| podutil::uid(pod)).collect();
            self.mirrors.retain(&listed);
            let ours = entries.iter().filter(|(_, entry)| !static_pods::is_static(&entry.pod));
            ours.map(|(uid, _)| uid).filter(|uid| !listed.contains(uid.as_str())).cloned().collect()
        };
        self.listed = true;
        self.sync_mirrors();
        for uid in gone {
            self.remove(&uid);
        }
        let orphans: Vec<(String, PodSandbox)> = {
            let entries = self.pods.entries.lock();
            let unknown = self.known.iter().filter(|(uid, _)| !entries.contains_key(*uid));
            unknown.filter_map(|(uid, list)| Some((uid.clone(), list.first()?.clone()))).collect()
        };
        for (uid, sandbox) in orphans {
            let metadata = sandbox.metadata.unwrap_or_default();
            tracing::info!(
                pod = metadata.name,
                namespace = metadata.namespace,
                "stopping a pod the API does not have"
            );
            let pod = Arc::new(Pod {
                metadata: ObjectMeta {
                    name: Some(metadata.name),
                    namespace: Some(metadata.namespace),
                    uid: Some(uid.clone()),
                    ..ObjectMeta::default()
                },
                ..Pod::default()
            });
            let inbox = Arc::new(Inbox::default());
            inbox.remove();
            let entry = Entry { inbox: inbox.clone(), pod: pod.clone() };
            self.pods.entries.lock().insert(uid.clone(), entry);
            let worker = Worker::new(self.context.clone(), inbox, pod, self.sandboxes(&uid)).orphaned();
            self.workers.spawn(async move {
                worker.run().await;
                uid
            });
        }
        self.housekeeping();
    }

    /// Gives the class of burstable pods its share of the processors.
    fn balance(&self) {
        if let Some(cgroups) = &self.context.cgroups {
            let pods = self.pods.list();
            cgroups.balance(pods.iter().map(|pod| &**pod));
        }
    }

    /// Takes away directories and cgroups of pods that have no worker.
    fn housekeeping(&mut self) {
        self.next_housekeeping = tokio::time::Instant::now() + HOUSEKEEPING;
        self.balance();
        // Before the API has told its pods, those that run would be taken for gone.
        if !self.listed {
            return;
        }
        let context = self.context.clone();
        let owned: std::collections::HashSet<String> = self.pods.entries.lock().keys().cloned().collect();
        self.context.pinning.retain(|uid| owned.contains(uid));
        self.context.devices.retain(|uid| owned.contains(uid));
        let claimed: Vec<String> =
            self.context.claims.pods().into_iter().filter(|uid| !owned.contains(uid)).collect();
        let claims = self.context.clone();
        tokio::spawn(async move {
            for uid in claimed {
                if let Err(error) = claims.claims.unprepare(&uid).await {
                    tracing::warn!(%error, uid, "cannot take back the claims of a pod that is gone");
                }
            }
        });
        let pods = self.pods.clone();
        self.keepers.spawn(async move { sweep(&context, &pods).await });
    }
}

/// Takes away directories and cgroups of pods that have no worker; tells whether all of them are gone.
async fn sweep(context: &Shared, pods: &Pods) -> bool {
    let Ok(_alone) = context.housekeeping.try_lock() else { return true };
    // A pod has its worker before it has anything on the node, so one that is found first and has none then is gone.
    let gone = |uid: &str| !pods.entries.lock().contains_key(uid);
    let mut all_gone = true;
    let root = context.config.root_dir.join("pods");
    let found: Vec<_> = std::fs::read_dir(root).into_iter().flatten().flatten().collect();
    for entry in found {
        let uid = entry.file_name().to_string_lossy().into_owned();
        if gone(&uid)
            && let Err(error) = volumes::teardown(context, &uid).await
        {
            tracing::warn!(%error, uid, "cannot remove the directory of a pod that is gone");
            all_gone = false;
        }
    }
    all_gone &= context.csi.sweep().await;
    if let Some(cgroups) = &context.cgroups {
        for (uid, path) in cgroups.pods().into_iter().filter(|(uid, _)| gone(uid)) {
            if let Err(error) = cgroups.remove_path(&path) {
                tracing::debug!(%error, uid, "cannot remove the cgroup of a pod that is gone");
                all_gone = false;
            }
        }
    }
    all_gone
}

/// Wakes workers by the runtime's events. After a break everything may have changed.
async fn follow_events(context: Shared, pods: Pods, shutdown: CancellationToken) {
    let mut delay = Duration::from_millis(50);
    while !shutdown.is_cancelled() {
        match context.cri.runtime().get_container_events(GetEventsRequest {}).await {
            Ok(response) => {
                let mut stream = response.into_inner();
                context.metrics.count(EVENTS_CONNECTED, &[]);
                pods.wake_all();
                delay = Duration::from_millis(50);
                loop {
                    match stream.message().await {
                        Ok(Some(event)) => {
                            let metadata = event.pod_sandbox_status.and_then(|sandbox| sandbox.metadata);
                            match metadata {
                                Some(metadata) => pods.wake(&metadata.uid),
                                None => pods.wake_all(),
                            }
                        }
                        Ok(None) => break,
                        Err(status) => {
                            tracing::warn!(status = status.message(), "the runtime's event stream broke");
                            break;
                        }
                    }
                }
            }
            Err(status) => {
                context.metrics.count(EVENTS_BROKEN, &[]);
                tracing::warn!(status = status.message(), "cannot follow the runtime's events");
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}
