//! Events: written in the background, repeated ones counted up, a flood from one object cut off.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use crate::podutil;

const QUEUE: usize = 1000;
/// Events of one object before its flood is cut off, and the seconds after which one more is let through.
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

struct Entry {
    object: ObjectReference,
    kind: &'static str,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Where events go.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Entry>,
}

impl Recorder {
    pub(crate) fn new(client: Client, node: String) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(write(client, node, entries));
        Recorder { queue }
    }

    pub(crate) fn normal(&self, object: ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(object, "Normal", reason, message.into());
    }

    pub(crate) fn warning(&self, object: ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(object, "Warning", reason, message.into());
    }

    fn record(&self, object: ObjectReference, kind: &'static str, reason: &str, message: String) {
        let entry = Entry { object, kind, reason: reason.to_owned(), message, at: Timestamp::now() };
        if self.queue.try_send(entry).is_err() {
            tracing::warn!(reason, "an event was dropped: too many are waiting");
        }
    }
}

/// The pod as an event names it.
pub(crate) fn pod(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// A container of the pod; `field` is `containers`, `initContainers` or `ephemeralContainers`.
pub(crate) fn container(of: &Pod, kind: podutil::Kind, name: &str) -> ObjectReference {
    let field = match kind {
        podutil::Kind::Regular => "containers",
        podutil::Kind::Init | podutil::Kind::Sidecar => "initContainers",
        podutil::Kind::Ephemeral => "ephemeralContainers",
    };
    ObjectReference { field_path: Some(format!("spec.{field}{{{name}}}")), ..pod(of) }
}

/// The node as an event names it: by its name also in place of a uid, as upstream does.
pub(crate) fn node(name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

#[derive(Clone)]
struct Written {
    name: String,
    count: i32,
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

async fn write(client: Client, node: String, mut entries: mpsc::Receiver<Entry>) {
    let mut written: HashMap<String, Written> = HashMap::new();
    let mut buckets: HashMap<String, Bucket> = HashMap::new();
    while let Some(entry) = entries.recv().await {
        if written.len() >= REMEMBERED.get() {
            written.clear();
        }
        if buckets.len() >= REMEMBERED.get() {
            buckets.clear();
        }
        let object = &entry.object;
        let owner = format!("{:?}/{:?}", object.namespace, object.uid);
        let bucket = buckets.entry(owner.clone()).or_insert(Bucket { tokens: BURST, at: entry.at });
        let passed = entry.at.duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed / REFILL_SECONDS).min(BURST);
        bucket.at = entry.at;
        if bucket.tokens < 1.0 {
            continue;
        }
        bucket.tokens -= 1.0;
        let key =
            format!("{owner}/{:?}/{}/{}/{}", object.field_path, entry.kind, entry.reason, entry.message);
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        if let Some(known) = written.get_mut(&key) {
            known.count += 1;
            let patch = json!({"count": known.count, "lastTimestamp": podutil::time(entry.at)});
            let patched = events.patch(&known.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            if patched.is_ok() {
                continue;
            }
        }
        match events.create(&PostParams::default(), &event(&node, &namespace, &entry)).await {
            Ok(event) => {
                let name = event.metadata.name.unwrap_or_default();
                written.insert(key, Written { name, count: 1 });
            }
            // Events of a pod in a namespace that is going away are refused; that is no fault.
            Err(error) => tracing::debug!(%error, reason = entry.reason, "cannot write an event"),
        }
    }
}

fn event(node: &str, namespace: &str, entry: &Entry) -> Event {
    let at = podutil::time(entry.at);
    let subject = entry.object.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{subject}.{:x}", entry.at.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: entry.object.clone(),
        type_: Some(entry.kind.to_owned()),
        reason: Some(entry.reason.clone()),
        message: Some(entry.message.chars().take(1024).collect()),
        count: Some(1),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at),
        source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}
