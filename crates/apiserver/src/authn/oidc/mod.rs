//! Tokens of other issuers (OpenID Connect and plain JWT): found by their issuer, checked with its published keys, and made
//! into users as the configuration says (upstream: `plugin/pkg/authenticator/token/oidc`).

mod config;
mod expressions;
mod fetch;
mod keys;
mod source;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;

pub(crate) use config::document;
pub use config::{Anonymous, AuthenticationConfiguration, ConfigError};
use config::{JwtAuthenticator, Mapping};
use expressions::{Expression, Gives, texts};
use source::{Source, issuer_of};

use crate::UserInfo;
use crate::read::Read;

/// Longer tokens are not looked at.
const MAX_TOKEN: usize = 64 << 10;
/// Signers of distributed claims that are remembered, of each issuer.
const MOST_SIGNERS: usize = 32;
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// All issuers of a configuration.
pub struct Issuers(Vec<Issuer>);

/// One issuer: its rules and its keys.
struct Issuer {
    config: JwtAuthenticator,
    rules: Rules,
    source: Arc<Source>,
    /// Others that sign distributed claims, by their names.
    signers: RwLock<HashMap<String, Arc<Source>>>,
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
                source: Source::new(&jwt.issuer)
                    .map_err(|e| wrong(format!("issuer.certificateAuthority: {e}")))?,
                config: jwt.clone(),
                signers: RwLock::default(),
            });
        }
        Ok(Self(issuers))
    }

    /// The user of a token; `None` if it is of none of the issuers.
    pub async fn user(&self, token: &str, now: i64) -> Option<Result<UserInfo, String>> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let named = issuer_of(token)?;
        let issuer = self.0.iter().find(|issuer| issuer.config.issuer.url == named)?;
        Some(issuer.check(token, now).await)
    }
}

impl Issuer {
    async fn check(&self, token: &str, now: i64) -> Result<UserInfo, String> {
        let mut claims = self.source.verify(token, now).await.map_err(|e| format!("oidc: {e}"))?;
        self.expand(&mut claims, now)
            .await
            .map_err(|e| format!("oidc: could not expand distributed claims: {e}"))?;
        self.map(&claims)
    }

    /// Fetches the claim of groups from where the token says that it is (OpenID Connect Core 1.0, 5.6.2). Who signs it may be
    /// somebody else, whose keys are found as the issuer's are.
    async fn expand(&self, claims: &mut Value, now: i64) -> Result<(), String> {
        let claim = self.config.claim_mappings.groups.claim.as_str();
        if claim.is_empty() || claims.get(claim).is_some() || claims.get("_claim_names").is_none() {
            return Ok(());
        }
        let source = match claims["_claim_names"].as_object() {
            None => return Err("oidc: error parsing distributed claim names: no map of strings".to_owned()),
            Some(names) => names.get(claim).and_then(Value::as_str).map(str::to_owned),
        };
        let Some(sources) = claims.get("_claim_sources") else {
            return Err("oidc: no claim sources".to_owned());
        };
        let Some(source) = source else { return Ok(()) };
        let endpoint = sources.get(&source).ok_or_else(|| {
            format!("id token _claim_names contained a source {source} missing in _claims_sources")
        })?;
        let url = endpoint.text("endpoint");
        if url.is_empty() {
            // An aggregated claim, which is not looked at.
            return Ok(());
        }
        let token = self.source.fetcher.text(url, endpoint.text("access_token")).await;
        let token = token.map_err(|e| format!("while getting distributed claim {claim:?}: {e}"))?;
        let issuer = issuer_of(&token).ok_or_else(|| {
            format!("getting untrusted issuer from endpoint {url} failed for claim {claim:?}")
        })?;
        let signer = self.signer(&issuer).await?;
        let told = signer.verify(&token, now).await;
        let mut told = told.map_err(|e| format!("verify distributed claim token: {e}"))?;
        let value = told.get_mut(claim).map(Value::take);
        let value = value.ok_or_else(|| {
            format!("jwt returned by distributed claim endpoint {url:?} did not contain claim: {claim}")
        })?;
        claims[claim] = value;
        Ok(())
    }

    /// Somebody who signs distributed claims; must be discovered like an issuer.
    async fn signer(&self, issuer: &str) -> Result<Arc<Source>, String> {
        if issuer == self.config.issuer.url {
            return Ok(Arc::clone(&self.source));
        }
        let known = self.signers.read().get(issuer).cloned();
        let signer = match known {
            Some(signer) => signer,
            None => {
                let signer = self.source.beside(issuer);
                let mut signers = self.signers.write();
                if signers.len() >= MOST_SIGNERS {
                    signers.clear();
                }
                signers.entry(issuer.to_owned()).or_insert(signer).clone()
            }
        };
        Ok(signer)
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
