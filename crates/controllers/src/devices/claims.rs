//! ResourceClaims of pods: made from templates, recorded in the pod's status, and given back when the pod is done
//! (upstream: `pkg/controller/resourceclaim`).

use std::sync::Arc;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::kit::error::found;
use crate::kit::pods::{is_terminal, node_name};
use crate::kit::refs::{controller_key, is_controlled_by, reference_to};
use crate::kit::{Context, Error, Result};

/// Says which of its pod's claims a claim is.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Keeps a claim that is allocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Room for a hyphen and five random characters in a name of 63.
const LONGEST_BASE: usize = 57;

struct Controller {
    client: Client,
    recorder: Recorder,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<ResourceClaim>>,
    templates: Arc<Informer<ResourceClaimTemplate>>,
    pod_queue: Arc<Queue<Key>>,
    claim_queue: Arc<Queue<Key>>,
}

fn claims_of(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default()
}

/// The claim that the pod's status names; the inner `None` says that none is needed.
fn recorded<'a>(pod: &'a Pod, name: &str) -> Option<Option<&'a str>> {
    let statuses = pod.status.as_ref()?.resource_claim_statuses.as_ref()?;
    statuses.iter().find(|one| one.name == name).map(|one| one.resource_claim_name.as_deref())
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

/// Whether the pod will not run, or no longer.
fn is_done(pod: &Pod) -> bool {
    is_terminal(pod) || (pod.metadata.deletion_timestamp.is_some() && node_name(pod).is_empty())
}

fn is_recorded_as(claim: &ResourceClaim, name: &str) -> bool {
    let annotations = claim.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(POD_CLAIM)).is_some_and(|own| own == name)
}

/// The start of the name of a claim made for a pod: both parts stay to be seen.
fn base(pod: &str, claim: &str) -> String {
    let whole = format!("{pod}-{claim}-");
    if whole.len() <= LONGEST_BASE {
        return whole;
    }
    let share = |text: &str| text.chars().take(text.len() * LONGEST_BASE / whole.len()).collect::<String>();
    format!("{}-{}", share(pod), share(claim))
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("resource_claim"),
        pods: context.informer(),
        claims: context.informer(),
        templates: context.informer(),
        pod_queue: Queue::new(),
        claim_queue: Queue::new(),
    });
    this.templates.synced().await;
    this.claims.synced().await;
    this.pods.synced().await;
    let to = this.clone();
    this.pods.on_change(move |change| to.pod_changed(change));
    let to = this.clone();
    this.claims.on_change(move |change| {
        let claim = change.latest();
        match change {
            Change::Applied { .. } => to.claim_queue.add(Key::of(claim.as_ref())),
            // A pod may need another.
            Change::Deleted(_) => {
                if let Some((key, _)) = controller_key::<Pod>(&claim.metadata) {
                    to.pod_queue.add(key);
                }
            }
        }
        // A pod that was put on its node by hand waits for the allocation.
        if is_allocated(claim) {
            match controller_key::<Pod>(&claim.metadata) {
                Some((key, _)) => to.pod_queue.add(key),
                None => {
                    if !matches!(change, Change::Applied { old: Some(old), .. } if is_allocated(old)) {
                        to.users_changed(claim);
                    }
                }
            }
        }
    });
    let to = this.clone();
    this.templates.on_change(move |change| {
        let Change::Applied { new, .. } = change else { return };
        for pod in to.pods.in_namespace(new.metadata.namespace.as_deref().unwrap_or_default()) {
            if claims_of(&pod).iter().any(|one| one.resource_claim_template_name == new.metadata.name) {
                to.pod_queue.add(Key::of(pod.as_ref()));
            }
        }
    });
    let (pods, claims) = (this.pod_queue.clone(), this.claim_queue.clone());
    let there = this.clone();
    let sync_pod = move |key: Key| {
        let this = there.clone();
        async move { this.sync_pod(&key).await.map(|()| None) }
    };
    let sync_claim = move |key: Key| {
        let this = this.clone();
        async move { this.sync_claim(&key).await.map(|()| None) }
    };
    tokio::join!(
        context.work("resourceclaim-pods", 4, pods, sync_pod),
        context.work("resourceclaim", 4, claims, sync_claim),
    );
}

