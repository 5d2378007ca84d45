//! The pods that wait: those to try now in order of priority, those in back-off, and those that nothing has
//! changed for since they were refused. Pure: the time comes in as an argument.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use informer::Key;
use tokio::time::Instant;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// After this time a refused pod is tried again even if no change was seen that could help.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// Tried again at this time.
    Backoff(Instant),
    /// Tried again when something changes, or at the latest at this time.
    Waiting(Instant),
    /// Being tried.
    Out,
}

struct Entry {
    priority: i32,
    /// The order of arrival.
    order: u64,
    attempts: u32,
    last_try: Option<Instant>,
    place: Place,
    /// Something changed while the pod was being tried.
    moved: bool,
}

/// The queue of one scheduler.
#[derive(Default)]
pub(crate) struct PodQueue {
    entries: HashMap<Key, Entry>,
    active: BTreeSet<(Reverse<i32>, u64, Key)>,
    arrivals: u64,
}

impl PodQueue {
    /// Adds a pod, or tries it again now if it waits and its own spec changed.
    pub(crate) fn add(&mut self, key: Key, priority: i32) {
        self.arrivals += 1;
        let order = self.arrivals;
        let entry = self.entries.entry(key.clone()).or_insert(Entry {
            priority,
            order,
            attempts: 0,
            last_try: None,
            place: Place::Waiting(Instant::now()),
            moved: false,
        });
        if entry.place == Place::Out {
            entry.moved = true;
            return;
        }
        self.active.remove(&(Reverse(entry.priority), entry.order, key.clone()));
        entry.priority = priority;
        entry.place = Place::Active;
        self.active.insert((Reverse(priority), entry.order, key));
    }

    /// Whether the pod is known.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// Forgets a pod.
    pub(crate) fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.active.remove(&(Reverse(entry.priority), entry.order, key.clone()));
        }
    }

    /// The next pod to try, or the time at which one will be.
    pub(crate) fn next(&mut self, now: Instant) -> Result<Key, Option<Instant>> {
        let mut earliest: Option<Instant> = None;
        if self.active.is_empty() {
            for (key, entry) in &mut self.entries {
                let (Place::Backoff(at) | Place::Waiting(at)) = entry.place else { continue };
                if at <= now {
                    entry.place = Place::Active;
                    self.active.insert((Reverse(entry.priority), entry.order, key.clone()));
                } else {
                    earliest = Some(earliest.map_or(at, |other| other.min(at)));
                }
            }
        }
        let Some((_, _, key)) = self.active.pop_first() else { return Err(earliest) };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.place = Place::Out;
            entry.moved = false;
            entry.attempts += 1;
            entry.last_try = Some(now);
        }
        Ok(key)
    }

    /// Takes back a pod that was refused: it waits for a change, or for its back-off if one came meanwhile.
    pub(crate) fn refused(&mut self, key: &Key, now: Instant) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.place == Place::Out) else { return };
        entry.place = if entry.moved {
            Place::Backoff(now + backoff(entry.attempts))
        } else {
            Place::Waiting(now + LONGEST_WAIT)
        };
    }

    /// Takes back a pod that could not be bound: it is tried again after its back-off.
    pub(crate) fn failed(&mut self, key: Key, priority: i32, now: Instant) {
        if !self.contains(&key) {
            self.add(key.clone(), priority);
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            self.active.remove(&(Reverse(entry.priority), entry.order, key));
            entry.place = Place::Backoff(now + backoff(entry.attempts.max(1)));
        }
    }

    /// Something changed that may help the refused pods for which `helps` says so.
    pub(crate) fn changed(&mut self, now: Instant, helps: impl Fn(&Key) -> bool) {
        for (key, entry) in &mut self.entries {
            match entry.place {
                Place::Out if helps(key) => entry.moved = true,
                Place::Waiting(_) if helps(key) => {
                    let until = entry.last_try.map_or(now, |last| last + backoff(entry.attempts));
                    if until <= now {
                        entry.place = Place::Active;
                        self.active.insert((Reverse(entry.priority), entry.order, key.clone()));
                    } else {
                        entry.place = Place::Backoff(until);
                    }
                }
                _ => {}
            }
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    let factor = 1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_BACKOFF.saturating_mul(factor).min(LAST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    #[test]
    fn priority_comes_first_then_arrival() {
        let mut queue = PodQueue::default();
        let now = Instant::now();
        queue.add(key("a"), 0);
        queue.add(key("b"), 5);
        queue.add(key("c"), 0);
        let order: Vec<_> = std::iter::from_fn(|| queue.next(now).ok()).map(|key| key.name).collect();
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[test]
    fn a_refused_pod_waits_for_a_change_and_its_backoff() {
        let mut queue = PodQueue::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        queue.add(key("a"), 0);
        assert_eq!(queue.next(start), Ok(key("a")));
        queue.refused(&key("a"), start);
        assert_eq!(queue.next(at(2)), Err(Some(at(300))));
        queue.changed(at(2), |_| true);
        assert_eq!(queue.next(at(2)), Ok(key("a")));
        // A change while it is tried counts too, after the second back-off of two seconds.
        queue.changed(at(2), |_| true);
        queue.refused(&key("a"), at(2));
        assert_eq!(queue.next(at(3)), Err(Some(at(4))));
        assert_eq!(queue.next(at(4)), Ok(key("a")));
        queue.remove(&key("a"));
        queue.refused(&key("a"), at(4));
        assert_eq!(queue.next(at(500)), Err(None));
    }
}
