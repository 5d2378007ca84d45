//! Subresources that reach a node, a pod or a service: log, exec, attach, port-forward and proxy. Requests are passed on,
//! answers streamed back; an upgraded connection becomes a tunnel of raw bytes, so that SPDY and WebSocket are spoken by the
//! kubelet alone.

use std::net::IpAddr;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::header::{CONNECTION, HOST, HeaderName, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::http::body::{self, Body};
use crate::query::Query;
use crate::registry::Served;
use crate::server::Server;
use crate::verbs::{Answered, Call, meta};
use crate::{Operation, Status};

/// A connection that a handler takes over.
pub struct Connection {
    pub method: Method,
    pub uri: http::Uri,
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

/// The subresources of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
}

/// The handler of a connecting subresource.
pub fn connect(call: &Call, served: &Served) -> Option<Connect> {
    if !served.group().is_empty() {
        return None;
    }
    Some(match (served.plural(), call.info.subresource.as_str()) {
        ("pods", "log") => Connect::Log,
        ("pods", "exec") => Connect::Exec,
        ("pods", "attach") => Connect::Attach,
        ("pods", "portforward") => Connect::PortForward,
        ("pods" | "services" | "nodes", "proxy") => Connect::Proxy,
        _ => return None,
    })
}

/// Where a request goes.
struct Target {
    address: IpAddr,
    port: u16,
    tls: bool,
    /// Path and query.
    path: String,
}

impl Connect {
    pub async fn run<B>(self, call: &Call, served: &Served, connection: Connection, body: B) -> Answered
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: std::fmt::Display + Send,
    {
        let method = connection.method.clone();
        let row = served.resource.subresource(&call.info.subresource);
        let allowed = match self {
            Self::Log => method == Method::GET,
            Self::Exec | Self::Attach | Self::PortForward => matches!(method, Method::GET | Method::POST),
            Self::Proxy => true,
        };
        if !allowed {
            return Err(Status::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )
            .with_causes(Vec::new()));
        }
        if self != Self::Log {
            let kind = row.map_or("", |r| &*r.kind);
            let mut object = self.options(call, kind);
            let request = call.admission(("", "v1", kind), Operation::Connect, &Value::Null, false);
            call.server.hooks.admit.mutate(&request, &mut object, None).await?;
            call.server.hooks.admit.validate(&request, &object, None).await?;
        }
        let target = match self {
            Self::Log => log(call, served).await?,
            Self::Proxy => Some(proxy(call, served, &connection.uri).await?),
            _ => Some(stream(self, call, served).await?),
        };
        let Some(target) = target else {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        };
        let mut request = Request::new(Full::new(body::read(body).await?));
        *request.method_mut() = method;
        *request.uri_mut() = target.path.parse().map_err(|e| Status::bad_request(format!("path: {e}")))?;
        let host = std::net::SocketAddr::new(target.address, target.port).to_string();
        *request.headers_mut() = passed_on(&call.headers);
        if let Ok(host) = host.parse() {
            request.headers_mut().insert(HOST, host);
        }
        if target.tls {
            let connector = call.server.connector.as_ref();
            let connector =
                connector.ok_or_else(|| Status::internal("no client certificate for kubelets"))?;
            let stream = connector.connect(target.address, target.port).await?;
            exchange(stream, request, connection.upgrade).await
        } else {
            let stream = TcpStream::connect((target.address, target.port)).await;
            let stream = stream.map_err(|e| {
                Status::unavailable(format!("error trying to reach service: dial tcp {host}: {e}"))
            })?;
            exchange(stream, request, connection.upgrade).await
        }
    }
}

impl Connect {
    /// The options of the connection, out of the query, as admission sees them.
    fn options(self, call: &Call, kind: &str) -> Value {
        let mut options = json!({"kind": kind, "apiVersion": "v1"});
        let query = &call.query;
        let mut put = |key: &str, value: Value| options[key] = value;
        match self {
            Self::Exec | Self::Attach => {
                for key in ["stdin", "stdout", "stderr", "tty"] {
                    let usual = matches!(key, "stdout" | "stderr");
                    if query.flag(key).unwrap_or(usual) {
                        put(key, true.into());
                    }
                }
                if let Some(container) = query.get("container").filter(|c| !c.is_empty()) {
                    put("container", container.into());
                }
                let command: Vec<&str> = query.all("command").collect();
                if self == Self::Exec && !command.is_empty() {
                    put("command", command.into());
                }
            }
            Self::PortForward => {
                let ports = query.all("ports").flat_map(|p| p.split(','));
                let ports: Vec<i64> = ports.filter_map(|p| p.parse().ok()).collect();
                if !ports.is_empty() {
                    put("ports", ports.into());
                }
            }
            Self::Proxy if !call.info.rest.is_empty() => {
                put("path", format!("/{}", call.info.rest.trim_start_matches('/')).into());
            }
            Self::Proxy | Self::Log => {}
        }
        options
    }
}

