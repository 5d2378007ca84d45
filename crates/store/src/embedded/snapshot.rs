//! Backups of the embedded store: its newest state, read while it runs.

use std::path::Path;

use super::Core;
use crate::backup::Writer;
use crate::{Error, Result};

/// Keys copied in one transaction of the backup file.
const CHUNK: usize = 1000;

pub(super) fn backup(core: &Core, to: &Path) -> Result<()> {
    let revision = core.hub.revision();
    let mut file = Writer::create(to.to_owned())?;
    let mut from: Option<Vec<u8>> = None;
    loop {
        let page = super::read::range(&core.database.read(), b"", from.as_deref(), CHUNK, revision);
        let (items, more) = page.map_err(Error::engine("writing a backup"))?;
        file.add(&items)?;
        match items.last() {
            Some(last) if more => {
                let mut next = last.key.to_vec();
                next.push(0);
                from = Some(next);
            }
            _ => return file.finish(),
        }
    }
}

/// Bytes that an unprivileged process could still write beside `path`.
pub(super) fn available_space(path: &Path) -> Result<u64> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(folder)
        .map_err(|source| Error::Engine { context: "asking for free disk space", source: source.into() })?;
    Ok(stat.f_bavail * stat.f_frsize)
}
