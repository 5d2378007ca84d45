//! The embedded engine: multi-version records in redb, one writer thread with group commit (all writes that wait while
//! an fsync runs share the next), reads from snapshots beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use redb::Database;
use tokio::sync::{mpsc, oneshot};

use crate::watch::{History, Hub};
use crate::{Digest, Engine, Error, Event, KeyValue, Range, Result, Store, Txn, TxnOutcome, Watch};

mod compact;
mod defragment;
mod read;
mod record;
mod snapshot;
mod writer;

#[cfg(test)]
mod tests;

use writer::Request;

/// How the engine uses memory and disk.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of database pages kept in memory.
    pub cache_bytes: usize,
    /// Recent events kept for watches, in number; older ones come from disk.
    pub window_events: usize,
    /// Recent events kept for watches, in bytes.
    pub window_bytes: usize,
    /// Bytes that must stay free on the file system; below that writes are refused and reads go on.
    pub disk_reserve: u64,
    /// A file longer than this is shortened after a compaction when two thirds of it hold nothing.
    pub defragment_above: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_bytes: 16 << 20,
            window_events: 4096,
            window_bytes: 8 << 20,
            disk_reserve: 64 << 20,
            defragment_above: 64 << 20,
        }
    }
}

/// Opens the store in the file `path`, making it if absent.
pub fn open(path: &Path) -> Result<Store> {
    open_with(path, Options::default())
}

/// [`open`] with options of one's own.
pub fn open_with(path: &Path, options: Options) -> Result<Store> {
    Ok(Arc::new(Embedded::open(path, options)?))
}

struct Embedded {
    core: Arc<Core>,
    requests: mpsc::Sender<Request>,
    writer: Option<std::thread::JoinHandle<()>>,
}

/// What readers and the writer share.
struct Core {
    path: PathBuf,
    options: Options,
    /// Held shared by all that read or write, and alone while the file is defragmented.
    database: RwLock<Database>,
    hub: Arc<Hub>,
    compacted: AtomicU64,
}

/// Writes that may wait for the writer thread; a caller past that waits to hand its request over.
const WAITING_WRITES: usize = 1024;

impl Embedded {
    fn open(path: &Path, options: Options) -> Result<Embedded> {
        let database = Database::builder()
            .set_cache_size(options.cache_bytes)
            .create(path)
            .map_err(|error| Error::engine("opening the store")(error.into()))?;
        Embedded::with_database(database, path, options)
    }

    /// `path` tells which file system must have space.
    fn with_database(database: Database, path: &Path, options: Options) -> Result<Embedded> {
        let (revision, compacted) =
            record::initialize(&database).map_err(Error::engine("opening the store"))?;
        let hub = Arc::new(Hub::new(revision, options.window_events, options.window_bytes));
        let core = Arc::new(Core {
            path: path.to_owned(),
            options,
            database: RwLock::new(database),
            hub,
            compacted: AtomicU64::new(compacted),
        });
        let (requests, receiver) = mpsc::channel(WAITING_WRITES);
        let thread = std::thread::Builder::new().name("store-writer".into());
        let writer_core = core.clone();
        let writer = thread.spawn(move || writer::run(&writer_core, receiver)).map_err(|source| {
            Error::Engine { context: "starting the writer thread", source: source.into() }
        })?;
        Ok(Embedded { core, requests, writer: Some(writer) })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let core = self.core.clone();
        tokio::task::spawn_blocking(move || work(&core)).await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.core.hub.close();
        // Closing the channel ends the writer once it has finished what was handed to it.
        self.requests = mpsc::channel(1).0;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Core {
    fn compacted(&self) -> u64 {
        self.compacted.load(Ordering::Acquire)
    }

    fn check_revision(&self, at: Option<u64>) -> Result<u64> {
        let current = self.hub.revision();
        let revision = at.unwrap_or(current);
        Error::check_revision(revision, self.compacted(), current)?;
        Ok(revision)
    }
}

impl Engine for Embedded {
    fn get(&self, key: Bytes, at: Option<u64>) -> BoxFuture<'_, Result<(Option<KeyValue>, u64)>> {
        // One look-up in cached pages: not worth a thread hop.
        async move {
            let revision = self.core.check_revision(at)?;
            let at_once = self.core.database.try_read().map(|database| read::get(&database, &key, revision));
            let found = match at_once {
                Some(found) => found,
                None => {
                    let read = move |core: &Core| Ok(read::get(&core.database.read(), &key, revision));
                    self.blocking(read).await?
                }
            };
            Ok((found.map_err(Error::engine("reading a key"))?, revision))
        }
        .boxed()
    }

    fn range(
        &self,
        prefix: Bytes,
        from: Option<Bytes>,
        limit: usize,
        at: Option<u64>,
    ) -> BoxFuture<'_, Result<Range>> {
        self.blocking(move |core| {
            let revision = core.check_revision(at)?;
            let (items, more) = read::range(&core.database.read(), &prefix, from.as_deref(), limit, revision)
                .map_err(Error::engine("reading a range"))?;
            // A compaction that overtook the read may have removed what it was about to see.
            Error::check_revision(revision, core.compacted(), u64::MAX)?;
            Ok(Range { items, more, revision })
        })
        .boxed()
    }

