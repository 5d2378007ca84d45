//! What is written on disk of each volume, in upstream's `vol_data.json`, so that it can be taken away without the API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use failpoint::step;

use super::{
    Csi, CsiError, ESCAPED, Order, PLUGIN, attachment_name, io, pod_volume, pod_volumes, unique_name,
};
use crate::durable;
use crate::podutil;

const FILE: &str = "vol_data.json";
/// Our own addition: the boot of the machine in which the volume was made ready.
const READY: &str = "readySinceBoot";
/// Our own addition: the driver mounted something, rather than filling a folder.
const MOUNTED: &str = "isMountPoint";

/// One record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record(BTreeMap<String, String>);

impl Record {
    /// The record of a volume as a pod has it.
    pub(super) fn of(order: &Order<'_>, node: &str) -> Self {
        let attachment = attachment_name(&order.driver, &order.handle, node);
        Record(
            [
                ("specVolID", order.spec_name.as_str()),
                ("volumeHandle", &order.handle),
                ("driverName", &order.driver),
                ("nodeName", node),
                ("attachmentID", &attachment),
                ("volumeLifecycleMode", order.lifecycle()),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        )
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map(String::as_str).unwrap_or_default()
    }

    pub(super) fn driver(&self) -> &str {
        self.get("driverName")
    }

    pub(super) fn handle(&self) -> &str {
        self.get("volumeHandle")
    }

    pub(super) fn is_inline(&self) -> bool {
        self.get("volumeLifecycleMode") == "Ephemeral"
    }

    pub(super) fn is_of(&self, driver: &str, handle: &str) -> bool {
        self.driver() == driver && self.handle() == handle
    }

    /// Whether the volume was made ready in this boot, and what was mounted then still is.
    pub(super) fn is_ready(&self, boot: &str, path: &Path) -> bool {
        let mounted = || crate::volumes::mounts::is_mounted(path);
        self.get(READY) == boot && path.exists() && (self.get(MOUNTED) != "true" || mounted())
    }

    /// The same volume, made ready at `path`.
    pub(super) fn ready(mut self, boot: &str, path: &Path) -> Self {
        self.0.insert(READY.to_owned(), boot.to_owned());
        self.0.insert(MOUNTED.to_owned(), crate::volumes::mounts::is_mounted(path).to_string());
        self
    }

    /// Reads the record in `dir`; `None` if there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, CsiError> {
        let path = dir.join(FILE);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(format!("cannot read {}", path.display()))(error)),
            Ok(text) => text,
        };
        let record = serde_json::from_slice(&text);
        record
            .map(|record| Some(Record(record)))
            .map_err(|error| CsiError::Record { path, why: error.to_string() })
    }

    /// Writes the record into `dir`, which is made.
    pub(super) fn write(&self, dir: &Path) -> Result<(), CsiError> {
        let failed = || format!("cannot write the record in {}", dir.display());
        let text = serde_json::to_vec(&self.0).map_err(|error| io(failed())(error.into()))?;
        let write = || {
            std::fs::create_dir_all(dir)?;
            step("csi.record.write");
            durable::write(&dir.join(FILE), &text)
        };
        match write() {
            // A sweep took the folder for one that a crash had left.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => write().map_err(io(failed())),
            other => other.map_err(io(failed())),
        }
    }

    /// Takes the record in `dir` away, and `dir`, which holds nothing else by then.
    pub(super) fn remove(dir: &Path) -> Result<(), CsiError> {
        let failed = || format!("cannot remove {}", dir.display());
        step("csi.record.remove");
        for path in [dir.join(FILE), dir.join(format!("{FILE}.new"))] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io(failed())(error));
                }
                _ => {}
            }
        }
        step("csi.record.folder");
        match std::fs::remove_dir(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(failed())(error)),
            _ => Ok(()),
        }
    }
}

/// Names of what lies in a folder; none if it is not there.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The records of all pods' volumes with a file system, each with the pod's uid and the volume's name.
pub(super) fn of_pods(root: &Path) -> Vec<(String, String, Record)> {
    let mut found = Vec::new();
    for uid in names(&root.join("pods")) {
        for name in names(&pod_volumes(root, &uid)) {
            match Record::read(&pod_volume(root, &uid, &name)) {
                Ok(Some(record)) => found.push((uid.clone(), name, record)),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a volume's record is unreadable"),
            }
        }
    }
    found
}

