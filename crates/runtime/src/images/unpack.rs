//! Unpacks a layer into a directory that overlayfs takes as a lower one.
//!
//! A layer is outside input. Every name is resolved by the kernel beneath the directory (`openat2` with
//! `RESOLVE_BENEATH`), so neither `..` nor a symlink leads out of it; a layer that tries is refused whole. Whiteouts become
//! overlayfs' own: a character device 0:0, or the attribute `trusted.overlay.opaque`.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::Error;
use super::content::hex;

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Unpacks the layer `blob` (tar, gzip or zstd) into `root`, which must be empty, and checks that the tar stream has the
/// digest `diff_id`. On an error `root` holds a part; the caller removes it.
pub fn unpack(blob: File, root: &Path, diff_id: &str) -> Result<(), Error> {
    let dir = File::open(root).map_err(|e| Error::io("open", root, e))?;
    let tree = Tree { root: OwnedFd::from(dir) };
    let mut stream = Hashing { inner: decompress(blob)?, hasher: Sha256::new() };
    let broken = |e: io::Error| Error::invalid("layer", e.to_string());
    {
        let mut archive = Archive::new(&mut stream);
        archive.set_ignore_zeros(false);
        let mut dirs: Vec<(PathBuf, i64)> = Vec::new();
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let path = entry.path().map_err(broken)?.into_owned();
            let name = clean(&path)?;
            if name.as_os_str().is_empty() {
                let mode = entry.header().mode().map_err(broken)? & 0o7777;
                let _ = std::fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(mode));
                continue;
            }
            tree.add(&name, &mut entry)
                .map_err(|e| Error::invalid("layer", format!("{}: {}", path.display(), explain(&e))))?;
            if entry.header().entry_type().is_dir() {
                let time = entry.header().mtime().unwrap_or(0);
                dirs.push((name, i64::try_from(time).unwrap_or(0)));
            }
        }
        // Filling a directory changed its time.
        for (name, time) in dirs.iter().rev() {
            if let Ok(fd) = tree.resolve(name, libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW) {
                let _ = set_time(fd.as_raw_fd(), c"", *time, libc::AT_EMPTY_PATH);
            }
        }
    }
    // The digest covers the padding behind the last entry too.
    io::copy(&mut stream, &mut io::sink()).map_err(broken)?;
    let actual = format!("sha256:{}", hex(&stream.hasher.finalize()));
    if actual != diff_id {
        return Err(Error::WrongDigest { expected: diff_id.to_owned(), actual });
    }
    Ok(())
}

/// Reads a tar stream whatever it is packed with.
pub fn decompress(file: File) -> Result<Box<dyn Read + Send>, Error> {
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let head = io::BufRead::fill_buf(&mut reader).map_err(|e| Error::invalid("layer", e.to_string()))?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(
            zstd::stream::read::Decoder::with_buffer(reader)
                .map_err(|e| Error::invalid("layer", e.to_string()))?,
        ),
        _ => Box::new(reader),
    })
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// A relative path without `.`; one with `..` is refused.
fn clean(path: &Path) -> Result<PathBuf, Error> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::invalid("layer", format!("{} leads out of the image", path.display())));
            }
        }
    }
    Ok(out)
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EXDEV | libc::ELOOP) => "a symlink on the way leads out of the image".into(),
        _ => error.to_string(),
    }
}

