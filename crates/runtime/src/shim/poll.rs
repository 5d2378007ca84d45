//! The set of descriptors that the shim waits on, built anew for each round.

use std::os::fd::RawFd;

/// Pairs of a descriptor and what it means to the caller.
pub struct PollSet<T> {
    fds: Vec<libc::pollfd>,
    keys: Vec<T>,
}

impl<T: Copy> PollSet<T> {
    /// Empty, with room for a pod of usual size.
    pub fn new() -> Self {
        Self { fds: Vec::with_capacity(16), keys: Vec::with_capacity(16) }
    }

    /// Waits for `fd` to become readable, or writable, or for neither, only for its end.
    pub fn add(&mut self, key: T, fd: RawFd, read: bool, write: bool) {
        let mut events = 0;
        if read {
            events |= libc::POLLIN;
        }
        if write {
            events |= libc::POLLOUT;
        }
        self.fds.push(libc::pollfd { fd, events, revents: 0 });
        self.keys.push(key);
    }

    /// Blocks until something happens and gives what did: key, readable or ended, writable. With a number of milliseconds it
    /// gives nothing if nothing happens within that time.
    pub fn wait(&mut self, at_most: Option<u16>) -> Vec<(T, bool, bool)> {
        let timeout = at_most.map_or(-1, libc::c_int::from);
        // SAFETY: the pointer and count describe `fds`, which is borrowed mutably for the call.
        let n = unsafe { libc::poll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, timeout) };
        if n <= 0 {
            return Vec::new();
        }
        let ended = libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
        self.fds
            .iter()
            .zip(&self.keys)
            .filter(|(fd, _)| fd.revents != 0)
            .map(|(fd, key)| {
                (
                    *key,
                    fd.revents & (libc::POLLIN | ended) != 0,
                    fd.revents & (libc::POLLOUT | libc::POLLERR) != 0,
                )
            })
            .collect()
    }
}
