//! Deletes Jobs some time after they have finished, where they ask for it.

use std::sync::Arc;
use std::time::Duration;

use informer::{Change, Informer, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::Client;
use kube::api::{Api, DeleteParams, Preconditions};

use super::is_finished;
use crate::kit::error::found;
use crate::kit::{Context, Result, now, plus_seconds, until};

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let jobs = context.informer::<Job>();
    let queue = Queue::new();
    let to = queue.clone();
    jobs.on_change(move |change| {
        if let Change::Applied { new, .. } = change
            && expiry(new).is_some()
        {
            to.add(Key::of(new.as_ref()));
        }
    });
    let client = context.client.clone();
    let sync = move |key: Key| sync(client.clone(), jobs.clone(), key);
    context.work("ttlafterfinished", 4, queue, sync).await;
}

fn expiry(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if !is_finished(job) || job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let mut conditions = job.status.as_ref()?.conditions.iter().flatten();
    let finished =
        conditions.find(|one| matches!(one.type_.as_str(), "Complete" | "Failed") && one.status == "True")?;
    Some(plus_seconds(finished.last_transition_time.as_ref()?.0, i64::from(seconds)))
}

async fn sync(client: Client, jobs: Arc<Informer<Job>>, key: Key) -> Result<Option<Duration>> {
    let Some(at) = jobs.get(&key).and_then(|job| expiry(&job)) else { return Ok(None) };
    let left = until(at, now());
    if left.is_some() {
        return Ok(left);
    }
    // The cached job may be older than a change of its time to live.
    let api = Api::<Job>::namespaced(client, &key.namespace);
    let Some(fresh) = api.get_opt(&key.name).await? else { return Ok(None) };
    let Some(at) = expiry(&fresh) else { return Ok(None) };
    let left = until(at, now());
    if left.is_some() {
        return Ok(left);
    }
    let params = DeleteParams::foreground().preconditions(Preconditions {
        uid: fresh.metadata.uid.clone(),
        resource_version: fresh.metadata.resource_version.clone(),
    });
    found(api.delete(&key.name, &params).await)?;
    Ok(None)
}
