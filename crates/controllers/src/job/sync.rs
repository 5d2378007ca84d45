//! One look at a job: count what has ended, make or delete pods, and write the status.

mod view;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use informer::{EventType, Key, reference};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use scheduling::selector::{labels_of, matches};

use super::pods::new_pod;
use super::rules::{
    Indexes, TRACKING, Verdict, backoff, finished_at, format_indexes, has_condition, index_of, is_failed,
    is_finished, is_indexed, judge, replaces_only_failed, restarts_exceed, succeeds,
};
use super::{Controller, has_finalizer};
use crate::kit::pods::{is_active, is_ready, is_terminating, phase};
use crate::kit::refs::claim;
use crate::kit::{Result, now, plus_seconds, time, until};

const BURST: usize = 500;
const MOST_UNCOUNTED: usize = 500;

/// How the job ends.
#[derive(Clone)]
struct End {
    success: bool,
    reason: String,
    message: String,
}

impl End {
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self { success: false, reason: reason.into(), message: message.into() }
    }
}

/// What is worked out along the way.
struct View {
    job: Arc<Job>,
    spec: JobSpec,
    status: JobStatus,
    pods: Vec<Arc<Pod>>,
    active: Vec<Arc<Pod>>,
    /// Pods with a finalizer that was not taken off just now.
    tracked: HashSet<String>,
    succeeded: i32,
    failed: i32,
    indexes: Indexes,
    failed_indexes: Option<Indexes>,
    /// The failed pod of each index that waits to be replaced.
    waiting: BTreeMap<i32, Arc<Pod>>,
    terminating: i32,
    ready: i32,
    now: Timestamp,
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn len<T>(items: &[T]) -> i32 {
    i32::try_from(items.len()).unwrap_or(i32::MAX)
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()).filter(|text: &String| !text.is_empty()),
        message: Some(message.into()).filter(|text: &String| !text.is_empty()),
        last_probe_time: Some(time(now)),
        last_transition_time: Some(time(now)),
    }
}

/// Sets a condition; whether that changed anything.
fn set(status: &mut JobStatus, new: JobCondition) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|one| one.type_ == new.type_) {
        Some(old) if old.status == new.status && old.reason == new.reason && old.message == new.message => {
            false
        }
        Some(old) => {
            *old = new;
            true
        }
        None if new.status == "False" => false,
        None => {
            conditions.push(new);
            true
        }
    }
}

impl Controller {
    pub(super) async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(job) = self.jobs.get(&key) else {
            self.expectations.forget(&key);
            self.released.lock().remove(&key);
            self.failures.lock().remove(&key);
            return Ok(None);
        };
        let spec = job.spec.clone().unwrap_or_default();
        let job_uid = job.metadata.uid.clone().unwrap_or_default();
        if spec.managed_by.as_deref().is_some_and(|one| one != "kubernetes.io/job-controller") {
            return Ok(None);
        }
        if is_finished(&job) {
            self.failures.lock().remove(&key);
            self.finished.lock().remove(&job_uid);
            return Ok(None);
        }
        if self.finished.lock().contains(&job_uid) {
            return Ok(None);
        }
        let settled = self.expectations.satisfied(&key);
        let mut view = self.view(&key, job, spec).await?;
        let mut again = None;
        let suspended = view.spec.suspend == Some(true);
        let before = view.status.clone();
        if view.status.start_time.is_none() && !suspended {
            view.status.start_time = Some(time(view.now));
        }

