//! The file of `--authorization-config`: AuthorizationConfiguration of `apiserver.config.k8s.io/v1`: which authorizers are
//! asked, in which order (upstream: `ValidateAuthorizationConfiguration`).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::abac::Policies;
use super::webhook::Settings;
use crate::authn::document;

/// Why authorizers cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// One authorizer of the list.
#[derive(Clone, Debug)]
pub enum Chosen {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
    Abac(Policies),
    Webhook(Box<Settings>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    authorizers: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    webhook: Option<Webhook>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Webhook {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: String,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: String,
    cache_unauthorized_requests: Option<bool>,
    timeout: String,
    subject_access_review_version: String,
    match_condition_subject_access_review_version: String,
    failure_policy: String,
    connection_info: Connection,
    match_conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Connection {
    #[serde(rename = "type")]
    kind: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Condition {
    expression: String,
}

/// The authorizers that the flags name: `Node,RBAC` and so on.
pub fn from_modes(
    modes: &[String],
    webhook: Option<Settings>,
    policy_file: Option<&Path>,
) -> Result<Vec<Chosen>, ConfigError> {
    let mut chosen = Vec::new();
    let mut seen = HashSet::new();
    for mode in modes {
        if !seen.insert(mode) {
            return Err(ConfigError(format!("authorization-mode {mode:?} is specified more than once")));
        }
        chosen.push(match mode.as_str() {
            "AlwaysAllow" => Chosen::AlwaysAllow,
            "AlwaysDeny" => Chosen::AlwaysDeny,
            "Node" => Chosen::Node,
            "RBAC" => Chosen::Rbac,
            "ABAC" => {
                let missing = "authorization-mode ABAC's authorization policy file not passed";
                Chosen::Abac(Policies::load(policy_file.ok_or_else(|| ConfigError(missing.to_owned()))?)?)
            }
            "Webhook" => {
                let missing = "authorization-mode Webhook needs --authorization-webhook-config-file";
                Chosen::Webhook(Box::new(webhook.clone().ok_or_else(|| ConfigError(missing.to_owned()))?))
            }
            other => {
                return Err(ConfigError(format!(
                    "authorization-mode {other:?} is not one of AlwaysAllow, AlwaysDeny, ABAC, Node, RBAC, Webhook"
                )));
            }
        });
    }
    if policy_file.is_some() && !modes.iter().any(|m| m == "ABAC") {
        let text = "cannot specify --authorization-policy-file without mode ABAC";
        return Err(ConfigError(text.to_owned()));
    }
    if webhook.is_some() && !modes.iter().any(|m| m == "Webhook") {
        let text = "--authorization-webhook-config-file is given, but authorization-mode has no Webhook";
        return Err(ConfigError(text.to_owned()));
    }
    Ok(chosen)
}

/// Reads a file. Every fault is named with its field.
pub fn read(text: &str) -> Result<Vec<Chosen>, ConfigError> {
    let value = document(text, "AuthorizationConfiguration").map_err(|e| ConfigError(e.to_string()))?;
    let file: File = serde_json::from_value(value).map_err(|e| ConfigError(e.to_string()))?;
    let mut wrong: Vec<String> = Vec::new();
    if file.authorizers.is_empty() {
        wrong.push("authorizers: Required value: at least one authorization mode must be defined".to_owned());
    }
    let (mut types, mut names) = (HashSet::new(), HashSet::new());
    let mut chosen = Vec::new();
    for (index, entry) in file.authorizers.iter().enumerate() {
        let at = format!("authorizers[{index}]");
        let kind = entry.kind.as_str();
        let known = ["AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
        if kind.is_empty() {
            wrong.push(format!("{at}.type: Required value"));
            continue;
        }
        if !known.contains(&kind) {
            let all: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
            wrong.push(format!(
                "{at}.type: Unsupported value: {kind:?}: supported values: {}",
                all.join(", ")
            ));
            continue;
        }
        if !types.insert(kind) && kind != "Webhook" {
            wrong.push(format!("{at}.type: Duplicate value: {kind:?}"));
            continue;
        }
        let name = entry.name.as_str();
        if name.is_empty() {
            wrong.push(format!("{at}.name: Required value"));
        } else if !names.insert(name) {
            wrong.push(format!("{at}.name: Duplicate value: {name:?}"));
        } else if let Some(why) = api::names::dns1123_subdomain(name).first() {
            wrong.push(format!("{at}.name: Invalid value: {name:?}: authorizer name is invalid: {why}"));
        }
        match (kind, &entry.webhook) {
            ("Webhook", None) => {
                wrong.push(format!("{at}.webhook: Required value: required when type=Webhook"));
            }
            ("Webhook", Some(webhook)) => match webhook.settings(name, &at) {
                Ok(settings) => chosen.push(Chosen::Webhook(Box::new(settings))),
                Err(errors) => wrong.extend(errors),
            },
            (_, Some(_)) => {
                wrong.push(format!(
                    "{at}.webhook: Invalid value: \"non-null\": may only be specified when type=Webhook"
                ));
            }
            ("AlwaysAllow", None) => chosen.push(Chosen::AlwaysAllow),
            ("AlwaysDeny", None) => chosen.push(Chosen::AlwaysDeny),
            ("Node", None) => chosen.push(Chosen::Node),
            _ => chosen.push(Chosen::Rbac),
        }
    }
    if wrong.is_empty() { Ok(chosen) } else { Err(ConfigError(wrong.join("; "))) }
}

impl Webhook {
    fn settings(&self, name: &str, at: &str) -> Result<Settings, Vec<String>> {
        let mut wrong = Vec::new();
        let mut time = |field: &str, text: &str, most: Option<Duration>| {
            let found = crate::duration::parse(text)
                .ok()
                .filter(|d| !d.is_zero() && most.is_none_or(|most| *d <= most));
            match (text, found) {
                ("" | "0" | "0s", _) => wrong.push(format!("{at}.{field}: Required value")),
                (_, None) => {
                    let rule = if most.is_some() { "must be > 0s and <= 30s" } else { "must be > 0s" };
                    wrong.push(format!("{at}.{field}: Invalid value: {text:?}: {rule}"));
                }
                (_, Some(_)) => {}
            }
            found.unwrap_or_default()
        };
        // Five minutes and half a minute unless the file says otherwise.
        let or =
            |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let timeout = time("timeout", &self.timeout, Some(Duration::from_secs(30)));
        let authorized = time("authorizedTTL", &or(&self.authorized_ttl, "5m"), None);
        let unauthorized = time("unauthorizedTTL", &or(&self.unauthorized_ttl, "30s"), None);
        let mut one_of = |field: &str, text: &str, allowed: &[&str]| {
            if text.is_empty() {
                wrong.push(format!("{at}.{field}: Required value"));
            } else if !allowed.contains(&text) {
                let all: Vec<String> = allowed.iter().map(|k| format!("{k:?}")).collect();
                wrong.push(format!(
                    "{at}.{field}: Unsupported value: {text:?}: supported values: {}",
                    all.join(", ")
                ));
            }
        };
        one_of("subjectAccessReviewVersion", &self.subject_access_review_version, &["v1", "v1beta1"]);
        one_of("failurePolicy", &self.failure_policy, &["NoOpinion", "Deny"]);
        one_of("connectionInfo.type", &self.connection_info.kind, &["InClusterConfig", "KubeConfigFile"]);
        match self.match_condition_subject_access_review_version.as_str() {
            "" if self.match_conditions.is_empty() => {}
            "" => wrong.push(format!(
                "{at}.matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified"
            )),
            "v1" => {}
            other => wrong.push(format!(
                "{at}.matchConditionSubjectAccessReviewVersion: Unsupported value: {other:?}: supported values: \"v1\""
            )),
        }
        let file = self.connection_info.kube_config_file.clone();
        match (self.connection_info.kind.as_str(), &file) {
            ("InClusterConfig", Some(path)) => wrong.push(format!(
                "{at}.connectionInfo.kubeConfigFile: Invalid value: {path:?}: can only be set when type=KubeConfigFile"
            )),
            ("InClusterConfig", None) => wrong.push(format!(
                "{at}.connectionInfo.type: Invalid value: \"InClusterConfig\": this server runs outside of its cluster's pods; use KubeConfigFile"
            )),
            ("KubeConfigFile", None) => {
                wrong.push(format!("{at}.connectionInfo.kubeConfigFile: Required value"));
            }
            ("KubeConfigFile", Some(path)) if !path.is_absolute() => wrong.push(format!(
                "{at}.connectionInfo.kubeConfigFile: Invalid value: {path:?}: must be an absolute path"
            )),
            ("KubeConfigFile", Some(path)) if !path.is_file() => wrong.push(format!(
                "{at}.connectionInfo.kubeConfigFile: Invalid value: {path:?}: must be a regular file"
            )),
            _ => {}
        }
        let mut seen = HashSet::new();
        if self.match_conditions.len() > 64 {
            wrong.push(format!(
                "{at}.matchConditions: Too many: {}: must have at most 64 items",
                self.match_conditions.len()
            ));
        }
        for (index, condition) in self.match_conditions.iter().enumerate() {
            let field = format!("{at}.matchConditions[{index}].expression");
            let text = condition.expression.as_str();
            if text.trim().is_empty() {
                wrong.push(format!("{field}: Required value"));
            } else if !seen.insert(text) {
                wrong.push(format!("{field}: Duplicate value: {text:?}"));
            } else if let Err(why) = super::webhook::Condition::compile(text) {
                wrong.push(format!("{field}: Invalid value: {text:?}: {why}"));
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Settings {
            name: name.to_owned(),
            kubeconfig: file.unwrap_or_default(),
            version: self.subject_access_review_version.clone(),
            timeout,
            authorized: authorized.saturating_mul(u32::from(self.cache_authorized_requests != Some(false))),
            unauthorized: unauthorized
                .saturating_mul(u32::from(self.cache_unauthorized_requests != Some(false))),
            deny_on_error: self.failure_policy == "Deny",
            conditions: self.match_conditions.iter().map(|c| c.expression.clone()).collect(),
        })
    }
}

/// Reads a file from disk.
pub fn load(path: &Path) -> Result<Vec<Chosen>, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| ConfigError(format!("authorization configuration {}: {e}", path.display())))?;
    read(&text).map_err(|e| ConfigError(format!("authorization configuration {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kubeconfig: &Path) -> String {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1
kind: AuthorizationConfiguration
authorizers:
- type: Webhook
  name: outside
  webhook:
    timeout: 3s
    subjectAccessReviewVersion: v1
    matchConditionSubjectAccessReviewVersion: v1
    failurePolicy: Deny
    connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}
    matchConditions:
    - expression: has(request.resourceAttributes) && request.user != 'joe'
- {{type: Node, name: node}}
- {{type: RBAC, name: rbac}}
",
            kubeconfig.display()
        )
    }

    #[test]
    fn a_file_is_read_and_what_is_wrong_is_named() {
        let kubeconfig = tempfile::NamedTempFile::new().expect("a file");
        let good = file(kubeconfig.path());
        let chosen = read(&good).expect("valid");
        let [Chosen::Webhook(webhook), Chosen::Node, Chosen::Rbac] = chosen.as_slice() else {
            panic!("{chosen:?}");
        };
        assert_eq!((webhook.timeout, webhook.authorized), (Duration::from_secs(3), Duration::from_secs(300)));
        let check = |from: &str, to: &str, expect: &str| {
            let text = good.replace(from, to);
            assert_ne!(text, good, "{from}");
            let error = read(&text).expect_err(to).to_string();
            assert!(error.contains(expect), "{to}: {error}");
        };
        check(
            "timeout: 3s",
            "timeout: 31s",
            "authorizers[0].timeout: Invalid value: \"31s\": must be > 0s and <= 30s",
        );
        check("timeout: 3s", "timeout: 0s", "authorizers[0].timeout: Required value");
        check("failurePolicy: Deny", "failurePolicy: Fail", "failurePolicy: Unsupported value: \"Fail\"");
        check("name: rbac", "name: node", "authorizers[2].name: Duplicate value: \"node\"");
        check("{type: RBAC, name: rbac}", "{type: Node, name: n2}", "authorizers[2].type: Duplicate value");
        check("type: RBAC", "type: ABAC", "authorizers[2].type: Unsupported value: \"ABAC\"");
        check("request.user != 'joe'", "request.", "matchConditions[0].expression: Invalid value");
        check("request.user != 'joe'", "nope", "matchConditions[0].expression: Invalid value");
        check("timeout:", "timeut:", "unknown field `timeut`");
        check("kubeConfigFile: /", "kubeConfigFile: /nosuch/", "must be a regular file");
    }
}
