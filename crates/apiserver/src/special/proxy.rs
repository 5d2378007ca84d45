//! Subresources that reach a node, a pod or a service: log, exec, attach, port-forward and proxy. Requests are passed on,
//! answers streamed back; an upgraded connection becomes a tunnel of raw bytes, so that SPDY and WebSocket are spoken by the
//! kubelet alone.

use std::net::IpAddr;

use http::{Method, Request, Response, StatusCode};
use rand::Rng;
use serde_json::{Value, json};

use crate::dial;
use crate::http::body::Body;
use crate::query::Query;
use crate::registry::Served;
use crate::relay::{self, Policy};
use crate::server::Server;
use crate::tls::{self, Trust};
use crate::verbs::{Answered, Call, meta};
use crate::{Attributes, Operation, Status, authz};

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
    via: Via,
    /// Path and query.
    path: String,
    policy: Policy,
}

/// How the connection is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Via {
    /// TLS with the server's client certificate for kubelets.
    Kubelet,
    /// The same, whatever certificate the kubelet shows.
    UnverifiedKubelet,
    /// TLS with a peer that nobody vouches for.
    Tls,
    Plain,
}

/// What a connecting request leads to.
enum Way {
    To(Target),
    /// Nothing is there yet: a log of a pod that has no node.
    Nothing,
    /// The path lacks its final slash.
    Moved(String),
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
        if matches!(self, Self::Exec | Self::Attach | Self::PortForward) {
            may_create(call).await?;
        }
        let way = match self {
            Self::Log => log(call, served).await?,
            Self::Proxy => proxy(call, served, &method, &connection.uri).await?,
            _ => Way::To(stream(self, call, served).await?),
        };
        let target = match way {
            Way::To(target) => target,
            Way::Nothing => {
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = StatusCode::NO_CONTENT;
                return Ok(response);
            }
            Way::Moved(location) => {
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
                let location = location.parse().map_err(|_| Status::bad_request("the path is no URL"))?;
                response.headers_mut().insert(http::header::LOCATION, location);
                return Ok(response);
            }
        };
        let mut request = Request::new(relay::outgoing(body));
        *request.method_mut() = method;
        *request.uri_mut() = target.path.parse().map_err(|e| Status::bad_request(format!("path: {e}")))?;
        *request.headers_mut() = relay::passed_on(&call.headers);
        if target.policy.prefix.is_some() {
            relay::forwarded(request.headers_mut(), connection.uri.path());
        }
        let host = std::net::SocketAddr::new(target.address, target.port).to_string();
        let address = target.address.to_string();
        let failed = |e: dial::DialError| Status::unavailable(format!("error trying to reach service: {e}"));
        match target.via {
            Via::Kubelet | Via::UnverifiedKubelet => {
                let connector = call.server.connector.as_ref();
                let connector =
                    connector.ok_or_else(|| Status::internal("no client certificate for kubelets"))?;
                let stream = connector
                    .connect(target.address, target.port, target.via == Via::UnverifiedKubelet)
                    .await?;
                relay::http1(stream, &host, request, connection.upgrade, &target.policy).await
            }
            Via::Tls => {
                let config =
                    tls::client(Trust::Nobody, None, &[b"http/1.1"]).map_err(|e| failed(e.into()))?;
                let stream = dial::tls(config, &address, target.port, &address).await.map_err(failed)?;
                relay::http1(stream, &host, request, connection.upgrade, &target.policy).await
            }
            Via::Plain => {
                let stream = dial::tcp(&address, target.port).await.map_err(failed)?;
                relay::http1(stream, &host, request, connection.upgrade, &target.policy).await
            }
        }
    }

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

