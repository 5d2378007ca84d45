//! Who may what by RBAC: role bindings, indexed by subject. The index follows the watch cache: it is made anew when a role
//! or binding has changed, and rules of roles that did not change are kept.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;

use super::rule::Rule;
use crate::read::Read;
use crate::{Attributes, ClusterRef, UserInfo};

const GROUP: &str = "rbac.authorization.k8s.io";
const RESOURCES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// The RBAC evaluator.
pub struct Rbac {
    cluster: ClusterRef,
    index: ArcSwap<Index>,
    rebuild: Mutex<()>,
}

/// One binding, seen from one of its subjects.
#[derive(Debug)]
struct Grant {
    /// Numbers the bindings, so that one that names a caller twice counts once.
    binding: usize,
    /// The role's rules, or why there are none.
    rules: Result<Arc<[Rule]>, String>,
    /// For the reason: `ClusterRoleBinding "x" of ClusterRole "y" to Group "z"`.
    source: String,
}

#[derive(Debug, Default)]
struct Subjects {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

type Role = (Arc<Value>, Arc<[Rule]>);

#[derive(Debug, Default)]
struct Index {
    seen: Option<[u64; 4]>,
    /// By namespace (`""` for cluster roles) and name.
    roles: HashMap<String, HashMap<String, Role>>,
    cluster_wide: Subjects,
    namespaced: HashMap<String, Subjects>,
}

/// What the evaluator found.
pub enum Outcome {
    /// Allowed, by this binding.
    Allowed(String),
    /// No rule allows it; the errors met on the way.
    None(Vec<String>),
}

impl Rbac {
    /// An evaluator that reads roles and bindings from the cluster.
    pub fn new(cluster: ClusterRef) -> Self {
        Self { cluster, index: ArcSwap::default(), rebuild: Mutex::new(()) }
    }

    /// Whether some rule allows the request.
    pub fn evaluate(&self, request: &Attributes) -> Outcome {
        let index = self.current();
        let mut errors = Vec::new();
        for grant in index.grants(&request.user, &request.namespace) {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(request)) => {
                    return Outcome::Allowed(format!("RBAC: allowed by {}", grant.source));
                }
                Ok(_) => {}
                Err(why) if !errors.contains(why) => errors.push(why.clone()),
                Err(_) => {}
            }
        }
        Outcome::None(errors)
    }

    /// All rules that hold for the caller in the namespace (`""`: cluster-wide only), and the errors met.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let index = self.current();
        let mut grants: Vec<&Grant> = index.grants(user, namespace).collect();
        grants.sort_by_key(|grant| grant.binding);
        grants.dedup_by_key(|grant| grant.binding);
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for grant in grants {
            match &grant.rules {
                Ok(found) => rules.extend(found.iter().cloned()),
                Err(why) => errors.push(why.clone()),
            }
        }
        (rules, errors)
    }

    /// The rules of the role that a binding of `namespace` refers to; `None` if there is no such role.
    pub fn role_rules(&self, kind: &str, name: &str, namespace: &str) -> Option<Arc<[Rule]>> {
        let namespace = if kind == "ClusterRole" { "" } else { namespace };
        Some(self.current().roles.get(namespace)?.get(name)?.1.clone())
    }

    fn current(&self) -> Arc<Index> {
        let seen = RESOURCES.map(|resource| self.cluster.changed(GROUP, resource));
        let index = self.index.load();
        if index.seen == Some(seen) {
            return Arc::clone(&index);
        }
        let _guard = self.rebuild.lock();
        let index = self.index.load();
        if index.seen == Some(seen) {
            return Arc::clone(&index);
        }
        let new = Arc::new(Index::build(&self.cluster, seen, &index));
        self.index.store(Arc::clone(&new));
        new
    }
}

impl Index {
    fn build(cluster: &ClusterRef, seen: [u64; 4], previous: &Index) -> Self {
        let mut index = Self { seen: Some(seen), ..Self::default() };
        for resource in ["clusterroles", "roles"] {
            for role in cluster.list(GROUP, resource, None).items {
                let (namespace, name) = (role.namespace().to_owned(), role.name().to_owned());
                let kept = previous.roles.get(&namespace).and_then(|roles| roles.get(&name));
                let rules = match kept {
                    Some((old, rules)) if Arc::ptr_eq(old, &role) => Arc::clone(rules),
                    _ => Rule::list(&role).into(),
                };
                index.roles.entry(namespace).or_default().insert(name, (role, rules));
            }
        }
        let mut number = 0;
        for resource in ["clusterrolebindings", "rolebindings"] {
            for binding in cluster.list(GROUP, resource, None).items {
                number += 1;
                index.add(number, &binding);
            }
        }
        index
    }

    fn add(&mut self, number: usize, binding: &Value) {
        let namespace = binding.namespace();
        let (role_kind, role_name) = (binding.text("roleRef.kind"), binding.text("roleRef.name"));
        let rules = self.resolve(role_kind, role_name, namespace);
        let what = if namespace.is_empty() {
            format!("ClusterRoleBinding {:?}", binding.name())
        } else {
            format!("RoleBinding {:?}", format!("{}/{namespace}", binding.name()))
        };
        for subject in binding.items("subjects") {
            let (kind, name) = (subject.text("kind"), subject.text("name"));
            let own = match (kind, subject.text("namespace"), namespace) {
                ("ServiceAccount", "", "") => continue,
                ("ServiceAccount", "", local) => local,
                (_, given, _) => given,
            };
            let shown = if kind == "ServiceAccount" { format!("{name}/{own}") } else { name.to_owned() };
            let grant = Grant {
                binding: number,
                rules: rules.clone(),
                source: format!("{what} of {role_kind} {role_name:?} to {kind} {shown:?}"),
            };
            let subjects = if namespace.is_empty() {
                &mut self.cluster_wide
            } else {
                self.namespaced.entry(namespace.to_owned()).or_default()
            };
            match kind {
                "User" => subjects.users.entry(name.to_owned()).or_default().push(grant),
                "Group" => subjects.groups.entry(name.to_owned()).or_default().push(grant),
                "ServiceAccount" => {
                    let user = format!("system:serviceaccount:{own}:{name}");
                    subjects.users.entry(user).or_default().push(grant);
                }
                _ => {}
            }
        }
    }

    fn resolve(&self, kind: &str, name: &str, namespace: &str) -> Result<Arc<[Rule]>, String> {
        let (space, plural) = match kind {
            "ClusterRole" => ("", "clusterrole"),
            "Role" => (namespace, "role"),
            other => return Err(format!("unsupported role reference kind: {other:?}")),
        };
        match self.roles.get(space).and_then(|roles| roles.get(name)) {
            Some((_, rules)) => Ok(Arc::clone(rules)),
            None => Err(format!("{plural}.{GROUP} {name:?} not found")),
        }
    }

    fn grants<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Grant> {
        let spaces = [Some(&self.cluster_wide), self.namespaced.get(namespace)];
        spaces.into_iter().flatten().flat_map(move |subjects| {
            let own = subjects.users.get(&user.name).into_iter();
            own.chain(user.groups.iter().filter_map(|group| subjects.groups.get(group))).flatten()
        })
    }
}
