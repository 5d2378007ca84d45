//! Volumes with a file system: staged once for the node, published for each pod.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::SecretReference;
use k8s_openapi::api::storage::v1::CSIDriver;
use plugins::csi::node_service_capability::rpc::Type as Can;
use plugins::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use failpoint::step;

use super::driver::{Driver, call};
use super::record::Record;
use super::{Csi, CsiError, Order, attach, io};
use crate::context::Context;
use crate::objects::Kind;
use crate::podutil;
use crate::volumes::ownership;

impl Csi {
    /// Makes the volume ready for the pod; done again it is brought up to date. Gives the folder with its files.
    pub(crate) async fn mount(
        &self,
        context: &Context,
        order: &Order<'_>,
        ending: &CancellationToken,
    ) -> Result<PathBuf, CsiError> {
        self.synced().await?;
        let object = self.object(&order.driver);
        let object = object.as_deref();
        let dir = self.pod_dir(order);
        let target = dir.join("mount");
        let ready = Record::read(&dir)?.filter(|record| record.is_ready(&self.boot, &target));
        let again = object.is_some_and(|object| object.spec.requires_republish == Some(true));
        if ready.is_some() && !again && order.grows_to().is_none() {
            return Ok(target);
        }
        // Found before anything is promised, so that a missing driver is the first thing that is told.
        let driver = self.driver(&order.driver).await?;
        order.check_lifecycle(object)?;
        let record = ready.clone().unwrap_or_else(|| Record::of(order, &self.node_name));
        {
            let _lock = self.lock(&order.driver, &order.handle).await;
            let alone = order.access_modes.iter().any(|mode| mode == "ReadWriteOncePod");
            if alone && !self.other_users(&order.driver, &order.handle, podutil::uid(order.pod)).is_empty() {
                return Err(CsiError::Taken);
            }
            // From here on the volume counts as used by the pod, and is taken away with it.
            record.write(&dir)?;
        }
        let mut publish_context = HashMap::new();
        if !order.inline && attach::is_required(object) {
            self.hold(&order.driver, &order.handle);
            publish_context = self.attached(&order.driver, &order.handle, ending).await?;
        }
        let _lock = self.lock(&order.driver, &order.handle).await;
        let stage =
            if order.inline { None } else { self.stage(context, &driver, order, &publish_context).await? };
        if ready.is_none() || again {
            let published = self
                .publish(context, &driver, order, object, &target, stage.as_deref(), publish_context)
                .await;
            match published {
                // A volume that is in use stays as it is; only its news did not come.
                Err(error) if ready.is_some() => {
                    tracing::warn!(%error, volume = order.spec_name, "a volume could not be published anew");
                }
                other => other?,
            }
        }
        if ready.is_none() {
            let security = podutil::spec(order.pod).security_context.as_ref();
            let group = security.and_then(|security| security.fs_group);
            if !driver.can(Can::VolumeMountGroup) && order.gives_to_group(object) {
                let policy = security.and_then(|security| security.fs_group_change_policy.as_deref());
                let given = ownership::apply_to_volume(&target, group, policy);
                given.map_err(|error| {
                    io("cannot give the volume to the pod's group")(std::io::Error::other(error))
                })?;
            }
            step("csi.publish.ready");
            record.ready(&self.boot, &target).write(&dir)?;
        }
        step("csi.publish.expand");
        self.expand(context, &driver, order, &target, stage.as_deref()).await?;
        Ok(target)
    }

