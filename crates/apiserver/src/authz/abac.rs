//! The authorizer of policy files: one JSON object a line says what a user or a group may (upstream:
//! `pkg/auth/authorizer/abac`; both the form with a version and the one without).

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::config::ConfigError;
use super::rule::Rule;
use crate::{Attributes, UserInfo};

/// What one line allows. `*` stands for everything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    user: String,
    group: String,
    readonly: bool,
    #[serde(rename = "apiGroup")]
    api_group: String,
    resource: String,
    namespace: String,
    #[serde(rename = "nonResourcePath")]
    path: String,
}

/// All lines of a file.
#[derive(Clone, Debug)]
pub struct Policies(Vec<Spec>);

impl Policies {
    /// Reads a file; the error names the line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError(format!("error reading policy file {}: {e}", path.display())))?;
        Self::parse(&text).map_err(|(line, why)| {
            ConfigError(format!("error reading policy file {}, line {line}: {why}", path.display()))
        })
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut policies = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if !trimmed.is_empty() && !trimmed.starts_with('#') {
                policies.push(policy(trimmed).map_err(|why| (index + 1, why))?);
            }
        }
        Ok(Self(policies))
    }

    /// Whether a line allows the request.
    pub fn allow(&self, request: &Attributes) -> bool {
        let read_only = matches!(request.verb.as_str(), "get" | "list" | "watch");
        self.0
            .iter()
            .any(|spec| spec.is_about(&request.user) && (read_only || !spec.readonly) && spec.covers(request))
    }

    /// What somebody may in a namespace.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        for spec in self.0.iter().filter(|spec| spec.is_about(user) && fits(&spec.namespace, namespace)) {
            let verbs: &[&str] = if spec.readonly { &["get", "list", "watch"] } else { &["*"] };
            let verbs = || verbs.iter().map(|v| (*v).to_owned()).collect();
            if !spec.resource.is_empty() {
                let (api_groups, resources) = (vec![spec.api_group.clone()], vec![spec.resource.clone()]);
                rules.push(Rule { verbs: verbs(), api_groups, resources, ..Rule::default() });
            }
            if !spec.path.is_empty() {
                rules.push(Rule { verbs: verbs(), urls: vec![spec.path.clone()], ..Rule::default() });
            }
        }
        rules
    }
}

fn policy(line: &str) -> Result<Spec, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let spec = |value: &Value| serde_json::from_value::<Spec>(value.clone()).map_err(|e| e.to_string());
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("abac.authorization.kubernetes.io/v1beta1", "Policy") => {
            let mut spec = spec(value.get("spec").unwrap_or(&Value::Null))?;
            everybody(&mut spec);
            Ok(spec)
        }
        // The old form: whoever is left out is everybody who is known, what is left out is everything.
        ("", "") => {
            let mut old = spec(&value)?;
            let all = |text: &mut String| {
                if text.is_empty() {
                    "*".clone_into(text);
                }
            };
            if old.user.is_empty() && old.group.is_empty() {
                "system:authenticated".clone_into(&mut old.group);
            }
            everybody(&mut old);
            let whole = old.namespace.is_empty() && old.resource.is_empty();
            all(&mut old.resource);
            all(&mut old.namespace);
            "*".clone_into(&mut old.api_group);
            if whole {
                "*".clone_into(&mut old.path);
            }
            Ok(old)
        }
        (version, kind) => Err(format!("no kind {kind:?} is registered for version {version:?}")),
    }
}

/// `*` as a user or group of a policy means those who are known, not everybody.
fn everybody(spec: &mut Spec) {
    if spec.user == "*" || spec.group == "*" {
        spec.user.clear();
        "system:authenticated".clone_into(&mut spec.group);
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    pattern == "*" || pattern == text
}

impl Spec {
    fn is_about(&self, user: &UserInfo) -> bool {
        let named = self.user.is_empty() || fits(&self.user, &user.name);
        let member = self.group.is_empty() || self.group == "*" || user.in_group(&self.group);
        !(self.user.is_empty() && self.group.is_empty()) && named && member
    }

    fn covers(&self, request: &Attributes) -> bool {
        if request.resource_request {
            return fits(&self.namespace, &request.namespace)
                && fits(&self.resource, &request.resource)
                && fits(&self.api_group, &request.group);
        }
        match self.path.strip_suffix('*') {
            Some(prefix) => request.path.starts_with(prefix.trim_end_matches('*')),
            None => self.path == request.path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ask, user};

    #[test]
    fn a_line_allows_what_it_says() {
        let text = r#"
# administrators
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"root","namespace":"*","resource":"*","apiGroup":"*","nonResourcePath":"*"}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"jane","namespace":"a","resource":"pods","readonly":true}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"group":"devs","user":"joe","namespace":"a","resource":"deployments","apiGroup":"apps"}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"group":"*","readonly":true,"nonResourcePath":"/healthz*"}}
{"user":"old","resource":"pods","readonly":true}
"#;
        let policies = Policies::parse(text).expect("policies");
        let check =
            |who: &str, groups: &[&str], verb: &str, resource: &str, namespace: &str, allowed: bool| {
                let request = ask(&user(who, groups), verb, resource, namespace, "");
                assert_eq!(policies.allow(&request), allowed, "{who} {verb} {resource} {namespace}");
            };
        check("root", &[], "delete", "apps/deployments", "x", true);
        check("jane", &[], "list", "/pods", "a", true);
        check("jane", &[], "create", "/pods", "a", false);
        check("jane", &[], "list", "/pods", "b", false);
        check("joe", &["devs"], "create", "apps/deployments", "a", true);
        check("joe", &[], "create", "apps/deployments", "a", false);
        check("old", &[], "watch", "/pods", "b", true);
        check("old", &[], "delete", "/pods", "b", false);
        let path = |who: &str, groups: &[&str], path: &str| {
            let user = user(who, groups);
            let request = ask(&user, "get", "", "", "");
            policies.allow(&Attributes { path: path.to_owned(), resource_request: false, ..request })
        };
        assert!(path("anyone", &["system:authenticated"], "/healthz/ping"));
        assert!(!path("anyone", &["system:authenticated"], "/metrics"));
        assert!(!path("anyone", &["system:unauthenticated"], "/healthz"));
        let rules = policies.rules_for(&user("jane", &[]), "a");
        assert_eq!(
            (rules.len(), rules[0].verbs.as_slice()),
            (1, &["get", "list", "watch"].map(str::to_owned)[..])
        );
    }

    #[test]
    fn a_wrong_line_is_named() {
        let check = |text: &str, line: usize| {
            assert_eq!(Policies::parse(text).expect_err(text).0, line);
        };
        check("\n{", 2);
        check("{\"apiVersion\":\"v1\",\"kind\":\"Policy\"}", 1);
        check("{\"user\":7}", 1);
    }
}