    fn digest(&self, prefix: Bytes, at: u64) -> BoxFuture<'_, Result<Digest>> {
        self.blocking(move |core| {
            core.check_revision(Some(at))?;
            let digest =
                read::digest(&core.database.read(), &prefix, at).map_err(Error::engine("reading keys"))?;
            Error::check_revision(at, core.compacted(), u64::MAX)?;
            Ok(digest)
        })
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome>> {
        async move {
            txn.check()?;
            self.ask(|reply| Request::Txn { txn, reply }).await
        }
        .boxed()
    }

    fn watch(&self, prefix: Bytes, from_revision: u64) -> BoxFuture<'_, Result<Watch>> {
        async move {
            let compacted = self.core.compacted();
            if from_revision <= compacted && compacted > 0 {
                return Err(Error::Compacted { requested: from_revision, compacted });
            }
            Ok(self.core.hub.watch(prefix, from_revision.max(1), Arc::new(Log(self.core.clone()))))
        }
        .boxed()
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        async move {
            if revision <= self.core.compacted() {
                return Ok(());
            }
            Error::check_revision(revision, 0, self.core.hub.revision())?;
            self.ask(|reply| Request::Compact { revision, reply }).await
        }
        .boxed()
    }

    fn revision(&self) -> u64 {
        self.core.hub.revision()
    }

    fn newest(&self) -> BoxFuture<'_, Result<u64>> {
        // Nobody else writes: what is durable has been published.
        std::future::ready(Ok(self.core.hub.revision())).boxed()
    }

    fn backup(&self, to: PathBuf) -> BoxFuture<'_, Result<()>> {
        self.blocking(move |core| snapshot::backup(core, &to)).boxed()
    }

    fn restore(&self, from: PathBuf) -> BoxFuture<'_, Result<u64>> {
        async move {
            let wanted = self.blocking(move |_| crate::backup::read(&from)).await?;
            self.ask(|reply| Request::Restore { wanted, reply }).await
        }
        .boxed()
    }
}

/// The log on disk, for watches that have fallen behind the window of recent events.
struct Log(Arc<Core>);

impl History for Log {
    fn events(&self, prefix: Bytes, from: u64, limit: usize) -> BoxFuture<'_, Result<(Vec<Event>, u64)>> {
        let core = self.0.clone();
        let read = move || {
            let answer = read::events(&core.database.read(), &prefix, from, core.hub.revision(), limit);
            // Looked at after the read: a compaction that overtook it may have removed events.
            let compacted = core.compacted();
            if from <= compacted && compacted > 0 {
                return Err(Error::Compacted { requested: from, compacted });
            }
            answer.map_err(Error::engine("reading the history"))
        };
        async move { tokio::task::spawn_blocking(read).await.map_err(|_| Error::Closed)? }.boxed()
    }
}
