//! Tokens of other issuers (OpenID Connect and plain JWT): found by their issuer, checked with its published keys, and made
//! into users as the configuration says (upstream: `plugin/pkg/authenticator/token/oidc`).

mod config;
mod expressions;
mod fetch;
mod keys;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use parking_lot::RwLock;
use serde_json::Value;

pub(crate) use config::document;
pub use config::{Anonymous, AuthenticationConfiguration, ConfigError};
use config::{JwtAuthenticator, Mapping};
use expressions::{Expression, Gives, texts};
use fetch::Fetcher;
use keys::KeySet;

use crate::UserInfo;
use crate::read::Read;

/// Longer tokens are not looked at.
const MAX_TOKEN: usize = 64 << 10;
/// What clocks may differ by for `nbf`.
const LEEWAY: i64 = 300;
/// Keys are fetched again at most so often, however many tokens name unknown ones.
const REFETCH: Duration = Duration::from_secs(1);
/// After a failure of discovery the issuer is left alone for this time.
const RETRY: Duration = Duration::from_secs(10);
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// All issuers of a configuration.
pub struct Issuers(Vec<Issuer>);

/// One issuer: its rules, and its keys once they are known.
struct Issuer {
    config: JwtAuthenticator,
    rules: Rules,
    fetcher: Fetcher,
    keys: RwLock<Arc<KeySet>>,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    keys_url: Option<String>,
    asked: Option<Instant>,
    failed: Option<(Instant, String)>,
}

#[derive(Default)]
struct Rules {
    username: Option<Expression>,
    groups: Option<Expression>,
    uid: Option<Expression>,
    extra: Vec<(String, Expression)>,
    claims: Vec<(Expression, String)>,
    user: Vec<(Expression, String)>,
}

impl Rules {
    fn compile(config: &JwtAuthenticator) -> Result<Self, String> {
        let one = |mapping: &Mapping, field: &str, gives| match mapping.expression.as_str() {
            "" => Ok(None),
            text => Expression::over_claims(text, gives)
                .map(Some)
                .map_err(|e| format!("claimMappings.{field}.expression: Invalid value: {text:?}: {e}")),
        };
        let mappings = &config.claim_mappings;
        let mut rules = Self {
            username: one(&mappings.username, "username", Gives::Text)?,
            groups: one(&mappings.groups, "groups", Gives::Texts)?,
            uid: one(&mappings.uid, "uid", Gives::Text)?,
            ..Self::default()
        };
        for (index, extra) in mappings.extra.iter().enumerate() {
            let text = extra.value_expression.as_str();
            let expression = Expression::over_claims(text, Gives::Texts).map_err(|e| {
                format!("claimMappings.extra[{index}].valueExpression: Invalid value: {text:?}: {e}")
            })?;
            rules.extra.push((extra.key.clone(), expression));
        }
        for (index, rule) in config.claim_validation_rules.iter().enumerate() {
            let text = rule.expression.as_str();
            if !text.is_empty() {
                let expression = Expression::over_claims(text, Gives::Truth).map_err(|e| {
                    format!("claimValidationRules[{index}].expression: Invalid value: {text:?}: {e}")
                })?;
                rules.claims.push((expression, rule.message.clone()));
            }
        }
        for (index, rule) in config.user_validation_rules.iter().enumerate() {
            let text = rule.expression.as_str();
            let expression = Expression::over_user(text).map_err(|e| {
                format!("userValidationRules[{index}].expression: Invalid value: {text:?}: {e}")
            })?;
            rules.user.push((expression, rule.message.clone()));
        }
        let uses = |expression: &Expression, claim: &str| {
            let text = expression.source();
            text.match_indices(&format!("claims.{claim}")).any(|(at, found)| {
                !text[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
            }) || text.contains(&format!("claims.?{claim}"))
        };
        // An unverified address could be anybody's.
        if let Some(username) = rules.username.as_ref().filter(|e| uses(e, "email")) {
            let all = rules.extra.iter().map(|(_, e)| e).chain(rules.claims.iter().map(|(e, _)| e));
            if !all.chain(std::iter::once(username)).any(|e| uses(e, "email_verified")) {
                return Err(format!(
                    "claimMappings.username.expression: Invalid value: {:?}: claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
                    username.source()
                ));
            }
        }
        Ok(rules)
    }
}

impl Issuers {
    /// Compiles the expressions of a configuration that has been checked.
    pub fn new(config: &AuthenticationConfiguration) -> Result<Self, ConfigError> {
        let mut issuers = Vec::new();
        for (index, jwt) in config.jwt.iter().enumerate() {
            let wrong = |e: String| ConfigError::Syntax(format!("jwt[{index}].{e}"));
            issuers.push(Issuer {
                rules: Rules::compile(jwt).map_err(wrong)?,
                fetcher: Fetcher::new(&jwt.issuer.certificate_authority)
                    .map_err(|e| wrong(format!("issuer.certificateAuthority: {e}")))?,
                config: jwt.clone(),
                keys: RwLock::default(),
                state: tokio::sync::Mutex::default(),
            });
        }
        Ok(Self(issuers))
    }

