//! What is counted of work queues and of a client's requests, under the reference's names (upstream: `component-base/metrics/
//! prometheus/{workqueue,restclient}`). The part of the process that serves metrics shows them.

use std::sync::{Arc, LazyLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use exposition::Stability::{Alpha, Beta};
use exposition::{Counter, Family, Gauge, Histogram, families};
use parking_lot::Mutex;
use tower::{Layer, Service};

const WORK: &[f64] = &[1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0];
const REQUESTS: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
const QUEUE: &[&str] = &["name"];

families! {
    struct Meters {
        adds: Counter = Family::new("workqueue_adds_total", Beta, "Keys added to a queue.", QUEUE);
        depth: Gauge = Family::new("workqueue_depth", Beta, "Keys that wait in a queue.", QUEUE);
        waited: Histogram = Family::histogram("workqueue_queue_duration_seconds", Beta,
            "Time that keys waited in a queue.", QUEUE, WORK);
        worked: Histogram = Family::histogram("workqueue_work_duration_seconds", Beta,
            "Time that the work on a key took.", QUEUE, WORK);
        unfinished: Gauge = Family::new("workqueue_unfinished_work_seconds", Beta,
            "Time that the work under way has taken so far, summed up.", QUEUE);
        longest: Gauge = Family::new("workqueue_longest_running_processor_seconds", Beta,
            "Time that the longest work under way has taken so far.", QUEUE);
        retries: Counter = Family::new("workqueue_retries_total", Beta,
            "Keys that came back after a failure.", QUEUE);
        requests: Counter = Family::new("rest_client_requests_total", Alpha,
            "Requests by answer code, method and host.", &["code", "host", "method"]);
        latency: Histogram = Family::histogram("rest_client_request_duration_seconds", Alpha,
            "Time to the answer of a request.", &["host", "verb"], REQUESTS);
    }
}

static METERS: LazyLock<Meters> = LazyLock::new(|| {
    exposition::share(write);
    Meters::new()
});

/// The queues that are worked on.
static QUEUES: Mutex<Vec<(&'static str, Weak<dyn UnderWay>)>> = Mutex::new(Vec::new());

/// What a queue tells of the work under way.
pub(crate) trait UnderWay: Send + Sync {
    /// For how long each key is worked on, and how many wait.
    fn under_way(&self) -> (Vec<Duration>, usize);
}

/// Shows a queue from now on; several may share a name.
pub(crate) fn watch(name: &'static str, queue: Weak<dyn UnderWay>) {
    let mut queues = QUEUES.lock();
    queues.retain(|(_, queue)| queue.strong_count() > 0);
    queues.push((name, queue));
}

fn write(out: &mut String) {
    let mut sums: Vec<(&str, f64, f64, usize)> = Vec::new();
    for (name, queue) in QUEUES.lock().iter() {
        let Some(queue) = queue.upgrade() else { continue };
        let (times, waiting) = queue.under_way();
        let seconds = || times.iter().map(Duration::as_secs_f64);
        let (sum, longest) = (seconds().sum::<f64>(), seconds().fold(0.0, f64::max));
        match sums.iter_mut().find(|(known, ..)| known == name) {
            Some(known) => *known = (*name, known.1 + sum, known.2.max(longest), known.3 + waiting),
            None => sums.push((*name, sum, longest, waiting)),
        }
    }
    for (name, sum, longest, waiting) in sums {
        METERS.unfinished.with(&[name]).set(sum);
        METERS.longest.with(&[name]).set(longest);
        METERS.depth.with(&[name]).set(waiting as f64);
    }
    for family in METERS.each() {
        family.write(out);
    }
}

/// The series of one queue.
pub(crate) struct Queued {
    pub adds: Arc<Counter>,
    pub waited: Arc<Histogram>,
    pub worked: Arc<Histogram>,
    pub retries: Arc<Counter>,
}

impl Queued {
    pub fn new(name: &str) -> Self {
        let meters = &*METERS;
        Self {
            adds: meters.adds.with(&[name]),
            waited: meters.waited.with(&[name]),
            worked: meters.worked.with(&[name]),
            retries: meters.retries.with(&[name]),
        }
    }
}

/// Counts the requests of a client.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountRequests;

impl<S> Layer<S> for CountRequests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted(inner)
    }
}

/// A client's service whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counted<S>(pub S);

impl<S, B, R> Service<http::Request<B>> for Counted<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    R: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        // A request inside the process names no host.
        let host = request.uri().authority().map_or_else(|| "localhost".to_owned(), ToString::to_string);
        let (method, before) = (request.method().clone(), Instant::now());
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = match &answer {
                Ok(answer) => answer.status().as_u16().to_string(),
                Err(_) => "<error>".to_owned(),
            };
            METERS.requests.with(&[&code, &host, method.as_str()]).increment();
            METERS.latency.with(&[&host, method.as_str()]).observe(before.elapsed().as_secs_f64());
            answer
        })
    }
}
