//! The engine over an etcd v3 cluster, for several API servers on one store. Revisions are etcd's own, one to one. One watch
//! feeds the window of recent events that all local watches read; reads of what is newest ask the cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::watch::Hub;
use crate::{Digest, Engine, Error, KeyValue, Op, Range, Result, Store, Txn, TxnOutcome, Watch, backup};

mod api;
mod client;
mod follow;
mod restore;

#[cfg(test)]
mod tests;

use client::Client;

/// Which cluster, and how it is reached.
#[derive(Clone, Debug)]
pub struct Options {
    /// `http://HOST:PORT` or `https://HOST:PORT` of each member.
    pub servers: Vec<String>,
    /// PEM certificates of the authorities that sign the members' certificates.
    pub ca: Option<Vec<u8>>,
    /// The client's certificate and key in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Put before every key, so that a cluster can have other users.
    pub prefix: Bytes,
    /// Recent events kept for watches, in number; older ones are read from etcd.
    pub window_events: usize,
    /// Recent events kept for watches, in bytes.
    pub window_bytes: usize,
}

impl Options {
    /// Plain options for the members of one cluster.
    pub fn new(servers: Vec<String>) -> Options {
        Options {
            servers,
            ca: None,
            identity: None,
            prefix: Bytes::new(),
            window_events: 4096,
            window_bytes: 8 << 20,
        }
    }
}

/// Keys read from etcd in one answer, which bounds its size.
const PAGE: i64 = 500;
/// Writes of one transaction, as etcd bounds them (`--max-txn-ops`).
const TXN_OPS: usize = 128;
/// Bytes of one transaction of a restore; etcd refuses requests past 1.5 MiB.
const TXN_BYTES: usize = 1 << 20;
/// Reads of the newest revision that may wait for the next answer.
const WAITING_READS: usize = 4096;

/// Connects to a cluster; fails if none of its members answers. A restore that was cut off there is finished first.
pub async fn connect(options: Options) -> Result<Store> {
    let core = core_of(options).await?;
    restore::finish(&core).await?;
    core.hub.reset(core.read_newest().await?);
    let (reads, receiver) = mpsc::channel(WAITING_READS);
    let tasks = [
        tokio::spawn(follow::run(core.clone())).abort_handle(),
        tokio::spawn(answer_reads(core.clone(), receiver)).abort_handle(),
    ];
    Ok(Arc::new(Etcd { core, reads, tasks }))
}

async fn core_of(options: Options) -> Result<Arc<Core>> {
    let client = Client::new(&options)?;
    let core = Arc::new(Core {
        client,
        prefix: options.prefix,
        hub: Arc::new(Hub::new(0, options.window_events, options.window_bytes)),
        compacted: AtomicU64::new(0),
        wanted: AtomicU64::new(0),
        nudge: Notify::new(),
    });
    Ok(core)
}

struct Etcd {
    core: Arc<Core>,
    reads: mpsc::Sender<oneshot::Sender<Result<u64>>>,
    tasks: [tokio::task::AbortHandle; 2],
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.core.hub.close();
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// What the engine and its tasks share.
struct Core {
    client: Client,
    prefix: Bytes,
    hub: Arc<Hub>,
    /// The newest compaction heard of.
    compacted: AtomicU64,
    /// The newest revision that a read needs in the window.
    wanted: AtomicU64,
    nudge: Notify,
}

impl Core {
    fn key(&self, key: &[u8]) -> Bytes {
        if self.prefix.is_empty() { Bytes::copy_from_slice(key) } else { [&self.prefix, key].concat().into() }
    }

    fn compacted(&self) -> u64 {
        self.compacted.load(Ordering::Relaxed)
    }

    fn note_compacted(&self, revision: u64) {
        self.compacted.fetch_max(revision, Ordering::Relaxed);
    }

    /// Asks the cluster for its newest revision: everything acknowledged before the call is within it.
    async fn read_newest(&self) -> Result<u64> {
        let request =
            api::RangeRequest { key: self.key(b"\0"), keys_only: true, limit: 1, ..Default::default() };
        let answer = self.client.range(request).await?;
        Ok(answer.header.map_or(0, |header| from_revision(header.revision)))
    }

    /// Notes that somebody waits for a revision.
    fn want(&self, revision: u64) {
        if self.hub.revision() < revision && self.wanted.fetch_max(revision, Ordering::AcqRel) < revision {
            self.nudge.notify_one();
        }
    }

    /// Resolves when somebody waits for a revision that has not come yet.
    async fn wanted_beyond_window(&self) -> u64 {
        loop {
            let wanted = self.wanted.load(Ordering::Acquire);
            if wanted > self.hub.revision() {
                return wanted;
            }
            self.nudge.notified().await;
        }
    }

