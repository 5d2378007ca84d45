//! Bearer tokens: ServiceAccount tokens (bound and legacy) and bootstrap tokens. A signature is checked once; what can change
//! meanwhile (the clock, the objects that the token is bound to) is checked every time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::Value;

use super::jwt::{JwtError, Signer};
use super::legacy;
use crate::read::Read;
use crate::{ClusterRef, UserInfo};

/// What clocks may differ by.
const LEEWAY: i64 = 60;
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Checked signatures that are remembered.
const REMEMBERED: usize = 4096;

/// Whose token it is, and for which of the wanted audiences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    #[error("invalid bearer token")]
    Unknown,
    #[error(transparent)]
    Jwt(#[from] JwtError),
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYet,
    #[error("service account token is issued in the future")]
    FromTheFuture,
    #[error("{0} claim is missing or invalid")]
    Claim(&'static str),
    #[error("serviceaccount {0:?} not found")]
    NoServiceAccount(String),
    #[error("service account {0} has been deleted")]
    Deleted(String),
    #[error("{what} UID ({actual}) does not match claim ({claimed})")]
    Uid { what: &'static str, actual: String, claimed: String },
    #[error("service account token has been invalidated")]
    Invalidated,
    /// What another authenticator says.
    #[error("{0}")]
    Other(String),
}

/// The token authenticators.
pub struct Tokens {
    cluster: ClusterRef,
    pub(super) signer: Signer,
    /// `iss` of the tokens that are made; tokens of it are accepted.
    pub(super) issuer: String,
    /// The audiences of the API server itself; the first one goes into tokens that name none.
    pub(super) audiences: Vec<String>,
    checked: Mutex<HashMap<[u8; 32], Arc<Value>>>,
}

impl Tokens {
    /// `audiences` must not be empty.
    pub fn new(cluster: ClusterRef, key: pki::Key, issuer: String, audiences: Vec<String>) -> Arc<Self> {
        let signer = Signer::new(key);
        Arc::new(Self { cluster, signer, issuer, audiences, checked: Mutex::default() })
    }

    /// The document at `/.well-known/openid-configuration`; `address` is the server's host and port.
    pub fn discovery(&self, address: &str) -> Value {
        super::jwt::discovery(&self.issuer, &format!("https://{address}/openid/v1/jwks"))
    }

    /// The document at `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        self.signer.key_set()
    }

    /// The audiences of the API server itself.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The holder of a token given to this server.
    #[cfg(test)]
    pub fn authenticate(&self, token: &str) -> Result<UserInfo, TokenError> {
        self.check(token, &self.audiences, now()).map(|holder| holder.user)
    }

    /// What a TokenReview says; with no audiences wanted, the server's own count. `None`: nobody knows the token.
    pub fn review(&self, token: &str, wanted: &[String]) -> Result<Option<Holder>, TokenError> {
        let wanted = if wanted.is_empty() { &self.audiences } else { wanted };
        self.check(token, wanted, now()).map(Some)
    }

    pub(super) fn check(&self, token: &str, wanted: &[String], now: i64) -> Result<Holder, TokenError> {
        let mut holder = match self.claims(token) {
            Ok(claims) if claims.text("iss") == LEGACY_ISSUER => self.legacy(token, &claims, wanted, now)?,
            Ok(claims) => self.bound(&claims, wanted, now)?,
            Err(JwtError::Foreign) => {
                let user = self.bootstrap(token, now).ok_or(TokenError::Unknown)?;
                let audiences = common(&self.audiences, wanted)?;
                Holder { user, audiences }
            }
            Err(other) => return Err(other.into()),
        };
        holder.user.groups.push("system:authenticated".to_owned());
        Ok(holder)
    }

    fn claims(&self, token: &str) -> Result<Arc<Value>, JwtError> {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let key: [u8; 32] = digest.as_ref().try_into().expect("SHA-256 has 32 bytes");
        if let Some(claims) = self.checked.lock().get(&key) {
            return Ok(Arc::clone(claims));
        }
        let claims = Arc::new(self.signer.verify(token, &[&self.issuer, LEGACY_ISSUER])?);
        let mut checked = self.checked.lock();
        if checked.len() >= REMEMBERED {
            checked.clear();
        }
        checked.insert(key, Arc::clone(&claims));
        Ok(claims)
    }

    fn bound(&self, claims: &Value, wanted: &[String], now: i64) -> Result<Holder, TokenError> {
        let own = match claims.at("aud") {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => self.audiences.clone(),
        };
        let audiences = common(&own, wanted)?;
        check_times(claims, now)?;
        let Some(facts) = claims.get("kubernetes.io") else { return Err(TokenError::Claim("kubernetes.io")) };
        let namespace = facts.text("namespace");
        let account = facts.at("serviceaccount");
        let name = account.text("name");
        if claims.text("sub") != format!("system:serviceaccount:{namespace}:{name}") {
            return Err(TokenError::Claim("sub"));
        }
        self.account(namespace, name, account.text("uid"), now)?;
        let mut user = account_user(namespace, name, account.text("uid"));
        let mut note = |key: &str, value: &str| {
            if !value.is_empty() {
                user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
            }
        };
        if !claims.text("jti").is_empty() {
            note("credential-id", &format!("JTI={}", claims.text("jti")));
        }
        let (pod, node) = (facts.at("pod"), facts.at("node"));
        self.still_there("secret", "secrets", namespace, facts.at("secret"), now)?;
        self.still_there("pod", "pods", namespace, pod, now)?;
        if pod.is_null() {
            self.still_there("node", "nodes", "", node, now)?;
        }
        for (what, reference) in [("pod", pod), ("node", node)] {
            note(&format!("{what}-name"), reference.text("name"));
            note(&format!("{what}-uid"), reference.text("uid"));
        }
        Ok(Holder { user, audiences })
    }

    /// Tokens kept in Secrets: they hold as long as their Secret holds them.
    fn legacy(&self, token: &str, claims: &Value, wanted: &[String], now: i64) -> Result<Holder, TokenError> {
        let claim = |key: &'static str| {
            let value = claims.get(format!("kubernetes.io/serviceaccount/{key}")).and_then(Value::as_str);
            value.filter(|v| !v.is_empty()).ok_or(TokenError::Claim(key))
        };
        let namespace = claim("namespace")?;
        let name = claim("service-account.name")?;
        let uid = claim("service-account.uid")?;
        let secret = claim("secret.name")?;
        if claims.text("sub") != format!("system:serviceaccount:{namespace}:{name}") {
            return Err(TokenError::Claim("sub"));
        }
        if claims.has("exp") {
            check_times(claims, now)?;
        }
        let audiences = common(&self.audiences, wanted)?;
        let secret = self.cluster.get("", "secrets", namespace, secret).ok_or(TokenError::Invalidated)?;
        let stored = STANDARD.decode(secret.text("data.token")).unwrap_or_default();
        if secret.has("metadata.deletionTimestamp") || !same(&stored, token.as_bytes()) {
            return Err(TokenError::Invalidated);
        }
        legacy::used(&self.cluster, &secret);
        if secret.label("kubernetes.io/legacy-token-invalid-since").is_some_and(|s| !s.is_empty()) {
            return Err(TokenError::Invalidated);
        }
        let account = self.account(namespace, name, uid, now)?;
        if account.has("metadata.deletionTimestamp") {
            return Err(TokenError::Deleted(format!("{namespace}/{name}")));
        }
        Ok(Holder { user: account_user(namespace, name, uid), audiences })
    }

    fn account(&self, namespace: &str, name: &str, uid: &str, now: i64) -> Result<Arc<Value>, TokenError> {
        let account = self
            .cluster
            .get("", "serviceaccounts", namespace, name)
            .ok_or_else(|| TokenError::NoServiceAccount(name.to_owned()))?;
        if account.uid() != uid {
            return Err(TokenError::Uid {
                what: "service account",
                actual: account.uid().to_owned(),
                claimed: uid.to_owned(),
            });
        }
        if deleted_before(&account, now - LEEWAY) {
            return Err(TokenError::Deleted(format!("{namespace}/{name}")));
        }
        Ok(account)
    }

    fn still_there(
        &self,
        what: &'static str,
        resource: &str,
        namespace: &str,
        reference: &Value,
        now: i64,
    ) -> Result<(), TokenError> {
        if reference.is_null() {
            return Ok(());
        }
        let object = self
            .cluster
            .get("", resource, namespace, reference.text("name"))
            .ok_or(TokenError::Invalidated)?;
        if object.uid() != reference.text("uid") {
            return Err(TokenError::Uid {
                what,
                actual: object.uid().to_owned(),
                claimed: reference.text("uid").to_owned(),
            });
        }
        if deleted_before(&object, now - LEEWAY) { Err(TokenError::Invalidated) } else { Ok(()) }
    }

    /// `<id>.<secret>`, as kept in the Secret `bootstrap-token-<id>` of kube-system.
    fn bootstrap(&self, token: &str, now: i64) -> Option<UserInfo> {
        let (id, part) = token.split_once('.')?;
        let plain = |s: &str, len: usize| {
            s.len() == len && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        if !plain(id, 6) || !plain(part, 16) {
            return None;
        }
        let secret = self.cluster.get("", "secrets", "kube-system", &format!("bootstrap-token-{id}"))?;
        let data = |key: &str| {
            let encoded = secret.at("data").get(key).and_then(Value::as_str).unwrap_or_default();
            String::from_utf8(STANDARD.decode(encoded).unwrap_or_default()).unwrap_or_default()
        };
        let expiration = data("expiration");
        let expired = !expiration.is_empty()
            && expiration.parse::<jiff::Timestamp>().map_or(true, |end| end.as_second() <= now);
        if secret.has("metadata.deletionTimestamp")
            || secret.text("type") != "bootstrap.kubernetes.io/token"
            || !same(data("token-secret").as_bytes(), part.as_bytes())
            || data("token-id") != id
            || expired
            || data("usage-bootstrap-authentication") != "true"
        {
            return None;
        }
        let mut groups = vec!["system:bootstrappers".to_owned()];
        for group in data("auth-extra-groups").split(',').filter(|g| !g.is_empty()) {
            let rest = group.strip_prefix("system:bootstrappers:")?;
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            if !rest.bytes().all(|b| good(b) || b == b':' || b == b'-')
                || !rest.bytes().last().is_some_and(good)
            {
                return None;
            }
            groups.push(group.to_owned());
        }
        groups[1..].sort();
        Some(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })
    }
}

