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

/// Mounts huge pages of so many bytes each at `dir`, unless something is mounted there already.
pub(crate) fn huge_pages(dir: &Path, page: i64) -> Result<(), VolumeError> {
    if is_mount_point(dir)? {
        return Ok(());
    }
    let options = format!("pagesize={page}");
    mount(Some("hugetlbfs"), dir, Some("hugetlbfs"), MsFlags::empty(), Some(options.as_str())).map_err(
        |error| io(format!("cannot mount huge pages of {page} bytes at {}", dir.display()))(error.into()),
    )
}

fn is_mount_point(dir: &Path) -> Result<bool, VolumeError> {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| {
        std::fs::metadata(path).map(|data| data.dev()).map_err(io(format!("cannot read {}", path.display())))
    };
    let parent = dir.parent().unwrap_or(dir);
    Ok(device(dir)? != device(parent)?)
}

/// All mount points, in the order of the kernel's table.
fn all() -> std::io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape).collect())
}

/// Whether something is mounted at `path`, be it of the same file system as its folder. Where that cannot be told, it counts as
/// mounted, so that nothing behind it is ever removed.
pub(crate) fn is_mounted(path: &Path) -> bool {
    // The table has no symlinks; the last part itself is looked at as it is.
    let real = path.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
    let Some(real) = real.zip(path.file_name()).map(|(parent, name)| parent.join(name)) else { return false };
    all().map_or(true, |points| points.contains(&real))
}

/// Mount points at or below `dir`, the deepest last.
pub(crate) fn below(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let dir = match std::fs::canonicalize(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        real => real.map_err(io(format!("cannot read {}", dir.display())))?,
    };
    let all = all().map_err(io("cannot read /proc/self/mountinfo"))?;
    let mut found: Vec<PathBuf> = all.into_iter().filter(|path| path.starts_with(&dir)).collect();
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

/// Binds `source` at `dir` with the mount options of a PersistentVolume, unless something is mounted there already.
pub(crate) fn bind(source: &Path, dir: &Path, options: &[String]) -> Result<(), VolumeError> {
    let mut flags = MsFlags::empty();
    for option in options {
        flags |= match option.as_str() {
            "ro" => MsFlags::MS_RDONLY,
            "noatime" => MsFlags::MS_NOATIME,
            "nodiratime" => MsFlags::MS_NODIRATIME,
            "relatime" => MsFlags::MS_RELATIME,
            "strictatime" => MsFlags::MS_STRICTATIME,
            "noexec" => MsFlags::MS_NOEXEC,
            "nosuid" => MsFlags::MS_NOSUID,
            "nodev" => MsFlags::MS_NODEV,
            "rw" | "bind" | "defaults" => MsFlags::empty(),
            other => return Err(VolumeError::MountOption(other.to_owned())),
        };
    }
    super::make_dir(dir)?;
    let failed = || format!("cannot bind {} at {}", source.display(), dir.display());
    if !is_mounted(dir) {
        failpoint::step("kubelet.volume.bind_source");
        mount(Some(source), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| io(failed())(error.into()))?;
    }
    failpoint::step("kubelet.volume.options");
    // Even if it was mounted before: that may have been broken off here.
    let remount = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
    mount(None::<&str>, dir, None::<&str>, remount, None::<&str>).map_err(|error| {
        // Half a mount would be taken for a whole one the next time.
        let _ = umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        io(failed())(error.into())
    })
}

/// Makes the mount that `dir` lies on shared, by a mount of its own if need be, so that mounts that pods make below it (those of
/// CSI drivers) are seen on the node.
pub(crate) fn share(dir: &Path) -> Result<(), VolumeError> {
    let failed = || format!("cannot share the mounts below {}", dir.display());
    let set = |target: &Path| {
        mount(None::<&str>, target, None::<&str>, MsFlags::MS_SHARED, None::<&str>)
            .map_err(|error| io(failed())(error.into()))
    };
    let real = std::fs::canonicalize(dir).map_err(io(failed()))?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(io(failed()))?;
    if is_shared(&table, &real) {
        return Ok(());
    }
    if !is_mounted(&real) {
        // Mounts of pods that are there already would be covered, and then be in the way for ever.
        if !below(&real)?.is_empty() {
            return Err(VolumeError::StillMounted(real));
        }
        mount(Some(&real), &real, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .map_err(|error| io(failed())(error.into()))?;
    }
    set(&real)
}

/// Whether the mount that `path` lies on, by the kernel's table, passes on what is mounted below it.
fn is_shared(table: &str, path: &Path) -> bool {
    let mounts = table.lines().filter_map(|line| {
        let (fields, _) = line.split_once(" - ")?;
        let point = unescape(fields.split(' ').nth(4)?.as_bytes());
        Some((point, fields.split(' ').skip(6).any(|field| field.starts_with("shared:"))))
    });
    // The last of those at the deepest point lies on top.
    let over = mounts.filter(|(point, _)| path.starts_with(point));
    over.max_by_key(|(point, _)| point.components().count()).is_some_and(|(_, shared)| shared)
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

/// Takes away what was bound in `dir` for a container's mount of that number, whose attempts are named `number-attempt`.
pub(crate) fn forget_attempts(dir: &Path, number: usize) -> Result<(), VolumeError> {
    let prefix = format!("{number}-");
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        let path = entry.path();
        unmount_below(&path)?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // Only what was made to be mounted upon: a folder that is not empty stays.
        let _ = if is_dir { std::fs::remove_dir(&path) } else { std::fs::remove_file(&path) };
    }
    Ok(())
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
    fn the_mount_on_top_decides_whether_it_is_shared() {
        let table = "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n2 1 8:2 / /data rw - ext4 /dev/b rw\n\
            3 2 8:2 /k /data/k rw shared:7 - ext4 /dev/b rw\n";
        let check = |path: &str| is_shared(table, Path::new(path));
        assert!(check("/var/lib") && check("/data/k/pods") && check("/database"));
        assert!(!check("/data") && !check("/data/other"));
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
