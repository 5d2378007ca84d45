//! One control plane per data folder: a file lock that the kernel releases however the process ends.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

/// Held for as long as the control plane runs.
pub struct Lock(#[allow(dead_code, reason = "held, not read")] Flock<File>);

/// Takes the lock and notes the own process in it.
pub fn take(path: &Path) -> anyhow::Result<Lock> {
    let file = open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)?;
            lock.rewind()?;
            write!(&mut *lock, "{}", std::process::id())?;
            Ok(Lock(lock))
        }
        Err((mut file, _)) => {
            let pid = read(&mut file);
            bail!(
                "this cluster runs already (process {pid}); `carrack status` tells more, `carrack down` stops it"
            )
        }
    }
}

/// The process that holds the lock.
pub fn holder(path: &Path) -> anyhow::Result<Option<i32>> {
    if !path.exists() {
        return Ok(None);
    }
    match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(None),
        Err((mut file, _)) => Ok(read(&mut file).trim().parse().ok()),
    }
}

/// Waits, without asking again and again, until nobody holds the lock.
pub async fn released(path: &Path) -> anyhow::Result<()> {
    let file = open(path)?;
    tokio::task::spawn_blocking(move || {
        Flock::lock(file, FlockArg::LockExclusive).map(drop).map_err(|(_, error)| error)
    })
    .await?
    .context("waiting for the control plane to end")
}

fn open(path: &Path) -> anyhow::Result<File> {
    let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
    options.with_context(|| format!("opening {}", path.display()))
}

fn read(file: &mut File) -> String {
    let mut pid = String::new();
    // Only for a message: a lock whose holder is unknown is held all the same.
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut pid));
    pid
}