impl Controller {
    /// Looks at the placed pods that name the claim.
    fn users_changed(&self, claim: &ResourceClaim) {
        for pod in self.pods.in_namespace(claim.metadata.namespace.as_deref().unwrap_or_default()) {
            let names = |one: &PodResourceClaim| one.resource_claim_name == claim.metadata.name;
            if !node_name(&pod).is_empty() && claims_of(&pod).iter().any(names) {
                self.pod_queue.add(Key::of(pod.as_ref()));
            }
        }
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.latest();
        // The scheduler made one for its extended resources.
        let extended =
            pod.status.as_ref().is_some_and(|status| status.extended_resource_claim_status.is_some());
        if claims_of(pod).is_empty() && !extended {
            return;
        }
        let gone = matches!(change, Change::Deleted(_)) || is_done(pod);
        if !gone {
            if !claims_of(pod).is_empty() {
                self.pod_queue.add(Key::of(pod.as_ref()));
            }
            return;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for one in claims_of(pod) {
            let name = one.resource_claim_name.as_deref().or(recorded(pod, &one.name).flatten());
            if let Some(name) = name {
                self.claim_queue.add(Key::new(namespace, name));
            }
        }
        for claim in self.claims.controlled_by(pod.metadata.uid.as_deref().unwrap_or_default()) {
            self.claim_queue.add(Key::of(claim.as_ref()));
        }
    }

    fn api(&self, namespace: &str) -> Api<ResourceClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn sync_pod(&self, key: &Key) -> Result<()> {
        let Some(pod) = self.pods.get(key) else { return Ok(()) };
        if pod.metadata.deletion_timestamp.is_some() || is_terminal(&pod) {
            return Ok(());
        }
        let mut statuses = Vec::new();
        for one in claims_of(&pod) {
            match self.ensure(&pod, one).await {
                Ok(Some(name)) => statuses.push(json!({"name": one.name, "resourceClaimName": name})),
                Ok(None) => {}
                Err(error) => {
                    let message = format!("PodResourceClaim {}: {}", one.name, error.message());
                    let about = reference(pod.as_ref());
                    self.recorder.event(about, EventType::Warning, "FailedResourceClaimCreation", message);
                    return Err(error);
                }
            }
        }
        if !statuses.is_empty() {
            // By name, beside those that are there.
            let patch =
                json!({"metadata": {"uid": pod.metadata.uid}, "status": {"resourceClaimStatuses": statuses}});
            let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
            found(api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
            return Ok(());
        }
        if !node_name(&pod).is_empty() {
            self.reserve(&pod, &key.namespace).await?;
        }
        Ok(())
    }

    /// The name of the claim to record for the pod, if one must be.
    async fn ensure(&self, pod: &Pod, one: &PodResourceClaim) -> Result<Option<String>> {
        let Some(template_name) = &one.resource_claim_template_name else { return Ok(None) };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match recorded(pod, &one.name) {
            // None is needed.
            Some(None) => return Ok(None),
            Some(Some(name)) => {
                let claim = self.claims.find(namespace, name);
                if claim.is_some_and(|claim| is_controlled_by(&claim.metadata, &pod.metadata)) {
                    return Ok(None);
                }
            }
            None => {}
        }
        // One that was made before, when the status could not be written.
        let own = self.claims.controlled_by(pod.metadata.uid.as_deref().unwrap_or_default());
        let made = own
            .iter()
            .find(|claim| is_recorded_as(claim, &one.name) && claim.metadata.deletion_timestamp.is_none());
        if let Some(made) = made {
            return Ok(made.metadata.name.clone());
        }
        let Some(template) = self.templates.find(namespace, template_name) else {
            return Err(Error::Remains(format!(
                "resource claim template {template_name:?}: resourceclaimtemplate.resource.k8s.io {template_name:?} not found"
            )));
        };
        let meta = template.spec.metadata.clone().unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        annotations.insert(POD_CLAIM.to_owned(), one.name.clone());
        let mut owner = reference_to(pod);
        owner.block_owner_deletion = None;
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                generate_name: Some(base(pod.metadata.name.as_deref().unwrap_or_default(), &one.name)),
                labels: meta.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: template.spec.spec.clone(),
            status: None,
        };
        let made = self.api(namespace).create(&PostParams::default(), &claim).await?;
        // So that a second look does not make a second one.
        let name = made.metadata.name.clone();
        self.claims.apply(made);
        Ok(name)
    }

    /// A pod that no scheduler has placed reserves what is allocated already.
    async fn reserve(&self, pod: &Pod, namespace: &str) -> Result<()> {
        for one in claims_of(pod) {
            let name = one.resource_claim_name.as_deref().or(recorded(pod, &one.name).flatten());
            let Some(claim) = name.and_then(|name| self.claims.find(namespace, name)) else { continue };
            let mut new = claim.as_ref().clone();
            let Some(status) = new.status.as_mut().filter(|status| status.allocation.is_some()) else {
                continue;
            };
            let users = status.reserved_for.get_or_insert_default();
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            if users.iter().any(|user| user.uid == uid) {
                continue;
            }
            users.push(ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".into(),
                name: pod.metadata.name.clone().unwrap_or_default(),
                uid,
            });
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            found(self.api(namespace).replace_status(name, &PostParams::default(), &new).await)?;
        }
        Ok(())
    }

