//! The audit policy: the first rule that matches a request says how much of it is written down, and at which stages
//! (`audit.k8s.io/v1`; upstream: `apiserver/pkg/audit/policy`).

use std::path::Path;

use serde::Deserialize;

use super::record::Level;
use crate::Attributes;
use crate::config_file::{self, FileError};

/// When an event is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    /// The name in policies and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    #[serde(default)]
    rules: Vec<RuleFile>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleFile {
    level: String,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

struct Rule {
    level: Level,
    file: RuleFile,
    omit: u8,
    omit_managed_fields: bool,
}

/// A policy in force.
pub struct Policy {
    rules: Vec<Rule>,
    omit: u8,
    omit_managed_fields: bool,
}

/// How one request is audited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    pub level: Level,
    omit: u8,
    pub omit_managed_fields: bool,
}

impl Decided {
    /// Whether an event is made at a stage.
    pub fn wants(&self, stage: Stage) -> bool {
        self.level != Level::None && self.omit & stage.bit() == 0
    }
}

fn stages(stages: &[Stage]) -> u8 {
    stages.iter().fold(0, |bits, stage| bits | stage.bit())
}

impl Policy {
    /// Reads a policy file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let file: File = config_file::read(path, &["audit.k8s.io/v1"], "Policy")?;
        Self::new(file).map_err(|reason| FileError::invalid(path, reason))
    }

    /// Everything at the level `Metadata` once it is answered, but reads that the system's own parts make all the time and
    /// what nobody is accountable for.
    pub fn standard() -> Self {
        let text = include_str!("standard.yaml");
        let file = config_file::parse(text.as_bytes(), &["audit.k8s.io/v1"], "Policy");
        file.and_then(Self::new).expect("a constant policy that a test reads")
    }

    fn new(file: File) -> Result<Self, String> {
        if file.rules.is_empty() {
            return Err("rules: a policy without rules would write nothing down".to_owned());
        }
        let omit = stages(&file.omit_stages);
        let mut rules = Vec::with_capacity(file.rules.len());
        for (i, rule) in file.rules.into_iter().enumerate() {
            let field = |name: &str, why: &str| format!("rules[{i}].{name}: {why}");
            let level = Level::parse(&rule.level).ok_or_else(|| {
                field("level", &format!("{:?} is not None, Metadata, Request or RequestResponse", rule.level))
            })?;
            for (j, url) in rule.non_resource_urls.iter().enumerate() {
                let name = format!("nonResourceURLs[{j}]");
                if url != "*" && !url.starts_with('/') {
                    return Err(field(&name, "must begin with '/'"));
                }
                if url.trim_end_matches('*').contains('*') || url.ends_with("**") {
                    return Err(field(&name, "'*' must be the last character"));
                }
            }
            let of_resources = !(rule.resources.is_empty() && rule.namespaces.is_empty());
            if !rule.non_resource_urls.is_empty() && of_resources {
                return Err(field(
                    "nonResourceURLs",
                    "a rule is for resources or for other URLs, not for both",
                ));
            }
            for (j, resource) in rule.resources.iter().enumerate() {
                let name = format!("resources[{j}]");
                let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
                if resource.group != "*" && !resource.group.chars().all(valid) {
                    return Err(field(&format!("{name}.group"), "must be a group's name, without a version"));
                }
                if !resource.resource_names.is_empty() && resource.resources.is_empty() {
                    return Err(field(&format!("{name}.resourceNames"), "needs resources beside it"));
                }
            }
            rules.push(Rule {
                level,
                omit: omit | stages(&rule.omit_stages),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(file.omit_managed_fields),
                file: rule,
            });
        }
        Ok(Self { rules, omit, omit_managed_fields: file.omit_managed_fields })
    }

    /// What the policy says of a request.
    pub fn decide(&self, attributes: &Attributes) -> Decided {
        match self.rules.iter().find(|rule| rule.file.matches(attributes)) {
            Some(rule) => {
                Decided { level: rule.level, omit: rule.omit, omit_managed_fields: rule.omit_managed_fields }
            }
            None => {
                Decided { level: Level::None, omit: self.omit, omit_managed_fields: self.omit_managed_fields }
            }
        }
    }
}

impl RuleFile {
    fn matches(&self, attributes: &Attributes) -> bool {
        let has = |list: &[String], text: &str| list.iter().any(|own| own == text);
        if !(self.users.is_empty() || has(&self.users, &attributes.user.name)) {
            return false;
        }
        if !(self.user_groups.is_empty() || attributes.user.groups.iter().any(|g| has(&self.user_groups, g)))
        {
            return false;
        }
        if !(self.verbs.is_empty() || has(&self.verbs, &attributes.verb)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return attributes.resource_request
                && (self.namespaces.is_empty() || has(&self.namespaces, &attributes.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(attributes)));
        }
        self.non_resource_urls.is_empty()
            || (!attributes.resource_request
                && self.non_resource_urls.iter().any(|url| path_matches(&attributes.path, url)))
    }
}

fn path_matches(path: &str, url: &str) -> bool {
    url == "*" || url == path || url.strip_suffix('*').is_some_and(|stem| path.starts_with(stem))
}