/// The headers without credentials and without those of the client's own connection.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let upgrade = headers.contains_key(UPGRADE);
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
            || (!upgrade && *name == CONNECTION);
        if !own {
            out.append(name.clone(), value.clone());
        }
    }
    out
}

/// Sends the request over a fresh connection and streams the answer, or becomes a tunnel.
async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    client: Option<hyper::upgrade::OnUpgrade>,
) -> Answered
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |e: hyper::Error| Status::unavailable(format!("error trying to reach service: {e}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades().map(|result| {
        if let Err(error) = result {
            tracing::debug!(%error, "proxied connection ended");
        }
    }));
    let response = sender.send_request(request).await.map_err(failed)?;
    let (mut parts, body) = match (response.status(), client) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(client)) => {
            let (parts, body) = response.into_parts();
            let mut response = Response::from_parts(parts, body);
            let far = hyper::upgrade::on(&mut response);
            tokio::spawn(async move {
                let _sender = sender;
                if let (Ok(near), Ok(far)) = tokio::join!(client, far) {
                    let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
                    drop(
                        tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, 32 << 10, 32 << 10)
                            .await,
                    );
                }
            });
            let (parts, _) = response.into_parts();
            return Ok(Response::from_parts(parts, Body::Empty));
        }
        _ => response.into_parts(),
    };
    for name in [CONNECTION, HeaderName::from_static("keep-alive"), http::header::TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    parts.extensions = http::Extensions::new();
    parts.version = http::Version::HTTP_11;
    // The sender lives as long as the body, so that the connection is not closed under it.
    let data = futures::stream::unfold((body, sender), |(mut body, sender)| async move {
        loop {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Some((data, (body, sender)));
                    }
                }
                _ => return None,
            }
        }
    });
    Ok(Response::from_parts(parts, Body::Stream(data.boxed())))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

async fn pod(call: &Call, served: &Served, name: &str) -> Result<Value, Status> {
    let key = served.key(&call.info.namespace, name);
    let object = call.server.registry.get(served, &key).await?.ok_or_else(|| served.not_found(name))?;
    served.read(&object).await
}

/// A node's kubelet: its address and port.
async fn kubelet(server: &Server, node: &str) -> Result<(IpAddr, u16), Status> {
    let nodes = server.registry.any("", "nodes").ok_or_else(Status::no_such_resource)?;
    let object = server.registry.get(&nodes, node).await?.ok_or_else(|| nodes.not_found(node))?;
    let value = nodes.read(&object).await?;
    let addresses = value.pointer("/status/addresses").and_then(Value::as_array);
    let of = |kind: &str| {
        let mut all = addresses.into_iter().flatten().filter(|a| a["type"] == kind);
        all.find_map(|a| a["address"].as_str()?.parse::<IpAddr>().ok())
    };
    let address = of("InternalIP").or_else(|| of("ExternalIP")).or_else(|| of("Hostname"));
    let address =
        address.ok_or_else(|| Status::internal(format!("no preferred addresses found for node {node:?}")))?;
    let port = value.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    Ok((address, port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0).unwrap_or(10250)))
}

fn containers(pod: &Value, kinds: &[&str]) -> Vec<String> {
    let mut names = Vec::new();
    for kind in kinds {
        let list = pod.pointer(&format!("/spec/{kind}")).and_then(Value::as_array);
        names.extend(list.into_iter().flatten().filter_map(|c| c["name"].as_str().map(str::to_owned)));
    }
    names
}

