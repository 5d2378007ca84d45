//! `fsGroup`: the group that owns a volume's files.

use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use super::{VolumeError, io};

const SETGID: u32 = 0o2000;

/// An emptyDir is writable by every user.
pub(super) fn open_to_all(dir: &Path) -> Result<(), VolumeError> {
    set_mode(dir, 0o777)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), VolumeError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(io(format!("cannot set the mode of {}", path.display())))
}

/// Gives everything below `path` to the group; `read_only` volumes get no write permission.
pub(super) fn apply(path: &Path, group: Option<i64>, read_only: bool) -> Result<(), VolumeError> {
    let Some(group) = group.and_then(|group| u32::try_from(group).ok()) else { return Ok(()) };
    give(path, group, read_only)
}

/// Gives only the directory itself to the group.
pub(super) fn apply_to_root(dir: &Path, group: Option<i64>) -> Result<(), VolumeError> {
    let Some(group) = group.and_then(|group| u32::try_from(group).ok()) else { return Ok(()) };
    one(dir, group, true)
}

/// Gives a PersistentVolume's files to the group; with the policy `OnRootMismatch` only if its top folder is not the
/// group's yet.
pub(crate) fn apply_to_volume(
    dir: &Path,
    group: Option<i64>,
    policy: Option<&str>,
) -> Result<(), VolumeError> {
    let Some(group) = group.and_then(|group| u32::try_from(group).ok()) else { return Ok(()) };
    if policy == Some("OnRootMismatch") && is_given(dir, group) {
        return Ok(());
    }
    give(dir, group, false)
}

fn is_given(dir: &Path, group: u32) -> bool {
    const WANTED: u32 = SETGID | 0o770;
    std::fs::metadata(dir).is_ok_and(|data| {
        data.is_dir() && data.gid() == group && data.permissions().mode() & WANTED == WANTED
    })
}

fn one(path: &Path, group: u32, read_only: bool) -> Result<(), VolumeError> {
    let failed = || format!("cannot give {} to group {group}", path.display());
    let data = std::fs::symlink_metadata(path).map_err(io(failed()))?;
    lchown(path, None, Some(group)).map_err(io(failed()))?;
    if data.is_symlink() {
        return Ok(());
    }
    let mut mode = data.permissions().mode() & 0o7777 | if read_only { 0o440 } else { 0o660 };
    if data.is_dir() {
        mode |= SETGID | 0o110;
    }
    set_mode(path, mode)
}

/// What lies deepest comes first: once the top is given, all is.
fn give(path: &Path, group: u32, read_only: bool) -> Result<(), VolumeError> {
    if std::fs::symlink_metadata(path).is_ok_and(|data| data.is_dir()) {
        let entries = std::fs::read_dir(path).map_err(io(format!("cannot read {}", path.display())))?;
        for entry in entries.flatten() {
            give(&entry.path(), group, read_only)?;
        }
    }
    one(path, group, read_only)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_given_once_if_that_is_the_policy() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("sub/f");
        std::fs::create_dir(dir.path().join("sub")).expect("made");
        std::fs::write(&file, "").expect("written");
        let group = |path: &Path| std::fs::metadata(path).expect("there").gid();
        let policy = Some("OnRootMismatch");
        apply_to_volume(dir.path(), Some(1234), policy).expect("given");
        assert_eq!((group(dir.path()), group(&file)), (1234, 1234));
        assert!(is_given(dir.path(), 1234) && !is_given(dir.path(), 1235));
        std::os::unix::fs::chown(&file, None, Some(5)).expect("taken");
        apply_to_volume(dir.path(), Some(1234), policy).expect("left");
        assert_eq!(group(&file), 5);
        apply_to_volume(dir.path(), Some(1234), None).expect("given");
        assert_eq!(group(&file), 1234);
    }
}
