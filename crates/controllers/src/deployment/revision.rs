//! Revisions: which set belongs to the template as it is now, the numbers that `kubectl rollout` shows, and
//! making the set of a new revision.

use std::sync::Arc;

use informer::{EventType, reference};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::api::{ObjectMeta, PostParams};

use super::{Controller, plan, spec_of, status};
use crate::kit::refs::{is_controlled_by, reference_to};
use crate::kit::{Error, Result, history, now};

const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
];
const HASH: &str = "pod-template-hash";
const HISTORY_LENGTH: usize = 2000;
const NAME_LENGTH: usize = 253;

/// A number kept in an annotation.
pub(super) fn number(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok().filter(|number| *number >= 0)
}

/// The revision of a set, 0 if it has none.
pub(super) fn of_set(set: &ReplicaSet) -> i64 {
    let annotation = set.metadata.annotations.as_ref().and_then(|all| all.get(REVISION));
    annotation.and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// What sets are sorted by, oldest first.
pub(super) fn age(set: &ReplicaSet) -> (Timestamp, Option<String>) {
    let created = set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (created.unwrap_or(Timestamp::MIN), set.metadata.name.clone())
}

fn annotate(set: &mut ReplicaSet, key: &str, value: String) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(key.to_owned(), value.clone()).as_ref() != Some(&value)
}

/// Notes in a set what it was last sized for.
pub(super) fn note_sizes(set: &mut ReplicaSet, spec: &DeploymentSpec) -> bool {
    let desired = plan::desired(spec);
    let noted = annotate(set, DESIRED, desired.to_string());
    annotate(set, MAXIMUM, (desired + plan::max_surge(spec)).to_string()) || noted
}

/// Whether two templates are the same but for the hash that tells their sets apart.
fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let plain = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let meta = template.metadata.get_or_insert_default();
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH);
        }
        meta.labels.take_if(|labels| labels.is_empty());
        meta.annotations.take_if(|annotations| annotations.is_empty());
        meta.creation_timestamp = None;
        template
    };
    plain(a) == plain(b)
}

fn has_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    set.spec.as_ref().and_then(|spec| spec.template.as_ref()).is_some_and(|own| same_template(own, template))
}

/// Copies the deployment's annotations and raises the set's revision; whether anything changed.
fn annotate_new(deployment: &Deployment, set: &mut ReplicaSet, revision: i64) -> bool {
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            changed |= annotate(set, key, value.clone());
        }
    }
    let had = set.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(REVISION));
    let before = of_set(set);
    if before < revision {
        annotate(set, REVISION, revision.to_string());
        changed = true;
        if had {
            let past = set.metadata.annotations.as_ref().and_then(|all| all.get(HISTORY)).cloned();
            let mut past: Vec<String> = past
                .iter()
                .flat_map(|past| past.split(','))
                .filter(|one| !one.is_empty())
                .map(Into::into)
                .collect();
            past.push(before.to_string());
            while past.len() > 1 && past.iter().map(|one| one.len() + 1).sum::<usize>() > HISTORY_LENGTH {
                past.remove(0);
            }
            annotate(set, HISTORY, past.join(","));
        }
    }
    changed
}

fn set_revision(deployment: &mut Deployment, revision: String) -> bool {
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    annotations.insert(REVISION.into(), revision.clone()).as_ref() != Some(&revision)
}

impl Controller {
    /// The set of the template as it is now, made if asked for, and all others. Keeps the revision numbers.
    pub(super) async fn revisions(
        &self,
        deployment: &mut Deployment,
        sets: &[Arc<ReplicaSet>],
        create: bool,
    ) -> Result<(Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>)> {
        let spec = spec_of(deployment);
        // The oldest, if several have it.
        let existing = sets.iter().find(|set| has_template(set, &spec.template)).cloned();
        let old: Vec<_> = sets
            .iter()
            .filter(|set| existing.as_ref().is_none_or(|new| new.metadata.uid != set.metadata.uid))
            .cloned()
            .collect();
        let revision = old.iter().map(|set| of_set(set)).max().unwrap_or_default() + 1;
        let new = match existing {
            Some(set) => Some(self.update_new(deployment, set, revision).await?),
            None if create => Some(self.create_new(deployment, &old, revision).await?),
            None => None,
        };
        Ok((new, old))
    }

