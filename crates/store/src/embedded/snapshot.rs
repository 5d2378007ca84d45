//! Backups: the newest state as a database file of its own, and its reading back.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::Core;
use crate::{Error, Result};

const STATE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("backup");

/// Keys copied in one transaction of the backup file.
const CHUNK: usize = 1000;

pub(super) fn backup(core: &Core, to: &Path) -> Result<()> {
    let io = |source: std::io::Error| Error::Engine { context: "writing a backup", source: source.into() };
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = to.with_file_name(name);
    let copied = copy(core, &partial).map_err(Error::engine("writing a backup"));
    if let Err(error) = copied {
        let _ = std::fs::remove_file(&partial);
        return Err(error);
    }
    std::fs::rename(&partial, to).map_err(io)?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

fn copy(core: &Core, to: &Path) -> Result<(), redb::Error> {
    let revision = core.hub.revision();
    let target = Database::create(to)?;
    let write = target.begin_write()?;
    write.open_table(STATE)?;
    write.commit()?;
    let mut from: Option<Vec<u8>> = None;
    loop {
        let (items, more) = super::read::range(&core.database, b"", from.as_deref(), CHUNK, revision)?;
        let write = target.begin_write()?;
        {
            let mut table = write.open_table(STATE)?;
            for item in &items {
                table.insert(item.key.as_ref(), item.value.as_ref())?;
            }
        }
        write.commit()?;
        match items.last() {
            Some(last) if more => {
                let mut next = last.key.to_vec();
                next.push(0);
                from = Some(next);
            }
            _ => return Ok(()),
        }
    }
}

/// The state that a backup holds.
pub(super) fn read(from: &Path) -> Result<BTreeMap<Bytes, Bytes>> {
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

/// Bytes that an unprivileged process could still write beside `path`.
pub(super) fn available_space(path: &Path) -> Result<u64> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(folder)
        .map_err(|source| Error::Engine { context: "asking for free disk space", source: source.into() })?;
    Ok(stat.f_bavail * stat.f_frsize)
}
