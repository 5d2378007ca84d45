//! Redirections: opening, moving and putting back file descriptors.

use super::exec::Shell;
use super::parse::{self, Redirection, Target};
use nix::unistd::dup2_raw;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// What descriptors were before a redirection; `None` if they were closed.
pub(super) type Saved = Vec<(RawFd, Option<OwnedFd>)>;

impl Shell {
    pub(super) fn redirect(&mut self, redirections: &[Redirection]) -> Option<Saved> {
        let _ = io::stdout().flush();
        let mut saved = Vec::new();
        for redirection in redirections {
            let opened: io::Result<Option<OwnedFd>> = match &redirection.target {
                Target::Read(word) => self.open(word, File::options().read(true)),
                Target::Write(word) => {
                    self.open(word, File::options().write(true).create(true).truncate(true))
                }
                Target::Append(word) => self.open(word, File::options().append(true).create(true)),
                Target::Here(word) => {
                    let word = word.borrow().clone();
                    let text = self.expand_one(&word);
                    here(&text).map(Some)
                }
                Target::Duplicate(word) => match self.expand_one(word).as_str() {
                    "-" => Ok(None),
                    number => match number.parse::<RawFd>() {
                        Ok(number) => duplicate(number).map(Some),
                        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
                    },
                },
            };
            match opened {
                Ok(fd) => {
                    saved.push((redirection.descriptor, duplicate(redirection.descriptor).ok()));
                    match fd {
                        Some(fd) => move_to(fd, redirection.descriptor),
                        None => drop(nix::unistd::close(redirection.descriptor)),
                    }
                }
                Err(error) => {
                    eprintln!("sh: redirection: {error}");
                    restore(saved);
                    return None;
                }
            }
        }
        Some(saved)
    }

    fn open(&mut self, word: &parse::Word, options: &std::fs::OpenOptions) -> io::Result<Option<OwnedFd>> {
        let name = self.expand_one(word);
        options
            .open(&name)
            .map(|file| Some(file.into()))
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
    }
}

/// Makes `fd` known as `number`.
pub(super) fn move_to(fd: OwnedFd, number: RawFd) {
    if fd.as_raw_fd() == number {
        let _ = fd.into_raw_fd();
        return;
    }
    // SAFETY: whatever `number` was is meant to be replaced; the copy is owned by nobody in this process.
    if let Ok(copy) = unsafe { dup2_raw(&fd, number) } {
        let _ = copy.into_raw_fd();
    }
}

/// A copy out of the way of the numbers that scripts use, closed on exec.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl fails cleanly on a number that is not open.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 10) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

pub(super) fn restore(saved: Saved) {
    let _ = io::stdout().flush();
    for (number, fd) in saved.into_iter().rev() {
        match fd {
            Some(fd) => move_to(fd, number),
            None => drop(nix::unistd::close(number)),
        }
    }
}

/// A here document as an anonymous file.
fn here(text: &str) -> io::Result<OwnedFd> {
    let fd = nix::sys::memfd::memfd_create("here", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(text.as_bytes())?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}
