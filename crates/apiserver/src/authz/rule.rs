//! RBAC policy rules: what one allows, and whether a set of rules covers another
//! (upstream: `pkg/apis/rbac/v1/evaluation_helpers.go`, `component-helpers/auth/rbac/validation`).

use serde_json::{Value, json};

use crate::Attributes;
use crate::read::Read;

/// One rule of a Role or ClusterRole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    pub urls: Vec<String>,
}

impl Rule {
    /// Reads a rule from its JSON.
    pub fn from_value(value: &Value) -> Self {
        let list = |key: &str| value.texts(key).map(str::to_owned).collect();
        Self {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn list(role: &Value) -> Vec<Self> {
        role.items("rules").iter().map(Self::from_value).collect()
    }

    /// Whether the rule alone allows the request.
    pub fn allows(&self, request: &Attributes) -> bool {
        if !has(&self.verbs, &request.verb) && !has(&self.verbs, "*") {
            return false;
        }
        if !request.resource_request {
            return self.urls.iter().any(|url| url_covers(url, &request.path));
        }
        (has(&self.api_groups, "*") || has(&self.api_groups, &request.group))
            && self.resources.iter().any(|r| resource_matches(r, &request.resource, &request.subresource))
            && (self.resource_names.is_empty() || has(&self.resource_names, &request.name))
    }

    /// The rule cut into rules of one verb, group, resource, name or URL each.
    fn parts(&self) -> Vec<Self> {
        let one = |s: &String| vec![s.clone()];
        let mut parts = Vec::new();
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let part = Self {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        parts.push(part);
                    } else {
                        parts.extend(
                            self.resource_names
                                .iter()
                                .map(|name| Self { resource_names: one(name), ..part.clone() }),
                        );
                    }
                }
            }
        }
        for url in &self.urls {
            parts.extend(self.verbs.iter().map(|verb| Self {
                verbs: one(verb),
                urls: one(url),
                ..Self::default()
            }));
        }
        parts
    }

    fn covers(&self, part: &Self) -> bool {
        let all = |own: &[String], wanted: &[String]| has(own, "*") || wanted.iter().all(|w| has(own, w));
        let resources = all(&self.resources, &part.resources)
            || part.resources.iter().all(|wanted| {
                has(&self.resources, wanted)
                    || wanted.split_once('/').is_some_and(|(_, sub)| {
                        self.resources.iter().any(|r| r.strip_prefix("*/") == Some(sub))
                    })
            });
        let names = if part.resource_names.is_empty() {
            self.resource_names.is_empty()
        } else {
            self.resource_names.is_empty() || part.resource_names.iter().all(|n| has(&self.resource_names, n))
        };
        let urls = part.urls.iter().all(|wanted| {
            self.urls.iter().any(|own| {
                own == wanted || own.ends_with('*') && wanted.starts_with(own.trim_end_matches('*'))
            })
        });
        all(&self.verbs, &part.verbs) && all(&self.api_groups, &part.api_groups) && resources && names && urls
    }

    /// Whether the rules together allow all that this one does.
    pub fn covered_by(&self, own: &[Rule]) -> bool {
        self.parts().iter().all(|part| own.iter().any(|rule| rule.covers(part)))
    }

    /// The short form of escalation messages: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
    fn compact(&self) -> String {
        let mut parts = Vec::new();
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        for (name, values) in fields {
            if !values.is_empty() {
                parts.push(format!("{name}:{}", quoted_list(values)));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }

    /// The rule as a SelfSubjectRulesReview lists it for resources.
    pub fn resource_rule(&self) -> Option<Value> {
        if self.resources.is_empty() {
            return None;
        }
        let mut rule = json!({"verbs": self.verbs});
        for (key, values) in [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
        ] {
            if !values.is_empty() {
                rule[key] = json!(values);
            }
        }
        Some(rule)
    }

    /// The rule as a SelfSubjectRulesReview lists it for URLs.
    pub fn url_rule(&self) -> Option<Value> {
        (!self.urls.is_empty()).then(|| json!({"verbs": self.verbs, "nonResourceURLs": self.urls}))
    }
}

/// What of `wanted` is not covered by `own`, in the short form of messages, merged by resource and sorted.
pub fn missing(own: &[Rule], wanted: &[Rule]) -> Vec<String> {
    let parts = wanted.iter().flat_map(Rule::parts);
    let mut merged: Vec<Rule> = Vec::new();
    for part in parts.filter(|part| !own.iter().any(|rule| rule.covers(part))) {
        let same = merged.iter_mut().find(|m| {
            m.api_groups == part.api_groups
                && m.resources == part.resources
                && m.resource_names == part.resource_names
                && m.urls.is_empty()
                && part.urls.is_empty()
        });
        match same {
            Some(rule) => rule.verbs.extend(part.verbs),
            None => merged.push(part),
        }
    }
    let mut texts: Vec<String> = merged.iter().map(Rule::compact).collect();
    texts.sort();
    texts.dedup();
    texts
}

/// A list as Go prints quoted strings: `["a" "b"]`.
pub fn quoted_list(values: &[String]) -> String {
    let quoted: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted)
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    match rule.split_once('/') {
        Some((own, sub)) => sub == subresource && (own == "*" || own == resource),
        None => false,
    }
}

fn url_covers(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*'))
}
