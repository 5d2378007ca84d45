//! The revisioned key-value store below the API server: multi-version, with one global revision, compare-and-write
//! transactions and watches from any kept revision, as etcd v3 offers them. It knows nothing of Kubernetes.
//!
//! [`embedded`] is the engine for one server, [`etcd`] that for several. Everything above speaks to the [`Engine`] trait.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

mod backup;
#[cfg(test)]
mod contract;
mod digest;
pub mod embedded;
pub mod etcd;
mod watch;

pub use digest::Digest;
pub use watch::Watch;

/// A store shared by its users.
pub type Store = Arc<dyn Engine>;

/// One key as it stands at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The whole key.
    pub key: Bytes,
    /// The value, opaque to the store.
    pub value: Bytes,
    /// The revision at which the key came to be (after its last deletion).
    pub create_revision: u64,
    /// The revision of the last write.
    pub mod_revision: u64,
    /// How many writes the key has had since it came to be; 1 for a new key.
    pub version: u64,
}

/// A condition of a transaction: the key was last written at this revision; 0 means that it must be absent.
#[derive(Clone, Debug)]
pub struct Compare {
    /// The key that is looked at.
    pub key: Bytes,
    /// The revision it must have.
    pub mod_revision: u64,
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub enum Op {
    /// Write the key, whether or not it is there.
    Put {
        /// The whole key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Delete the key; nothing happens if it is absent.
    Delete {
        /// The whole key.
        key: Bytes,
    },
}

impl Op {
    /// The key that the operation writes.
    pub fn key(&self) -> &Bytes {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// Writes that happen together, at one revision, if every comparison holds. A key may be written once.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// All must hold.
    pub compare: Vec<Compare>,
    /// The writes.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Refuses a transaction that writes a key twice.
    fn check(&self) -> Result<()> {
        let mut keys: Vec<&Bytes> = self.ops.iter().map(Op::key).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::DuplicateKey(pair[0].clone())),
            None => Ok(()),
        }
    }
}

/// What became of a transaction.
#[derive(Clone, Debug)]
pub enum TxnOutcome {
    /// Durable at this revision. A transaction that wrote nothing reports the revision it saw.
    Committed {
        /// The transaction's revision.
        revision: u64,
    },
    /// A comparison did not hold and nothing was written.
    Conflict {
        /// The revision at which the comparison was made.
        revision: u64,
        /// What each compared key holds, in the order of the comparisons.
        current: Vec<Option<KeyValue>>,
    },
}

/// The answer to a range read.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// The keys found, in byte order.
    pub items: Vec<KeyValue>,
    /// Whether keys were left out because of the limit.
    pub more: bool,
    /// The revision that was read: the one asked for, or the newest.
    pub revision: u64,
}

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it happened.
    pub revision: u64,
    /// The key.
    pub key: Bytes,
    /// The key after the change; none if it was deleted.
    pub current: Option<KeyValue>,
    /// The key before the change; none if it was created.
    pub previous: Option<KeyValue>,
}

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for is no longer kept.
    #[error("revision {requested} has been compacted; the oldest revision kept is {compacted}")]
    Compacted {
        /// What was asked for.
        requested: u64,
        /// The oldest revision that can be read.
        compacted: u64,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future; the store is at {current}")]
    FutureRevision {
        /// What was asked for.
        requested: u64,
        /// The newest revision.
        current: u64,
    },
    /// The file system is full, or so nearly full that a write could be torn; reads go on.
    #[error(
        "no space left for the store: {available} bytes free, {reserve} are kept in reserve; free some disk space"
    )]
    NoSpace {
        /// Bytes free for the store.
        available: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// No server of the store answered. A write may or may not have had its effect.
    #[error("{context}: no server of the store answers")]
    Unavailable {
        /// What was being done.
        context: &'static str,
        /// What the last server asked said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
    /// A transaction writes a key more than once.
    #[error("transaction writes the key {0:?} twice")]
    DuplicateKey(Bytes),
    /// The engine failed.
    #[error("{context}")]
    Engine {
        /// What was being done.
        context: &'static str,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    fn engine(context: &'static str) -> impl FnOnce(redb::Error) -> Error {
        move |source| Error::Engine { context, source: Box::new(source) }
    }
}

/// The result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A datastore engine. The store begins at revision 1; each transaction that writes takes the next one.
pub trait Engine: Send + Sync + 'static {
    /// The key at a revision (none: the newest), and the revision read.
    fn get(&self, key: Bytes, at: Option<u64>) -> BoxFuture<'_, Result<(Option<KeyValue>, u64)>>;

    /// All keys that begin with `prefix`, starting with the key `from` (inclusive) if given, at most `limit` (0: all).
    fn range(
        &self,
        prefix: Bytes,
        from: Option<Bytes>,
        limit: usize,
        at: Option<u64>,
    ) -> BoxFuture<'_, Result<Range>>;

    /// The checksum of all keys that begin with `prefix`, without it, at a revision. Costs a read of them all, done in the
    /// background.
    fn digest(&self, prefix: Bytes, at: u64) -> BoxFuture<'_, Result<Digest>>;

    /// Compares and writes. Resolves when the write is durable.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome>>;

    /// All changes under `prefix` from the revision `from_revision` on, that one included.
    fn watch(&self, prefix: Bytes, from_revision: u64) -> BoxFuture<'_, Result<Watch>>;

    /// Forgets what was superseded before `revision`; reads and watches below it answer [`Error::Compacted`].
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>>;

    /// The newest durable revision that this server has seen.
    fn revision(&self) -> u64;

    /// A revision within which is every write that was acknowledged, by any server, before the call. What watches bring
    /// reaches it in a short while.
    fn newest(&self) -> BoxFuture<'_, Result<u64>>;

    /// Writes the newest state to a new file, while the store runs. The file is complete or absent.
    fn backup(&self, to: PathBuf) -> BoxFuture<'_, Result<()>>;

    /// Makes the state that of a backup, while the store runs: an ordinary change at a new revision, seen by watches.
    fn restore(&self, from: PathBuf) -> BoxFuture<'_, Result<u64>>;
}
