//! What of authentication and authorization can be set, under the names of kube-apiserver's flags.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::AccessError;
use crate::authn::{Anonymous, AuthenticationConfiguration, TokenFile};
use crate::authz::Settings;
use crate::authz::config::{self, Chosen};

/// The settings; the default is what a cluster of its own needs: its certificates and tokens, Node and RBAC.
#[derive(Clone, Debug, Default)]
pub struct AccessOptions {
    /// More authorities whose client certificates are accepted, in PEM files.
    pub client_ca_files: Vec<PathBuf>,
    /// The authority of front proxies instead of the cluster's own, and the names that their certificates may carry (any,
    /// if empty).
    pub requestheader_client_ca_file: Option<PathBuf>,
    pub requestheader_allowed_names: Option<Vec<String>>,
    pub token_auth_file: Option<PathBuf>,
    pub disable_bootstrap_tokens: bool,
    pub authentication_config: Option<PathBuf>,
    pub oidc: Option<OidcOptions>,
    pub authentication_webhook: Option<WebhookOptions>,
    /// The issuer of ServiceAccount tokens and the audiences of the API server, if they are not the usual ones.
    pub service_account_issuer: Option<String>,
    pub api_audiences: Vec<String>,
    pub authorization_config: Option<PathBuf>,
    /// `Node`, `RBAC` and so on; empty: these two.
    pub authorization_modes: Vec<String>,
    pub authorization_webhook: Option<WebhookOptions>,
    /// The policies of the mode `ABAC`.
    pub authorization_policy_file: Option<PathBuf>,
}

/// A webhook by its kubeconfig file.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    pub kubeconfig: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// How long an answer is remembered: of a token review, or of a review that allows.
    pub lifetime: Duration,
    /// The same for a review that does not allow.
    pub refused_lifetime: Duration,
}

/// One OpenID Connect issuer by flags; the configuration file says more.
#[derive(Clone, Debug, Default)]
pub struct OidcOptions {
    pub issuer_url: String,
    pub client_id: String,
    pub ca_file: Option<PathBuf>,
    /// `sub` if empty.
    pub username_claim: String,
    /// `-` for none; if empty the issuer and `#`, unless the claim is `email`.
    pub username_prefix: String,
    pub groups_claim: String,
    pub groups_prefix: String,
    /// `key=value`.
    pub required_claims: Vec<String>,
}

/// What the settings come to, read from their files.
pub(crate) struct Loaded {
    pub token_file: Option<TokenFile>,
    pub authentication: Option<AuthenticationConfiguration>,
    pub authorizers: Vec<Chosen>,
}

fn text(path: &Path) -> Result<String, AccessError> {
    std::fs::read_to_string(path)
        .map_err(|source| AccessError::File { path: path.display().to_string(), source })
}

impl AccessOptions {
    /// Reads the files. Settings that contradict each other are refused.
    pub(crate) fn load(&self, issuer: &str, anonymous_flag: bool) -> Result<Loaded, AccessError> {
        let conflict = |text: &str| Err(AccessError::Option(text.to_owned()));
        if self.authentication_config.is_some() && self.oidc.is_some() {
            return conflict("--authentication-config and the --oidc flags are mutually exclusive");
        }
        if self.authorization_config.is_some()
            && (!self.authorization_modes.is_empty()
                || self.authorization_webhook.is_some()
                || self.authorization_policy_file.is_some())
        {
            return conflict(
                "--authorization-config cannot be used with --authorization-mode or --authorization-webhook-config-file",
            );
        }
        let authentication = match (&self.authentication_config, &self.oidc) {
            (Some(path), _) => Some(authentication(path, issuer)?),
            (None, Some(oidc)) => Some(oidc.configuration(issuer)?),
            (None, None) => None,
        };
        if !anonymous_flag && authentication.as_ref().is_some_and(|c| c.anonymous.is_some()) {
            return conflict(
                "--anonymous-auth and anonymous in --authentication-config are mutually exclusive",
            );
        }
        Ok(Loaded {
            token_file: self.token_auth_file.as_deref().map(TokenFile::read).transpose()?,
            authentication,
            authorizers: self.authorizers()?,
        })
    }

