//! Eviction: when the node runs short of memory, disk, inodes or process ids, pods go, one at a time, in upstream's order; and
//! pods that use more local storage than their own limits go as well. Signals are read every ten seconds: they are
//! levels of the machine, of which nothing tells by itself.

use std::collections::HashMap;
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

pub(crate) use local::disk_use;
pub(crate) use plan::Pressure;
use plan::{Signals, Use};

const INTERVAL: Duration = Duration::from_secs(10);
/// How long a condition stays after the last sight of its cause (`evictionPressureTransitionPeriod`).
const LINGERS: Duration = Duration::from_secs(300);
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

    fn note(&self, met: &[Pressure], now: Instant) {
        let mut seen = self.seen.lock();
        seen.extend(met.iter().map(|pressure| (*pressure, now)));
        seen.retain(|_, at| now.duration_since(*at) < LINGERS);
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
    loop {
        let signals = signals(&context);
        let met = plan::met(&signals);
        context.pressures.note(&met, Instant::now());
        if let Some(pressure) = met.first().copied() {
            relieve(&context, &pods, pressure).await;
        } else {
            limits(&context, &pods).await;
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

fn signals(context: &Shared) -> Signals {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let disk = |path: &Path| {
        let found = capacity::file_system(path);
        found.map(|(size, free, inodes, inodes_free)| plan::Disk { size, free, inodes, inodes_free })
    };
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // "0.1 0.2 0.3 running/all last": the fourth field counts the kernel's tasks.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let tasks = load.split_whitespace().nth(3).and_then(|field| field.split('/').nth(1)?.parse().ok());
    let most =
        number("/proc/sys/kernel/pid_max").into_iter().chain(number("/proc/sys/kernel/threads-max")).min();
    Signals {
        memory_available: capacity::meminfo(&table, "MemAvailable"),
        disk: disk(&context.config.root_dir),
        pids: most.zip(tasks),
    }
}

/// Frees what nobody needs; if the shortage stays, one pod goes.
async fn relieve(context: &Shared, pods: &Pods, pressure: Pressure) {
    if matches!(pressure, Pressure::Disk | Pressure::Inodes) {
        if let Err(status) = gc::reclaim(context, pods).await {
            tracing::warn!(status = status.message(), "cannot free disk");
        }
        if !plan::met(&signals(context)).contains(&pressure) {
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
    let order = plan::rank(pressure, &active, &uses);
    tracing::warn!(?pressure, pods = order.len(), "the node is short of a resource; a pod is evicted");
    for index in order {
        let pod = &active[index];
        if is_critical(pod) {
            continue;
        }
        let message = plan::message(pressure, &signals(context), pod, &uses[index]);
        let signal = match pressure {
            Pressure::Memory => "memory.available",
            Pressure::Disk => "nodefs.available",
            Pressure::Inodes => "nodefs.inodesFree",
            Pressure::Pids => "pid.available",
        };
        context.metrics.count(EVICTIONS, &[("eviction_signal", signal)]);
        evict(context, pods, pod, message).await;
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
            evict(context, pods, &pod, message).await;
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

async fn evict(context: &Shared, pods: &Pods, pod: &Pod, message: String) {
    let verdict = Verdict { reason: "Evicted".to_owned(), message: message.clone() };
    context.recorder.warning(crate::events::pod(pod), "Evicted", message);
    let mut ends = pods.events();
    if !pods.evict(podutil::uid(pod), verdict) {
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
    drop(tokio::time::timeout(PATIENCE, gone).await);
}
