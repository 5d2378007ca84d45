//! The garbage collector: an object whose owners are all gone is deleted, and an owner that is deleted in the
//! foreground or that orphans waits for its dependents. The graph is kept from metadata watches of all kinds;
//! before anything is deleted the server is asked.

mod collect;
mod graph;
mod monitor;

use std::sync::Arc;
use std::time::Duration;

use informer::{Key, Queue, Recorder};
use kube::Client;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::kit::Context;
use crate::kit::discovery::Kind;
use crate::kit::tally::Tally;
use graph::Graph;

/// After a failure, or if a change of kinds was not seen, discovery is repeated.
const REDISCOVER: Duration = Duration::from_secs(30);
/// Discovery may come a little after the change of kinds that it follows.
const SECOND_LOOK: Duration = Duration::from_secs(2);

pub(crate) struct Collector {
    client: Client,
    recorder: Recorder,
    graph: Mutex<Graph>,
    kinds: Mutex<Vec<Arc<Kind>>>,
    queue: Arc<Queue<String>>,
    changed: Arc<Queue<Key>>,
    tally: Arc<Tally>,
    /// The kinds that the server has may have changed.
    rediscover: Notify,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Collector {
        client: context.client.clone(),
        recorder: context.recorder("garbage-collector-controller"),
        graph: Mutex::new(Graph::new(context.tally.clone())),
        kinds: Mutex::default(),
        queue: Queue::new(),
        changed: context.changed.clone(),
        tally: context.tally.clone(),
        rediscover: Notify::new(),
    });
    let mut monitors = monitor::Monitors::new(this.clone(), context.shutdown.clone());
    monitors.update().await;
    tokio::select! {
        () = monitors.synced() => {}
        () = context.shutdown.cancelled() => return,
    }
    let queue = this.queue.clone();
    let collector = this.clone();
    let work = move |uid: String| {
        let collector = collector.clone();
        async move { collector.sync(&uid).await }
    };
    let watching = async {
        let mut wait = None;
        loop {
            let noted = tokio::select! {
                () = this.rediscover.notified() => true,
                () = async { match wait { Some(wait) => tokio::time::sleep(wait).await, None => std::future::pending().await } } => false,
                () = context.shutdown.cancelled() => return,
            };
            let told = monitors.update().await;
            wait = if noted { Some(SECOND_LOOK) } else { (!told).then_some(REDISCOVER) };
        }
    };
    tokio::join!(queue.run("garbagecollector", 16, context.shutdown.clone(), work), watching);
}
