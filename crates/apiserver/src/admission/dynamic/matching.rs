//! Which requests a webhook or a policy is for: rules on operation, group, version, resource and scope, the namespace's and
//! the object's labels, and the equivalents of a resource in other groups and versions.

use api::labels::Selector;
use serde_json::Value;

use crate::admission::Scene;
use crate::read::Read;
use crate::{Gvk, Gvr, Operation, Status};

/// The kinds whose admission no webhook and no policy takes part in, so that a broken one can always be put right.
pub(crate) fn exempt(group: &str, kind: &str) -> bool {
    group == "admissionregistration.k8s.io"
        && matches!(
            kind,
            "ValidatingWebhookConfiguration"
                | "MutatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    Cluster,
    Namespaced,
    /// A value that is not known matches nothing.
    None,
}

/// One rule, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource.
    resources: Vec<(String, String)>,
    scope: Scope,
    /// Of policies: the names that are meant; empty means all.
    names: Vec<String>,
}

fn listed(items: &[String], wanted: &str) -> bool {
    items.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    pub fn new(rule: &Value) -> Self {
        let strings = |key: &str| rule.texts(key).map(str::to_owned).collect::<Vec<_>>();
        let resources = rule.texts("resources").map(|text| {
            let (resource, subresource) = text.split_once('/').unwrap_or((text, ""));
            (resource.to_owned(), subresource.to_owned())
        });
        Self {
            operations: strings("operations"),
            groups: strings("apiGroups"),
            versions: strings("apiVersions"),
            resources: resources.collect(),
            scope: match rule.text("scope") {
                "" | "*" => Scope::All,
                "Cluster" => Scope::Cluster,
                "Namespaced" => Scope::Namespaced,
                _ => Scope::None,
            },
            names: strings("resourceNames"),
        }
    }

    /// Whether the rule is for an operation on a resource; `namespace` is that of the request.
    fn matches(&self, operation: Operation, resource: &Gvr, subresource: &str, namespace: &str) -> bool {
        // A namespace object is cluster-wide, although its requests have a namespace.
        let cluster = namespace.is_empty()
            || (resource.group.is_empty() && resource.version == "v1" && resource.resource == "namespaces");
        let scope = match self.scope {
            Scope::All => true,
            Scope::Cluster => cluster,
            Scope::Namespaced => !cluster,
            Scope::None => false,
        };
        let any = |text: &str, wanted: &str| text == "*" || text == wanted;
        scope
            && listed(&self.operations, operation.name())
            && listed(&self.groups, &resource.group)
            && listed(&self.versions, &resource.version)
            && self.resources.iter().any(|(r, s)| any(r, &resource.resource) && any(s, subresource))
    }

    fn named(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|n| n == name)
    }
}

/// What a request is matched as: its own resource, or an equivalent that the rules name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matched {
    pub resource: Gvr,
    pub kind: Gvk,
}

/// Everything that chooses requests, of a webhook or of `matchResources`.
#[derive(Clone, Debug)]
pub(crate) struct Matching {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    equivalent: bool,
    namespaces: Result<Selector, String>,
    objects: Result<Selector, String>,
    /// No rules at all choose everything (of a policy's binding), not nothing.
    open: bool,
}

impl Matching {
    /// Of a webhook, or of `matchConstraints` and `matchResources` with `resourceRules`.
    pub fn new(holder: &Value, rules: &str) -> Self {
        let list = |key: &str| holder.items(key).iter().map(Rule::new).collect::<Vec<_>>();
        // An absent selector chooses everything here.
        let selector = |key: &str| match holder.at(key) {
            Value::Null => Ok(Selector::everything()),
            value => Selector::from_json(value),
        };
        Self {
            rules: list(rules),
            excluded: list("excludeResourceRules"),
            equivalent: holder.text("matchPolicy") == "Equivalent",
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            open: rules == "resourceRules",
        }
    }

