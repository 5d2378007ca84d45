//! Mounts under a pod's directory: tmpfs, and binds of sub-paths that cannot be led astray by symlinks.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{VolumeError, io};

/// Mounts a tmpfs at `dir`, unless something is mounted there already. `size` is in bytes.
pub(crate) fn tmpfs(dir: &Path, size: Option<i64>) -> Result<(), VolumeError> {
    if is_mount_point(dir)? {
        return Ok(());
    }
    failpoint::step("kubelet.volume.tmpfs");
    let options = size.filter(|size| *size > 0).map(|size| format!("size={size}"));
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), options.as_deref())
        .map_err(|error| io(format!("cannot mount tmpfs at {}", dir.display()))(error.into()))
}

fn is_mount_point(dir: &Path) -> Result<bool, VolumeError> {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| {
        std::fs::metadata(path).map(|data| data.dev()).map_err(io(format!("cannot read {}", path.display())))
    };
    let parent = dir.parent().unwrap_or(dir);
    Ok(device(dir)? != device(parent)?)
}

/// Mount points at or below `dir`, the deepest last.
pub(crate) fn below(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(io("cannot read /proc/self/mountinfo"))?;
    let mut found: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|path| path.starts_with(dir))
        .collect();
    found.sort_by_key(|path| path.components().count());
    Ok(found)
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let code = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        out.push(code.unwrap_or(field[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&out))
}

/// Unmounts everything at or below `dir`, the deepest first.
pub(crate) fn unmount_below(dir: &Path) -> Result<(), VolumeError> {
    for path in below(dir)?.iter().rev() {
        failpoint::step("kubelet.volume.unmount");
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(_) => umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .map_err(|error| io(format!("cannot unmount {}", path.display()))(error.into()))?,
        }
    }
    Ok(())
}

/// Opens `sub` below `volume` without ever leaving the volume, whatever symlinks a container may have put there.
fn open_beneath(volume: &Path, sub: &Path) -> std::io::Result<OwnedFd> {
    let base = std::fs::File::open(volume)?;
    let path = CString::new(sub.as_os_str().as_bytes())?;
    // SAFETY: open_how is plain old data, for which all zeros is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the descriptor, the path and the structure live across the call, and the size is that of the structure.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            base.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The text of a regular file below `volume`, of at most `limit` bytes.
pub(crate) fn read_beneath(volume: &Path, sub: &Path, limit: u64) -> std::io::Result<String> {
    let opened = open_beneath(volume, sub)?;
    let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
    // What is no regular file (a pipe) might never end.
    let metadata = std::fs::metadata(&path)?;
    if !metadata.is_file() || metadata.len() > limit {
        let problem = format!("it is no regular file of at most {limit} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, problem));
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

/// Binds `sub` of `volume` at `target`; a missing sub-path becomes a directory.
pub(crate) fn bind_sub_path(volume: &Path, sub: &Path, target: &Path) -> Result<(), VolumeError> {
    let failed = || format!("cannot prepare subPath {:?} of {}", sub.display(), volume.display());
    let opened = match open_beneath(volume, sub) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            create_beneath(volume, sub).map_err(io(failed()))?;
            open_beneath(volume, sub)
        }
        other => other,
    };
    let opened = opened.map_err(io(failed()))?;
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let is_dir = std::fs::metadata(&source).map_err(io(failed()))?.is_dir();
    unmount_below(target)?;
    failpoint::step("kubelet.volume.target");
    if let Some(parent) = target.parent() {
        super::make_dir(parent)?;
    }
    if is_dir {
        super::make_dir(target)?;
    } else if !target.exists() {
        std::fs::write(target, "").map_err(io(failed()))?;
    }
    failpoint::step("kubelet.volume.bind");
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|error| io(failed())(error.into()))
}

/// Makes missing directories one by one, each opened beneath the volume.
fn create_beneath(volume: &Path, sub: &Path) -> std::io::Result<()> {
    let mut done = PathBuf::new();
    for part in sub.components() {
        let parent = if done.as_os_str().is_empty() {
            OwnedFd::from(std::fs::File::open(volume)?)
        } else {
            open_beneath(volume, &done)?
        };
        let inside = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(part);
        match std::fs::create_dir(&inside) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        done.push(part);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_paths_are_unescaped() {
        assert_eq!(unescape(br"/a\040b\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape(br"/a\9"), PathBuf::from("/a\\9"));
    }

    #[test]
    fn sub_paths_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).expect("a link");
        std::fs::create_dir(dir.path().join("in")).expect("a directory");
        std::os::unix::fs::symlink("in", dir.path().join("link")).expect("a link");
        assert!(open_beneath(dir.path(), Path::new("out/passwd")).is_err());
        assert!(open_beneath(dir.path(), Path::new("../x")).is_err());
        assert!(open_beneath(dir.path(), Path::new("link")).is_ok());
        create_beneath(dir.path(), Path::new("link/a/b")).expect("created");
        assert!(dir.path().join("in/a/b").is_dir());
    }
}
