//! Files that hold secrets: written whole or not at all, readable by their owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::{Error, key};

/// Makes the folder (mode 0700) and its parents unless they exist.
pub fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| Error::File {
        action: "create",
        path: path.into(),
        source,
    })
}

/// Writes the file with mode 0600. A crash leaves either the old content or the new one, on disk.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::File { action: "write", path: path.into(), source };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let suffix = u64::from_be_bytes(key::random()?);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{suffix:016x}"));
    let result = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        // The mode of `open` passes through the umask; this one does not.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if result.is_err() {
        // The first error is the one to tell; a leftover temporary file does no harm.
        let _ = fs::remove_file(&temporary);
    }
    result.map_err(failed)
}

/// The file's text, or `None` if there is no such file.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { action: "read", path: path.into(), source }),
    }
}
