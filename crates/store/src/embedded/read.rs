//! Reads at a revision, each within one database snapshot.

use std::ops::Bound;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable};

use super::record::{INDEX, LOG, Record, index_key, log_key, log_revision, newest, split_index_key};
use crate::{Digest, Event, KeyValue};

pub(super) fn get(database: &Database, key: &[u8], revision: u64) -> Result<Option<KeyValue>, redb::Error> {
    let txn = database.begin_read()?;
    let found = newest(&txn.open_table(INDEX)?, &txn.open_table(LOG)?, key, revision)?;
    Ok(found.and_then(|(at, record)| record.into_key_value(at)))
}

pub(super) fn range(
    database: &Database,
    prefix: &[u8],
    from: Option<&[u8]>,
    limit: usize,
    revision: u64,
) -> Result<(Vec<KeyValue>, bool), redb::Error> {
    let txn = database.begin_read()?;
    let (index, log) = (txn.open_table(INDEX)?, txn.open_table(LOG)?);
    let mut items = Vec::new();
    let mut pending: Option<(Vec<u8>, u64, u32)> = None;
    let mut more = false;
    let mut take = |(_, at, position): (Vec<u8>, u64, u32)| -> Result<bool, redb::Error> {
        let Some(bytes) = log.get(log_key(at, position).as_slice())? else {
            return Err(redb::Error::Corrupted("the index names a change that the log lacks".into()));
        };
        let Some(found) = Record::decode(bytes.value())?.into_key_value(at) else { return Ok(true) };
        if limit > 0 && items.len() == limit {
            more = true;
            return Ok(false);
        }
        items.push(found);
        Ok(true)
    };
    let start = from.filter(|from| *from > prefix).unwrap_or(prefix);
    for entry in index.range::<&[u8]>((Bound::Included(start), Bound::Unbounded))? {
        let (key, position) = entry?;
        let (name, at) = split_index_key(key.value());
        if !name.starts_with(prefix) {
            break;
        }
        // The start is a bare name, which sorts before all of that name's revisions; others may slip in before it.
        if at > revision || name < start {
            continue;
        }
        if pending.as_ref().is_some_and(|(pending, ..)| pending != name)
            && let Some(done) = pending.take()
            && !take(done)?
        {
            break;
        }
        pending = Some((name.to_vec(), at, position.value()));
    }
    if let Some(done) = pending {
        take(done)?;
    }
    Ok((items, more))
}

/// Keys looked at in one database snapshot, so that none is held for long.
const DIGEST_STEP: usize = 1000;

/// The checksum of the keys under `prefix` at `revision`. Values are not read.
pub(super) fn digest(database: &Database, prefix: &[u8], revision: u64) -> Result<Digest, redb::Error> {
    let mut digest = Digest::default();
    let mut start = prefix.to_vec();
    loop {
        let txn = database.begin_read()?;
        let (index, log) = (txn.open_table(INDEX)?, txn.open_table(LOG)?);
        let mut add = |(name, at, position): (Vec<u8>, u64, u32)| -> Result<(), redb::Error> {
            let Some(bytes) = log.get(log_key(at, position).as_slice())? else {
                return Err(redb::Error::Corrupted("the index names a change that the log lacks".into()));
            };
            if !Record::is_deletion(bytes.value()) {
                digest.add(&name[prefix.len()..], at);
            }
            Ok(())
        };
        let mut pending: Option<(Vec<u8>, u64, u32)> = None;
        let (mut names, mut next) = (0, None);
        for entry in index.range::<&[u8]>((Bound::Included(start.as_slice()), Bound::Unbounded))? {
            let (key, position) = entry?;
            let (name, at) = split_index_key(key.value());
            if !name.starts_with(prefix) {
                break;
            }
            if at > revision || name < start.as_slice() {
                continue;
            }
            if pending.as_ref().is_some_and(|(pending, ..)| pending != name)
                && let Some(done) = pending.take()
            {
                add(done)?;
                names += 1;
                if names >= DIGEST_STEP {
                    next = Some(name.to_vec());
                    break;
                }
            }
            pending = Some((name.to_vec(), at, position.value()));
        }
        match next {
            Some(next) => start = next,
            None => {
                pending.map(add).transpose()?;
                return Ok(digest);
            }
        }
    }
}

/// Events under `prefix` of the revisions `from..=last`, stopping after the revision in which `limit` is reached, and
/// the first revision not looked at.
pub(super) fn events(
    database: &Database,
    prefix: &[u8],
    from: u64,
    last: u64,
    limit: usize,
) -> Result<(Vec<Event>, u64), redb::Error> {
    let txn = database.begin_read()?;
    let (index, log) = (txn.open_table(INDEX)?, txn.open_table(LOG)?);
    let mut events = Vec::new();
    let (low, high) = (log_key(from, 0), log_key(last, u32::MAX));
    for entry in log.range(low.as_slice()..=high.as_slice())? {
        let (key, bytes) = entry?;
        let revision = log_revision(key.value());
        if events.len() >= limit && events.last().is_some_and(|event: &Event| event.revision < revision) {
            return Ok((events, revision));
        }
        let record = Record::decode(bytes.value())?;
        if !record.key.starts_with(prefix) {
            continue;
        }
        let previous = newest(&index, &log, &record.key, revision - 1)?;
        let previous = previous.and_then(|(at, record)| record.into_key_value(at));
        let key: Bytes = record.key.clone();
        events.push(Event { revision, key, current: record.into_key_value(revision), previous });
    }
    Ok((events, last + 1))
}

/// Index keys of all changes of `name` before `revision`, with their positions.
pub(super) fn older(
    index: &impl ReadableTable<&'static [u8], u32>,
    name: &[u8],
    revision: u64,
) -> Result<Vec<(u64, u32)>, redb::Error> {
    let (low, high) = (index_key(name, 0), index_key(name, revision));
    let mut found = Vec::new();
    for entry in index.range(low.as_slice()..high.as_slice())? {
        let (key, position) = entry?;
        found.push((split_index_key(key.value()).1, position.value()));
    }
    Ok(found)
}
