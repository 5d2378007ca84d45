//! FlowSchemas and PriorityLevelConfigurations, read out of their objects, and which schema a request belongs to
//! (upstream: `util/flowcontrol/rule.go`).

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Attributes;
use crate::read::Read;

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
pub const EXEMPT: &str = "exempt";
pub const CATCH_ALL: &str = "catch-all";

/// Which requests a schema holds apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distinguisher {
    None,
    ByUser,
    ByNamespace,
}

/// A FlowSchema.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    pub name: String,
    pub uid: String,
    pub precedence: i64,
    /// The priority level that it names.
    pub level: String,
    pub distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Clone, Debug, PartialEq)]
enum Subject {
    User(String),
    Group(String),
    /// The whole of `system:serviceaccount:NAMESPACE:NAME`, or the part before a name that is `*`.
    ServiceAccount(String),
    Never,
}

#[derive(Clone, Debug, PartialEq)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    value.items(field).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// The wildcard stands for everything if it is the only entry.
fn contains(list: &[String], wildcard: &str, text: &str) -> bool {
    matches!(list, [one] if one == wildcard) || list.iter().any(|own| own == text)
}

impl Schema {
    /// Out of an object that has passed validation.
    pub fn read(object: &Value) -> Self {
        Self {
            name: object.name().to_owned(),
            uid: object.text("metadata.uid").to_owned(),
            precedence: object.at("spec").at("matchingPrecedence").as_i64().unwrap_or(1000),
            level: object.text("spec.priorityLevelConfiguration.name").to_owned(),
            distinguisher: match object.text("spec.distinguisherMethod.type") {
                "ByUser" => Distinguisher::ByUser,
                "ByNamespace" => Distinguisher::ByNamespace,
                _ => Distinguisher::None,
            },
            rules: object.items("spec.rules").iter().map(Rule::read).collect(),
        }
    }

    /// Whether a request is of this schema.
    pub fn matches(&self, attributes: &Attributes) -> bool {
        self.rules.iter().any(|rule| rule.matches(attributes))
    }

    /// What the flow of a request is told apart by, and the hash of the flow.
    pub fn flow(&self, attributes: &Attributes) -> u64 {
        let what = match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::ByUser => &attributes.user.name,
            Distinguisher::ByNamespace => &attributes.namespace,
        };
        let digest = Sha256::new().chain_update(&self.name).chain_update([0]).chain_update(what).finalize();
        u64::from_le_bytes(digest[..8].try_into().expect("a digest is longer than eight bytes"))
    }
}

impl Rule {
    fn read(value: &Value) -> Self {
        Self {
            subjects: value.items("subjects").iter().map(Subject::read).collect(),
            resources: value
                .items("resourceRules")
                .iter()
                .map(|rule| ResourceRule {
                    verbs: texts(rule, "verbs"),
                    groups: texts(rule, "apiGroups"),
                    resources: texts(rule, "resources"),
                    namespaces: texts(rule, "namespaces"),
                    cluster_scope: rule.at("clusterScope").as_bool().unwrap_or(false),
                })
                .collect(),
            paths: value
                .items("nonResourceRules")
                .iter()
                .map(|rule| PathRule { verbs: texts(rule, "verbs"), paths: texts(rule, "nonResourceURLs") })
                .collect(),
        }
    }

    fn matches(&self, attributes: &Attributes) -> bool {
        // What asks for least work goes first; the order makes no difference to the answer.
        let asked = if attributes.resource_request {
            self.resources.iter().any(|rule| rule.matches(attributes))
        } else {
            self.paths.iter().any(|rule| rule.matches(attributes))
        };
        asked && self.subjects.iter().any(|subject| subject.matches(attributes))
    }
}

impl Subject {
    fn read(value: &Value) -> Self {
        match value.text("kind") {
            "User" if value.has("user") => Self::User(value.text("user.name").to_owned()),
            "Group" if value.has("group") => Self::Group(value.text("group.name").to_owned()),
            "ServiceAccount" if value.has("serviceAccount") => {
                let namespace = value.text("serviceAccount.namespace");
                let name = match value.text("serviceAccount.name") {
                    "*" => "",
                    name => name,
                };
                Self::ServiceAccount(format!("system:serviceaccount:{namespace}:{name}"))
            }
            _ => Self::Never,
        }
    }