    /// The user of a token; `None` if it is of none of the issuers.
    pub async fn user(&self, token: &str, now: i64) -> Option<Result<UserInfo, String>> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let parts: Vec<&str> = token.split('.').collect();
        let [head, body, signature] = parts.as_slice() else { return None };
        let decode =
            |part: &str| -> Option<Value> { serde_json::from_slice(&BASE64.decode(part).ok()?).ok() };
        let (header, claims) = (decode(head)?, decode(body)?);
        let named = match claims.text("iss") {
            "accounts.google.com" => "https://accounts.google.com",
            other => other,
        };
        let issuer = self.0.iter().find(|issuer| issuer.config.issuer.url == named)?;
        let signed = &token[..head.len() + 1 + body.len()];
        let Ok(signature) = BASE64.decode(signature) else {
            return Some(Err("oidc: malformed jwt: the signature is no base64url".to_owned()));
        };
        Some(issuer.check(&header, &claims, signed.as_bytes(), &signature, now).await)
    }
}

impl Issuer {
    async fn check(
        &self,
        header: &Value,
        claims: &Value,
        signed: &[u8],
        signature: &[u8],
        now: i64,
    ) -> Result<UserInfo, String> {
        if header.has("crit") {
            return Err("oidc: verify token: unsupported critical header".to_owned());
        }
        let (algorithm, kid) = (header.text("alg"), header.text("kid"));
        let known = self.keys.read().clone();
        if !known.verify(algorithm, kid, signed, signature) {
            let fresh = self.fetch_keys().await?;
            if !fresh.verify(algorithm, kid, signed, signature) {
                return Err(
                    "oidc: verify token: failed to verify signature: failed to verify id token signature"
                        .to_owned(),
                );
            }
        }
        let time = |key: &str| claims.at(key).as_f64().map(|t| t as i64);
        match time("exp") {
            Some(end) if end > now => {}
            Some(_) => return Err("oidc: verify token: oidc: token is expired".to_owned()),
            None => return Err("oidc: verify token: oidc: token has no expiry".to_owned()),
        }
        if time("nbf").is_some_and(|start| now + LEEWAY < start) {
            return Err("oidc: verify token: oidc: current time before the nbf (not before) time".to_owned());
        }
        let wanted = &self.config.issuer.audiences;
        let own: Vec<&str> = match claims.at("aud") {
            Value::String(one) => vec![one.as_str()],
            many => many.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
        };
        if !own.iter().any(|a| wanted.iter().any(|w| w == a)) {
            return Err(format!("oidc: verify token: oidc: expected audience in {wanted:?} got {own:?}"));
        }
        self.map(claims)
    }

