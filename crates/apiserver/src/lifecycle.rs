//! What surrounds every request: its time limit, its seats, and what is counted of it from arrival to the last byte.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use exposition::{Counter, Histogram};
use futures::Stream;
use futures::stream::BoxStream;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use jiff::Timestamp;
use parking_lot::Mutex;

use crate::audit::{Outcome, Record, Stage, Trail};
use crate::http::body::Body;
use crate::metrics::metrics;
use crate::metrics::request::{Labels, Open};
use crate::query::Query;
use crate::request::RequestInfo;
use crate::server::Server;
use crate::trace::Active;
use crate::{Attributes, Protection, Status, duration, flow, render};

const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const LONGEST_ID: usize = 256;
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// A watch that has much to send at its beginning keeps its seats no longer than this.
const LONGEST_START: Duration = Duration::from_secs(10);

/// How long a request may take: what the client asks for, at most the server's own limit.
pub fn time_limit(protection: &Protection, query: &Query) -> Result<Duration, Status> {
    let most = protection.request_timeout;
    let text = query.text("timeout");
    if text.is_empty() {
        return Ok(most);
    }
    let bad = |why| Status::bad_request(format!("invalid timeout specified in the request URL - {why}"));
    let asked = duration::parse(text).map_err(bad)?;
    Ok(if asked.is_zero() { most } else { asked.min(most) })
}

/// Whether a path is answered also by a server that ends.
pub fn always(info: &RequestInfo) -> bool {
    ["/readyz", "/livez", "/healthz", "/metrics"].iter().any(|path| info.path.starts_with(path))
}

