//! The files of configMap, secret, downwardAPI and projected volumes.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume,
};

use super::atomic::File;
use super::{CLAIM_LOOK, Mounted, VolumeError, trust};
use crate::context::Context;
use crate::downward::{self, Addresses};
use crate::objects::{self, Kind, ObjectError};
use crate::podutil::{self, namespace, spec};

const DEFAULT_MODE: i32 = 0o644;

/// The plug-in directory of a volume whose content is generated.
pub(super) fn plugin(volume: &Volume) -> Option<&'static str> {
    if volume.config_map.is_some() {
        Some("configmap")
    } else if volume.secret.is_some() {
        Some("secret")
    } else if volume.downward_api.is_some() {
        Some("downward-api")
    } else if volume.projected.is_some() {
        Some("projected")
    } else {
        None
    }
}

struct Collector<'a> {
    context: &'a Context,
    pod: &'a Pod,
    ips: &'a [String],
    files: BTreeMap<String, File>,
    mounted: &'a mut Mounted,
}

/// The volume's files as they should be now.
pub(super) async fn collect(
    context: &Context,
    pod: &Pod,
    volume: &Volume,
    ips: &[String],
    mounted: &mut Mounted,
) -> Result<BTreeMap<String, File>, VolumeError> {
    let mut collector = Collector { context, pod, ips, files: BTreeMap::new(), mounted };
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        collector
            .object(Kind::ConfigMap, &source.name, source.items.as_deref(), mode, source.optional)
            .await?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        collector.object(Kind::Secret, name, source.items.as_deref(), mode, source.optional).await?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        collector.downward(source.items.as_deref().unwrap_or_default(), mode)?;
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            if let Some(map) = &part.config_map {
                collector
                    .object(Kind::ConfigMap, &map.name, map.items.as_deref(), mode, map.optional)
                    .await?;
            }
            if let Some(secret) = &part.secret {
                collector
                    .object(Kind::Secret, &secret.name, secret.items.as_deref(), mode, secret.optional)
                    .await?;
            }
            if let Some(downward) = &part.downward_api {
                collector.downward(downward.items.as_deref().unwrap_or_default(), mode)?;
            }
            if let Some(token) = &part.service_account_token {
                collector.token(token, mode).await?;
            }
            if let Some(bundle) = &part.cluster_trust_bundle {
                let content = trust::bundles(context, bundle).await?;
                let file = File { content, mode: mode as u32 & 0o777, owner: None };
                collector.files.insert(bundle.path.clone(), file);
                collector.mounted.renew(Timestamp::now() + CLAIM_LOOK);
            }
            if part.pod_certificate.is_some() {
                return Err(VolumeError::PodCertificate);
            }
        }
    }
    Ok(collector.files)
}

impl Collector<'_> {
    async fn object(
        &mut self,
        kind: Kind,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
    ) -> Result<(), VolumeError> {
        let optional = optional == Some(true);
        let space = namespace(self.pod);
        let mut held = self.context.objects.hold(kind, space, name);
        let found = objects::resolve(&mut held, kind, space, name).await;
        self.mounted.held.push(held);
        let data = match found {
            Ok(data) => data,
            Err(ObjectError::Missing { .. }) if optional => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut put = |path: &str, content: &[u8], mode: i32| {
            let file = File { content: content.to_vec(), mode: mode as u32 & 0o777, owner: None };
            self.files.insert(path.to_owned(), file);
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            data.all().for_each(|(key, content)| put(key, content, mode));
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(content) => put(&item.path, content, item.mode.unwrap_or(mode)),
                None if optional => {}
                None => {
                    let kind = if kind == Kind::Secret { "secret" } else { "config" };
                    return Err(VolumeError::Key { kind, key: item.key.clone() });
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile], mode: i32) -> Result<(), VolumeError> {
        let addresses = Addresses { pod: self.ips, host: &self.context.config.node_ips };
        for item in items {
            let text = if let Some(selector) = &item.field_ref {
                downward::field(self.pod, &addresses, selector)?
            } else if let Some(selector) = &item.resource_field_ref {
                let name = selector.container_name.as_deref().unwrap_or_default();
                let (container, _) = podutil::container(self.pod, name)
                    .ok_or_else(|| downward::DownwardError::Container(name.to_owned()))?;
                downward::resource(self.pod, &container, selector, &self.context.allocatable)?
            } else {
                continue;
            };
            let mode = item.mode.unwrap_or(mode) as u32 & 0o777;
            self.files.insert(item.path.clone(), File { content: text.into_bytes(), mode, owner: None });
        }
        Ok(())
    }

    async fn token(&mut self, source: &ServiceAccountTokenProjection, mode: i32) -> Result<(), VolumeError> {
        let audience = source.audience.as_deref().filter(|audience| !audience.is_empty());
        let token = self
            .context
            .tokens
            .get(self.pod, audience, source.expiration_seconds.unwrap_or(3600))
            .await
            .map_err(VolumeError::Token)?;
        let renew = token.renew_at.min(Timestamp::now() + SignedDuration::from_hours(24));
        self.mounted.renew(renew);
        let fs_group = spec(self.pod).security_context.as_ref().and_then(|security| security.fs_group);
        let owner = common_user(self.pod);
        // A token is as private as the users of the pod's containers allow.
        let mode = if owner.is_some() || fs_group.is_some() { 0o600 } else { mode as u32 & 0o777 };
        let content = token.text.into_bytes();
        self.files.insert(source.path.clone(), File { content, mode, owner });
        Ok(())
    }
}

/// The user that all containers run as, if they share one.
fn common_user(pod: &Pod) -> Option<u32> {
    let of_pod = spec(pod).security_context.as_ref().and_then(|security| security.run_as_user);
    let mut users =
        spec(pod).init_containers.iter().flatten().chain(&spec(pod).containers).map(|container| {
            container.security_context.as_ref().and_then(|security| security.run_as_user).or(of_pod)
        });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}
