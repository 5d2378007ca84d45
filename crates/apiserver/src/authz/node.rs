//! What a kubelet may see and do: its own Node and lease, the pods bound to it, and what these refer to
//! (upstream: `plugin/pkg/auth/authorizer/node`). The relations are looked up in the watch cache when asked for; there is no
//! graph to keep in step, only a note per pod of what it refers to, as of the pod's revision.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::references;
use super::rule::Rule;
use crate::read::Read;
use crate::{Attributes, ClusterRef, Decision, UserInfo};

/// The Node authorizer.
pub struct NodeAuthorizer {
    cluster: ClusterRef,
    rules: Vec<Rule>,
    /// By namespace and key.
    notes: Mutex<HashMap<String, HashMap<Arc<str>, (u64, Arc<Note>)>>>,
}

/// What a pod refers to.
struct Note {
    node: String,
    account: String,
    secrets: Vec<String>,
    config_maps: Vec<String>,
    volume_claims: Vec<String>,
    resource_claims: Vec<String>,
}

impl Note {
    fn new(pod: &Value) -> Self {
        let owned = |names: &mut dyn Iterator<Item = &str>| names.map(str::to_owned).collect();
        Self {
            // A mirror pod gives no rights: the node itself writes it.
            node: match pod.annotation("kubernetes.io/config.mirror") {
                None => pod.text("spec.nodeName").to_owned(),
                Some(_) => String::new(),
            },
            account: pod.text("spec.serviceAccountName").to_owned(),
            secrets: owned(&mut references::secrets(pod)),
            config_maps: owned(&mut references::config_maps(pod)),
            volume_claims: references::volume_claims(pod).collect(),
            resource_claims: owned(&mut references::resource_claims(pod)),
        }
    }
}

/// The node's name if the caller is a kubelet. `Some("")`: a kubelet that does not say which.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix("system:node:")?;
    user.in_group("system:nodes").then_some(name)
}

impl NodeAuthorizer {
    /// `rules` are what every node may do with resources that are not cut up by node.
    pub fn new(cluster: ClusterRef, rules: Vec<Rule>) -> Self {
        Self { cluster, rules, notes: Mutex::default() }
    }

    /// The decision about a request; of other callers than nodes there is no opinion.
    pub fn authorize(&self, request: &Attributes) -> Decision {
        let Some(node) = node_name(&request.user) else { return Decision::no_opinion("") };
        if node.is_empty() {
            return Decision::no_opinion(format!("unknown node for user {:?}", request.user.name));
        }
        if request.resource_request {
            match (request.group.as_str(), request.resource.as_str()) {
                ("", "secrets" | "configmaps") => return self.read_namespaced(node, request),
                ("", "persistentvolumeclaims") if request.subresource == "status" => {
                    return match request.verb.as_str() {
                        "update" | "patch" => self.related(node, request),
                        _ => Decision::no_opinion("can only get/update/patch this type"),
                    };
                }
                ("", "persistentvolumeclaims" | "persistentvolumes")
                | ("resource.k8s.io", "resourceclaims")
                | ("storage.k8s.io", "volumeattachments") => return self.get(node, request),
                ("", "serviceaccounts") => return self.service_account(node, request),
                ("coordination.k8s.io", "leases") => return lease(node, request),
                ("storage.k8s.io", "csinodes") => return csi_node(node, request),
                ("resource.k8s.io", "resourceslices") => return self.slice(node, request),
                ("", "nodes") => return own_node(node, request),
                ("", "pods") => return self.pod(node, request),
                ("certificates.k8s.io", "podcertificaterequests") => return Decision::no_opinion(""),
                _ => {}
            }
        }
        if self.rules.iter().any(|rule| rule.allows(request)) {
            Decision::allow("")
        } else {
            Decision::no_opinion("")
        }
    }

    fn get(&self, node: &str, request: &Attributes) -> Decision {
        if request.verb != "get" {
            return Decision::no_opinion("can only get individual resources of this type");
        }
        if !request.subresource.is_empty() {
            return Decision::no_opinion("cannot get subresource");
        }
        self.related(node, request)
    }

