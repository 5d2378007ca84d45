//! The writer thread: takes all requests that wait, applies them in one database transaction, commits once, publishes
//! the events and answers.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use redb::{Durability, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::record::{INDEX, LOG, Record, index_key, log_key, newest, set_revision};
use super::{Core, compact, defragment};
use crate::{Compare, Error, Event, KeyValue, Op, Result, Txn, TxnOutcome};

pub(super) enum Request {
    Txn { txn: Txn, reply: oneshot::Sender<Result<TxnOutcome>> },
    Compact { revision: u64, reply: oneshot::Sender<Result<()>> },
    Restore { wanted: BTreeMap<Bytes, Bytes>, reply: oneshot::Sender<Result<u64>> },
}

/// Transactions that share one commit, at most.
const BATCH: usize = 512;

pub(super) fn run(core: &Core, mut requests: mpsc::Receiver<Request>) {
    let mut waiting = Vec::new();
    let mut defragmented = defragment::Last::default();
    while requests.blocking_recv_many(&mut waiting, BATCH) > 0 {
        let mut batch = Vec::new();
        for request in waiting.drain(..) {
            match request {
                Request::Txn { txn, reply } => batch.push((txn, reply)),
                Request::Compact { revision, reply } => {
                    commit(core, std::mem::take(&mut batch));
                    let compacted = compact::run(core, revision);
                    if compacted.is_ok()
                        && let Err(error) = defragment::run(core, &mut defragmented)
                    {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "the store's file stays as long"
                        );
                    }
                    let _ = reply.send(compacted);
                }
                Request::Restore { wanted, reply } => {
                    commit(core, std::mem::take(&mut batch));
                    let _ = reply.send(restore(core, wanted));
                }
            }
        }
        commit(core, batch);
    }
}

type Waiting = (Txn, oneshot::Sender<Result<TxnOutcome>>);

fn commit(core: &Core, batch: Vec<Waiting>) {
    if batch.is_empty() {
        return;
    }
    let (txns, replies): (Vec<Txn>, Vec<_>) = batch.into_iter().unzip();
    match write(core, &txns) {
        Ok(outcomes) => {
            for (reply, outcome) in replies.into_iter().zip(outcomes) {
                let _ = reply.send(Ok(outcome));
            }
        }
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a commit failed; nothing of it was written"
            );
            let mut error = Some(error);
            for reply in replies {
                let _ = reply.send(Err(error.take().unwrap_or_else(failed_with_others)));
            }
        }
    }
}

fn failed_with_others() -> Error {
    Error::Engine { context: "writing", source: "the commit shared with other writes failed".into() }
}

/// Applies the transactions in order in one durable commit.
fn write(core: &Core, txns: &[Txn]) -> Result<Vec<TxnOutcome>> {
    check_space(core, txns)?;
    let engine = Error::engine;
    let first = core.hub.revision() + 1;
    let mut pending = Pending { revision: first - 1, events: Vec::new(), looked_up: HashMap::new() };
    let write = begin(core)?;
    let mut outcomes = Vec::with_capacity(txns.len());
    for txn in txns {
        outcomes.push(pending.apply(&write, txn).map_err(engine("writing"))?);
    }
    if pending.revision >= first {
        set_revision(&write, pending.revision).map_err(engine("writing the revision"))?;
        write.commit().map_err(|error| engine("making a commit durable")(error.into()))?;
        core.hub.publish(first, pending.revision, pending.events);
    } else {
        write.abort().map_err(|error| engine("ending a transaction")(error.into()))?;
    }
    Ok(outcomes)
}

pub(super) fn begin(core: &Core) -> Result<WriteTransaction> {
    let mut write = core
        .database
        .read()
        .begin_write()
        .map_err(|error| Error::engine("beginning a write")(error.into()))?;
    write
        .set_durability(Durability::Immediate)
        .map_err(|source| Error::Engine { context: "asking for durability", source: Box::new(source) })?;
    Ok(write)
}

