//! Dynamic resources (DRA): before a pod's containers are made, the drivers on this node prepare the devices of its
//! ResourceClaims; once no pod here uses a claim any more, they take that back. What is prepared is kept in a file, so that a
//! restart prepares nothing twice. Rules: upstream's DRA manager (KEP-4381).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodResourceClaim, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use parking_lot::Mutex;
use plugins::dra::v1::{Claim, Device};
use plugins::podresources::{CdiDevice, ClaimResource, DynamicResource};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::podutil::{self, spec};

mod drivers;

use drivers::Drivers;
pub(crate) use drivers::{DriverHandler, run};

/// Upstream's name of the file.
const FILE: &str = "dra_manager_state";

/// Why a pod's claims are not ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error("fetch ResourceClaim {name}: {source}")]
    Fetch {
        name: String,
        #[source]
        source: kube::Error,
    },
    #[error("the ResourceClaim of the pod's claim {0} has not been made yet")]
    Missing(String),
    #[error("ResourceClaim {0} is not of this pod")]
    Owner(String),
    #[error("pod {pod} is not allowed to use ResourceClaim {claim}")]
    NotReserved { pod: String, claim: String },
    #[error("ResourceClaim {0} is not allocated")]
    NotAllocated(String),
    #[error("old ResourceClaim with same name {0} and different UID still exists")]
    Other(String),
    #[error("DRA driver {0} is not registered")]
    NoDriver(String),
    #[error("NodePrepareResources of {driver}: {message}")]
    Prepare { driver: String, message: String },
    #[error("NodeUnprepareResources of {driver}: {message}")]
    Unprepare { driver: String, message: String },
}

/// A device that a driver prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Prepared {
    pool_name: String,
    device_name: String,
    request_names: Vec<String>,
    #[serde(rename = "cdiDeviceIDs")]
    cdi: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share_id: Option<String>,
}

/// A claim that pods of this node use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    claim_uid: String,
    claim_name: String,
    namespace: String,
    #[serde(rename = "podUIDs")]
    pods: BTreeSet<String>,
    /// Devices by driver; a driver that is to be asked has at least an empty list.
    drivers: BTreeMap<String, Vec<Prepared>>,
    prepared: bool,
}

/// By namespace and name of the claim, as one text with a slash.
type Claims = BTreeMap<String, Held>;

/// The claims of the node's pods.
pub(crate) struct ClaimManager {
    client: kube::Client,
    file: PathBuf,
    held: Mutex<Claims>,
    drivers: Arc<Drivers>,
    /// Claims are prepared and taken back one after another.
    turn: tokio::sync::Mutex<()>,
}

