//! Passing a request on to another server and its answer back, as a stream; an upgraded connection becomes a tunnel of raw
//! bytes (upstream: `apimachinery/pkg/util/proxy`).

pub mod html;

use bytes::{Buf, Bytes};
use futures::{FutureExt, StreamExt};
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName,
    HeaderValue, LOCATION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Status;
use crate::http::body::Body;
use crate::verbs::Answered;

/// A request body on its way to another server.
pub type Outgoing = UnsyncBoxBody<Bytes, std::io::Error>;

/// What becomes of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The path under which the backend's root appears to the client. Links in HTML and redirects are moved below it.
    pub prefix: Option<String>,
    /// Without an upgrade the request makes no sense.
    pub must_upgrade: bool,
    /// A redirect of the backend is not passed on.
    pub no_redirects: bool,
    /// Headers by which the backend would open itself to other sites are dropped.
    pub drop_cors: bool,
}

/// An HTTP/2 connection to a backend, for many requests at once.
#[derive(Clone)]
pub struct Shared(hyper::client::conn::http2::SendRequest<Outgoing>);

/// Turns any body into one that can be sent on.
pub fn outgoing<B>(body: B) -> Outgoing
where
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: std::fmt::Display + Send,
{
    body.map_frame(|frame| {
        frame.map_data(|mut data| {
            let length = data.remaining();
            data.copy_to_bytes(length)
        })
    })
    .map_err(|e| std::io::Error::other(e.to_string()))
    .boxed_unsync()
}

/// A body of these bytes.
pub fn full(bytes: Bytes) -> Outgoing {
    http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Whether the client asks for another protocol on its connection.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let tokens =
        headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    headers.contains_key(UPGRADE) && tokens.map(str::trim).any(|t| t.eq_ignore_ascii_case("upgrade"))
}

/// The headers that go on: without credentials, and without those that concern the client's own connection.
pub fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let upgrade = is_upgrade(headers);
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        let own = matches!(
            text,
            "authorization"
                | "host"
                | "content-length"
                | "transfer-encoding"
                | "keep-alive"
                | "te"
                | "trailer"
        ) || text.starts_with("impersonate-")
            || text.starts_with("x-remote-")
            || text.starts_with("proxy-")
            || (!upgrade && (*name == CONNECTION || *name == UPGRADE || named.iter().any(|n| n == text)));
        if !own {
            out.append(name.clone(), value.clone());
        }
    }
    out
}

/// Sends a request over a fresh HTTP/1.1 connection.
pub async fn http1<S>(
    stream: S,
    host: &str,
    mut request: Request<Outgoing>,
    client: Option<hyper::upgrade::OnUpgrade>,
    policy: &Policy,
) -> Answered
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    if let Ok(host) = HeaderValue::from_str(host) {
        request.headers_mut().insert(HOST, host);
    }
    let upgrade = is_upgrade(request.headers());
    if upgrade && client.is_none() {
        return Err(Status::bad_request("the connection cannot be upgraded: HTTP/1.1 is needed"));
    }
    if policy.must_upgrade && !upgrade {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let host = request_host(&request);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades().map(|result| {
        if let Err(error) = result {
            tracing::debug!(%error, "proxied connection ended");
        }
    }));
    let response = sender.send_request(request).await.map_err(failed)?;
    if let Some(client) = client.filter(|_| upgrade) {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(tunnel(response, client, sender));
        }
        if response.status().as_u16() < 400 {
            return Err(Status::internal(format!(
                "invalid upgrade response: status code {}",
                response.status().as_u16()
            )));
        }
    }
    answer(response, sender, &host, policy)
}

/// Opens an HTTP/2 connection that many requests may share.
pub async fn http2<S>(stream: S) -> Result<Shared, Status>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(hyper_util::rt::TokioTimer::new())
        .keep_alive_interval(std::time::Duration::from_secs(30))
        .keep_alive_timeout(std::time::Duration::from_secs(15))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(connection.map(|result| {
        if let Err(error) = result {
            tracing::debug!(%error, "proxied connection ended");
        }
    }));
    Ok(Shared(sender))
}

impl Shared {
    /// Whether requests can still be sent.
    pub fn alive(&self) -> bool {
        !self.0.is_closed()
    }

    /// Sends a request; its URI must be absolute.
    pub async fn send(&mut self, request: Request<Outgoing>, policy: &Policy) -> Answered {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let response = self.0.send_request(request).await.map_err(failed)?;
        answer(response, (), &host, policy)
    }
}

fn failed(error: hyper::Error) -> Status {
    use std::error::Error;
    let cause = error.source().map(|s| format!(": {s}")).unwrap_or_default();
    Status::unavailable(format!("error trying to reach service: {error}{cause}"))
}

fn request_host(request: &Request<Outgoing>) -> String {
    request.headers().get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned()
}