/// The container that is meant.
fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let name = meta::text(pod, "name");
    let all = containers(pod, &["initContainers", "containers", "ephemeralContainers"]);
    if !asked.is_empty() {
        return match all.iter().any(|c| c == asked) {
            true => Ok(asked.to_owned()),
            false => Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
    }
    let main = containers(pod, &["containers"]);
    if let [only] = main.as_slice() {
        return Ok(only.clone());
    }
    if main.is_empty() {
        return Err(Status::bad_request(format!("a container name must be specified for pod {name}")));
    }
    let mut text =
        format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
    let init = containers(pod, &["initContainers"]);
    if !init.is_empty() {
        text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
    }
    Err(Status::bad_request(text))
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn query_text(pairs: &[(&str, &str)]) -> String {
    let parts: Vec<String> = pairs.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
    if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
}

fn on(flag: Option<bool>) -> bool {
    flag.unwrap_or(false)
}

async fn log(call: &Call, served: &Served) -> Result<Option<Target>, Status> {
    let pod = pod(call, served, &call.info.name).await?;
    let query: &Query = &call.query;
    let mut errors = Vec::new();
    let invalid = |field: &str, value: i64, detail: &str| {
        crate::FieldError::new(crate::FieldErrorKind::Invalid, field, value, detail)
    };
    let tail = query.integer("tailLines")?;
    if let Some(lines) = tail.filter(|l| *l < 0) {
        errors.push(invalid("tailLines", lines, "must be greater than or equal to 0"));
    }
    let limit = query.integer("limitBytes")?;
    if let Some(bytes) = limit.filter(|b| *b < 1) {
        errors.push(invalid("limitBytes", bytes, "must be greater than 0"));
    }
    let since = query.integer("sinceSeconds")?;
    if let Some(seconds) = since.filter(|s| *s < 1) {
        errors.push(invalid("sinceSeconds", seconds, "must be greater than 0"));
    }
    if since.is_some() && query.get("sinceTime").is_some() {
        errors.push(crate::FieldError::new(
            crate::FieldErrorKind::Forbidden,
            "",
            "",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "PodLogOptions", &call.info.name, &errors));
    }
    let container = container(&pod, query.text("container"))?;
    let node = text(&pod, "/spec/nodeName");
    if node.is_empty() {
        return Ok(None);
    }
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for key in ["follow", "previous", "timestamps", "insecureSkipTLSVerifyBackend"] {
        if on(query.flag(key)) && key != "insecureSkipTLSVerifyBackend" {
            pairs.push((key, "true"));
        }
    }
    for key in ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
        if let Some(value) = query.get(key).filter(|v| !v.is_empty()) {
            pairs.push((key, value));
        }
    }
    let (address, port) = kubelet(&call.server, node).await?;
    let path = format!(
        "/containerLogs/{}/{}/{}{}",
        encode(&call.info.namespace),
        encode(&call.info.name),
        encode(&container),
        query_text(&pairs)
    );
    Ok(Some(Target { address, port, tls: true, path }))
}