    /// The claims as a user.
    fn map(&self, claims: &Value) -> Result<UserInfo, String> {
        let mappings = &self.config.claim_mappings;
        let mut user = UserInfo { name: self.username(claims)?, ..UserInfo::default() };
        user.groups = match (&self.rules.groups, mappings.groups.claim.as_str()) {
            (Some(expression), _) => texts(&expression.claims(claims).map_err(wrong("group claim"))?)
                .map_err(wrong("group claim"))?,
            (None, "") => Vec::new(),
            (None, claim) => {
                let prefix = mappings.groups.prefix.as_deref().unwrap_or_default();
                match claims.get(claim) {
                    None => Vec::new(),
                    Some(value) => strings(value)
                        .ok_or_else(|| {
                            format!("oidc: parse groups claim {claim:?}: no string or list of strings")
                        })?
                        .into_iter()
                        .map(|group| format!("{prefix}{group}"))
                        .collect(),
                }
            }
        };
        user.uid = match (&self.rules.uid, mappings.uid.claim.as_str()) {
            (Some(expression), _) => {
                let value = expression.claims(claims).map_err(wrong("uid claim"))?;
                let text = value.as_str().ok_or(
                    "oidc: error evaluating uid claim expression: uid claim expression must return a string",
                )?;
                text.to_owned()
            }
            (None, "") => String::new(),
            (None, claim) => {
                let value = claims.get(claim).and_then(Value::as_str);
                value.ok_or_else(|| format!("oidc: parse uid claim {claim:?}: claim not present"))?.to_owned()
            }
        };
        user.extra = self.extra(claims)?;
        for rule in self.config.claim_validation_rules.iter().filter(|r| !r.claim.is_empty()) {
            let (claim, required) = (&rule.claim, &rule.required_value);
            match claims.get(claim).map(|v| v.as_str()) {
                Some(Some(value)) if value == required => {}
                None => return Err(format!("oidc: required claim {claim} not present in ID token")),
                Some(None) => return Err(format!("oidc: parse claim {claim}: no string")),
                Some(Some(value)) => {
                    return Err(format!(
                        "oidc: required claim {claim} value does not match. Got = {value}, want = {required}"
                    ));
                }
            }
        }
        for (expression, message) in &self.rules.claims {
            let passed = expression.claims(claims).map_err(wrong("claim validation"))?;
            if passed.as_bool() != Some(true) {
                return Err(failed("claim validation", expression, message));
            }
        }
        for (expression, message) in &self.rules.user {
            if !expression.user(&user).map_err(wrong("user info validation"))? {
                return Err(failed("user info validation", expression, message));
            }
        }
        Ok(user)
    }

    fn username(&self, claims: &Value) -> Result<String, String> {
        if let Some(expression) = &self.rules.username {
            let value = expression.claims(claims).map_err(wrong("username claim"))?;
            return match value.as_str() {
                Some("") => Err("oidc: empty username via CEL expression is not allowed".to_owned()),
                Some(name) => Ok(name.to_owned()),
                None => Err("oidc: error evaluating username claim expression: username claim expression must return a string".to_owned()),
            };
        }
        let mapping = &self.config.claim_mappings.username;
        let name = claims.get(&mapping.claim).and_then(Value::as_str);
        let name = name
            .ok_or_else(|| format!("oidc: parse username claims {:?}: claim not present", mapping.claim))?;
        if mapping.claim == "email" && claims.get("email_verified").is_some_and(|v| v.as_bool() != Some(true))
        {
            return Err("oidc: email not verified".to_owned());
        }
        Ok(format!("{}{name}", mapping.prefix.as_deref().unwrap_or_default()))
    }

    fn extra(&self, claims: &Value) -> Result<BTreeMap<String, Vec<String>>, String> {
        let mut extra = BTreeMap::new();
        let id = claims.text("jti");
        if !id.is_empty() {
            extra.insert(CREDENTIAL.to_owned(), vec![format!("JTI={id}")]);
        }
        for (key, expression) in &self.rules.extra {
            let values = texts(&expression.claims(claims).map_err(wrong("extra claim"))?)
                .map_err(wrong("extra claim"))?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        Ok(extra)
    }

    /// The issuer's keys as they are now; asked for at most once a second.
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
                    tracing::warn!(issuer = self.config.issuer.url, why, "token issuer not discovered");
                    let why = "oidc: authenticator not initialized".to_owned();
                    state.failed = Some((Instant::now(), why.clone()));
                    return Err(why);
                }
            },
        };
        let document = self.fetcher.get(&url).await;
        state.asked = Some(Instant::now());
        let document = document
            .map_err(|e| format!("oidc: verify token: failed to verify signature: fetching keys {e}"))?;
        let keys = Arc::new(KeySet::parse(&document));
        *self.keys.write() = keys.clone();
        state.failed = None;
        Ok(keys)
    }

    /// Where the issuer says that its keys are.
    async fn discover(&self) -> Result<String, String> {
        let issuer = &self.config.issuer;
        let url = match issuer.discovery_url.as_str() {
            "" => format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/')),
            other => other.to_owned(),
        };
        let document = self.fetcher.get(&url).await?;
        if document.text("issuer") != issuer.url {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {:?}",
                issuer.url,
                document.text("issuer")
            ));
        }
        match document.text("jwks_uri") {
            "" => Err("the discovery document names no jwks_uri".to_owned()),
            url => Ok(url.to_owned()),
        }
    }
}