/// Joins the two upgraded connections.
fn tunnel<T: Send + 'static>(
    mut response: Response<hyper::body::Incoming>,
    client: hyper::upgrade::OnUpgrade,
    keep: T,
) -> Response<Body> {
    let far = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let _keep = keep;
        if let (Ok(near), Ok(far)) = tokio::join!(client, far) {
            let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
            let copied = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, 32 << 10, 32 << 10);
            drop(copied.await);
        }
    });
    let (mut parts, _) = response.into_parts();
    parts.extensions = http::Extensions::new();
    Response::from_parts(parts, Body::Empty)
}

/// The backend's answer as the client gets it. `keep` lives as long as the body, so that the connection is not closed under
/// it.
fn answer<T: Send + 'static>(
    response: Response<hyper::body::Incoming>,
    keep: T,
    host: &str,
    policy: &Policy,
) -> Answered {
    let (mut parts, body) = response.into_parts();
    for name in [CONNECTION, HeaderName::from_static("keep-alive"), TRANSFER_ENCODING, UPGRADE] {
        parts.headers.remove(name);
    }
    parts.extensions = http::Extensions::new();
    parts.version = http::Version::HTTP_11;
    if policy.no_redirects && parts.status.is_redirection() && parts.headers.contains_key(LOCATION) {
        let text = "the backend attempted to redirect this request, which is not permitted";
        let mut response = Response::new(Body::Full(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        return Ok(response);
    }
    if policy.drop_cors {
        for name in ["credentials", "headers", "methods", "origin"] {
            parts.headers.remove(format!("access-control-allow-{name}"));
        }
    }
    let stream = futures::stream::unfold((body, keep), |(mut body, keep)| async move {
        loop {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Some((data, (body, keep)));
                    }
                }
                _ => return None,
            }
        }
    });
    let Some(prefix) = &policy.prefix else {
        return Ok(Response::from_parts(parts, Body::Stream(stream.boxed())));
    };
    if let Some(target) = parts.headers.get(LOCATION).and_then(|l| l.to_str().ok()) {
        let moved = html::rewrite_url(target, host, prefix);
        if let Ok(moved) = HeaderValue::from_str(&moved) {
            parts.headers.insert(LOCATION, moved);
        }
        return Ok(Response::from_parts(parts, Body::Stream(stream.boxed())));
    }
    let header =
        |name| parts.headers.get(name).and_then(|h: &HeaderValue| h.to_str().ok()).unwrap_or_default();
    let is_html = header(CONTENT_TYPE).split(';').next().unwrap_or_default().trim() == "text/html";
    let coding = html::Coding::of(header(CONTENT_ENCODING));
    let Some(coding) = coding.filter(|_| is_html) else {
        return Ok(Response::from_parts(parts, Body::Stream(stream.boxed())));
    };
    parts.headers.remove(CONTENT_LENGTH);
    let rewriter = html::Rewriter::new(host, prefix, coding);
    let stream =
        futures::stream::unfold((stream.boxed(), Some(rewriter)), |(mut stream, rewriter)| async move {
            let mut rewriter = rewriter?;
            loop {
                match stream.next().await {
                    Some(chunk) => {
                        let out = rewriter.push(&chunk).ok()?;
                        if !out.is_empty() {
                            return Some((Bytes::from(out), (stream, Some(rewriter))));
                        }
                    }
                    None => {
                        let out = rewriter.finish().ok()?;
                        return (!out.is_empty()).then(|| (Bytes::from(out), (stream, None)));
                    }
                }
            }
        });
    Ok(Response::from_parts(parts, Body::Stream(stream.boxed())))
}

/// Tells the backend how the client came (upstream: `Transport.RoundTrip`), and keeps HTML in an encoding that can be
/// rewritten.
pub fn forwarded(headers: &mut HeaderMap, uri: &str) {
    if let Ok(uri) = HeaderValue::from_str(uri) {
        headers.insert("x-forwarded-uri", uri);
    }
    if !headers.contains_key(ACCEPT_ENCODING) {
        return;
    }
    let accepted = headers.get(ACCEPT_ENCODING).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let known: Vec<&str> = accepted
        .split(',')
        .map(str::trim)
        .filter(|c| matches!(c.split(';').next().unwrap_or_default().trim(), "gzip" | "deflate" | "identity"))
        .collect();
    let known = known.join(", ");
    headers.remove(ACCEPT_ENCODING);
    if let (false, Ok(value)) = (known.is_empty(), HeaderValue::from_str(&known)) {
        headers.insert(ACCEPT_ENCODING, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_connection_headers_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("x-remote-user", "admin"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-scope", "all"),
            ("impersonate-user", "admin"),
            ("proxy-authorization", "x"),
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("accept", "text/plain"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let names: Vec<String> = passed_on(&headers).keys().map(ToString::to_string).collect();
        assert_eq!(names, ["accept"]);
        headers.insert("connection", HeaderValue::from_static("Upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("websocket"));
        let passed = passed_on(&headers);
        assert!(is_upgrade(&passed) && !passed.contains_key("authorization"));
    }
}