async fn stream(kind: Connect, call: &Call, served: &Served) -> Result<Target, Status> {
    let pod = pod(call, served, &call.info.name).await?;
    let name = call.info.name.as_str();
    let query = &call.query;
    let phase = text(&pod, "/status/phase");
    if kind != Connect::PortForward && matches!(phase, "Succeeded" | "Failed") {
        return Err(Status::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let (verb, mut pairs): (&str, Vec<(&str, &str)>) = match kind {
        Connect::Exec => ("exec", Vec::new()),
        Connect::Attach => ("attach", Vec::new()),
        _ => ("portForward", Vec::new()),
    };
    let mut path = format!("/{verb}/{}/{}", encode(&call.info.namespace), encode(name));
    if kind == Connect::PortForward {
        pairs.extend(query.all("ports").map(|p| ("port", p)));
    } else {
        let container = container(&pod, query.text("container"))?;
        path.push('/');
        path.push_str(&encode(&container));
        let attach = kind == Connect::Attach;
        let wanted = |key: &str| query.flag(key).unwrap_or(attach && matches!(key, "stdout" | "stderr"));
        for (key, kubelet) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
        {
            // With a terminal there is one output stream.
            if wanted(key) && !(key == "stderr" && on(query.flag("tty"))) {
                pairs.push((kubelet, "1"));
            }
        }
        pairs.extend(query.all("command").map(|c| ("command", c)));
    }
    let node = text(&pod, "/spec/nodeName");
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let (address, port) = kubelet(&call.server, node).await?;
    path.push_str(&query_text(&pairs));
    Ok(Target { address, port, tls: true, path })
}

/// `[scheme:]name[:port]`.
fn split_name(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    match parts.as_slice() {
        [name] => Some(("", name, "")),
        [name, port] => Some(("", name, port)),
        [scheme, name, port] if matches!(*scheme, "" | "http" | "https") => Some((scheme, name, port)),
        _ => None,
    }
}

async fn proxy(call: &Call, served: &Served, uri: &http::Uri) -> Result<Target, Status> {
    let id = call.info.name.as_str();
    let kind = served.plural();
    let (scheme, name, port) =
        split_name(id).ok_or_else(|| Status::bad_request(format!("invalid {kind} request {id:?}")))?;
    let raw = uri.path();
    let marker = format!("/{}/proxy", kind);
    // The rest of the path goes on as it came, escapes and all.
    let rest = raw
        .find(&format!("{}/", marker.trim_end_matches("/proxy")))
        .and_then(|at| raw[at..].find("/proxy").map(|p| &raw[at + p + "/proxy".len()..]))
        .unwrap_or_default();
    let mut path = if rest.is_empty() { "/".to_owned() } else { rest.to_owned() };
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let (address, port, tls) = match kind {
        "nodes" => {
            let (address, port) = kubelet(&call.server, name).await?;
            (address, port, true)
        }
        "pods" => pod_address(call, served, name, port, scheme).await?,
        _ => service_address(call, served, name, port, scheme).await?,
    };
    if address.is_loopback() && kind != "nodes" || is_link_local(address) {
        return Err(Status::bad_request("address not allowed"));
    }
    Ok(Target { address, port, tls, path })
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

async fn pod_address(
    call: &Call,
    served: &Served,
    name: &str,
    port: &str,
    scheme: &str,
) -> Result<(IpAddr, u16, bool), Status> {
    let pod = pod(call, served, name).await?;
    let address = text(&pod, "/status/podIP").parse();
    let address =
        address.map_err(|_| Status::bad_request(format!("pod {name} does not have an IP address yet")))?;
    let first = || {
        let list = pod.pointer("/spec/containers").and_then(Value::as_array);
        let ports = list.into_iter().flatten().filter_map(|c| c["ports"].as_array()).flatten();
        ports.filter_map(|p| p["containerPort"].as_u64()).find_map(|p| u16::try_from(p).ok())
    };
    let number = match port {
        "" => first().unwrap_or(80),
        text => text.parse().map_err(|_| Status::bad_request(format!("invalid port {text:?}")))?,
    };
    Ok((address, number, scheme == "https"))
}

async fn service_address(
    call: &Call,
    served: &Served,
    name: &str,
    port: &str,
    scheme: &str,
) -> Result<(IpAddr, u16, bool), Status> {
    let registry = &call.server.registry;
    let namespace = call.info.namespace.as_str();
    let object = registry.get(served, &served.key(namespace, name)).await?;
    let object = object.ok_or_else(|| served.not_found(name))?;
    let service = served.read(&object).await?;
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let wanted = ports.iter().find(|p| {
        (port.is_empty() && ports.len() == 1)
            || (!port.is_empty()
                && (p["name"].as_str() == Some(port)
                    || p["port"].as_u64().map(|n| n.to_string()).as_deref() == Some(port)))
    });
    let unavailable = || Status::unavailable(format!("no endpoints available for service {name:?}"));
    let wanted = wanted
        .ok_or_else(|| Status::unavailable(format!("no service port {port:?} found for service {name:?}")))?;
    let port_name = wanted["name"].as_str().unwrap_or_default();
    let slices = registry.any("discovery.k8s.io", "endpointslices").ok_or_else(unavailable)?;
    for object in slices.cache.list(&slices.prefix(namespace), None).0 {
        let slice = slices.read(&object).await?;
        if text(&slice, "/metadata/labels/kubernetes.io~1service-name") != name {
            continue;
        }
        let list = slice["ports"].as_array().into_iter().flatten();
        let number = list
            .filter(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .find_map(|p| u16::try_from(p["port"].as_u64()?).ok());
        let ready = slice["endpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|e| e.pointer("/conditions/ready") != Some(&Value::Bool(false)))
            .find_map(|e| e["addresses"].as_array()?.first()?.as_str()?.parse::<IpAddr>().ok());
        if let (Some(number), Some(address)) = (number, ready) {
            return Ok((address, number, scheme == "https"));
        }
    }
    Err(unavailable())
}
