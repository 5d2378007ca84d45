//! Files that change all at once: they lie in a timestamped directory that the link `..data` points to, and the names
//! users see are links through `..data`. Readers see either the old set or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use failpoint::step;

use super::{VolumeError, io};

/// One file of the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub content: Vec<u8>,
    pub mode: u32,
    /// Owner, if not root.
    pub owner: Option<u32>,
}

const DATA: &str = "..data";
/// What becomes `..data`.
const NEXT: &str = "..data_tmp";

/// Makes `files` (by relative path) the content of `dir`. `finish` sees the new directory before it becomes visible.
pub(crate) fn write(
    dir: &Path,
    files: &BTreeMap<String, File>,
    finish: impl FnOnce(&Path) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    for path in files.keys() {
        let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if path.is_empty() || !plain || path.starts_with("..") {
            return Err(VolumeError::Path(path.clone()));
        }
    }
    let data = dir.join(DATA);
    let old = std::fs::read_link(&data).ok().map(|target| dir.join(target));
    let failed = || format!("cannot write {}", dir.display());
    if let Some(old) = &old
        && same(old, files)
    {
        // An earlier write may have been broken off once its files were in place.
        show(dir, files).map_err(io(failed()))?;
        sweep(dir, old);
        return Ok(());
    }
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let name = format!("{stamp}.{}", rand::random::<u32>());
    let fresh = dir.join(&name);
    step("kubelet.atomic.folder");
    std::fs::create_dir(&fresh).map_err(io(failed()))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).map_err(io(failed()))?;
    for (path, file) in files {
        step("kubelet.atomic.file");
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            super::make_dir(parent)?;
        }
        std::fs::write(&target, &file.content).map_err(io(failed()))?;
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(file.mode))
            .map_err(io(failed()))?;
        if let Some(owner) = file.owner {
            std::os::unix::fs::chown(&target, Some(owner), None).map_err(io(failed()))?;
        }
    }
    step("kubelet.atomic.finish");
    finish(&fresh)?;
    let next = dir.join(NEXT);
    let _ = std::fs::remove_file(&next);
    symlink(&name, &next).map_err(io(failed()))?;
    step("kubelet.atomic.swap");
    std::fs::rename(&next, &data).map_err(io(failed()))?;
    show(dir, files).map_err(io(failed()))?;
    step("kubelet.atomic.sweep");
    sweep(dir, &fresh);
    Ok(())
}

/// Makes the names that users see those of `files`.
fn show(dir: &Path, files: &BTreeMap<String, File>) -> std::io::Result<()> {
    let visible: BTreeSet<&str> = files.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for name in &visible {
        step("kubelet.atomic.name");
        match symlink(PathBuf::from(DATA).join(name), dir.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if !found.starts_with("..") && !visible.contains(found.as_ref()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Removes every set but `current`: the one before, and those whose writing was broken off.
fn sweep(dir: &Path, current: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_set = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_set && entry.file_name().to_string_lossy().starts_with("..") && entry.path() != current {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let _ = std::fs::remove_file(dir.join(NEXT));
}

fn same(dir: &Path, files: &BTreeMap<String, File>) -> bool {
    let mut found = BTreeSet::new();
    list(dir, dir, &mut found);
    found.len() == files.len()
        && files.iter().all(|(path, file)| {
            found.contains(path) && std::fs::read(dir.join(path)).is_ok_and(|content| content == file.content)
        })
}

fn list(base: &Path, dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list(base, &path, found);
        } else if let Ok(relative) = path.strip_prefix(base) {
            found.insert(relative.to_string_lossy().into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, File> {
        let file = |content: &str| File { content: content.into(), mode: 0o644, owner: None };
        pairs.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
    }

    fn read(dir: &Path, path: &str) -> Option<String> {
        std::fs::read_to_string(dir.join(path)).ok()
    }

    #[test]
    fn a_set_replaces_the_one_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        write(dir, &set(&[("a", "1"), ("sub/b", "2")]), |_| Ok(())).expect("written");
        assert_eq!(read(dir, "a").as_deref(), Some("1"));
        assert_eq!(read(dir, "sub/b").as_deref(), Some("2"));
        let first = std::fs::read_link(dir.join(DATA)).expect("a link");
        write(dir, &set(&[("a", "1"), ("sub/b", "2")]), |_| Ok(())).expect("written");
        assert_eq!(std::fs::read_link(dir.join(DATA)).expect("a link"), first, "nothing changed");
        write(dir, &set(&[("a", "3")]), |_| Ok(())).expect("written");
        assert_eq!(read(dir, "a").as_deref(), Some("3"));
        assert!(!dir.join("sub").exists());
        assert!(!dir.join(first).exists(), "the old set is gone");
    }

    #[test]
    fn a_write_that_was_broken_off_is_finished() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let files = set(&[("a", "1"), ("b", "2")]);
        write(dir, &files, |_| Ok(())).expect("written");
        let data = std::fs::read_link(dir.join(DATA)).expect("a link");
        // Ended before all names were there, and an earlier try before its files were.
        std::fs::remove_file(dir.join("b")).expect("removed");
        std::fs::create_dir(dir.join("..half")).expect("made");
        std::fs::write(dir.join("..half/a"), "0").expect("written");
        symlink("..half", dir.join(NEXT)).expect("a link");
        write(dir, &files, |_| Ok(())).expect("written");
        assert_eq!(read(dir, "b").as_deref(), Some("2"));
        let mut left: Vec<_> =
            std::fs::read_dir(dir).expect("read").flatten().map(|one| one.file_name()).collect();
        left.sort();
        let mut expected = [data.as_os_str(), DATA.as_ref(), "a".as_ref(), "b".as_ref()];
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().expect("a directory");
        for path in ["../x", "/x", "..data", "a/../b", ""] {
            assert!(write(dir.path(), &set(&[(path, "")]), |_| Ok(())).is_err(), "{path}");
        }
    }
}
