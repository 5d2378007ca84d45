//! How many objects of each kind a namespace holds, kept by the garbage collector's watches for those who only count.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::discovery::Kind;

/// The objects of one kind.
#[derive(Default)]
struct Counts {
    /// All of them have been listed once.
    known: bool,
    by_namespace: HashMap<String, usize>,
}

/// Counts by group and plural, then by namespace.
#[derive(Default)]
pub(crate) struct Tally(Mutex<HashMap<(String, String), Counts>>);

fn id(kind: &Kind) -> (String, String) {
    (kind.resource.group.clone(), kind.resource.plural.clone())
}

impl Tally {
    /// One more (or fewer) of the kind.
    pub(crate) fn note(&self, kind: &Kind, namespace: &str, more: bool) {
        let mut all = self.0.lock();
        let counts = all.entry(id(kind)).or_default();
        let count = counts.by_namespace.entry(namespace.to_owned()).or_default();
        *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    /// The kind's objects are all known.
    pub(crate) fn know(&self, kind: &Kind) {
        self.0.lock().entry(id(kind)).or_default().known = true;
    }

    /// The kind is gone.
    pub(crate) fn forget(&self, kind: &Kind) {
        self.0.lock().remove(&id(kind));
    }

    /// The resources known, as group and plural.
    pub(crate) fn known(&self) -> Vec<(String, String)> {
        self.0.lock().iter().filter(|(_, counts)| counts.known).map(|(id, _)| id.clone()).collect()
    }

    /// How many objects of a resource a namespace holds.
    pub(crate) fn count(&self, group: &str, plural: &str, namespace: &str) -> usize {
        let all = self.0.lock();
        let counts = all.get(&(group.to_owned(), plural.to_owned()));
        counts.and_then(|counts| counts.by_namespace.get(namespace)).copied().unwrap_or_default()
    }
}