    /// An error of a read at a revision, with the revisions filled in.
    fn explain(&self, error: Error, requested: u64) -> Error {
        match error {
            Error::Compacted { .. } => Error::Compacted { requested, compacted: self.compacted() },
            Error::FutureRevision { .. } => Error::FutureRevision { requested, current: self.hub.revision() },
            other => other,
        }
    }

    async fn range(
        &self,
        prefix: &[u8],
        from: Option<&[u8]>,
        limit: usize,
        at: Option<u64>,
        keys_only: bool,
    ) -> Result<Range> {
        let start = from.filter(|from| *from > prefix).unwrap_or(prefix);
        let (mut key, range_end) = (self.key(start), prefix_end(&self.key(prefix)));
        let mut range = Range { items: Vec::new(), more: false, revision: at.unwrap_or(0) };
        loop {
            let left = limit.saturating_sub(range.items.len());
            let page = match limit {
                0 => PAGE,
                _ => i64::try_from(left).unwrap_or(PAGE).min(PAGE),
            };
            let request = api::RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: page,
                revision: to_revision(range.revision),
                keys_only,
            };
            let answer =
                self.client.range(request).await.map_err(|error| self.explain(error, range.revision))?;
            if range.revision == 0 {
                range.revision = answer.header.map_or(0, |header| from_revision(header.revision));
            }
            let skip = self.prefix.len();
            range.items.extend(answer.kvs.into_iter().map(|kv| key_value(kv, skip)));
            range.more = answer.more;
            match range.items.last() {
                Some(last) if answer.more && (limit == 0 || range.items.len() < limit) => {
                    key = [&self.prefix, last.key.as_ref(), b"\0"].concat().into();
                }
                _ => return Ok(range),
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        let compare = txn.compare.iter().map(|compare| api::Compare {
            result: 0,
            target: api::COMPARE_MOD,
            key: self.key(&compare.key),
            mod_revision: Some(to_revision(compare.mod_revision)),
        });
        let success = txn.ops.iter().map(|op| match op {
            Op::Put { key, value } => {
                api::RequestKind::Put(api::PutRequest { key: self.key(key), value: value.clone() })
            }
            Op::Delete { key } => api::RequestKind::Delete(api::DeleteRangeRequest { key: self.key(key) }),
        });
        let failure = txn.compare.iter().map(|compare| {
            api::RequestKind::Range(api::RangeRequest { key: self.key(&compare.key), ..Default::default() })
        });
        let op = |kind| api::RequestOp { request: Some(kind) };
        let request = api::TxnRequest {
            compare: compare.collect(),
            success: success.map(op).collect(),
            failure: failure.map(op).collect(),
        };
        let answer = self.client.txn(request).await?;
        let revision = answer.header.map_or(0, |header| from_revision(header.revision));
        if answer.succeeded {
            return Ok(TxnOutcome::Committed { revision });
        }
        let current = answer.responses.into_iter().map(|one| match one.response {
            Some(api::ResponseKind::Range(range)) => {
                range.kvs.into_iter().next().map(|kv| key_value(kv, self.prefix.len()))
            }
            _ => None,
        });
        Ok(TxnOutcome::Conflict { revision, current: current.collect() })
    }
}

/// Answers all reads of the newest revision that wait with one question to the cluster, asked after they came.
async fn answer_reads(core: Arc<Core>, mut receiver: mpsc::Receiver<oneshot::Sender<Result<u64>>>) {
    let mut waiting = Vec::new();
    while receiver.recv_many(&mut waiting, WAITING_READS).await > 0 {
        match core.read_newest().await {
            Ok(revision) => {
                core.want(revision);
                for reply in waiting.drain(..) {
                    let _ = reply.send(Ok(revision));
                }
            }
            Err(error) => {
                let text = error.to_string();
                for reply in waiting.drain(..) {
                    let source = text.clone().into();
                    let _ = reply.send(Err(Error::Unavailable { context: "asking etcd", source }));
                }
            }
        }
    }
}

impl Engine for Etcd {
    fn get(&self, key: Bytes, at: Option<u64>) -> BoxFuture<'_, Result<(Option<KeyValue>, u64)>> {
        async move {
            let revision = at.unwrap_or(0);
            let request = api::RangeRequest {
                key: self.core.key(&key),
                revision: to_revision(revision),
                ..Default::default()
            };
            let answer = self.core.client.range(request).await;
            let answer = answer.map_err(|error| self.core.explain(error, revision))?;
            let seen = answer.header.map_or(0, |header| from_revision(header.revision));
            let found = answer.kvs.into_iter().next().map(|kv| key_value(kv, self.core.prefix.len()));
            Ok((found, at.unwrap_or(seen)))
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
        async move { self.core.range(&prefix, from.as_deref(), limit, at, false).await }.boxed()
    }