struct Pending {
    revision: u64,
    events: Vec<Event>,
    /// What keys hold that transactions of this commit compare and do not write: often many of them the same one.
    looked_up: HashMap<Bytes, Option<KeyValue>>,
}

impl Pending {
    fn apply(&mut self, write: &WriteTransaction, txn: &Txn) -> Result<TxnOutcome, redb::Error> {
        let (mut index, mut log) = (write.open_table(INDEX)?, write.open_table(LOG)?);
        let mut current = Vec::with_capacity(txn.compare.len());
        for Compare { key, .. } in &txn.compare {
            if let Some(found) = self.looked_up.get(key) {
                current.push(found.clone());
                continue;
            }
            let found = newest(&index, &log, key, u64::MAX)?;
            let found = found.and_then(|(at, record)| record.into_key_value(at));
            if !txn.ops.iter().any(|op| op.key() == key) {
                self.looked_up.insert(key.clone(), found.clone());
            }
            current.push(found);
        }
        let holds = txn.compare.iter().zip(&current).all(|(compare, found)| {
            compare.mod_revision == found.as_ref().map_or(0, |found| found.mod_revision)
        });
        if !holds {
            return Ok(TxnOutcome::Conflict { revision: self.revision, current });
        }
        let revision = self.revision + 1;
        let mut position = 0;
        for op in &txn.ops {
            let key = op.key();
            self.looked_up.remove(key);
            let compared = txn.compare.iter().position(|compare| compare.key == *key);
            let previous: Option<KeyValue> = match compared {
                Some(at) => current[at].clone(),
                None => {
                    newest(&index, &log, key, u64::MAX)?.and_then(|(at, record)| record.into_key_value(at))
                }
            };
            let record = match (op, &previous) {
                (Op::Delete { .. }, None) => continue,
                (Op::Delete { key }, Some(_)) => {
                    Record { key: key.clone(), value: None, create_revision: 0, version: 0 }
                }
                (Op::Put { key, value }, previous) => Record {
                    key: key.clone(),
                    value: Some(value.clone()),
                    create_revision: previous.as_ref().map_or(revision, |previous| previous.create_revision),
                    version: previous.as_ref().map_or(0, |previous| previous.version) + 1,
                },
            };
            log.insert(log_key(revision, position).as_slice(), record.encode().as_slice())?;
            index.insert(index_key(key, revision).as_slice(), position)?;
            position += 1;
            let key = record.key.clone();
            self.events.push(Event { revision, key, current: record.into_key_value(revision), previous });
        }
        if position > 0 {
            self.revision = revision;
        }
        Ok(TxnOutcome::Committed { revision: self.revision })
    }
}

/// Refuses to write into a file system that is about to be full: an I/O error in the middle of a commit would cost the
/// readers their database as well.
fn check_space(core: &Core, txns: &[Txn]) -> Result<()> {
    let size = |op: &Op| match op {
        Op::Put { key, value } => key.len() + value.len(),
        Op::Delete { key } => key.len(),
    };
    let wanted: usize = txns.iter().flat_map(|txn| &txn.ops).map(size).sum();
    // Copy-on-write: a leaf page and its parents are written anew for each record at worst.
    let reserve = core.options.disk_reserve + 4 * wanted as u64;
    let available = super::snapshot::available_space(&core.path)?;
    if available < reserve {
        return Err(Error::NoSpace { available, reserve });
    }
    Ok(())
}

fn restore(core: &Core, wanted: BTreeMap<Bytes, Bytes>) -> Result<u64> {
    let revision = core.hub.revision();
    let (present, _) = super::read::range(&core.database.read(), b"", None, 0, revision)
        .map_err(Error::engine("reading what a restore replaces"))?;
    let ops = crate::backup::difference(present, wanted);
    match write(core, &[Txn { compare: Vec::new(), ops }])?.pop() {
        Some(TxnOutcome::Committed { revision }) => Ok(revision),
        _ => Ok(core.hub.revision()),
    }
}
