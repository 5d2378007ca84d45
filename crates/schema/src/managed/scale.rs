//! The scale subresource: the owners of an object's replica count are the owners of `spec.replicas` in its Scale, and the
//! other way round.

use serde_json::Value;

use super::entries::{self, Managers, Owned};
use super::set::{Set, field};

const SCALE_VERSION: &str = "autoscaling/v1";

fn in_scale() -> Vec<String> {
    vec![field("spec"), field("replicas")]
}

fn single(path: &[String]) -> Set {
    let mut set = Set::default();
    set.insert(path);
    set
}

/// Where each version of a kind keeps its replica count, in path elements; `None` for a version that is not served.
pub type ReplicasPath<'a> = &'a dyn Fn(&str) -> Option<Vec<String>>;

/// The path elements of a JSON pointer that leads through objects alone.
pub fn path_of(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(field).collect()
}

/// The managedFields of an object's Scale.
pub fn to_scale(parent: Option<&Value>, path: ReplicasPath<'_>) -> Vec<Value> {
    let mut scale = Managers::new();
    for (manager, owned) in entries::decode(parent).unwrap_or_default() {
        if path(&owned.api_version).is_some_and(|path| owned.set.has(&path)) {
            let set = single(&in_scale());
            scale.insert(manager, Owned { set, api_version: SCALE_VERSION.to_owned(), time: owned.time });
        }
    }
    entries::encode(&scale)
}

/// The managedFields of an object whose Scale was written at `api_version`. As in the reference, an owner that comes from
/// the Scale has no time.
pub fn to_parent(
    parent: Option<&Value>,
    scale: Option<&Value>,
    api_version: &str,
    path: ReplicasPath<'_>,
) -> Vec<Value> {
    let mut scaled = entries::decode(scale).unwrap_or_default();
    // An updater's version is part of what it is; the two sides name different ones.
    let mut take = |name: &str, applied: bool, subresource: &str| {
        let key = scaled
            .keys()
            .find(|m| m.name == name && m.applied == applied && m.subresource == subresource)
            .cloned();
        key.and_then(|key| scaled.remove(&key))
    };
    let mut out = Managers::new();
    for (manager, owned) in entries::decode(parent).unwrap_or_default() {
        let Some(path) = path(&owned.api_version) else { continue };
        if !owned.set.has(&path) || take(&manager.name, manager.applied, &manager.subresource).is_some() {
            out.insert(manager, owned);
            continue;
        }
        let set = owned.set.difference(&single(&path));
        if !set.is_empty() {
            out.insert(manager, Owned { set, ..owned });
        }
    }
    let Some(path) = path(api_version) else { return entries::encode(&out) };
    for (mut manager, owned) in scaled {
        if owned.set.has(&in_scale()) {
            if !manager.applied {
                manager.api_version = api_version.to_owned();
            }
            let set = single(&path);
            out.insert(manager, Owned { set, api_version: api_version.to_owned(), time: None });
        }
    }
    entries::encode(&out)
}
