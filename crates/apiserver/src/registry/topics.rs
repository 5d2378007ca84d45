//! Indexes of a cache's recent events by the value of a field. A watcher that wants `spec.nodeName=a` or one object by its
//! name is woken by its own events alone and finds them without looking at others.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use super::object::Object;

/// The value of a field of an object; none if the object has no such field.
pub type Value = Arc<dyn Fn(&Object) -> Option<String> + Send + Sync>;

/// All objects whose field has a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Topic {
    pub field: String,
    pub value: String,
}

/// The recent events of one topic.
struct Recent {
    /// Numbers of the events in the cache's window, and their revisions.
    numbers: VecDeque<(u64, u64)>,
    /// The revision of the last event that the window has lost.
    lost: u64,
    bell: watch::Sender<u64>,
    watchers: usize,
}

struct Index {
    field: String,
    value: Value,
    topics: HashMap<String, Recent>,
}

/// The indexes of one cache: those that somebody watches by.
#[derive(Default)]
pub struct Topics(Vec<Index>);

impl Topics {
    /// Joins a topic; `window` are the events there are, to be looked through if the topic is new.
    pub fn join<'a>(
        &mut self,
        topic: &Topic,
        value: &Value,
        revision: u64,
        window: impl Iterator<Item = (u64, &'a Object, Option<&'a Object>)>,
    ) -> watch::Receiver<u64> {
        let at = self.0.iter().position(|index| index.field == topic.field).unwrap_or_else(|| {
            let (field, value) = (topic.field.clone(), value.clone());
            self.0.push(Index { field, value, topics: HashMap::new() });
            self.0.len() - 1
        });
        let Index { value, topics, .. } = &mut self.0[at];
        let recent = topics.entry(topic.value.clone()).or_insert_with(|| {
            let concerns = |object: &Object| value(object).as_deref() == Some(&*topic.value);
            let numbers = window
                .filter(|(_, object, previous)| concerns(object) || previous.is_some_and(concerns))
                .map(|(number, object, _)| (number, object.revision))
                .collect();
            Recent { numbers, lost: 0, bell: watch::Sender::new(revision), watchers: 0 }
        });
        recent.watchers += 1;
        recent.bell.subscribe()
    }

    /// Leaves a topic; what nobody watches by is no longer kept.
    pub fn leave(&mut self, topic: &Topic) {
        let Some(at) = self.0.iter().position(|index| index.field == topic.field) else { return };
        let topics = &mut self.0[at].topics;
        if let Some(recent) = topics.get_mut(&topic.value) {
            recent.watchers -= 1;
            if recent.watchers == 0 {
                topics.remove(&topic.value);
            }
        }
        if topics.is_empty() {
            self.0.swap_remove(at);
        }
    }

    /// Notes an event and wakes those whom it concerns (who then wait for the cache's lock); `first` is the number of the oldest event that the window still has.
    pub fn note(&mut self, number: u64, first: u64, object: &Object, previous: Option<&Object>) {
        for Index { value, topics, .. } in &mut self.0 {
            let now = value(object);
            let before =
                previous.and_then(|previous| value(previous)).filter(|before| Some(before) != now.as_ref());
            for value in now.into_iter().chain(before) {
                let Some(recent) = topics.get_mut(&value) else { continue };
                while let Some((_, revision)) = recent.numbers.pop_front_if(|(oldest, _)| *oldest < first) {
                    recent.lost = revision;
                }
                recent.numbers.push_back((number, object.revision));
                recent.bell.send_replace(object.revision);
            }
        }
    }

    /// The numbers of a topic's events after a revision; none if the window, which begins with the number `first`, has lost
    /// one of them.
    pub fn numbers(&self, topic: &Topic, after: u64, first: u64) -> Option<Vec<u64>> {
        let index = self.0.iter().find(|index| index.field == topic.field)?;
        let recent = index.topics.get(&topic.value)?;
        if recent.lost > after {
            return None;
        }
        let start = recent.numbers.partition_point(|(_, revision)| *revision <= after);
        let numbers: Vec<u64> = recent.numbers.range(start..).map(|(number, _)| *number).collect();
        numbers.first().is_none_or(|oldest| *oldest >= first).then_some(numbers)
    }

    /// Everybody is to look anew.
    pub fn reset(&mut self, revision: u64) {
        for recent in self.0.iter_mut().flat_map(|index| index.topics.values_mut()) {
            recent.numbers.clear();
            recent.bell.send_replace(revision);
        }
    }
}
