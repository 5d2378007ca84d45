//! How records lie in the database. `log` holds each change by (revision, position in its transaction); `index` finds a
//! key's changes by (key, revision). Both keys are big-endian, so byte order is time order.

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::KeyValue;

pub(super) const LOG: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("log");
pub(super) const INDEX: TableDefinition<'static, &[u8], u32> = TableDefinition::new("index");
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

const REVISION: &str = "revision";
const COMPACTED: &str = "compacted";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;

/// Makes the tables if the file is new; the newest and the oldest revision kept.
pub(super) fn initialize(database: &Database) -> Result<(u64, u64), redb::Error> {
    if let Ok(meta) = database.begin_read()?.open_table(META) {
        let read = |name| Ok::<_, redb::Error>(meta.get(name)?.map(|value| value.value()));
        if let (Some(revision), Some(compacted)) = (read(REVISION)?, read(COMPACTED)?) {
            return Ok((revision, compacted));
        }
    }
    let txn = database.begin_write()?;
    txn.open_table(LOG)?;
    txn.open_table(INDEX)?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert(FORMAT, FORMAT_VERSION)?;
        meta.insert(REVISION, 1)?;
        meta.insert(COMPACTED, 0)?;
    }
    txn.commit()?;
    Ok((1, 0))
}

pub(super) fn set_revision(txn: &redb::WriteTransaction, revision: u64) -> Result<(), redb::Error> {
    txn.open_table(META)?.insert(REVISION, revision)?;
    Ok(())
}

pub(super) fn set_compacted(txn: &redb::WriteTransaction, revision: u64) -> Result<(), redb::Error> {
    txn.open_table(META)?.insert(COMPACTED, revision)?;
    Ok(())
}

pub(super) fn log_key(revision: u64, position: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&revision.to_be_bytes());
    key[8..].copy_from_slice(&position.to_be_bytes());
    key
}

pub(super) fn log_revision(key: &[u8]) -> u64 {
    key.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// A key of the index: the length of the name is told by what follows it, a zero and eight bytes of revision. Names
/// hold no zero byte in practice; one that does still reads back whole, since the tail has a fixed length.
pub(super) fn index_key(name: &[u8], revision: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 9);
    key.extend_from_slice(name);
    key.push(0);
    key.extend_from_slice(&revision.to_be_bytes());
    key
}

pub(super) fn split_index_key(key: &[u8]) -> (&[u8], u64) {
    let (head, tail) = key.split_at(key.len() - 8);
    (&head[..head.len() - 1], log_revision(tail))
}

/// One change as the log keeps it.
pub(super) struct Record {
    pub key: Bytes,
    /// None for a deletion.
    pub value: Option<Bytes>,
    pub create_revision: u64,
    pub version: u64,
}

impl Record {
    pub fn encode(&self) -> Vec<u8> {
        let value: &[u8] = self.value.as_deref().unwrap_or_default();
        let mut out = Vec::with_capacity(21 + self.key.len() + value.len());
        out.push(u8::from(self.value.is_some()));
        out.extend_from_slice(&self.create_revision.to_be_bytes());
        out.extend_from_slice(&self.version.to_be_bytes());
        let length = u32::try_from(self.key.len()).expect("keys are far below 4 GiB");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.key);
        out.extend_from_slice(value);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Record, redb::Error> {
        let corrupted = || redb::Error::Corrupted("a log record is too short".into());
        let (head, rest) = bytes.split_first_chunk::<21>().ok_or_else(corrupted)?;
        let number = |at: usize| log_revision(&head[at..at + 8]);
        let length = u32::from_be_bytes([head[17], head[18], head[19], head[20]]) as usize;
        let (key, value) = rest.split_at_checked(length).ok_or_else(corrupted)?;
        Ok(Record {
            key: Bytes::copy_from_slice(key),
            value: (head[0] == 1).then(|| Bytes::copy_from_slice(value)),
            create_revision: number(1),
            version: number(9),
        })
    }

    /// Whether an encoded record is a deletion.
    pub fn is_deletion(bytes: &[u8]) -> bool {
        bytes.first() == Some(&0)
    }

    pub fn into_key_value(self, mod_revision: u64) -> Option<KeyValue> {
        let Record { key, value, create_revision, version } = self;
        value.map(|value| KeyValue { key, value, create_revision, mod_revision, version })
    }
}

/// The newest change of `name` at or before `revision`: its revision and record.
pub(super) fn newest(
    index: &impl ReadableTable<&'static [u8], u32>,
    log: &impl ReadableTable<&'static [u8], &'static [u8]>,
    name: &[u8],
    revision: u64,
) -> Result<Option<(u64, Record)>, redb::Error> {
    let (low, high) = (index_key(name, 0), index_key(name, revision));
    let Some(entry) = index.range(low.as_slice()..=high.as_slice())?.next_back() else { return Ok(None) };
    let (key, position) = entry?;
    let found = split_index_key(key.value()).1;
    let Some(bytes) = log.get(log_key(found, position.value()).as_slice())? else {
        return Err(redb::Error::Corrupted("the index names a change that the log lacks".into()));
    };
    Ok(Some((found, Record::decode(bytes.value())?)))
}
