//! Backup files: a state as a database file of its own, the same for every engine.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Error, KeyValue, Op, Result};

const STATE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("backup");

/// A backup that is being written. It has its name only once it is finished.
pub(crate) struct Writer {
    database: Option<Database>,
    partial: PathBuf,
    to: PathBuf,
}

impl Writer {
    pub fn create(to: PathBuf) -> Result<Writer> {
        let mut name = to.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let partial = to.with_file_name(name);
        let create = || -> Result<_, redb::Error> {
            let database = Database::create(&partial)?;
            let write = database.begin_write()?;
            write.open_table(STATE)?;
            write.commit()?;
            Ok(database)
        };
        let database = create().map_err(Error::engine("writing a backup"))?;
        Ok(Writer { database: Some(database), partial, to })
    }

    pub fn add(&mut self, items: &[KeyValue]) -> Result<()> {
        let Some(database) = &self.database else { return Ok(()) };
        let add = || -> Result<_, redb::Error> {
            let write = database.begin_write()?;
            {
                let mut table = write.open_table(STATE)?;
                for item in items {
                    table.insert(item.key.as_ref(), item.value.as_ref())?;
                }
            }
            Ok(write.commit()?)
        };
        add().map_err(Error::engine("writing a backup"))
    }

    pub fn finish(mut self) -> Result<()> {
        let io =
            |source: std::io::Error| Error::Engine { context: "writing a backup", source: source.into() };
        self.database = None;
        std::fs::rename(&self.partial, &self.to).map_err(io)?;
        let folder = self.to.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(io)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.database.take().is_some() {
            // A backup that failed; what it left is of no use, and a failure to remove it of no consequence.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// The state that a backup holds.
pub(crate) fn read(from: &Path) -> Result<BTreeMap<Bytes, Bytes>> {
    if !from.is_file() {
        let source = format!("{} is not a file", from.display()).into();
        return Err(Error::Engine { context: "reading a backup", source });
    }
    let load = || -> Result<_, redb::Error> {
        let table = Database::open(from)?.begin_read()?.open_table(STATE)?;
        let mut state = BTreeMap::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            state.insert(Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value()));
        }
        Ok(state)
    };
    load().map_err(Error::engine("reading a backup"))
}

/// The writes that turn what is present into what is wanted.
pub(crate) fn difference(present: Vec<KeyValue>, mut wanted: BTreeMap<Bytes, Bytes>) -> Vec<Op> {
    let mut ops = Vec::new();
    for KeyValue { key, value, .. } in present {
        match wanted.remove(&key) {
            Some(same) if same == value => {}
            Some(value) => ops.push(Op::Put { key, value }),
            None => ops.push(Op::Delete { key }),
        }
    }
    ops.extend(wanted.into_iter().map(|(key, value)| Op::Put { key, value }));
    ops
}
