//! Eviction: when the node runs short of memory, disk, inodes or process ids, pods go, one at a time, in upstream's order; and
//! pods that use more local storage than their own limits go as well. Signals are read every ten seconds: they are
//! levels of the machine, of which nothing tells by itself.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::{ListPodSandboxStatsRequest, PodSandboxStats};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::context::Shared;
use crate::gc;
use crate::manager::Pods;
use crate::metrics::EVICTIONS;
use crate::node::capacity;
use crate::podutil::{self, spec};
use crate::status::Verdict;

mod local;
mod plan;
pub(crate) mod thresholds;

pub(crate) use local::disk_use;
pub(crate) use plan::Pressure;
use plan::{Observed, Signals, Use, Watch};
use thresholds::{Signal, Threshold};

const INTERVAL: Duration = Duration::from_secs(10);
/// How long an evicted pod may take to be gone before another one is chosen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the node is short of, for its conditions and for the admission of pods.
pub(crate) struct Pressures {
    seen: Mutex<HashMap<Pressure, Instant>>,
    changed: watch::Sender<Vec<Pressure>>,
}

impl Default for Pressures {
    fn default() -> Self {
        Pressures { seen: Mutex::default(), changed: watch::channel(Vec::new()).0 }
    }
}

impl Pressures {
    /// What the node is short of now.
    pub(crate) fn now(&self) -> Vec<Pressure> {
        self.changed.borrow().clone()
    }

    /// Tells of changes.
    pub(crate) fn follow(&self) -> watch::Receiver<Vec<Pressure>> {
        self.changed.subscribe()
    }

    /// Takes note of shortages, which stay for `lingers` after their last sight.
    fn note(&self, met: &[Pressure], now: Instant, lingers: Duration) {
        let mut seen = self.seen.lock();
        seen.extend(met.iter().map(|pressure| (*pressure, now)));
        seen.retain(|pressure, at| met.contains(pressure) || now.duration_since(*at) < lingers);
        let mut current: Vec<Pressure> = seen.keys().copied().collect();
        current.sort_unstable();
        self.changed.send_if_modified(|known| {
            let changed = *known != current;
            *known = current;
            changed
        });
    }
}

/// Whether a pod stays whatever happens: a static one, or one of the system's priorities.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    const SYSTEM: i32 = 2_000_000_000;
    crate::static_pods::is_static(pod) || spec(pod).priority.is_some_and(|priority| priority >= SYSTEM)
}

