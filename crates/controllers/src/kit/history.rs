//! Revisions: hashes by which templates are told apart, and the ControllerRevisions that keep them.

use std::sync::Arc;

use informer::{Informer, Object};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::{Client, Resource};
use scheduling::selector::{labels_of, matches};
use serde::Serialize;
use serde_json::{Value, json};

use super::error::found;
use super::refs::{claim, is_controlled_by, reference_to};
use super::{Error, Result};

/// The label that names the revision of a pod or of a ControllerRevision.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";

/// Letters and digits that cannot form words, as the reference uses in generated names.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short hash of a value, changed by the number of collisions so far.
pub(crate) fn hash(value: &impl Serialize, collisions: Option<i32>) -> String {
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut sum: u32 = 2_166_136_261;
    let mut eat = |byte: u8| {
        sum = (sum ^ u32::from(byte)).wrapping_mul(16_777_619);
    };
    bytes.into_iter().for_each(&mut eat);
    if let Some(collisions) = collisions {
        collisions.to_le_bytes().into_iter().for_each(&mut eat);
    }
    sum.to_string().bytes().map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()])).collect()
}

/// The data of a revision: the patch that brings a template back.
pub(crate) fn template_patch(template: &impl Serialize) -> Result<Value> {
    let mut template = serde_json::to_value(template)?;
    template["$patch"] = json!("replace");
    Ok(json!({"spec": {"template": template}}))
}

fn data(revision: &ControllerRevision) -> Option<&Value> {
    revision.data.as_ref().map(|data| &data.0)
}

pub(crate) fn hash_of(revision: &ControllerRevision) -> &str {
    let label = revision.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH));
    label.or(revision.metadata.name.as_ref()).map(String::as_str).unwrap_or_default()
}

/// The revisions of an owner, oldest first.
pub(crate) struct History {
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
}

impl History {
    /// The revisions that `owner` has, taking over those that it selects.
    pub(crate) async fn of<O>(
        client: &Client,
        cache: &Informer<ControllerRevision>,
        owner: &O,
        selector: &LabelSelector,
    ) -> Result<Self>
    where
        O: Object + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let mut all = cache.controlled_by(owner.meta().uid.as_deref().unwrap_or_default());
        all.extend(cache.orphans(owner.meta().namespace.as_deref().unwrap_or_default()));
        let selects = |one: &ControllerRevision| matches(selector, labels_of(&one.metadata.labels));
        let mut revisions = claim(client, owner, all, selects, &[]).await?;
        revisions
            .sort_by(|a, b| a.revision.cmp(&b.revision).then_with(|| a.metadata.name.cmp(&b.metadata.name)));
        Ok(Self { revisions })
    }

    /// The revision with this patch, made or moved to the end if need be. A name that is taken by something else is
    /// an [`Error::Collision`].
    pub(crate) async fn current<O>(
        &mut self,
        client: &Client,
        owner: &O,
        labels: Option<&std::collections::BTreeMap<String, String>>,
        patch: &Value,
        (label, hash): (&str, &str),
    ) -> Result<Arc<ControllerRevision>>
    where
        O: Resource<DynamicType = ()>,
    {
        let api = revisions_of(client, owner.meta());
        let next = self.revisions.last().map_or(1, |last| last.revision + 1);
        if let Some(at) = self.revisions.iter().rposition(|one| data(one) == Some(patch)) {
            let found = self.revisions.remove(at);
            let found = if at == self.revisions.len() {
                found
            } else {
                let mut copy = found.as_ref().clone();
                copy.revision = next;
                let name = copy.metadata.name.clone().unwrap_or_default();
                Arc::new(api.replace(&name, &PostParams::default(), &copy).await?)
            };
            self.revisions.push(found.clone());
            return Ok(found);
        }
        let name = format!("{}-{hash}", owner.meta().name.as_deref().unwrap_or_default());
        let mut labels = labels.cloned().unwrap_or_default();
        labels.insert(label.into(), hash.to_owned());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: owner.meta().namespace.clone(),
                labels: Some(labels),
                annotations: owner.meta().annotations.clone(),
                owner_references: Some(vec![reference_to(owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(patch.clone())),
            revision: next,
        };
        let made = match api.create(&PostParams::default(), &revision).await.map_err(Error::from) {
            Ok(made) => made,
            Err(error) if error.is_already_exists() => {
                let there = api.get(&name).await?;
                if data(&there) != Some(patch) || !is_controlled_by(&there.metadata, owner.meta()) {
                    return Err(Error::Collision(name));
                }
                there
            }
            Err(error) => return Err(error),
        };
        let made = Arc::new(made);
        self.revisions.push(made.clone());
        Ok(made)
    }

    /// Deletes the oldest revisions that nothing uses, down to `limit` beside those in use.
    pub(crate) async fn truncate(
        &self,
        client: &Client,
        owner: &ObjectMeta,
        limit: i32,
        in_use: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let unused: Vec<_> = self.revisions.iter().filter(|one| !in_use(hash_of(one))).collect();
        let surplus = unused.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
        for revision in unused.into_iter().take(surplus) {
            let name = revision.metadata.name.as_deref().unwrap_or_default();
            found(revisions_of(client, owner).delete(name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }
}

fn revisions_of(client: &Client, owner: &ObjectMeta) -> Api<ControllerRevision> {
    Api::namespaced(client.clone(), owner.namespace.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions_change_the_hash() {
        let first = hash(&"template", None);
        assert_eq!(first, hash(&"template", None));
        assert_ne!(first, hash(&"template", Some(1)));
        assert_ne!(first, hash(&"other", None));
        assert!(first.bytes().all(|byte| SAFE.contains(&byte)));
    }
}
