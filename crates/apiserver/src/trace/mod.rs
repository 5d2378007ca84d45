//! Traces of requests, sent to an OpenTelemetry collector: one span for each sampled request, joined to the caller's trace by
//! the W3C header `traceparent` (KEP-647; upstream: `apiserver/pkg/endpoints/filters/traces.go`).

mod export;
mod otlp;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, Method};
use rand::Rng;
use serde::Deserialize;

use crate::config_file::{self, FileError};
use crate::request::RequestInfo;
use export::Exporter;
use otlp::{KeyValue, Span, Status};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    endpoint: Option<String>,
    sampling_rate_per_million: Option<u32>,
}

const TRACEPARENT: &str = "traceparent";
const ENDPOINT: &str = "localhost:4317";
const MILLION: u32 = 1_000_000;

/// Why tracing cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("the tracing configuration is not usable")]
    File(#[from] FileError),
}

tokio::task_local! {
    /// The `traceparent` of what the server itself asks while it works on a request.
    static CONTEXT: Option<HeaderValue>;
}

/// The trace that a request's own calls belong to: the request's span if it is traced, else its caller's.
pub struct Context(Option<HeaderValue>);

impl Context {
    pub fn of(span: Option<&Active>, headers: &HeaderMap) -> Self {
        let callers =
            || headers.get(TRACEPARENT).filter(|h| h.to_str().is_ok_and(|h| Parent::parse(h).is_some()));
        Self(match span {
            Some(span) => span.context(),
            None => callers().cloned(),
        })
    }

    /// Does the work of the request: calls that it makes carry the trace on.
    pub async fn within<F: Future>(self, work: F) -> F::Output {
        CONTEXT.scope(self.0, work).await
    }
}

/// Puts the trace of the request that is being worked on into a call's headers.
pub fn carry_on(headers: &mut HeaderMap) {
    if let Ok(Some(context)) = CONTEXT.try_with(Clone::clone) {
        headers.insert(TRACEPARENT, context);
    }
}

/// Which requests are traced, and where their spans go.
pub struct Tracer {
    rate: u32,
    exporter: Exporter,
}

impl Tracer {
    /// Reads a `TracingConfiguration`. Must be called in a runtime.
    pub fn load(path: &Path) -> Result<Arc<Self>, TraceError> {
        let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];
        let file: File = config_file::read(path, &versions, "TracingConfiguration")?;
        let invalid = |reason: String| TraceError::File(FileError::invalid(path, reason));
        let rate = file.sampling_rate_per_million.unwrap_or(0);
        if rate > MILLION {
            return Err(invalid(format!("samplingRatePerMillion: {rate} is more than a million")));
        }
        let endpoint = file.endpoint.as_deref().unwrap_or(ENDPOINT);
        let exporter =
            Exporter::start(endpoint).map_err(|why| invalid(format!("endpoint: {endpoint:?}: {why}")))?;
        Ok(Arc::new(Self { rate, exporter }))
    }

    /// Begins the span of a request, if it is sampled: because its caller traces it, or by chance.
    pub fn begin(
        self: &Arc<Self>,
        method: &Method,
        headers: &HeaderMap,
        info: &RequestInfo,
    ) -> Option<Active> {
        let text = headers.get(TRACEPARENT).and_then(|h| h.to_str().ok());
        let parent = text.and_then(Parent::parse);
        let mut random = rand::rng();
        let sampled = match &parent {
            Some(parent) => parent.sampled,
            None => self.rate > 0 && random.random_range(0..MILLION) < self.rate,
        };
        if !sampled {
            return None;
        }
        Some(Active {
            tracer: self.clone(),
            trace: parent.as_ref().map_or_else(|| random.random(), |parent| parent.trace),
            parent: parent.map(|parent| parent.span),
            span: random.random(),
            name: name(method, info),
            method: method.to_string(),
            started: SystemTime::now(),
        })
    }

    /// Sends what waits.
    pub async fn close(&self) {
        self.exporter.close().await;
    }
}

