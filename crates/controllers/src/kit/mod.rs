//! What the controllers share beside informers and queues.

pub(crate) mod discovery;
pub(crate) mod error;
pub(crate) mod expect;
pub(crate) mod history;
pub(crate) mod intstr;
pub(crate) mod pods;
pub(crate) mod refs;
pub(crate) mod tally;
pub(crate) mod written;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use informer::{Factory, Informer, Key, Object, Queue, Recorder};
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Clients, Config};
pub(crate) use error::{Error, Result};

/// What every controller is started with.
#[derive(Clone)]
pub(crate) struct Context {
    /// Acts as the controller that has the context.
    pub(crate) client: Client,
    pub(crate) clients: Clients,
    pub(crate) informers: Factory,
    pub(crate) config: Arc<Config>,
    /// Namespaces in which something was deleted that is only counted; the garbage collector sees that. The empty
    /// name stands for all namespaces: another kind has become known.
    pub(crate) changed: Arc<Queue<Key>>,
    /// The numbers of objects, kept by the garbage collector.
    pub(crate) tally: Arc<tally::Tally>,
    pub(crate) shutdown: CancellationToken,
}

impl Context {
    /// The context of one controller, which acts under its own name.
    pub(crate) fn named(&self, name: &str) -> Self {
        Self { client: (self.clients)(name), ..self.clone() }
    }

    pub(crate) fn recorder(&self, component: &'static str) -> Recorder {
        Recorder::new(self.client.clone(), component, self.shutdown.clone())
    }

    pub(crate) fn informer<K: Object>(&self) -> Arc<Informer<K>> {
        self.informers.informer()
    }

    /// Works on the keys of a queue until shutdown.
    pub(crate) async fn work<F, R>(&self, name: &'static str, limit: usize, queue: Arc<Queue<Key>>, sync: F)
    where
        F: Fn(Key) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Option<Duration>>> + Send + 'static,
    {
        queue.run(name, limit, self.shutdown.clone(), sync).await;
    }
}

/// The time now.
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// `now` as objects carry it: whole seconds.
pub(crate) fn time(at: jiff::Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    let whole = jiff::Timestamp::from_second(at.as_second()).unwrap_or(at);
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(whole)
}

/// Whole seconds since `at`.
pub(crate) fn seconds_since(at: jiff::Timestamp, now: jiff::Timestamp) -> i64 {
    now.duration_since(at).as_secs()
}

/// The time left until `at`, if it has not passed.
pub(crate) fn until(at: jiff::Timestamp, now: jiff::Timestamp) -> Option<Duration> {
    Duration::try_from(at.duration_since(now)).ok().filter(|left| !left.is_zero())
}

/// `at` plus some seconds, however many.
pub(crate) fn plus_seconds(at: jiff::Timestamp, seconds: i64) -> jiff::Timestamp {
    at.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(jiff::Timestamp::MAX)
}

/// Runs `count` calls in batches that double while all succeed, so that what cannot work is not tried often.
/// Returns how many succeeded and the first error.
pub(crate) async fn slow_start<F, R>(count: usize, call: F) -> (usize, Result<()>)
where
    F: Fn(usize) -> R,
    R: Future<Output = Result<()>> + Send + 'static,
{
    let mut done = 0;
    let mut batch = 1;
    while done < count {
        let mut running = JoinSet::new();
        for at in done..(done + batch).min(count) {
            running.spawn(call(at));
        }
        let mut failed = None;
        while let Some(result) = running.join_next().await {
            match result.unwrap_or(Err(Error::Interrupted)) {
                Ok(()) => done += 1,
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return (done, Err(error));
        }
        batch *= 2;
    }
    (done, Ok(()))
}

/// Runs calls side by side; the first error, after all have ended.
pub(crate) async fn all<R>(calls: impl IntoIterator<Item = R>) -> Result<()>
where
    R: Future<Output = Result<()>> + Send + 'static,
{
    let mut running: JoinSet<Result<()>> = calls.into_iter().collect();
    let mut result = Ok(());
    while let Some(ended) = running.join_next().await {
        let ended = ended.unwrap_or(Err(Error::Interrupted));
        if result.is_ok() {
            result = ended;
        }
    }
    result
}