impl ClaimManager {
    pub(crate) fn new(client: kube::Client, root: &std::path::Path) -> Self {
        let file = root.join(FILE);
        let held: Claims = match std::fs::read(&file).map(|text| serde_json::from_slice(&text)) {
            Ok(Ok(held)) => held,
            Ok(Err(error)) => {
                tracing::error!(%error, file = %file.display(), "what claims were prepared cannot be read; it is forgotten");
                Claims::new()
            }
            Err(_) => Claims::new(),
        };
        ClaimManager {
            client,
            file,
            held: Mutex::new(held),
            drivers: Arc::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn drivers(&self) -> Arc<Drivers> {
        self.drivers.clone()
    }

    /// Changes whenever the health of a device does.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.drivers.changes()
    }

    /// Pods that use claims here.
    pub(crate) fn pods(&self) -> BTreeSet<String> {
        self.held.lock().values().flat_map(|held| held.pods.iter().cloned()).collect()
    }

    fn keep(&self, held: &Claims) {
        let text = serde_json::to_vec(held).unwrap_or_default();
        let fresh = self.file.with_extension("new");
        let done = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &self.file));
        if let Err(error) = done {
            tracing::warn!(%error, file = %self.file.display(), "cannot keep what claims are prepared");
        }
    }

    /// Has everything prepared that the pod claims. Asking again changes nothing.
    pub(crate) async fn prepare(&self, pod: &Pod) -> Result<(), ClaimError> {
        let wanted: Vec<&PodResourceClaim> = spec(pod).resource_claims.iter().flatten().collect();
        let extended = extended_claim(pod);
        if wanted.is_empty() && extended.is_none() {
            return Ok(());
        }
        let mut names = Vec::new();
        for claim in wanted {
            match claim_name(pod, claim) {
                Named::Claim(name) => {
                    names.push((name.to_owned(), claim.resource_claim_template_name.is_some()))
                }
                Named::None => {}
                Named::Unknown => return Err(ClaimError::Missing(claim.name.clone())),
            }
        }
        names.extend(extended.map(|name| (name.to_owned(), true)));
        let _turn = self.turn.lock().await;
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), podutil::namespace(pod));
        let mut ask: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        for (name, made) in &names {
            let claim =
                api.get(name).await.map_err(|source| ClaimError::Fetch { name: name.clone(), source })?;
            let held = admit(pod, &claim, *made)?;
            if let Some(driver) = held.drivers.keys().find(|driver| !self.drivers.knows(driver)) {
                return Err(ClaimError::NoDriver(driver.clone()));
            }
            let key = format!("{}/{name}", held.namespace);
            let mut all = self.held.lock();
            let entry = all.entry(key).or_insert(held);
            if Some(&entry.claim_uid) != claim.metadata.uid.as_ref() {
                return Err(ClaimError::Other(name.clone()));
            }
            entry.pods.insert(podutil::uid(pod).to_owned());
            if !entry.prepared {
                for driver in entry.drivers.keys() {
                    ask.entry(driver.clone()).or_default().push(request(entry));
                }
            }
            // Kept before any driver is asked, so that whatever it has done is taken back some day.
            self.keep(&all);
        }
        for (driver, claims) in &ask {
            let answers = self.drivers.prepare(driver, claims).await?;
            let mut all = self.held.lock();
            for (uid, devices) in answers {
                if let Some(entry) = all.values_mut().find(|held| held.claim_uid == uid) {
                    entry.drivers.insert(driver.clone(), devices.into_iter().map(Prepared::from).collect());
                }
            }
        }
        let mut all = self.held.lock();
        for claim in ask.values().flatten() {
            if let Some(entry) = all.values_mut().find(|held| held.claim_uid == claim.uid) {
                entry.prepared = true;
            }
        }
        self.keep(&all);
        Ok(())
    }

    /// The pod is done: what nobody else here uses is taken back. Can be tried again.
    pub(crate) async fn unprepare(&self, uid: &str) -> Result<(), ClaimError> {
        let uses = |held: &Held| held.pods.contains(uid);
        if !self.held.lock().values().any(uses) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let last: Vec<(String, Held)> = {
            let mut all = self.held.lock();
            for held in all.values_mut().filter(|held| held.pods.len() > 1) {
                held.pods.remove(uid);
            }
            self.keep(&all);
            all.iter().filter(|(_, held)| uses(held)).map(|(key, held)| (key.clone(), held.clone())).collect()
        };
        for (key, held) in last {
            for driver in held.drivers.keys() {
                self.drivers.unprepare(driver, &request(&held)).await?;
            }
            let mut all = self.held.lock();
            all.remove(&key);
            self.keep(&all);
        }
        Ok(())
    }

    /// What the container uses: claim, driver and device.
    fn used(&self, pod: &Pod, container: &Container) -> Vec<(Held, String, Prepared)> {
        let all = self.held.lock();
        let mut found = Vec::new();
        for (name, request) in requests(pod, container) {
            let Some(held) = all.get(&format!("{}/{name}", podutil::namespace(pod))) else { continue };
            for (driver, devices) in &held.drivers {
                let matching = devices.iter().filter(|device| {
                    // A subrequest is named after the request that it is an alternative of.
                    request.as_ref().is_none_or(|wanted| {
                        let main = |name: &String| name.split('/').next() == Some(wanted.as_str());
                        device.request_names.is_empty() || device.request_names.iter().any(main)
                    })
                });
                found.extend(matching.map(|device| (held.clone(), driver.clone(), device.clone())));
            }
        }
        found
    }

    /// Qualified CDI names for the container, each once.
    pub(crate) fn cdi(&self, pod: &Pod, container: &Container) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (_, _, device) in self.used(pod, container) {
            for name in device.cdi {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }

    /// The container's claims as `podresources` tells them.
    pub(crate) fn of_container(&self, pod: &Pod, container: &Container) -> Vec<DynamicResource> {
        let mut found: Vec<DynamicResource> = Vec::new();
        for (held, driver_name, device) in self.used(pod, container) {
            let resource = ClaimResource {
                cdi_devices: device.cdi.iter().map(|name| CdiDevice { name: name.clone() }).collect(),
                driver_name,
                pool_name: device.pool_name,
                device_name: device.device_name,
                share_id: device.share_id,
            };
            match found.iter_mut().find(|one| one.claim_name == held.claim_name) {
                Some(one) => one.claim_resources.push(resource),
                None => found.push(DynamicResource {
                    claim_name: held.claim_name,
                    claim_namespace: held.namespace,
                    claim_resources: vec![resource],
                }),
            }
        }
        found
    }

    /// The health of the container's claimed devices, as its status shows it.
    pub(crate) fn health(&self, pod: &Pod, container: &Container) -> Vec<ResourceStatus> {
        let mut found: Vec<ResourceStatus> = Vec::new();
        let claims = container.resources.iter().flat_map(|resources| resources.claims.iter().flatten());
        for claim in claims {
            let name = match &claim.request {
                Some(request) => format!("claim:{}/{request}", claim.name),
                None => format!("claim:{}", claim.name),
            };
            let one = spec(pod).resource_claims.iter().flatten().find(|one| one.name == claim.name);
            let Some(Named::Claim(real)) = one.map(|one| claim_name(pod, one)) else { continue };
            let resources = self.used(pod, container).into_iter().filter(|(held, _, device)| {
                held.claim_name == real
                    && claim.request.as_ref().is_none_or(|request| device.request_names.contains(request))
            });
            let resources: Vec<ResourceHealth> = resources
                .map(|(_, driver, device)| {
                    let (health, message) =
                        self.drivers.health(&driver, &device.pool_name, &device.device_name);
                    let plain = format!("{driver}/{}/{}", device.pool_name, device.device_name);
                    ResourceHealth {
                        resource_id: device.cdi.first().cloned().unwrap_or(plain),
                        health: Some(health.to_owned()),
                        message: Some(message).filter(|message| !message.is_empty()),
                    }
                })
                .collect();
            if !resources.is_empty() {
                found.push(ResourceStatus { name, resources: Some(resources) });
            }
        }
        found
    }
}

