//! Who owns whom. Pure: each change of an object yields the UIDs to look at.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use informer::Key;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;

use crate::kit::discovery::Kind;
use crate::kit::tally::Tally;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// One object.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) kind: Arc<Kind>,
    pub(super) key: Key,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    /// Deleted, and waits for its dependents to be deleted.
    pub(super) foreground: bool,
    /// Deleted, and waits for its dependents to be let go.
    pub(super) orphaning: bool,
}

fn blocks(owner: &OwnerReference) -> bool {
    owner.block_owner_deletion == Some(true)
}

/// All objects, by UID.
#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
    tally: Arc<Tally>,
}

impl Graph {
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        Self { tally, ..Self::default() }
    }

    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name this one as an owner.
    pub(super) fn dependents(&self, uid: &str) -> Vec<String> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Those of the dependents that the end of a foreground deletion waits for.
    pub(super) fn blocking(&self, uid: &str) -> Vec<(String, Node)> {
        let dependents = self.dependents.get(uid).into_iter().flatten();
        let blocking = |node: &Node| node.owners.iter().any(|owner| owner.uid == uid && blocks(owner));
        dependents
            .filter_map(|uid| Some((uid.clone(), self.nodes.get(uid)?.clone())))
            .filter(|(_, node)| blocking(node))
            .collect()
    }

    /// Takes in an object's state.
    pub(super) fn apply(&mut self, kind: &Arc<Kind>, meta: &ObjectMeta) -> Vec<String> {
        let Some(uid) = meta.uid.clone() else { return Vec::new() };
        let mut look = Vec::new();
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|one| one == finalizer);
        let deleting = meta.deletion_timestamp.is_some();
        let new = Node {
            kind: kind.clone(),
            key: Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphaning: deleting && has(ORPHAN),
        };
        let old = self.nodes.insert(uid.clone(), new.clone());
        if old.is_none() {
            self.tally.note(kind, &new.key.namespace, true);
        }
        let before = old.as_ref().map(|old| old.owners.as_slice()).unwrap_or_default();
        for owner in before {
            let now = new.owners.iter().find(|one| one.uid == owner.uid);
            if now.is_none() {
                self.unlink(&owner.uid, &uid);
            }
            // No longer in the way of its owner's end.
            if blocks(owner) && !now.is_some_and(blocks) {
                look.push(owner.uid.clone());
            }
        }
        for owner in new.owners.iter().filter(|owner| !before.contains(owner)) {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            if !self.vouches(owner, &new.key.namespace) {
                look.push(uid.clone());
            }
        }
        if old.is_none() {
            // Objects that named it before it was known may name it wrongly.
            for dependent in self.dependents(&uid) {
                let wrong = self.nodes.get(&dependent).is_some_and(|node| {
                    let mut named = node.owners.iter().filter(|owner| owner.uid == uid);
                    named.any(|owner| !self.vouches(owner, &node.key.namespace))
                });
                if wrong {
                    look.push(dependent);
                }
            }
        }
        let began = |is: fn(&Node) -> bool| is(&new) && !old.as_ref().is_some_and(is);
        if began(|node| node.orphaning) {
            look.push(uid);
        } else if began(|node| node.foreground) {
            look.extend(self.dependents(&uid));
            look.push(uid);
        }
        look
    }

    /// Takes in that an object is gone.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let mut look = self.dependents(uid);
        if let Some(node) = self.nodes.remove(uid) {
            self.tally.note(&node.kind, &node.key.namespace, false);
            for owner in &node.owners {
                self.unlink(&owner.uid, uid);
                if self.nodes.get(&owner.uid).is_some_and(|owner| owner.foreground) {
                    look.push(owner.uid.clone());
                }
            }
        }
        look
    }

    /// Whether the owner is known and is what the reference says.
    fn vouches(&self, owner: &OwnerReference, namespace: &str) -> bool {
        self.nodes.get(&owner.uid).is_some_and(|node| {
            node.kind.resource.kind == owner.kind
                && node.key.name == owner.name
                && (node.key.namespace.is_empty() || node.key.namespace == namespace)
        })
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn kind(name: &str) -> Arc<Kind> {
        let resource = kube::core::ApiResource {
            group: String::new(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: name.into(),
            plural: format!("{}s", name.to_lowercase()),
        };
        Arc::new(Kind::new(resource, true))
    }

    fn meta(uid: &str, owners: &[(&str, bool)], more: Value) -> ObjectMeta {
        let owners: Vec<_> = owners
            .iter()
            .map(|(uid, block)| json!({"apiVersion": "v1", "kind": "Owner", "name": uid, "uid": uid, "blockOwnerDeletion": block}))
            .collect();
        let mut meta = json!({"name": uid, "namespace": "default", "uid": uid, "ownerReferences": owners});
        meta.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        serde_json::from_value(meta).expect("metadata")
    }

    #[test]
    fn dependents_are_looked_at_when_the_owner_goes() {
        let (owner, pod) = (kind("Owner"), kind("Pod"));
        let mut graph = Graph::default();
        assert!(graph.apply(&owner, &meta("o", &[], json!({}))).is_empty());
        assert!(graph.apply(&pod, &meta("p", &[("o", true)], json!({}))).is_empty());
        assert_eq!(graph.remove("o"), ["p"]);
        // An owner that is not known must be asked for.
        assert_eq!(graph.apply(&pod, &meta("q", &[("x", true)], json!({}))), ["q"]);
    }

    #[test]
    fn a_wrong_reference_is_looked_at_whichever_comes_first() {
        let (owner, pod) = (kind("Owner"), kind("Pod"));
        let mut graph = Graph::default();
        let elsewhere = || meta("o", &[], json!({"namespace": "other"}));
        graph.apply(&owner, &elsewhere());
        assert_eq!(graph.apply(&pod, &meta("p", &[("o", true)], json!({}))), ["p"]);
        let mut graph = Graph::default();
        graph.apply(&pod, &meta("p", &[("o", true)], json!({})));
        assert_eq!(graph.apply(&owner, &elsewhere()), ["p"]);
    }

    #[test]
    fn a_foreground_deletion_waits_for_what_blocks_it() {
        let (owner, pod) = (kind("Owner"), kind("Pod"));
        let mut graph = Graph::default();
        graph.apply(&owner, &meta("o", &[], json!({})));
        graph.apply(&pod, &meta("p", &[("o", true)], json!({})));
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]});
        assert_eq!(graph.apply(&owner, &meta("o", &[], deleted.clone())), ["p", "o"]);
        assert!(graph.apply(&owner, &meta("o", &[], deleted)).is_empty());
        assert_eq!(graph.blocking("o").len(), 1);
        assert_eq!(graph.apply(&pod, &meta("p", &[("o", false)], json!({}))), ["o"]);
        assert!(graph.blocking("o").is_empty());
        assert_eq!(graph.remove("p"), ["o"]);
    }
}
