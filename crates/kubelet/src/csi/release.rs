//! Takes CSI volumes away from pods that end, and from the node once no pod has them.

use std::collections::BTreeSet;
use std::path::Path;

use plugins::csi::node_service_capability::rpc::Type as Can;
use plugins::csi::{NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest};

use failpoint::step;

use super::driver::call;
use super::record::{self, Record, names};
use super::{Csi, CsiError, io, pod_volume, pod_volumes};
use crate::volumes::mounts;

impl Csi {
    /// Takes all CSI volumes of a pod away. Can be tried again.
    pub(crate) async fn release(&self, uid: &str) -> Result<(), CsiError> {
        for name in names(&pod_volumes(&self.root, uid)) {
            self.unmount(uid, &name).await?;
        }
        for (name, record) in record::devices(&self.root) {
            if self.devices_dir().join(&name).join("dev").join(uid).exists() {
                self.unmap(uid, &name, &record).await?;
            }
        }
        Ok(())
    }

    async fn unmount(&self, uid: &str, name: &str) -> Result<(), CsiError> {
        let dir = pod_volume(&self.root, uid, name);
        let Some(record) = Record::read(&dir)? else {
            // The record is written before anything else happens.
            return Record::remove(&dir);
        };
        let (driver, handle) = (record.driver(), record.handle());
        let _lock = self.lock(driver, handle).await;
        let target = dir.join("mount");
        let client = self.driver(driver).await?;
        let request = NodeUnpublishVolumeRequest {
            volume_id: handle.to_owned(),
            target_path: target.to_string_lossy().into_owned(),
        };
        step("csi.unpublish.call");
        call!(client, node_unpublish_volume, request)?;
        step("csi.unpublish.folder");
        remove_empty(&target)?;
        step("csi.unpublish.record");
        Record::remove(&dir)?;
        if !record.is_inline() && self.other_users(driver, handle, uid).is_empty() {
            self.unstage(&record).await?;
        }
        Ok(())
    }

    /// Takes a volume that no pod has from the node. The caller holds its lock.
    async fn unstage(&self, record: &Record) -> Result<(), CsiError> {
        let (driver, handle) = (record.driver(), record.handle());
        let dir = self.global_dir(driver, handle);
        step("csi.unstage.begin");
        if Record::read(&dir)?.is_some() {
            let client = self.driver(driver).await?;
            let path = dir.join("globalmount");
            if client.can(Can::StageUnstageVolume) {
                let request = NodeUnstageVolumeRequest {
                    volume_id: handle.to_owned(),
                    staging_target_path: path.to_string_lossy().into_owned(),
                };
                step("csi.unstage.call");
                call!(client, node_unstage_volume, request)?;
            }
            step("csi.unstage.folder");
            remove_empty(&path)?;
        }
        // Without a record nothing was staged, but a try may have made the folder.
        step("csi.unstage.record");
        Record::remove(&dir)?;
        step("csi.unstage.detach");
        self.let_go(driver, handle);
        Ok(())
    }

    async fn unmap(&self, uid: &str, name: &str, record: &Record) -> Result<(), CsiError> {
        let (driver, handle) = (record.driver(), record.handle());
        let _lock = self.lock(driver, handle).await;
        let published = self.published(name, uid);
        let client = self.driver(driver).await?;
        let request = NodeUnpublishVolumeRequest {
            volume_id: handle.to_owned(),
            target_path: published.to_string_lossy().into_owned(),
        };
        step("csi.unmap.call");
        call!(client, node_unpublish_volume, request)?;
        step("csi.unmap.file");
        if published.exists() {
            if mounts::is_mounted(&published) {
                return Err(CsiError::StillMounted(published));
            }
            remove_file(&published)?;
        }
        let own = self.devices_dir().join(name);
        step("csi.unmap.user");
        remove_file(&own.join("dev").join(uid))?;
        if names(&own.join("dev")).is_empty() {
            self.unstage_device(name, record).await?;
        }
        Ok(())
    }

    /// Takes a block volume that no pod has from the node. The caller holds its lock.
    async fn unstage_device(&self, name: &str, record: &Record) -> Result<(), CsiError> {
        let (driver, handle) = (record.driver(), record.handle());
        step("csi.unstage_device.begin");
        let staging = self.devices_dir().join("staging").join(name);
        if staging.exists() {
            let client = self.driver(driver).await?;
            if client.can(Can::StageUnstageVolume) {
                let request = NodeUnstageVolumeRequest {
                    volume_id: handle.to_owned(),
                    staging_target_path: staging.to_string_lossy().into_owned(),
                };
                step("csi.unstage_device.call");
                call!(client, node_unstage_volume, request)?;
            }
            step("csi.unstage_device.files");
            for left in names(&staging) {
                let left = staging.join(left);
                if mounts::is_mounted(&left) {
                    return Err(CsiError::StillMounted(left));
                }
                remove_file(&left)?;
            }
            remove_empty(&staging)?;
        }
        remove_empty(&self.devices_dir().join("publish").join(name))?;
        let own = self.devices_dir().join(name);
        remove_empty(&own.join("dev"))?;
        step("csi.unstage_device.record");
        Record::remove(&own.join("data"))?;
        step("csi.unstage_device.folder");
        remove_empty(&own)?;
        self.let_go(driver, handle);
        Ok(())
    }

    /// Takes away what is left of volumes that no pod on disk has: a crash between two steps leaves such. Tells whether all
    /// of it is gone.
    pub(crate) async fn sweep(&self) -> bool {
        let mut all_gone = true;
        for (_, record) in record::staged(&self.root) {
            let _lock = self.lock(record.driver(), record.handle()).await;
            if self.other_users(record.driver(), record.handle(), "").is_empty() {
                all_gone &= self.told(&record, self.unstage(&record).await);
            }
        }
        for (name, record) in record::devices(&self.root) {
            let _lock = self.lock(record.driver(), record.handle()).await;
            if names(&self.devices_dir().join(&name).join("dev")).is_empty() {
                all_gone &= self.told(&record, self.unstage_device(&name, &record).await);
            }
        }
        record::remove_empty_folders(&self.root);
        // Volumes that were only waited for leave no record behind.
        let recorded = record::in_use(&self.root);
        let held: BTreeSet<String> = self.in_use.borrow().clone();
        for name in held.difference(&recorded) {
            let Some((driver, handle)) =
                name.strip_prefix("kubernetes.io/csi/").and_then(|name| name.split_once('^'))
            else {
                continue;
            };
            let _lock = self.lock(driver, handle).await;
            if !record::in_use(&self.root).contains(name) {
                self.let_go(driver, handle);
            }
        }
        all_gone
    }

    fn told(&self, record: &Record, outcome: Result<(), CsiError>) -> bool {
        if let Err(error) = &outcome {
            tracing::warn!(%error, volume = record.handle(), "cannot take a volume from the node that no pod has");
        }
        outcome.is_ok()
    }
}

/// Removes a folder that must be empty and no mount point by now; drivers should have done so themselves.
fn remove_empty(path: &Path) -> Result<(), CsiError> {
    if path.exists() && mounts::is_mounted(path) {
        return Err(CsiError::StillMounted(path.to_owned()));
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("cannot remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<(), CsiError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("cannot remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}
