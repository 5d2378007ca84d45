//! Compaction: forgets every change that a later one, at or before the compacted revision, has superseded.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use redb::ReadableTable;

use super::read::older;
use super::record::{INDEX, LOG, Record, index_key, log_key, log_revision, set_compacted};
use super::writer::begin;
use super::{Core, Error};
use crate::Result;

/// Log records looked at in one database transaction, so that writers wait for no more than that.
const STEP: usize = 2000;

pub(super) fn run(core: &Core, revision: u64) -> Result<()> {
    let engine = Error::engine;
    let mut from = core.compacted() + 1;
    if from > revision {
        return Ok(());
    }
    // Readers are turned away first; what is removed below can then be missed by none of them.
    let write = begin(core)?;
    set_compacted(&write, revision).map_err(engine("noting a compaction"))?;
    write.commit().map_err(|error| engine("noting a compaction")(error.into()))?;
    core.compacted.store(revision, Ordering::Release);
    while from <= revision {
        let write = begin(core)?;
        from = step(&write, from, revision).map_err(engine("compacting"))?;
        write.commit().map_err(|error| engine("compacting")(error.into()))?;
    }
    Ok(())
}

/// Works through some of the log and returns the revision to go on with.
fn step(write: &redb::WriteTransaction, from: u64, last: u64) -> Result<u64, redb::Error> {
    let (mut index, mut log) = (write.open_table(INDEX)?, write.open_table(LOG)?);
    let mut seen: Vec<(u64, Bytes, bool)> = Vec::new();
    let mut next = last + 1;
    let (low, high) = (log_key(from, 0), log_key(last, u32::MAX));
    for entry in log.range(low.as_slice()..=high.as_slice())? {
        let (key, bytes) = entry?;
        let revision = log_revision(key.value());
        if seen.len() >= STEP && seen.last().is_some_and(|(before, ..)| *before < revision) {
            next = revision;
            break;
        }
        let record = Record::decode(bytes.value())?;
        seen.push((revision, record.key, record.value.is_none()));
    }
    for (revision, key, deleted) in seen {
        let end = if deleted { revision + 1 } else { revision };
        for (old, position) in older(&index, &key, end)? {
            log.remove(log_key(old, position).as_slice())?;
            index.remove(index_key(&key, old).as_slice())?;
        }
    }
    Ok(next)
}
