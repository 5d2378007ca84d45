//! Expectations: what a controller has asked for and not yet seen in its cache. While any is open, it makes
//! no more, so that a cache that lags cannot lead to too many pods.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use informer::Key;
use parking_lot::Mutex;

/// After this time an expectation is taken to be lost.
const LONGEST: Duration = Duration::from_secs(300);

struct Expected {
    creations: usize,
    deletions: HashSet<Key>,
    since: Instant,
}

/// The open expectations of one controller, by the owner's key.
#[derive(Default)]
pub(crate) struct Expectations(Mutex<HashMap<Key, Expected>>);

impl Expectations {
    /// Whether nothing is awaited any more.
    pub(crate) fn satisfied(&self, owner: &Key) -> bool {
        self.0.lock().get(owner).is_none_or(|expected| {
            (expected.creations == 0 && expected.deletions.is_empty()) || expected.since.elapsed() > LONGEST
        })
    }

    pub(crate) fn expect(&self, owner: &Key, creations: usize, deletions: impl IntoIterator<Item = Key>) {
        let expected =
            Expected { creations, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.0.lock().insert(owner.clone(), expected);
    }

    /// A creation was seen, or will never be.
    pub(crate) fn created(&self, owner: &Key) {
        if let Some(expected) = self.0.lock().get_mut(owner) {
            expected.creations = expected.creations.saturating_sub(1);
        }
    }

    /// A deletion was seen, or will never be.
    pub(crate) fn deleted(&self, owner: &Key, object: &Key) {
        if let Some(expected) = self.0.lock().get_mut(owner) {
            expected.deletions.remove(object);
        }
    }

    pub(crate) fn forget(&self, owner: &Key) {
        self.0.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_seen_once() {
        let expectations = Expectations::default();
        let owner = Key::new("default", "rs");
        assert!(expectations.satisfied(&owner));
        expectations.expect(&owner, 2, []);
        expectations.created(&owner);
        assert!(!expectations.satisfied(&owner));
        expectations.created(&owner);
        assert!(expectations.satisfied(&owner));
        let pod = Key::new("default", "pod");
        expectations.expect(&owner, 0, [pod.clone()]);
        expectations.deleted(&owner, &Key::new("default", "other"));
        assert!(!expectations.satisfied(&owner));
        expectations.deleted(&owner, &pod);
        expectations.deleted(&owner, &pod);
        assert!(expectations.satisfied(&owner));
    }
}
