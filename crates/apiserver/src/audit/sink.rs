//! The back ends: a log file and a webhook. Both take events by and by, the log by a thread of its own, the webhook in
//! batches, or before the request goes on. What does not fit into a bounded buffer is dropped and counted; no request waits for a slow back end unless
//! that was asked for.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::file::{Rotating, Rotation};
use crate::metrics::metrics;
use crate::webhook::{Endpoint, Timeout};

/// When events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By and by; what does not fit into the buffer is lost.
    Batch,
    /// Before the request goes on.
    #[default]
    Blocking,
    /// The same, and a request whose arrival cannot be written down is refused.
    BlockingStrict,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "batch" => Self::Batch,
            "blocking" => Self::Blocking,
            "blocking-strict" => Self::BlockingStrict,
            other => return Err(format!("{other:?} is not batch, blocking or blocking-strict")),
        })
    }
}

/// A log file. The path `-` is the standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub path: PathBuf,
    pub rotation: Rotation,
    pub mode: Mode,
    /// Events that may wait in batch mode.
    pub buffer: usize,
}

/// How events are sent to a webhook.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchConfig {
    /// In batches, or each before its request goes on.
    pub mode: Mode,
    /// Events that may wait.
    pub buffer: usize,
    /// Events in a batch.
    pub size: usize,
    /// How long a batch waits to become full.
    pub wait: Duration,
    /// Batches a second in the long run; none: no bound.
    pub throttle: Option<(f64, usize)>,
    pub first_backoff: Duration,
    /// Bytes of a batch and of an event, beyond which they are split and cut.
    pub truncate: Option<(usize, usize)>,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Batch,
            buffer: 10_000,
            size: 400,
            wait: Duration::from_secs(30),
            throttle: Some((10.0, 15)),
            first_backoff: Duration::from_secs(10),
            truncate: None,
        }
    }
}

/// Most bytes that are written at once.
const BLOCK: usize = 256 << 10;

enum Output {
    File(Rotating),
    Standard,
}

impl Output {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        match self {
            Self::File(file) => file.write(lines),
            Self::Standard => std::io::stdout().lock().write_all(lines),
        }
    }
}

fn lost(plugin: &str, count: u64, why: impl std::fmt::Display) {
    metrics().audit_errors.with(&[plugin]).add(count);
    tracing::error!(plugin, count, "audit events are lost: {why}");
}

/// The log file.
pub struct Log {
    strict: bool,
    way: Way,
}

enum Way {
    Direct(Mutex<Output>),
    Thread(Mutex<Option<(SyncSender<Bytes>, std::thread::JoinHandle<()>)>>, SyncSender<Bytes>),
}

impl Log {
    /// Opens the file.
    pub fn open(config: &LogConfig) -> std::io::Result<Self> {
        let output = match config.path.as_os_str().as_encoded_bytes() {
            b"-" => Output::Standard,
            _ => Output::File(Rotating::open(&config.path, config.rotation.clone())?),
        };
        let way = match config.mode {
            Mode::Batch => {
                let (send, receive) = sync_channel(config.buffer.max(1));
                let thread = std::thread::Builder::new().name("audit-log".to_owned());
                let thread = thread.spawn(move || write_all(&receive, output))?;
                Way::Thread(Mutex::new(Some((send.clone(), thread))), send)
            }
            Mode::Blocking | Mode::BlockingStrict => Way::Direct(Mutex::new(output)),
        };
        Ok(Self { strict: config.mode == Mode::BlockingStrict, way })
    }

    fn take(&self, event: &Bytes) -> bool {
        match &self.way {
            Way::Direct(output) => {
                let mut line = Vec::with_capacity(event.len() + 1);
                line.extend_from_slice(event);
                line.push(b'\n');
                match output.lock().write(&line) {
                    Ok(()) => true,
                    Err(error) => {
                        lost("log", 1, error);
                        !self.strict
                    }
                }
            }
            Way::Thread(_, send) => {
                if send.try_send(event.clone()).is_err() {
                    metrics().audit_errors.with(&["buffered"]).increment();
                }
                true
            }
        }
    }

    /// Writes what waits.
    fn close(&self) {
        if let Way::Thread(own, _) = &self.way
            && let Some((send, thread)) = own.lock().take()
        {
            // An empty event tells the thread to end: senders stay in the hands of requests that are still open.
            drop(send.send(Bytes::new()));
            drop(thread.join());
        }
    }
}

/// Writes until an empty event comes or all senders are gone.
fn write_all(receive: &Receiver<Bytes>, mut output: Output) {
    let mut block = Vec::with_capacity(BLOCK);
    while let Ok(first) = receive.recv() {
        let (mut next, mut count, mut end) = (Some(first), 0u64, false);
        block.clear();
        while let Some(event) = next.take() {
            if event.is_empty() {
                end = true;
                break;
            }
            block.extend_from_slice(&event);
            block.push(b'\n');
            count += 1;
            next = if block.len() < BLOCK { receive.try_recv().ok() } else { None };
        }
        if let Err(error) = output.write(&block) {
            lost("log", count, error);
        }
        if end {
            return;
        }
    }
}

