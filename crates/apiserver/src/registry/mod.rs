//! The generic registry: every served resource is a row that points at its cache; the verbs work on rows alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::RwLock;
use store::{Compare, Op, Store, Txn, TxnOutcome};
use tokio::sync::{mpsc, watch};

use crate::Status;
use crate::hooks::Home;
use crate::metrics::metrics;

pub mod cache;
pub mod convert;
pub mod feed;
pub mod object;
pub mod served;
#[cfg(test)]
mod tests;
pub mod topics;

use cache::Cache;
use feed::Codec;
use object::{Change, Object};
pub use served::{Anchor, Convert, Form, Served};

/// How long a read waits for a version that the server has not seen.
const FRESH_WAIT: Duration = Duration::from_secs(3);
/// How often a create is tried again because what it belongs to has changed.
const ANCHOR_TRIES: usize = 16;

/// All caches, and how far they have followed the store.
pub struct Caches {
    map: RwLock<HashMap<String, Arc<Cache>>>,
    applied: watch::Sender<u64>,
}

impl Caches {
    fn new() -> Self {
        Self { map: RwLock::default(), applied: watch::Sender::new(0) }
    }

    /// The cache of a resource, made if it is new; its window then begins after `revision`.
    pub fn of(&self, group: &str, resource: &str, revision: u64) -> Arc<Cache> {
        let key = format!("{group}/{resource}");
        if let Some(cache) = self.map.read().get(&key) {
            return cache.clone();
        }
        self.map.write().entry(key).or_insert_with(|| Arc::new(Cache::new(revision))).clone()
    }

    /// The store was compacted to a revision: a list that began before it expires, changed or not.
    pub fn forget(&self, revision: u64) {
        let applied = *self.applied.borrow();
        self.map.read().values().for_each(|cache| cache.forget(revision.min(applied)));
    }

    /// Group and plural name of every resource that has a cache.
    pub fn names(&self) -> Vec<(String, String)> {
        let split =
            |key: &String| key.split_once('/').map(|(group, name)| (group.to_owned(), name.to_owned()));
        self.map.read().keys().filter_map(split).collect()
    }

    /// Everything up to a revision is in the caches.
    pub fn applied(&self, revision: u64) {
        self.applied.send_if_modified(|applied| {
            let newer = revision > *applied;
            *applied = revision.max(*applied);
            newer
        });
    }
}

/// The rows in force. Replaced as a whole when custom resources come and go.
#[derive(Default)]
pub struct Rows {
    rows: Vec<Arc<Served>>,
    by_name: HashMap<String, usize>,
    /// By group and plural name alone: the version that is stored, or the first.
    by_resource: HashMap<String, usize>,
}

impl Rows {
    /// The built-in rows, then those of custom resources.
    fn new(rows: Vec<Arc<Served>>) -> Self {
        let mut by_name = HashMap::with_capacity(rows.len());
        let mut by_resource: HashMap<String, usize> = HashMap::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            let (group, plural) = (row.group(), row.plural());
            // A built-in row is not displaced.
            by_name.entry(format!("{group}/{}/{plural}", row.resource.version)).or_insert(at);
            let first = by_resource.entry(format!("{group}/{plural}")).or_insert(at);
            if row.primary && !rows[*first].primary {
                *first = at;
            }
        }
        Self { rows, by_name, by_resource }
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Served>> {
        self.by_name.get(&format!("{group}/{version}/{plural}")).map(|i| &self.rows[*i])
    }

    /// The row of a resource in any version, best in the stored one.
    pub fn any(&self, group: &str, plural: &str) -> Option<&Arc<Served>> {
        self.by_resource.get(&format!("{group}/{plural}")).map(|i| &self.rows[*i])
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Served>> {
        self.rows.iter()
    }

    /// Whether anything is served in a group and version.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.rows.iter().any(|r| r.group() == group && r.resource.version == version)
    }
}

/// Resources, caches and the store behind them.
pub struct Registry {
    pub store: Store,
    pub caches: Arc<Caches>,
    pub codec: Codec,
    rows: ArcSwap<Rows>,
    /// Resources whose cache is to be read anew.
    reload: mpsc::Sender<(String, String)>,
}

/// What became of a conditional write.
pub enum Written {
    At(u64),
    /// The key is at another revision; what it holds now.
    Conflict(Option<Arc<Object>>),
}

