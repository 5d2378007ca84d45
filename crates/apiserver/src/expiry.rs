//! When Events expire: an index by time, kept up with the cache's window, so that an Event is read once when it comes and not
//! again before its time. It holds one entry for each Event that there is, and is made anew where the window was too short.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use crate::registry::cache::{Cache, Recent};
use crate::registry::object::{Change, Object};

/// What the cache held when it was last looked at.
#[derive(Default)]
pub struct Expiry {
    /// The second after which each Event goes. An Event that was written again since goes later, which is seen then.
    due: BTreeSet<(i64, Arc<str>)>,
    of: HashMap<Arc<str>, i64>,
    /// Changes up to this revision are in the index; none before the first look.
    seen: Option<(u64, u64)>,
}

impl Expiry {
    /// Takes in what has changed, and gives the Events that are older than `ttl` seconds at `now`.
    pub fn due(&mut self, cache: &Cache, ttl: i64, now: i64) -> Vec<Arc<Object>> {
        self.follow(cache, ttl);
        let mut gone = Vec::new();
        while let Some((at, key)) = self.due.first().cloned().filter(|(at, _)| *at < now) {
            self.due.remove(&(at, key.clone()));
            self.of.remove(&key);
            let Some(object) = cache.get(&key) else { continue };
            match expires(&object, ttl) {
                later if later >= now => self.add(key, later),
                _ => gone.push(object),
            }
        }
        gone
    }

    /// One that could not be removed is looked at again the next time.
    pub fn again(&mut self, object: &Object, now: i64) {
        self.add(object.key.clone(), now);
    }

    fn follow(&mut self, cache: &Cache, ttl: i64) {
        let epoch = cache.epoch();
        let recent = self.seen.filter(|(of, _)| *of == epoch).map(|(_, seen)| cache.since(seen));
        let Some(Recent::Events(events)) = recent else {
            self.refill(cache, ttl, epoch);
            return;
        };
        for event in events {
            self.seen = Some((epoch, event.revision));
            match event.change {
                Change::Deleted => self.forget(&event.object.key),
                _ => self.note(&event.object, ttl),
            }
        }
    }

    fn refill(&mut self, cache: &Cache, ttl: i64, epoch: u64) {
        let (objects, changed) = cache.list("", None);
        let due: Vec<(Arc<str>, i64)> = objects
            .iter()
            .map(|object| {
                let known = self.of.get(&object.key).copied();
                (object.key.clone(), known.unwrap_or_else(|| expires(object, ttl)))
            })
            .collect();
        (self.due, self.of) = Default::default();
        due.into_iter().for_each(|(key, at)| self.add(key, at));
        self.seen = Some((epoch, changed));
    }

    fn note(&mut self, object: &Object, ttl: i64) {
        if !self.of.contains_key(&object.key) {
            self.add(object.key.clone(), expires(object, ttl));
        }
    }

    fn add(&mut self, key: Arc<str>, at: i64) {
        self.of.insert(key.clone(), at);
        self.due.insert((at, key));
    }

    fn forget(&mut self, key: &Arc<str>) {
        if let Some(at) = self.of.remove(key) {
            self.due.remove(&(at, key.clone()));
        }
    }
}

/// The second after which an Event is too old: `ttl` after the newest of its times. One without any is too old already.
fn expires(event: &Object, ttl: i64) -> i64 {
    let value = event.value().unwrap_or_default();
    let times = ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    let newest = times.iter().filter_map(|p| value.pointer(p)?.as_str()?.parse::<Timestamp>().ok()).max();
    newest.map_or(i64::MIN, |at| at.as_second().saturating_add(ttl))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cache: &Cache, key: &str, revision: u64, second: i64) {
        let at = Timestamp::from_second(second).expect("a time");
        let stored =
            format!("{{\"kind\":\"Event\",\"metadata\":{{\"name\":\"{key}\"}},\"lastTimestamp\":\"{at}\"}}");
        let object = Object::from_stored(key.into(), revision, stored.as_bytes(), Change::Added);
        cache.apply([(Arc::from(key), revision, Some(object.expect("metadata")))].into_iter());
    }

    fn delete(cache: &Cache, key: &str, revision: u64) {
        cache.apply([(Arc::from(key), revision, None)].into_iter());
    }

    #[test]
    fn each_goes_when_its_last_time_is_past() {
        let cache = Cache::new(1);
        let mut expiry = Expiry::default();
        let mut due = |cache: &Cache, now: i64| -> Vec<String> {
            expiry.due(cache, 100, now).iter().map(|object| object.key.to_string()).collect()
        };
        put(&cache, "n/a", 2, 1000);
        put(&cache, "n/b", 3, 1010);
        assert!(due(&cache, 1100).is_empty());
        // One is written again, one comes and goes.
        put(&cache, "n/a", 4, 1050);
        put(&cache, "n/c", 5, 1000);
        delete(&cache, "n/c", 6);
        assert_eq!(due(&cache, 1111), ["n/b"]);
        delete(&cache, "n/b", 7);
        assert!(due(&cache, 1150).is_empty());
        assert_eq!(due(&cache, 1151), ["n/a"]);
        // The cache is read anew, or has forgotten more than was seen.
        cache.replace(Vec::new(), 10);
        put(&cache, "n/d", 11, 2000);
        assert!(due(&cache, 2100).is_empty());
        for revision in 12..40_000 {
            put(&cache, "n/e", revision, 2050);
        }
        delete(&cache, "n/d", 40_000);
        assert!(due(&cache, 2150).is_empty());
        assert_eq!(due(&cache, 2151), ["n/e"]);
        delete(&cache, "n/e", 40_001);
        assert!(due(&cache, 9999).is_empty());
        assert_eq!((expiry.due.len(), expiry.of.len()), (0, 0));
    }
}
