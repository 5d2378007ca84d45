//! The kubelet's folder under the name that drivers know. Manifests of CSI drivers and device plug-ins name
//! `/var/lib/kubelet`, as the node's path and as that inside their containers, so the paths that they are given must begin
//! with it. The files themselves stay in the data folder, to which a link leads.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::paths::Paths;

/// The kubelet's folder as it is to be called: `wanted`, made a link to the data folder if nothing else is there. What
/// belongs to another kubelet is left alone; drivers that name `wanted` then do not work, and the log says so.
pub fn ensure(wanted: &Path, paths: &Paths) -> anyhow::Result<PathBuf> {
    let real = paths.kubelet();
    std::fs::create_dir_all(&real).with_context(|| format!("making {}", real.display()))?;
    anyhow::ensure!(wanted.is_absolute(), "--kubelet-root {} is not an absolute path", wanted.display());
    if wanted == real {
        return Ok(real);
    }
    let is_ours = || std::fs::canonicalize(wanted).is_ok_and(|found| found == real);
    if is_ours() {
        return Ok(wanted.to_owned());
    }
    match link(wanted, &real) {
        Ok(()) => {
            let noted = paths.kubelet_link();
            std::fs::write(&noted, wanted.as_os_str().as_encoded_bytes())
                .with_context(|| format!("writing {}", noted.display()))?;
            Ok(wanted.to_owned())
        }
        Err(error) => {
            let (wanted, real) = (wanted.display(), real.display());
            tracing::warn!(
                %error,
                "{wanted} cannot be made a link to {real}: drivers that are installed for {wanted} do not work here, only those told {real}"
            );
            Ok(paths.kubelet())
        }
    }
}

/// Makes `wanted` a link to `real`, in the place of nothing, of an empty folder, or of a link that leads nowhere.
fn link(wanted: &Path, real: &Path) -> std::io::Result<()> {
    if let Some(parent) = wanted.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::symlink_metadata(wanted) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(data) if data.is_symlink() && !wanted.exists() => std::fs::remove_file(wanted)?,
        // Refused if it is not empty.
        Ok(data) if data.is_dir() => std::fs::remove_dir(wanted)?,
        Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
    }
    std::os::unix::fs::symlink(real, wanted)
}

/// Takes the link away again, if it is still ours.
pub fn remove(paths: &Paths) -> anyhow::Result<()> {
    use std::os::unix::ffi::OsStringExt;
    let noted = paths.kubelet_link();
    let Ok(wanted) = std::fs::read(&noted) else { return Ok(()) };
    let wanted = PathBuf::from(std::ffi::OsString::from_vec(wanted));
    if std::fs::read_link(&wanted).is_ok_and(|target| target == paths.kubelet()) {
        std::fs::remove_file(&wanted).with_context(|| format!("removing {}", wanted.display()))?;
    }
    std::fs::remove_file(&noted).with_context(|| format!("removing {}", noted.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_replaces_nothing_of_value() {
        let dir = tempfile::tempdir().expect("a folder");
        let paths = Paths::make(&dir.path().join("data")).expect("made");
        let wanted = dir.path().join("lib/kubelet");
        let ensured = || ensure(&wanted, &paths).expect("ensured");
        assert_eq!(ensured(), wanted);
        assert_eq!(ensured(), wanted, "again");
        assert_eq!(std::fs::canonicalize(&wanted).expect("there"), paths.kubelet());
        remove(&paths).expect("removed");
        assert!(!wanted.exists());
        // A link that leads nowhere, and an empty folder, are nobody's.
        std::os::unix::fs::symlink("/nowhere/at/all", &wanted).expect("linked");
        assert_eq!(ensured(), wanted);
        remove(&paths).expect("removed");
        std::fs::create_dir(&wanted).expect("made");
        assert_eq!(ensured(), wanted);
        remove(&paths).expect("removed");
        std::fs::create_dir_all(wanted.join("pods")).expect("made");
        assert_eq!(ensured(), paths.kubelet());
        remove(&paths).expect("nothing to remove");
        assert!(wanted.join("pods").exists());
        assert!(ensure(Path::new("here"), &paths).is_err());
    }
}
