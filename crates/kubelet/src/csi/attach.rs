//! Volumes that a controller attaches: the node says that it uses them, and waits until they are there.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Csi, CsiError, attachment_name, unique_name};

/// How long one try waits for a volume to be attached.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a refused or failed write waits for the next.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether a controller attaches the driver's volumes to nodes; so unless its object denies it.
pub(super) fn is_required(object: Option<&CSIDriver>) -> bool {
    object.is_none_or(|object| object.spec.attach_required != Some(false))
}

impl Csi {
    /// Keeps a volume attached to this node from now on.
    pub(super) fn hold(&self, driver: &str, handle: &str) {
        let name = unique_name(driver, handle);
        self.in_use.send_if_modified(|all| all.insert(name));
    }

    /// The volume may be detached.
    pub(super) fn let_go(&self, driver: &str, handle: &str) {
        let name = unique_name(driver, handle);
        self.in_use.send_if_modified(|all| all.remove(&name));
    }

    /// Waits until the held volume is attached, and gives what the driver's controller tells its node part.
    pub(super) async fn attached(
        &self,
        driver: &str,
        handle: &str,
        ending: &CancellationToken,
    ) -> Result<HashMap<String, String>, CsiError> {
        let name = unique_name(driver, handle);
        let mut node = self.node.clone();
        let late = tokio::time::sleep(PATIENCE);
        tokio::pin!(late);
        // That the node uses it has to be known before it is used, or it might be detached again meanwhile.
        let there = |status: &NodeStatus| {
            status.volumes_in_use.iter().flatten().any(|one| *one == name)
                && status.volumes_attached.iter().flatten().any(|one| one.name == name)
        };
        loop {
            let ready =
                node.borrow_and_update().as_deref().and_then(|node| node.status.as_ref()).is_some_and(there);
            if ready {
                break;
            }
            tokio::select! {
                changed = node.changed() => if changed.is_err() { return Err(CsiError::Ending) },
                () = ending.cancelled() => return Err(CsiError::Ending),
                () = &mut late => return Err(self.why_not(&name, driver, handle).await),
            }
        }
        let attachment = self.attachment(driver, handle).await?;
        let status = attachment.status.unwrap_or_default();
        if attachment.metadata.deletion_timestamp.is_some() {
            return Err(CsiError::AttachFailed(name, "it is being undone".to_owned()));
        }
        if !status.attached {
            return Err(CsiError::NotAttached(name));
        }
        Ok(status.attachment_metadata.unwrap_or_default().into_iter().collect())
    }

    async fn attachment(&self, driver: &str, handle: &str) -> Result<VolumeAttachment, CsiError> {
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        let found = api.get(&attachment_name(driver, handle, &self.node_name)).await;
        found.map_err(|error| CsiError::Attachment(unique_name(driver, handle), error))
    }

    /// What keeps a volume from being attached.
    async fn why_not(&self, name: &str, driver: &str, handle: &str) -> CsiError {
        let reported = self.node.borrow().as_deref().is_some_and(|node| reported(node).contains(name));
        if !reported {
            return CsiError::NotReported(name.to_owned());
        }
        let attachment = self.attachment(driver, handle).await.ok();
        let error = attachment.and_then(|attachment| attachment.status?.attach_error?.message);
        match error {
            Some(message) => CsiError::AttachFailed(name.to_owned(), message),
            None => CsiError::NotAttached(name.to_owned()),
        }
    }

    /// Keeps the list in the node's status in step.
    pub(super) async fn report_in_use(&self) {
        let (mut in_use, mut node) = (self.in_use.subscribe(), self.node.clone());
        let api: Api<Node> = Api::all(self.client.clone());
        loop {
            let wanted = in_use.borrow_and_update().clone();
            let known = node.borrow_and_update().as_deref().map(reported);
            if known.is_some_and(|known| known != wanted) {
                let patch = Patch::Merge(json!({"status": {"volumesInUse": wanted}}));
                if let Err(error) = api.patch_status(&self.node_name, &PatchParams::default(), &patch).await {
                    tracing::warn!(%error, "cannot write which volumes the node uses");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            tokio::select! {
                changed = in_use.changed() => if changed.is_err() { return },
                changed = node.changed() => if changed.is_err() { return },
            }
        }
    }
}

fn reported(node: &Node) -> BTreeSet<String> {
    let status = node.status.as_ref();
    status.and_then(|status| status.volumes_in_use.as_ref()).into_iter().flatten().cloned().collect()
}
