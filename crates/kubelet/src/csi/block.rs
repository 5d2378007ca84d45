//! Volumes that a pod has as a block device.
//!
//! Below `plugins/kubernetes.io/csi/volumeDevices`: `NAME/data` holds the record, `NAME/dev/UID` marks each pod that has the
//! device or may have it, `staging/NAME` and `publish/NAME/UID` are the driver's.

use std::collections::HashMap;
use std::path::PathBuf;

use plugins::csi::node_service_capability::rpc::Type as Can;
use plugins::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest};
use tokio_util::sync::CancellationToken;

use failpoint::step;

use super::driver::call;
use super::mount::secret;
use super::record::{Record, names};
use super::{Csi, CsiError, ESCAPED, Order, attach, io};
use crate::context::Context;
use crate::durable;
use crate::podutil;

impl Csi {
    /// Makes the device ready for the pod. Gives a path that leads to it.
    pub(crate) async fn map(
        &self,
        context: &Context,
        order: &Order<'_>,
        ending: &CancellationToken,
    ) -> Result<PathBuf, CsiError> {
        self.synced().await?;
        let object = self.object(&order.driver);
        let object = object.as_deref();
        let uid = podutil::uid(order.pod);
        let own = self.devices_dir().join(&order.spec_name);
        let (user, published) = (own.join("dev").join(uid), self.published(&order.spec_name, uid));
        let is_ready =
            std::fs::read_to_string(&user).is_ok_and(|boot| boot == self.boot) && published.exists();
        if is_ready && order.grows_to().is_none() {
            return Ok(published);
        }
        let driver = self.driver(&order.driver).await?;
        order.check_lifecycle(object)?;
        {
            let _lock = self.lock(&order.driver, &order.handle).await;
            let alone = order.access_modes.iter().any(|mode| mode == "ReadWriteOncePod");
            if alone && names(&own.join("dev")).iter().any(|user| user != uid) {
                return Err(CsiError::Taken);
            }
            Record::of(order, &self.node_name).write(&own.join("data"))?;
            if !user.exists() {
                let failed = || format!("cannot create {}", user.display());
                step("csi.map.user");
                std::fs::create_dir_all(own.join("dev")).map_err(io(failed()))?;
                durable::write(&user, b"").map_err(io(failed()))?;
            }
        }
        let mut publish_context = HashMap::new();
        if attach::is_required(object) {
            self.hold(&order.driver, &order.handle);
            publish_context = self.attached(&order.driver, &order.handle, ending).await?;
        }
        let _lock = self.lock(&order.driver, &order.handle).await;
        let exact = driver.can(Can::SingleNodeMultiWriter);
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut stage = None;
        if driver.can(Can::StageUnstageVolume) {
            let path = self.devices_dir().join("staging").join(&order.spec_name);
            if !is_ready {
                std::fs::create_dir_all(&path).map_err(io(format!("cannot create {}", path.display())))?;
                let request = NodeStageVolumeRequest {
                    volume_id: order.handle.clone(),
                    publish_context: publish_context.clone(),
                    staging_target_path: text(&path),
                    volume_capability: Some(order.capability(exact, None)),
                    secrets: secret(context, order.stage_secret.as_ref()).await?,
                    volume_context: order.context(),
                };
                step("csi.map.stage");
                call!(driver, node_stage_volume, request)?;
            }
            stage = Some(path);
        }
        if !is_ready {
            let parent = self.devices_dir().join("publish").join(&order.spec_name);
            std::fs::create_dir_all(&parent).map_err(io(format!("cannot create {}", parent.display())))?;
            let request = NodePublishVolumeRequest {
                volume_id: order.handle.clone(),
                publish_context,
                staging_target_path: stage.as_ref().map(text).unwrap_or_default(),
                target_path: text(&published),
                volume_capability: Some(order.capability(exact, None)),
                readonly: order.read_only,
                secrets: secret(context, order.publish_secret.as_ref()).await?,
                volume_context: order.pod_context(object),
            };
            step("csi.map.publish");
            call!(driver, node_publish_volume, request)?;
            if !published.exists() {
                return Err(CsiError::NoDevice(published));
            }
            step("csi.map.link");
            self.link(uid, &order.spec_name, &published)?;
            step("csi.map.ready");
            durable::write(&user, self.boot.as_bytes())
                .map_err(io(format!("cannot write {}", user.display())))?;
        }
        self.expand(context, &driver, order, &published, stage.as_deref()).await?;
        Ok(published)
    }

    /// Where the driver puts the device for a pod.
    pub(super) fn published(&self, spec_name: &str, uid: &str) -> PathBuf {
        self.devices_dir().join("publish").join(spec_name).join(uid)
    }

    /// Shows the device in the pod's folder, where others look for it.
    fn link(&self, uid: &str, spec_name: &str, published: &PathBuf) -> Result<(), CsiError> {
        let dir = self.root.join("pods").join(uid).join("volumeDevices").join(ESCAPED);
        let link = dir.join(spec_name);
        let failed = || format!("cannot create {}", link.display());
        std::fs::create_dir_all(&dir).map_err(io(failed()))?;
        match std::os::unix::fs::symlink(published, &link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(io(failed())(error)),
            _ => Ok(()),
        }
    }
}
