//! Who signs tokens: found by discovery (OpenID Connect Discovery 1.0), checked with the keys that it publishes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use parking_lot::RwLock;
use serde_json::Value;

use super::config::Issuer;
use super::fetch::Fetcher;
use super::keys::KeySet;
use crate::read::Read;
use crate::tls::TlsSetupError;

/// What clocks may differ by for `nbf`.
const LEEWAY: i64 = 300;
/// Keys are fetched again at most so often, however many tokens name unknown ones.
const REFETCH: Duration = Duration::from_secs(1);
/// After a failure of discovery the issuer is left alone for this time.
const RETRY: Duration = Duration::from_secs(10);

/// One signer, with its keys once they are known.
pub struct Source {
    url: String,
    discovery_url: String,
    audiences: Vec<String>,
    pub fetcher: Arc<Fetcher>,
    keys: RwLock<Arc<KeySet>>,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    keys_url: Option<String>,
    asked: Option<Instant>,
    failed: Option<(Instant, String)>,
}

fn decode(part: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64.decode(part).ok()?).ok()
}

/// Who says to have issued a token, in the spelling of configurations.
pub fn issuer_of(token: &str) -> Option<String> {
    let claims = decode(token.split('.').nth(1)?)?;
    Some(match claims.text("iss") {
        "accounts.google.com" => "https://accounts.google.com".to_owned(),
        other => other.to_owned(),
    })
}

impl Source {
    /// The issuer of a configuration.
    pub fn new(issuer: &Issuer) -> Result<Arc<Self>, TlsSetupError> {
        Ok(Arc::new(Self {
            url: issuer.url.clone(),
            discovery_url: issuer.discovery_url.clone(),
            audiences: issuer.audiences.clone(),
            fetcher: Arc::new(Fetcher::new(&issuer.certificate_authority)?),
            keys: RwLock::default(),
            state: tokio::sync::Mutex::default(),
        }))
    }

    /// Another signer for the same audiences, reached with the same trust.
    pub fn beside(&self, url: &str) -> Arc<Self> {
        Arc::new(Self {
            url: url.to_owned(),
            discovery_url: String::new(),
            audiences: self.audiences.clone(),
            fetcher: Arc::clone(&self.fetcher),
            keys: RwLock::default(),
            state: tokio::sync::Mutex::default(),
        })
    }

    /// The claims of a token that this signer made for one of the audiences and that holds now.
    pub async fn verify(&self, token: &str, now: i64) -> Result<Value, String> {
        let parts: Vec<&str> = token.split('.').collect();
        let malformed = || "verify token: oidc: malformed jwt".to_owned();
        let [head, body, signature] = parts.as_slice() else { return Err(malformed()) };
        let (header, claims) = (decode(head).ok_or_else(malformed)?, decode(body).ok_or_else(malformed)?);
        let signature = BASE64.decode(signature).map_err(|_| malformed())?;
        let signed = &token.as_bytes()[..head.len() + 1 + body.len()];
        if header.has("crit") {
            return Err("verify token: unsupported critical header".to_owned());
        }
        let (algorithm, kid) = (header.text("alg"), header.text("kid"));
        let known = self.keys.read().clone();
        if !known.verify(algorithm, kid, signed, &signature) {
            let fresh = self.fetch_keys().await?;
            if !fresh.verify(algorithm, kid, signed, &signature) {
                let why = "failed to verify signature: failed to verify id token signature";
                return Err(format!("verify token: {why}"));
            }
        }
        let time = |key: &str| claims.at(key).as_f64().map(|t| t as i64);
        match time("exp") {
            Some(end) if end > now => {}
            Some(_) => return Err("verify token: oidc: token is expired".to_owned()),
            None => return Err("verify token: oidc: token has no expiry".to_owned()),
        }
        if time("nbf").is_some_and(|start| now + LEEWAY < start) {
            return Err("verify token: oidc: current time before the nbf (not before) time".to_owned());
        }
        let own: Vec<&str> = match claims.at("aud") {
            Value::String(one) => vec![one.as_str()],
            many => many.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
        };
        let wanted = &self.audiences;
        if !own.iter().any(|a| wanted.iter().any(|w| w == a)) {
            return Err(format!("verify token: oidc: expected audience in {wanted:?} got {own:?}"));
        }
        Ok(claims)
    }

    /// The keys as they are now; asked for at most once a second.
    async fn fetch_keys(&self) -> Result<Arc<KeySet>, String> {
        let mut state = self.state.lock().await;
        if state.asked.is_some_and(|at| at.elapsed() < REFETCH) {
            return Ok(self.keys.read().clone());
        }
        if let Some((at, why)) = &state.failed
            && at.elapsed() < RETRY
        {
            return Err(why.clone());
        }
        let url = match &state.keys_url {
            Some(url) => url.clone(),
            None => match self.discover().await {
                Ok(url) => {
                    state.keys_url = Some(url.clone());
                    url
                }
                Err(why) => {
                    tracing::warn!(issuer = self.url, why, "token issuer not discovered");
                    let why = "authenticator not initialized".to_owned();
                    state.failed = Some((Instant::now(), why.clone()));
                    return Err(why);
                }
            },
        };
        let document = self.fetcher.get(&url).await;
        state.asked = Some(Instant::now());
        let document =
            document.map_err(|e| format!("verify token: failed to verify signature: fetching keys {e}"))?;
        let keys = Arc::new(KeySet::parse(&document));
        *self.keys.write() = keys.clone();
        state.failed = None;
        Ok(keys)
    }

    /// Where the signer says that its keys are.
    async fn discover(&self) -> Result<String, String> {
        let url = match self.discovery_url.as_str() {
            "" => format!("{}/.well-known/openid-configuration", self.url.trim_end_matches('/')),
            other => other.to_owned(),
        };
        let document = self.fetcher.get(&url).await?;
        if document.text("issuer") != self.url {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {:?}",
                self.url,
                document.text("issuer")
            ));
        }
        match document.text("jwks_uri") {
            "" => Err("the discovery document names no jwks_uri".to_owned()),
            url => Ok(url.to_owned()),
        }
    }
}