impl Registry {
    /// Reads the store; the caller then follows it from the returned revision, and reads anew what the receiver names.
    /// `more` is served beside what is on by default.
    pub async fn open(
        store: Store,
        codec: Codec,
        more: &[Arc<api::Resource>],
    ) -> Result<(Self, u64, mpsc::Receiver<(String, String)>), store::Error> {
        let caches = Arc::new(Caches::new());
        let revision = feed::load(&store, &caches, &codec).await?;
        caches.applied(revision);
        let rows = api::resources().iter().chain(more).map(|resource| {
            let (storage, conversion) = convert::storage(resource);
            let cache = caches.of(&storage.0, &storage.1, revision);
            let form = conversion.map_or(Form::Stored, Form::BuiltIn);
            Arc::new(Served::new(resource.clone(), cache, storage, conversion.is_none(), form))
        });
        let rows = Rows::new(rows.collect());
        let (reload, asked) = mpsc::channel(16);
        Ok((Self { store, caches, codec, rows: ArcSwap::from_pointee(rows), reload }, revision, asked))
    }

    /// Replaces the rows of custom resources. The watches of rows that are not among the new ones end.
    pub fn install(&self, custom: Vec<Arc<Served>>) {
        let old = self.rows.load_full();
        let mut rows: Vec<Arc<Served>> =
            old.iter().filter(|r| !r.resource.strategy.is_custom()).cloned().collect();
        rows.extend(custom);
        let kept: HashSet<*const Served> = rows.iter().map(Arc::as_ptr).collect();
        self.rows.store(Arc::new(Rows::new(rows)));
        for row in old.iter().filter(|row| !kept.contains(&Arc::as_ptr(row))) {
            row.gone.cancel();
        }
    }

    pub fn rows(&self) -> arc_swap::Guard<Arc<Rows>> {
        self.rows.load()
    }

