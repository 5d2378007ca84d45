//! The process that all shims are forked from.
//!
//! Starting the whole binary once per pod would cost each shim its own copy of every page that the loader and the allocator
//! touch. The spawner is started once per runtime, has a single thread, touches little, and forks; so shims share its pages.
//! It ends with the runtime, whose end of the socket is its standard input; the shims do not.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use super::{run, sys};

/// Serves requests until the runtime has closed its end: each is a shim's directory, with the writing end of a pipe for
/// the [`super::protocol::Ready`] answer.
pub fn main() -> ! {
    sys::set_name(c"carrack-spawn");
    // SAFETY: the runtime hands over its socket as descriptor 0, which nothing else in this process uses.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    let _ = nix::unistd::setsid();
    // SAFETY: an ignored SIGCHLD makes the kernel reap shims; no handler runs.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let mut buffer = [0; 4096];
    loop {
        let mut fds = Vec::new();
        let length = match sys::receive(socket.as_fd(), &mut buffer, &mut fds) {
            Ok(0) => sys::exit(0),
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => sys::exit(1),
        };
        let (Ok(dir), Some(ready)) = (std::str::from_utf8(&buffer[..length]), fds.pop()) else { continue };
        if let Ok(0) = sys::fork() {
            let dir = dir.to_owned();
            release(socket);
            run::main(&dir, ready)
        }
    }
}

/// Puts `/dev/null` where the socket was, so that the shim keeps no end of it and descriptor 0 stays taken.
fn release(socket: OwnedFd) {
    let raw = socket.into_raw_fd();
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        // SAFETY: dup2 replaces descriptor 0, which this function owns by `raw`.
        unsafe { libc::dup2(null.as_raw_fd(), raw) };
    }
}
