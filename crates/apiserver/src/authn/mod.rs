//! Who calls: front proxies that vouch for somebody, client certificates, bearer tokens. Credentials that are given and do
//! not hold are a 401, never the anonymous user. And acting as somebody else.

mod bearer;
mod certificate;
mod impersonation;
mod jwt;
mod legacy;
mod oidc;
mod request;
#[cfg(test)]
mod tests;
mod token;
mod token_file;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::{BoxFuture, FutureExt};
use http::HeaderMap;
use rustls::pki_types::{CertificateDer, UnixTime};

pub use bearer::Bearer;
pub use certificate::{AnyCertificate, Authority, CertificateError};
pub use impersonation::Impersonation;
pub use legacy::track as track_legacy_tokens;
pub(crate) use oidc::document;
pub use oidc::{Anonymous, AuthenticationConfiguration, ConfigError, Issuers};
pub use request::TokenRequests;
pub use token::{Holder, TokenError, Tokens, account_user, split_account};
pub use token_file::{TokenFile, TokenFileError};
pub use webhook::TokenWebhook;
pub(crate) use webhook::post as post_review;

use crate::{Authenticate, Status, UserInfo};

/// The common names that a front proxy's certificate may carry.
pub const FRONT_PROXY_NAMES: [&str; 1] = ["front-proxy-client"];
/// The WebSocket sub-protocol that carries a bearer token, for browsers, which cannot set headers.
const SOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// The authenticators, in upstream's order.
pub struct Authenticator {
    clients: Authority,
    front_proxies: Authority,
    /// Common names that a front proxy's certificate may carry; empty: any.
    proxy_names: Vec<String>,
    bearer: Arc<Bearer>,
    /// Who may go without credentials; exchanged when the configuration file changes.
    anonymous: ArcSwap<Anonymous>,
}

impl Authenticator {
    /// Clients are certified by one authority (the cluster's), front proxies by another.
    pub fn new(clients: Authority, front_proxies: Authority, bearer: Arc<Bearer>) -> Self {
        let proxy_names = FRONT_PROXY_NAMES.map(str::to_owned).into();
        Self { clients, front_proxies, proxy_names, bearer, anonymous: ArcSwap::default() }
    }

    /// Sets the names that a front proxy's certificate may carry; with none, any.
    #[must_use]
    pub fn with_proxy_names(mut self, names: Vec<String>) -> Self {
        self.proxy_names = names;
        self
    }

    /// Sets who may go without credentials.
    pub fn set_anonymous(&self, anonymous: Anonymous) {
        self.anonymous.store(Arc::new(anonymous));
    }

    /// The caller by its credentials; `None` if it gives none.
    pub async fn user(
        &self,
        headers: &HeaderMap,
        peer: &[CertificateDer<'static>],
    ) -> Result<Option<UserInfo>, Status> {
        let mut refused = false;
        let mut found = None;
        if !peer.is_empty() {
            let now = UnixTime::now();
            // A front proxy that names nobody is judged as any other client.
            if let Some(user) = remote_user(headers)
                && let Ok(proxy) = self.front_proxies.verify(peer, now)
                && (self.proxy_names.is_empty() || self.proxy_names.contains(&proxy.user.name))
            {
                found = Some(user);
            }
            if found.is_none() {
                match self.clients.verify(peer, now) {
                    Ok(subject) => found = Some(subject.user.clone()),
                    Err(why) => {
                        tracing::debug!(%why, "client certificate refused");
                        refused = true;
                    }
                }
            }
        }
        if found.is_none()
            && let Some(token) = bearer(headers)
        {
            match self.bearer.authenticate(&token).await {
                Ok(user) => found = Some(user),
                Err(why) => {
                    tracing::debug!(%why, "bearer token refused");
                    refused = true;
                }
            }
        }
        let Some(mut user) = found else {
            return if refused { Err(Status::unauthorized()) } else { Ok(None) };
        };
        let known = ["system:authenticated", "system:unauthenticated"];
        if user.name != "system:anonymous" && !known.iter().any(|group| user.in_group(group)) {
            user.groups.push("system:authenticated".to_owned());
        }
        Ok(Some(user))
    }
}

impl Authenticate for Authenticator {
    fn authenticate<'a>(
        &'a self,
        parts: &'a http::request::Parts,
        peer: &'a [CertificateDer<'static>],
    ) -> BoxFuture<'a, Result<Option<UserInfo>, Status>> {
        async move {
            let user = self.user(&parts.headers, peer).await?;
            let nobody = || self.anonymous.load().allows(parts.uri.path()).then(UserInfo::anonymous);
            Ok(user.or_else(nobody))
        }
        .boxed()
    }
}

/// The token of an `Authorization: Bearer` header or of a WebSocket's sub-protocol.
fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION) {
        // What is no header text is no token either, but it is a credential.
        let text = value.to_str().unwrap_or("Bearer ?").trim();
        let mut words = text.splitn(3, ' ');
        let scheme = words.next().unwrap_or_default();
        if scheme.eq_ignore_ascii_case("bearer")
            && let Some(token) = words.next().filter(|t| !t.is_empty())
        {
            return Some(token.to_owned());
        }
    }
    let socket = headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL);
    let protocols = socket.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let encoded = protocols.filter_map(|p| p.trim().strip_prefix(SOCKET_TOKEN)).next()?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).ok();
    Some(bytes.and_then(|b| String::from_utf8(b).ok()).unwrap_or_else(|| "?".to_owned()))
}

/// The user that a front proxy names in its headers.
fn remote_user(headers: &HeaderMap) -> Option<UserInfo> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let first = |name: &str| headers.get(name).map(text).filter(|value| !value.is_empty());
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("x-remote-extra-") {
            extra.entry(impersonation::unescape(key)).or_default().push(text(value));
        }
    }
    Some(UserInfo {
        name: first("x-remote-user")?,
        uid: first("x-remote-uid").unwrap_or_default(),
        groups: headers.get_all("x-remote-group").iter().map(text).collect(),
        extra,
    })
}
