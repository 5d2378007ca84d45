//! One worker per pod. It wakes on changes of the pod, of its containers and of probe results, looks at the whole, lets
//! `plan` decide, and carries the actions out in tasks of their own, so that nothing slow delays a status.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoffs;
use crate::context::Shared;
use crate::events;
use crate::objects::Held;
use crate::plan::{self, Probed, Start};
use crate::podutil::{self, spec};
use crate::probe::{self, Report};
use crate::runtime::PodView;
use crate::status::{self, Verdict, Waiting};
use crate::volumes::Mounted;

mod api;
mod ending;
mod inbox;
mod kill;
mod last_words;
mod outcome;
mod probes;
mod report;
mod reset;
mod resize;
mod start;

pub(crate) use inbox::Inbox;
use start::StartError;

/// How long a status may wait for actions under way to end, so that a quick start is one write.
const COALESCE: Duration = Duration::from_millis(100);
/// A look at the runtime even though nothing was heard from it.
const SAFETY_LOOK: Duration = Duration::from_secs(120);

/// Where the pod stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stage {
    Running,
    /// Everything is being stopped.
    Terminating,
    /// Nothing runs; volumes and cgroups are being taken away.
    Cleaning,
    /// Only the API object may be left.
    Finished,
}

/// Where a restart of all containers in place stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restarting {
    No,
    /// Old containers are being removed.
    Removing,
    /// New ones are on their way.
    Starting,
}

/// The result of an action.
enum Done {
    Volumes(Result<Mounted, (String, crate::volumes::VolumeError)>),
    Sandbox(Result<String, String>),
    Start(Start, Result<(), StartError>),
    Kill(String),
    KillPod(Result<(), String>),
    Clean(Result<(), String>),
    Resize(Result<(), String>),
    Reset(Result<(), String>),
    Status(Box<PodStatus>, Result<(), kube::Error>),
    Delete(Result<(), kube::Error>),
}

/// Keys of `busy` that are no container names (those have no slash).
const VOLUMES: &str = "/volumes";
const SANDBOX: &str = "/sandbox";
const POD: &str = "/pod";
const CLEAN: &str = "/clean";
const STATUS: &str = "/status";
const DELETE: &str = "/delete";
const RESIZE: &str = "/resize";

/// A pod's worker.
pub(crate) struct Worker {
    context: Shared,
    inbox: Arc<Inbox>,
    /// The pod with what it has been allotted.
    pod: Arc<Pod>,
    /// The pod as the API has it, while that asks for something else.
    wish: Option<Arc<Pod>>,
    /// The copy in the API, of a static pod: that is where the status goes.
    mirror: Option<Arc<Pod>>,
    resize: status::Resize,
    freed: tokio::sync::watch::Receiver<u64>,
    removed: bool,
    stage: Stage,
    /// Ends what only waits, once the pod ends.
    ending: CancellationToken,
    sandboxes: Vec<String>,
    view: PodView,
    /// The sandboxes that were there at the start have been looked at.
    seen_sandboxes: bool,
    dirty: bool,
    mounted: Option<Arc<Mounted>>,
    /// The objects behind the volumes.
    held: Vec<Held>,
    next_look: Instant,
    verdict: Option<Verdict>,
    refused: bool,
    /// Seconds to end by itself of a pod that goes for the node's needs.
    evicted: Option<i64>,
    /// The pod reached its end by itself.
    ended: bool,
    waiting: HashMap<String, Waiting>,
    backoffs: Backoffs,
    /// Actions that failed: not before then again.
    retry: HashMap<String, (Instant, u32)>,
    busy: HashSet<String>,
    tasks: JoinSet<Done>,
    killing: Option<(i64, AbortHandle)>,
    starting: HashMap<String, AbortHandle>,
    /// Starts that were cut off but have not ended yet: until then they may still make files of the pod.
    cut_off: HashSet<tokio::task::Id>,
    probed: HashMap<String, Probed>,
    probes: HashMap<(String, probe::Kind), probe::Running>,
    reports: mpsc::Sender<Report>,
    inbound_reports: mpsc::Receiver<Report>,
    /// The status last made, and the one the API is known to have.
    current: PodStatus,
    sent: PodStatus,
    send_after: Option<Instant>,
    last_words: HashMap<String, String>,
    deleted: bool,
    /// The pod is new to this node: it still has to be given what it needs.
    arriving: bool,
    /// All containers are being restarted in place.
    restarting: Restarting,
    /// When the pod was first seen, until it has run.
    seen: Option<std::time::Instant>,
}