    fn digest(&self, prefix: Bytes, at: u64) -> BoxFuture<'_, Result<Digest>> {
        async move {
            let mut digest = Digest::default();
            let mut from: Option<Bytes> = None;
            loop {
                let page = self.core.range(&prefix, from.as_deref(), PAGE as usize, Some(at), true).await?;
                for kv in &page.items {
                    digest.add(&kv.key[prefix.len()..], kv.mod_revision);
                }
                match page.items.last() {
                    Some(last) if page.more => from = Some([last.key.as_ref(), b"\0"].concat().into()),
                    _ => return Ok(digest),
                }
            }
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome>> {
        async move {
            txn.check()?;
            self.core.txn(txn).await
        }
        .boxed()
    }

    fn watch(&self, prefix: Bytes, from_revision: u64) -> BoxFuture<'_, Result<Watch>> {
        async move {
            let compacted = self.core.compacted();
            if from_revision <= compacted && compacted > 0 {
                return Err(Error::Compacted { requested: from_revision, compacted });
            }
            let history = Arc::new(follow::Past(self.core.clone()));
            Ok(self.core.hub.watch(prefix, from_revision.max(1), history))
        }
        .boxed()
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        async move {
            let request = api::CompactionRequest { revision: to_revision(revision) };
            let done = self.core.client.compact(request).await;
            done.map_err(|error| self.core.explain(error, revision))?;
            self.core.note_compacted(revision);
            Ok(())
        }
        .boxed()
    }

    fn revision(&self) -> u64 {
        self.core.hub.revision()
    }

    fn newest(&self) -> BoxFuture<'_, Result<u64>> {
        async move {
            let (reply, answer) = oneshot::channel();
            self.reads.send(reply).await.map_err(|_| Error::Closed)?;
            answer.await.map_err(|_| Error::Closed)?
        }
        .boxed()
    }

    fn backup(&self, to: PathBuf) -> BoxFuture<'_, Result<()>> {
        async move {
            let mut file = blocking(move || backup::Writer::create(to)).await?;
            let mut from: Option<Bytes> = None;
            let mut at = None;
            loop {
                let page = self.core.range(b"", from.as_deref(), PAGE as usize, at, false).await?;
                at = Some(page.revision);
                from = match page.items.last() {
                    Some(last) if page.more => Some([last.key.as_ref(), b"\0"].concat().into()),
                    _ => None,
                };
                let items: Vec<_> = page.items.into_iter().filter(|kv| !restore::is_own(&kv.key)).collect();
                file = blocking(move || file.add(&items).map(|()| file)).await?;
                if from.is_none() {
                    return blocking(move || file.finish()).await;
                }
            }
        }
        .boxed()
    }

    /// etcd bounds the size of a transaction, so that watches see a large restore in several revisions; it is made whole, or
    /// not at all.
    fn restore(&self, from: PathBuf) -> BoxFuture<'_, Result<u64>> {
        async move {
            let wanted = blocking(move || backup::read(&from)).await?;
            restore::run(&self.core, wanted).await
        }
        .boxed()
    }
}

/// File work, off the threads that serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
}

/// What an operation takes of a transaction, in bytes.
fn size(op: &Op) -> usize {
    match op {
        Op::Put { key, value } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
    }
}

/// Writes in as many transactions as etcd's bounds ask for.
fn chunks(ops: Vec<Op>) -> Vec<Vec<Op>> {
    let mut chunks: Vec<Vec<Op>> = Vec::new();
    let mut bytes = 0;
    for op in ops {
        let size = size(&op);
        bytes += size;
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < TXN_OPS && bytes <= TXN_BYTES => chunk.push(op),
            _ => {
                bytes = size;
                chunks.push(vec![op]);
            }
        }
    }
    chunks
}

fn key_value(kv: api::KeyValue, skip: usize) -> KeyValue {
    KeyValue {
        key: kv.key.slice(skip.min(kv.key.len())..),
        value: kv.value,
        create_revision: from_revision(kv.create_revision),
        mod_revision: from_revision(kv.mod_revision),
        version: from_revision(kv.version),
    }
}

/// The first key after all keys with a prefix, as etcd wants the end of a range; a zero byte is the end of all keys.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

fn from_revision(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn to_revision(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}
