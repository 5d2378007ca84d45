//! Authorization: system:masters may everything, nodes what their pods need, everybody what RBAC grants. Also the checks
//! that keep anybody from granting more than they have, and the review APIs that tell what somebody may.

mod escalation;
mod node;
mod rbac;
pub(crate) mod references;
mod reviews;
mod rule;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt, ready};

pub use node::node_name;
pub use reviews::Reviews;
pub(crate) use reviews::user_value;
pub use rule::Rule;

use crate::{Attributes, Authorize, ClusterRef, Decision, Status, UserInfo, Verdict};
use node::NodeAuthorizer;
use rbac::{Outcome, Rbac};

/// The group whose members no authorizer is asked about.
const MASTERS: &str = "system:masters";

/// The authorizers, in upstream's order: masters, Node, RBAC.
pub struct Authorizer {
    node: NodeAuthorizer,
    rbac: Rbac,
}

/// Which rules hold for somebody.
#[derive(Debug, Default)]
pub struct Rules {
    pub rules: Vec<Rule>,
    /// Whether the list may lack some, and why.
    pub incomplete: bool,
    pub errors: Vec<String>,
}

impl Authorizer {
    /// `node_rules` are those of the bootstrap role `system:node`.
    pub fn new(cluster: ClusterRef, node_rules: Vec<Rule>) -> Arc<Self> {
        Arc::new(Self {
            node: NodeAuthorizer::new(Arc::clone(&cluster), node_rules),
            rbac: Rbac::new(cluster),
        })
    }

    /// The decision, at once: everything needed is in the watch cache.
    pub fn decide(&self, request: &Attributes) -> Decision {
        if request.user.in_group(MASTERS) {
            return Decision::allow("");
        }
        let node = self.node.authorize(request);
        if node.verdict != Verdict::NoOpinion {
            return node;
        }
        let mut reasons = Vec::new();
        if !node.reason.is_empty() {
            reasons.push(node.reason);
        }
        match self.rbac.evaluate(request) {
            Outcome::Allowed(reason) => return Decision::allow(reason),
            Outcome::None(errors) if errors.is_empty() => {}
            Outcome::None(errors) => reasons.push(format!("RBAC: {}", aggregate(&errors))),
        }
        Decision::no_opinion(reasons.join("\n"))
    }

    /// All rules of somebody in a namespace.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut found = Rules::default();
        let all = || vec!["*".to_owned()];
        if user.in_group(MASTERS) {
            found.rules.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
            found.rules.push(Rule { verbs: all(), urls: all(), ..Rule::default() });
        }
        if node_name(user).is_some() {
            found.incomplete = true;
            found.errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        let (rules, errors) = self.rbac.rules_for(user, namespace);
        found.rules.extend(rules);
        found.errors.extend(errors);
        found
    }
}

impl Authorize for Authorizer {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision> {
        ready(self.decide(attributes)).boxed()
    }
}

/// Several errors in one text, as upstream's aggregates print.
fn aggregate(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// The 403 of a refused request, in upstream's words.
pub fn forbidden(request: &Attributes, reason: &str) -> Status {
    let user = &request.user.name;
    let verb = &request.verb;
    let what = if !request.resource_request {
        format!("User {user:?} cannot {verb} path {:?}", request.path)
    } else {
        let resource = match request.subresource.as_str() {
            "" => request.resource.clone(),
            sub => format!("{}/{sub}", request.resource),
        };
        let scope = match request.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!("User {user:?} cannot {verb} resource {resource:?} in API group {:?} {scope}", request.group)
    };
    // What a caller sent must not come back as something that a browser takes for HTML.
    let mut text = what.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if !reason.is_empty() {
        text = format!("{text}: {reason}");
    }
    Status::forbidden(&request.group, &request.resource, &request.name, text)
}