/// The records of volumes that are staged, or may be, with their folders.
pub(super) fn staged(root: &Path) -> Vec<(PathBuf, Record)> {
    let plugin = root.join("plugins").join(PLUGIN);
    let mut found = Vec::new();
    for driver in names(&plugin).into_iter().filter(|name| name != "volumeDevices") {
        for hash in names(&plugin.join(&driver)) {
            let dir = plugin.join(&driver).join(hash);
            match Record::read(&dir) {
                Ok(Some(record)) => found.push((dir, record)),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a volume's record is unreadable"),
            }
        }
    }
    found
}

/// The records of block volumes, each with its PersistentVolume's name.
pub(super) fn devices(root: &Path) -> Vec<(String, Record)> {
    let dir = root.join("plugins").join(PLUGIN).join("volumeDevices");
    let mut found = Vec::new();
    for name in names(&dir) {
        match Record::read(&dir.join(&name).join("data")) {
            Ok(Some(record)) => found.push((name, record)),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "a volume's record is unreadable"),
        }
    }
    found
}

/// Removes folders of volumes that a crash left without a record. One that holds anything else stays.
pub(super) fn remove_empty_folders(root: &Path) {
    let plugin = root.join("plugins").join(PLUGIN);
    for driver in names(&plugin) {
        for name in names(&plugin.join(&driver)) {
            let dir = plugin.join(&driver).join(&name);
            let devices = driver == "volumeDevices";
            let recorded = if devices { dir.join("data") } else { dir.clone() };
            if !matches!(Record::read(&recorded), Ok(None)) {
                continue;
            }
            let parts: &[&str] = if devices { &["data", "dev"] } else { &["globalmount"] };
            for path in parts.iter().map(|part| dir.join(part)).chain([dir.clone()]) {
                // Fails, as it should, for what is not empty or mounted upon.
                let _ = std::fs::remove_dir(path);
            }
        }
    }
}

/// What is, or may be, in use on this node, by the records on disk.
pub(super) fn in_use(root: &Path) -> BTreeSet<String> {
    let pods = of_pods(root).into_iter().map(|(_, _, record)| record).filter(|record| !record.is_inline());
    let staged = staged(root).into_iter().map(|(_, record)| record);
    let devices = devices(root).into_iter().map(|(_, record)| record);
    pods.chain(staged).chain(devices).map(|record| unique_name(record.driver(), record.handle())).collect()
}

impl Csi {
    /// The pods, other than `uid`, that a volume with a file system is published for, or may be.
    pub(super) fn other_users(&self, driver: &str, handle: &str, uid: &str) -> Vec<String> {
        let all = of_pods(&self.root).into_iter();
        all.filter(|(user, _, record)| user != uid && record.is_of(driver, handle))
            .map(|(user, ..)| user)
            .collect()
    }

    /// Where the pod of the order has, or gets, its volume.
    pub(super) fn pod_dir(&self, order: &Order<'_>) -> PathBuf {
        self.root
            .join("pods")
            .join(podutil::uid(order.pod))
            .join("volumes")
            .join(ESCAPED)
            .join(&order.spec_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(driver: &str, handle: &str, mode: &str) -> Record {
        let pairs = [("driverName", driver), ("volumeHandle", handle), ("volumeLifecycleMode", mode)];
        Record(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
    }

    #[test]
    fn records_tell_what_is_in_use() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        record("a.io", "1", "Persistent").write(&pod_volume(root, "u", "pv")).expect("written");
        record("a.io", "csi-2", "Ephemeral").write(&pod_volume(root, "u", "inline")).expect("written");
        let plugin = root.join("plugins").join(PLUGIN);
        record("b.io", "3", "").write(&plugin.join("b.io/hash")).expect("written");
        record("c.io", "4", "").write(&plugin.join("volumeDevices/pv4/data")).expect("written");
        let expected = ["a.io^1", "b.io^3", "c.io^4"].map(|name| format!("kubernetes.io/csi/{name}"));
        assert_eq!(in_use(root), expected.into());
        Record::remove(&pod_volume(root, "u", "pv")).expect("removed");
        Record::remove(&pod_volume(root, "u", "pv")).expect("removed again");
        assert_eq!(of_pods(root).len(), 1);
    }

    #[test]
    fn a_volume_of_an_earlier_boot_is_not_ready() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("mount");
        let plain = record("a.io", "1", "Persistent");
        std::fs::create_dir(&path).expect("made");
        let ready = plain.clone().ready("boot", &path);
        assert!(!plain.is_ready("boot", &path));
        assert!(ready.is_ready("boot", &path));
        assert!(!ready.is_ready("later", &path));
        std::fs::remove_dir(&path).expect("removed");
        assert!(!ready.is_ready("boot", &path));
    }
}