impl From<Device> for Prepared {
    fn from(device: Device) -> Self {
        Prepared {
            pool_name: device.pool_name,
            device_name: device.device_name,
            request_names: device.request_names,
            cdi: device.cdi_device_ids,
            share_id: device.share_id,
        }
    }
}

fn request(held: &Held) -> Claim {
    Claim { namespace: held.namespace.clone(), uid: held.claim_uid.clone(), name: held.claim_name.clone() }
}

/// Whether the pod may use the claim as it is; what is to be held of it then.
fn admit(pod: &Pod, claim: &ResourceClaim, made: bool) -> Result<Held, ClaimError> {
    let name = claim.metadata.name.clone().unwrap_or_default();
    let uid = podutil::uid(pod);
    let owners = claim.metadata.owner_references.iter().flatten();
    if made && !owners.into_iter().any(|owner| owner.uid == uid && owner.controller == Some(true)) {
        return Err(ClaimError::Owner(name));
    }
    let status = claim.status.as_ref();
    let mut users = status.into_iter().flat_map(|status| status.reserved_for.iter().flatten());
    if !users.any(|user| user.uid == uid) {
        return Err(ClaimError::NotReserved { pod: podutil::name(pod).to_owned(), claim: name });
    }
    let allocation = status.and_then(|status| status.allocation.as_ref());
    let Some(allocation) = allocation else { return Err(ClaimError::NotAllocated(name)) };
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    Ok(Held {
        claim_uid: claim.metadata.uid.clone().unwrap_or_default(),
        claim_name: name,
        namespace: podutil::namespace(pod).to_owned(),
        pods: BTreeSet::new(),
        drivers: results.map(|result| (result.driver.clone(), Vec::new())).collect(),
        prepared: false,
    })
}

/// Which ResourceClaim a pod's claim is.
enum Named<'a> {
    Claim(&'a str),
    /// None is needed.
    None,
    /// It has not been made yet.
    Unknown,
}

fn claim_name<'a>(pod: &'a Pod, claim: &'a PodResourceClaim) -> Named<'a> {
    if let Some(name) = &claim.resource_claim_name {
        return Named::Claim(name);
    }
    let statuses = pod.status.iter().flat_map(|status| status.resource_claim_statuses.iter().flatten());
    match statuses.into_iter().find(|status| status.name == claim.name) {
        Some(status) => status.resource_claim_name.as_deref().map_or(Named::None, Named::Claim),
        None => Named::Unknown,
    }
}

/// The claim that stands behind extended resources of the pod.
fn extended_claim(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?.extended_resource_claim_status.as_ref()?;
    Some(status.resource_claim_name.as_str())
}

/// Claims of the container by the ResourceClaim's name, each with the request that it uses, or all of it.
fn requests(pod: &Pod, container: &Container) -> Vec<(String, Option<String>)> {
    let claims = container.resources.iter().flat_map(|resources| resources.claims.iter().flatten());
    let mut found: Vec<(String, Option<String>)> = claims
        .into_iter()
        .filter_map(|used| {
            let claim = spec(pod).resource_claims.iter().flatten().find(|claim| claim.name == used.name)?;
            match claim_name(pod, claim) {
                Named::Claim(name) => {
                    Some((name.to_owned(), used.request.clone().filter(|name| !name.is_empty())))
                }
                Named::None | Named::Unknown => None,
            }
        })
        .collect();
    let extended = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
    if let Some(extended) = extended {
        let own = extended.request_mappings.iter().filter(|one| one.container_name == container.name);
        found.extend(own.map(|one| (extended.resource_claim_name.clone(), Some(one.request_name.clone()))));
    }
    found
}

#[cfg(test)]
mod tests;
