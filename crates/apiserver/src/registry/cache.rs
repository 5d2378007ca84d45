//! The watch cache of one resource: the current objects in key order, a bounded window of recent events, and a bell that
//! watchers wait on. A watcher holds no queue, only the revision it has seen; a slow one costs nothing.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::object::{Change, Object};

/// Bounds of the window; a watcher that falls behind them reads the store's history or is told 410.
const WINDOW_EVENTS: usize = 16_384;
const WINDOW_BYTES: usize = 32 << 20;

/// One change of one object.
#[derive(Clone, Debug)]
pub struct CacheEvent {
    pub revision: u64,
    pub change: Change,
    /// The object after the change, or as it was when it was deleted, at the deletion's revision.
    pub object: Arc<Object>,
    pub previous: Option<Arc<Object>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    events: VecDeque<CacheEvent>,
    bytes: usize,
    /// The size of all objects.
    total: usize,
    /// Events after this revision are all in the window.
    window_from: u64,
    /// The revision of the last change, or before which nothing is known any more.
    changed: u64,
}

/// The objects of one resource.
pub struct Cache {
    state: RwLock<State>,
    bell: watch::Sender<u64>,
}

/// What a watcher finds in the window.
pub enum Recent {
    Events(Vec<CacheEvent>),
    /// The window does not reach back so far.
    Older,
}

impl Cache {
    /// An empty cache whose window begins after a revision.
    pub fn new(revision: u64) -> Self {
        let state = State { window_from: revision, ..State::default() };
        Self { state: RwLock::new(state), bell: watch::Sender::new(revision) }
    }

    /// Puts an object that was there before the window begins.
    pub fn load(&self, object: Object) {
        let mut state = self.state.write();
        state.changed = state.changed.max(object.revision);
        state.total += object.size();
        if let Some(old) = state.objects.insert(object.key.clone(), Arc::new(object)) {
            state.total -= old.size();
        }
    }

    /// Applies the changes of one commit, in order.
    pub fn apply(&self, changes: impl Iterator<Item = (Arc<str>, u64, Option<Object>)>) {
        let mut state = self.state.write();
        for (key, revision, current) in changes {
            let event = match current {
                Some(object) => {
                    let object = Arc::new(object);
                    state.total += object.size();
                    let previous = state.objects.insert(key, object.clone());
                    state.total -= previous.as_ref().map_or(0, |p| p.size());
                    let change = if previous.is_some() { Change::Modified } else { Change::Added };
                    CacheEvent { revision, change, object, previous }
                }
                None => {
                    let Some(previous) = state.objects.remove(&key) else { continue };
                    state.total -= previous.size();
                    let object = Arc::new(previous.at(revision, Change::Deleted));
                    CacheEvent { revision, change: Change::Deleted, object, previous: Some(previous) }
                }
            };
            state.changed = revision;
            state.bytes += event.object.size();
            state.events.push_back(event);
        }
        while state.events.len() > WINDOW_EVENTS || (state.bytes > WINDOW_BYTES && state.events.len() > 1) {
            let Some(old) = state.events.pop_front() else { break };
            state.bytes -= old.object.size();
            state.window_from = old.revision;
        }
        let changed = state.changed;
        drop(state);
        self.bell.send_replace(changed);
    }

    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state.read().objects.get(key).cloned()
    }

    /// The objects in key order whose key begins with `prefix`, from `start` on.
    pub fn list(&self, prefix: &str, start: Option<&str>) -> (Vec<Arc<Object>>, u64) {
        let state = self.state.read();
        let from = start.filter(|s| *s > prefix).unwrap_or(prefix);
        let range = state.objects.range::<str, _>((Bound::Included(from), Bound::Unbounded));
        let items = range.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, o)| o.clone()).collect();
        (items, state.changed)
    }

    /// How many objects there are, under a prefix.
    pub fn count(&self) -> usize {
        self.state.read().objects.len()
    }

    /// The mean size of an object in bytes.
    pub fn mean_size(&self) -> usize {
        let state = self.state.read();
        state.total / state.objects.len().max(1)
    }

    /// The revision from which on the state is the present one and may be shown.
    pub fn changed(&self) -> u64 {
        self.state.read().changed
    }

    /// States before this revision are not shown any more, as the store has forgotten them.
    pub fn forget(&self, revision: u64) {
        let mut state = self.state.write();
        state.changed = state.changed.max(revision);
    }

    /// The events after a revision.
    pub fn since(&self, revision: u64) -> Recent {
        let state = self.state.read();
        if revision < state.window_from {
            return Recent::Older;
        }
        let start = state.events.partition_point(|event| event.revision <= revision);
        Recent::Events(state.events.range(start..).cloned().collect())
    }

    /// Rings after every change, with its revision.
    pub fn bell(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }
}
