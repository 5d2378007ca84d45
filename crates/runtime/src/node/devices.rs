//! Looks up the device nodes that a container is to have.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::error::Error;
use crate::spec::Device;

/// The node at `host`, or all nodes below it, for `path` in the container.
pub fn find(host: &str, path: &str, permissions: &str) -> Result<Vec<Device>, Error> {
    let metadata = std::fs::metadata(host).map_err(Error::io(format!("device {host}")))?;
    if metadata.is_dir() {
        let mut all = Vec::new();
        walk(Path::new(host), Path::new(path), permissions, &mut all);
        return Ok(all);
    }
    let device = describe(&metadata, path, permissions);
    device.map(|d| vec![d]).ok_or_else(|| Error::Invalid(format!("{host} is not a device")))
}

/// All devices of this machine, for a privileged container.
pub fn all() -> Vec<Device> {
    let mut all = Vec::new();
    walk(Path::new("/dev"), Path::new("/dev"), "rwm", &mut all);
    all
}

fn walk(host: &Path, path: &Path, permissions: &str, out: &mut Vec<Device>) {
    // What a container has its own of.
    const OWN: [&str; 5] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"];
    for entry in std::fs::read_dir(host).into_iter().flatten().flatten() {
        let at = path.join(entry.file_name());
        let name = at.to_string_lossy().into_owned();
        let Ok(metadata) = entry.metadata() else { continue };
        if OWN.contains(&name.as_str()) || metadata.is_symlink() {
            continue;
        }
        if metadata.is_dir() {
            walk(&entry.path(), &at, permissions, out);
        } else if let Some(device) = describe(&metadata, &name, permissions) {
            out.push(device);
        }
    }
}

fn describe(metadata: &std::fs::Metadata, path: &str, permissions: &str) -> Option<Device> {
    let kind = metadata.file_type();
    let kind = if kind.is_char_device() {
        'c'
    } else if kind.is_block_device() {
        'b'
    } else {
        return None;
    };
    Some(Device {
        path: path.to_owned(),
        kind,
        major: u64::from(libc::major(metadata.rdev())),
        minor: u64::from(libc::minor(metadata.rdev())),
        mode: metadata.mode() & 0o777,
        permissions: if permissions.is_empty() { "rwm".into() } else { permissions.to_owned() },
    })
}
