//! `fsGroup`: the group that owns a volume's files.

use std::os::unix::fs::{PermissionsExt, lchown};
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

fn give(path: &Path, group: u32, read_only: bool) -> Result<(), VolumeError> {
    one(path, group, read_only)?;
    if std::fs::symlink_metadata(path).is_ok_and(|data| data.is_dir()) {
        let entries = std::fs::read_dir(path).map_err(io(format!("cannot read {}", path.display())))?;
        for entry in entries.flatten() {
            give(&entry.path(), group, read_only)?;
        }
    }
    Ok(())
}