    /// The chain of authorizers.
    pub(crate) fn authorizers(&self) -> Result<Vec<Chosen>, AccessError> {
        if let Some(path) = &self.authorization_config {
            return Ok(config::load(path)?);
        }
        let policy_file = self.authorization_policy_file.as_deref();
        if self.authorization_modes.is_empty()
            && self.authorization_webhook.is_none()
            && policy_file.is_none()
        {
            return Ok(vec![Chosen::Node, Chosen::Rbac]);
        }
        let webhook = self.authorization_webhook.as_ref().map(|webhook| Settings {
            name: "default".to_owned(),
            kubeconfig: webhook.kubeconfig.clone(),
            version: webhook.version.clone(),
            timeout: Duration::from_secs(30),
            authorized: webhook.lifetime,
            unauthorized: webhook.refused_lifetime,
            deny_on_error: false,
            conditions: Vec::new(),
        });
        Ok(config::from_modes(&self.authorization_modes, webhook, policy_file)?)
    }
}

/// Reads the authentication configuration; `issuer` is the one of ServiceAccount tokens.
pub(crate) fn authentication(path: &Path, issuer: &str) -> Result<AuthenticationConfiguration, AccessError> {
    let read = AuthenticationConfiguration::parse(&text(path)?, &[issuer.to_owned()]);
    read.map_err(|source| AccessError::Authentication { path: path.display().to_string(), source })
}

/// Who may go without credentials: what the file says, or else what the flag says.
pub(crate) fn anonymous(config: Option<&AuthenticationConfiguration>, flag: bool) -> Anonymous {
    let own = config.and_then(|c| c.anonymous.clone());
    own.unwrap_or(Anonymous { enabled: flag, conditions: Vec::new() })
}

impl OidcOptions {
    fn configuration(&self, issuer: &str) -> Result<AuthenticationConfiguration, AccessError> {
        let or =
            |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let claim = or(&self.username_claim, "sub");
        let prefix = match self.username_prefix.as_str() {
            "-" => String::new(),
            "" if claim == "email" => String::new(),
            "" => format!("{}#", self.issuer_url),
            own => own.to_owned(),
        };
        let authority = self.ca_file.as_deref().map(text).transpose()?.unwrap_or_default();
        let mut rules = Vec::new();
        for required in &self.required_claims {
            let Some((claim, value)) = required.split_once('=') else {
                return Err(AccessError::Option(format!(
                    "--oidc-required-claim {required:?} is not KEY=VALUE"
                )));
            };
            rules.push(serde_json::json!({"claim": claim, "requiredValue": value}));
        }
        let mut mappings = serde_json::json!({"username": {"claim": claim, "prefix": prefix}});
        if !self.groups_claim.is_empty() {
            mappings["groups"] =
                serde_json::json!({"claim": self.groups_claim, "prefix": self.groups_prefix});
        }
        let value = serde_json::json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "AuthenticationConfiguration",
            "jwt": [{
                "issuer": {
                    "url": self.issuer_url,
                    "audiences": [self.client_id],
                    "certificateAuthority": authority,
                },
                "claimMappings": mappings,
                "claimValidationRules": rules,
            }],
        });
        AuthenticationConfiguration::parse(&value.to_string(), &[issuer.to_owned()])
            .map_err(|source| AccessError::Authentication { path: "the --oidc flags".to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        let check = |options: AccessOptions, expect: &str| {
            let error = options.load("https://own", true).err().expect(expect).to_string();
            assert!(error.contains(expect), "{error}");
        };
        let modes = |modes: &[&str]| AccessOptions {
            authorization_modes: modes.iter().map(|m| (*m).to_owned()).collect(),
            ..AccessOptions::default()
        };
        check(modes(&["RBAC", "RBAC"]), "specified more than once");
        check(modes(&["Magic"]), "is not one of");
        check(modes(&["ABAC"]), "authorization policy file not passed");
        let policies =
            AccessOptions { authorization_policy_file: Some("/nosuch".into()), ..modes(&["RBAC"]) };
        check(policies, "without mode ABAC");
        check(modes(&["Webhook"]), "needs --authorization-webhook-config-file");
        let both = AccessOptions { authorization_config: Some("/nosuch".into()), ..modes(&["RBAC"]) };
        check(both, "--authorization-config cannot be used with --authorization-mode");
        let absent =
            AccessOptions { token_auth_file: Some("/nosuch/tokens".into()), ..AccessOptions::default() };
        check(absent, "/nosuch/tokens");
        let plain =
            OidcOptions { issuer_url: "http://i".into(), client_id: "c".into(), ..OidcOptions::default() };
        check(AccessOptions { oidc: Some(plain), ..AccessOptions::default() }, "URL scheme must be https");
    }
}
