//! Who asks, and whether they may: certificates are checked by TLS, tokens by TokenReview, rights by SubjectAccessReview.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Refusal;
use crate::config::KubeletConfig;
use crate::configuration::Span;

/// How long answers are kept unless the settings say otherwise.
const ALLOWED_FOR: Duration = Duration::from_secs(300);
const DENIED_FOR: Duration = Duration::from_secs(30);
const TOKEN_FOR: Duration = Duration::from_secs(120);
const MAX_CACHED: usize = 1024;

/// Somebody who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct User {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The subject of a client certificate that TLS has verified.
    pub(super) fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned)).collect();
        groups.push("system:authenticated".to_owned());
        Some(User { name, groups, ..User::default() })
    }
}

type Question = (User, String, String);

/// Decides about requests; answers are kept for a while.
pub(super) struct Gate {
    client: Client,
    node: String,
    allowed_for: Duration,
    denied_for: Duration,
    token_for: Duration,
    decisions: Mutex<HashMap<Question, (bool, Instant)>>,
    tokens: Mutex<HashMap<String, (User, Instant)>>,
}

impl Gate {
    pub(super) fn new(config: &KubeletConfig) -> Self {
        let or = |span: Span, standard: Duration| if span.is_zero() { standard } else { span.0 };
        let settings = &config.settings;
        let authorization = &settings.authorization.webhook;
        Gate {
            client: config.client.clone(),
            node: config.node_name.clone(),
            allowed_for: or(authorization.cache_authorized_ttl, ALLOWED_FOR),
            denied_for: or(authorization.cache_unauthorized_ttl, DENIED_FOR),
            token_for: or(settings.authentication.webhook.cache_ttl, TOKEN_FOR),
            decisions: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    /// Lets the request through, or says why not.
    pub(super) async fn admit<B>(&self, request: &Request<B>, peer: Option<User>) -> Result<(), Refusal> {
        let unauthorized = || Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized");
        let user = match peer {
            Some(user) => user,
            None => {
                let header = request.headers().get(http::header::AUTHORIZATION);
                let token = header.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
                self.review(token.ok_or_else(unauthorized)?).await?.ok_or_else(unauthorized)?
            }
        };
        let verb = match *request.method() {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        let path = request.uri().path();
        for subresource in subresources(path) {
            if self.allowed(&user, verb, subresource).await? {
                return Ok(());
            }
        }
        let last = subresources(path).last().copied().unwrap_or("proxy");
        let message =
            format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource={last})", user.name);
        Err(Refusal::new(StatusCode::FORBIDDEN, message))
    }

    async fn review(&self, token: &str) -> Result<Option<User>, Refusal> {
        if let Some((user, until)) = self.tokens.lock().get(token)
            && *until > Instant::now()
        {
            return Ok(Some(user.clone()));
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| Refusal::internal(error.to_string()))?.status.unwrap_or_default();
        let Some(info) = status.user.filter(|_| status.authenticated == Some(true)) else { return Ok(None) };
        let user = User {
            name: info.username.unwrap_or_default(),
            uid: info.uid.unwrap_or_default(),
            groups: info.groups.unwrap_or_default(),
            extra: info.extra.unwrap_or_default(),
        };
        let mut tokens = self.tokens.lock();
        if tokens.len() >= MAX_CACHED {
            tokens.clear();
        }
        tokens.insert(token.to_owned(), (user.clone(), Instant::now() + self.token_for));
        Ok(Some(user))
    }

    async fn allowed(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, Refusal> {
        let question = (user.clone(), verb.to_owned(), subresource.to_owned());
        if let Some((allowed, until)) = self.decisions.lock().get(&question)
            && *until > Instant::now()
        {
            return Ok(*allowed);
        }
        let text = |text: &str| Some(text.to_owned());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: text(&user.name),
                uid: text(&user.uid),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: text(verb),
                    version: text("v1"),
                    resource: text("nodes"),
                    subresource: text(subresource),
                    name: text(&self.node),
                    ..ResourceAttributes::default()
                }),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| Refusal::internal(error.to_string()))?.status.unwrap_or_default();
        let keep = if status.allowed { self.allowed_for } else { self.denied_for };
        let mut decisions = self.decisions.lock();
        if decisions.len() >= MAX_CACHED {
            decisions.clear();
        }
        decisions.insert(question, (status.allowed, Instant::now() + keep));
        Ok(status.allowed)
    }
}

/// The subresources of the node any of which lets a path be used, the narrowest first.
fn subresources(path: &str) -> &'static [&'static str] {
    let under =
        |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if under("/stats") {
        &["stats"]
    } else if under("/metrics") {
        &["metrics"]
    } else if under("/logs") {
        &["log"]
    } else if under("/checkpoint") {
        &["checkpoint"]
    } else if under("/statusz") {
        &["statusz"]
    } else if under("/flagz") {
        &["configz"]
    } else if under("/configz") {
        &["configz", "proxy"]
    } else if under("/healthz") {
        &["healthz", "proxy"]
    } else if under("/pods") || under("/runningpods") {
        &["pods", "proxy"]
    } else {
        &["proxy"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_to_subresources() {
        assert_eq!(subresources("/stats/summary"), ["stats"]);
        assert_eq!(subresources("/statsx"), ["proxy"]);
        assert_eq!(subresources("/exec/a/b/c"), ["proxy"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
    }
}
