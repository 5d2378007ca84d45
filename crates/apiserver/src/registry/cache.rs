//! The watch cache of one resource: the current objects in key order, a bounded window of recent events, and a bell that
//! watchers wait on. A watcher holds no queue, only the revision it has seen; a slow one costs nothing.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::object::{Change, Object};
use super::topics::{self, Topic, Topics};

/// Bounds of the window; a watcher that falls behind them reads the store's history or is told 410.
const WINDOW_EVENTS: usize = 16_384;
const WINDOW_BYTES: usize = 32 << 20;

/// Bytes of events that are sent in one piece, at most (one event may have more).
pub const PIECE: usize = 64 << 10;

/// Whole lists that are kept encoded: in number and in bytes, of one resource.
const ENCODED_LISTS: usize = 4;
const ENCODED_BYTES: usize = 16 << 20;

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
    /// A checksum of all keys and revisions, kept up with every change.
    digest: store::Digest,
    /// How many events have left the window; the number of the first one in it.
    first: u64,
    topics: Topics,
    /// How often the cache was read anew because it could not be followed or did not agree with the store.
    epoch: u64,
}

/// The objects of one resource.
pub struct Cache {
    state: RwLock<State>,
    bell: watch::Sender<u64>,
    /// The last piece of plain events that was put together, for the other watchers that stand at the same place.
    piece: Mutex<Option<Piece>>,
    lists: Mutex<Vec<EncodedList>>,
}

/// Consecutive plain events under a prefix.
#[derive(Clone)]
struct Piece {
    prefix: Box<str>,
    /// Events after this revision.
    after: u64,
    /// The last revision within, or looked at.
    to: u64,
    bytes: Bytes,
}

/// The items of a whole list as they are sent, for as long as nothing changes.
struct EncodedList {
    prefix: Box<str>,
    changed: u64,
    state: Encoded,
}

enum Encoded {
    /// Asked for once.
    Seen,
    TooLarge,
    Blocks(Arc<[Bytes]>),
}

impl EncodedList {
    fn bytes(&self) -> usize {
        match &self.state {
            Encoded::Blocks(blocks) => blocks.iter().map(Bytes::len).sum(),
            _ => 0,
        }
    }
}

/// The window does not reach back so far.
#[derive(Debug)]
pub struct Behind;

