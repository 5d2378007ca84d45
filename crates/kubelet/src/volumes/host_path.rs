//! The checks of hostPath types, and the creation of what may be missing.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use super::{VolumeError, io};

/// Checks that `path` is what `kind` says, making it for the `...OrCreate` kinds.
pub(super) fn check(path: &Path, kind: &str) -> Result<(), VolumeError> {
    let failed = || format!("cannot create {}", path.display());
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            std::fs::create_dir_all(path).map_err(io(failed()))?;
            return std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
                .map_err(io(failed()));
        }
        "FileOrCreate" if !path.exists() => {
            std::fs::write(path, "").map_err(io(failed()))?;
            return std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
                .map_err(io(failed()));
        }
        // Unchecked; the runtime needs something to bind, and upstream's makes a directory.
        "" if !path.exists() => return std::fs::create_dir_all(path).map_err(io(failed())),
        _ => {}
    }
    let found = std::fs::metadata(path).map(|data| data.file_type());
    let is = |test: fn(&std::fs::FileType) -> bool| found.as_ref().is_ok_and(test);
    let (good, wanted) = match kind {
        "" => return Ok(()),
        "Directory" | "DirectoryOrCreate" => (is(std::fs::FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(std::fs::FileType::is_file), "file"),
        "Socket" => (is(FileTypeExt::is_socket), "socket file"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "block device"),
        other => (false, other),
    };
    if good {
        return Ok(());
    }
    Err(VolumeError::HostPathType { path: path.display().to_string(), wanted: wanted.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_checked() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, sub) = (dir.path().join("f"), dir.path().join("d/e"));
        assert!(check(&file, "File").is_err());
        check(&file, "FileOrCreate").expect("created");
        check(&file, "File").expect("is a file");
        assert!(check(&file, "Directory").is_err());
        check(&sub, "DirectoryOrCreate").expect("created");
        check(&sub, "Directory").expect("is a directory");
        check(Path::new("/dev/null"), "CharDevice").expect("is a device");
        assert!(check(&file, "Socket").is_err());
    }
}
