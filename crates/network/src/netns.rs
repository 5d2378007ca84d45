//! Doing things inside another network namespace without moving the calling thread.

use crate::error::{Error, Result};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Runs `work` on a short-lived thread that has entered the network namespace pinned at `path`.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = open(path)?;
    within_file(&namespace, path, work)?
}

/// A network namespace that lives as long as this value (and whatever else holds it).
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// Makes a new one; the caller stays where it is.
    pub fn new() -> Result<Self> {
        let failed = |source| Error::Namespace { path: PathBuf::from("(new)"), source };
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(Self).map_err(failed)
    }

    /// A path by which this process can open it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Runs `work` on a short-lived thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        within_file(&self.0, &self.path(), work)
    }
}

pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::Namespace { path: path.to_owned(), source })
}

pub(crate) fn within_file<T: Send>(
    namespace: &File,
    path: &Path,
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::Namespace { path: path.to_owned(), source: errno.into() })?;
            Ok(work())
        });
        let thread = thread.map_err(|source| Error::Namespace { path: path.to_owned(), source })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