    fn read_namespaced(&self, node: &str, request: &Attributes) -> Decision {
        if !matches!(request.verb.as_str(), "get" | "list" | "watch") {
            return Decision::no_opinion("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return Decision::no_opinion("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return Decision::no_opinion("can only read namespaced object of this type");
        }
        self.related(node, request)
    }

    fn service_account(&self, node: &str, request: &Attributes) -> Decision {
        if request.verb == "get" && request.subresource.is_empty() {
            return self.read_namespaced(node, request);
        }
        if request.verb != "create" || request.name.is_empty() {
            return Decision::no_opinion("can only create tokens for individual service accounts");
        }
        if request.subresource != "token" {
            return Decision::no_opinion("can only create token subresource of serviceaccount");
        }
        self.related(node, request)
    }

    fn slice(&self, node: &str, request: &Attributes) -> Decision {
        if !request.subresource.is_empty() {
            return Decision::no_opinion("cannot authorize ResourceSlice subresources");
        }
        match request.verb.as_str() {
            // NodeRestriction looks at the node that the new slice names.
            "create" => Decision::allow(""),
            "get" | "update" | "patch" | "delete" => self.related(node, request),
            "watch" | "list" | "deletecollection" if selects(request, "spec.nodeName", node) => {
                Decision::allow("")
            }
            "watch" | "list" | "deletecollection" => Decision::no_opinion(
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => Decision::no_opinion(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, request: &Attributes) -> Decision {
        match (request.subresource.as_str(), request.verb.as_str()) {
            ("", "get") => self.get(node, request),
            ("", "list" | "watch") if selects(request, "spec.nodeName", node) => Decision::allow(""),
            ("", "list" | "watch") if !request.name.is_empty() => self.related(node, request),
            ("", "list" | "watch") => {
                Decision::no_opinion("can only list/watch pods with spec.nodeName field selector")
            }
            // Mirror pods, statuses and evictions; NodeRestriction narrows them to the node's own pods.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Decision::allow("")
            }
            _ => Decision::no_opinion(""),
        }
    }

    fn related(&self, node: &str, request: &Attributes) -> Decision {
        if request.name.is_empty() {
            return Decision::no_opinion("No Object name found");
        }
        if self.is_related(node, &request.resource, &request.namespace, &request.name) {
            Decision::allow("")
        } else {
            Decision::no_opinion(format!("no relationship found between node '{node}' and this object"))
        }
    }

    fn is_related(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let on_node = |group: &str, kind: &str, space: &str| {
            self.cluster.get(group, kind, space, name).is_some_and(|o| o.text("spec.nodeName") == node)
        };
        let pods_refer = |test: &dyn Fn(&Note) -> bool| self.pods(node, namespace).iter().any(|p| test(p));
        let listed = |names: &[String]| names.iter().any(|n| n == name);
        match resource {
            "pods" => on_node("", "pods", namespace),
            "volumeattachments" => on_node("storage.k8s.io", "volumeattachments", ""),
            "resourceslices" => on_node("resource.k8s.io", "resourceslices", ""),
            "serviceaccounts" => pods_refer(&|pod| pod.account == name),
            "configmaps" => pods_refer(&|pod| listed(&pod.config_maps)),
            "persistentvolumeclaims" => pods_refer(&|pod| listed(&pod.volume_claims)),
            "resourceclaims" => pods_refer(&|pod| listed(&pod.resource_claims)),
            "persistentvolumes" => self
                .cluster
                .get("", "persistentvolumes", "", name)
                .is_some_and(|volume| self.uses_volume(node, &volume)),
            "secrets" => {
                pods_refer(&|pod| listed(&pod.secrets))
                    || self.cluster.list("", "persistentvolumes", None).items.iter().any(|volume| {
                        references::volume_secrets(volume).any(|(space, n)| space == namespace && n == name)
                            && self.uses_volume(node, volume)
                    })
            }
            _ => false,
        }
    }

    fn uses_volume(&self, node: &str, volume: &Value) -> bool {
        let (namespace, claim) = (volume.text("spec.claimRef.namespace"), volume.text("spec.claimRef.name"));
        !claim.is_empty()
            && self.pods(node, namespace).iter().any(|pod| pod.volume_claims.iter().any(|n| n == claim))
    }

    /// The node's pods of a namespace.
    fn pods(&self, node: &str, namespace: &str) -> Vec<Arc<Note>> {
        let versions = self.cluster.versions("", "pods", namespace);
        let mut notes = self.notes.lock();
        let mut old = notes.remove(namespace).unwrap_or_default();
        let mut new = HashMap::with_capacity(versions.len());
        for (key, revision) in versions {
            let note = match old.remove(&key).filter(|(seen, _)| *seen == revision) {
                Some((_, note)) => note,
                None => {
                    let name = key.rsplit('/').next().unwrap_or_default();
                    let Some(pod) = self.cluster.get("", "pods", namespace, name) else { continue };
                    Arc::new(Note::new(&pod))
                }
            };
            new.insert(key, (revision, note));
        }
        let own =
            new.values().filter(|(_, note)| note.node == node).map(|(_, note)| Arc::clone(note)).collect();
        if !new.is_empty() {
            notes.insert(namespace.to_owned(), new);
        }
        own
    }
}

fn lease(node: &str, request: &Attributes) -> Decision {
    let verb = request.verb.as_str();
    if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::no_opinion("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != "kube-node-lease" {
        return Decision::no_opinion("can only access leases in the \"kube-node-lease\" system namespace");
    }
    // The name of a new lease is not in the URL; NodeRestriction looks at it.
    if verb != "create" && request.name != node {
        return Decision::no_opinion("can only access node lease with the same name as the requesting node");
    }
    Decision::allow("")
}

fn csi_node(node: &str, request: &Attributes) -> Decision {
    let verb = request.verb.as_str();
    if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::no_opinion("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return Decision::no_opinion("cannot authorize CSINode subresources");
    }
    if verb != "create" && request.name != node {
        return Decision::no_opinion("can only access CSINode with the same name as the requesting node");
    }
    Decision::allow("")
}

fn own_node(node: &str, request: &Attributes) -> Decision {
    match (request.subresource.as_str(), request.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::allow(""),
        ("", "get" | "list" | "watch") => match request.name.as_str() {
            name if name == node => Decision::allow(""),
            "" => {
                Decision::no_opinion(format!("node '{node}' cannot read all nodes, only its own Node object"))
            }
            other => {
                Decision::no_opinion(format!("node '{node}' cannot read '{other}', only its own Node object"))
            }
        },
        _ => Decision::no_opinion(""),
    }
}

/// Whether the request's field selector demands `field=value`.
fn selects(request: &Attributes, field: &str, value: &str) -> bool {
    let selector = request.field_selector.as_deref().unwrap_or_default();
    selector.split(',').any(|term| {
        let Some((key, wanted)) = term.split_once('=') else { return false };
        !key.ends_with('!') && key == field && wanted.strip_prefix('=').unwrap_or(wanted) == value
    })
}