fn wrong(what: &'static str) -> impl Fn(String) -> String {
    move |error| format!("oidc: error evaluating {what} expression: {error}")
}

fn failed(what: &str, expression: &Expression, message: &str) -> String {
    let why = if message.is_empty() { "validation expression failed" } else { message };
    format!(
        "oidc: error evaluating {what} expression: validation expression '{}' failed: {why}",
        expression.source()
    )
}

/// A string or a list of strings.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn issuer(rules: &str) -> Result<Issuers, String> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: https://i.example.com\n    audiences: [us]\n{rules}"
        );
        let config = AuthenticationConfiguration::parse(&text, &[]).map_err(|e| e.to_string())?;
        Issuers::new(&config).map_err(|e| e.to_string())
    }

    const MAPPED: &str = "  claimMappings:
    username: {expression: \"claims.username + ':external'\"}
    groups: {expression: \"claims.roles.split(',')\"}
    uid: {claim: sub}
    extra: [{key: example.org/tenant, valueExpression: claims.tenant}]
  claimValidationRules:
  - claim: hd
    requiredValue: example.com
  - expression: claims.exp - claims.nbf <= 86400
    message: total token lifetime must not exceed 24 hours
  userValidationRules:
  - expression: \"!user.username.startsWith('system:')\"
    message: username cannot use the reserved prefix
  - expression: user.groups.all(group, !group.startsWith('system:'))
";

    #[test]
    fn claims_become_a_user() {
        let issuers = issuer(MAPPED).expect("valid");
        let claims = json!({"username": "jane", "roles": "dev,,ops", "sub": "7", "tenant": "t1", "jti": "x",
            "hd": "example.com", "exp": 100, "nbf": 0});
        let map = |claims: &Value| issuers.0[0].map(claims);
        let user = map(&claims).expect("mapped");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane:external", "7"));
        assert_eq!(user.groups, ["dev", "ops"]);
        assert_eq!(user.extra["example.org/tenant"], ["t1"]);
        assert_eq!(user.extra[CREDENTIAL], ["JTI=x"]);
        let check = |key: &str, value: Value, expect: &str| {
            let mut claims = claims.clone();
            claims[key] = value;
            let error = map(&claims).expect_err(key);
            assert!(error.contains(expect), "{error}");
        };
        check("hd", "evil.com".into(), "required claim hd value does not match");
        check("exp", 90_000.into(), "total token lifetime must not exceed 24 hours");
        check("username", "system:admin".into(), "reserved prefix");
        check("roles", "system:masters".into(), "user.groups.all");
        check("tenant", 7.into(), "must return a string or a list of strings");
    }

    #[test]
    fn expressions_are_checked_when_the_file_is_read() {
        let check = |rules: &str, expect: &str| {
            let error = issuer(rules).err().unwrap_or_else(|| panic!("{rules} was accepted"));
            assert!(error.contains(expect), "{error}");
        };
        let username = |text: &str| format!("  claimMappings:\n    username: {{expression: {text}}}\n");
        check(&username("'1 + 1'"), "must evaluate to string");
        check(&username("'claims.'"), "jwt[0].claimMappings.username.expression: Invalid value");
        check(&username("claims.email"), "claims.email_verified must be used");
        assert!(issuer(&username("\"claims.email_verified ? claims.email : claims.sub\"")).is_ok());
        check(&username("user.username"), "compilation failed");
    }
}
