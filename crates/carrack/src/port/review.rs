//! Who asks, and whether they may: tokens by TokenReview, rights by SubjectAccessReview. Answers are kept for a while.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::{Request, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use x509_parser::prelude::{FromDer, X509Certificate};

/// As long as upstream's delegating authentication and authorization keep answers.
const KEPT: Duration = Duration::from_secs(10);
const MOST_KEPT: usize = 1024;

/// Somebody who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
        Some(Self { name, groups, ..Self::default() })
    }

    fn anonymous() -> Self {
        let groups = vec!["system:unauthenticated".to_owned()];
        Self { name: "system:anonymous".to_owned(), groups, ..Self::default() }
    }
}

/// Why a request is refused: code, reason and message.
pub(super) type Refusal = (StatusCode, &'static str, String);

/// Answers by question, each with the time until which it holds.
type Known<Q, A> = Mutex<HashMap<Q, (A, Instant)>>;

/// Decides about requests.
pub(super) struct Reviewer {
    client: Client,
    users: Known<String, Option<User>>,
    rights: Known<(User, String, String), bool>,
}

fn known<Q: Hash + Eq, A: Clone>(all: &Known<Q, A>, question: &Q) -> Option<A> {
    all.lock().get(question).filter(|(_, until)| *until > Instant::now()).map(|(answer, _)| answer.clone())
}

fn keep<Q: Hash + Eq, A>(all: &Known<Q, A>, question: Q, answer: A) {
    let mut all = all.lock();
    if all.len() >= MOST_KEPT {
        all.clear();
    }
    all.insert(question, (answer, Instant::now() + KEPT));
}

fn failed(error: kube::Error) -> Refusal {
    tracing::warn!(%error, "the API server does not tell who asks and what they may");
    let message = "Internal error occurred: the API server does not answer".to_owned();
    (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
}

impl Reviewer {
    pub(super) fn new(client: Client) -> Self {
        Self { client, users: Mutex::default(), rights: Mutex::default() }
    }

    /// Lets a request through, or says why not.
    pub(super) async fn admit<B>(&self, request: &Request<B>, peer: Option<User>) -> Result<(), Refusal> {
        let bearer = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let user = match (peer, bearer.and_then(|value| value.strip_prefix("Bearer "))) {
            (Some(user), _) => user,
            (None, Some(token)) => {
                let unknown = || (StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized".to_owned());
                self.user(token).await?.ok_or_else(unknown)?
            }
            (None, None) => User::anonymous(),
        };
        let (verb, path) = (request.method().as_str().to_lowercase(), request.uri().path());
        if self.allowed(&user, &verb, path).await? {
            return Ok(());
        }
        let message = format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name);
        Err((StatusCode::FORBIDDEN, "Forbidden", message))
    }

    async fn user(&self, token: &str) -> Result<Option<User>, Refusal> {
        let token = token.to_owned();
        if let Some(user) = known(&self.users, &token) {
            return Ok(user);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.clone(), audiences: None },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        let status = answer.map_err(failed)?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|info| User {
            name: info.username.unwrap_or_default(),
            uid: info.uid.unwrap_or_default(),
            groups: info.groups.unwrap_or_default(),
            extra: info.extra.unwrap_or_default(),
        });
        keep(&self.users, token, user.clone());
        Ok(user)
    }

    async fn allowed(&self, user: &User, verb: &str, path: &str) -> Result<bool, Refusal> {
        let question = (user.clone(), verb.to_owned(), path.to_owned());
        if let Some(allowed) = known(&self.rights, &question) {
            return Ok(allowed);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()),
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(path.to_owned()),
                    verb: Some(verb.to_owned()),
                }),
                resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await;
        let allowed = answer.map_err(failed)?.status.unwrap_or_default().allowed;
        keep(&self.rights, question, allowed);
        Ok(allowed)
    }
}
