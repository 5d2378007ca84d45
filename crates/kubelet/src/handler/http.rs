//! HTTP requests of probes and lifecycle hooks. Certificates are not checked, connections not kept, and redirects followed to the
//! same host only.

use std::fmt;

use http::{HeaderName, HeaderValue};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, HTTPHeader};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, timeout_at};

use super::{Answer, MAX_OUTPUT, join_host, port, reason};
use crate::tls;

/// Requests at most for one answer.
const MAX_REQUESTS: usize = 10;
/// What a TLS client is told that meets a server without.
const PLAIN: &str = "http: server gave HTTP response to HTTPS client";

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    tls: bool,
    host: String,
    port: u16,
    /// With the query, and as it is sent.
    path: String,
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(out, "{scheme}://{}{}", join_host(&self.host, self.port), self.path)
    }
}

/// A path as it may be sent: without a fragment, and with what no request line may hold escaped.
fn escaped(path: &str) -> String {
    let path = path.split_once('#').map_or(path, |(path, _)| path);
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            0..=b' ' | 0x7f.. | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                out.push_str(&format!("%{byte:02X}"));
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

/// Resolves `.` and `..` (RFC 3986, section 5.2.4).
fn without_dots(path: &str) -> String {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    let path = format!("/{}", kept.join("/"));
    query.map_or(path.clone(), |query| format!("{path}?{query}"))
}

impl Target {
    fn of(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Target, String> {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip).to_owned();
        let tls = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let base = Target { tls, host, port: port(&action.port, container)?, path: "/".to_owned() };
        let path = action.path.as_deref().unwrap_or_default();
        let plain = path.starts_with('/') && !path.starts_with("//");
        // Of a whole URL only the path counts.
        let path = if plain { escaped(path) } else { base.join(path)?.path };
        Ok(Target { path, ..base })
    }

    /// Where a reference found at this target leads (RFC 3986, section 5.2).
    fn join(&self, reference: &str) -> Result<Target, String> {
        let scheme = reference.split_once("://").filter(|(scheme, _)| {
            !scheme.is_empty()
                && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        });
        let (tls, rest) = match scheme {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, _)) => return Err(format!("unsupported protocol scheme {scheme:?}")),
            None => match reference.strip_prefix("//") {
                Some(rest) => (self.tls, rest),
                None => return Ok(Target { path: self.path_of(reference), ..self.clone() }),
            },
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = match port.filter(|port| !port.is_empty()) {
            Some(port) => port.parse().map_err(|_| format!("invalid port {port:?} after host"))?,
            None if tls => 443,
            None => 80,
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Target { tls, host: host.to_owned(), port, path: without_dots(&escaped(&path)) })
    }

    fn path_of(&self, reference: &str) -> String {
        let own = self.path.split('?').next().unwrap_or("/");
        let joined = match reference.chars().next() {
            None | Some('#') => return self.path.clone(),
            Some('/') => reference.to_owned(),
            Some('?') => format!("{own}{reference}"),
            Some(_) => format!("{}/{reference}", own.rsplit_once('/').map_or("", |(folder, _)| folder)),
        };
        without_dots(&escaped(&joined))
    }
}

/// The headers of a request, and the host that they name.
#[derive(Debug, PartialEq)]
struct Headers {
    host: Option<String>,
    others: Vec<(HeaderName, HeaderValue)>,
}

impl Headers {
    fn of(given: &[HTTPHeader], agent: &str) -> Result<Headers, String> {
        let first = |name: &str| given.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        let mut headers = Headers { host: None, others: Vec::new() };
        headers.host = first("host").map(|header| header.value.clone()).filter(|host| !host.is_empty());
        let mut add = |name: &str, value: &str| -> Result<(), String> {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("net/http: invalid header field name {name:?}"))?;
            let value = HeaderValue::from_bytes(value.as_bytes())
                .map_err(|_| format!("net/http: invalid header field value for {name:?}"))?;
            headers.others.push((name, value));
            Ok(())
        };
        // An empty value is the way to send none at all of these two.
        let agent = first("user-agent").map_or(agent, |header| &header.value);
        if !agent.is_empty() {
            add("user-agent", agent)?;
        }
        let silent = first("accept").is_some_and(|header| header.value.is_empty());
        if first("accept").is_none() {
            add("accept", "*/*")?;
        }
        if first("connection").is_none() {
            add("connection", "close")?;
        }
        for header in given {
            let name = header.name.to_ascii_lowercase();
            let made = matches!(name.as_str(), "host" | "user-agent") || silent && name == "accept";
            if !made {
                add(&name, &header.value)?;
            }
        }
        Ok(headers)
    }
}

/// Why there is no answer.
enum Failure {
    /// No response came.
    None(Target, String),
    /// It broke off.
    Body(String),
}

struct Response {
    status: u16,
    location: Option<String>,
    body: String,
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301..=303 | 307 | 308)
}

