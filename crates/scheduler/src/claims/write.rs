//! What is written of claims before a pod is bound: the allocation and who uses it. What was written for a pod that is not
//! bound after all is taken back.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceClaim, ResourceClaim, ResourceClaimConsumerReference, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use scheduling::devices::Extended;
use serde_json::json;
use thiserror::Error;

use super::{
    Assumed, Claims, EXTENDED, LONGEST_BINDING, allocation, claims_of, is_extended, is_ready, is_reserved,
    namespace, results, revision, uid,
};

const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
const TRIES: usize = 5;

/// Why a pod's claims are not ready for it.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("the resourceclaim of the pod's claim \"{0}\" is gone")]
    Gone(String),
    #[error("claim {0} got deleted in the meantime")]
    Deleted(String),
    #[error("claim {0} got allocated elsewhere in the meantime")]
    Elsewhere(String),
    #[error("claim {0} got deallocated elsewhere in the meantime")]
    Deallocated(String),
    #[error("{0}")]
    BindingFailed(String),
    #[error("device binding timeout: claim={0}")]
    NotReady(String),
    #[error(transparent)]
    Client(#[from] kube::Error),
}

fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::Client(kube::Error::Api(answer)) if answer.code == 409)
}

fn user_of(pod: &Pod) -> ResourceClaimConsumerReference {
    ResourceClaimConsumerReference {
        api_group: None,
        resource: "pods".to_owned(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: uid(pod).to_owned(),
    }
}

fn has_finalizer(claim: &ResourceClaim) -> bool {
    claim.metadata.finalizers.iter().flatten().any(|one| one == FINALIZER)
}

/// Sets the allocation, now.
fn allocate(claim: &mut ResourceClaim, mut result: AllocationResult) {
    result.allocation_timestamp = Some(Time(jiff::Timestamp::now()));
    claim.status.get_or_insert_default().allocation = Some(result);
}

impl Claims {
    /// Writes the pod's allocations, and that it uses its claims; waits until the devices are ready. `pending` is called before
    /// it waits.
    pub(crate) async fn bind(&self, client: &Client, pod: &Pod, pending: impl FnOnce()) -> Result<(), Error> {
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), namespace(pod));
        let mut written = Vec::new();
        for (own, name, _) in claims_of(pod) {
            let name = name.map_err(|()| Error::Gone(own.to_owned()))?;
            written.push(self.bind_one(&api, pod, name).await?);
        }
        let extended = self.assumed.lock().extended.get(uid(pod)).cloned();
        if let Some((extended, result)) = extended {
            written.push(self.make_extended(client, pod, extended, result).await?);
        }
        let waits = |claim: &ResourceClaim| {
            results(claim).any(|result| result.binding_conditions.as_ref().is_some_and(|all| !all.is_empty()))
        };
        if written.iter().any(waits) {
            pending();
            for claim in written.iter().filter(|claim| waits(claim)) {
                wait_until_ready(&api, claim.metadata.name.as_deref().unwrap_or_default()).await?;
            }
        }
        Ok(())
    }

    async fn bind_one(
        &self,
        api: &Api<ResourceClaim>,
        pod: &Pod,
        name: &str,
    ) -> Result<ResourceClaim, Error> {
        let known = self.claims.find(namespace(pod), name).map(|known| known.as_ref().clone());
        let mut known = known.filter(|known| allocation(known).is_some() || self.is_planned(known, pod));
        let mut tries = 0;
        loop {
            tries += 1;
            let claim = match known.take() {
                Some(known) => known,
                None => api.get(name).await?,
            };
            match self.write(api, pod, name, claim).await {
                Err(error) if is_conflict(&error) && tries < TRIES => {}
                done => return done,
            }
        }
    }

    /// What is to be allocated to the claim for this pod.
    fn planned(&self, claim: &ResourceClaim, pod: &Pod) -> Option<AllocationResult> {
        let assumed = self.assumed.lock();
        let one = assumed.claims.get(claim.metadata.uid.as_deref()?)?;
        (one.pod == uid(pod)).then(|| one.result.clone())
    }

    fn is_planned(&self, claim: &ResourceClaim, pod: &Pod) -> bool {
        self.planned(claim, pod).is_some()
    }

    async fn write(
        &self,
        api: &Api<ResourceClaim>,
        pod: &Pod,
        name: &str,
        mut claim: ResourceClaim,
    ) -> Result<ResourceClaim, Error> {
        let with = PostParams::default();
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(Error::Deleted(name.to_owned()));
        }
        let planned = self.planned(&claim, pod);
        match (allocation(&claim).is_some(), planned.clone()) {
            (true, Some(result)) if is_reserved(&claim, pod) => {
                // Written before, only that the answer was lost.
                self.is_written(pod, &claim, result);
                return Ok(claim);
            }
            (true, Some(_)) => return Err(Error::Elsewhere(name.to_owned())),
            (false, None) => return Err(Error::Deallocated(name.to_owned())),
            (true, None) if is_reserved(&claim, pod) => return Ok(claim),
            (true, None) => {}
            (false, Some(result)) => {
                // The API refuses an allocation without it, and it can only be set apart from the status.
                if !has_finalizer(&claim) {
                    claim.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
                    claim = api.replace(name, &with, &claim).await?;
                }
                allocate(&mut claim, result);
            }
        }
        claim.status.get_or_insert_default().reserved_for.get_or_insert_default().push(user_of(pod));
        let written = api.replace_status(name, &with, &claim).await?;
        if let Some(result) = planned {
            self.is_written(pod, &written, result);
        }
        Ok(written)
    }

    /// Keeps the allocation as taken until the cache has come so far.
    fn is_written(&self, pod: &Pod, claim: &ResourceClaim, result: AllocationResult) {
        let key = claim.metadata.uid.clone().unwrap_or_default();
        let mut assumed = self.assumed.lock();
        assumed.extended.remove(uid(pod));
        let one = Assumed { pod: uid(pod).to_owned(), result, written: Some(revision(claim)) };
        assumed.claims.insert(key.clone(), one);
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        // It may have it already.
        let known = self.claims.find(namespace(pod), name);
        if known.is_some_and(|known| {
            known.metadata.uid != claim.metadata.uid || revision(&known) >= revision(claim)
        }) {
            assumed.claims.remove(&key);
        }
    }

    /// Makes the claim for the pod's extended resources, with its allocation, and tells the kubelet of it.
    async fn make_extended(
        &self,
        client: &Client,
        pod: &Pod,
        extended: Extended,
        result: AllocationResult,
    ) -> Result<ResourceClaim, Error> {
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), namespace(pod));
        let pod_name = pod.metadata.name.clone().unwrap_or_default();
        let with = PostParams::default();
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                generate_name: Some(format!("{pod_name}-extended-resources-")),
                annotations: Some([(EXTENDED.to_owned(), "true".to_owned())].into()),
                finalizers: Some(vec![FINALIZER.to_owned()]),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Pod".to_owned(),
                    name: pod_name.clone(),
                    uid: uid(pod).to_owned(),
                    controller: Some(true),
                    block_owner_deletion: None,
                }]),
                ..ObjectMeta::default()
            },
            spec: ResourceClaimSpec {
                devices: Some(DeviceClaim { requests: Some(extended.requests), ..DeviceClaim::default() }),
            },
            status: None,
        };
        let mut claim = api.create(&with, &claim).await?;
        let name = claim.metadata.name.clone().unwrap_or_default();
        allocate(&mut claim, result.clone());
        claim.status.get_or_insert_default().reserved_for = Some(vec![user_of(pod)]);
        let written = match api.replace_status(&name, &with, &claim).await {
            Ok(written) => written,
            Err(error) => {
                self.give_up(client, &claim).await;
                return Err(error.into());
            }
        };
        self.is_written(pod, &written, result);
        self.assumed.lock().made.insert(uid(pod).to_owned(), written.clone());
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"extendedResourceClaimStatus": {
            "resourceClaimName": name, "requestMappings": extended.mappings}}});
        let pods = Api::<Pod>::namespaced(client.clone(), namespace(pod));
        pods.patch_status(&pod_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        Ok(written)
    }

    /// Takes back what was written for a pod that was not bound: it uses its claims no more. Their devices stay allocated, for its
    /// next attempt.
    pub(crate) async fn undo(&self, client: &Client, pod: &Pod) {
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), namespace(pod));
        for (_, name, _) in claims_of(pod) {
            let Ok(name) = name else { continue };
            let Some(claim) = self.claims.find(namespace(pod), name) else { continue };
            let patch = json!({"metadata": {"uid": claim.metadata.uid},
                "status": {"reservedFor": [{"$patch": "delete", "uid": uid(pod)}]}});
            let done = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            if let Err(error) = done {
                tracing::debug!(claim = name, %error, "the pod is still said to use it");
            }
        }
        let made = self.assumed.lock().made.remove(uid(pod));
        if let Some(made) = made {
            self.give_up(client, &made).await;
        }
    }

    /// The pod is bound: its claims are no longer the scheduler's to take back.
    pub(crate) fn bound(&self, pod: &Pod) {
        self.assumed.lock().made.remove(uid(pod));
    }

    /// Gives back the devices of a claim that keeps a pod from being placed. One that was made for extended resources goes whole.
    pub(crate) async fn give_up(&self, client: &Client, claim: &ResourceClaim) {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), namespace);
        let done = if is_extended(claim) {
            self.remove(&api, name, claim).await
        } else {
            let mut new = claim.clone();
            if let Some(status) = &mut new.status {
                (status.allocation, status.reserved_for, status.devices) = (None, None, None);
            }
            // One that has changed since is looked at again in the next attempt.
            api.replace_status(name, &PostParams::default(), &new).await.map(drop)
        };
        if let Err(error) = done {
            tracing::debug!(claim = name, %error, "its devices were not given back");
        }
    }

    async fn remove(
        &self,
        api: &Api<ResourceClaim>,
        name: &str,
        claim: &ResourceClaim,
    ) -> Result<(), kube::Error> {
        let kept: Vec<_> =
            claim.metadata.finalizers.iter().flatten().filter(|one| *one != FINALIZER).collect();
        let patch = json!({"metadata": {"uid": claim.metadata.uid, "finalizers": kept}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: claim.metadata.uid.clone(), resource_version: None });
        api.delete(name, &params).await.map(drop)
    }
}

/// Waits until the claim's devices are ready for the pod.
async fn wait_until_ready(api: &Api<ResourceClaim>, name: &str) -> Result<(), Error> {
    let decided = |claim: Option<&ResourceClaim>| {
        claim.is_none_or(|claim| allocation(claim).is_none() || is_ready(claim) != Ok(false))
    };
    let decided = kube::runtime::wait::await_condition(api.clone(), name, decided);
    match tokio::time::timeout(LONGEST_BINDING, decided).await {
        Ok(Ok(Some(claim))) if allocation(&claim).is_some() => {
            is_ready(&claim).map(drop).map_err(Error::BindingFailed)
        }
        Ok(Ok(Some(_))) => Err(Error::Deallocated(name.to_owned())),
        Ok(Ok(None)) => Err(Error::Deleted(name.to_owned())),
        _ => Err(Error::NotReady(name.to_owned())),
    }
}