/// The caller's span, out of `traceparent`.
#[derive(Debug, PartialEq, Eq)]
struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (byte, i) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
        let pair = &text[i..i + 2];
        // The specification wants lower case.
        if pair.chars().any(|c| c.is_ascii_uppercase() || c == '+') {
            return None;
        }
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
}

impl Parent {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let [version] = hex::<1>(parts.next()?)?;
        let (trace, span) = (hex::<16>(parts.next()?)?, hex::<8>(parts.next()?)?);
        let [flags] = hex::<1>(parts.next()?)?;
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace == [0; 16] || span == [0; 8] {
            return None;
        }
        Some(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

/// The method and the path with its variable parts named.
fn name(method: &Method, info: &RequestInfo) -> String {
    if !info.is_resource {
        return method.to_string();
    }
    let mut name = format!("{method} /{}", info.prefix);
    let mut add = |part: &str| {
        if !part.is_empty() {
            name.push('/');
            name.push_str(part);
        }
    };
    add(&info.group);
    add(&info.version);
    if !info.namespace.is_empty() {
        add("namespaces/{:namespace}");
    }
    add(&info.resource);
    if !info.name.is_empty() {
        add("{:name}");
    }
    add(&info.subresource);
    name
}

/// A span that is not ended yet; dropping it ends it.
pub struct Active {
    tracer: Arc<Tracer>,
    trace: [u8; 16],
    parent: Option<[u8; 8]>,
    span: [u8; 8],
    name: String,
    method: String,
    started: SystemTime,
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Active {
    /// The `traceparent` of calls that this span makes.
    fn context(&self) -> Option<HeaderValue> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        HeaderValue::from_str(&format!("00-{}-{}-01", hex(&self.trace), hex(&self.span))).ok()
    }

    /// Ends the span with the answer's code.
    pub fn end(self, code: u16, target: &str, audit_id: &str) {
        const SERVER: i32 = 2;
        const ERROR: i32 = 2;
        let span = Span {
            trace_id: self.trace.to_vec(),
            span_id: self.span.to_vec(),
            parent_span_id: self.parent.map(|p| p.to_vec()).unwrap_or_default(),
            name: self.name,
            kind: SERVER,
            start_time_unix_nano: nanos(self.started),
            end_time_unix_nano: nanos(SystemTime::now()),
            attributes: vec![
                KeyValue::text("http.request.method", &self.method),
                KeyValue::text("http.target", target),
                KeyValue::number("http.response.status_code", code.into()),
                KeyValue::text("audit-id", audit_id),
            ],
            status: (code >= 500).then(|| Status { message: String::new(), code: ERROR }),
        };
        self.tracer.exporter.take(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Query;

    #[test]
    fn a_parent_is_read_as_the_specification_says() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let check = |text: &str, expect: Option<bool>| {
            assert_eq!(Parent::parse(text).map(|p| p.sampled), expect, "{text}");
        };
        check(&format!("00-{trace}-b7ad6b7169203331-01"), Some(true));
        check(&format!("00-{trace}-b7ad6b7169203331-00"), Some(false));
        check(&format!("cc-{trace}-b7ad6b7169203331-01-later"), Some(true));
        check(&format!("00-{trace}-b7ad6b7169203331-01-more"), None);
        check(&format!("ff-{trace}-b7ad6b7169203331-01"), None);
        check(&format!("00-{trace}-0000000000000000-01"), None);
        check(&format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), None);
        check(&format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()), None);
        check("00-short-b7ad6b7169203331-01", None);
        check("", None);
    }

    #[test]
    fn names_hold_no_names() {
        let check = |path: &str, expect: &str| {
            let info = RequestInfo::parse(&Method::GET, path, &Query::default());
            assert_eq!(name(&Method::GET, &info), expect);
        };
        check("/api/v1/namespaces/a/pods/b/log", "GET /api/v1/namespaces/{:namespace}/pods/{:name}/log");
        check("/apis/apps/v1/deployments", "GET /apis/apps/v1/deployments");
        check("/healthz", "GET");
    }
}