/// The identity of a ServiceAccount, without `system:authenticated`.
pub fn account_user(namespace: &str, name: &str, uid: &str) -> UserInfo {
    UserInfo {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")],
        extra: BTreeMap::new(),
    }
}

/// Namespace and name, if the user is a ServiceAccount.
pub fn split_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

pub(super) fn common(own: &[String], wanted: &[String]) -> Result<Vec<String>, TokenError> {
    let both: Vec<String> = own.iter().filter(|a| wanted.contains(a)).cloned().collect();
    if both.is_empty() { Err(TokenError::Audience(own.to_vec(), wanted.to_vec())) } else { Ok(both) }
}

fn check_times(claims: &Value, now: i64) -> Result<(), TokenError> {
    let time = |key: &str| claims.at(key).as_f64().map(|t| t as i64);
    match time("exp") {
        Some(end) if now > end + LEEWAY => return Err(TokenError::Expired),
        Some(_) => {}
        None => return Err(TokenError::Claim("exp")),
    }
    if time("nbf").is_some_and(|start| now + LEEWAY < start) {
        return Err(TokenError::NotYet);
    }
    if time("iat").is_some_and(|start| now + LEEWAY < start) {
        return Err(TokenError::FromTheFuture);
    }
    Ok(())
}

fn deleted_before(object: &Value, time: i64) -> bool {
    let text = object.text("metadata.deletionTimestamp");
    !text.is_empty() && text.parse::<jiff::Timestamp>().map_or(true, |t| t.as_second() < time)
}

/// Compares digests, so that the time it takes tells nothing about the secret.
fn same(a: &[u8], b: &[u8]) -> bool {
    let digest = |bytes| ring::digest::digest(&ring::digest::SHA256, bytes);
    digest(a).as_ref() == digest(b).as_ref()
}