fn c_string(name: &std::ffi::OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::Error::other("NUL in a name"))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Opens a path beneath the root.
    fn resolve(&self, path: &Path, flags: i32) -> io::Result<OwnedFd> {
        open_beneath(self.root.as_raw_fd(), path, flags)
    }

    /// The directory that `path` is in, made if it is missing, and the last part of the path.
    fn parent(&self, path: &Path) -> io::Result<(OwnedFd, CString)> {
        let name = path.file_name().ok_or_else(|| io::Error::other("no name"))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let dir = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let fd = match self.resolve(dir, flags) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let (up, last) = self.parent(parent)?;
                // SAFETY: the name ends with NUL and lives through the call.
                check(unsafe { libc::mkdirat(up.as_raw_fd(), last.as_ptr(), 0o755) })?;
                self.resolve(dir, flags)?
            }
            result => result?,
        };
        Ok((fd, c_string(name)?))
    }

    fn add<R: Read>(&self, path: &Path, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let at = dir.as_raw_fd();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if file_name == OPAQUE {
            let parent = path.parent().unwrap_or(Path::new(""));
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let fd = self.resolve(parent, libc::O_RDONLY | libc::O_DIRECTORY)?;
            return set_xattr(fd.as_raw_fd(), "trusted.overlay.opaque", b"y");
        }
        if let Some(hidden) = file_name.strip_prefix(WHITEOUT) {
            if hidden.is_empty() || hidden.contains('/') || hidden == "." || hidden == ".." {
                return Err(io::Error::other("a whiteout without a name"));
            }
            let hidden = CString::new(hidden).map_err(|_| io::Error::other("NUL in a name"))?;
            remove(at, &hidden);
            // SAFETY: the name ends with NUL and lives through the call.
            return check(unsafe { libc::mknodat(at, hidden.as_ptr(), libc::S_IFCHR, 0) });
        }
        let header = entry.header();
        let kind = header.entry_type();
        let mode = header.mode()? & 0o7777;
        let (uid, gid) = (header.uid()? as libc::uid_t, header.gid()? as libc::gid_t);
        let time = i64::try_from(header.mtime()?).unwrap_or(0);
        let device = || -> io::Result<libc::dev_t> {
            let part = |n: Option<u32>| n.ok_or_else(|| io::Error::other("a device without numbers"));
            Ok(libc::makedev(part(header.device_major()?)?, part(header.device_minor()?)?))
        };
        let node = match kind {
            EntryType::Char => Some((libc::S_IFCHR, device()?)),
            EntryType::Block => Some((libc::S_IFBLK, device()?)),
            EntryType::Fifo => Some((libc::S_IFIFO, 0)),
            _ => None,
        };
        let mut open = None;
        match kind {
            EntryType::XGlobalHeader => return Ok(()),
            EntryType::Directory => {
                // SAFETY: the name ends with NUL and lives through the call.
                if unsafe { libc::mkdirat(at, name.as_ptr(), 0o755) } < 0 {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        return Err(error);
                    }
                    if open_at(at, &name, libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0).is_err() {
                        remove(at, &name);
                        // SAFETY: as above.
                        check(unsafe { libc::mkdirat(at, name.as_ptr(), 0o755) })?;
                    }
                }
                open = Some(open_at(at, &name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)?);
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                remove(at, &name);
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
                let mut file = File::from(open_at(at, &name, flags, 0o600)?);
                let length = entry.size();
                let copied = io::copy(entry, &mut file)?;
                if copied != length {
                    return Err(io::Error::other("the file is cut short"));
                }
                open = Some(file.into());
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| io::Error::other("a symlink to nothing"))?;
                let target = c_string(target.as_os_str())?;
                remove(at, &name);
                // SAFETY: both names end with NUL and live through the call.
                check(unsafe { libc::symlinkat(target.as_ptr(), at, name.as_ptr()) })?;
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link to nothing"))?;
                let target = clean(&target).map_err(|e| io::Error::other(e.to_string()))?;
                let target_name = c_string(target.file_name().unwrap_or_default())?;
                let up = match target.parent() {
                    Some(up) if !up.as_os_str().is_empty() => up,
                    _ => Path::new("."),
                };
                let from = self.resolve(up, libc::O_PATH | libc::O_DIRECTORY)?;
                remove(at, &name);
                // SAFETY: both names end with NUL and live through the call. Without AT_SYMLINK_FOLLOW a symlink itself is
                // linked.
                return check(unsafe {
                    libc::linkat(from.as_raw_fd(), target_name.as_ptr(), at, name.as_ptr(), 0)
                });
            }
            _ if node.is_some() => {
                let (kind, device) = node.unwrap_or_default();
                remove(at, &name);
                // SAFETY: the name ends with NUL and lives through the call.
                check(unsafe { libc::mknodat(at, name.as_ptr(), kind | mode, device) })?;
            }
            other => return Err(io::Error::other(format!("unsupported entry of type {other:?}"))),
        }
        // SAFETY: the name ends with NUL and lives through the calls; a new owner takes set-id bits away, so it goes first.
        unsafe {
            check(libc::fchownat(at, name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW))?;
            if kind != EntryType::Symlink {
                check(libc::fchmodat(at, name.as_ptr(), mode, 0))?;
            }
        }
        if let (Some(fd), Some(extensions)) = (&open, entry.pax_extensions()?) {
            for extension in extensions.flatten() {
                let Some(name) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr.")) else {
                    continue;
                };
                if name.starts_with("user.") || name == "security.capability" {
                    set_xattr(fd.as_raw_fd(), name, extension.value_bytes())?;
                }
            }
        }
        set_time(at, &name, time, libc::AT_SYMLINK_NOFOLLOW)
    }
}

fn open_beneath(root: RawFd, path: &Path, flags: i32) -> io::Result<OwnedFd> {
    let path = c_string(path.as_os_str())?;
    // SAFETY: open_how is plain data for which zero is a valid start; name and struct live through the call; the new
    // descriptor is owned by the caller.
    unsafe {
        let mut how: libc::open_how = std::mem::zeroed();
        how.flags = (flags | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
        let fd = libc::syscall(libc::SYS_openat2, root, path.as_ptr(), &how, size_of::<libc::open_how>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as RawFd)) }
    }
}

fn open_at(dir: RawFd, name: &CString, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with NUL and lives through the call; the new descriptor is owned by the caller.
    unsafe {
        let fd = libc::openat(dir, name.as_ptr(), flags | libc::O_CLOEXEC, mode);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Removes a file or an empty directory; a later entry of the same name replaces it.
fn remove(dir: RawFd, name: &CString) {
    // SAFETY: the name ends with NUL and lives through the calls.
    unsafe {
        if libc::unlinkat(dir, name.as_ptr(), 0) < 0 {
            libc::unlinkat(dir, name.as_ptr(), libc::AT_REMOVEDIR);
        }
    }
}

fn set_xattr(fd: RawFd, name: &str, value: &[u8]) -> io::Result<()> {
    let name = CString::new(name).map_err(|_| io::Error::other("NUL in an attribute"))?;
    // SAFETY: name and value live through the call and their length is given.
    check(unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

fn set_time(dir: RawFd, name: &std::ffi::CStr, time: i64, flags: i32) -> io::Result<()> {
    let time = libc::timespec { tv_sec: time, tv_nsec: 0 };
    // SAFETY: two timespecs and a name that live through the call.
    check(unsafe { libc::utimensat(dir, name.as_ptr(), [time, time].as_ptr(), flags) })
}

#[cfg(test)]
mod tests;