    async fn update_new(
        &self,
        deployment: &mut Deployment,
        set: Arc<ReplicaSet>,
        revision: i64,
    ) -> Result<Arc<ReplicaSet>> {
        let minimum = spec_of(deployment).min_ready_seconds;
        let mut copy = set.as_ref().clone();
        let annotated = annotate_new(deployment, &mut copy, revision);
        let spec = copy.spec.get_or_insert_default();
        if annotated || spec.min_ready_seconds.unwrap_or_default() != minimum.unwrap_or_default() {
            spec.min_ready_seconds = minimum;
            let name = copy.metadata.name.clone().unwrap_or_default();
            let written = self.sets_of(deployment).replace(&name, &PostParams::default(), &copy).await?;
            return Ok(Arc::new(written));
        }
        let mut changed = set_revision(deployment, of_set(&set).to_string());
        let mut new = deployment.status.clone().unwrap_or_default();
        if status::has_deadline(&spec_of(deployment))
            && status::condition(&new, status::PROGRESSING).is_none()
        {
            let message =
                format!("Found new replica set {:?}", set.metadata.name.as_deref().unwrap_or_default());
            status::set(&mut new, status::PROGRESSING, "True", "FoundNewReplicaSet", message, now());
            deployment.status = Some(new);
            changed = true;
        }
        if changed {
            self.write_status(deployment).await?;
        }
        Ok(set)
    }

    async fn create_new(
        &self,
        deployment: &mut Deployment,
        old: &[Arc<ReplicaSet>],
        revision: i64,
    ) -> Result<Arc<ReplicaSet>> {
        let spec = spec_of(deployment);
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = history::hash(&spec.template, collisions);
        let mut template = spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(HASH.into(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
        let mut name = deployment.metadata.name.clone().unwrap_or_default();
        name.truncate(NAME_LENGTH - 1 - hash.len());
        let name = format!("{name}-{hash}");
        let total = old.iter().map(|set| plan::size(set)).sum();
        let size = plan::new_size(&spec, 0, total);
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: deployment.metadata.namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![reference_to(deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(size),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        annotate_new(deployment, &mut set, revision);
        note_sizes(&mut set, &spec);

        let api = self.sets_of(deployment);
        let mut new = deployment.status.clone().unwrap_or_default();
        let (created, fresh) = match api.create(&PostParams::default(), &set).await.map_err(Error::from) {
            Ok(created) => (created, true),
            Err(error) if error.is_already_exists() => {
                let taken = api.get(&name).await?;
                if !is_controlled_by(&taken.metadata, &deployment.metadata)
                    || !has_template(&taken, &spec.template)
                {
                    new.collision_count = Some(collisions.unwrap_or_default() + 1);
                    deployment.status = Some(new);
                    self.write_status(deployment).await?;
                    return Err(Error::Collision(name));
                }
                (taken, false)
            }
            Err(error) if error.is_namespace_terminating() => return Err(error),
            Err(error) => {
                let message = format!("Failed to create new replica set {name:?}: {}", error.message());
                if status::has_deadline(&spec) {
                    let reason = "ReplicaSetCreateError";
                    status::set(&mut new, status::PROGRESSING, "False", reason, message.clone(), now());
                    deployment.status = Some(new);
                    self.write_status(deployment).await?;
                }
                let kind = EventType::Warning;
                self.recorder.event(reference(deployment), kind, "ReplicaSetCreateError", message);
                return Err(error);
            }
        };
        if fresh && size > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {size}");
            self.recorder.event(reference(deployment), EventType::Normal, "ScalingReplicaSet", message);
        }
        let mut changed = set_revision(deployment, revision.to_string());
        if fresh && status::has_deadline(&spec) {
            let message = format!("Created new replica set {name:?}");
            status::set(&mut new, status::PROGRESSING, "True", "NewReplicaSetCreated", message, now());
            deployment.status = Some(new);
            changed = true;
        }
        if changed {
            self.write_status(deployment).await?;
        }
        Ok(Arc::new(created))
    }
}
