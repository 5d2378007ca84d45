//! Watches. A watch holds no queue: it remembers the revision it wants next and reads the events from there, out of the
//! window of recent events or, when it has fallen behind that, out of the log on disk. A slow reader costs nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{Error, Event, Result};

/// Events of one commit, which may span several revisions but never splits one.
#[derive(Clone)]
struct Batch {
    first: u64,
    last: u64,
    bytes: usize,
    events: Arc<[Event]>,
}

/// Where a watch finds events that have left the window.
pub(crate) trait History: Send + Sync {
    /// Events under `prefix` from `from` on, of at least one revision and about `limit` events, and the first revision
    /// that was not looked at.
    fn events(&self, prefix: Bytes, from: u64, limit: usize) -> BoxFuture<'_, Result<(Vec<Event>, u64)>>;
}

/// The window of recent events and all watches on it.
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    window_events: usize,
    window_bytes: usize,
}

struct Inner {
    batches: VecDeque<Batch>,
    events: usize,
    bytes: usize,
    revision: u64,
    closed: bool,
    watches: Vec<Weak<Shared>>,
}

struct Shared {
    prefix: Bytes,
    /// The next revision that this watch has not seen, and whether its reader has come back for more.
    position: Mutex<Position>,
    wake: Notify,
    progress: watch::Sender<u64>,
}

struct Position {
    next: u64,
    handled: bool,
}

impl Hub {
    pub(crate) fn new(revision: u64, window_events: usize, window_bytes: usize) -> Hub {
        let inner = Inner {
            batches: VecDeque::new(),
            events: 0,
            bytes: 0,
            revision,
            closed: false,
            watches: Vec::new(),
        };
        Hub { inner: Mutex::new(inner), window_events, window_bytes }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.inner.lock().revision
    }

    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        for shared in inner.watches.iter().filter_map(Weak::upgrade) {
            shared.wake.notify_one();
        }
    }

    /// Starts over at a revision: what was between is not in the window, and watches that miss it ask the history.
    pub(crate) fn reset(&self, revision: u64) {
        let mut inner = self.inner.lock();
        inner.batches.clear();
        (inner.events, inner.bytes) = (0, 0);
        inner.revision = inner.revision.max(revision);
        for shared in inner.watches.iter().filter_map(Weak::upgrade) {
            shared.wake.notify_one();
        }
    }

    /// Publishes one durable commit: the revisions `first..=last` and their events in order.
    pub(crate) fn publish(&self, first: u64, last: u64, events: Vec<Event>) {
        let bytes = events.iter().map(event_bytes).sum();
        let batch = Batch { first, last, bytes, events: events.into() };
        let mut inner = self.inner.lock();
        inner.revision = last;
        match inner.batches.back_mut() {
            // Revisions without events need no place of their own.
            Some(newest) if batch.events.is_empty() => newest.last = last,
            _ => inner.batches.push_back(batch.clone()),
        }
        inner.events += batch.events.len();
        inner.bytes += bytes;
        while inner.events > self.window_events || inner.bytes > self.window_bytes {
            let Some(old) = inner.batches.pop_front() else { break };
            inner.events -= old.events.len();
            inner.bytes -= old.bytes;
        }
        inner.watches.retain(|weak| {
            let Some(shared) = weak.upgrade() else { return false };
            shared.advance(&batch);
            true
        });
    }

    pub(crate) fn watch(self: &Arc<Hub>, prefix: Bytes, from: u64, history: Arc<dyn History>) -> Watch {
        let shared = Arc::new(Shared {
            prefix,
            position: Mutex::new(Position { next: from, handled: true }),
            wake: Notify::new(),
            progress: watch::Sender::new(from.saturating_sub(1)),
        });
        self.inner.lock().watches.push(Arc::downgrade(&shared));
        Watch { hub: self.clone(), shared, history }
    }

    /// What the window holds from `from` on.
    fn recent(&self, from: u64) -> Recent {
        let inner = self.inner.lock();
        if from > inner.revision {
            return if inner.closed { Recent::Closed } else { Recent::Wait };
        }
        match inner.batches.front() {
            Some(oldest) if oldest.first <= from => {
                let start = inner.batches.partition_point(|batch| batch.last < from);
                Recent::Batches(inner.batches.range(start..).cloned().collect(), inner.revision + 1)
            }
            _ => Recent::Older,
        }
    }
}

enum Recent {
    Batches(Vec<Batch>, u64),
    Older,
    Wait,
    Closed,
}

fn event_bytes(event: &Event) -> usize {
    let one = |kv: &Option<crate::KeyValue>| kv.as_ref().map_or(0, |kv| kv.value.len());
    event.key.len() + one(&event.current) + one(&event.previous) + 128
}

impl Shared {
    /// Moves a watch that is up to date past a commit that does not concern it, or wakes it.
    fn advance(&self, batch: &Batch) {
        let mut position = self.position.lock();
        let concerned = batch.events.iter().any(|event| event.key.starts_with(&self.prefix));
        if !concerned && position.next == batch.first {
            position.next = batch.last + 1;
            if position.handled {
                self.progress.send_replace(batch.last);
            }
        } else {
            drop(position);
            self.wake.notify_one();
        }
    }
}

/// A stream of changes. Never skips, repeats or reorders an event; where it cannot go on it says [`Error::Compacted`].
pub struct Watch {
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    history: Arc<dyn History>,
}

impl Watch {
    /// The next events, at least one, in order; all events of one revision come together. None when the store closes.
    /// Asking for more says that the events returned before have been dealt with. Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<Arc<[Event]>>> {
        loop {
            let from = {
                let mut position = self.shared.position.lock();
                if !position.handled {
                    position.handled = true;
                    self.shared.progress.send_replace(position.next - 1);
                }
                position.next
            };
            let (events, next): (Arc<[Event]>, u64) = match self.hub.recent(from) {
                Recent::Closed => return None,
                Recent::Wait => {
                    self.shared.wake.notified().await;
                    continue;
                }
                Recent::Batches(batches, next) => (self.select(&batches, from), next),
                Recent::Older => match self.history.events(self.shared.prefix.clone(), from, 1000).await {
                    Ok((events, next)) => (events.into(), next),
                    Err(error) => return Some(Err(error)),
                },
            };
            let mut position = self.shared.position.lock();
            // A commit that does not concern this watch may have moved it on meanwhile.
            position.next = position.next.max(next);
            position.handled = false;
            drop(position);
            if !events.is_empty() {
                return Some(Ok(events));
            }
        }
    }

    /// The revision up to which this watch has returned every event and been asked for more. A cache fed by it that
    /// needs to be as new as revision `r` waits for `r` here.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.shared.progress.subscribe()
    }

    fn select(&self, batches: &[Batch], from: u64) -> Arc<[Event]> {
        let wanted = |event: &Event| event.revision >= from && event.key.starts_with(&self.shared.prefix);
        if let [only] = batches
            && only.events.iter().all(wanted)
        {
            return only.events.clone();
        }
        batches.iter().flat_map(|batch| batch.events.iter()).filter(|event| wanted(event)).cloned().collect()
    }
}

impl Error {
    pub(crate) fn check_revision(requested: u64, compacted: u64, current: u64) -> Result<()> {
        if requested < compacted {
            return Err(Error::Compacted { requested, compacted });
        }
        if requested > current {
            return Err(Error::FutureRevision { requested, current });
        }
        Ok(())
    }
}