        let mut end = self.end(&view, &mut again);
        let mut managed = Ok(());
        let mut active = len(&view.active);
        if end.is_some() {
            let doomed = view.active.clone();
            managed = self.delete(&key, &view.job, &doomed, false).await;
            if managed.is_ok() {
                view.terminating += len(&doomed);
                active = 0;
                view.ready = 0;
            }
            if managed.is_err() || !settled {
                end = None;
            }
        } else {
            let manages = settled && view.job.metadata.deletion_timestamp.is_none();
            if manages {
                let (left, wait, result) = self.manage(&key, &mut view).await;
                active = left;
                managed = result;
                again = again.into_iter().chain(wait).min();
            }
            let complete = match view.spec.completions {
                None => view.succeeded > 0 && active == 0,
                Some(wanted) => view.succeeded >= wanted && active == 0,
            };
            if complete {
                let (reason, message) = ("CompletionsReached", "Reached expected number of succeeded pods");
                end = Some(End { success: true, reason: reason.into(), message: message.into() });
            } else if manages {
                self.note_suspension(&mut view, suspended);
            }
        }
        view.status.active = Some(active);
        view.status.ready = Some(view.ready);
        view.status.terminating = Some(view.terminating);
        self.track(&key, &mut view, before, end).await?;
        managed?;
        Ok(again)
    }

    async fn view(&self, key: &Key, job: Arc<Job>, spec: JobSpec) -> Result<View> {
        let mut all = self.pods.controlled_by(job.metadata.uid.as_deref().unwrap_or_default());
        all.extend(self.pods.orphans(&key.namespace));
        let selector = spec.selector.clone().unwrap_or_default();
        let selects = |pod: &Pod| matches(&selector, labels_of(&pod.metadata.labels));
        let mut pods = claim(&self.client, job.as_ref(), all, selects, &[TRACKING]).await?;
        if is_indexed(&spec) {
            pods.sort_by_key(|pod| index_of(pod, &spec));
        }
        let released = self.released.lock().get(key).cloned().unwrap_or_default();
        let tracked: HashSet<String> = pods
            .iter()
            .filter(|pod| has_finalizer(pod) && !released.contains(uid(pod)))
            .map(|pod| uid(pod).to_owned())
            .collect();
        let status = job.status.clone().unwrap_or_default();
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let (done, lost) = (uncounted.succeeded.unwrap_or_default(), uncounted.failed.unwrap_or_default());
        let indexed = is_indexed(&spec);
        let valid =
            |pod: &&Arc<Pod>| tracked.contains(uid(pod)) && (!indexed || index_of(pod, &spec).is_some());
        let is_done = |pod: &&Arc<Pod>| phase(pod) == "Succeeded" && !done.iter().any(|one| one == uid(pod));
        let new_done: Vec<_> = pods.iter().filter(valid).filter(is_done).cloned().collect();
        let new_lost: Vec<_> = pods
            .iter()
            .filter(valid)
            .filter(|pod| is_failed(pod, &spec) && !lost.iter().any(|one| one == uid(pod)))
            .cloned()
            .collect();
        self.note_failures(key, &new_done, &new_lost);
        let counted = new_lost.iter().filter(|pod| judge(pod, &spec) != Verdict::Ignore).count();
        let active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
        let mut view = View {
            succeeded: status.succeeded.unwrap_or_default() + len(&new_done) + len(&done),
            failed: status.failed.unwrap_or_default()
                + i32::try_from(counted).unwrap_or(i32::MAX)
                + len(&lost),
            terminating: len(&pods.iter().filter(|pod| is_terminating(pod)).collect::<Vec<_>>()),
            ready: len(&active.iter().filter(|pod| is_ready(pod)).collect::<Vec<_>>()),
            indexes: Indexes::new(),
            failed_indexes: None,
            waiting: BTreeMap::new(),
            now: now(),
            job,
            spec,
            status,
            pods,
            active,
            tracked,
        };
        if indexed {
            view.count_indexes();
        }
        Ok(view)
    }

    /// Keeps how often in a row pods have failed.
    fn note_failures(&self, key: &Key, done: &[Arc<Pod>], lost: &[Arc<Pod>]) {
        let mut failures = self.failures.lock();
        let (count, last) = failures.entry(key.clone()).or_default();
        let success = done.iter().filter_map(|pod| finished_at(pod)).max();
        if !done.is_empty() {
            *count = 0;
            *last = None;
        }
        for pod in lost {
            let at = finished_at(pod).unwrap_or_else(now);
            // Seen before, as the status could not be written then.
            if last.is_some_and(|last| at <= last) || success.is_some_and(|success| at < success) {
                continue;
            }
            *count += 1;
            *last = Some(at);
        }
    }

    fn end(&self, view: &View, again: &mut Option<Duration>) -> Option<End> {
        let noted = |kind: &str| {
            let conditions = view.status.conditions.iter().flatten();
            conditions.into_iter().find(|one| one.type_ == kind && one.status == "True").map(|one| End {
                success: kind == "SuccessCriteriaMet",
                reason: one.reason.clone().unwrap_or_default(),
                message: one.message.clone().unwrap_or_default(),
            })
        };
        if let Some(end) = noted("SuccessCriteriaMet").or_else(|| noted("FailureTarget")) {
            return Some(end);
        }
        let spec = &view.spec;
        let fatal =
            view.pods.iter().filter(|pod| is_failed(pod, spec)).find_map(|pod| match judge(pod, spec) {
                Verdict::FailJob(message) => Some(message),
                _ => None,
            });
        if let Some(message) = fatal {
            return Some(End::failure("PodFailurePolicy", message));
        }
        if view.failed > spec.backoff_limit.unwrap_or(6) || restarts_exceed(spec, &view.pods) {
            let message = "Job has reached the specified backoff limit";
            return Some(End::failure("BackoffLimitExceeded", message));
        }
        if let (Some(seconds), Some(start), false) =
            (spec.active_deadline_seconds, &view.status.start_time, spec.suspend == Some(true))
        {
            match until(plus_seconds(start.0, seconds), view.now) {
                None => {
                    let message = "Job was active longer than specified deadline";
                    return Some(End::failure("DeadlineExceeded", message));
                }
                left => *again = left,
            }
        }
        if let Some(failed) = &view.failed_indexes {
            let completions = usize::try_from(spec.completions.unwrap_or_default()).unwrap_or_default();
            let most = spec.max_failed_indexes.and_then(|most| usize::try_from(most).ok());
            if most.is_some_and(|most| failed.len() > most) {
                let message = "Job has exceeded the specified maximal number of failed indexes";
                return Some(End::failure("MaxFailedIndexesExceeded", message));
            }
            if !failed.is_empty() && failed.len() + view.indexes.len() >= completions {
                return Some(End::failure("FailedIndexes", "Job has failed indexes"));
            }
        }
        if is_indexed(spec) {
            let completions = spec.completions.unwrap_or_default();
            let message = succeeds(spec.success_policy.as_ref(), completions, &view.indexes)?;
            return Some(End { success: true, reason: "SuccessPolicy".into(), message });
        }
        None
    }

    fn note_suspension(&self, view: &mut View, suspended: bool) {
        let now = view.now;
        let (status, reason, message, event) = if suspended {
            ("True", "JobSuspended", "Job suspended", "Suspended")
        } else {
            ("False", "JobResumed", "Job resumed", "Resumed")
        };
        if set(&mut view.status, condition("Suspended", status, reason, message, now)) {
            self.recorder.event(reference(view.job.as_ref()), EventType::Normal, event, message);
            view.status.start_time = (!suspended).then(|| time(now));
        }
    }

    /// Makes or deletes pods: how many are active then, when to look again, and what went wrong.
    async fn manage(&self, key: &Key, view: &mut View) -> (i32, Option<Duration>, Result<()>) {
        let spec = view.spec.clone();
        let active = len(&view.active);
        let parallelism = spec.parallelism.unwrap_or(1);
        let wanted = if spec.suspend == Some(true) {
            0
        } else {
            match spec.completions {
                None if view.succeeded > 0 => active,
                None => parallelism,
                Some(completions) => (completions - view.succeeded).min(parallelism).max(0),
            }
        };
        let doomed = view.surplus(usize::try_from(active - wanted).unwrap_or_default());
        if !doomed.is_empty() {
            let result = self.delete(key, &view.job, &doomed, true).await;
            if result.is_ok() {
                view.terminating += len(&doomed);
                view.ready -= len(&doomed.iter().filter(|pod| is_ready(pod)).collect::<Vec<_>>());
                return (active - len(&doomed), None, Ok(()));
            }
            return (active, None, result);
        }
        let leaving = if replaces_only_failed(&spec) { view.terminating } else { 0 };
        let missing = usize::try_from(wanted - leaving - active).unwrap_or_default().min(BURST);
        if missing == 0 {
            return (active, None, Ok(()));
        }
        if spec.backoff_limit_per_index.is_none() {
            let (count, last) = self.failures.lock().get(key).copied().unwrap_or_default();
            let wait = last.and_then(|last| {
                let seconds = i64::try_from(backoff(count).as_secs()).unwrap_or(i64::MAX);
                until(plus_seconds(last, seconds), view.now)
            });
            if wait.is_some() {
                return (active, wait, Ok(()));
            }
        }
        let mut wait: Option<Duration> = None;
        let pods: Vec<Pod> = if is_indexed(&spec) {
            let mut pods = Vec::new();
            for index in view.pending().into_iter().take(missing) {
                let replaced = view.waiting.get(&index);
                if let Some(left) = replaced.and_then(|pod| view.index_wait(pod)) {
                    wait = Some(wait.map_or(left, |wait| wait.min(left)));
                    continue;
                }
                pods.push(new_pod(&view.job, Some(index), replaced.map(Arc::as_ref)));
            }
            pods
        } else {
            vec![new_pod(&view.job, None, None); missing]
        };
        if pods.is_empty() {
            return (active, wait, Ok(()));
        }
        let (created, result) = self.create(key, &view.job, pods).await;
        (active + i32::try_from(created).unwrap_or(i32::MAX), wait, result)
    }

    /// Counts the pods that have ended: notes them in the status, takes off their finalizers, and then moves
    /// them to the totals.
    async fn track(&self, key: &Key, view: &mut View, before: JobStatus, end: Option<End>) -> Result<()> {
        view.settle();
        let mut counted = Vec::new();
        let indexed = is_indexed(&view.spec);
        let uncounted = view.status.uncounted_terminated_pods.get_or_insert_default();
        let done = uncounted.succeeded.get_or_insert_default();
        let lost = uncounted.failed.get_or_insert_default();
        let mut overfull = false;
        for pod in view.pods.iter().filter(|pod| view.tracked.contains(uid(pod))) {
            let failed = is_failed(pod, &view.spec);
            let is_done = phase(pod) == "Succeeded";
            let held = view.waiting.values().any(|one| uid(one) == uid(pod));
            let leaves = view.job.metadata.deletion_timestamp.is_some()
                || end.is_some()
                || is_done
                || (failed && !held);
            if !leaves {
                continue;
            }
            counted.push(pod.clone());
            let known = |list: &[String]| list.iter().any(|one| one == uid(pod));
            let valid = !indexed || index_of(pod, &view.spec).is_some();
            if is_done && !known(lost) {
                if !indexed && !known(done) {
                    done.push(uid(pod).to_owned());
                }
            } else if (failed || end.as_ref().is_some_and(|end| !end.success))
                && valid
                && !known(lost)
                && judge(pod, &view.spec) != Verdict::Ignore
            {
                lost.push(uid(pod).to_owned());
            }
            if done.len() + lost.len() >= MOST_UNCOUNTED {
                overfull = true;
                break;
            }
        }
        if indexed {
            view.status.completed_indexes = Some(format_indexes(&view.indexes));
            view.status.succeeded = Some(i32::try_from(view.indexes.len()).unwrap_or(i32::MAX));
            view.status.failed_indexes = view.failed_indexes.as_ref().map(format_indexes);
        }
        if let Some(end) = &end {
            let kind = if end.success { "SuccessCriteriaMet" } else { "FailureTarget" };
            if !has_condition_in(&view.status, kind) {
                set(&mut view.status, condition(kind, "True", &end.reason, &end.message, view.now));
            }
        }
        let mut job = view.job.as_ref().clone();
        if !same(&before, &view.status) {
            self.write(&mut job, &view.status).await?;
        }
        let written = view.status.clone();
        let (gone, released) =
            if counted.is_empty() { (Vec::new(), Ok(())) } else { self.release(key, &counted).await };
        view.tracked.retain(|uid| !gone.contains(uid));
        view.settle();

        let mut finished = false;
        let may_finish = released.is_ok() && !overfull && view.nothing_uncounted() && view.terminating == 0;
        if let Some(end) = end.filter(|_| may_finish) {
            let kind = if end.success { "Complete" } else { "Failed" };
            set(&mut view.status, condition(kind, "True", &end.reason, &end.message, view.now));
            if end.success {
                view.status.completion_time = Some(time(view.now));
            }
            finished = true;
            let about = reference(view.job.as_ref());
            if end.success {
                self.recorder.event(about, EventType::Normal, "Completed", "Job completed");
            } else {
                self.recorder.event(about, EventType::Warning, &end.reason, end.message);
            }
        }
        if !same(&written, &view.status) {
            self.write(&mut job, &view.status).await?;
        }
        if finished {
            self.finished.lock().extend(job.metadata.uid.clone());
        }
        released
    }

    async fn write(&self, job: &mut Job, status: &JobStatus) -> Result<()> {
        job.status = Some(status.clone());
        let name = job.metadata.name.clone().unwrap_or_default();
        let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<Job>::namespaced(self.client.clone(), namespace);
        let written = api.replace_status(&name, &PostParams::default(), job).await?;
        job.metadata.resource_version = written.metadata.resource_version;
        Ok(())
    }
}

fn has_condition_in(status: &JobStatus, kind: &str) -> bool {
    has_condition(&Job { status: Some(status.clone()), ..Job::default() }, kind)
}

/// Whether two statuses say the same; what is left out is none.
fn same(a: &JobStatus, b: &JobStatus) -> bool {
    let plain = |status: &JobStatus| {
        let mut status = status.clone();
        for count in [&mut status.active, &mut status.succeeded, &mut status.failed] {
            count.get_or_insert_default();
        }
        let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
        uncounted.succeeded.get_or_insert_default();
        uncounted.failed.get_or_insert_default();
        status.conditions.get_or_insert_default();
        status.completed_indexes.get_or_insert_default();
        status
    };
    plain(a) == plain(b)
}
