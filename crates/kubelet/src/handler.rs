//! The actions that probes and lifecycle hooks share: HTTP, TCP and exec against a container.

use std::time::Duration;

use cri::v1::ExecSyncRequest;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::runtime::Cri;
use crate::tls;

const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

/// What an action gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub good: bool,
    /// Why not, or the output.
    pub output: String,
}

impl Answer {
    pub(crate) fn no(output: impl Into<String>) -> Self {
        Answer { good: false, output: output.into() }
    }

    pub(crate) fn yes(output: impl Into<String>) -> Self {
        Answer { good: true, output: output.into() }
    }
}

/// The number of a port given by number or by its name in the container.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number)
            .ok()
            .filter(|port| *port > 0)
            .ok_or(format!("invalid port number: {number}")),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .and_then(|port| u16::try_from(port.container_port).ok())
            .or_else(|| name.parse().ok())
            .ok_or(format!("couldn't find port: {name:?}")),
    }
}

fn join_host(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Opens a connection and closes it.
pub(crate) async fn tcp(host: &str, port: u16, timeout: Duration) -> Answer {
    let target = join_host(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&target)).await {
        Ok(Ok(_)) => Answer::yes(""),
        Ok(Err(error)) => Answer::no(format!("dial tcp {target}: connect: {}", reason(&error))),
        Err(_) => Answer::no(format!("dial tcp {target}: i/o timeout")),
    }
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        _ => error.to_string(),
    }
}

/// Gets a URL; 200 to 399 is good. Redirects are followed on the same host only.
pub(crate) async fn http_get(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
    agent: &str,
    timeout: Duration,
) -> Answer {
    let port = match port(&action.port, container) {
        Ok(port) => port,
        Err(error) => return Answer::no(error),
    };
    let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
    let tls = action.scheme.as_deref() == Some("HTTPS");
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let scheme = if tls { "https" } else { "http" };
    let target = join_host(host, port);
    let url = format!("{scheme}://{target}{path}");
    let headers: Vec<(String, String)> = action
        .http_headers
        .iter()
        .flatten()
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect();
    match tokio::time::timeout(timeout, follow(&target, tls, path, &headers, agent)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer::no(format!("Get {url:?}: {error}")),
        Err(_) => Answer::no(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn follow(
    target: &str,
    tls: bool,
    mut path: String,
    headers: &[(String, String)],
    agent: &str,
) -> Result<Answer, String> {
    for _ in 0..=MAX_REDIRECTS {
        let (status, location, body) = get(target, tls, &path, headers, agent).await?;
        if (300..400).contains(&status)
            && let Some(location) = location
        {
            let same_host = location.starts_with('/')
                || location.split("://").nth(1).is_some_and(|rest| {
                    let host = rest.split('/').next().unwrap_or_default();
                    host.split(':').next() == target.rsplit_once(':').map(|(host, _)| host)
                });
            if !same_host {
                return Ok(Answer::yes(format!("Probe terminated redirects, Response body: {body}")));
            }
            path = match location.split_once("://") {
                Some((_, rest)) => rest.find('/').map_or("/".to_owned(), |at| rest[at..].to_owned()),
                None => location,
            };
            continue;
        }
        if (200..400).contains(&status) {
            return Ok(Answer::yes(body));
        }
        return Ok(Answer::no(format!("HTTP probe failed with statuscode: {status}")));
    }
    Err("stopped after 10 redirects".to_owned())
}

async fn get(
    target: &str,
    tls: bool,
    path: &str,
    headers: &[(String, String)],
    agent: &str,
) -> Result<(u16, Option<String>, String), String> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(|error| format!("dial tcp {target}: connect: {}", reason(&error)))?;
    if tls {
        let stream = tls::connect_unverified(target, stream).await.map_err(|error| error.to_string())?;
        exchange(TokioIo::new(stream), target, path, headers, agent).await
    } else {
        exchange(TokioIo::new(stream), target, path, headers, agent).await
    }
}

async fn exchange<IO>(
    io: IO,
    target: &str,
    path: &str,
    headers: &[(String, String)],
    agent: &str,
) -> Result<(u16, Option<String>, String), String>
where
    IO: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(io).await.map_err(|error| error.to_string())?;
    let serving = tokio::spawn(connection);
    let mut request = http::Request::get(path).header("Connection", "close");
    let given = |name: &str| headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    request = match given("host") {
        Some((_, host)) => request.header("Host", host),
        None => request.header("Host", target),
    };
    if given("user-agent").is_none() {
        request = request.header("User-Agent", agent);
    }
    if given("accept").is_none() {
        request = request.header("Accept", "*/*");
    }
    for (name, value) in headers {
        // Upstream's way to ask for no header at all is an empty value.
        if !name.eq_ignore_ascii_case("host") && !value.is_empty() {
            request = request.header(name, value);
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let location =
        response.headers().get("location").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    serving.abort();
    let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
    Ok((status, location, body))
}

/// Runs a command in the container; exit code 0 is good.
pub(crate) async fn exec(cri: &Cri, id: &str, command: &[String], timeout: Duration) -> Answer {
    let request = ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: command.to_vec(),
        timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
    };
    let expired =
        || Answer::no(format!("command timed out: {command:?} timed out after {}s", timeout.as_secs()));
    // The runtime keeps the time; ours is the fallback.
    match tokio::time::timeout(timeout + Duration::from_secs(2), cri.runtime().exec_sync(request)).await {
        Ok(Ok(response)) => {
            let response = response.into_inner();
            let mut output = String::from_utf8_lossy(&response.stdout).into_owned();
            output.push_str(&String::from_utf8_lossy(&response.stderr));
            output.truncate(output.floor_char_boundary(MAX_BODY));
            Answer { good: response.exit_code == 0, output }
        }
        Ok(Err(status)) if status.code() == tonic::Code::DeadlineExceeded => expired(),
        Ok(Err(status)) => Answer::no(format!("rpc error: {}", status.message())),
        Err(_) => expired(),
    }
}
