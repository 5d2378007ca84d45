//! How many objects of each kind a namespace holds, kept by the garbage collector's watches for those who only count.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;

use super::discovery::Kind;

/// The objects of one kind.
#[derive(Default)]
struct Counts {
    /// All of them have been listed once.
    known: bool,
    by_namespace: HashMap<String, usize>,
}

#[derive(Default)]
pub(crate) struct Tally {
    /// By group and plural.
    counts: Mutex<HashMap<(String, String), Counts>>,
    /// Of each namespace with quotas, the revision of the newest of them, by its name and then the quota's.
    quotas: Mutex<HashMap<String, BTreeMap<String, u64>>>,
}

fn id(kind: &Kind) -> (String, String) {
    (kind.resource.group.clone(), kind.resource.plural.clone())
}

impl Tally {
    /// One more (or fewer) of the kind.
    pub(crate) fn note(&self, kind: &Kind, namespace: &str, more: bool) {
        let mut all = self.counts.lock();
        let counts = all.entry(id(kind)).or_default();
        let count = counts.by_namespace.entry(namespace.to_owned()).or_default();
        *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    /// The kind's objects are all known.
    pub(crate) fn know(&self, kind: &Kind) {
        self.counts.lock().entry(id(kind)).or_default().known = true;
    }

    /// The kind is gone.
    pub(crate) fn forget(&self, kind: &Kind) {
        self.counts.lock().remove(&id(kind));
    }

    /// The resources known, as group and plural.
    pub(crate) fn known(&self) -> Vec<(String, String)> {
        self.counts.lock().iter().filter(|(_, counts)| counts.known).map(|(id, _)| id.clone()).collect()
    }

    /// How many objects of a resource a namespace holds.
    pub(crate) fn count(&self, group: &str, plural: &str, namespace: &str) -> usize {
        let all = self.counts.lock();
        let counts = all.get(&(group.to_owned(), plural.to_owned()));
        counts.and_then(|counts| counts.by_namespace.get(namespace)).copied().unwrap_or_default()
    }

    /// A quota was made, or limits something else, at a revision. What was there before then admission has not counted.
    pub(crate) fn limited(&self, namespace: &str, quota: &str, revision: u64) {
        self.quotas.lock().entry(namespace.to_owned()).or_default().insert(quota.to_owned(), revision);
    }

    /// A quota is gone.
    pub(crate) fn unlimited(&self, namespace: &str, quota: &str) {
        let mut quotas = self.quotas.lock();
        if let Some(own) = quotas.get_mut(namespace) {
            own.remove(quota);
            if own.is_empty() {
                quotas.remove(namespace);
            }
        }
    }

    /// An object that a watch tells of now for the first time is older than a quota of its namespace: the quota was counted
    /// without it, and nobody else has added it.
    pub(crate) fn is_late(&self, namespace: &str, resource_version: Option<&str>) -> bool {
        let Some(revision) = resource_version.and_then(|version| version.parse::<u64>().ok()) else {
            return false;
        };
        self.quotas.lock().get(namespace).is_some_and(|own| own.values().any(|limited| revision <= *limited))
    }
}

#[test]
fn what_is_older_than_a_quota_comes_late() {
    let tally = Tally::default();
    let check = |namespace: &str, version: Option<&str>, late: bool| {
        assert_eq!(tally.is_late(namespace, version), late, "{namespace} {version:?}");
    };
    check("a", Some("4"), false);
    tally.limited("a", "small", 5);
    check("a", Some("4"), true);
    // The quota itself.
    check("a", Some("5"), true);
    check("a", Some("6"), false);
    check("b", Some("4"), false);
    check("a", None, false);
    tally.limited("a", "other", 7);
    check("a", Some("6"), true);
    tally.unlimited("a", "other");
    tally.unlimited("a", "small");
    check("a", Some("4"), false);
}