impl GroupResources {
    fn matches(&self, attributes: &Attributes) -> bool {
        if self.group != "*" && self.group != attributes.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.contains(&attributes.name) {
            return false;
        }
        let (resource, subresource) = (attributes.resource.as_str(), attributes.subresource.as_str());
        self.resources.iter().any(|own| match own.split_once('/') {
            None => own == "*" || (subresource.is_empty() && own == resource),
            Some(("*", part)) => !subresource.is_empty() && part == subresource,
            Some((own, "*")) => own == resource,
            Some((own, part)) => own == resource && !subresource.is_empty() && part == subresource,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ask, user};

    fn policy(rules: &str) -> Result<Policy, String> {
        let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}");
        config_file::parse(text.as_bytes(), &["audit.k8s.io/v1"], "Policy").and_then(Policy::new)
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let policy = policy(
            "omitStages: [RequestReceived]\n\
             omitManagedFields: true\n\
             rules:\n\
             - {level: None, users: [quiet], verbs: [watch]}\n\
             - {level: Request, resources: [{group: \"\", resources: [secrets, \"pods/*\"]}], omitStages: [Panic]}\n\
             - {level: None, resources: [{group: \"\", resources: [configmaps], resourceNames: [lock]}]}\n\
             - {level: RequestResponse, namespaces: [a], omitManagedFields: false}\n\
             - {level: Request, resources: [{group: apps, resources: [\"*/scale\"]}]}\n\
             - {level: None, userGroups: [g], nonResourceURLs: [\"/healthz*\"]}\n\
             - {level: Metadata}\n",
        )
        .expect("a policy");
        let check = |name: &str, verb: &str, resource: &str, namespace: &str, object: &str, expect: Level| {
            let asked = ask(&user(name, &["g"]), verb, resource, namespace, object);
            assert_eq!(policy.decide(&asked).level, expect, "{asked:?}");
        };
        check("quiet", "watch", "/pods", "b", "", Level::None);
        check("quiet", "list", "/pods", "b", "", Level::Request);
        check("u", "get", "/secrets", "b", "s", Level::Request);
        check("u", "get", "/secrets/x", "b", "s", Level::Metadata);
        check("u", "get", "/pods", "b", "s", Level::Request);
        check("u", "get", "/pods/log", "b", "s", Level::Request);
        check("u", "get", "apps/pods/log", "b", "s", Level::Metadata);
        check("u", "get", "/configmaps", "b", "lock", Level::None);
        check("u", "get", "/configmaps", "b", "other", Level::Metadata);
        check("u", "get", "/configmaps", "a", "other", Level::RequestResponse);
        check("u", "update", "apps/deployments/scale", "b", "d", Level::Request);
        check("u", "update", "apps/deployments", "b", "d", Level::Metadata);
        let path = |path: &str| {
            let asked = Attributes { user: user("u", &["g"]), path: path.into(), ..Attributes::default() };
            policy.decide(&asked).level
        };
        assert_eq!((path("/healthz/etcd"), path("/version")), (Level::None, Level::Metadata));
        let asked = policy.decide(&ask(&user("u", &[]), "get", "/secrets", "b", "s"));
        assert!(asked.wants(Stage::ResponseComplete) && !asked.wants(Stage::Panic));
        assert!(!asked.wants(Stage::RequestReceived) && asked.omit_managed_fields);
        let asked = policy.decide(&ask(&user("u", &[]), "get", "/things", "a", "s"));
        assert!(asked.wants(Stage::Panic) && !asked.omit_managed_fields);
    }

    #[test]
    fn faults_are_named() {
        let check = |rules: &str, expect: &str| {
            let error = policy(rules).map(drop).expect_err("a fault");
            assert!(error.contains(expect), "{rules}: {error}");
        };
        check("rules: []", "rules:");
        check("rules: [{level: Much}]", "rules[0].level");
        check("rules: [{}]", "level");
        check("rules: [{level: None, nonResourceURLs: [healthz]}]", "rules[0].nonResourceURLs[0]");
        check("rules: [{level: None, nonResourceURLs: [\"/a*b\"]}]", "rules[0].nonResourceURLs[0]");
        check("rules: [{level: None, nonResourceURLs: [/a], namespaces: [b]}]", "rules[0].nonResourceURLs");
        check("rules: [{level: None, resources: [{group: apps/v1}]}]", "rules[0].resources[0].group");
        check(
            "rules: [{level: None, resources: [{resourceNames: [a]}]}]",
            "rules[0].resources[0].resourceNames",
        );
        check("rules: [{level: None}]\nomitStages: [Never]", "Never");
        check("rules: [{level: None, usrs: [a]}]", "usrs");
    }

    #[test]
    fn the_standard_policy_tells_who_changed_what() {
        let policy = Policy::standard();
        let check = |name: &str, groups: &[&str], verb: &str, resource: &str, expect: Level| {
            let asked = ask(&user(name, groups), verb, resource, "n", "x");
            assert_eq!(policy.decide(&asked).level, expect, "{name} {verb} {resource}");
        };
        check("admin", &["system:masters"], "create", "apps/deployments", Level::Metadata);
        check("admin", &["system:masters"], "get", "/secrets", Level::Metadata);
        check("system:kube-scheduler", &[], "update", "coordination.k8s.io/leases", Level::None);
        check("system:node:n", &["system:nodes"], "watch", "/pods", Level::None);
        check(
            "system:serviceaccount:kube-system:x",
            &["system:serviceaccounts:kube-system"],
            "list",
            "/pods",
            Level::None,
        );
        check("system:node:n", &["system:nodes"], "get", "/secrets", Level::Metadata);
    }
}
