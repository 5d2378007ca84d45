//! What was written and is not yet in the cache. A controller that lists what it made, and would make it again
//! if it were missing, waits until the cache has caught up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use informer::{Informer, Key, Object};
use kube::Resource;
use parking_lot::Mutex;

/// After this time a write is taken to be overtaken by another.
const LONGEST: Duration = Duration::from_secs(30);

/// By owner: the objects written, with their resource version, or `None` if deleted.
#[derive(Default)]
pub(crate) struct Written(Mutex<HashMap<Key, Entries>>);

type Entries = HashMap<Key, (Option<u64>, Instant)>;

fn version<K: Resource>(object: &K) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

impl Written {
    /// Notes a write.
    pub(crate) fn wrote<K: Resource>(&self, owner: &Key, object: &K) {
        self.note(owner, Key::of(object), Some(version(object)));
    }

    /// Notes a deletion.
    pub(crate) fn deleted(&self, owner: &Key, object: Key) {
        self.note(owner, object, None);
    }

    fn note(&self, owner: &Key, object: Key, version: Option<u64>) {
        let mut all = self.0.lock();
        all.entry(owner.clone()).or_default().insert(object, (version, Instant::now()));
    }

    /// Whether the cache shows all that was written for an owner; what it shows is forgotten.
    pub(crate) fn is_seen<K: Object>(&self, owner: &Key, cache: &Informer<K>) -> bool {
        let mut all = self.0.lock();
        let Some(entries) = all.get_mut(owner) else { return true };
        entries.retain(|object, (written, since)| {
            let cached = cache.get(object).map(|object| version(object.as_ref()));
            let seen = match written {
                Some(written) => cached.is_some_and(|cached| cached >= *written),
                None => cached.is_none(),
            };
            !seen && since.elapsed() < LONGEST
        });
        let seen = entries.is_empty();
        if seen {
            all.remove(owner);
        }
        seen
    }
}
