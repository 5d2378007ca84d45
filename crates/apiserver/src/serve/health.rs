//! `/healthz`, `/livez` and `/readyz`, whole and check by check (upstream: `apiserver/pkg/server/healthz`).

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use parking_lot::Mutex;

use crate::http::body::Body;
use crate::metrics::metrics;
use crate::pipeline::text;
use crate::query::Query;
use crate::request::RequestInfo;
use crate::server::Server;

/// How long the store may take to answer.
const STORE: Duration = Duration::from_secs(2);
/// More changes than this that the caches have not seen mean that they do not keep up.
const MOST_LAG: u64 = 100_000;

/// What has to be done once after the start, and whether it is.
#[derive(Default)]
pub struct PostStart(Mutex<Vec<(&'static str, bool)>>);

impl PostStart {
    /// Notes a step that is to come.
    pub fn expect(&self, name: &'static str) {
        self.0.lock().push((name, false));
    }

    /// Notes that a step is done.
    pub fn done(&self, name: &'static str) {
        let mut steps = self.0.lock();
        match steps.iter_mut().find(|(own, _)| *own == name) {
            Some((_, done)) => *done = true,
            None => steps.push((name, true)),
        }
    }
}

type Check = (String, Result<(), String>);

async fn store(server: &Server) -> Result<(), String> {
    let read = server.registry.store.get(Bytes::from_static(b"/registry/health"), None);
    match tokio::time::timeout(STORE, read).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {STORE:?}")),
    }
}

/// The checks of an endpoint and what is wrong with each.
async fn checks(server: &Server, endpoint: &str) -> Vec<Check> {
    let registry = &server.registry;
    let mut checks: Vec<Check> = vec![("ping".to_owned(), Ok(())), ("log".to_owned(), Ok(()))];
    let reached = store(server).await;
    checks.push(("etcd".to_owned(), reached.clone()));
    if endpoint == "readyz" {
        checks.push(("etcd-readiness".to_owned(), reached));
    }
    if endpoint != "livez" {
        let lag = registry.store.revision().saturating_sub(registry.applied());
        let kept_up =
            if lag < MOST_LAG { Ok(()) } else { Err(format!("the caches are {lag} changes behind")) };
        checks.push(("informer-sync".to_owned(), kept_up));
    }
    for (name, done) in server.post_start.0.lock().iter() {
        let result = if *done { Ok(()) } else { Err("not finished".to_owned()) };
        checks.push((format!("poststarthook/{name}"), result));
    }
    let plugins = server.hooks.transform.as_ref().map(|t| t.providers()).unwrap_or_default();
    if !plugins.is_empty() {
        let faults: Vec<String> = plugins.into_iter().filter_map(|(_, health)| health.err()).collect();
        let result = if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) };
        checks.push(("kms-providers".to_owned(), result));
    }
    if endpoint == "readyz" {
        let stopping = server.stopping.is_cancelled();
        let result = if stopping { Err("process is shutting down".to_owned()) } else { Ok(()) };
        checks.push(("shutdown".to_owned(), result));
    }
    checks
}

fn count(endpoint: &str, checks: &[Check]) {
    for (name, result) in checks {
        let well = f64::from(u8::from(result.is_ok()));
        metrics().healthcheck.with(&[name, endpoint]).set(well);
        let status = if result.is_ok() { "success" } else { "error" };
        metrics().healthchecks.with(&[name, status, endpoint]).increment();
    }
}

/// Answers a path of one of the endpoints; `None` for other paths.
pub async fn answer(
    server: &Server,
    method: &Method,
    query: &Query,
    info: &RequestInfo,
) -> Option<Response<Body>> {
    let path = info.path.trim_end_matches('/');
    let (endpoint, single) = match path.strip_prefix('/')?.split_once('/') {
        Some((endpoint, single)) => (endpoint, single),
        None => (path.strip_prefix('/')?, ""),
    };
    if !matches!(endpoint, "healthz" | "livez" | "readyz") || !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let checks = checks(server, endpoint).await;
    count(endpoint, &checks);
    if single.is_empty() {
        return Some(whole(endpoint, &checks, query));
    }
    Some(match checks.iter().find(|(name, _)| name == single) {
        Some((_, Ok(()))) => text(StatusCode::OK, "ok"),
        Some((_, Err(why))) => {
            text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n"))
        }
        None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    })
}

fn whole(endpoint: &str, checks: &[Check], query: &Query) -> Response<Body> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut report = String::new();
    let mut failed = Vec::new();
    for (name, result) in checks {
        if excluded.contains(&name.as_str()) {
            report.push_str(&format!("[+]{name} excluded: ok\n"));
            continue;
        }
        match result {
            Ok(()) => report.push_str(&format!("[+]{name} ok\n")),
            Err(why) => {
                // Whoever may look at the endpoint need not know the server's insides.
                report.push_str(&format!("[-]{name} failed: reason withheld\n"));
                failed.push(format!("{name}: {why}"));
            }
        }
    }
    let mut unknown: Vec<&str> =
        excluded.into_iter().filter(|name| !checks.iter().any(|(own, _)| own == name)).collect();
    if !unknown.is_empty() {
        unknown.sort_unstable();
        unknown.dedup();
        let names: Vec<String> = unknown.iter().map(|name| format!("{name:?}")).collect();
        let names = names.join(", ");
        report.push_str(&format!("warn: some health checks cannot be excluded: no matches for {names}\n"));
    }
    if !failed.is_empty() {
        tracing::warn!(endpoint, "health checks failed: {}", failed.join("; "));
        report.push_str(&format!("{endpoint} check failed\n"));
        return text(StatusCode::INTERNAL_SERVER_ERROR, report);
    }
    if query.get("verbose").is_some() {
        report.push_str(&format!("{endpoint} check passed\n"));
        return text(StatusCode::OK, report);
    }
    text(StatusCode::OK, "ok")
}
