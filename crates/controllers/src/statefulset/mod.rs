//! StatefulSets: pods with a name and storage of their own each, made and updated in order.

mod claims;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use kube::Client;
use kube::api::{Api, PostParams};
use scheduling::selector::{is_empty, labels_of, matches};

use crate::kit::history::{self, History, REVISION_HASH};
use crate::kit::refs::{claim, controller_key, controller_of, reference_to};
use crate::kit::{Context, Error, Result, now, pods};
use plan::{Step, claim_name, ordinal};

struct Controller {
    client: Client,
    recorder: Recorder,
    sets: Arc<Informer<StatefulSet>>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    revisions: Arc<Informer<ControllerRevision>>,
    queue: Arc<Queue<Key>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("statefulset-controller"),
        sets: context.informer(),
        pods: context.informer(),
        claims: context.informer(),
        revisions: context.informer(),
        queue: Queue::new(),
    });
    this.claims.synced().await;
    this.revisions.synced().await;
    let to = this.clone();
    this.sets.on_change(move |change| to.queue.add(Key::of(change.latest().as_ref())));
    this.sets.synced().await;
    let to = this.clone();
    this.pods.on_change(move |change| to.pod_changed(change));
    this.pods.synced().await;
    let queue = this.queue.clone();
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("statefulset", 8, queue, sync).await;
}

impl Controller {
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.latest();
        if let Some((key, uid)) = controller_key::<StatefulSet>(&pod.metadata) {
            if self.sets.get(&key).is_some_and(|set| set.metadata.uid.as_deref() == Some(uid)) {
                self.queue.add(key);
            }
        } else if controller_of(&pod.metadata).is_none() {
            for set in self.sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
                let selector = set.spec.as_ref().map(|spec| &spec.selector);
                let selects = selector.is_some_and(|selector| {
                    !is_empty(selector) && matches(selector, labels_of(&pod.metadata.labels))
                });
                if selects && ordinal(&set, pod).is_some() {
                    self.queue.add(Key::of(set.as_ref()));
                }
            }
        }
    }

    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(set) = self.sets.get(&key) else { return Ok(None) };
        let spec = set.spec.clone().unwrap_or_default();
        if is_empty(&spec.selector) {
            return Ok(None);
        }
        let mut all = self.pods.controlled_by(set.metadata.uid.as_deref().unwrap_or_default());
        all.extend(self.pods.orphans(&key.namespace));
        let selects = |pod: &Pod| {
            matches(&spec.selector, labels_of(&pod.metadata.labels)) && ordinal(&set, pod).is_some()
        };
        let pods = claim(&self.client, set.as_ref(), all, selects, &[]).await?;

        let mut history = History::of(&self.client, &self.revisions, set.as_ref(), &spec.selector).await?;
        let update = self.update_revision(&set, &mut history).await?;
        let name_of = |revision: &ControllerRevision| revision.metadata.name.clone().unwrap_or_default();
        let wanted = set.status.as_ref().and_then(|status| status.current_revision.clone());
        let current = history.revisions.iter().find(|one| wanted.as_deref() == Some(&name_of(one)));
        let current = current.unwrap_or(&update).clone();
        let names = (name_of(&current), name_of(&update));

        let mut result = Ok(());
        if set.metadata.deletion_timestamp.is_none() {
            self.keep_claims(&set, &pods).await?;
            for step in plan::plan(&set, &pods, &names.1, now()) {
                result = self.take(&set, step, &pods, (&current, &update)).await;
                if result.is_err() {
                    break;
                }
            }
        }
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let status = plan::status(&set, &pods, (&names.0, &names.1), collisions, now());
        let again = spec
            .min_ready_seconds
            .filter(|seconds| *seconds > 0)
            .filter(|_| status.ready_replicas != status.available_replicas);
        self.write_status(&set, status).await?;
        result?;
        let in_use = |name: &str| {
            name == names.0
                || name == names.1
                || pods.iter().any(|pod| {
                    labels_of(&pod.metadata.labels).get(REVISION_HASH).is_some_and(|label| label == name)
                })
        };
        let limit = spec.revision_history_limit.unwrap_or(10);
        history.truncate(&self.client, &set.metadata, limit, in_use).await?;
        Ok(again.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or_default())))
    }

    async fn update_revision(
        &self,
        set: &StatefulSet,
        history: &mut History,
    ) -> Result<Arc<ControllerRevision>> {
        let spec = set.spec.clone().unwrap_or_default();
        let patch = history::template_patch(&spec.template)?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let hash = history::hash(&patch, collisions);
        let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.as_ref());
        let label = ("controller.kubernetes.io/hash", hash.as_str());
        let found = history.current(&self.client, set, labels, &patch, label).await;
        if let Err(Error::Collision(_)) = &found {
            let mut status = set.status.clone().unwrap_or_default();
            status.collision_count = Some(collisions.unwrap_or_default() + 1);
            self.write_status(set, status).await?;
        }
        found
    }

    async fn take(
        &self,
        set: &Arc<StatefulSet>,
        step: Step,
        pods: &[Arc<Pod>],
        (current, update): (&ControllerRevision, &ControllerRevision),
    ) -> Result<()> {
        let find = |name: &str| pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name));
        match step {
            Step::Create { ordinal, updated } => {
                let pod = new_pod(set, if updated { update } else { current }, ordinal);
                self.create_claims(set, ordinal).await?;
                self.create(set, pod).await
            }
            Step::Delete(name) => {
                let Some(pod) = find(&name) else { return Ok(()) };
                let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
                let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
                let params = kube::api::DeleteParams::default().preconditions(kube::api::Preconditions {
                    uid: pod.metadata.uid.clone(),
                    resource_version: None,
                });
                match crate::kit::error::found(api.delete(&name, &params).await) {
                    Ok(None) => Ok(()),
                    Ok(Some(_)) => {
                        self.note(set, "delete", &name, None);
                        Ok(())
                    }
                    Err(error) if error.is_conflict() => Ok(()),
                    Err(error) => {
                        self.note(set, "delete", &name, Some(&error));
                        Err(error)
                    }
                }
            }
            Step::Claims(name) => match find(&name).and_then(|pod| ordinal(set, pod)) {
                Some(ordinal) => self.create_claims(set, ordinal).await,
                None => Ok(()),
            },
            Step::Repair(name) => {
                let Some((pod, ordinal)) = find(&name).and_then(|pod| Some((pod, ordinal(set, pod)?))) else {
                    return Ok(());
                };
                let mut copy = pod.as_ref().clone();
                give_identity(set, &mut copy, ordinal);
                let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
                let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
                api.replace(&name, &PostParams::default(), &copy).await?;
                Ok(())
            }
        }
    }

    async fn create(&self, set: &Arc<StatefulSet>, pod: Pod) -> Result<()> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), &pod).await.map_err(Error::from) {
            Ok(_) => {
                self.note(set, "create", &name, None);
                Ok(())
            }
            // The cache is behind, or the old one has not quite gone.
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                self.note(set, "create", &name, Some(&error));
                Err(error)
            }
        }
    }

    fn note(&self, set: &StatefulSet, verb: &str, pod: &str, error: Option<&Error>) {
        let owner = set.metadata.name.as_deref().unwrap_or_default();
        let title = if verb == "create" { "Create" } else { "Delete" };
        let (kind, reason, message) = match error {
            None => {
                let message = format!("{verb} Pod {pod} in StatefulSet {owner} successful");
                (EventType::Normal, format!("Successful{title}"), message)
            }
            Some(error) => {
                let message =
                    format!("{verb} Pod {pod} in StatefulSet {owner} failed error: {}", error.message());
                (EventType::Warning, format!("Failed{title}"), message)
            }
        };
        self.recorder.event(reference(set), kind, &reason, message);
    }

    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<()> {
        let old = set.status.clone().unwrap_or_default();
        let count = |number: Option<i32>| Some(number.unwrap_or_default());
        let same = StatefulSetStatus {
            ready_replicas: count(old.ready_replicas),
            available_replicas: count(old.available_replicas),
            current_replicas: count(old.current_replicas),
            updated_replicas: count(old.updated_replicas),
            ..old
        } == status;
        if same {
            return Ok(());
        }
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let mut copy = set.clone();
        copy.status = Some(status);
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::<StatefulSet>::namespaced(self.client.clone(), namespace);
        api.replace_status(name, &PostParams::default(), &copy).await?;
        Ok(())
    }
}

