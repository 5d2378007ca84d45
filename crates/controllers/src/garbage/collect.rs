//! What is done about one object: nothing, let go of owners that are gone, or delete.

use std::time::Duration;

use informer::EventType;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{
    DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use serde_json::{Value, json};

use super::Collector;
use super::graph::{FOREGROUND, Node, ORPHAN};
use crate::kit::discovery::Kind;
use crate::kit::error::found;
use crate::kit::{Error, Result};

/// An owner as the server has it.
enum Owner {
    /// Gone, or never there.
    Dangling,
    /// Waits for its dependents to be deleted.
    Waiting,
    Solid,
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|one| one == finalizer)
}

impl Collector {
    pub(super) async fn sync(&self, uid: &str) -> Result<Option<Duration>> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(None) };
        if node.orphaning {
            self.orphan(uid, &node).await?;
        } else if node.foreground {
            self.finish_foreground(uid, &node).await?;
        } else if !node.deleting {
            self.collect(uid, &node).await?;
        }
        Ok(None)
    }

    fn api(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
        } else {
            Api::all_with(self.client.clone(), &kind.resource)
        }
    }

    /// The object's metadata from the server, if it is still the same object.
    async fn live(&self, uid: &str, node: &Node) -> Result<Option<ObjectMeta>> {
        let api = self.api(&node.kind, &node.key.namespace);
        let found = api.get_metadata_opt(&node.key.name).await?;
        Ok(found.map(|object| object.metadata).filter(|meta| meta.uid.as_deref() == Some(uid)))
    }

    async fn patch(&self, node: &Node, meta: &ObjectMeta, change: Value) -> Result<()> {
        let mut patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}});
        if let (Some(to), Some(from)) = (patch["metadata"].as_object_mut(), change.as_object()) {
            to.extend(from.clone());
        }
        let api = self.api(&node.kind, &node.key.namespace);
        found(api.patch_metadata(&node.key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        Ok(())
    }

    async fn remove_finalizer(&self, uid: &str, node: &Node, finalizer: &str) -> Result<()> {
        let Some(meta) = self.live(uid, node).await?.filter(|meta| has(meta, finalizer)) else {
            return Ok(());
        };
        let left: Vec<_> = meta.finalizers.iter().flatten().filter(|one| *one != finalizer).collect();
        self.patch(node, &meta, json!({"finalizers": left})).await
    }

    /// Lets the dependents go, and then the owner.
    async fn orphan(&self, uid: &str, node: &Node) -> Result<()> {
        let dependents = self.graph.lock().dependents(uid);
        for dependent in dependents {
            let Some(child) = self.graph.lock().get(&dependent).cloned() else { continue };
            let Some(meta) = self.live(&dependent, &child).await? else { continue };
            self.drop_owners(&child, &meta, &[uid]).await?;
        }
        self.remove_finalizer(uid, node, ORPHAN).await
    }

    async fn drop_owners(&self, node: &Node, meta: &ObjectMeta, gone: &[&str]) -> Result<()> {
        let owners = meta.owner_references.as_deref().unwrap_or_default();
        let left: Vec<_> = owners.iter().filter(|owner| !gone.contains(&owner.uid.as_str())).collect();
        if left.len() == owners.len() {
            return Ok(());
        }
        self.patch(node, meta, json!({"ownerReferences": left})).await
    }

    async fn finish_foreground(&self, uid: &str, node: &Node) -> Result<()> {
        let blocking = self.graph.lock().blocking(uid);
        if blocking.is_empty() {
            return self.remove_finalizer(uid, node, FOREGROUND).await;
        }
        for (dependent, child) in blocking {
            if !child.foreground {
                self.queue.add(dependent);
            }
        }
        Ok(())
    }

    async fn collect(&self, uid: &str, node: &Node) -> Result<()> {
        let Some(meta) = self.live(uid, node).await? else {
            // Its deletion will be seen, or it never was what the graph says.
            self.remove(uid);
            return Ok(());
        };
        let owners = meta.owner_references.clone().unwrap_or_default();
        if owners.is_empty() {
            return Ok(());
        }
        let (mut solid, mut waiting, mut dangling) = (false, Vec::new(), Vec::new());
        for owner in &owners {
            match self.look_up(owner, node, uid).await? {
                None => return Ok(()),
                Some(Owner::Solid) => solid = true,
                Some(Owner::Waiting) => waiting.push(owner.uid.as_str()),
                Some(Owner::Dangling) => dangling.push(owner.uid.as_str()),
            }
        }
        if solid {
            dangling.extend(waiting);
            return self.drop_owners(node, &meta, &dangling).await;
        }
        let dependents = self.graph.lock().dependents(uid);
        let policy = if !waiting.is_empty() && !dependents.is_empty() {
            let in_a_circle = {
                let graph = self.graph.lock();
                dependents.iter().any(|one| graph.get(one).is_some_and(|node| node.foreground))
            };
            if in_a_circle {
                let open: Vec<_> = owners
                    .iter()
                    .map(|owner| OwnerReference { block_owner_deletion: Some(false), ..owner.clone() })
                    .collect();
                if open != owners {
                    self.patch(node, &meta, json!({"ownerReferences": open})).await?;
                    return Err(Error::Stale);
                }
            }
            PropagationPolicy::Foreground
        } else if has(&meta, ORPHAN) {
            PropagationPolicy::Orphan
        } else if has(&meta, FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        found(self.api(&node.kind, &node.key.namespace).delete(&node.key.name, &params).await)?;
        Ok(())
    }

    /// Asks the server for an owner. `None`: the reference can never be right, so it decides nothing.
    async fn look_up(&self, owner: &OwnerReference, item: &Node, uid: &str) -> Result<Option<Owner>> {
        let Some(kind) = self.kind_of(owner) else {
            return Err(Error::UnknownKind(format!("{}/{}", owner.api_version, owner.kind)));
        };
        if kind.namespaced && item.key.namespace.is_empty() {
            self.report(owner, item, uid);
            return Ok(None);
        }
        let found = self.api(&kind, &item.key.namespace).get_metadata_opt(&owner.name).await?;
        let Some(meta) =
            found.map(|found| found.metadata).filter(|meta| meta.uid.as_ref() == Some(&owner.uid))
        else {
            let elsewhere = self.graph.lock().get(&owner.uid).is_some_and(|node| {
                !node.key.namespace.is_empty() && node.key.namespace != item.key.namespace
            });
            if elsewhere {
                self.report(owner, item, uid);
            }
            return Ok(Some(Owner::Dangling));
        };
        let waiting = meta.deletion_timestamp.is_some() && has(&meta, FOREGROUND);
        Ok(Some(if waiting { Owner::Waiting } else { Owner::Solid }))
    }

    fn kind_of(&self, owner: &OwnerReference) -> Option<std::sync::Arc<Kind>> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let kinds = self.kinds.lock();
        kinds.iter().find(|kind| kind.resource.group == group && kind.resource.kind == owner.kind).cloned()
    }

    fn report(&self, owner: &OwnerReference, item: &Node, uid: &str) {
        let about = ObjectReference {
            api_version: Some(item.kind.resource.api_version.clone()),
            kind: Some(item.kind.resource.kind.clone()),
            namespace: Some(item.key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(item.key.name.clone()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let message = format!(
            "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace {:?}",
            owner.api_version, owner.kind, item.key.namespace, owner.name, owner.uid, item.key.namespace
        );
        self.recorder.event(about, EventType::Warning, "OwnerRefInvalidNamespace", message);
    }
}