/// Watches over the node until shutdown.
pub(crate) async fn run(context: Shared, pods: Pods, shutdown: CancellationToken) {
    let settings = &context.config.settings;
    let thresholds = thresholds::of(settings).unwrap_or_default();
    let mut watch = Watch::new(thresholds, settings.eviction_hard.is_none());
    let lingers = settings.eviction_pressure_transition_period.0;
    loop {
        let machine = machine(&context).await;
        let now = Instant::now();
        let short = watch.note(&machine.signals, now);
        context.pressures.note(&short, now, lingers);
        if let Some(threshold) = watch.due(now) {
            relieve(&context, &pods, &watch, &threshold, machine.apart).await;
        } else if settings.local_storage_capacity_isolation {
            limits(&context, &pods).await;
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// The machine's levels, and whether images have a file system of their own.
struct Machine {
    signals: Signals,
    apart: bool,
}

async fn machine(context: &Shared) -> Machine {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut signals = Signals::new();
    let mut observe = |signal, whole, left| signals.insert(signal, Observed { whole, left });
    let whole = capacity::memory();
    observe(Signal::Memory, whole, capacity::meminfo(&table, "MemAvailable"));
    if let Some((limit, used)) = context.cgroups.as_ref().and_then(|cgroups| cgroups.pods_memory()) {
        observe(Signal::AllocatableMemory, limit, limit.saturating_sub(used));
    }
    let root = &context.config.root_dir;
    let images = gc::image_place(context).await.unwrap_or_else(|| root.clone());
    let device = |path: &Path| std::fs::metadata(path).ok().map(|data| data.dev());
    let apart = device(root).is_some_and(|own| device(&images).is_some_and(|other| other != own));
    if let Some((size, free, inodes, inodes_free)) = capacity::file_system(root) {
        observe(Signal::NodeFs, size, free);
        // A file system without a fixed number of inodes tells none.
        if inodes > 0 {
            observe(Signal::NodeInodes, inodes, inodes_free);
        }
    }
    if let Some((size, free, inodes, inodes_free)) = capacity::file_system(&images) {
        observe(Signal::ImageFs, size, free);
        observe(Signal::ContainerFs, size, free);
        if inodes > 0 {
            observe(Signal::ImageInodes, inodes, inodes_free);
            observe(Signal::ContainerInodes, inodes, inodes_free);
        }
    }
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // "0.1 0.2 0.3 running/all last": the fourth field counts the kernel's tasks.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let tasks = load.split_whitespace().nth(3).and_then(|field| field.split('/').nth(1)?.parse::<u64>().ok());
    let most =
        number("/proc/sys/kernel/pid_max").into_iter().chain(number("/proc/sys/kernel/threads-max")).min();
    if let Some((most, tasks)) = most.zip(tasks) {
        observe(Signal::Pids, most, most.saturating_sub(tasks));
    }
    Machine { signals, apart }
}

/// Frees what nobody needs; if the shortage stays, one pod goes.
async fn relieve(context: &Shared, pods: &Pods, watch: &Watch, threshold: &Threshold, apart: bool) {
    let pressure = threshold.signal.pressure();
    if matches!(pressure, Pressure::Disk | Pressure::Inodes) {
        if let Err(status) = gc::reclaim(context, pods).await {
            tracing::warn!(status = status.message(), "cannot free disk");
        }
        if watch.satisfied(threshold, &machine(context).await.signals) {
            return;
        }
    }
    let active = active(pods);
    if active.is_empty() {
        return;
    }
    let stats = stats(context).await;
    let uses: Vec<Use> =
        active.iter().map(|pod| measure(context, pod, stats.get(podutil::uid(pod)))).collect();
    let order = plan::rank(threshold.signal, apart, &active, &uses);
    tracing::warn!(?pressure, pods = order.len(), "the node is short of a resource; a pod is evicted");
    let signals = machine(context).await.signals;
    for index in order {
        let pod = &active[index];
        if is_critical(pod) {
            continue;
        }
        let message = watch.message(threshold, &signals, pod, &uses[index]);
        // Behind a soft threshold there is some time to end.
        let most = i64::from(context.config.settings.eviction_max_pod_grace_period);
        let own = spec(pod).termination_grace_period_seconds.unwrap_or(30);
        let grace = if threshold.grace.is_some() { most.min(own).max(1) } else { 1 };
        context.metrics.count(EVICTIONS, &[("eviction_signal", threshold.signal.name())]);
        evict(context, pods, pod, message, grace).await;
        return;
    }
    tracing::warn!(?pressure, "no pod is left that could be evicted");
}

/// Pods that use more local storage than they may.
async fn limits(context: &Shared, pods: &Pods) {
    let limited: Vec<Arc<Pod>> = active(pods).into_iter().filter(|pod| local::is_limited(pod)).collect();
    if limited.is_empty() {
        return;
    }
    let stats = stats(context).await;
    for pod in limited {
        let used = measure(context, &pod, stats.get(podutil::uid(&pod)));
        if let Some(message) = local::exceeded(&pod, &used) {
            context.metrics.count(EVICTIONS, &[("eviction_signal", "ephemeralcontainerfs.limit")]);
            evict(context, pods, &pod, message, 1).await;
        }
    }
}

fn active(pods: &Pods) -> Vec<Arc<Pod>> {
    let ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        podutil::deleting(pod) || matches!(phase, Some("Failed" | "Succeeded"))
    };
    pods.list().into_iter().filter(|pod| !ended(pod)).collect()
}

async fn stats(context: &Shared) -> HashMap<String, PodSandboxStats> {
    let request = ListPodSandboxStatsRequest { filter: None };
    match context.cri.runtime().list_pod_sandbox_stats(request).await {
        Ok(response) => response
            .into_inner()
            .stats
            .into_iter()
            .filter_map(|stats| Some((stats.attributes.as_ref()?.metadata.as_ref()?.uid.clone(), stats)))
            .collect(),
        Err(status) => {
            tracing::warn!(status = status.message(), "the runtime does not tell what pods use");
            HashMap::new()
        }
    }
}

fn measure(context: &Shared, pod: &Pod, stats: Option<&PodSandboxStats>) -> Use {
    local::measure(&context.config.root_dir, &context.config.pod_logs_dir, pod, stats)
}

async fn evict(context: &Shared, pods: &Pods, pod: &Pod, message: String, grace: i64) {
    let verdict = Verdict { reason: "Evicted".to_owned(), message: message.clone() };
    context.recorder.warning(crate::events::pod(pod), "Evicted", message);
    let mut ends = pods.events();
    if !pods.evict(podutil::uid(pod), verdict, grace) {
        return;
    }
    let gone = async {
        while pods.holds(podutil::uid(pod)) {
            if ends.changed().await.is_err() {
                return;
            }
        }
    };
    // What it held is free once its containers have ended, or a moment later.
    let patience = PATIENCE + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
    drop(tokio::time::timeout(patience, gone).await);
}
