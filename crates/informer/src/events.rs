//! The event recorder. Repeats of an event raise its count, many like ones are combined, and one object
//! cannot flood the server (client-go `tools/record` sets the numbers). Recording never blocks its caller.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const WAITING: usize = 1000;
const REMEMBERED: usize = 4096;
const ALIKE: usize = 10;
const ALIKE_WITHIN: Duration = Duration::from_secs(600);
const BURST: f64 = 25.0;
const PER_SECOND: f64 = 1.0 / 300.0;

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// As it should be.
    Normal,
    /// Something a user may have to look into.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

struct Note {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Records events about objects. Cloning shares.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<Note>);

impl Recorder {
    /// A recorder that signs as `component`; it works until all clones are dropped or `shutdown`.
    pub fn new(client: Client, component: &'static str, shutdown: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(deliver(client, component, receiver, shutdown));
        Self(sender)
    }

    /// Records an event; when too many wait, it is lost.
    pub fn event(&self, about: ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let (reason, message, at) = (reason.to_owned(), message.into(), Timestamp::now());
        if self.0.try_send(Note { about, kind, reason, message, at }).is_err() {
            tracing::debug!("an event is lost: too many are waiting");
        }
    }
}

/// A reference to an object, as events carry it.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: object.meta().name.clone(),
        namespace: object.meta().namespace.clone(),
        uid: object.meta().uid.clone(),
        resource_version: object.meta().resource_version.clone(),
        field_path: None,
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Likeness {
    uid: String,
    name: String,
    field: Option<String>,
    kind: EventType,
    reason: String,
}

struct Alike {
    messages: HashSet<String>,
    last: Instant,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

struct Sent {
    name: String,
    count: i32,
}

#[derive(Default)]
struct Correlator {
    alike: Bounded<Likeness, Alike>,
    sent: Bounded<(Likeness, String), Sent>,
    buckets: Bounded<String, Bucket>,
}

enum Decision {
    Drop,
    Create { key: (Likeness, String), message: String },
    Repeat { key: (Likeness, String), message: String, name: String, count: i32 },
}

impl Correlator {
    fn decide(&mut self, note: &Note, now: Instant) -> Decision {
        let uid = note.about.uid.clone().unwrap_or_default();
        let bucket = self.buckets.entry(uid.clone(), || Bucket { tokens: BURST, filled: now });
        let filled = bucket.tokens + now.duration_since(bucket.filled).as_secs_f64() * PER_SECOND;
        bucket.tokens = filled.min(BURST);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return Decision::Drop;
        }
        bucket.tokens -= 1.0;

        let likeness = Likeness {
            uid,
            name: note.about.name.clone().unwrap_or_default(),
            field: note.about.field_path.clone(),
            kind: note.kind,
            reason: note.reason.clone(),
        };
        let alike = self.alike.entry(likeness.clone(), || Alike { messages: HashSet::new(), last: now });
        if now.duration_since(alike.last) > ALIKE_WITHIN {
            alike.messages.clear();
        }
        alike.last = now;
        let combined = !alike.messages.contains(&note.message) && alike.messages.len() >= ALIKE;
        let (key, message) = if combined {
            let message = format!("(combined from similar events): {}", note.message);
            ((likeness, String::new()), message)
        } else {
            alike.messages.insert(note.message.clone());
            ((likeness, note.message.clone()), note.message.clone())
        };
        match self.sent.get_mut(&key) {
            Some(sent) => {
                sent.count += 1;
                let (name, count) = (sent.name.clone(), sent.count);
                Decision::Repeat { key, message, name, count }
            }
            None => Decision::Create { key, message },
        }
    }
}

async fn deliver(
    client: Client,
    component: &'static str,
    mut notes: mpsc::Receiver<Note>,
    shutdown: CancellationToken,
) {
    let mut correlator = Correlator::default();
    loop {
        let note = tokio::select! {
            note = notes.recv() => note,
            () = shutdown.cancelled() => None,
        };
        let Some(note) = note else { return };
        let namespace = match note.about.namespace.as_deref() {
            Some(namespace) if !namespace.is_empty() => namespace,
            _ => "default",
        };
        let api = Api::<Event>::namespaced(client.clone(), namespace);
        let (key, message) = match correlator.decide(&note, Instant::now()) {
            Decision::Drop => continue,
            Decision::Repeat { key, message, name, count } => {
                let patch = json!({"count": count, "lastTimestamp": note.at, "message": message});
                match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => (key, message),
                    _ => continue,
                }
            }
            Decision::Create { key, message } => (key, message),
        };
        let name =
            format!("{}.{:x}", note.about.name.as_deref().unwrap_or_default(), note.at.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: note.about,
            type_: Some(note.kind.as_str().to_owned()),
            reason: Some(note.reason),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(Time(note.at)),
            last_timestamp: Some(Time(note.at)),
            source: Some(EventSource { component: Some(component.to_owned()), host: None }),
            reporting_component: Some(component.to_owned()),
            ..Event::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => correlator.sent.insert(key, Sent { name, count: 1 }),
            // A namespace that is going away takes no events.
            Err(error) => tracing::debug!(%error, "an event was refused"),
        }
    }
}

/// A map that forgets its oldest entries.
struct Bounded<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Bounded<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V> Bounded<K, V> {
    fn insert(&mut self, key: K, value: V) {
        if self.entries.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
        }
    }

    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            self.insert(key.clone(), make());
        }
        self.entries.get_mut(&key).expect("just inserted, and the newest is never forgotten")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(message: &str) -> Note {
        Note {
            about: ObjectReference { uid: Some("1".into()), name: Some("p".into()), ..Default::default() },
            kind: EventType::Normal,
            reason: "Reason".into(),
            message: message.into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn repeats_are_counted_likes_combined_and_floods_stopped() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let Decision::Create { key, .. } = correlator.decide(&note("a"), now) else { panic!("not created") };
        correlator.sent.insert(key, Sent { name: "p.1".into(), count: 1 });
        assert!(matches!(correlator.decide(&note("a"), now), Decision::Repeat { count: 2, .. }));
        for other in 0..9 {
            let decision = correlator.decide(&note(&other.to_string()), now);
            assert!(matches!(decision, Decision::Create { message, .. } if !message.starts_with('(')));
        }
        let decision = correlator.decide(&note("one more"), now);
        assert!(matches!(decision, Decision::Create { message, .. } if message.starts_with("(combined")));
        for _ in 0..30 {
            correlator.decide(&note("a"), now);
        }
        assert!(matches!(correlator.decide(&note("a"), now), Decision::Drop));
        let later = now + Duration::from_secs(300);
        assert!(!matches!(correlator.decide(&note("a"), later), Decision::Drop));
    }
}
