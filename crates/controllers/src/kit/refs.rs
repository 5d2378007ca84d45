//! Owner references: who controls an object, and taking over or letting go of objects by their labels.

use std::fmt::Debug;
use std::sync::Arc;

use informer::{Key, Object};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde_json::json;

use super::error::found;
use super::{Error, Result};

/// The reference to the controller of an object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether `owner` controls the object.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, owner: &ObjectMeta) -> bool {
    owner.uid.is_some() && controller_of(meta).map(|owner| &owner.uid) == owner.uid.as_ref()
}

/// The reference by which `owner` controls what it makes.
pub(crate) fn reference_to<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The key of the controller, if it is of this kind.
pub(crate) fn controller_key<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<(Key, &str)> {
    let owner = controller_of(meta)?;
    let group =
        |version: &str| version.split_once('/').map(|(group, _)| group.to_owned()).unwrap_or_default();
    if owner.kind != K::kind(&()) || group(&owner.api_version) != K::group(&()) {
        return None;
    }
    Some((Key::new(meta.namespace.clone().unwrap_or_default(), owner.name.clone()), &owner.uid))
}

/// Of `objects`, those that `owner` controls and selects: adopts orphans that it selects, and lets go of those
/// it controls but does not select (KEP "controller-ref").
pub(crate) async fn claim<O, K>(
    client: &Client,
    owner: &O,
    objects: Vec<Arc<K>>,
    selects: impl Fn(&K) -> bool,
    finalizers: &[&str],
) -> Result<Vec<Arc<K>>>
where
    O: Object + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Object + Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize,
{
    let mut claimed = Vec::with_capacity(objects.len());
    let mut may_adopt = false;
    let mut failed = None;
    let leaving = owner.meta().deletion_timestamp.is_some();
    for object in objects {
        let result = match controller_of(object.meta()) {
            Some(controller) if Some(&controller.uid) != owner.meta().uid.as_ref() => continue,
            Some(_) if selects(&object) => Ok(true),
            Some(_) if leaving => continue,
            Some(_) => release(client, owner.meta(), object.as_ref()).await.map(|()| false),
            None if leaving || object.meta().deletion_timestamp.is_some() || !selects(&object) => continue,
            None => {
                if !may_adopt {
                    recheck(client, owner).await?;
                    may_adopt = true;
                }
                adopt(client, owner, object.as_ref(), finalizers).await
            }
        };
        match result {
            Ok(true) => claimed.push(object),
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(claimed), Err)
}

/// Before adopting, asks the server whether the owner is still there and staying.
pub(crate) async fn recheck<O>(client: &Client, owner: &O) -> Result<()>
where
    O: Object + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let name = owner.meta().name.as_deref().unwrap_or_default();
    let api = Api::<O>::namespaced(client.clone(), owner.meta().namespace.as_deref().unwrap_or_default());
    let fresh = api.get(name).await?;
    if fresh.meta().uid != owner.meta().uid {
        return Err(Error::Replaced(name.to_owned()));
    }
    if fresh.meta().deletion_timestamp.is_some() {
        return Err(Error::Deleting(name.to_owned()));
    }
    Ok(())
}

async fn adopt<O, K>(client: &Client, owner: &O, object: &K, finalizers: &[&str]) -> Result<bool>
where
    O: Resource<DynamicType = ()>,
    K: Object + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let mut patch = json!({
        "metadata": {"uid": object.meta().uid, "ownerReferences": [reference_to(owner)]}
    });
    if !finalizers.is_empty() {
        patch["metadata"]["finalizers"] = json!(finalizers);
    }
    Ok(found(apply(client, object, &Patch::Strategic(patch)).await)?.is_some())
}

async fn release<K>(client: &Client, owner: &ObjectMeta, object: &K) -> Result<()>
where
    K: Object + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let patch = json!({
        "metadata": {"uid": object.meta().uid, "ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}
    });
    match apply(client, object, &Patch::Strategic(patch)).await {
        // Gone, or a new object under the same name: either way not ours any more.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

async fn apply<K, P: Serialize + Debug>(
    client: &Client,
    object: &K,
    patch: &Patch<P>,
) -> std::result::Result<K, kube::Error>
where
    K: Object + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    let api = Api::<K>::namespaced(client.clone(), namespace);
    api.patch(object.meta().name.as_deref().unwrap_or_default(), &PatchParams::default(), patch).await
}
