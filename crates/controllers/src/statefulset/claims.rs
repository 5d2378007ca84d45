//! The claims of a set's pods: made before the pod, kept or given away as the retention policy says.

use std::sync::Arc;

use informer::{EventType, reference};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, PostParams};

use super::Controller;
use super::plan::{claim_name, in_range, ordinal};
use crate::kit::refs::reference_to;
use crate::kit::{Error, Result};

impl Controller {
    fn claims_of(&self, set: &StatefulSet) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), set.metadata.namespace.as_deref().unwrap_or_default())
    }

    /// Makes the claims of an ordinal that are missing.
    pub(super) async fn create_claims(&self, set: &Arc<StatefulSet>, ordinal: i32) -> Result<()> {
        let spec = set.spec.clone().unwrap_or_default();
        let namespace = set.metadata.namespace.clone().unwrap_or_default();
        for template in spec.volume_claim_templates.iter().flatten() {
            let name = claim_name(set, template.metadata.name.as_deref().unwrap_or_default(), ordinal);
            if self.claims.find(&namespace, &name).is_some() {
                continue;
            }
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(namespace.clone()),
                    labels: Some(labels),
                    annotations: template.metadata.annotations.clone(),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            };
            let owner = set.metadata.name.as_deref().unwrap_or_default();
            let what = format!("Claim {name} Pod {owner}-{ordinal} in StatefulSet {owner}");
            match self.claims_of(set).create(&PostParams::default(), &claim).await.map_err(Error::from) {
                Ok(_) => {
                    let message = format!("create {what} success");
                    self.recorder.event(
                        reference(set.as_ref()),
                        EventType::Normal,
                        "SuccessfulCreate",
                        message,
                    );
                }
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                Err(error) => {
                    let message = format!("create {what} failed error: {}", error.message());
                    self.recorder.event(reference(set.as_ref()), EventType::Warning, "FailedCreate", message);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Brings the owners of the claims in line with the retention policy (KEP-1847).
    pub(super) async fn keep_claims(&self, set: &StatefulSet, pods: &[Arc<Pod>]) -> Result<()> {
        let spec = set.spec.clone().unwrap_or_default();
        let policy = spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
        let scaled = policy.when_scaled.as_deref() == Some("Delete");
        let deleted = policy.when_deleted.as_deref() == Some("Delete");
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        for pod in pods {
            let Some(ordinal) = ordinal(set, pod) else { continue };
            let condemned = !in_range(&spec, ordinal);
            for template in spec.volume_claim_templates.iter().flatten() {
                let name = claim_name(set, template.metadata.name.as_deref().unwrap_or_default(), ordinal);
                let Some(claim) = self.claims.find(namespace, &name) else { continue };
                let mut wanted: Option<OwnerReference> = None;
                if scaled && condemned {
                    wanted = Some(reference_to(pod.as_ref()));
                } else if deleted && !(scaled && condemned) {
                    wanted = Some(reference_to(set));
                }
                let old = claim.metadata.owner_references.clone().unwrap_or_default();
                let ours = |one: &OwnerReference| {
                    Some(&one.uid) == set.metadata.uid.as_ref() || Some(&one.uid) == pod.metadata.uid.as_ref()
                };
                if old.iter().any(|one| !ours(one) && one.controller == Some(true)) {
                    continue;
                }
                let mut new: Vec<OwnerReference> = old.iter().filter(|one| !ours(one)).cloned().collect();
                new.extend(wanted);
                if new != old {
                    let mut copy = claim.as_ref().clone();
                    copy.metadata.owner_references = Some(new);
                    self.claims_of(set).replace(&name, &PostParams::default(), &copy).await?;
                }
            }
        }
        Ok(())
    }
}