    fn matches(&self, attributes: &Attributes) -> bool {
        let user = &*attributes.user;
        match self {
            Self::User(name) => name == "*" || *name == user.name,
            Self::Group(name) => name == "*" || user.in_group(name),
            Self::ServiceAccount(prefix) if prefix.ends_with(':') => user.name.starts_with(prefix),
            Self::ServiceAccount(name) => *name == user.name,
            Self::Never => false,
        }
    }
}

impl ResourceRule {
    fn matches(&self, attributes: &Attributes) -> bool {
        let resource = || {
            if attributes.subresource.is_empty() {
                return contains(&self.resources, "*", &attributes.resource);
            }
            contains(&self.resources, "*", &format!("{}/{}", attributes.resource, attributes.subresource))
        };
        let namespace = || match attributes.namespace.as_str() {
            "" => self.cluster_scope,
            namespace => contains(&self.namespaces, "*", namespace),
        };
        contains(&self.verbs, "*", &attributes.verb)
            && contains(&self.groups, "*", &attributes.group)
            && resource()
            && namespace()
    }
}

impl PathRule {
    fn matches(&self, attributes: &Attributes) -> bool {
        let path = attributes.path.as_str();
        contains(&self.verbs, "*", &attributes.verb)
            && self.paths.iter().any(|own| {
                let stem = own.strip_suffix('*').unwrap_or(own);
                let below = path.strip_prefix(stem.trim_end_matches('/')).is_some_and(|r| r.starts_with('/'));
                own == "*" || own == path || below
            })
    }
}

/// How a limited level treats what it cannot serve at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queuing {
    pub queues: usize,
    pub hand: usize,
    pub length: usize,
}

/// A PriorityLevelConfiguration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelConfig {
    pub name: String,
    pub uid: String,
    pub exempt: bool,
    pub shares: u64,
    pub lendable_percent: u64,
    /// Without a limit a level borrows all that others lend.
    pub borrowing_percent: Option<u64>,
    /// Absent: what cannot be served at once is rejected.
    pub queuing: Option<Queuing>,
}

/// Most bits of entropy that a deal may need, and the largest deck, as in the reference.
const MOST_BITS: f64 = 60.0;
const LARGEST_DECK: usize = 1 << 26;

impl LevelConfig {
    /// Out of an object; `None` if it is broken in a way that validation should have caught.
    pub fn read(object: &Value) -> Option<Self> {
        let name = object.name().to_owned();
        let exempt = object.text("spec.type") == "Exempt";
        let part = object.at("spec").at(if exempt { "exempt" } else { "limited" });
        if exempt != (name == EXEMPT) || part.is_null() {
            return None;
        }
        let number = |field: &str| part.at(field).as_u64();
        let queuing = match (exempt, part.text("limitResponse.type")) {
            (true, _) | (false, "Reject") => None,
            (false, "Queue") => {
                let queuing = part.at("limitResponse").at("queuing");
                let number = |field: &str| usize::try_from(queuing.at(field).as_u64()?).ok();
                let (queues, hand) = (number("queues")?, number("handSize")?);
                let bits = (queues as f64).log2() * hand as f64;
                if hand == 0 || hand > queues || queues > LARGEST_DECK || bits.ceil() > MOST_BITS {
                    return None;
                }
                Some(Queuing { queues, hand, length: number("queueLengthLimit")? })
            }
            _ => return None,
        };
        Some(Self {
            uid: object.text("metadata.uid").to_owned(),
            exempt,
            shares: number("nominalConcurrencyShares").unwrap_or(if exempt { 0 } else { 30 }),
            lendable_percent: number("lendablePercent").unwrap_or(0),
            borrowing_percent: number("borrowingLimitPercent"),
            queuing,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{ask, user};

    fn schema(subject: Value, resource: Value, path: Value) -> Schema {
        Schema::read(&json!({
            "metadata": {"name": "s"},
            "spec": {
                "priorityLevelConfiguration": {"name": "l"},
                "rules": [{"subjects": [subject], "resourceRules": [resource], "nonResourceRules": [path]}],
            },
        }))
    }

    fn rule(verb: &str, group: &str, resource: &str, namespace: &str) -> Value {
        let cluster = namespace.is_empty();
        let namespaces = if cluster { vec![] } else { vec![namespace] };
        json!({"verbs": [verb], "apiGroups": [group], "resources": [resource], "clusterScope": cluster,
            "namespaces": namespaces})
    }

    #[test]
    fn subjects() {
        let check = |subject: Value, name: &str, groups: &[&str], expect: bool| {
            let schema = schema(subject.clone(), rule("*", "*", "*", "*"), json!({}));
            let asked = ask(&user(name, groups), "get", "/pods", "n", "p");
            assert_eq!(schema.matches(&asked), expect, "{subject} {name}");
        };
        check(json!({"kind": "User", "user": {"name": "a"}}), "a", &[], true);
        check(json!({"kind": "User", "user": {"name": "*"}}), "b", &[], true);
        check(json!({"kind": "User", "user": {"name": "a"}}), "b", &["a"], false);
        check(json!({"kind": "Group", "group": {"name": "g"}}), "b", &["f", "g"], true);
        check(json!({"kind": "Group", "group": {"name": "*"}}), "b", &[], true);
        let account = |name: &str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "n", "name": name}});
        check(account("*"), "system:serviceaccount:n:x", &[], true);
        check(account("*"), "system:serviceaccount:nn:x", &[], false);
        check(account("x"), "system:serviceaccount:n:x", &[], true);
        check(account("x"), "system:serviceaccount:n:xy", &[], false);
        check(json!({"kind": "User"}), "", &[], false);
    }

