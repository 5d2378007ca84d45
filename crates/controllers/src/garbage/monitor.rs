//! One metadata watch per kind, as many as the server has kinds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::quota::Charge;
use futures::{StreamExt, pin_mut};
use informer::Key;
use kube::Api;
use kube::api::{DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Collector;
use crate::kit::discovery::{Kind, kinds};

const FIRST_RETRY: Duration = Duration::from_millis(50);
/// A change of kinds is often followed by another at once.
const SETTLE: Duration = Duration::from_millis(100);

type Meta = PartialObjectMeta<DynamicObject>;

struct Monitor {
    stop: CancellationToken,
    synced: watch::Receiver<bool>,
}

pub(super) struct Monitors {
    collector: Arc<Collector>,
    shutdown: CancellationToken,
    running: HashMap<Arc<Kind>, Monitor>,
}

impl Monitors {
    pub(super) fn new(collector: Arc<Collector>, shutdown: CancellationToken) -> Self {
        Self { collector, shutdown, running: HashMap::new() }
    }

    /// Starts watches of new kinds and stops those of kinds that are gone; whether the server could tell.
    pub(super) async fn update(&mut self) -> bool {
        if !self.running.is_empty() {
            tokio::time::sleep(SETTLE).await;
        }
        let found = loop {
            match kinds(&self.collector.client).await {
                Ok(found) => break found,
                Err(error) if self.running.is_empty() => {
                    tracing::debug!(%error, "kinds are not known yet");
                    tokio::select! {
                        () = tokio::time::sleep(FIRST_RETRY * 4) => {}
                        () = self.shutdown.cancelled() => return true,
                    }
                }
                Err(_) => return false,
            }
        };
        let wanted: HashSet<Arc<Kind>> = found
            .into_iter()
            .filter(|kind| ["delete", "list", "watch"].iter().all(|verb| kind.can(verb)))
            // Events own nothing, are owned by nobody, and are many.
            .filter(|kind| kind.resource.kind != "Event")
            .map(Arc::new)
            .collect();
        self.running.retain(|kind, monitor| {
            let stays = wanted.contains(kind);
            if !stays {
                monitor.stop.cancel();
            }
            stays
        });
        *self.collector.kinds.lock() = wanted.iter().cloned().collect();
        for kind in wanted {
            if !self.running.contains_key(&kind) {
                let stop = self.shutdown.child_token();
                let (sender, synced) = watch::channel(false);
                tokio::spawn(follow(self.collector.clone(), kind.clone(), sender, stop.clone()));
                self.running.insert(kind, Monitor { stop, synced });
            }
        }
        true
    }

    /// Resolves when every kind has been listed once.
    pub(super) async fn synced(&mut self) {
        for monitor in self.running.values_mut() {
            // An error means that the watch has been stopped, as its kind is gone.
            let _ = monitor.synced.wait_for(|done| *done).await;
        }
    }
}

async fn follow(
    collector: Arc<Collector>,
    kind: Arc<Kind>,
    synced: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let api = Api::<Meta>::all_with(collector.client.clone(), &kind.resource);
    let mut known = HashSet::new();
    let mut listed = HashSet::new();
    let events = informer::follow(api, watcher::Config::default());
    pin_mut!(events);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = stop.cancelled() => break,
        };
        match event {
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(object))) => {
                listed.extend(object.metadata.uid.clone());
                apply(&collector, &kind, &mut known, &object);
            }
            Some(Ok(Event::InitDone)) => {
                for uid in known.difference(&listed).cloned().collect::<Vec<_>>() {
                    known.remove(&uid);
                    collector.remove(&uid);
                }
                collector.tally.know(&kind);
                if !synced.send_replace(true) {
                    collector.changed.add(Key::default());
                }
            }
            Some(Ok(Event::Apply(object))) => apply(&collector, &kind, &mut known, &object),
            Some(Ok(Event::Delete(object))) => {
                if let Some(uid) = &object.metadata.uid {
                    known.remove(uid);
                    collector.remove(uid);
                }
                note_count(&collector, &kind, &object);
                collector.note_kind(&kind);
            }
            Some(Err(error)) => {
                tracing::debug!(kind = kind.resource.plural, %error, "watch interrupted");
            }
            None => break,
        }
    }
    for uid in known {
        collector.remove(&uid);
    }
    collector.tally.forget(&kind);
    collector.changed.add(Key::default());
}

fn apply(collector: &Collector, kind: &Arc<Kind>, known: &mut HashSet<String>, object: &Meta) {
    let look = collector.graph.lock().apply(kind, &object.metadata);
    look.into_iter().for_each(|uid| collector.queue.add(uid));
    let meta = &object.metadata;
    let new = meta.uid.as_ref().is_some_and(|uid| known.insert(uid.clone()));
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    if new && collector.tally.is_late(namespace, meta.resource_version.as_deref()) {
        note_count(collector, kind, object);
    }
    collector.note_kind(kind);
}

/// Tells who counts that one fewer is there, or one that admission did not count. What uses more than its number is followed
/// by them themselves.
fn note_count(collector: &Collector, kind: &Kind, object: &Meta) {
    let counted = Charge::of(&kind.resource.group, &kind.resource.plural) == Charge::Count;
    if let Some(namespace) = object.metadata.namespace.as_ref().filter(|_| counted) {
        collector.changed.add(Key::new("", namespace.clone()));
    }
}

impl Collector {
    pub(super) fn remove(&self, uid: &str) {
        let look = self.graph.lock().remove(uid);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    /// A change of these kinds changes which kinds there are.
    fn note_kind(&self, kind: &Kind) {
        if matches!(kind.resource.kind.as_str(), "CustomResourceDefinition" | "APIService") {
            self.rediscover.notify_one();
        }
    }
}