/// A place in the index of a topic.
pub struct Subscription {
    cache: Arc<Cache>,
    pub topic: Topic,
    pub bell: watch::Receiver<u64>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cache.state.write().topics.leave(&self.topic);
    }
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
        Self {
            state: RwLock::new(state),
            bell: watch::Sender::new(revision),
            piece: Mutex::default(),
            lists: Mutex::default(),
        }
    }

    /// Puts an object that was there before the window begins.
    pub fn load(&self, object: Object) {
        let mut state = self.state.write();
        state.changed = state.changed.max(object.revision);
        state.digest.add(object.key.as_bytes(), object.revision);
        state.total += object.size();
        if let Some(old) = state.objects.insert(object.key.clone(), Arc::new(object)) {
            state.digest.remove(old.key.as_bytes(), old.revision);
            state.total -= old.size();
        }
    }

    /// Replaces everything by what the store holds at a revision. Watchers, who may have seen something else, are ended.
    pub fn replace(&self, objects: Vec<Object>, revision: u64) {
        let mut state = self.state.write();
        let mut digest = store::Digest::default();
        objects.iter().for_each(|object| digest.add(object.key.as_bytes(), object.revision));
        let total = objects.iter().map(Object::size).sum();
        let objects = objects.into_iter().map(|object| (object.key.clone(), Arc::new(object))).collect();
        let (epoch, first) = (state.epoch + 1, state.first + state.events.len() as u64);
        let topics = std::mem::take(&mut state.topics);
        let rest = State::default();
        *state = State {
            objects,
            window_from: revision,
            changed: revision,
            digest,
            epoch,
            first,
            topics,
            total,
            ..rest
        };
        state.topics.reset(revision);
        drop(state);
        *self.piece.lock() = None;
        self.lists.lock().clear();
        self.bell.send_replace(revision);
    }

    /// Counts the replacements; a watcher ends when it changes.
    pub fn epoch(&self) -> u64 {
        self.state.read().epoch
    }

    /// The checksum, and the revision of the last change in it.
    pub fn digest(&self) -> (store::Digest, u64) {
        let state = self.state.read();
        (state.digest, state.changed)
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
                    state.digest.add(object.key.as_bytes(), revision);
                    if let Some(previous) = &previous {
                        state.digest.remove(previous.key.as_bytes(), previous.revision);
                    }
                    let change = if previous.is_some() { Change::Modified } else { Change::Added };
                    CacheEvent { revision, change, object, previous }
                }
                None => {
                    let Some(previous) = state.objects.remove(&key) else { continue };
                    state.total -= previous.size();
                    state.digest.remove(previous.key.as_bytes(), previous.revision);
                    let object = Arc::new(previous.at(revision, Change::Deleted));
                    CacheEvent { revision, change: Change::Deleted, object, previous: Some(previous) }
                }
            };
            state.changed = revision;
            state.bytes += event.object.size();
            let State { topics, events, first, .. } = &mut *state;
            topics.note(*first + events.len() as u64, *first, &event.object, event.previous.as_deref());
            events.push_back(event);
        }
        while state.events.len() > WINDOW_EVENTS || (state.bytes > WINDOW_BYTES && state.events.len() > 1) {
            let Some(old) = state.events.pop_front() else { break };
            state.bytes -= old.object.size();
            state.window_from = old.revision;
            state.first += 1;
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

    /// The items of the whole list under a prefix as blocks of JSON, with commas between the items, and the revision of the
    /// last change. They are built when the same list is asked for a second time, if they are not too large.
    pub fn encoded(&self, prefix: &str) -> Option<(Arc<[Bytes]>, u64)> {
        let mut lists = self.lists.lock();
        let changed = self.changed();
        let known = lists.iter().position(|list| *list.prefix == *prefix);
        let Some(at) = known.filter(|at| lists[*at].changed == changed) else {
            match known {
                Some(at) => drop(lists.remove(at)),
                None if lists.len() >= ENCODED_LISTS => drop(lists.remove(0)),
                None => {}
            }
            lists.push(EncodedList { prefix: prefix.into(), changed, state: Encoded::Seen });
            return None;
        };
        match &lists[at].state {
            Encoded::Blocks(blocks) => return Some((blocks.clone(), changed)),
            Encoded::TooLarge => return None,
            Encoded::Seen => {}
        }
        let (items, changed) = self.list(prefix, None);
        let own: usize = items.iter().map(|object| object.item().len() + 2).sum();
        let others = lists.iter().filter(|list| *list.prefix != *prefix);
        if others.map(EncodedList::bytes).sum::<usize>() + own > ENCODED_BYTES {
            lists[at].state = Encoded::TooLarge;
            return None;
        }
        let blocks = encode(&items, own);
        lists[at] = EncodedList { prefix: prefix.into(), changed, state: Encoded::Blocks(blocks.clone()) };
        Some((blocks, changed))
    }

    /// The plain JSON frames of the events under a prefix after a revision, up to about [`PIECE`] bytes in one piece (empty if
    /// there is none), and the revision up to which nothing is left out. Watchers that stand at one place share the piece.
    pub fn piece(&self, prefix: &str, after: u64) -> Result<(Bytes, u64), Behind> {
        if let Some(piece) = &*self.piece.lock()
            && piece.after == after
            && *piece.prefix == *prefix
        {
            return Ok((piece.bytes.clone(), piece.to));
        }
        let state = self.state.read();
        if after < state.window_from {
            return Err(Behind);
        }
        let start = state.events.partition_point(|event| event.revision <= after);
        let events = || state.events.range(start..);
        let (mut to, mut bytes, mut looked_at, mut matching) = (after, 0, 0usize, 0usize);
        let mut newest = None;
        for event in events() {
            // All events of one revision go together: a watcher remembers revisions alone.
            if bytes > PIECE && event.revision != to {
                break;
            }
            to = event.revision;
            looked_at += 1;
            if event.object.key.starts_with(prefix) {
                bytes += event.object.size();
                matching += 1;
                newest = Some(event);
            }
        }
        if looked_at == 0 {
            return Ok((Bytes::new(), after));
        }
        let bytes = match newest {
            None => Bytes::new(),
            // One event alone is sent as it lies in the cache.
            Some(event) if matching == 1 => event.object.frame(event.change),
            Some(_) => {
                let mut piece = BytesMut::with_capacity(bytes);
                for event in events().take(looked_at).filter(|event| event.object.key.starts_with(prefix)) {
                    piece.put_slice(&event.object.frame(event.change));
                }
                piece.freeze()
            }
        };
        drop(state);
        let piece = Piece { prefix: prefix.into(), after, to, bytes };
        let answer = (piece.bytes.clone(), piece.to);
        *self.piece.lock() = Some(piece);
        Ok(answer)
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

    /// Whether the window has all events after a revision.
    pub fn reaches_back(&self, revision: u64) -> bool {
        revision >= self.state.read().window_from
    }

    /// The events of a topic that one is subscribed to after a revision, without looking at others. The subscription must have
    /// begun when the window reached back to the revision; since then only the topic's own events count.
    pub fn since_of(&self, topic: &Topic, revision: u64) -> Recent {
        let state = self.state.read();
        let Some(numbers) = state.topics.numbers(topic, revision, state.first) else { return Recent::Older };
        let event = |number: u64| state.events.get(usize::try_from(number.checked_sub(state.first)?).ok()?);
        Recent::Events(numbers.into_iter().filter_map(event).cloned().collect())
    }

    /// Rings after every change of a topic. It is indexed for as long as the subscription lives.
    pub fn subscribe(self: &Arc<Self>, topic: Topic, value: &topics::Value) -> Subscription {
        let mut state = self.state.write();
        let State { topics, events, first, changed, .. } = &mut *state;
        let numbered = (*first..).zip(events.iter());
        let window = numbered.map(|(number, event)| (number, &*event.object, event.previous.as_deref()));
        let bell = topics.join(&topic, value, *changed, window);
        drop(state);
        Subscription { cache: self.clone(), topic, bell }
    }

    /// Rings after every change, with its revision.
    pub fn bell(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }
}

/// Items with commas between them, in blocks of even size.
fn encode(items: &[Arc<Object>], bytes: usize) -> Arc<[Bytes]> {
    let mut blocks = Vec::with_capacity(bytes / PIECE + 1);
    let mut block = BytesMut::with_capacity(PIECE.min(bytes));
    for (at, object) in items.iter().enumerate() {
        let item = object.item();
        if !block.is_empty() && block.len() + item.len() + 2 > PIECE {
            blocks.push(std::mem::replace(&mut block, BytesMut::with_capacity(PIECE)).freeze());
        }
        block.put_slice(if at > 0 { b",{" } else { b"{" });
        block.put_slice(item);
    }
    if !block.is_empty() {
        blocks.push(block.freeze());
    }
    blocks.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, revision: u64) -> Object {
        let stored = format!("{{\"kind\":\"K\",\"metadata\":{{\"name\":\"{key}\"}}}}");
        Object::from_stored(key.into(), revision, stored.as_bytes(), Change::Added).expect("metadata")
    }

    fn put(cache: &Cache, key: &str, revision: u64) {
        cache.apply([(Arc::from(key), revision, Some(object(key, revision)))].into_iter());
    }

    #[test]
    fn the_digest_follows_every_change() {
        let cache = Cache::new(1);
        cache.load(object("n/old", 1));
        put(&cache, "n/a", 2);
        put(&cache, "n/b", 3);
        put(&cache, "n/a", 4);
        cache.apply([(Arc::from("n/b"), 5, None)].into_iter());
        let mut expect = store::Digest::default();
        expect.add(b"n/a", 4);
        expect.add(b"n/old", 1);
        assert_eq!(cache.digest(), (expect, 5));
        cache.replace(vec![object("n/old", 1), object("n/a", 4)], 6);
        assert_eq!((cache.digest().0, cache.epoch()), (expect, 1));
        assert!(matches!(cache.since(5), Recent::Older), "watchers of the time before are ended");
    }

    #[test]
    fn pieces_hold_every_event_once_and_break_at_revisions() {
        let cache = Cache::new(1);
        let events = |bytes: &Bytes| bytes.iter().filter(|byte| **byte == b'\n').count();
        assert!(cache.piece("", 0).is_err());
        let (bytes, to) = cache.piece("", 1).expect("kept");
        assert_eq!((bytes.len(), to), (0, 1));
        for revision in 2..2000 {
            put(&cache, &format!("{}/x{revision}", revision % 2), revision);
        }
        for (prefix, expect) in [("", 1998), ("1/", 999), ("none/", 0)] {
            let (mut at, mut seen) = (1, 0);
            while at < 1999 {
                let (bytes, to) = cache.piece(prefix, at).expect("kept");
                assert!(to > at && bytes.len() < PIECE + 1000);
                (at, seen) = (to, seen + events(&bytes));
            }
            assert_eq!(seen, expect, "{prefix}");
        }
        // Two changes at one revision are not parted.
        let both = ["n/p", "n/q"].map(|key| (Arc::from(key), 2000, Some(object(key, 2000))));
        cache.apply(both.into_iter());
        let (bytes, to) = cache.piece("n/", 1999).expect("kept");
        assert_eq!((events(&bytes), to), (2, 2000));
    }

    #[test]
    fn a_topic_has_its_own_events_alone() {
        let cache = Arc::new(Cache::new(1));
        // The object moves between topics with every change.
        let value: topics::Value = Arc::new(|object: &Object| Some(format!("{}", object.revision % 3)));
        for revision in 2..20 {
            put(&cache, "n/a", revision);
        }
        let topic = |value: &str| Topic { field: "f".into(), value: value.into() };
        let mut subscription = cache.subscribe(topic("1"), &value);
        let again = cache.subscribe(topic("1"), &value);
        let revisions = |topic: &Topic, after: u64| match cache.since_of(topic, after) {
            Recent::Events(events) => events.iter().map(|event| event.revision).collect::<Vec<_>>(),
            Recent::Older => panic!("kept"),
        };
        // Events that enter the topic and events that leave it.
        assert_eq!(revisions(&subscription.topic, 9), [10, 11, 13, 14, 16, 17, 19]);
        subscription.bell.borrow_and_update();
        put(&cache, "n/a", 20);
        assert!(subscription.bell.has_changed().expect("lives"));
        subscription.bell.borrow_and_update();
        put(&cache, "n/a", 21);
        assert!(!subscription.bell.has_changed().expect("lives"), "it does not concern the topic");
        assert_eq!(revisions(&subscription.topic, 18), [19, 20]);
        drop(again);
        put(&cache, "n/a", 22);
        assert_eq!(revisions(&subscription.topic, 20), [22]);
        // Others' events may leave the window unseen; the topic's own may not.
        let other: topics::Value = Arc::new(|object: &Object| Some(object.key.to_string()));
        let quiet = cache.subscribe(Topic { field: "key".into(), value: "n/quiet".into() }, &other);
        put(&cache, "n/quiet", 23);
        for revision in 24..25 + WINDOW_EVENTS as u64 {
            put(&cache, "n/a", revision);
        }
        assert!(!cache.reaches_back(23));
        assert!(revisions(&quiet.topic, 23).is_empty());
        assert!(matches!(cache.since_of(&quiet.topic, 22), Recent::Older), "its own event is lost");
        assert!(matches!(cache.since_of(&subscription.topic, 22), Recent::Older), "its own events are lost");
    }

    #[test]
    fn a_list_is_encoded_when_it_is_asked_for_again() {
        let cache = Cache::new(1);
        (2..400).for_each(|revision| put(&cache, &format!("n/{revision}"), revision));
        assert!(cache.encoded("n/").is_none());
        let (blocks, changed) = cache.encoded("n/").expect("the second time");
        assert_eq!(changed, 399);
        let text = [b"[", blocks.concat().as_slice(), b"]"].concat();
        let parsed: Vec<serde_json::Value> = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(parsed.len(), 398);
        put(&cache, "n/new", 500);
        assert!(cache.encoded("n/").is_none(), "it has changed");
        assert_eq!(cache.encoded("n/").expect("asked for again").1, 500);
        assert_eq!(cache.encoded("none/").map(drop), None);
        assert!(cache.encoded("none/").expect("empty").0.concat().is_empty());
    }
}