/// A WebSocket comes as a GET; what it opens needs the right to create all the same.
async fn may_create(call: &Call) -> Result<(), Status> {
    if call.attributes.verb == "create" {
        return Ok(());
    }
    let create = Attributes { verb: "create".to_owned(), ..call.attributes.clone() };
    let decision = call.server.hooks.authorize.authorize(&create).await;
    if decision.allowed() { Ok(()) } else { Err(authz::forbidden(&create, &decision.reason)) }
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

async fn log(call: &Call, served: &Served) -> Result<Way, Status> {
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
        return Ok(Way::Nothing);
    }
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for key in ["follow", "previous", "timestamps"] {
        if on(query.flag(key)) {
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
    let skip = on(query.flag("insecureSkipTLSVerifyBackend"));
    let via = if skip { Via::UnverifiedKubelet } else { Via::Kubelet };
    Ok(Way::To(Target { address, port, via, path, policy: Policy::default() }))
}

async fn stream(kind: Connect, call: &Call, served: &Served) -> Result<Target, Status> {
    let pod = pod(call, served, &call.info.name).await?;
    let name = call.info.name.as_str();
    let query = &call.query;
    let phase = text(&pod, "/status/phase");
    if kind != Connect::PortForward && matches!(phase, "Succeeded" | "Failed") {
        let what = if kind == Connect::Exec { "exec into" } else { "attach" };
        return Err(Status::bad_request(format!(
            "cannot {what} a container in a completed pod; current phase is {phase}"
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
    let policy = Policy { must_upgrade: true, ..Policy::default() };
    Ok(Target { address, port, via: Via::Kubelet, path, policy })
}

/// `[scheme:]name[:port]`.
fn split_name(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    match parts.as_slice() {
        [""] => None,
        [name] => Some(("", name, "")),
        [name, port] => Some(("", name, port)),
        [scheme, name, port] if matches!(*scheme, "" | "http" | "https") => Some((scheme, name, port)),
        _ => None,
    }
}

async fn proxy(call: &Call, served: &Served, method: &Method, uri: &http::Uri) -> Result<Way, Status> {
    let id = call.info.name.as_str();
    let kind = served.plural();
    let (scheme, name, port) = split_name(id).ok_or_else(|| {
        Status::bad_request(format!("invalid {} request {id:?}", kind.trim_end_matches('s')))
    })?;
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let asked = uri.path();
    let (address, port, via) = match kind {
        "nodes" => node_address(call, name, port, scheme).await?,
        "pods" => pod_address(call, served, name, port, scheme).await?,
        _ => service_address(call, served, name, port, scheme).await?,
    };
    // A page at the root must end with a slash, or its relative links would lead astray.
    let upgrade = relay::is_upgrade(&call.headers);
    if call.info.rest.is_empty()
        && !asked.ends_with('/')
        && !upgrade
        && matches!(*method, Method::GET | Method::HEAD)
    {
        return Ok(Way::Moved(format!("{asked}/{query}")));
    }
    let rest = encode_path(&call.info.rest);
    let prefix = asked.strip_suffix(rest.as_str()).unwrap_or(asked).trim_end_matches('/').to_owned();
    let path = format!("/{rest}{query}");
    let policy = Policy { prefix: Some(prefix), drop_cors: true, ..Policy::default() };
    Ok(Way::To(Target { address, port, via, path, policy }))
}

/// A decoded path as it stands in a URL.
fn encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.trim_start_matches('/').bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'@' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn scheme_of(scheme: &str) -> Via {
    if scheme == "https" { Via::Tls } else { Via::Plain }
}

fn number_of(port: &str, scheme: &str) -> Result<u16, Status> {
    match port {
        "" if scheme == "https" => Ok(443),
        "" => Ok(80),
        text => text.parse().map_err(|_| Status::bad_request(format!("invalid port {text:?}"))),
    }
}

fn not_allowed() -> Status {
    Status::bad_request("address not allowed")
}

async fn node_address(
    call: &Call,
    name: &str,
    port: &str,
    scheme: &str,
) -> Result<(IpAddr, u16, Via), Status> {
    let (address, own) = kubelet(&call.server, name).await?;
    if !dial::global_unicast(address) {
        return Err(not_allowed());
    }
    if port.is_empty() || port == own.to_string() {
        return Ok((address, own, Via::Kubelet));
    }
    Ok((address, number_of(port, scheme)?, scheme_of(scheme)))
}

async fn pod_address(
    call: &Call,
    served: &Served,
    name: &str,
    port: &str,
    scheme: &str,
) -> Result<(IpAddr, u16, Via), Status> {
    let pod = pod(call, served, name).await?;
    let ips = pod.pointer("/status/podIPs/0/ip").and_then(Value::as_str);
    let address = ips.unwrap_or_else(|| text(&pod, "/status/podIP")).parse().map_err(|_| not_allowed())?;
    if !dial::global_unicast(address) {
        return Err(not_allowed());
    }
    let first = || {
        let list = pod.pointer("/spec/containers").and_then(Value::as_array);
        let ports = list.into_iter().flatten().filter_map(|c| c["ports"].as_array()).flatten();
        ports.filter_map(|p| p["containerPort"].as_u64()).find_map(|p| u16::try_from(p).ok())
    };
    let number = match (port, first()) {
        ("", Some(first)) => first,
        _ => number_of(port, scheme)?,
    };
    Ok((address, number, scheme_of(scheme)))
}

/// One address of a Service at random; only such as are really a pod's, since whoever writes endpoints could otherwise
/// make the server reach anything.
async fn service_address(
    call: &Call,
    served: &Served,
    name: &str,
    port: &str,
    scheme: &str,
) -> Result<(IpAddr, u16, Via), Status> {
    let registry = &call.server.registry;
    let namespace = call.info.namespace.as_str();
    let object = registry.get(served, &served.key(namespace, name)).await?;
    let object = object.ok_or_else(|| served.not_found(name))?;
    let service = served.read(&object).await?;
    let mut port_name = port.to_owned();
    if let Ok(number) = port.parse::<i64>() {
        let ports = service.pointer("/spec/ports").and_then(Value::as_array);
        let found = ports.into_iter().flatten().find(|p| p["port"].as_i64() == Some(number));
        let found = found.ok_or_else(|| {
            Status::unavailable(format!("no service port {number} found for service {name:?}"))
        })?;
        port_name = found["name"].as_str().unwrap_or_default().to_owned();
    }
    let unavailable =
        || Status::unavailable(format!("no endpoints available for service {:?}", call.info.name));
    let slices = registry.any("discovery.k8s.io", "endpointslices").ok_or_else(unavailable)?;
    let pods = registry.any("", "pods").ok_or_else(unavailable)?;
    let mut found = Vec::new();
    for object in slices.cache.list(&slices.prefix(namespace), None).0 {
        let slice = slices.read(&object).await?;
        if text(&slice, "/metadata/labels/kubernetes.io~1service-name") != name {
            continue;
        }
        let list = slice["ports"].as_array().into_iter().flatten();
        let number = list
            .filter(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .find_map(|p| u16::try_from(p["port"].as_u64()?).ok());
        let Some(number) = number else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint.pointer("/conditions/ready") == Some(&Value::Bool(false)) {
                continue;
            }
            let target = text(endpoint, "/targetRef/name");
            let address = endpoint.pointer("/addresses/0").and_then(Value::as_str).unwrap_or_default();
            let own = pods.cache.get(&pods.key(namespace, target)).and_then(|p| p.value().ok());
            let own = own.as_ref().and_then(|p| p.pointer("/status/podIPs")).and_then(Value::as_array);
            let is_pod = own.into_iter().flatten().any(|ip| ip["ip"].as_str() == Some(address));
            if let (true, Ok(ip)) = (is_pod, address.parse::<IpAddr>()) {
                found.push((ip, number));
            }
        }
    }
    found.retain(|(ip, _)| dial::global_unicast(*ip));
    if found.is_empty() {
        return Err(unavailable());
    }
    let (address, number) = found[rand::rng().random_range(0..found.len())];
    Ok((address, number, scheme_of(scheme)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_into_scheme_name_and_port() {
        assert_eq!(split_name("a"), Some(("", "a", "")));
        assert_eq!(split_name("a:80"), Some(("", "a", "80")));
        assert_eq!(split_name("https:a:web"), Some(("https", "a", "web")));
        assert_eq!(split_name("http:a:"), Some(("http", "a", "")));
        for bad in ["ftp:a:1", "a:b:c:d", ""] {
            assert_eq!(split_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_path_is_escaped_again() {
        assert_eq!(encode_path("a b/c%2F../ü?"), "a%20b/c%252F../%C3%BC%3F");
        assert_eq!(encode_path("//host/x"), "host/x", "the path cannot become a host");
    }
}
