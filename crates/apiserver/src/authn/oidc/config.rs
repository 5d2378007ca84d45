//! The file of `--authentication-config`: AuthenticationConfiguration of `apiserver.config.k8s.io/v1`, read strictly and
//! checked (upstream: `apiserver/pkg/apis/apiserver/validation`).

use std::collections::HashSet;

use api::{FieldError, FieldErrorKind};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::Value;

/// The API versions that the file may name.
const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}")]
    Syntax(String),
    #[error("{}", list(.0))]
    Invalid(Vec<FieldError>),
}

fn list(errors: &[FieldError]) -> String {
    errors.iter().map(|e| format!("{}: {}", e.field, e.message())).collect::<Vec<_>>().join("; ")
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthenticationConfiguration {
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub jwt: Vec<JwtAuthenticator>,
    #[serde(default)]
    pub anonymous: Option<Anonymous>,
}

/// Whether, and for which paths, callers without credentials are let in as `system:anonymous`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Anonymous {
    #[serde(default)]
    pub enabled: bool,
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Condition {
    pub path: String,
}

impl Anonymous {
    /// Whether a request for this path may be anonymous.
    pub fn allows(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct JwtAuthenticator {
    #[serde(default)]
    pub issuer: Issuer,
    #[serde(default)]
    pub claim_validation_rules: Vec<ClaimRule>,
    #[serde(default)]
    pub claim_mappings: Mappings,
    #[serde(default)]
    pub user_validation_rules: Vec<UserRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Issuer {
    #[serde(default)]
    pub url: String,
    #[serde(default, rename = "discoveryURL")]
    pub discovery_url: String,
    #[serde(default)]
    pub certificate_authority: String,
    #[serde(default)]
    pub audiences: Vec<String>,
    #[serde(default)]
    pub audience_match_policy: String,
    #[serde(default)]
    pub egress_selector_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClaimRule {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub required_value: String,
    #[serde(default)]
    pub expression: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct UserRule {
    #[serde(default)]
    pub expression: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mappings {
    #[serde(default)]
    pub username: Mapping,
    #[serde(default)]
    pub groups: Mapping,
    #[serde(default)]
    pub uid: Mapping,
    #[serde(default)]
    pub extra: Vec<ExtraMapping>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mapping {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub prefix: Option<String>,
    #[serde(default)]
    pub expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ExtraMapping {
    #[serde(default)]
    pub key: String,
    #[serde(default)]
    pub value_expression: String,
}

/// A configuration file as JSON; `kind` and version are checked.
pub(crate) fn document(text: &str, kind: &str) -> Result<Value, ConfigError> {
    let decoded = schema::decode_any_yaml(text.as_bytes(), schema::FieldValidation::Strict)
        .map_err(|e| ConfigError::Syntax(format!("the configuration is no YAML: {e}")))?;
    let value = decoded.value;
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("kind") != kind || !VERSIONS.contains(&text("apiVersion")) {
        return Err(ConfigError::Syntax(format!(
            "expected kind {kind} of {}, got kind {:?} of {:?}",
            VERSIONS[0],
            text("kind"),
            text("apiVersion")
        )));
    }
    Ok(value)
}

impl AuthenticationConfiguration {
    /// Reads and checks a file. `own` are the issuers of ServiceAccount tokens, which nobody else may be.
    pub fn parse(text: &str, own: &[String]) -> Result<Self, ConfigError> {
        let value = document(text, "AuthenticationConfiguration")?;
        let config: Self = serde_json::from_value(value).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        let errors = config.check(own);
        if errors.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(errors)) }
    }

    /// What is wrong with it, expressions aside.
    pub fn check(&self, own: &[String]) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.jwt.len() > 64 {
            errors.push(error(FieldErrorKind::TooMany, "jwt", self.jwt.len(), "must have at most 64 items"));
            return errors;
        }
        let (mut issuers, mut discovery) = (HashSet::new(), HashSet::new());
        for (index, jwt) in self.jwt.iter().enumerate() {
            let path = format!("jwt[{index}]");
            jwt.check(&path, own, &mut errors);
            let issuer = &jwt.issuer;
            if !issuers.insert(&issuer.url) {
                errors.push(error(FieldErrorKind::Duplicate, format!("{path}.issuer.url"), &issuer.url, ""));
            }
            if !issuer.discovery_url.is_empty() && !discovery.insert(&issuer.discovery_url) {
                let field = format!("{path}.issuer.discoveryURL");
                errors.push(error(FieldErrorKind::Duplicate, field, &issuer.discovery_url, ""));
            }
        }
        if let Some(anonymous) = &self.anonymous
            && !anonymous.enabled
            && !anonymous.conditions.is_empty()
        {
            let detail = "enabled should be set to true when conditions are defined";
            errors.push(error(FieldErrorKind::Invalid, "anonymous.conditions", "", detail));
        }
        errors
    }
}

fn error(
    kind: FieldErrorKind,
    field: impl Into<String>,
    value: impl serde::Serialize,
    detail: &str,
) -> FieldError {
    FieldError::new(kind, field.into(), serde_json::to_value(value).unwrap_or_default(), detail)
}

fn url(text: &str, field: &str, own: &[String], errors: &mut Vec<FieldError>) {
    let mut wrong = |detail: &str| errors.push(error(FieldErrorKind::Invalid, field, text, detail));
    if own.iter().any(|issuer| issuer == text) {
        wrong(&format!("URL must not overlap with disallowed issuers: {own:?}"));
    }
    if !text.starts_with("https://") {
        wrong("URL scheme must be https");
    }
    if text.parse::<http::Uri>().is_err() {
        wrong("URL cannot be parsed");
    }
    let host = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = &host[..host.find(['/', '?', '#']).unwrap_or(host.len())];
    if host.contains('@') {
        wrong("URL must not contain a username or password");
    }
    if text.contains('?') {
        wrong("URL must not contain a query");
    }
    if text.contains('#') {
        wrong("URL must not contain a fragment");
    }
}

impl JwtAuthenticator {
    fn check(&self, path: &str, own: &[String], errors: &mut Vec<FieldError>) {
        let required =
            |field: String, detail: &str| error(FieldErrorKind::Required, field, Value::Null, detail);
        let issuer = &self.issuer;
        let field = format!("{path}.issuer.url");
        if issuer.url.is_empty() {
            errors.push(required(field, ""));
        } else {
            url(&issuer.url, &field, own, errors);
        }
        if !issuer.discovery_url.is_empty() {
            let field = format!("{path}.issuer.discoveryURL");
            if issuer.url.trim_end_matches('/') == issuer.discovery_url.trim_end_matches('/') {
                let detail = "discoveryURL must be different from URL";
                errors.push(error(FieldErrorKind::Invalid, field.clone(), &issuer.discovery_url, detail));
            }
            url(&issuer.discovery_url, &field, &[], errors);
        }
        let field = format!("{path}.issuer.audiences");
        if issuer.audiences.is_empty() {
            errors.push(required(field.clone(), &format!("at least one {field} is required")));
        }
        let mut seen = HashSet::new();
        for (index, audience) in issuer.audiences.iter().enumerate() {
            if audience.is_empty() {
                errors.push(required(format!("{field}[{index}]"), ""));
            }
            if !seen.insert(audience) {
                errors.push(error(FieldErrorKind::Duplicate, format!("{field}[{index}]"), audience, ""));
            }
        }
        let policy = issuer.audience_match_policy.as_str();
        let wrong = match issuer.audiences.len() {
            0 => None,
            1 if matches!(policy, "" | "MatchAny") => None,
            1 => Some("audienceMatchPolicy must be empty or MatchAny for single audience"),
            _ if policy == "MatchAny" => None,
            _ => Some("audienceMatchPolicy must be MatchAny for multiple audiences"),
        };
        if let Some(detail) = wrong {
            let field = format!("{path}.issuer.audienceMatchPolicy");
            errors.push(error(FieldErrorKind::Invalid, field, policy, detail));
        }
        if !issuer.certificate_authority.is_empty() {
            let mut found = CertificateDer::pem_slice_iter(issuer.certificate_authority.as_bytes());
            if !matches!(found.next(), Some(Ok(_))) {
                let field = format!("{path}.issuer.certificateAuthority");
                let detail = "data does not contain any valid RSA or ECDSA certificates";
                errors.push(error(FieldErrorKind::Invalid, field, "<omitted>", detail));
            }
        }
        if !matches!(issuer.egress_selector_type.as_str(), "" | "controlplane" | "cluster") {
            let field = format!("{path}.issuer.egressSelectorType");
            let detail = "egress selector must be either controlplane or cluster";
            errors.push(error(FieldErrorKind::Invalid, field, &issuer.egress_selector_type, detail));
        }
        self.check_rules(path, errors);
        self.check_mappings(path, errors);
    }

    fn check_rules(&self, path: &str, errors: &mut Vec<FieldError>) {
        let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
        for (index, rule) in self.claim_validation_rules.iter().enumerate() {
            let at = format!("{path}.claimValidationRules[{index}]");
            let invalid = |key: &str, value: &str, detail: &str| {
                error(FieldErrorKind::Invalid, format!("{at}{key}"), value, detail)
            };
            match (rule.claim.is_empty(), rule.expression.is_empty()) {
                (false, false) => {
                    errors.push(invalid("", &rule.claim, "claim and expression can't both be set"))
                }
                (true, true) => {
                    errors.push(error(
                        FieldErrorKind::Required,
                        at,
                        Value::Null,
                        "claim or expression is required",
                    ));
                }
                (false, true) => {
                    if !rule.message.is_empty() {
                        let detail = "may not be specified when claim is set";
                        errors.push(invalid(".message", &rule.message, detail));
                    }
                    if !claims.insert(&rule.claim) {
                        errors.push(error(FieldErrorKind::Duplicate, format!("{at}.claim"), &rule.claim, ""));
                    }
                }
                (true, false) => {
                    if !rule.required_value.is_empty() {
                        let detail = "may not be specified when expression is set";
                        errors.push(invalid(".requiredValue", &rule.required_value, detail));
                    }
                    if !expressions.insert(&rule.expression) {
                        let field = format!("{at}.expression");
                        errors.push(error(FieldErrorKind::Duplicate, field, &rule.expression, ""));
                    }
                }
            }
        }
        let mut expressions = HashSet::new();
        for (index, rule) in self.user_validation_rules.iter().enumerate() {
            let field = format!("{path}.userValidationRules[{index}].expression");
            if rule.expression.is_empty() {
                errors.push(error(FieldErrorKind::Required, field, Value::Null, ""));
            } else if !expressions.insert(&rule.expression) {
                errors.push(error(FieldErrorKind::Duplicate, field, &rule.expression, ""));
            }
        }
    }

    fn check_mappings(&self, path: &str, errors: &mut Vec<FieldError>) {
        let at = format!("{path}.claimMappings");
        let mappings = &self.claim_mappings;
        for (key, mapping) in
            [("username", &mappings.username), ("groups", &mappings.groups), ("uid", &mappings.uid)]
        {
            let field = format!("{at}.{key}");
            match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
                (false, false) => {
                    let detail = "claim and expression can't both be set";
                    errors.push(error(FieldErrorKind::Invalid, field, "", detail));
                }
                (true, true) if key == "username" => {
                    let detail = "claim or expression is required";
                    errors.push(error(FieldErrorKind::Required, field, Value::Null, detail));
                }
                (true, false) if mapping.prefix.is_some() => {
                    let detail = "may not be specified when expression is set";
                    errors.push(error(
                        FieldErrorKind::Invalid,
                        format!("{field}.prefix"),
                        &mapping.prefix,
                        detail,
                    ));
                }
                (false, true) if mapping.prefix.is_none() && key != "uid" => {
                    let detail = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                    errors.push(error(
                        FieldErrorKind::Required,
                        format!("{field}.prefix"),
                        Value::Null,
                        detail,
                    ));
                }
                _ => {}
            }
        }
        let mut seen = HashSet::new();
        for (index, extra) in mappings.extra.iter().enumerate() {
            let field = format!("{at}.extra[{index}]");
            let key = extra.key.as_str();
            let mut invalid = |detail: &str| {
                errors.push(error(FieldErrorKind::Invalid, format!("{field}.key"), key, detail))
            };
            let domain = key.split_once('/').filter(|(d, rest)| !d.is_empty() && !rest.is_empty());
            match domain {
                None => invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"),
                Some((domain, _)) => {
                    if !api::names::dns1123_subdomain(domain).is_empty() {
                        invalid("must be prefixed with a domain name");
                    }
                    if ["kubernetes.io", "k8s.io"]
                        .iter()
                        .any(|own| domain == *own || domain.ends_with(&format!(".{own}")))
                    {
                        invalid("k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use");
                    }
                }
            }
            if key != key.to_lowercase() {
                invalid("must be lowercase");
            }
            if !seen.insert(key) {
                errors.push(error(FieldErrorKind::Duplicate, format!("{field}.key"), key, ""));
            }
            if extra.value_expression.is_empty() {
                errors.push(error(
                    FieldErrorKind::Required,
                    format!("{field}.valueExpression"),
                    Value::Null,
                    "",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: https://issuer.example.com
    audiences: [carrack]
  claimMappings:
    username: {claim: sub, prefix: 'oidc:'}
anonymous:
  enabled: true
  conditions: [{path: /livez}]
";

    #[test]
    fn a_file_is_read() {
        let config = AuthenticationConfiguration::parse(GOOD, &[]).expect("valid");
        assert_eq!(config.jwt[0].claim_mappings.username.prefix.as_deref(), Some("oidc:"));
        let anonymous = config.anonymous.expect("given");
        assert!(anonymous.allows("/livez") && !anonymous.allows("/livez/ping") && !anonymous.allows("/api"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |from: &str, to: &str, expect: &str| {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let own = ["https://own.example.com".to_owned()];
            let error = AuthenticationConfiguration::parse(&text, &own).expect_err(to).to_string();
            assert!(error.contains(expect), "{to}: {error}");
        };
        check(
            "https://issuer",
            "http://issuer",
            "jwt[0].issuer.url: Invalid value: \"http://issuer.example.com\": URL scheme must be https",
        );
        check("https://issuer.example.com", "https://own.example.com", "must not overlap");
        check("https://issuer.example.com", "https://u:p@issuer.example.com", "username or password");
        check("[carrack]", "[]", "jwt[0].issuer.audiences: Required value");
        check("[carrack]", "[a, b]", "audienceMatchPolicy must be MatchAny");
        check(", prefix: 'oidc:'", "", "jwt[0].claimMappings.username.prefix: Required value");
        check("claim: sub, prefix: 'oidc:'", "", "claim or expression is required");
        check("claim: sub", "clam: sub", "unknown field `clam`");
        check("enabled: true", "enabled: false", "anonymous.conditions: Invalid value");
        check("/v1", "/v9", "expected kind AuthenticationConfiguration");
        check("AuthenticationC", "AuthorizationC", "expected kind AuthenticationConfiguration");
    }
}