/// Tells whether an event that the request waits for was kept.
pub type Ticket = tokio::sync::oneshot::Receiver<bool>;

/// The webhook: a queue and the task that empties it, or each event by itself.
pub struct Webhook {
    send: mpsc::Sender<Bytes>,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
    stop: tokio_util::sync::CancellationToken,
    /// For events that requests wait for.
    direct: Option<(Arc<Endpoint>, BatchConfig)>,
}

const TIME_LIMIT: Duration = Duration::from_secs(30);
const TRIES: u32 = 5;
/// Batches that are sent at the same time.
const AT_ONCE: usize = 8;
/// How long the last batches may take when the server ends.
const LAST: Duration = Duration::from_secs(5);

impl Webhook {
    /// Must be called in a runtime.
    pub fn start(endpoint: Arc<Endpoint>, config: BatchConfig) -> Self {
        let (send, receive) = mpsc::channel(config.buffer.max(1));
        let stop = tokio_util::sync::CancellationToken::new();
        let direct = (config.mode != Mode::Batch).then(|| (endpoint.clone(), config.clone()));
        let task = tokio::spawn(post_all(receive, endpoint, config, stop.clone()));
        Self { send, task: Mutex::new(Some(task)), stop, direct }
    }

    fn take(&self, event: &Bytes, tickets: &mut Vec<Ticket>) -> bool {
        if let Some((endpoint, config)) = &self.direct {
            let strict = config.mode == Mode::BlockingStrict;
            let (tell, ticket) = tokio::sync::oneshot::channel();
            tickets.push(ticket);
            let (endpoint, backoff) = (endpoint.clone(), config.first_backoff);
            let bodies = bodies(vec![event.clone()], config.truncate);
            tokio::spawn(async move {
                let mut kept = true;
                for body in bodies {
                    kept &= post(&endpoint, body, backoff).await;
                }
                // Nobody waits for what a long-running request says at its end.
                let _ = tell.send(kept || !strict);
            });
            return true;
        }
        if self.send.try_send(event.clone()).is_err() {
            metrics().audit_errors.with(&["buffered"]).increment();
        }
        true
    }

    async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task {
            drop(tokio::time::timeout(LAST, task).await);
        }
    }
}

async fn post_all(
    mut receive: mpsc::Receiver<Bytes>,
    endpoint: Arc<Endpoint>,
    config: BatchConfig,
    stop: tokio_util::sync::CancellationToken,
) {
    let sending = Arc::new(Semaphore::new(AT_ONCE));
    let mut throttle = config.throttle.map(|(rate, burst)| Throttle::new(rate, burst, Instant::now()));
    let mut ended = false;
    while !ended {
        let mut batch = Vec::new();
        let deadline = Instant::now() + config.wait;
        while batch.len() < config.size {
            tokio::select! {
                biased;
                event = receive.recv() => match event {
                    Some(event) => batch.push(event),
                    None => { ended = true; break }
                },
                () = stop.cancelled() => { ended = true; break }
                () = tokio::time::sleep_until(deadline), if !batch.is_empty() => break,
            }
        }
        for body in bodies(batch, config.truncate) {
            if let Some(throttle) = &mut throttle {
                tokio::time::sleep_until(throttle.next(Instant::now())).await;
            }
            let Ok(permit) = sending.clone().acquire_owned().await else { return };
            let (endpoint, backoff) = (endpoint.clone(), config.first_backoff);
            tokio::spawn(async move {
                post(&endpoint, body, backoff).await;
                drop(permit);
            });
        }
    }
    // Wait for those that are on their way.
    drop(sending.acquire_many(AT_ONCE as u32).await);
}

/// Whether the events were taken in.
async fn post(endpoint: &Endpoint, (body, count): (Bytes, u64), first: Duration) -> bool {
    let mut backoff = first;
    for attempt in 1..=TRIES {
        match endpoint.post_bytes(body.clone(), Timeout::of(TIME_LIMIT)).await {
            Ok(_) => return true,
            Err(error) if attempt == TRIES => lost("webhook", count, error),
            Err(error) => {
                tracing::warn!(%error, "the audit webhook takes no events; trying again");
                let spread = rand::Rng::random_range(&mut rand::rng(), 1.0..1.2);
                tokio::time::sleep(backoff.mul_f64(spread)).await;
                backoff = backoff.mul_f64(1.5);
            }
        }
    }
    false
}

