//! A request's way: identity, authorization, verb, answer. Every error becomes a Status here.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, HeaderValue, VARY, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};

use crate::http::body::{self, Body};
use crate::http::listen::Peer;
use crate::http::negotiate::{self, Forms, Output};
use crate::http::{warning, websocket};
use crate::lifecycle::{self, Track};
use crate::metrics::metrics;
use crate::metrics::request::Labels;
use crate::query::Query;
use crate::registry::Served;
use crate::request::RequestInfo;
use crate::server::Server;
use crate::verbs::write::Part;
use crate::verbs::{Answered, Call, create, delete, list, patch, read, scale, update, watch};
use crate::{Attributes, Status, UserInfo, Verdict, authz, render, special};

/// How the caller reached the server.
pub enum Caller {
    /// Over a connection: credentials are in the request or the certificate.
    Peer(Peer),
    /// In this process: the identity is given.
    User(Arc<UserInfo>),
}

/// Answers a request.
pub async fn handle<B>(server: Arc<Server>, request: Request<B>, caller: Caller) -> Response<Body>
where
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: std::fmt::Display + Send,
{
    let (mut parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
    let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let features = server.config.features;
    let forms = if info.is_resource { Forms::Convertible } else { Forms::Plain };
    let output = negotiate::output(&parts.headers, &query, forms, features).unwrap_or(Output::JSON);
    let gzip = accepts_gzip(&parts);
    let head = parts.method == Method::HEAD;
    let long = info.long_running();
    let labels = Labels::new(&parts.method, &parts.headers, &query, &info, |info| {
        server.registry.find(&info.group, &info.version, &info.resource).is_some()
    });
    let (limit, refused) = match lifecycle::time_limit(&server.config.protection, &query) {
        _ if long => (None, None),
        Ok(limit) => (Some(limit), None),
        Err(status) => (Some(server.config.protection.request_timeout), Some(status)),
    };
    let ending = server.shutdown.is_cancelled() && server.config.protection.shutdown_send_retry_after;
    if ending && matches!(caller, Caller::Peer(_)) && !lifecycle::always(&info) {
        return lifecycle::elsewhere();
    }
    let span = server.tracer.as_ref().and_then(|tracer| tracer.begin(&parts.method, &parts.headers, &info));
    let track = Arc::new(Track::new(&server, &parts.headers, labels, limit));
    let trace = crate::trace::Context::of(span.as_ref(), &parts.headers);
    if let Some(span) = span {
        track.trace(span, parts.uri.path_and_query().map_or_else(String::new, ToString::to_string));
    }
    let job = async {
        match refused {
            Some(status) => {
                let address = match &caller {
                    Caller::Peer(peer) => peer.address,
                    Caller::User(_) => None,
                };
                track.stranger(&server, &parts, address, &info.attributes(&query));
                Err(status)
            }
            // Boxed once: the future is large, and moving it into the timeout would copy it.
            None => {
                let answer = answer(server.clone(), parts, body, query, info, caller, upgrade, &track);
                trace.within(Box::pin(answer)).await
            }
        }
    };
    // A fault in one request must not take the connection's other requests along.
    let job = std::panic::AssertUnwindSafe(job).catch_unwind();
    let result = match limit {
        None => Ok(job.await),
        Some(limit) => tokio::time::timeout(limit, job).await,
    };
    track.worked();
    let result = match result {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            tracing::error!("a request ended in a panic");
            track.panicked();
            Err(Status::internal("the server failed while it served the request"))
        }
        Err(_) => {
            track.labels.terminated(504);
            track.labels.aborted();
            Err(Status::timeout("request did not complete within the allotted timeout"))
        }
    };
    let (mut response, failure) = match result {
        Ok(response) => (response, None),
        Err(status) => {
            let mut response = render::status(output, &status);
            if status.code() == 401 {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            (response, Some(status))
        }
    };
    let (seen, outcome) = track.outcome(response, failure.as_ref());
    response = seen;
    if gzip && !long && !response.headers().contains_key(CONTENT_ENCODING) {
        let (parts, body) = response.into_parts();
        let (body, packed) = body.gzip();
        response = Response::from_parts(parts, body);
        if packed {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        }
    }
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    let answered = track.answered(response, outcome);
    // The answer is on its way: what could not be kept is counted, and no reason to take it back.
    let _ = track.settled().await;
    let mut response = websocket::start(answered);
    if head {
        *response.body_mut() = Body::Empty;
    }
    response
}

fn accepts_gzip(parts: &Parts) -> bool {
    let header = parts.headers.get(ACCEPT_ENCODING).and_then(|h| h.to_str().ok()).unwrap_or_default();
    header.split(',').any(|e| e.split(';').next().unwrap_or_default().trim() == "gzip")
}

#[allow(clippy::too_many_arguments, reason = "the parts of one request, taken apart once")]
async fn answer<B>(
    server: Arc<Server>,
    parts: Parts,
    body: B,
    query: Query,
    info: RequestInfo,
    caller: Caller,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
    track: &Arc<Track>,
) -> Answered
where
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: std::fmt::Display + Send,
{
    let attributes = info.attributes(&query);
    let (user, address) = match caller {
        Caller::User(user) => (user, None),
        Caller::Peer(peer) => {
            let user = authenticate(&server, &parts, &peer).await;
            let user = user.inspect_err(|_| track.stranger(&server, &parts, peer.address, &attributes))?;
            (user, peer.address)
        }
    };
    let attributes = Attributes { user, ..attributes };
    track.audit(&server, &parts, address, &attributes).await?;
    let user = server.impersonation.apply(&*server.hooks.authorize, &attributes, &parts.headers).await?;
    if !Arc::ptr_eq(&user, &attributes.user) {
        track.record.impersonated(&user);
    }
    let attributes = Attributes { user, ..attributes };
    if let Some(refused) = track.admit(&server, &info, &query, &attributes).await {
        return Ok(refused);
    }
    let before = Instant::now();
    let decision = server.hooks.authorize.authorize(&attributes).await;
    let result = match decision.verdict {
        Verdict::Allow => "allowed",
        Verdict::Deny => "denied",
        Verdict::NoOpinion => "no-opinion",
    };
    metrics().authorization_attempts.with(&[result]).increment();
    metrics().authorization_duration.with(&[result]).observe(before.elapsed().as_secs_f64());
    let verdict = if decision.allowed() { "allow" } else { "forbid" };
    track.record.annotate("authorization.k8s.io/decision", verdict);
    track.record.annotate("authorization.k8s.io/reason", decision.reason.as_str());
    if !decision.allowed() {
        return Err(authz::forbidden(&attributes, &decision.reason));
    }
    if let Some(remote) = server.aggregation.route(&info) {
        let cluster = server.cluster();
        let (user, body) = (attributes.user, crate::relay::outgoing(body));
        return server.aggregation.proxy(&cluster, &remote, &user, parts, upgrade, body).await;
    }
    if !info.is_resource {
        if let Some(health) = crate::serve::health::answer(&server, &parts.method, &query, &info).await {
            return Ok(health);
        }
        return crate::serve::path(&server, &parts, &query, &info).await;
    }
    let served = server.registry.find(&info.group, &info.version, &info.resource);
    let Some(served) = served else {
        if info.group.is_empty() || server.registry.any_of(&info.group) {
            return Err(Status::no_such_resource());
        }
        return Ok(text(StatusCode::NOT_FOUND, "404 page not found\n"));
    };
    let forms = match served.resource.strategy.is_custom() && info.subresource != "scale" {
        true => Forms::Custom,
        false => Forms::Convertible,
    };
    let output = negotiate::output(&parts.headers, &query, forms, server.config.features);
    let mut call = Call {
        server,
        info,
        query,
        headers: parts.headers,
        attributes,
        output: Output::JSON,
        warnings: Mutex::default(),
        audit: track.record.clone(),
    };
    if let Some(connect) = special::connect(&call, &served) {
        call.output = output.unwrap_or(Output::JSON);
        if call.info.subresource == "log" && websocket::wanted(&call.headers) {
            let headers = call.headers.clone();
            websocket::plain(&mut call.headers);
            let connection = special::Connection { method: parts.method, uri: parts.uri, upgrade: None };
            let response = connect.run(&call, &served, connection, body).await?;
            return Ok(websocket::note(response, &headers, upgrade, websocket::Framing::Pieces));
        }
        let connection = special::Connection { method: parts.method, uri: parts.uri, upgrade };
        return connect.run(&call, &served, connection, body).await;
    }
    call.output = output?;
    let body = match parts.method {
        Method::GET | Method::HEAD => Bytes::new(),
        _ => body::read(body).await?,
    };
    track.labels.body(body.len());
    if let Some(warning) = special::deprecation(served.group(), served.plural()) {
        let info = &call.info;
        let labels = [info.group.as_str(), "", &info.resource, &info.subresource, &info.version];
        metrics().requested_deprecated_apis.with(&labels).set(1.0);
        track.record.annotate("k8s.io/deprecated", "true");
        call.warn(warning);
    }
    if let Some(warning) = &served.deprecation {
        call.warn(&**warning);
    }
    let answered = dispatch(&call, &served, body).await;
    let warnings = std::mem::take(&mut *call.warnings.lock().unwrap_or_else(|e| e.into_inner()));
    let mut response = answered.map_err(|status| status.with_warnings(warnings.clone()))?;
    warning::add(&mut response, &warnings);
    if call.info.verb == "watch" {
        let framing = websocket::Framing::of_watch(call.output);
        response = websocket::note(response, &call.headers, upgrade, framing);
    }
    Ok(response)
}

/// A user's name as it is counted: only a few are worth a series.
fn known(name: &str) -> &str {
    match name {
        "admin" | "client" | "kube_proxy" | "kubelet" | "system:serviceaccount:kube-system:default" => name,
        name if name.contains('@') => "email_id",
        _ => "other",
    }
}

/// Who sends a request over a connection.
async fn authenticate(server: &Server, parts: &Parts, peer: &Peer) -> Result<Arc<UserInfo>, Status> {
    let before = Instant::now();
    let found = server.hooks.authenticate.authenticate(parts, &peer.certificates).await;
    let result = match &found {
        Ok(Some(_)) => "success",
        Ok(None) => "failure",
        Err(_) => "error",
    };
    metrics().authentication_attempts.with(&[result]).increment();
    metrics().authentication_duration.with(&[result]).observe(before.elapsed().as_secs_f64());
    match found? {
        Some(user) => {
            metrics().authenticated_users.with(&[known(&user.name)]).increment();
            Ok(Arc::new(user))
        }
        None => Err(Status::unauthorized()),
    }
}

async fn dispatch(call: &Call, served: &Arc<Served>, body: Bytes) -> Answered {
    let info = &call.info;
    let not_allowed = || {
        if served.resource.strategy.is_custom() {
            return Status::method_not_allowed(served.group(), served.plural(), &info.verb);
        }
        Status::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with_causes(Vec::new())
    };
    if served.resource.namespaced
        && info.namespace.is_empty()
        && !matches!(info.verb.as_str(), "list" | "watch")
    {
        // Without a namespace only lists and watches have a path.
        return Err(if info.name.is_empty() { not_allowed() } else { Status::no_such_resource() });
    }
    if !served.resource.namespaced && !info.namespace.is_empty() && served.plural() != "namespaces" {
        return Err(Status::no_such_resource());
    }
    if !info.subresource.is_empty() {
        let Some(row) = served.resource.subresource(&info.subresource) else {
            return Err(match served.resource.strategy.is_custom() {
                true => served.not_found(&info.name),
                false => Status::no_such_resource(),
            });
        };
        if !info.rest.is_empty() {
            return Err(Status::no_such_resource());
        }
        if !row.verbs.iter().any(|v| *v == info.verb) {
            return Err(not_allowed());
        }
        return part(call, served, body).await;
    }
    if !served.resource.has_verb(&info.verb) {
        return Err(not_allowed());
    }
    if let Some(virtual_row) = special::virtual_row(served) {
        return special::answer_virtual(call, served, virtual_row, body).await;
    }
    match info.verb.as_str() {
        "create" if !info.name.is_empty() => Err(not_allowed()),
        "create" => create::run(call, served, body).await,
        "get" => read::run(call, served).await,
        "list" => list::run(call, served).await,
        "watch" => watch::run(call, served).await,
        "update" if info.name.is_empty() => Err(not_allowed()),
        "update" => update::run(call, served, Part::Main, body).await,
        "patch" if info.name.is_empty() => Err(not_allowed()),
        "patch" => patch::run(call, served, Part::Main, body).await,
        "delete" => delete::run(call, served, body).await,
        "deletecollection" => delete::collection(call, served, body).await,
        _ => Err(not_allowed()),
    }
}

/// A subresource.
async fn part(call: &Call, served: &Arc<Served>, body: Bytes) -> Answered {
    let name = call.info.subresource.as_str();
    if name == "scale" {
        return scale::run(call, served, body).await;
    }
    if name == "status" {
        return write_part(call, served, Part::Status, body).await;
    }
    if let Some(rules) = special::part(served.group(), served.plural(), name) {
        return write_part(call, served, Part::Other(rules), body).await;
    }
    special::create_part(call, served, body).await
}

async fn write_part(call: &Call, served: &Arc<Served>, part: Part, body: Bytes) -> Answered {
    match call.info.verb.as_str() {
        "get" => read::run(call, served).await,
        "update" => update::run(call, served, part, body).await,
        _ => patch::run(call, served, part, body).await,
    }
}

/// What a plain path (no resource) is answered with.
pub fn text(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = render::response(code, "text/plain; charset=utf-8", Body::Full(text.into().into()));
    response.headers_mut().insert("X-Content-Type-Options", HeaderValue::from_static("nosniff"));
    response
}
