//! A cluster in memory for unit tests of the hooks.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt, ready};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::read::{Read, object_mut};
use crate::{Attributes, Cluster, ClusterRef, Gvk, Gvr, Snapshot, Status, UserInfo};

type Key = (String, String, String, String);

/// Objects by group, resource, namespace and name.
#[derive(Default)]
pub(crate) struct FakeCluster {
    objects: Mutex<BTreeMap<Key, (u64, Arc<Value>)>>,
    revision: Mutex<u64>,
    /// Written, but in no cache until somebody asks for the newest state.
    on_the_way: Mutex<Vec<(String, String, Value)>>,
}

impl FakeCluster {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Puts an object; its uid is its name with `-uid` unless it has one.
    pub(crate) fn put(&self, group: &str, resource: &str, mut object: Value) -> Arc<Value> {
        if object.uid().is_empty() {
            let uid = format!("{}-uid", object.name());
            object_mut(&mut object, "metadata").insert("uid".into(), uid.into());
        }
        let key = (group.into(), resource.into(), object.namespace().to_owned(), object.name().to_owned());
        let object = Arc::new(object);
        let mut revision = self.revision.lock();
        *revision += 1;
        self.objects.lock().insert(key, (*revision, Arc::clone(&object)));
        object
    }

    /// Puts an object that is seen only once somebody has asked for the newest state.
    pub(crate) fn put_late(&self, group: &str, resource: &str, object: Value) {
        self.on_the_way.lock().push((group.to_owned(), resource.to_owned(), object));
    }

    pub(crate) fn remove(&self, group: &str, resource: &str, namespace: &str, name: &str) {
        self.objects.lock().remove(&(group.into(), resource.into(), namespace.into(), name.into()));
        *self.revision.lock() += 1;
    }

    pub(crate) fn shared(self: &Arc<Self>) -> ClusterRef {
        Arc::clone(self) as ClusterRef
    }
}

impl Cluster for FakeCluster {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (group.into(), resource.into(), namespace.into(), name.into());
        self.objects.lock().get(&key).map(|(_, object)| Arc::clone(object))
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Snapshot {
        let objects = self.objects.lock();
        let items = objects
            .iter()
            .filter(|((g, r, n, _), _)| g == group && r == resource && namespace.is_none_or(|ns| n == ns))
            .map(|(_, (_, object))| Arc::clone(object))
            .collect();
        Snapshot { revision: *self.revision.lock(), items }
    }

    fn versions(&self, group: &str, resource: &str, namespace: &str) -> Vec<(Arc<str>, u64)> {
        let objects = self.objects.lock();
        objects
            .iter()
            .filter(|((g, r, n, _), _)| g == group && r == resource && n == namespace)
            .map(|((_, _, n, name), (revision, _))| (Arc::from(format!("{n}/{name}")), *revision))
            .collect()
    }

    fn changed(&self, _: &str, _: &str) -> u64 {
        *self.revision.lock()
    }

    fn fresh<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, ()> {
        for (group, resource, object) in std::mem::take(&mut *self.on_the_way.lock()) {
            self.put(&group, &resource, object);
        }
        ready(()).boxed()
    }

    fn create<'a>(
        &'a self,
        group: &'a str,
        _: &'a str,
        resource: &'a str,
        namespace: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        let taken = self.get(group, resource, namespace, object.name()).is_some();
        let result = if taken {
            Err(Status::already_exists(group, resource, object.name()))
        } else {
            Ok((*self.put(group, resource, object)).clone())
        };
        ready(result).boxed()
    }

    fn update<'a>(
        &'a self,
        group: &'a str,
        _: &'a str,
        resource: &'a str,
        _: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        ready(Ok((*self.put(group, resource, object)).clone())).boxed()
    }

    fn update_status<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        self.update(group, version, resource, namespace, object)
    }

    fn delete<'a>(
        &'a self,
        group: &'a str,
        _: &'a str,
        resource: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<(), Status>> {
        self.remove(group, resource, namespace, name);
        ready(Ok(())).boxed()
    }

    fn serves(&self, _: &str, _: &str) -> bool {
        true
    }

    fn equivalents(&self, resource: &Gvr, _: &str) -> Vec<(Gvr, Gvk)> {
        let row = api::resources().iter().filter(|r| r.plural == resource.resource);
        let others = row.filter(|r| r.group == resource.group && r.version != resource.version);
        others
            .map(|r| {
                let (group, version) = (r.group.to_string(), r.version.to_string());
                let kind = Gvk { group: group.clone(), version: version.clone(), kind: r.kind.to_string() };
                (Gvr { group, version, resource: resource.resource.clone() }, kind)
            })
            .collect()
    }

    fn convert<'a>(
        &'a self,
        _: &'a Gvr,
        to: &'a Gvr,
        mut object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        object["apiVersion"] = format!("{}/{}", to.group, to.version).into();
        ready(Ok(object)).boxed()
    }

    fn complete(
        &self,
        _: &Gvr,
        _: &str,
        _: &Gvk,
        object: Value,
        _: schema::FieldValidation,
    ) -> Result<Value, Status> {
        Ok(object)
    }

    fn overlay(&self, _: &Gvr, _: &Gvk, object: &Value, config: &Value) -> Result<Value, String> {
        Ok(schema::merge_patch(object, config))
    }

    fn resource_of(&self, kind: &Gvk) -> Option<(Gvr, bool)> {
        let row = api::resources().find_kind(&kind.group, &kind.version, &kind.kind)?;
        let (group, version) = (kind.group.clone(), kind.version.clone());
        Some((Gvr { group, version, resource: row.plural.to_string() }, row.namespaced))
    }
}

/// A user in groups.
pub(crate) fn user(name: &str, groups: &[&str]) -> Arc<UserInfo> {
    let groups = groups.iter().map(|g| (*g).to_owned()).collect();
    Arc::new(UserInfo { name: name.to_owned(), groups, ..UserInfo::default() })
}

/// A request for a resource: `group/resource[/subresource]`, the group empty for the core group.
pub(crate) fn ask(
    user: &Arc<UserInfo>,
    verb: &str,
    resource: &str,
    namespace: &str,
    name: &str,
) -> Attributes {
    let mut parts = resource.split('/');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    Attributes {
        user: Arc::clone(user),
        verb: verb.to_owned(),
        group: part(),
        version: "v1".to_owned(),
        resource: part(),
        subresource: part(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        resource_request: true,
        ..Attributes::default()
    }
}

/// A Role or ClusterRole (no namespace) with these rules.
pub(crate) fn role(namespace: &str, name: &str, rules: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace}, "rules": rules})
}

/// A binding of a role to one subject.
pub(crate) fn bind(namespace: &str, name: &str, kind: &str, role: &str, subject: Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [subject],
    })
}
