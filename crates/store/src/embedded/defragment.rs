//! Gives space back to the file system: after much has been deleted the file is mostly free pages, which the database uses
//! again but keeps.

use std::time::{Duration, Instant};

use super::writer::begin;
use super::{Core, Error};
use crate::Result;

/// Between two looks at how full the file is, which read all of its pages.
const INTERVAL: Duration = Duration::from_secs(3600);
/// More than this is not moved while the store runs: readers and writers wait for it.
const LARGEST: u64 = 1 << 30;

/// When the file was looked at last.
#[derive(Default)]
pub(super) struct Last(Option<Instant>);

/// Moves what the file holds together and shortens it, if two thirds of it hold nothing.
pub(super) fn run(core: &Core, last: &mut Last) -> Result<()> {
    let length = std::fs::metadata(&core.path).map_or(0, |file| file.len());
    if length < core.options.defragment_above || last.0.is_some_and(|at| at.elapsed() < INTERVAL) {
        return Ok(());
    }
    last.0 = Some(Instant::now());
    let write = begin(core)?;
    let stats = write.stats().map_err(|error| Error::engine("measuring the store")(error.into()))?;
    write.abort().map_err(|error| Error::engine("measuring the store")(error.into()))?;
    // Not the pages in use: those that the last commits freed are still counted there.
    let used = stats.stored_bytes() + stats.metadata_bytes();
    if used > length / 3 || used > LARGEST {
        return Ok(());
    }
    let started = Instant::now();
    let done = core.database.write().compact();
    done.map_err(|source| Error::Engine { context: "defragmenting the store", source: source.into() })?;
    let after = std::fs::metadata(&core.path).map_or(0, |file| file.len());
    tracing::info!(before = length, after, took = ?started.elapsed(), "the store's file was defragmented");
    Ok(())
}