impl Worker {
    pub(crate) fn new(context: Shared, inbox: Arc<Inbox>, pod: Arc<Pod>, sandboxes: Vec<String>) -> Self {
        let (reports, inbound_reports) = mpsc::channel(16);
        let current = pod.status.clone().unwrap_or_default();
        let allotted = Arc::new(context.allocations.adopt(&pod));
        let backoffs = Backoffs::up_to(context.config.max_restart_period);
        Worker {
            wish: Some(pod),
            mirror: None,
            resize: status::Resize::default(),
            freed: context.allocations.freed(),
            context,
            inbox,
            removed: false,
            stage: Stage::Running,
            ending: CancellationToken::new(),
            dirty: !sandboxes.is_empty(),
            seen_sandboxes: sandboxes.is_empty(),
            sandboxes,
            view: PodView::default(),
            mounted: None,
            held: Vec::new(),
            next_look: Instant::now() + SAFETY_LOOK,
            verdict: None,
            refused: false,
            evicted: None,
            ended: false,
            waiting: HashMap::new(),
            backoffs,
            retry: HashMap::new(),
            busy: HashSet::new(),
            tasks: JoinSet::new(),
            killing: None,
            starting: HashMap::new(),
            cut_off: HashSet::new(),
            probed: HashMap::new(),
            probes: HashMap::new(),
            reports,
            inbound_reports,
            sent: current.clone(),
            current,
            send_after: None,
            last_words: HashMap::new(),
            deleted: false,
            arriving: false,
            restarting: Restarting::No,
            seen: Some(std::time::Instant::now()),
            pod: allotted,
        }
    }

    /// Refuses the pod: it fails without ever having run.
    pub(crate) fn refused(mut self, verdict: Verdict) -> Self {
        self.context.recorder.warning(events::pod(&self.pod), &verdict.reason, verdict.message.clone());
        self.verdict = Some(verdict);
        self.refused = true;
        self.stage = Stage::Cleaning;
        self
    }

    /// The pod is new to this node.
    pub(crate) fn arriving(mut self) -> Self {
        self.arriving = true;
        self
    }

    /// The API does not have the pod: it only has to go.
    pub(crate) fn orphaned(mut self) -> Self {
        self.removed = true;
        self
    }

    /// Runs until nothing of the pod is left.
    pub(crate) async fn run(mut self) {
        self.ask();
        if let Some(cgroups) = self.context.cgroups.as_ref().filter(|_| !self.sandboxes.is_empty()) {
            cgroups.bound(&self.pod);
        }
        if self.arriving {
            let context = self.context.clone();
            if let Some(verdict) = context.pinning.admit(&context, &self.pod).await {
                self = self.refused(verdict);
            }
        }
        loop {
            if self.dirty {
                self.refresh().await;
            }
            if self.seen_sandboxes {
                self.advance();
            } else {
                // What may run is not to be taken for what does not.
                continue;
            }
            if self.stage == Stage::Finished && (self.removed || self.deleted) && self.busy.is_empty() {
                break;
            }
            self.wait().await;
        }
        self.remove_records().await;
        self.context.tokens.forget(podutil::uid(&self.pod));
        let own = crate::metrics::labels(&[("pod_uid", podutil::uid(&self.pod))]);
        self.context.metrics.forget(crate::metrics::PROBES, &own);
        self.context.allocations.release(podutil::uid(&self.pod));
        self.context.pinning.release(&self.pod);
        self.context.devices.release(podutil::uid(&self.pod));
    }

