//! Unpacked layers, one directory each, named by the digest of the layer's tar stream. Layers do not depend on what is below
//! them, so images share them freely.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use failpoint::step;

use super::Error;
use super::content::{Content, sync_dir};
use super::manifest::Descriptor;
use super::unpack::unpack;

/// The directory of all unpacked layers.
#[derive(Debug, Clone)]
pub struct Layers {
    root: PathBuf,
}

impl Layers {
    /// Opens the directory, removing what an interrupted unpacking left.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let root = root.join("layers");
        std::fs::create_dir_all(&root).map_err(|e| Error::io("make", &root, e))?;
        let layers = Self { root };
        for name in layers.names()?.filter(|n| n.starts_with("new-") || n.starts_with("old-")) {
            let _ = std::fs::remove_dir_all(layers.root.join(name));
        }
        Ok(layers)
    }

    /// The directory that layer keys are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory name of a layer: short, since overlayfs takes all names of a mount in one page.
    pub fn key(diff_id: &str) -> String {
        diff_id.trim_start_matches("sha256:").chars().take(24).collect()
    }

    /// Whether a layer is unpacked.
    pub fn has(&self, key: &str) -> bool {
        self.root.join(key).is_dir()
    }

    /// Unpacks a layer's blob unless that was done. Blocks.
    pub fn unpack(&self, content: &Content, layer: &Descriptor, diff_id: &str) -> Result<(), Error> {
        let key = Self::key(diff_id);
        if self.has(&key) {
            return Ok(());
        }
        let blob = content.open_blob(&layer.digest)?;
        self.build(&key, |dir| unpack(blob, dir, diff_id))
    }

    /// Makes a layer of blobs as they are, each a file by its title (`org.opencontainers.image.title`) or its digest. Blocks.
    pub fn lay_out(&self, content: &Content, key: &str, blobs: &[Descriptor]) -> Result<(), Error> {
        if self.has(key) {
            return Ok(());
        }
        self.build(key, |dir| {
            for blob in blobs {
                let hex = blob.digest.trim_start_matches("sha256:");
                let title = blob.annotations.get("org.opencontainers.image.title");
                let title = title.map_or(hex, |title| title.trim_start_matches('/'));
                let path = Path::new(title);
                let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
                if title.is_empty() || !plain {
                    return Err(Error::invalid(
                        "artifact",
                        format!("the title {title:?} is no path below it"),
                    ));
                }
                let to = dir.join(path);
                if let Some(parent) = to.parent() {
                    std::fs::create_dir_all(parent).map_err(|e| Error::io("make", parent, e))?;
                }
                let mut from = content.open_blob(&blob.digest)?;
                let mut file = File::create_new(&to).map_err(|e| Error::io("create", &to, e))?;
                std::io::copy(&mut from, &mut file).map_err(|e| Error::io("write", &to, e))?;
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
                file.set_permissions(mode).map_err(|e| Error::io("write", &to, e))?;
            }
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(dir, mode).map_err(|e| Error::io("write", dir, e))
        })
    }

    /// Makes a layer by filling a new directory, which becomes visible only whole.
    pub fn build(&self, key: &str, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
        let temporary = self.root.join(format!("new-{}", uuid::Uuid::new_v4().simple()));
        step("image.layer.directory");
        std::fs::create_dir(&temporary).map_err(|e| Error::io("make", &temporary, e))?;
        let filled = fill(&temporary).and_then(|()| {
            step("image.layer.sync");
            sync_file_system(&temporary)?;
            let to = self.root.join(key);
            step("image.layer.rename");
            match std::fs::rename(&temporary, &to) {
                // Another pull was quicker.
                Err(_) if to.is_dir() => Ok(()),
                Err(e) => Err(Error::io("rename", &to, e)),
                Ok(()) => sync_dir(&self.root),
            }
        });
        if temporary.exists() {
            let _ = std::fs::remove_dir_all(&temporary);
        }
        filled
    }

    /// Removes a layer. It is renamed first, so that an interrupted removal leaves no half layer under its name.
    pub fn remove(&self, key: &str) -> Result<(), Error> {
        let from = self.root.join(key);
        let to = self.root.join(format!("old-{key}"));
        match std::fs::rename(&from, &to) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("rename", &from, e)),
            Ok(()) => {}
        }
        step("image.layer.remove");
        std::fs::remove_dir_all(&to).map_err(|e| Error::io("remove", &to, e))
    }

    /// All layers' keys.
    pub fn names(&self) -> Result<impl Iterator<Item = String> + use<>, Error> {
        let entries = std::fs::read_dir(&self.root).map_err(|e| Error::io("list", &self.root, e))?;
        Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()))
    }

    /// Reads a file as a container of these layers (uppermost first) would see it, without mounting them. Symlinks are not
    /// followed: a file that is one is treated as absent.
    pub fn read(&self, lower: &[String], path: &str) -> Option<Vec<u8>> {
        use std::os::unix::fs::FileTypeExt;
        for key in lower {
            let file = self.root.join(key).join(path.trim_start_matches('/'));
            if let Ok(metadata) = std::fs::symlink_metadata(&file) {
                if metadata.file_type().is_char_device() || !metadata.is_file() || metadata.len() > 4 << 20 {
                    return None;
                }
                return std::fs::read(file).ok();
            }
        }
        None
    }
}

/// One call instead of one per file.
fn sync_file_system(dir: &Path) -> Result<(), Error> {
    let file = File::open(dir).map_err(|e| Error::io("open", dir, e))?;
    // SAFETY: syncfs takes a descriptor that is open through the call.
    if unsafe { libc::syncfs(file.as_raw_fd()) } < 0 {
        return Err(Error::io("sync", dir, std::io::Error::last_os_error()));
    }
    Ok(())
}
