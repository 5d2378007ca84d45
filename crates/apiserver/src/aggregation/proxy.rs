//! A request on its way to an extension server: the caller's identity in headers under the front proxy's certificate.

use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode, Uri};

use super::{Aggregator, CONNECTIONS, Remote};
use crate::pipeline::text;
use crate::relay::{self, Outgoing, Policy};
use crate::verbs::Answered;
use crate::{ClusterRef, UserInfo, dial};

impl Aggregator {
    /// Passes a request on.
    pub async fn proxy(
        &self,
        cluster: &ClusterRef,
        remote: &Remote,
        user: &UserInfo,
        parts: Parts,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
        body: Outgoing,
    ) -> Answered {
        if !remote.available {
            return Ok(text(StatusCode::SERVICE_UNAVAILABLE, "service unavailable\n"));
        }
        let mut request = Request::new(body);
        *request.method_mut() = parts.method;
        *request.headers_mut() = relay::passed_on(&parts.headers);
        relay::forwarded(request.headers_mut(), parts.uri.path());
        let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        match self.send(cluster, remote, user, request, target, upgrade).await {
            Ok(response) => Ok(response),
            Err(why) => {
                tracing::debug!(name = remote.name, %why, "extension server not reached");
                Ok(text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")))
            }
        }
    }

    /// Sends a request as `user` to one endpoint of the server.
    pub(super) async fn send(
        &self,
        cluster: &ClusterRef,
        remote: &Remote,
        user: &UserInfo,
        mut request: Request<Outgoing>,
        target: &str,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
    ) -> Answered {
        identify(request.headers_mut(), user);
        crate::trace::carry_on(request.headers_mut());
        let policy = Policy { drop_cors: true, no_redirects: true, ..Policy::default() };
        let (host, port) = self.resolve(cluster, remote).map_err(|why| {
            tracing::debug!(name = remote.name, why, "Service not resolved");
            crate::Status::unavailable("service unavailable")
        })?;
        let unreachable =
            |e: dial::DialError| crate::Status::unavailable(format!("error trying to reach service: {e}"));
        let authority = dial::authority(&host, port);
        let plain = !relay::is_upgrade(request.headers());
        let key = (remote.name.clone(), host.clone(), port);
        if plain {
            let shared = self.connections.read().get(&key).filter(|c| c.alive()).cloned();
            if let Some(mut shared) = shared {
                *request.uri_mut() = absolute(&authority, target)?;
                return shared.send(request, &policy).await;
            }
        }
        let config = self.config(remote, plain).map_err(unreachable)?;
        let stream = dial::tls(config, &host, port, &remote.server_name()).await.map_err(unreachable)?;
        if plain && stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            let mut shared = relay::http2(stream).await?;
            {
                let mut connections = self.connections.write();
                if connections.len() >= CONNECTIONS {
                    connections.clear();
                }
                connections.insert(key, shared.clone());
            }
            *request.uri_mut() = absolute(&authority, target)?;
            return shared.send(request, &policy).await;
        }
        *request.uri_mut() = target.parse().map_err(|_| crate::Status::bad_request("the path is no URL"))?;
        relay::http1(stream, &authority, request, upgrade, &policy).await
    }
}

fn absolute(authority: &str, target: &str) -> Result<Uri, crate::Status> {
    format!("https://{authority}{target}")
        .parse()
        .map_err(|_| crate::Status::bad_request("the path is no URL"))
}

/// Names the caller in headers; whatever the caller itself sent under these names is gone already.
pub fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).ok();
    let mut add = |name: &str, text: &str| {
        if let (Ok(name), Some(value)) = (HeaderName::from_bytes(name.as_bytes()), value(text)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escape(key));
        for value in values {
            add(&name, value);
        }
    }
}

/// A key as part of a header's name: what is no token character is %-encoded, in upper case as upstream has it.
fn escape(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|'
            | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