    async fn wait(&mut self) {
        let until = self.wake_at();
        let renewable = self.stage == Stage::Running && !self.blocked(VOLUMES);
        tokio::select! {
            () = self.inbox.notified() => self.read_inbox(),
            Some(done) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => match done {
                // It came to its end all the same; its name may be that of another by now.
                Ok((id, _)) if self.cut_off.remove(&id) => self.dirty = true,
                Ok((_, done)) => self.note(done),
                Err(error) if error.is_cancelled() => drop(self.cut_off.remove(&error.id())),
                Err(error) => {
                    self.cut_off.remove(&error.id());
                    tracing::error!(%error, pod = podutil::name(&self.pod), "an action panicked");
                    self.busy.clear();
                    self.dirty = true;
                }
            },
            Some(report) = self.inbound_reports.recv() => self.note_report(report),
            // Content changed behind a volume: it is set up again beside the running containers.
            () = changed(&mut self.held), if renewable => self.renew_volumes(),
            // What another pod gave back may be enough for what this one waits for.
            Ok(()) = self.freed.changed(), if self.resize.pending.is_some() => self.ask(),
            () = tokio::time::sleep_until(until) => {
                if Instant::now() >= self.next_look {
                    self.next_look = Instant::now() + SAFETY_LOOK;
                    self.dirty = true;
                }
            }
        }
    }