    async fn uses(&self, user: &ResourceClaimConsumerReference, namespace: &str) -> Result<bool> {
        if user.resource != "pods" || user.api_group.as_deref().is_some_and(|group| !group.is_empty()) {
            // What is not known here is not taken away.
            return Ok(true);
        }
        if let Some(pod) = self.pods.find(namespace, &user.name) {
            return Ok(pod.metadata.uid.as_ref() == Some(&user.uid) && !is_done(&pod));
        }
        // The scheduler may know it before this cache does.
        let pod = Api::<Pod>::namespaced(self.client.clone(), namespace).get_opt(&user.name).await?;
        Ok(pod.is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&user.uid)))
    }

    async fn sync_claim(&self, key: &Key) -> Result<()> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        let users = claim.status.as_ref().and_then(|status| status.reserved_for.clone()).unwrap_or_default();
        let mut left = Vec::new();
        for user in &users {
            if self.uses(user, &key.namespace).await? {
                left.push(user.clone());
            }
        }
        let is_free = left.is_empty();
        let kept = claim.metadata.finalizers.iter().flatten().any(|one| one == FINALIZER);
        let leaving = claim.metadata.deletion_timestamp.is_some();
        if left.len() < users.len() || (kept && leaving && is_free) {
            let mut new = claim.as_ref().clone();
            let status = new.status.get_or_insert_default();
            status.reserved_for = Some(left).filter(|left| !left.is_empty());
            // Its devices are given back with the last user.
            if is_free && kept {
                status.allocation = None;
            }
            let api = self.api(&key.namespace);
            let changed = api.replace_status(&key.name, &PostParams::default(), &new).await;
            let Some(mut written) = found(changed)? else { return Ok(()) };
            let allocated = written.status.as_ref().is_some_and(|status| status.allocation.is_some());
            if kept && !allocated {
                written.metadata.finalizers.get_or_insert_default().retain(|one| one != FINALIZER);
                found(api.replace(&key.name, &PostParams::default(), &written).await)?;
            }
        }
        let owner = controller_key::<Pod>(&claim.metadata);
        if let (true, false, Some((owner, uid))) = (is_free, leaving, owner)
            && let Some(pod) = self.pods.get(&owner)
            && (pod.metadata.uid.as_deref() != Some(uid) || is_done(&pod))
        {
            let params = DeleteParams::default()
                .preconditions(Preconditions { uid: claim.metadata.uid.clone(), resource_version: None });
            found(self.api(&key.namespace).delete(&key.name, &params).await)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_show_pod_and_claim() {
        assert_eq!(base("pod", "gpu"), "pod-gpu-");
        let long = base(&"p".repeat(80), &"c".repeat(40));
        assert!(long.len() <= LONGEST_BASE && long.contains("pp-cc"), "{long}");
    }

    #[test]
    fn a_pod_is_done_when_it_ends_or_never_runs() {
        let check = |pod: serde_json::Value, expected: bool| {
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            assert_eq!(is_done(&pod), expected);
        };
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        check(json!({"status": {"phase": "Succeeded"}}), true);
        check(json!({"metadata": deleted}), true);
        check(json!({"metadata": deleted, "spec": {"nodeName": "n", "containers": []}}), false);
    }
}