    #[test]
    fn rules() {
        let anybody = json!({"kind": "User", "user": {"name": "*"}});
        let check = |rule: Value, asked: (&str, &str, &str), expect: bool| {
            let schema = schema(anybody.clone(), rule.clone(), json!({}));
            let asked = ask(&user("u", &[]), asked.0, asked.1, asked.2, "");
            assert_eq!(schema.matches(&asked), expect, "{rule} {asked:?}");
        };
        check(rule("list", "apps", "deployments", "*"), ("list", "apps/deployments", "n"), true);
        check(rule("list", "apps", "deployments", "*"), ("list", "apps/deployments", ""), false);
        check(rule("list", "apps", "deployments", ""), ("list", "apps/deployments", ""), true);
        check(rule("list", "apps", "deployments", "m"), ("list", "apps/deployments", "n"), false);
        check(rule("*", "apps", "deployments", "*"), ("get", "apps/deployments/status", "n"), false);
        check(rule("*", "apps", "deployments/status", "*"), ("get", "apps/deployments/status", "n"), true);
        check(rule("get", "apps", "deployments", "*"), ("list", "apps/deployments", "n"), false);
        check(rule("get", "", "pods", "*"), ("get", "apps/pods", "n"), false);
    }

    #[test]
    fn paths() {
        let anybody = json!({"kind": "User", "user": {"name": "*"}});
        let check = |own: &str, path: &str, expect: bool| {
            let rule = json!({"verbs": ["get"], "nonResourceURLs": [own]});
            let schema = schema(anybody.clone(), json!({}), rule);
            let asked = Attributes {
                user: user("u", &[]),
                verb: "get".into(),
                path: path.into(),
                ..Attributes::default()
            };
            assert_eq!(schema.matches(&asked), expect, "{own} {path}");
        };
        check("*", "/x", true);
        check("/healthz", "/healthz", true);
        check("/healthz", "/healthz/etcd", true);
        check("/healthz", "/healthzz", false);
        check("/openapi/*", "/openapi/v2", true);
        check("/openapi/*", "/openapis", false);
    }

    #[test]
    fn levels() {
        let level = |spec: Value| LevelConfig::read(&json!({"metadata": {"name": "l"}, "spec": spec}));
        let limited = |response: Value| {
            level(
                json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "limitResponse": response}}),
            )
        };
        assert_eq!(limited(json!({"type": "Reject"})).expect("a level").queuing, None);
        let queue = |queues: u64, hand: u64| {
            let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
            limited(json!({"type": "Queue", "queuing": queuing}))
        };
        assert_eq!(queue(64, 6).expect("a level").queuing, Some(Queuing { queues: 64, hand: 6, length: 50 }));
        assert_eq!(queue(4, 6), None, "a hand is dealt from the deck");
        assert_eq!(queue(1 << 20, 8), None, "more entropy than a hash has");
        assert_eq!(level(json!({"type": "Exempt", "exempt": {}})), None, "only one level is exempt");
    }
}