/// Asks, and follows redirects as long as they lead to the same host.
async fn follow(first: &Target, headers: &Headers, until: Instant) -> Result<Response, Failure> {
    let mut target = first.clone();
    let mut host = headers.host.clone();
    for _ in 0..MAX_REQUESTS {
        let response = get(&target, host.as_deref(), headers, until).await?;
        let location = response.location.as_deref().filter(|_| is_redirect(response.status));
        let Some(location) = location.filter(|location| !location.is_empty()) else { return Ok(response) };
        let next = target.join(location).map_err(|error| Failure::None(target.clone(), error))?;
        if next.host != first.host {
            return Ok(response);
        }
        if location.contains("://") {
            host = None;
        }
        target = next;
    }
    Err(Failure::None(target, "stopped after 10 redirects".to_owned()))
}

async fn get(
    target: &Target,
    host: Option<&str>,
    headers: &Headers,
    until: Instant,
) -> Result<Response, Failure> {
    const LATE: &str = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    let failed = |error: String| Failure::None(target.clone(), error);
    let asked = timeout_at(until, ask(target, host, headers)).await;
    let (response, serving) = asked.map_err(|_| failed(LATE.to_owned()))?.map_err(failed)?;
    let status = response.status().as_u16();
    let location = response.headers().get("location").and_then(|value| value.to_str().ok());
    let location = location.map(str::to_owned);
    let body = timeout_at(until, read(response.into_body())).await;
    serving.abort();
    let body = body.map_err(|_| Failure::Body("context deadline exceeded while reading body".to_owned()))?;
    Ok(Response { status, location, body: body.map_err(Failure::Body)? })
}

type Asked = (http::Response<Incoming>, tokio::task::JoinHandle<hyper::Result<()>>);

async fn ask(target: &Target, host: Option<&str>, headers: &Headers) -> Result<Asked, String> {
    let authority = join_host(&target.host, target.port);
    let stream = TcpStream::connect(&authority)
        .await
        .map_err(|error| format!("dial tcp {authority}: connect: {}", reason(&error)))?;
    let mut request = http::Request::get(&target.path).header("host", host.unwrap_or(&authority));
    for (name, value) in &headers.others {
        request = request.header(name, value);
    }
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    if !target.tls {
        return exchange(TokioIo::new(stream), request).await;
    }
    let stream = tls::connect_unverified(&authority, stream).await.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidMessage(_)) => PLAIN.to_owned(),
            _ => error.to_string(),
        }
    })?;
    exchange(TokioIo::new(stream), request).await
}

async fn exchange<IO>(io: IO, request: http::Request<Empty<Bytes>>) -> Result<Asked, String>
where
    IO: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(text)?;
    let serving = tokio::spawn(connection);
    match sender.send_request(request).await {
        Ok(response) => Ok((response, serving)),
        Err(error) => {
            serving.abort();
            Err(error.to_string())
        }
    }
}

/// The beginning of a body.
async fn read(mut body: Incoming) -> Result<String, String> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        let room = MAX_OUTPUT - read.len();
        read.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// Asks the container; 200 to 399 is good, with a warning from 300 on.
pub(crate) async fn probe(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
    timeout: Duration,
) -> Answer {
    let until = Instant::now() + timeout;
    let target = match Target::of(action, container, pod_ip) {
        Ok(target) => target,
        Err(error) => return Answer::errored(error),
    };
    let headers = action.http_headers.as_deref().unwrap_or_default();
    let response = match Headers::of(headers, "kube-probe/1.36") {
        Ok(headers) => follow(&target, &headers, until).await,
        Err(error) => Err(Failure::None(target, error)),
    };
    match response {
        Ok(response) => match response.status {
            200..300 => Answer::yes(response.body),
            300..400 => {
                Answer::warned(format!("Probe terminated redirects, Response body: {}", response.body))
            }
            status => Answer::no(format!("HTTP probe failed with statuscode: {status}")),
        },
        Err(Failure::None(target, error)) => Answer::no(format!("Get {:?}: {error}", target.to_string())),
        Err(Failure::Body(error)) => Answer::errored(error),
    }
}

/// Runs an HTTP hook: any response is good. A hook that asks for HTTPS of a server without is run over HTTP, of which
/// `fell_back` is told the host.
pub(crate) async fn hook(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
    timeout: Duration,
    fell_back: impl FnOnce(&str),
) -> Answer {
    let until = Instant::now() + timeout;
    let mut target = match Target::of(action, container, pod_ip) {
        Ok(target) => target,
        Err(error) => return Answer::no(error),
    };
    let headers = action.http_headers.as_deref().unwrap_or_default();
    let mut headers = match Headers::of(headers, "kube-lifecycle/1.36") {
        Ok(headers) => headers,
        Err(error) => return Answer::no(format!("Get {:?}: {error}", target.to_string())),
    };
    let mut response = follow(&target, &headers, until).await;
    if matches!(&response, Err(Failure::None(_, error)) if error == PLAIN) {
        target.tls = false;
        headers.others.retain(|(name, _)| name != http::header::AUTHORIZATION);
        response = follow(&target, &headers, until).await;
        if response.is_ok() {
            fell_back(&join_host(&target.host, target.port));
        }
    }
    match response {
        Ok(response) => Answer::yes(response.body),
        Err(Failure::Body(_)) => Answer::yes(""),
        Err(Failure::None(target, error)) => Answer::no(format!("Get {:?}: {error}", target.to_string())),
    }
}

#[cfg(test)]
mod tests;