    fn read_inbox(&mut self) {
        let news = self.inbox.take();
        if let Some(pod) = news.pod {
            let metadata_changed = pod.metadata.labels != self.pod.metadata.labels
                || pod.metadata.annotations != self.pod.metadata.annotations;
            self.wish = Some(pod);
            self.ask();
            if metadata_changed && self.mounted.is_some() {
                self.renew_volumes();
            }
        }
        if let Some(copy) = news.mirror {
            let uid = |pod: &Option<Arc<Pod>>| pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
            if uid(&copy) != uid(&self.mirror) {
                self.sent = copy.as_ref().and_then(|copy| copy.status.clone()).unwrap_or_default();
            }
            self.mirror = copy;
        }
        if let Some((verdict, grace)) = news.evict.filter(|_| self.stage == Stage::Running) {
            self.verdict = Some(verdict);
            self.evicted = Some(grace);
        }
        self.removed |= news.removed;
        self.dirty |= news.runtime;
    }

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let mut at = self.next_look;
        for (retry, _) in self.retry.values().filter(|(retry, _)| *retry > now) {
            at = at.min(*retry);
        }
        if let Some(send) = self.send_after.filter(|_| !self.blocked(STATUS)) {
            at = at.min(send);
        }
        let soon = |time: Timestamp| {
            now + Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default()
        };
        if let Some(deadline) = self.deadline().filter(|_| self.stage == Stage::Running) {
            at = at.min(soon(deadline));
        }
        if let Some(renew) = self.mounted.as_ref().and_then(|mounted| mounted.renew_at)
            && self.stage == Stage::Running
            && !self.blocked(VOLUMES)
        {
            at = at.min(soon(renew));
        }
        at.max(now + Duration::from_millis(1))
    }

    async fn refresh(&mut self) {
        match self.context.cri.view(&self.sandboxes).await {
            Ok(mut view) => {
                last_words::fill(&mut view, &mut self.last_words).await;
                self.view = view;
                self.dirty = false;
                self.seen_sandboxes = true;
            }
            Err(status) => {
                tracing::warn!(status = status.message(), "cannot read the state of a pod from the runtime");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        let seconds = spec(&self.pod).active_deadline_seconds?;
        let start = self.current.start_time.as_ref()?.0;
        Some(start + jiff::SignedDuration::from_secs(seconds))
    }

    /// Looks at the whole and starts what has to be done.
    fn advance(&mut self) {
        let now = Timestamp::now();
        if self.stage == Stage::Running && self.deadline().is_some_and(|deadline| deadline <= now) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.context.recorder.normal(events::pod(&self.pod), "DeadlineExceeded", message.clone());
            self.verdict = Some(Verdict { reason: "DeadlineExceeded".to_owned(), message });
        }
        self.sync_probes();
        self.make_status(now);
        let terminal = matches!(self.current.phase.as_deref(), Some("Failed" | "Succeeded"));
        if self.stage == Stage::Running
            && (podutil::deleting(&self.pod) || self.removed || self.verdict.is_some() || terminal)
        {
            self.ended |= terminal;
            self.stage = Stage::Terminating;
            self.ending.cancel();
            // Nothing more is to start; what a cut-off start leaves behind goes with the sandbox.
            for (name, task) in self.starting.drain() {
                task.abort();
                self.cut_off.insert(task.id());
                self.busy.remove(&name);
            }
        }
        if self.stage == Stage::Running {
            self.act(now);
        }
        if self.stage == Stage::Terminating {
            self.terminate();
        }
        if self.stage == Stage::Cleaning && !self.blocked(CLEAN) {
            self.clean();
        }
        self.make_status(now);
        self.send_status();
    }

    fn blocked(&self, key: &str) -> bool {
        self.busy.contains(key) || self.retry.get(key).is_some_and(|(at, _)| *at > Instant::now())
    }

    fn spawn(&mut self, key: &str, action: impl Future<Output = Done> + Send + 'static) -> AbortHandle {
        self.busy.insert(key.to_owned());
        self.tasks.spawn(action)
    }

    fn act(&mut self, now: Timestamp) {
        if self.mounted.is_none() {
            if !self.blocked(VOLUMES) {
                self.renew_volumes();
            }
        } else if self.mounted.as_ref().and_then(|mounted| mounted.renew_at).is_some_and(|at| at <= now)
            && !self.blocked(VOLUMES)
        {
            self.renew_volumes();
        }
        let plan = plan::plan(&plan::Inputs {
            pod: &self.pod,
            view: &self.view,
            probes: &self.probed,
            busy: &self.busy,
            backoffs: &self.backoffs,
            rules: self.context.rules,
            now,
        });
        if let Some((name, since)) = plan.reset {
            self.reset(&name, since, now);
            return;
        }
        if plan.kill_pod {
            // Either everything is over, which the status shows by now, or the sandbox has to be replaced.
            if plan.create_sandbox.is_some() && !self.busy.contains(POD) {
                if self.view.sandbox.is_some() && !self.view.any_running() {
                    self.create_sandbox(plan.create_sandbox.unwrap_or(0));
                } else {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.context.recorder.normal(events::pod(&self.pod), "SandboxChanged", message);
                    self.stop_all(spec(&self.pod).termination_grace_period_seconds.unwrap_or(30));
                }
            } else if plan.create_sandbox.is_none() && !self.view.any_running() {
                self.ended = true;
                self.stage = Stage::Terminating;
                self.ending.cancel();
            } else if plan.create_sandbox.is_none() && !self.busy.contains(POD) {
                // Only sidecars are left.
                self.stop_all(spec(&self.pod).termination_grace_period_seconds.unwrap_or(30));
            }
            return;
        }
        if let Some(attempt) = plan.create_sandbox {
            self.create_sandbox(attempt);
            return;
        }
        for kill in plan.kill {
            self.kill(kill);
        }
        if !plan.resize.is_empty() {
            self.carry_out_resize(&plan.resize);
        }
        if self.mounted.is_none() {
            return;
        }
        for start in plan.start {
            self.start(start, now);
        }
        for (name, wait) in plan.wait {
            self.crash_loop(&name, wait.delay);
            let at = Instant::now() + wait.remaining;
            self.retry.insert(name, (at, 0));
        }
    }

    fn crash_loop(&mut self, name: &str, delay: Duration) {
        if self.waiting.get(name).is_some_and(|waiting| waiting.reason == "CrashLoopBackOff") {
            return;
        }
        let described = podutil::described(&self.pod);
        let text = if delay.as_secs() < 60 {
            format!("{}s", delay.as_secs())
        } else {
            format!("{}m{}s", delay.as_secs() / 60, delay.as_secs() % 60)
        };
        let message = format!("back-off {text} restarting failed container={name} pod={described}");
        if let Some((_, kind)) = podutil::container(&self.pod, name) {
            let object = events::container(&self.pod, kind, name);
            let event = format!("Back-off restarting failed container {name} in pod {described}");
            self.context.recorder.warning(object, "BackOff", event);
        }
        self.waiting.insert(name.to_owned(), Waiting { reason: "CrashLoopBackOff".to_owned(), message });
    }

    fn renew_volumes(&mut self) {
        if self.busy.contains(VOLUMES) || self.stage != Stage::Running {
            return;
        }
        let (context, pod, ips) = (self.context.clone(), self.pod.clone(), self.view.ips());
        let ending = self.ending.clone();
        self.spawn(VOLUMES, async move {
            let begun = std::time::Instant::now();
            let result = crate::volumes::setup(&context, &pod, &ips, &ending).await;
            let status = if result.is_ok() { "success" } else { "fail-unknown" };
            let pairs = [("migrated", "false"), ("operation_name", "volume_mount"), ("status", status)];
            context.metrics.took(crate::metrics::STORAGE_OPERATIONS, &pairs, begun.elapsed());
            Done::Volumes(result)
        });
    }

    fn create_sandbox(&mut self, attempt: u32) {
        if self.blocked(SANDBOX) || self.busy.contains(POD) {
            return;
        }
        let (context, pod) = (self.context.clone(), self.pod.clone());
        self.spawn(SANDBOX, async move { Done::Sandbox(start::sandbox(&context, &pod, attempt).await) });
    }

    fn start(&mut self, start: Start, now: Timestamp) {
        if self.blocked(&start.name) {
            return;
        }
        let Some((container, _)) = podutil::container(&self.pod, &start.name) else { return };
        let Some(mounted) = self.mounted.clone() else { return };
        if let Some(since) = start.after {
            self.backoffs.next(&plan::backoff_key(&container), since, now);
        }
        let Some(sandbox) = self.view.sandbox.clone() else { return };
        let target = spec(&self.pod)
            .ephemeral_containers
            .iter()
            .flatten()
            .find(|ephemeral| ephemeral.name == start.name)
            .and_then(|ephemeral| ephemeral.target_container_name.as_deref())
            .and_then(|target| self.view.container(target))
            .map(|status| status.id.clone());
        let ips = if podutil::host_network(&self.pod) {
            self.context.config.node_ips.iter().map(ToString::to_string).collect()
        } else {
            self.view.ips()
        };
        let order = start::Order {
            context: self.context.clone(),
            pod: self.pod.clone(),
            container,
            start: start.clone(),
            sandbox,
            mounted,
            ips,
            target,
        };
        let name = start.name.clone();
        let task = self.spawn(&name, async move {
            let result = order.carry_out().await;
            Done::Start(start, result)
        });
        self.starting.insert(name, task);
    }
}

/// Resolves when any of the objects changes, and takes note of the change.
async fn changed(held: &mut [Held]) {
    let waits = held.iter_mut().map(|held| {
        Box::pin(async move {
            // A closed channel means that the object is followed no more; then nothing will change.
            if held.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    let waits: Vec<_> = waits.collect();
    if waits.is_empty() {
        std::future::pending::<()>().await;
    }
    futures::future::select_all(waits).await;
}