    /// Stages the volume if its driver wants that and it is not yet. Gives where.
    async fn stage(
        &self,
        context: &Context,
        driver: &Driver,
        order: &Order<'_>,
        publish_context: &HashMap<String, String>,
    ) -> Result<Option<PathBuf>, CsiError> {
        if !driver.can(Can::StageUnstageVolume) {
            return Ok(None);
        }
        let dir = self.global_dir(&order.driver, &order.handle);
        let path = dir.join("globalmount");
        if Record::read(&dir)?.is_some_and(|record| record.is_ready(&self.boot, &path)) {
            return Ok(Some(path));
        }
        let record = Record::of(order, &self.node_name);
        record.write(&dir)?;
        step("csi.stage.folder");
        std::fs::create_dir_all(&path).map_err(io(format!("cannot create {}", path.display())))?;
        let request = NodeStageVolumeRequest {
            volume_id: order.handle.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: path.to_string_lossy().into_owned(),
            volume_capability: Some(
                order.capability(driver.can(Can::SingleNodeMultiWriter), group_for(driver, order)),
            ),
            secrets: secret(context, order.stage_secret.as_ref()).await?,
            volume_context: order.context(),
        };
        step("csi.stage.call");
        call!(driver, node_stage_volume, request)?;
        step("csi.stage.ready");
        record.ready(&self.boot, &path).write(&dir)?;
        Ok(Some(path))
    }

    async fn publish(
        &self,
        context: &Context,
        driver: &Driver,
        order: &Order<'_>,
        object: Option<&CSIDriver>,
        target: &Path,
        stage: Option<&Path>,
        publish_context: HashMap<String, String>,
    ) -> Result<(), CsiError> {
        let mut secrets = secret(context, order.publish_secret.as_ref()).await?;
        let mut volume_context = order.pod_context(object);
        if let Some((key, tokens)) = tokens(context, order, object).await? {
            let in_secrets =
                object.is_some_and(|object| object.spec.service_account_token_in_secrets == Some(true));
            if in_secrets { &mut secrets } else { &mut volume_context }.insert(key, tokens);
        }
        let request = NodePublishVolumeRequest {
            volume_id: order.handle.clone(),
            publish_context,
            staging_target_path: stage.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            target_path: target.to_string_lossy().into_owned(),
            volume_capability: Some(
                order.capability(driver.can(Can::SingleNodeMultiWriter), group_for(driver, order)),
            ),
            readonly: order.read_only,
            secrets,
            volume_context,
        };
        step("csi.publish.call");
        call!(driver, node_publish_volume, request).map(drop)
    }
}

/// The group that a driver which sets it itself is told.
fn group_for(driver: &Driver, order: &Order<'_>) -> Option<i64> {
    let group = podutil::spec(order.pod).security_context.as_ref()?.fs_group;
    group.filter(|_| driver.can(Can::VolumeMountGroup))
}

/// A secret's content, for a driver.
pub(super) async fn secret(
    context: &Context,
    reference: Option<&SecretReference>,
) -> Result<HashMap<String, String>, CsiError> {
    let Some(reference) = reference else { return Ok(HashMap::new()) };
    let namespace = reference.namespace.as_deref().unwrap_or_default();
    let name = reference.name.as_deref().unwrap_or_default();
    let data = context.objects.get(Kind::Secret, namespace, name).await;
    let data = data.map_err(|error| CsiError::Secret(format!("{namespace}/{name}"), error))?;
    let text = |(key, value): (&String, &Vec<u8>)| (key.clone(), String::from_utf8_lossy(value).into_owned());
    Ok(data.all().map(text).collect())
}

/// Tokens of the pod's service account for those audiences that the driver's object asks for, by audience.
async fn tokens(
    context: &Context,
    order: &Order<'_>,
    object: Option<&CSIDriver>,
) -> Result<Option<(String, String)>, CsiError> {
    let wanted = object.and_then(|object| object.spec.token_requests.as_deref()).unwrap_or_default();
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut tokens = BTreeMap::new();
    for request in wanted {
        let audience = Some(request.audience.as_str()).filter(|audience| !audience.is_empty());
        let seconds = request.expiration_seconds.unwrap_or(3600);
        let token = context.tokens.get(order.pod, audience, seconds).await.map_err(CsiError::Token)?;
        let value = json!({"token": token.text, "expirationTimestamp": token.expires_at});
        tokens.insert(request.audience.clone(), value);
    }
    Ok(Some(("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), json!(tokens).to_string())))
}