/// `EventList`s of the events, split and cut where they are too large, and how many events each holds.
fn bodies(events: Vec<Bytes>, truncate: Option<(usize, usize)>) -> Vec<(Bytes, u64)> {
    const HEAD: &[u8] =
        b"{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{},\"items\":[";
    let (largest_batch, largest_event) = truncate.unwrap_or((usize::MAX, usize::MAX));
    let mut bodies = Vec::new();
    let (mut body, mut count) = (HEAD.to_vec(), 0);
    let mut finish = |body: &mut Vec<u8>, count: &mut u64| {
        body.extend_from_slice(b"]}");
        bodies.push((Bytes::from(std::mem::replace(body, HEAD.to_vec())), std::mem::take(count)));
    };
    for event in events {
        let event = if event.len() > largest_event { cut(&event) } else { event };
        if event.len() > largest_event {
            lost("truncate", 1, "an event is too large even without its objects");
            continue;
        }
        if count > 0 && body.len().saturating_add(event.len()) > largest_batch {
            finish(&mut body, &mut count);
        }
        if count > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&event);
        count += 1;
    }
    if count > 0 {
        finish(&mut body, &mut count);
    }
    bodies
}

/// An event without its objects.
fn cut(event: &Bytes) -> Bytes {
    let Ok(mut value) = serde_json::from_slice::<Value>(event) else { return event.clone() };
    let Some(map) = value.as_object_mut() else { return event.clone() };
    map.remove("requestObject");
    map.remove("responseObject");
    let annotations = map.entry("annotations").or_insert_with(|| json!({}));
    annotations["audit.k8s.io/truncated"] = "true".into();
    value.to_string().into()
}

/// A token bucket.
struct Throttle {
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Throttle {
    fn new(rate: f64, burst: usize, now: Instant) -> Self {
        let burst = burst.max(1) as f64;
        Self { rate: rate.max(0.001), burst, tokens: burst, at: now }
    }

    /// Takes a token; when it may be used.
    fn next(&mut self, now: Instant) -> Instant {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.burst) - 1.0;
        self.at = now;
        if self.tokens >= 0.0 { now } else { now + Duration::from_secs_f64(-self.tokens / self.rate) }
    }
}

/// A back end.
pub enum Sink {
    Log(Log),
    Webhook(Webhook),
}

impl Sink {
    /// Takes an event in; false if it must be kept and could not be. What the request has to wait for is a ticket.
    pub fn take(&self, event: &Bytes, tickets: &mut Vec<Ticket>) -> bool {
        match self {
            Self::Log(log) => log.take(event),
            Self::Webhook(webhook) => webhook.take(event, tickets),
        }
    }

    /// Writes and sends what waits.
    pub async fn close(&self) {
        match self {
            Self::Log(log) => log.close(),
            Self::Webhook(webhook) => webhook.close().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_split_and_events_cut() {
        let small = Bytes::from_static(b"{\"level\":\"Metadata\"}");
        let large: Bytes =
            json!({"level": "Request", "requestObject": {"data": "x".repeat(1000)}}).to_string().into();
        let huge: Bytes = json!({"requestURI": "x".repeat(1000)}).to_string().into();
        let events = vec![small.clone(), large, huge, small.clone(), small];
        let bodies = bodies(events, Some((200, 120)));
        let counts: Vec<u64> = bodies.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts.iter().sum::<u64>(), 4, "one is too large whatever is left out");
        assert!(counts.len() > 1);
        let all: Vec<Value> = bodies
            .iter()
            .flat_map(|(body, _)| {
                let list: Value = serde_json::from_slice(body).expect("a list");
                assert_eq!(list["kind"], "EventList");
                list["items"].as_array().expect("items").clone()
            })
            .collect();
        assert_eq!(all[1]["annotations"]["audit.k8s.io/truncated"], "true");
        assert!(all[1].get("requestObject").is_none());
    }

    #[test]
    fn a_throttle_lets_a_burst_through_and_then_a_rate() {
        let now = Instant::now();
        let mut throttle = Throttle::new(10.0, 2, now);
        let waits: Vec<u128> = (0..4).map(|_| throttle.next(now).duration_since(now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 100, 200]);
        let later = now + Duration::from_secs(1);
        assert_eq!(throttle.next(later), later);
    }

    #[tokio::test]
    async fn events_are_lines_in_every_mode() {
        for mode in [Mode::Batch, Mode::Blocking, Mode::BlockingStrict] {
            let dir = tempfile::tempdir().expect("a folder");
            let path = dir.path().join("audit.log");
            let rotation = Rotation { size: 0, backups: 0, age: Duration::ZERO, compress: false };
            let config = LogConfig { path: path.clone(), rotation, mode, buffer: 100 };
            let sink = Sink::Log(Log::open(&config).expect("opened"));
            for i in 0..50 {
                assert!(sink.take(&format!("{{\"i\":{i}}}").into(), &mut Vec::new()));
            }
            sink.close().await;
            let text = std::fs::read_to_string(&path).expect("read");
            assert_eq!(text.lines().count(), 50);
            assert_eq!(text.lines().last(), Some("{\"i\":49}"));
        }
    }
}