/// The pod of an ordinal, with the template of a revision.
fn new_pod(set: &StatefulSet, revision: &ControllerRevision, ordinal: i32) -> Pod {
    let spec = set.spec.clone().unwrap_or_default();
    let kept = revision.data.as_ref().and_then(|data| data.0.pointer("/spec/template").cloned());
    let template: Option<PodTemplateSpec> = kept.and_then(|template| serde_json::from_value(template).ok());
    let mut pod = pods::from_template(&template.unwrap_or(spec.template), set);
    let name = format!("{}-{ordinal}", set.metadata.name.as_deref().unwrap_or_default());
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    pod.metadata.owner_references = Some(vec![reference_to(set)]);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_HASH.into(), revision.metadata.name.clone().unwrap_or_default());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name);
    pod_spec.subdomain = spec.service_name.filter(|name| !name.is_empty());
    give_identity(set, &mut pod, ordinal);
    pod
}

fn give_identity(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert("statefulset.kubernetes.io/pod-name".into(), name);
    labels.insert("apps.kubernetes.io/pod-index".into(), ordinal.to_string());
    let templates =
        set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.clone()).unwrap_or_default();
    if templates.is_empty() {
        return;
    }
    let volumes = pod.spec.get_or_insert_default().volumes.get_or_insert_default();
    for template in templates {
        let name = template.metadata.name.unwrap_or_default();
        volumes.retain(|volume| volume.name != name);
        volumes.push(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, &name, ordinal),
                read_only: None,
            }),
            name,
            ..Volume::default()
        });
    }
}
