//! Watches: a stream of shared frames out of the cache's window, with the initial state where it was asked for, selector
//! transitions, and bookmarks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use rand::Rng;
use serde_json::json;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::read::invalid_version;
use super::{Answered, Call};
use crate::http::body::Body;
use crate::http::negotiate::{Convert, Format, Output};
use crate::metrics::metrics;
use crate::query::ListOptions;
use crate::registry::cache::{Behind, CacheEvent, PIECE, Recent, Subscription};
use crate::registry::object::{Change, Object};
use crate::registry::{Registry, Served, feed, store_error};
use crate::render::Frames;
use crate::selector::Selector;
use crate::{Status, render};

const BOOKMARK: Duration = Duration::from_secs(60);
/// The last bookmark comes this long before a watch ends.
const BEFORE_END: Duration = Duration::from_secs(2);

/// Every minute, and shortly before the end, so that the client's next watch begins where this one ended.
fn bookmark_after(now: Instant, deadline: Instant) -> Instant {
    let periodic = now + BOOKMARK;
    match deadline.checked_sub(BEFORE_END) {
        Some(last) if last > now && last < periodic => last,
        _ => periodic,
    }
}

/// Everything that a running watch needs; it holds no queue.
struct Watcher {
    served: Arc<Served>,
    server: Arc<crate::server::Server>,
    selector: Selector,
    prefix: String,
    frames: Frames,
    /// Events up to this revision have been sent.
    position: u64,
    bell: Receiver<u64>,
    /// The index that tells of the events which may concern this watch; none: all may.
    topic: Option<Subscription>,
    /// The cache's count of replacements when the watch began.
    epoch: u64,
    initial: Option<Initial>,
    ready: std::vec::IntoIter<CacheEvent>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    shutdown: CancellationToken,
    /// What the store still has of the time before the cache's window.
    history: Option<store::Watch>,
    done: bool,
}

/// Objects of the initial state that are converted together.
const PAGE: usize = 500;

/// The objects as selectors look at them.
async fn shown(served: &Served, objects: Vec<Arc<Object>>) -> Result<Vec<Arc<Object>>, Status> {
    if served.selects_stored() { Ok(objects) } else { served.views(objects).await }
}

/// Frames that are sent in one piece.
#[derive(Default)]
struct Gathered {
    first: Bytes,
    more: BytesMut,
}

