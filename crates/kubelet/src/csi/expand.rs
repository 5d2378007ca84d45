//! Growing the file system, or the device, of a volume that has become larger than its claim says.

use std::path::Path;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::{Patch, PatchParams};
use plugins::csi::node_service_capability::rpc::Type as Can;
use plugins::csi::{CapacityRange, NodeExpandVolumeRequest};
use serde_json::{Value, json};
use tonic::Code;

use super::driver::{Driver, call};
use super::mount::secret;
use super::{Csi, CsiError, Order};
use crate::context::Context;
use crate::events;

/// Conditions of a claim that are over once it has grown.
const CONDITIONS: [&str; 4] =
    ["Resizing", "FileSystemResizePending", "ControllerResizeError", "NodeResizeError"];

impl Csi {
    /// Grows what the pod has at `path`, if there is need. A failure is told and tried again later; the pod goes on with
    /// the size there is.
    pub(super) async fn expand(
        &self,
        context: &Context,
        driver: &Driver,
        order: &Order<'_>,
        path: &Path,
        stage: Option<&Path>,
    ) -> Result<(), CsiError> {
        let (Some(size), Some(claim)) = (order.grows_to(), order.claim) else { return Ok(()) };
        let infeasible = claim.status.as_ref().and_then(|status| status.allocated_resource_statuses.as_ref());
        let infeasible =
            infeasible.and_then(|all| all.get("storage")).is_some_and(|now| now == "NodeResizeInfeasible");
        // A read-only file system cannot grow.
        if infeasible || order.read_only || !driver.can(Can::ExpandVolume) {
            return Ok(());
        }
        let request = NodeExpandVolumeRequest {
            volume_id: order.handle.clone(),
            volume_path: path.to_string_lossy().into_owned(),
            capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: 0 }),
            staging_target_path: stage.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            volume_capability: Some(order.capability(driver.can(Can::SingleNodeMultiWriter), None)),
            secrets: secret(context, order.expand_secret.as_ref()).await?,
        };
        let pod = events::pod(order.pod);
        match call!(driver, node_expand_volume, request) {
            Ok(_) => {
                let capacity = order.capacity_text();
                self.write_claim(claim, finished(claim, &capacity)).await?;
                let message =
                    format!("MountVolume.NodeExpandVolume succeeded for volume {:?}", order.spec_name);
                context.recorder.normal(pod, "FileSystemResizeSuccessful", message);
            }
            Err(error) => {
                let message = format!(
                    "NodeExpandVolume.NodeExpandVolume failed for volume {:?} : {error}",
                    order.spec_name
                );
                context.recorder.warning(pod, "VolumeResizeFailed", message);
                let is_final = matches!(&error, CsiError::Rpc { status, .. }
                    if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange | Code::NotFound));
                if is_final {
                    let statuses = json!({"allocatedResourceStatuses": {"storage": "NodeResizeInfeasible"}});
                    self.write_claim(claim, statuses).await?;
                }
            }
        }
        Ok(())
    }

    async fn write_claim(&self, claim: &PersistentVolumeClaim, status: Value) -> Result<(), CsiError> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Strategic(json!({"metadata": {"uid": claim.metadata.uid}, "status": status}));
        api.patch_status(name, &PatchParams::default(), &patch).await.map(drop).map_err(CsiError::Claim)
    }
}

/// The change of a claim's status that says that it has grown.
fn finished(claim: &PersistentVolumeClaim, capacity: &str) -> Value {
    let status = claim.status.clone().unwrap_or_default();
    let over = status.conditions.iter().flatten().filter(|one| CONDITIONS.contains(&one.type_.as_str()));
    let over: Vec<Value> = over.map(|one| json!({"$patch": "delete", "type": one.type_})).collect();
    let mut change = json!({"capacity": {"storage": capacity}});
    if !over.is_empty() {
        change["conditions"] = json!(over);
    }
    if status.allocated_resource_statuses.is_some() {
        change["allocatedResourceStatuses"] = json!({"storage": null});
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_has_grown_says_so() {
        let claim = json!({"status": {"allocatedResourceStatuses": {"storage": "NodeResizePending"},
            "conditions": [{"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"}]}});
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).expect("a claim");
        let expected = json!({"capacity": {"storage": "2Gi"}, "allocatedResourceStatuses": {"storage": null},
            "conditions": [{"$patch": "delete", "type": "FileSystemResizePending"}]});
        assert_eq!(finished(&claim, "2Gi"), expected);
    }
}