/// What a server that ends says to new requests.
pub fn elsewhere() -> Response<Body> {
    let mut response = crate::pipeline::text(
        StatusCode::TOO_MANY_REQUESTS,
        "The apiserver is shutting down, please try again later.\n",
    );
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// Requests that are served or wait at this moment, and the most that were since this was last asked.
#[derive(Default)]
pub struct Watermark {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Watermark {
    fn enter(self: &Arc<Self>) -> Inside {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Inside(self.clone())
    }

    fn take(&self) -> f64 {
        let now = self.now.load(Ordering::Relaxed);
        self.most.swap(now, Ordering::Relaxed).max(now) as f64
    }
}

/// Counts as long as it lives.
struct Inside(Arc<Watermark>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The requests in flight.
#[derive(Default)]
pub struct InFlight {
    reading: Arc<Watermark>,
    writing: Arc<Watermark>,
    reading_waits: Arc<Watermark>,
    writing_waits: Arc<Watermark>,
    /// Everything that is not long-running, for the end of the server.
    all: Arc<Watermark>,
}

impl InFlight {
    /// Requests that are not long-running and not answered yet.
    pub fn open(&self) -> usize {
        self.all.now.load(Ordering::Relaxed)
    }

    fn served(&self, labels: &Labels) -> &Arc<Watermark> {
        if labels.kind() == "mutating" { &self.writing } else { &self.reading }
    }

    fn waits(&self, labels: &Labels) -> &Arc<Watermark> {
        if labels.kind() == "mutating" { &self.writing_waits } else { &self.reading_waits }
    }

    /// Puts the marks into the metrics.
    pub fn show(&self) {
        let m = metrics();
        m.current_inflight.with(&["readOnly"]).set(self.reading.take());
        m.current_inflight.with(&["mutating"]).set(self.writing.take());
        m.current_inqueue.with(&["readOnly"]).set(self.reading_waits.take());
        m.current_inqueue.with(&["mutating"]).set(self.writing_waits.take());
    }
}

/// One request from its arrival to the last byte of its answer.
pub struct Track {
    pub labels: Labels,
    pub started: Instant,
    limit: Option<Duration>,
    /// Nanoseconds that were spent waiting for seats and webhooks.
    waited: AtomicU64,
    headers: Mutex<HeaderMap>,
    held: Mutex<Held>,
    /// What is noted for the audit events, and their name, which the client is told.
    pub record: Arc<Record>,
    audit_id: HeaderValue,
    received: Timestamp,
    trail: OnceLock<Trail>,
    /// Whether the last event has been made.
    ended: AtomicBool,
    /// The span, and the request's target.
    span: Mutex<Option<(Active, String)>>,
    stranger: AtomicBool,
    /// Whether the request counts among those that the server's end waits for.
    _inside: Option<Inside>,
}

/// What lives as long as the body of the answer.
#[derive(Default)]
struct Held {
    permit: Option<flow::Permit>,
    watching: Option<flow::Watching>,
    _open: Option<Open>,
    served: Option<Inside>,
}

impl Track {
    /// `limit` is absent for a request that stays open.
    pub fn new(server: &Server, headers: &HeaderMap, labels: Labels, limit: Option<Duration>) -> Self {
        let open = limit.is_none().then(|| labels.open());
        Self {
            labels,
            started: Instant::now(),
            limit,
            waited: AtomicU64::new(0),
            headers: Mutex::default(),
            held: Mutex::new(Held { _open: open, ..Held::default() }),
            record: Arc::new(if server.audit.is_some() { Record::default() } else { Record::off() }),
            audit_id: audit_id(headers),
            received: Timestamp::now(),
            trail: OnceLock::new(),
            ended: AtomicBool::new(false),
            span: Mutex::new(None),
            stranger: AtomicBool::new(false),
            _inside: limit.is_some().then(|| server.in_flight.all.enter()),
        }
    }

    /// Traces the request until it is answered.
    pub fn trace(&self, span: Active, target: String) {
        *self.span.lock() = Some((span, target));
    }

    /// Begins the audit of a request whose sender is known.
    pub async fn audit(
        &self,
        server: &Server,
        parts: &Parts,
        peer: Option<IpAddr>,
        attributes: &Attributes,
    ) -> Result<(), Status> {
        let Some(auditor) = &server.audit else { return Ok(()) };
        let id = self.audit_id.to_str().unwrap_or_default();
        let trail = Trail::begin(auditor, &self.record, id, self.received, parts, peer, attributes);
        let Some(trail) = trail else { return Ok(()) };
        let kept = trail.emit(Stage::RequestReceived, None);
        drop(self.trail.set(trail));
        if kept && self.settled().await {
            return Ok(());
        }
        metrics().audit_rejected.with(&[]).increment();
        Err(Status::internal("failed to store audit event"))
    }

    /// Waits for the audit events of the request, where that was asked for.
    pub async fn settled(&self) -> bool {
        match self.trail.get() {
            Some(trail) => trail.settled().await,
            None => true,
        }
    }

    /// Begins the audit of a request that nobody is known to have sent.
    pub fn stranger(&self, server: &Server, parts: &Parts, peer: Option<IpAddr>, attributes: &Attributes) {
        self.stranger.store(true, Ordering::Relaxed);
        let Some(auditor) = &server.audit else { return };
        let id = self.audit_id.to_str().unwrap_or_default();
        if let Some(trail) = Trail::begin(auditor, &self.record, id, self.received, parts, peer, attributes) {
            drop(self.trail.set(trail));
        }
    }

    /// Ends the audit of a request whose handling broke down.
    pub fn panicked(&self) {
        if let Some(trail) = self.trail.get()
            && !self.ended.swap(true, Ordering::Relaxed)
        {
            trail.emit(Stage::Panic, Some(&Outcome::panicked()));
        }
    }

    /// What the audit events say of an answer. The body is read only if the policy asks for it.
    pub fn outcome(
        &self,
        response: Response<Body>,
        failure: Option<&Status>,
    ) -> (Response<Body>, Option<Outcome>) {
        let Some(trail) = self.trail.get() else { return (response, None) };
        let code = response.status().as_u16();
        let (head, mut body) = response.into_parts();
        let mut object = None;
        if trail.wants_response() && !matches!(body, Body::Stream(_)) {
            let bytes = body.collect_now().unwrap_or_default();
            object = render::decode(&head.headers, &bytes);
            body = Body::Full(bytes);
        }
        let told = match (failure, &object, &body) {
            (Some(status), ..) => Some(status.to_value()),
            (None, Some(object), _) => Some(object.clone()).filter(|o| o["kind"] == "Status"),
            (None, None, Body::Full(bytes)) if says_status(bytes) => serde_json::from_slice(bytes).ok(),
            _ => None,
        };
        (Response::from_parts(head, body), Some(Outcome::new(code, told.as_ref(), object)))
    }

    /// Makes the event that ends a request.
    fn complete(&self, outcome: Option<&Outcome>) {
        if let Some(trail) = self.trail.get()
            && !self.ended.swap(true, Ordering::Relaxed)
        {
            // Of somebody unknown there is only the refusal.
            let stranger = self.stranger.load(Ordering::Relaxed);
            let stage = if stranger { Stage::ResponseStarted } else { Stage::ResponseComplete };
            trail.emit(stage, outcome);
        }
    }

    /// Notes time that is not the server's own.
    pub fn wait(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Waits for the seats of a request. An answer instead of `None` says that it is not served.
    pub async fn admit(
        &self,
        server: &Server,
        info: &RequestInfo,
        query: &Query,
        attributes: &Attributes,
    ) -> Option<Response<Body>> {
        let watch = info.verb == "watch";
        // Streams that are no watches take no seats: they are limited by the number of connections.
        if self.limit.is_none() && !watch {
            return None;
        }
        let Some(fairness) = &server.fairness else { return self.admit_by_number(server, attributes) };
        let entry = fairness.classify(attributes);
        {
            let mut headers = self.headers.lock();
            headers.insert(SCHEMA_UID, entry.schema_uid.clone());
            headers.insert(LEVEL_UID, entry.level_uid.clone());
        }
        let mutating = matches!(info.verb.as_str(), "create" | "update" | "patch" | "delete");
        let watchers = mutating.then(|| fairness.watches.interested(info));
        let work = flow::estimate(info, query, entry.level(), watchers.unwrap_or(0), || {
            let served = server.registry.find(&info.group, &info.version, &info.resource)?;
            Some(flow::Stored::of(&served))
        });
        entry.estimated(&work, watchers);
        let limit = self.limit.unwrap_or(server.config.protection.request_timeout);
        let waits = server.in_flight.waits(&self.labels).enter();
        let before = Instant::now();
        let admitted = fairness.admit(&entry, attributes, work, limit).await;
        self.wait(before.elapsed());
        drop(waits);
        match admitted {
            Ok(permit) => {
                let mut held = self.held.lock();
                held.permit = Some(permit);
                held.served = Some(server.in_flight.served(&self.labels).enter());
                if watch {
                    held.watching = fairness.watches.open(info, query);
                }
                None
            }
            Err(refused) => {
                tracing::debug!(user = attributes.user.name, refused.why, "a request finds no seat");
                Some(self.too_many(refused.retry_after))
            }
        }
    }

    /// Without priority and fairness reads and writes are counted, each against its own number.
    fn admit_by_number(&self, server: &Server, attributes: &Attributes) -> Option<Response<Body>> {
        self.limit?;
        let protection = &server.config.protection;
        let most = match self.labels.kind() {
            "mutating" => protection.max_mutating_requests_inflight,
            _ => protection.max_requests_inflight,
        };
        let served = server.in_flight.served(&self.labels).enter();
        let now = served.0.now.load(Ordering::Relaxed);
        // The administrator must be able to look after a server that is flooded.
        if most > 0 && now > most && !attributes.user.in_group("system:masters") {
            return Some(self.too_many(1));
        }
        self.held.lock().served = Some(served);
        None
    }

    fn too_many(&self, retry_after: u64) -> Response<Body> {
        self.labels.terminated(429);
        let mut response = crate::pipeline::text(
            StatusCode::TOO_MANY_REQUESTS,
            "Too many requests, please try again later.\n",
        );
        response.headers_mut().insert(RETRY_AFTER, retry_after.into());
        response
    }

    /// Gives seats back: all that was to be done for the answer is done. A watch keeps them until it has begun.
    pub fn worked(&self) {
        if self.limit.is_some() {
            let mut held = self.held.lock();
            held.permit = None;
            held.served = None;
        }
    }

    /// Counts the answer, and holds on to what lives as long as its body.
    pub fn answered(
        self: &Arc<Self>,
        mut response: Response<Body>,
        outcome: Option<Outcome>,
    ) -> Response<Body> {
        response.headers_mut().insert(AUDIT_ID, self.audit_id.clone());
        response.headers_mut().extend(std::mem::take(&mut *self.headers.lock()));
        let size = http_body::Body::size_hint(response.body()).exact();
        let waited = Duration::from_nanos(self.waited.load(Ordering::Relaxed));
        let count = {
            let (track, code) = (self.clone(), response.status().as_u16());
            move |outcome: Option<Outcome>| {
                track.labels.answered(code, track.started.elapsed(), waited, size);
                track.complete(outcome.as_ref());
                if let Some((span, target)) = track.span.lock().take() {
                    span.end(code, &target, track.audit_id.to_str().unwrap_or_default());
                }
            }
        };
        if self.limit.is_some() {
            count(outcome);
            return response;
        }
        if let Some(trail) = self.trail.get().filter(|_| !self.stranger.load(Ordering::Relaxed)) {
            trail.emit(Stage::ResponseStarted, outcome.as_ref());
        }
        response.map(|body| match body {
            Body::Stream(stream) => {
                let mut held = std::mem::take(&mut *self.held.lock());
                let start = held.permit.take().map(|permit| (permit, held.served.take()));
                let start = start.map(|start| Arc::new(Mutex::new(Some(start))));
                let end: Box<dyn FnOnce() + Send> = Box::new(move || count(outcome));
                let Labels { group, version, resource, verb, .. } = &self.labels;
                let events = (*verb == "WATCH").then(|| {
                    let labels = [group.as_str(), resource, version];
                    (metrics().watch_events.with(&labels), metrics().watch_events_sizes.with(&labels))
                });
                Body::Stream(Box::pin(Streaming {
                    stream,
                    _held: held,
                    start,
                    timed: false,
                    end: Some(end),
                    events,
                }))
            }
            other => {
                count(outcome);
                other
            }
        })
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        // The client has gone before it was answered.
        self.complete(Some(&Outcome::closed()));
    }
}

/// The name of the request's audit events: the client's own choice, if it made one.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    let own =
        headers.get(AUDIT_ID).filter(|id| !id.is_empty() && id.len() <= LONGEST_ID && id.to_str().is_ok());
    own.cloned().unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().hyphenated().to_string();
        HeaderValue::try_from(id).expect("a UUID is a header value")
    })
}

/// Whether a body is a `Status` object in JSON, going by its beginning.
fn says_status(body: &[u8]) -> bool {
    const KIND: &[u8] = b"\"kind\":\"Status\"";
    body.len() < 16 << 10 && body[..body.len().min(64)].windows(KIND.len()).any(|part| part == KIND)
}

/// The seats of a watch while it begins.
type Start = Arc<Mutex<Option<(flow::Permit, Option<Inside>)>>>;

/// The body of a long-running answer with what must live as long as it.
struct Streaming {
    stream: BoxStream<'static, Bytes>,
    _held: Held,
    start: Option<Start>,
    /// Whether the seats will be given back after a while, should the client not read.
    timed: bool,
    end: Option<Box<dyn FnOnce() + Send>>,
    /// Of a watch: how many events were sent, and of what size.
    events: Option<(Arc<Counter>, Arc<Histogram>)>,
}

impl Stream for Streaming {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let polled = self.stream.as_mut().poll_next(context);
        if let (Some((count, sizes)), Poll::Ready(Some(event))) = (&self.events, &polled) {
            count.increment();
            sizes.observe(event.len() as f64);
        }
        if let Some(start) = &self.start {
            match &polled {
                // What was there at the beginning has been sent: from here on the watch only waits.
                Poll::Pending | Poll::Ready(None) => {
                    drop(start.lock().take());
                    self.start = None;
                }
                Poll::Ready(Some(_)) if !self.timed => {
                    let start = start.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(LONGEST_START).await;
                        drop(start.lock().take());
                    });
                    self.timed = true;
                }
                Poll::Ready(Some(_)) => {}
            }
        }
        polled
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        if let Some(start) = &self.start {
            drop(start.lock().take());
        }
        if let Some(end) = self.end.take() {
            end();
        }
    }
}
