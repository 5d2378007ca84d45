//! Authorization: system:masters may everything, nodes what their pods need, everybody what RBAC grants, or what webhooks
//! say. Also the checks that keep anybody from granting more than they have, and the review APIs that tell what somebody may.

mod abac;
pub mod config;
mod escalation;
mod node;
mod rbac;
pub(crate) mod references;
mod reviews;
mod rule;
#[cfg(test)]
mod tests;
mod webhook;

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::future::{BoxFuture, FutureExt};

pub use node::node_name;
pub use reviews::Reviews;
pub(crate) use reviews::user_value;
pub use rule::Rule;
pub use webhook::{Settings, WebhookAuthorizer};

use crate::{Attributes, Authorize, ClusterRef, Decision, Status, UserInfo, Verdict};
use abac::Policies;
use node::NodeAuthorizer;
use rbac::{Outcome, Rbac};

/// The group whose members no authorizer is asked about.
const MASTERS: &str = "system:masters";

/// The authorizers: masters first, then those that are configured, Node and RBAC unless told otherwise.
pub struct Authorizer {
    node: NodeAuthorizer,
    rbac: Rbac,
    /// Exchanged when the configuration file changes.
    modes: ArcSwap<Vec<Mode>>,
}

/// One authorizer of the chain.
pub enum Mode {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
    Abac(Policies),
    Webhook(Box<WebhookAuthorizer>),
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
            modes: ArcSwap::from_pointee(vec![Mode::Node, Mode::Rbac]),
        })
    }

    /// Exchanges the chain.
    pub fn set_modes(&self, modes: Vec<Mode>) {
        self.modes.store(Arc::new(modes));
    }

    /// The decision at once, if the authorizers that are here decide before a webhook would be asked: everything that they
    /// need is in the watch cache.
    pub fn decide_here(&self, request: &Attributes) -> Option<Decision> {
        if request.user.in_group(MASTERS) {
            return Some(Decision::allow(""));
        }
        let mut reasons = Vec::new();
        for mode in self.modes.load().iter() {
            let decision = self.local(mode, request)?;
            if decision.verdict != Verdict::NoOpinion {
                return Some(decision);
            }
            reasons.push(decision.reason);
        }
        Some(undecided(reasons))
    }

    /// The decision of all.
    pub async fn all(&self, request: &Attributes) -> Decision {
        if request.user.in_group(MASTERS) {
            return Decision::allow("");
        }
        let modes = self.modes.load_full();
        let mut reasons = Vec::new();
        for mode in modes.iter() {
            let decision = match (self.local(mode, request), mode) {
                (Some(decision), _) => decision,
                (None, Mode::Webhook(webhook)) => webhook.authorize(request).await,
                (None, _) => continue,
            };
            if decision.verdict != Verdict::NoOpinion {
                return decision;
            }
            reasons.push(decision.reason);
        }
        undecided(reasons)
    }

    /// The opinion of an authorizer that is here.
    fn local(&self, mode: &Mode, request: &Attributes) -> Option<Decision> {
        Some(match mode {
            Mode::AlwaysAllow => Decision::allow(""),
            Mode::AlwaysDeny => Decision::no_opinion("Everything is forbidden."),
            Mode::Node => self.node.authorize(request),
            Mode::Rbac => match self.rbac.evaluate(request) {
                Outcome::Allowed(reason) => Decision::allow(reason),
                Outcome::None(errors) if errors.is_empty() => Decision::no_opinion(""),
                Outcome::None(errors) => Decision::no_opinion(format!("RBAC: {}", aggregate(&errors))),
            },
            Mode::Abac(policies) if policies.allow(request) => Decision::allow(""),
            Mode::Abac(_) => Decision::no_opinion("No policy matched."),
            Mode::Webhook(_) => return None,
        })
    }

    /// All rules of somebody in a namespace.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut found = Rules::default();
        let all = || vec!["*".to_owned()];
        if user.in_group(MASTERS) {
            found.rules.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
            found.rules.push(Rule { verbs: all(), urls: all(), ..Rule::default() });
        }
        let modes = self.modes.load();
        if modes.iter().any(|m| matches!(m, Mode::AlwaysAllow)) {
            found.rules.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
            found.rules.push(Rule { verbs: all(), urls: all(), ..Rule::default() });
        }
        if modes.iter().any(|m| matches!(m, Mode::Webhook(_))) {
            found.incomplete = true;
            found.errors.push("webhook authorizer does not support user rule resolution".to_owned());
        }
        if node_name(user).is_some() && modes.iter().any(|m| matches!(m, Mode::Node)) {
            found.incomplete = true;
            found.errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        for mode in modes.iter() {
            if let Mode::Abac(policies) = mode {
                found.rules.extend(policies.rules_for(user, namespace));
            }
        }
        if !modes.iter().any(|m| matches!(m, Mode::Rbac)) {
            return found;
        }
        let (rules, errors) = self.rbac.rules_for(user, namespace);
        found.rules.extend(rules);
        found.errors.extend(errors);
        found
    }
}

impl Authorize for Authorizer {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision> {
        self.all(attributes).boxed()
    }
}

fn undecided(reasons: Vec<String>) -> Decision {
    let reasons: Vec<String> = reasons.into_iter().filter(|r| !r.is_empty()).collect();
    Decision::no_opinion(reasons.join("\n"))
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