    /// The row of a resource.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Served>> {
        self.rows.load().find(group, version, plural).cloned()
    }

    /// The row of a resource in any version.
    pub fn any(&self, group: &str, plural: &str) -> Option<Arc<Served>> {
        self.rows.load().any(group, plural).cloned()
    }

    /// Whether a built-in resource is served in a group.
    pub fn any_of(&self, group: &str) -> bool {
        self.rows.load().iter().any(|row| row.group() == group && !row.resource.strategy.is_custom())
    }

    /// Compares every cache with the store. One that does not agree is read anew and its watchers are ended; `told` hears of
    /// each comparison: group, resource, and whether they agreed.
    pub async fn compare(&self, told: impl Fn(&str, &str, Result<bool, &store::Error>)) {
        for (group, resource) in self.caches.names() {
            let cache = self.caches.of(&group, &resource, 0);
            let applied = self.applied();
            // Read after `applied`: the cache has all changes up to there, and the last one that it has may be newer.
            let (own, changed) = cache.digest();
            let at = applied.max(changed);
            match self.store.digest(feed::join(&group, &resource, ""), at).await {
                Ok(theirs) if theirs == own => told(&group, &resource, Ok(true)),
                Ok(_) => {
                    tracing::error!(group, resource, revision = at, "a cache does not agree with the store");
                    told(&group, &resource, Ok(false));
                    let _ = self.reload.send((group, resource)).await;
                }
                Err(error) => told(&group, &resource, Err(&error)),
            }
        }
    }

    /// The newest revision whose changes all caches have.
    pub fn applied(&self) -> u64 {
        *self.caches.applied.borrow()
    }

    /// Waits until the caches are as new as the store is now; the revision they then have at least.
    pub async fn fresh(&self) -> Result<u64, Status> {
        self.reach(self.store.newest().await.map_err(store_error)?).await
    }

    /// Waits until the caches have a revision.
    pub async fn reach(&self, revision: u64) -> Result<u64, Status> {
        let applied = self.applied();
        if applied >= revision {
            return Ok(applied);
        }
        let mut receiver = self.caches.applied.subscribe();
        let wait = tokio::time::timeout(FRESH_WAIT, receiver.wait_for(|applied| *applied >= revision));
        match wait.await {
            Ok(Ok(applied)) => Ok(*applied),
            _ => Err(Status::too_large_resource_version(revision, self.applied())),
        }
    }

    /// The newest state of an object.
    pub async fn get(&self, served: &Served, key: &str) -> Result<Option<Arc<Object>>, Status> {
        self.fresh().await?;
        Ok(served.cache.get(key))
    }

    /// Writes the stored form if the key is at `expected`.
    pub async fn put(
        &self,
        served: &Served,
        key: &str,
        stored: Bytes,
        expected: u64,
    ) -> Result<Written, Status> {
        let (own, ops) = self.writing(served, key, stored, expected)?;
        self.write(served, key, vec![own], ops).await
    }

    /// Writes the stored form if there is no such key, and what it belongs to stands: the row's anchor, and what `home` tells.
    pub async fn create(
        &self,
        served: &Served,
        key: &str,
        stored: Bytes,
        home: &(dyn Fn() -> Result<Option<Home>, Status> + Sync),
    ) -> Result<Written, Status> {
        let (own, ops) = self.writing(served, key, stored, 0)?;
        for _ in 0..ANCHOR_TRIES {
            let anchor = served.anchor.as_ref().map(Anchor::compare).transpose()?;
            let home = home()?.map(|home| Compare {
                key: feed::join(home.group, home.resource, &home.key),
                mod_revision: home.revision,
            });
            let compare: Vec<Compare> = [Some(own.clone()), anchor, home].into_iter().flatten().collect();
            let alone = compare.len() == 1;
            match self.write(served, key, compare, ops.clone()).await? {
                // Nothing is there, so it is one of the others that has changed.
                Written::Conflict(None) if !alone => drop(self.fresh().await?),
                other => return Ok(other),
            }
        }
        Err(Status::unavailable("what the object belongs to keeps changing; please try again"))
    }

    /// The comparison and the operation of a write.
    fn writing(
        &self,
        served: &Served,
        key: &str,
        stored: Bytes,
        expected: u64,
    ) -> Result<(Compare, Vec<Op>), Status> {
        let (group, plural) = (&served.storage.0, &served.storage.1);
        let store_key = feed::join(group, plural, key);
        let value = self.codec.seal(group, plural, &store_key, stored)?;
        let own = Compare { key: store_key.clone(), mod_revision: expected };
        Ok((own, vec![Op::Put { key: store_key, value }]))
    }

    /// Whether what is stored of an object would be sealed otherwise today.
    pub async fn stale(&self, served: &Served, key: &str) -> Result<bool, Status> {
        let (group, plural) = (&served.storage.0, &served.storage.1);
        let Some(transform) = self.codec.transform.as_ref().filter(|t| t.covers(group, plural)) else {
            return Ok(false);
        };
        let (stored, _) = self.store.get(feed::join(group, plural, key), None).await.map_err(store_error)?;
        Ok(stored.is_some_and(|kv| transform.stale(group, plural, &kv.value)))
    }

    /// Deletes the key if it is at `expected`.
    pub async fn remove(&self, served: &Served, key: &str, expected: u64) -> Result<Written, Status> {
        let store_key = feed::join(&served.storage.0, &served.storage.1, key);
        let ops = vec![Op::Delete { key: store_key.clone() }];
        self.write(served, key, vec![Compare { key: store_key, mod_revision: expected }], ops).await
    }

    /// Writes if the comparisons hold, the first of which is about the key that is written.
    async fn write(
        &self,
        served: &Served,
        key: &str,
        compare: Vec<Compare>,
        ops: Vec<Op>,
    ) -> Result<Written, Status> {
        let own = compare.first().map(|own| (own.key.clone(), own.mod_revision));
        let (store_key, expected) = own.unwrap_or_default();
        let operation = match ops.first() {
            Some(Op::Delete { .. }) => "delete",
            _ if expected == 0 => "create",
            _ => "update",
        };
        let before = Instant::now();
        let done = self.store.txn(Txn { compare, ops }).await;
        count(served, operation, before, done.is_ok());
        match done.map_err(store_error)? {
            TxnOutcome::Committed { revision } => Ok(Written::At(revision)),
            TxnOutcome::Conflict { current, .. } => {
                let current = current.into_iter().next().flatten();
                self.codec.ready(current.iter().map(|kv| &kv.value)).await;
                let object = current.map(|kv| {
                    let names = (served.storage.0.as_str(), served.storage.1.as_str(), key);
                    self.codec.object(names, &store_key, &kv.value, kv.mod_revision, Change::Modified)
                });
                Ok(Written::Conflict(object.transpose()?.map(Arc::new)))
            }
        }
    }
}

/// Counts what the store was asked, under the names that the reference gives etcd's operations.
pub fn count(served: &Served, operation: &str, before: Instant, done: bool) {
    let labels = [served.storage.0.as_str(), operation, served.storage.1.as_str()];
    let metrics = metrics();
    metrics.store_requests.with(&labels).increment();
    metrics.store_duration.with(&labels).observe(before.elapsed().as_secs_f64());
    if !done {
        metrics.store_errors.with(&labels).increment();
    }
}

/// A failure of the store, as clients see it.
pub fn store_error(error: store::Error) -> Status {
    match error {
        store::Error::Compacted { requested, compacted } => {
            Status::expired(format!("too old resource version: {requested} ({compacted})"))
        }
        store::Error::FutureRevision { requested, current } => {
            Status::too_large_resource_version(requested, current)
        }
        store::Error::Closed => Status::unavailable("the server is shutting down"),
        // Whether a write has had its effect is not known; the client must look.
        store::Error::Unavailable { .. } => Status::timeout(error.to_string()),
        other => Status::internal(other),
    }
}