    /// As what the request is chosen; `None` if it is not. `object` and `old` are in the request's version.
    pub async fn matches(
        &self,
        scene: &Scene<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<Option<Matched>, Status> {
        let namespace = self.namespace_matches(scene, object).await;
        if matches!(namespace, Ok(false)) {
            return Ok(None);
        }
        let chosen = match &self.objects {
            Err(why) => Err(Status::internal(why)),
            Ok(selector) if selector.is_everything() => Ok(true),
            Ok(selector) => {
                let has =
                    |value: &Value| value.is_object() && selector.matches_labels(value.at("metadata.labels"));
                Ok(has(object) || old.is_some_and(has))
            }
        };
        if matches!(chosen, Ok(false)) {
            return Ok(None);
        }
        if self.by_rules(&self.excluded, scene, object)?.is_some() {
            return Ok(None);
        }
        let matched = match self.rules.is_empty() && self.open {
            true => Some(scene.own()),
            false => self.by_rules(&self.rules, scene, object)?,
        };
        // A fault in a selector only counts for a request that is meant.
        if matched.is_some() {
            namespace?;
            chosen?;
        }
        Ok(matched)
    }

    fn by_rules(&self, rules: &[Rule], scene: &Scene<'_>, object: &Value) -> Result<Option<Matched>, Status> {
        if rules.is_empty() {
            return Ok(None);
        }
        let attributes = scene.request.attributes;
        let (operation, subresource) = (scene.operation(), attributes.subresource.as_str());
        let (namespace, name) = (attributes.namespace.as_str(), scene.object_name(object));
        let own = scene.own();
        let fits = |rule: &Rule, resource: &Gvr| {
            rule.matches(operation, resource, subresource, namespace) && rule.named(name)
        };
        if rules.iter().any(|rule| fits(rule, &own.resource)) {
            return Ok(Some(own));
        }
        if !self.equivalent {
            return Ok(None);
        }
        let others = scene.cluster.equivalents(&own.resource, subresource);
        for rule in rules {
            if let Some((resource, kind)) = others.iter().find(|(resource, _)| fits(rule, resource)) {
                return Ok(Some(Matched { resource: resource.clone(), kind: kind.clone() }));
            }
        }
        Ok(None)
    }

    async fn namespace_matches(&self, scene: &Scene<'_>, object: &Value) -> Result<bool, Status> {
        let attributes = scene.request.attributes;
        let namespaces = attributes.resource == "namespaces";
        if attributes.namespace.is_empty() && !namespaces {
            return Ok(true);
        }
        let selector = self.namespaces.as_ref().map_err(Status::internal)?;
        if selector.is_everything() {
            return Ok(true);
        }
        // Of a namespace that is written the labels are those it will have.
        let written = matches!(scene.operation(), Operation::Create | Operation::Update);
        if namespaces && attributes.subresource.is_empty() && written {
            return Ok(selector.matches_labels(object.at("metadata.labels")));
        }
        let name = scene.namespace_name(object);
        let found = scene.find("namespaces", "", name).await;
        let found = found.ok_or_else(|| Status::not_found("", "namespaces", name))?;
        Ok(selector.matches_labels(found.at("metadata.labels")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gvr(text: &str) -> Gvr {
        let mut parts = text.split('/');
        let mut part = || parts.next().unwrap_or_default().to_owned();
        Gvr { group: part(), version: part(), resource: part() }
    }

    #[test]
    fn rules_choose() {
        let check = |rule: Value, (operation, resource, sub, namespace), want: bool| {
            let rule = Rule::new(&rule);
            let got = rule.matches(operation, &gvr(resource), sub, namespace);
            assert_eq!(got, want, "{rule:?} {resource} {sub} {namespace}");
        };
        let rule = |resources: &[&str], scope: &str| {
            json!({"operations": ["CREATE"], "apiGroups": ["", "apps"], "apiVersions": ["v1"],
                "resources": resources, "scope": scope})
        };
        use Operation::{Create, Update};
        check(rule(&["pods"], "*"), (Create, "/v1/pods", "", "n"), true);
        check(rule(&["pods"], "*"), (Update, "/v1/pods", "", "n"), false);
        check(rule(&["pods"], "*"), (Create, "/v2/pods", "", "n"), false);
        check(rule(&["pods"], "*"), (Create, "batch/v1/pods", "", "n"), false);
        check(rule(&["pods"], "*"), (Create, "/v1/pods", "status", "n"), false);
        check(rule(&["pods/*"], "*"), (Create, "/v1/pods", "status", "n"), true);
        check(rule(&["pods/*"], "*"), (Create, "/v1/pods", "", "n"), true);
        check(rule(&["*"], "*"), (Create, "apps/v1/deployments", "", "n"), true);
        check(rule(&["*"], "*"), (Create, "apps/v1/deployments", "scale", "n"), false);
        check(rule(&["*/scale"], "*"), (Create, "apps/v1/deployments", "scale", "n"), true);
        check(rule(&["*"], "Namespaced"), (Create, "/v1/nodes", "", ""), false);
        check(rule(&["*"], "Cluster"), (Create, "/v1/nodes", "", ""), true);
        check(rule(&["*"], "Cluster"), (Create, "/v1/namespaces", "", "n"), true);
        check(rule(&["*"], "Namespaced"), (Create, "/v1/namespaces", "", "n"), false);
        check(rule(&["*"], "Namespaced"), (Create, "/v1/pods", "", "n"), true);
    }
}
