//! The cache of one kind, filled by one watch: a map by namespace and name with indexes by controlling
//! owner, by node and for orphans. Handlers are told of each change in order, after the cache shows it.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use kube::api::ObjectMeta;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// What a kind must be to be cached.
pub trait Object:
    Resource<DynamicType: Default> + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static
{
}
impl<K> Object for K where
    K: Resource<DynamicType: Default> + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static
{
}

/// Namespace and name; the namespace is empty for cluster-scoped kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace, or the empty string.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One change, as a handler sees it.
pub enum Change<'a, K> {
    /// The object exists in this state; `old` is what was known before.
    Applied { old: Option<&'a Arc<K>>, new: &'a Arc<K> },
    /// The object is gone; this is the last that was known of it.
    Deleted(&'a Arc<K>),
}

impl<'a, K> Change<'a, K> {
    /// The newest state known.
    pub fn latest(&self) -> &'a Arc<K> {
        match self {
            Change::Applied { new, .. } => new,
            Change::Deleted(last) => last,
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    index: HashMap<String, BTreeSet<Key>>,
}

/// The shared cache of one kind.
pub struct Informer<K> {
    state: RwLock<State<K>>,
    // Held while a change is applied and told, so that handlers see changes in order and a new handler
    // misses none. Handlers may read any cache; they never hold `state`.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K: Object> Default for Informer<K> {
    fn default() -> Self {
        Self {
            state: RwLock::new(State { objects: BTreeMap::new(), index: HashMap::new() }),
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        }
    }
}

impl<K: Object> Informer<K> {
    /// Calls `handler` for every object there is and then for every change. It runs on the watch's task:
    /// it should only look things up and add to a queue.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.handlers.lock();
        for new in self.list() {
            handler(&Change::Applied { old: None, new: &new });
        }
        handlers.push(Box::new(handler));
    }

    /// Resolves once the first list is in the cache.
    pub async fn synced(&self) {
        let mut seen = self.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = seen.wait_for(|done| *done).await;
    }

    /// Whether the first list is in the cache.
    pub fn has_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.state.read().objects.get(key).cloned()
    }

    /// One object by its parts.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get(&Key::new(namespace, name))
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.state.read().objects.values().cloned().collect()
    }

    /// All objects of a namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.state
            .read()
            .objects
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// The objects whose controlling owner has this UID.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.indexed(&format!("owner/{uid}"))
    }

    /// The objects of a namespace that no controller owns.
    pub fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        self.indexed(&format!("orphan/{namespace}"))
    }

    /// The pods bound to a node.
    pub fn on_node(&self, node: &str) -> Vec<Arc<K>> {
        self.indexed(&format!("node/{node}"))
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn indexed(&self, entry: &str) -> Vec<Arc<K>> {
        let state = self.state.read();
        let keys = state.index.get(entry).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key).cloned()).collect()
    }

    /// Takes in an object, as a watch event would.
    pub fn apply(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let handlers = self.handlers.lock();
        self.put(object, &handlers);
    }

    /// Forgets an object, as a watch event would.
    pub fn delete(&self, key: &Key) {
        let handlers = self.handlers.lock();
        self.remove(key, &handlers);
    }

    /// Makes the cache hold exactly these objects: the end of a list.
    pub fn replace(&self, objects: Vec<K>) {
        let handlers = self.handlers.lock();
        let listed: BTreeSet<Key> = objects.iter().map(Key::of).collect();
        let gone: Vec<Key> =
            self.state.read().objects.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(&key, &handlers);
        }
        for mut object in objects {
            object.meta_mut().managed_fields = None;
            self.put(object, &handlers);
        }
        self.synced.send_replace(true);
    }

    fn put(&self, object: K, handlers: &[Handler<K>]) {
        let key = Key::of(&object);
        let new = Arc::new(object);
        let mut state = self.state.write();
        let old = state.objects.insert(key.clone(), new.clone());
        if let Some(old) = &old {
            if old.meta().uid == new.meta().uid
                && old.meta().resource_version.is_some()
                && old.meta().resource_version == new.meta().resource_version
            {
                return;
            }
            state.unindex(&key, old.as_ref());
        }
        state.index(&key, new.as_ref());
        drop(state);
        // A new object under an old name: the old one was deleted while nobody watched.
        let replaced = old.as_ref().is_some_and(|old| old.meta().uid != new.meta().uid);
        for handler in handlers {
            if let (true, Some(old)) = (replaced, &old) {
                handler(&Change::Deleted(old));
                handler(&Change::Applied { old: None, new: &new });
            } else {
                handler(&Change::Applied { old: old.as_ref(), new: &new });
            }
        }
    }

    fn remove(&self, key: &Key, handlers: &[Handler<K>]) {
        let mut state = self.state.write();
        let Some(last) = state.objects.remove(key) else { return };
        state.unindex(key, last.as_ref());
        drop(state);
        for handler in handlers {
            handler(&Change::Deleted(&last));
        }
    }
}

impl<K: Object> State<K> {
    fn index(&mut self, key: &Key, object: &K) {
        for entry in entries(object) {
            self.index.entry(entry).or_default().insert(key.clone());
        }
    }

    fn unindex(&mut self, key: &Key, object: &K) {
        for entry in entries(object) {
            if let Some(keys) = self.index.get_mut(&entry) {
                keys.remove(key);
                if keys.is_empty() {
                    self.index.remove(&entry);
                }
            }
        }
    }
}

fn entries<K: Object>(object: &K) -> impl Iterator<Item = String> {
    let owner = owner_entry(object.meta());
    let node = (object as &dyn Any)
        .downcast_ref::<Pod>()
        .and_then(|pod| pod.spec.as_ref()?.node_name.as_deref())
        .filter(|node| !node.is_empty())
        .map(|node| format!("node/{node}"));
    [owner, node].into_iter().flatten()
}

fn owner_entry(meta: &ObjectMeta) -> Option<String> {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    match owners.iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) => Some(format!("owner/{}", owner.uid)),
        None => Some(format!("orphan/{}", meta.namespace.as_deref()?)),
    }
}

#[cfg(test)]
mod tests;
