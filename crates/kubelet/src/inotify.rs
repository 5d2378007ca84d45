//! Tells when anything in some folders has changed.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An inotify descriptor.
pub(crate) struct Watch {
    inotify: AsyncFd<Descriptor>,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Watch {
    /// Watches nothing yet.
    pub(crate) fn new() -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the descriptor is owned by the inotify instance inside, which stays there and never exchanges it.
        let inotify = unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE) };
        Ok(Self { inotify: inotify.map_err(std::io::Error::from)? })
    }

    /// Watches for files of `dir` that were written to their end, and for those that go.
    pub(crate) fn add_files(&self, dir: &Path) -> std::io::Result<()> {
        self.add(dir, AddWatchFlags::IN_CLOSE_WRITE)
    }

    /// Watches for whatever comes into `dir` and goes.
    pub(crate) fn add_entries(&self, dir: &Path) -> std::io::Result<()> {
        self.add(dir, AddWatchFlags::IN_CREATE)
    }

    /// Adding a folder again changes nothing; one that is removed leaves by itself.
    fn add(&self, dir: &Path, comes: AddWatchFlags) -> std::io::Result<()> {
        let goes = AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
        self.inotify.get_ref().0.add_watch(dir, comes | goes | AddWatchFlags::IN_MOVED_TO)?;
        Ok(())
    }

    /// Resolves once anything has changed since the last call.
    pub(crate) async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else { return std::future::pending().await };
            let read = ready.try_io(|fd| fd.get_ref().0.read_events().map_err(std::io::Error::from));
            match read {
                Ok(Ok(events)) if !events.is_empty() => return,
                Ok(_) | Err(_) => {}
            }
        }
    }
}
