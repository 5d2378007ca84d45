//! CronJobs: a Job at each time of a schedule.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use crate::job::is_finished;
use crate::kit::error::found;
use crate::kit::refs::{controller_key, is_controlled_by, reference_to};
use crate::kit::{Context, Error, Result, now, plus_seconds, seconds_since, time, until};
use schedule::Schedule;

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Clocks that differ a little must not make us run ahead of time.
const SKEW: Duration = Duration::from_millis(100);

struct Controller {
    client: Client,
    recorder: Recorder,
    crons: Arc<Informer<CronJob>>,
    jobs: Arc<Informer<Job>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("cronjob-controller"),
        crons: context.informer(),
        jobs: context.informer(),
    });
    let queue = Queue::new();
    let (to, crons) = (queue.clone(), this.crons.clone());
    this.jobs.on_change(move |change| {
        let job = change.latest();
        if let Some((key, uid)) = controller_key::<CronJob>(&job.metadata)
            && crons.get(&key).is_some_and(|cron| cron.metadata.uid.as_deref() == Some(uid))
        {
            to.add(key);
        }
    });
    this.jobs.synced().await;
    let to = queue.clone();
    this.crons.on_change(move |change| {
        if let Change::Applied { new, .. } = change {
            to.add(Key::of(new.as_ref()));
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("cronjob", 5, queue, sync).await;
}

fn ended_at(job: &Job) -> Option<Timestamp> {
    job.status.as_ref()?.completion_time.as_ref().map(|time| time.0)
}

fn has_failed(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Failed" && one.status == "True")
}

fn job_for(cron: &CronJob, at: Timestamp) -> Job {
    let spec = cron.spec.clone();
    let meta = spec.job_template.metadata.unwrap_or_default();
    let mut name = cron.metadata.name.clone().unwrap_or_default();
    name.truncate(52);
    let mut annotations = meta.annotations.unwrap_or_default();
    let zone = spec.time_zone.as_deref().and_then(|zone| jiff::tz::TimeZone::get(zone).ok());
    let zoned = at.to_zoned(zone.unwrap_or(jiff::tz::TimeZone::UTC));
    let stamp = if zoned.offset().is_zero() {
        zoned.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    } else {
        zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    };
    annotations.insert(SCHEDULED.into(), stamp);
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}", at.as_second() / 60)),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            creation_timestamp: None,
            owner_references: Some(vec![reference_to(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec,
        status: None,
    }
}

fn job_reference(job: &Job) -> ObjectReference {
    ObjectReference { api_version: Some("batch/v1".into()), kind: Some("Job".into()), ..reference(job) }
}

impl Controller {
    fn event(&self, cron: &CronJob, kind: EventType, reason: &str, message: String) {
        self.recorder.event(reference(cron), kind, reason, message);
    }

    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(cron) = self.crons.get(&key) else { return Ok(None) };
        let uid = cron.metadata.uid.as_deref().unwrap_or_default();
        let jobs = self.jobs.controlled_by(uid);
        let mut status = cron.status.clone().unwrap_or_default();
        self.clean_up(&cron, &jobs).await?;
        self.note_ended(&cron, &jobs, &mut status).await?;
        let result = self.schedule(&cron, &jobs, &mut status).await;
        if Some(&status) != cron.status.as_ref() && status != CronJobStatus::default() {
            let mut copy = cron.as_ref().clone();
            copy.status = Some(status);
            let api = Api::<CronJob>::namespaced(self.client.clone(), &key.namespace);
            found(api.replace_status(&key.name, &PostParams::default(), &copy).await)?;
        }
        result
    }

    /// Keeps the list of running jobs and the time of the last success.
    async fn note_ended(&self, cron: &CronJob, jobs: &[Arc<Job>], status: &mut CronJobStatus) -> Result<()> {
        let mut active = status.active.take().unwrap_or_default();
        for job in jobs {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            let at = active.iter().position(|one| one.uid == job.metadata.uid);
            match (at, is_finished(job)) {
                (Some(at), true) => {
                    active.remove(at);
                    let how = if has_failed(job) { "Failed" } else { "Complete" };
                    let message = format!("Saw completed job: {name}, condition: {how}");
                    self.event(cron, EventType::Normal, "SawCompletedJob", message);
                }
                (None, false) if job.metadata.deletion_timestamp.is_none() => {
                    active.push(job_reference(job));
                }
                _ => {}
            }
            if let Some(at) = ended_at(job).filter(|_| !has_failed(job))
                && status.last_successful_time.as_ref().is_none_or(|last| last.0 < at)
            {
                status.last_successful_time = Some(time(at));
            }
        }
        let mut kept = Vec::new();
        for one in active {
            let gone = match jobs.iter().any(|job| job.metadata.uid == one.uid) {
                true => false,
                // Perhaps just made: the cache may not have it yet.
                false => {
                    let namespace = cron.metadata.namespace.as_deref().unwrap_or_default();
                    let api = Api::<Job>::namespaced(self.client.clone(), namespace);
                    let fresh = api.get_opt(one.name.as_deref().unwrap_or_default()).await?;
                    fresh.is_none_or(|job| job.metadata.uid != one.uid)
                }
            };
            if gone {
                let name = one.name.clone().unwrap_or_default();
                let message = format!("Active job went missing: {name}");
                self.event(cron, EventType::Normal, "MissingJob", message);
            } else {
                kept.push(one);
            }
        }
        status.active = Some(kept).filter(|kept| !kept.is_empty());
        Ok(())
    }

    async fn clean_up(&self, cron: &Arc<CronJob>, jobs: &[Arc<Job>]) -> Result<()> {
        let spec = cron.spec.clone();
        for (failed, limit) in [
            (false, spec.successful_jobs_history_limit.unwrap_or(3)),
            (true, spec.failed_jobs_history_limit.unwrap_or(1)),
        ] {
            let mut ended: Vec<_> =
                jobs.iter().filter(|job| is_finished(job) && has_failed(job) == failed).collect();
            let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
            ended.sort_by_key(|job| {
                let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
                (started.map(|time| time.0), job.metadata.name.clone())
            });
            for job in ended.into_iter().take(surplus) {
                self.delete_job(cron, job).await?;
            }
        }
        Ok(())
    }

    async fn delete_job(&self, cron: &CronJob, job: &Job) -> Result<()> {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let namespace = cron.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<Job>::namespaced(self.client.clone(), namespace);
        if found(api.delete(name, &DeleteParams::background()).await)?.is_some() {
            self.event(cron, EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
        }
        Ok(())
    }

    /// Starts a job if it is time; when it will be time next.
    async fn schedule(
        &self,
        cron: &Arc<CronJob>,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<Option<Duration>> {
        let spec = cron.spec.clone();
        if cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
            return Ok(None);
        }
        let schedule = match Schedule::parse(&spec.schedule, spec.time_zone.as_deref()) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {} : {error}", spec.schedule);
                self.event(cron, EventType::Warning, "UnparseableSchedule", message);
                return Ok(None);
            }
        };
        let now = now();
        let next = || schedule.next(now).and_then(|at| until(at, now)).map(|left| left + SKEW);
        let Some((at, missed)) = schedule.missed(earliest(cron, &spec, status, now), now) else {
            return Ok(next());
        };
        if missed > 100 {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.event(cron, EventType::Warning, "TooManyMissedTimes", message.into());
        }
        if spec.starting_deadline_seconds.is_some_and(|deadline| seconds_since(at, now) > deadline) {
            let message =
                format!("Missed scheduled time to start a job: {}", at.strftime("%a, %d %b %Y %H:%M:%S %z"));
            self.event(cron, EventType::Warning, "MissSchedule", message);
            return Ok(next());
        }
        let name = job_for(cron, at).metadata.name;
        let done = status.last_schedule_time.as_ref().is_some_and(|last| last.0 == at)
            || jobs.iter().any(|job| job.metadata.name == name);
        if done {
            return Ok(next());
        }
        let active = status.active.clone().unwrap_or_default();
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.event(cron, EventType::Normal, "JobAlreadyActive", message.into());
                return Ok(next());
            }
            Some("Replace") => {
                for job in jobs.iter().filter(|job| active.iter().any(|one| one.uid == job.metadata.uid)) {
                    self.delete_job(cron, job).await?;
                }
                status.active = None;
            }
            _ => {}
        }
        let namespace = cron.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<Job>::namespaced(self.client.clone(), namespace);
        let wanted = job_for(cron, at);
        let job = match api.create(&PostParams::default(), &wanted).await.map_err(Error::from) {
            Ok(job) => {
                let name = job.metadata.name.as_deref().unwrap_or_default();
                self.event(cron, EventType::Normal, "SuccessfulCreate", format!("Created job {name}"));
                job
            }
            Err(error) if error.is_namespace_terminating() => return Ok(None),
            Err(error) if error.is_already_exists() => {
                let there = api.get(wanted.metadata.name.as_deref().unwrap_or_default()).await?;
                if !is_controlled_by(&there.metadata, &cron.metadata) {
                    return Ok(next());
                }
                there
            }
            Err(error) => {
                let message = format!("Error creating job: {}", error.message());
                self.event(cron, EventType::Warning, "FailedCreate", message);
                return Err(error);
            }
        };
        if !is_finished(&job) {
            status.active.get_or_insert_default().push(job_reference(&job));
        }
        status.last_schedule_time = Some(time(at));
        Ok(next())
    }
}

/// From when on missed times count.
fn earliest(cron: &CronJob, spec: &CronJobSpec, status: &CronJobStatus, now: Timestamp) -> Timestamp {
    let last = status.last_schedule_time.as_ref().or(cron.metadata.creation_timestamp.as_ref());
    let last = last.map_or(now, |time| time.0);
    match spec.starting_deadline_seconds {
        Some(deadline) => last.max(plus_seconds(now, -deadline)),
        None => last,
    }
}