impl Gathered {
    fn add(&mut self, frame: Bytes) {
        if self.first.is_empty() {
            self.first = frame;
            return;
        }
        if self.more.is_empty() {
            self.more.put_slice(&self.first);
        }
        self.more.put_slice(&frame);
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    fn full(&self) -> bool {
        self.first.len().max(self.more.len()) >= PIECE
    }

    /// One frame alone is not copied.
    fn take(self) -> Bytes {
        if self.more.is_empty() { self.first } else { self.more.freeze() }
    }
}

/// The state at the start, still to be sent.
struct Initial {
    items: std::vec::IntoIter<Arc<Object>>,
    /// Those that come next, as selectors look at them.
    shown: VecDeque<Arc<Object>>,
    /// The end is marked by an annotated bookmark.
    mark: bool,
    began: Instant,
}

pub async fn run(call: &Call, served: &Arc<Served>) -> Answered {
    let options = ListOptions::read(&call.query, true)?;
    let mut selector = Selector::parse(served, &options.label_selector, &options.field_selector)?;
    if !call.info.name.is_empty() {
        // `/api/v1/watch/.../NAME` names one object in the path.
        selector.only(&call.info.name);
    }
    if matches!(call.output.convert, Convert::MetadataList) {
        return Err(Status::not_acceptable("watches do not support PartialObjectMetadataList"));
    }
    let registry = &call.server.registry;
    let version: u64 = match options.resource_version.as_str() {
        "" => 0,
        text => text.parse().map_err(|_| Status::unknown(invalid_version(text).message()))?,
    };
    let topic = selector.topic(served, &call.info.namespace);
    let topic = topic.map(|(topic, value)| served.cache.subscribe(topic, &value));
    let bell = topic.as_ref().map_or_else(|| served.cache.bell(), |topic| topic.bell.clone());
    let epoch = served.cache.epoch();
    let prefix = served.prefix(&call.info.namespace);
    let explicit = call.query.get("sendInitialEvents").is_some();
    let from_state = options.initial_events == Some(true);
    let mut history = None;
    let (position, initial) = if from_state || (version == 0 && options.initial_events.is_none()) {
        if options.resource_version.is_empty() {
            registry.fresh().await?;
        } else if version > 0 {
            registry.reach(version).await?;
        }
        let applied = registry.applied();
        let (items, changed) = served.cache.list(&prefix, None);
        let mark = explicit && options.bookmarks;
        (
            applied.max(changed),
            Some(Initial { items: items.into_iter(), shown: VecDeque::new(), mark, began: Instant::now() }),
        )
    } else if version == 0 {
        (registry.fresh().await?, None)
    } else {
        if version < served.since {
            return refused(call, Status::expired(format!("too old resource version: {version}")));
        }
        if version > registry.store.revision() {
            registry.reach(version).await?;
        }
        if !served.cache.reaches_back(version) {
            let prefix = feed::join(&served.storage.0, &served.storage.1, &prefix);
            match registry.store.watch(prefix, version + 1).await {
                Ok(watch) => history = Some(watch),
                Err(error) => return refused(call, store_error(error)),
            }
        }
        (version, None)
    };
    let lifetime = match options.timeout {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
        // Ends spread out, so that not all watches begin again at once.
        _ => call.server.config.protection.min_request_timeout.mul_f64(rand::rng().random_range(1.0..2.0)),
    };
    let now = Instant::now();
    let deadline = now + lifetime;
    let watcher = Watcher {
        frames: Frames::new(served.clone(), call.output, &call.query),
        served: served.clone(),
        server: call.server.clone(),
        selector,
        prefix,
        position,
        bell,
        topic,
        epoch,
        initial,
        ready: Vec::new().into_iter(),
        bookmarks: options.bookmarks,
        next_bookmark: bookmark_after(now, deadline),
        deadline,
        shutdown: call.server.shutdown.clone(),
        history,
        done: false,
    };
    let stream = futures::stream::unfold(watcher, |mut watcher| async move {
        watcher.next().await.map(|frame| (frame, watcher))
    });
    Ok(response(call.output, Body::Stream(stream.boxed())))
}

fn response(output: Output, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let content_type = match output.format {
        Format::Json => "application/json",
        Format::Yaml => "application/yaml",
        Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Format::Cbor => "application/cbor-seq",
    };
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A watch that cannot begin says so in its first and only event.
fn refused(call: &Call, status: Status) -> Answered {
    let frame = render::error_frame(call.output, &status)?;
    Ok(response(call.output, Body::Full(frame)))
}

impl Watcher {
    /// The next chunk of the stream.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.done {
                return None;
            }
            match self.step().await {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(status) => {
                    self.done = true;
                    return render::error_frame(self.frames.output(), &status).ok();
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(initial) = &mut self.initial {
            let mut piece = Gathered::default();
            while !piece.full() {
                // What has to be converted is converted by the page.
                if initial.shown.is_empty() {
                    let page: Vec<_> = initial.items.by_ref().take(PAGE).collect();
                    initial.shown = shown(&self.served, page).await?.into();
                }
                let Some(object) = initial.shown.pop_front() else { break };
                if self.selector.matches(&self.served, &object) {
                    let object = self.served.view(&object).await?;
                    piece.add(self.frames.event(Change::Added, &object)?);
                }
            }
            if !piece.is_empty() {
                return Ok(Some(piece.take()));
            }
            let (mark, began) = (initial.mark, initial.began);
            self.initial = None;
            if mark {
                let resource = &self.served.resource;
                let scope = if self.prefix.is_empty() { "cluster" } else { "namespace" };
                let labels = [self.served.group(), self.served.plural(), scope, &*resource.version];
                metrics().watch_list.with(&labels).observe(began.elapsed().as_secs_f64());
                return self.bookmark(true).map(Some);
            }
        }
        let mut piece = Gathered::default();
        while !piece.full()
            && let Some(event) = self.ready.next()
        {
            if let Some((change, object)) = self.visible(&event).await? {
                let object = self.served.view(&object).await?;
                piece.add(self.frames.event(change, &object)?);
            }
        }
        if !piece.is_empty() {
            return Ok(Some(piece.take()));
        }
        if self.history.is_some() {
            return self.catch_up().await.map(|()| None);
        }
        let applied = self.server.registry.applied();
        self.bell.borrow_and_update();
        if self.served.cache.epoch() != self.epoch {
            return Err(self.expired());
        }
        if self.frames.plain() && self.selector.everything() && self.served.is_stored() {
            match self.served.cache.piece(&self.prefix, self.position) {
                Ok((bytes, to)) if to > self.position => {
                    self.position = to;
                    return Ok(Some(bytes).filter(|bytes| !bytes.is_empty()));
                }
                Ok(_) => self.position = self.position.max(applied),
                Err(Behind) => return Err(self.expired()),
            }
            return self.rest().await;
        }
        let Recent::Events(events) = self.since() else { return Err(self.expired()) };
        match events.last() {
            Some(last) => {
                self.position = last.revision;
                self.ready = events.into_iter();
                return Ok(None);
            }
            // Nothing happened here up to what all caches have seen.
            None => self.position = self.position.max(applied),
        }
        self.rest().await
    }

    /// What may concern this watch of the events that it has not seen.
    fn since(&self) -> Recent {
        match &self.topic {
            Some(topic) => self.served.cache.since_of(&topic.topic, self.position),
            None => self.served.cache.since(self.position),
        }
    }

    fn expired(&self) -> Status {
        Status::expired(format!("too old resource version: {}", self.position))
    }

    /// Waits until there may be something to send; a bookmark if it is time for one.
    async fn rest(&mut self) -> Result<Option<Bytes>, Status> {
        let (bookmarks, next_bookmark) = (self.bookmarks, self.next_bookmark);
        tokio::select! {
            changed = self.bell.changed() => {
                if changed.is_err() {
                    self.done = true;
                }
            }
            () = tokio::time::sleep_until(next_bookmark), if bookmarks => {
                self.next_bookmark = bookmark_after(Instant::now(), self.deadline);
                self.position = self.position.max(self.quiet());
                return self.bookmark(false).map(Some);
            }
            () = tokio::time::sleep_until(self.deadline) => self.done = true,
            () = self.shutdown.cancelled() => self.done = true,
            () = self.served.gone.cancelled() => {
                // What happened until the end is still sent.
                self.done = !matches!(self.since(), Recent::Events(events) if !events.is_empty());
            }
        }
        Ok(None)
    }

    /// The newest revision up to which there is nothing unsent.
    fn quiet(&self) -> u64 {
        let applied = self.server.registry.applied();
        match self.since() {
            Recent::Events(events) if events.is_empty() => applied,
            _ => self.position,
        }
    }

    /// Reads the store's log until the cache's window takes over.
    async fn catch_up(&mut self) -> Result<(), Status> {
        let Some(watch) = &mut self.history else { return Ok(()) };
        let batch = tokio::select! {
            batch = watch.next() => batch,
            () = self.shutdown.cancelled() => None,
        };
        let events = match batch {
            Some(Ok(events)) => events,
            Some(Err(error)) => return Err(store_error(error)),
            None => {
                self.done = true;
                return Ok(());
            }
        };
        let registry: &Registry = &self.server.registry;
        let (group, plural) = (self.served.storage.0.as_str(), self.served.storage.1.as_str());
        registry.codec.ready(feed::values(&events)).await;
        let mut ready = Vec::with_capacity(events.len());
        for event in events.iter() {
            let Some((_, _, key)) = feed::split(&event.key) else { continue };
            let open = |kv: &store::KeyValue, change| {
                registry.codec.object((group, plural, key), &kv.key, &kv.value, kv.mod_revision, change)
            };
            let change = match (&event.current, &event.previous) {
                (None, _) => Change::Deleted,
                (Some(_), None) => Change::Added,
                (Some(_), Some(_)) => Change::Modified,
            };
            let previous = event.previous.as_ref().map(|kv| open(kv, Change::Modified)).transpose()?;
            let object = match (&event.current, &previous) {
                (Some(kv), _) => open(kv, change)?,
                (None, Some(previous)) => previous.at(event.revision, Change::Deleted),
                (None, None) => continue,
            };
            ready.push(CacheEvent {
                revision: event.revision,
                change,
                object: Arc::new(object),
                previous: previous.map(Arc::new),
            });
        }
        if let Some(last) = events.last() {
            self.position = last.revision;
        }
        self.ready = ready.into_iter();
        if self.served.cache.reaches_back(self.position) {
            self.history = None;
        }
        Ok(())
    }

    /// What this watcher sees of an event: an object that enters its selection is added, one that leaves it is deleted.
    async fn visible(&self, event: &CacheEvent) -> Result<Option<(Change, Arc<Object>)>, Status> {
        if !event.object.key.starts_with(&self.prefix) {
            return Ok(None);
        }
        if self.selector.everything() {
            return Ok(Some((event.change, event.object.clone())));
        }
        let chosen = async |object: &Arc<Object>| -> Result<bool, Status> {
            if self.served.selects_stored() {
                return Ok(self.selector.matches(&self.served, object));
            }
            Ok(self.selector.matches(&self.served, &*self.served.view(object).await?))
        };
        let is = event.change != Change::Deleted && chosen(&event.object).await?;
        let was = match &event.previous {
            Some(previous) => chosen(previous).await?,
            None => false,
        };
        Ok(match (was, is) {
            (false, false) => None,
            (false, true) => Some((Change::Added, event.object.clone())),
            (true, true) => Some((Change::Modified, event.object.clone())),
            (true, false) if event.change == Change::Deleted => Some((Change::Deleted, event.object.clone())),
            (true, false) => {
                let previous = event.previous.as_ref();
                previous.map(|p| (Change::Deleted, Arc::new(p.at(event.revision, Change::Deleted))))
            }
        })
    }

    fn bookmark(&mut self, end: bool) -> Result<Bytes, Status> {
        let resource = &self.served.resource;
        let mut object = json!({
            "kind": resource.kind,
            "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": self.position.to_string()},
        });
        if end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        resource.normalize(&mut object);
        self.frames.other("BOOKMARK", object)
    }
}
