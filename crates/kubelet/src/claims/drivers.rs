//! The DRA drivers on this node: plug-ins that register in the plug-ins' folder, and what they tell of their devices' health.
//! When a driver has been gone for a while, its ResourceSlices of this node go too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::ResourceSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use parking_lot::Mutex;
use plugins::dra::health::dra_resource_health_client::DraResourceHealthClient;
use plugins::dra::health::{HealthStatus, NodeWatchResourcesRequest, NodeWatchResourcesResponse};
use plugins::dra::{v1, v1beta1};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::ClaimError;
use crate::context::Shared;
use crate::manager::Pods;
use crate::registration::{Handler, Plugin};

/// How long a driver may take to prepare devices.
const PATIENCE: Duration = Duration::from_secs(45);
/// How long a driver may be gone before its ResourceSlices go.
const WIPE: Duration = Duration::from_secs(30);
/// What is told of a device's health holds for so long unless the driver says otherwise.
const FRESH: Duration = Duration::from_secs(30);
const LONGEST_MESSAGE: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    V1,
    V1Beta1,
}

#[derive(Clone)]
struct Driver {
    channel: Channel,
    version: Version,
    endpoint: PathBuf,
    gone: CancellationToken,
}

struct Health {
    status: &'static str,
    message: String,
    until: Timestamp,
}

/// Drivers by name.
#[derive(Default)]
pub(crate) struct Drivers {
    known: Mutex<BTreeMap<String, Driver>>,
    /// By driver, pool and device.
    health: Mutex<BTreeMap<(String, String, String), Health>>,
    changed: Changes,
}

struct Changes(watch::Sender<u64>);

impl Default for Changes {
    fn default() -> Self {
        Changes(watch::channel(0).0)
    }
}

impl Drivers {
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.0.subscribe()
    }

    pub(super) fn knows(&self, name: &str) -> bool {
        self.known.lock().contains_key(name)
    }

    fn driver(&self, name: &str) -> Result<Driver, ClaimError> {
        self.known.lock().get(name).cloned().ok_or_else(|| ClaimError::NoDriver(name.to_owned()))
    }

    /// Has the driver prepare claims; gives the devices by claim uid.
    pub(super) async fn prepare(
        &self,
        name: &str,
        claims: &[v1::Claim],
    ) -> Result<Vec<(String, Vec<v1::Device>)>, ClaimError> {
        let driver = self.driver(name)?;
        let failed = |message: String| ClaimError::Prepare { driver: name.to_owned(), message };
        let answers = match tokio::time::timeout(PATIENCE, driver.prepare(claims)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(status)) => return Err(failed(status.message().to_owned())),
            Err(_) => return Err(failed("it does not answer in time".to_owned())),
        };
        let mut found = Vec::new();
        for claim in claims {
            match answers.claims.get(&claim.uid) {
                Some(answer) if answer.error.is_empty() => {
                    found.push((claim.uid.clone(), answer.devices.clone()))
                }
                Some(answer) => {
                    return Err(failed(format!("ResourceClaim {}: {}", claim.name, answer.error)));
                }
                None => return Err(failed(format!("ResourceClaim {} was skipped", claim.name))),
            }
        }
        Ok(found)
    }

    /// Has the driver take back what it prepared for a claim.
    pub(super) async fn unprepare(&self, name: &str, claim: &v1::Claim) -> Result<(), ClaimError> {
        let driver = self.driver(name)?;
        let failed = |message: String| ClaimError::Unprepare { driver: name.to_owned(), message };
        match tokio::time::timeout(PATIENCE, driver.unprepare(claim)).await {
            Ok(Ok(answer)) => match answer.claims.get(&claim.uid) {
                Some(answer) if answer.error.is_empty() => Ok(()),
                Some(answer) => Err(failed(format!("ResourceClaim {}: {}", claim.name, answer.error))),
                None => Err(failed(format!("ResourceClaim {} was skipped", claim.name))),
            },
            Ok(Err(status)) => Err(failed(status.message().to_owned())),
            Err(_) => Err(failed("it does not answer in time".to_owned())),
        }
    }

    /// What is known of a device's health, and the driver's words on it.
    pub(super) fn health(&self, driver: &str, pool: &str, device: &str) -> (&'static str, String) {
        let key = (driver.to_owned(), pool.to_owned(), device.to_owned());
        let health = self.health.lock();
        match health.get(&key) {
            Some(known) if known.until > Timestamp::now() => (known.status, known.message.clone()),
            _ => ("Unknown", String::new()),
        }
    }

    fn note_health(&self, driver: &str, told: NodeWatchResourcesResponse) {
        let mut health = self.health.lock();
        for one in told.devices {
            let status = match one.health() {
                HealthStatus::Healthy => "Healthy",
                HealthStatus::Unhealthy => "Unhealthy",
                HealthStatus::Unknown => "Unknown",
            };
            let Some(device) = one.device else { continue };
            let lasts = u64::try_from(one.health_check_timeout_seconds).ok().filter(|seconds| *seconds > 0);
            let lasts = lasts.map_or(FRESH, Duration::from_secs);
            let mut message = one.message;
            message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
            let until = Timestamp::now().checked_add(lasts).unwrap_or(Timestamp::MAX);
            let key = (driver.to_owned(), device.pool_name, device.device_name);
            health.insert(key, Health { status, message, until });
        }
        drop(health);
        self.changed.0.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Driver {
    async fn prepare(&self, claims: &[v1::Claim]) -> Result<v1::NodePrepareResourcesResponse, tonic::Status> {
        let claims = claims.to_vec();
        match self.version {
            Version::V1 => {
                let mut client = v1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let request = v1::NodePrepareResourcesRequest { claims };
                Ok(client.node_prepare_resources(request).await?.into_inner())
            }
            Version::V1Beta1 => {
                let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let request = v1beta1::NodePrepareResourcesRequest { claims: again(&claims)? };
                again(&client.node_prepare_resources(request).await?.into_inner())
            }
        }
    }

    async fn unprepare(
        &self,
        claim: &v1::Claim,
    ) -> Result<v1::NodeUnprepareResourcesResponse, tonic::Status> {
        let claims = vec![claim.clone()];
        match self.version {
            Version::V1 => {
                let mut client = v1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let request = v1::NodeUnprepareResourcesRequest { claims };
                Ok(client.node_unprepare_resources(request).await?.into_inner())
            }
            Version::V1Beta1 => {
                let mut client = v1beta1::dra_plugin_client::DraPluginClient::new(self.channel.clone());
                let request = v1beta1::NodeUnprepareResourcesRequest { claims: again(&claims)? };
                again(&client.node_unprepare_resources(request).await?.into_inner())
            }
        }
    }
}

/// A message of one version as that of the other: on the wire they are the same.
trait Again<T> {
    fn again(&self) -> Result<T, tonic::Status>;
}

fn again<A: Again<B>, B>(message: &A) -> Result<B, tonic::Status> {
    message.again()
}

impl<A: prost::Message, B: prost::Message + Default> Again<Vec<B>> for Vec<A> {
    fn again(&self) -> Result<Vec<B>, tonic::Status> {
        self.iter().map(wire).collect()
    }
}

impl Again<v1::NodePrepareResourcesResponse> for v1beta1::NodePrepareResourcesResponse {
    fn again(&self) -> Result<v1::NodePrepareResourcesResponse, tonic::Status> {
        wire(self)
    }
}

impl Again<v1::NodeUnprepareResourcesResponse> for v1beta1::NodeUnprepareResourcesResponse {
    fn again(&self) -> Result<v1::NodeUnprepareResourcesResponse, tonic::Status> {
        wire(self)
    }
}

fn wire<A: prost::Message, B: prost::Message + Default>(message: &A) -> Result<B, tonic::Status> {
    B::decode(message.encode_to_vec().as_slice()).map_err(|error| tonic::Status::internal(error.to_string()))
}

/// Takes DRA drivers that register as plug-ins.
pub(crate) struct DriverHandler {
    context: Shared,
}

impl DriverHandler {
    pub(crate) fn new(context: Shared) -> Arc<Self> {
        Arc::new(DriverHandler { context })
    }
}

fn version(plugin: &Plugin) -> Result<Version, String> {
    // Drivers name services; old ones name versions of the interface, of which 1.0.0 was the first.
    let has = |names: &[&str]| plugin.versions.iter().any(|version| names.contains(&version.as_str()));
    if has(&["v1.DRAPlugin"]) {
        Ok(Version::V1)
    } else if has(&["v1beta1.DRAPlugin", "1.0.0"]) {
        Ok(Version::V1Beta1)
    } else {
        Err(format!(
            "none of the services {:?} is known; there are v1.DRAPlugin and v1beta1.DRAPlugin",
            plugin.versions
        ))
    }
}

/// Takes a driver, in place of the one that has its name now.
pub(super) async fn register(drivers: &Arc<Drivers>, plugin: &Plugin) -> Result<(), String> {
    if plugin.name.is_empty() {
        return Err("the driver has no name".to_owned());
    }
    let version = version(plugin)?;
    let channel = plugins::connect(&plugin.endpoint).await.map_err(|error| error.to_string())?;
    let gone = CancellationToken::new();
    let driver =
        Driver { channel: channel.clone(), version, endpoint: plugin.endpoint.clone(), gone: gone.clone() };
    if let Some(before) = drivers.known.lock().insert(plugin.name.clone(), driver) {
        before.gone.cancel();
    }
    tokio::spawn(follow_health(drivers.clone(), plugin.name.clone(), channel, gone));
    Ok(())
}

impl Handler for DriverHandler {
    fn kind(&self) -> &'static str {
        "DRAPlugin"
    }

    fn register<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { register(&self.context.claims.drivers(), plugin).await })
    }

    fn deregister<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let drivers = self.context.claims.drivers();
            {
                let mut known = drivers.known.lock();
                let same = known.get(&plugin.name).is_some_and(|driver| driver.endpoint == plugin.endpoint);
                if !same {
                    return;
                }
                if let Some(driver) = known.remove(&plugin.name) {
                    driver.gone.cancel();
                }
            }
            let (context, name) = (self.context.clone(), plugin.name.clone());
            tokio::spawn(async move {
                tokio::time::sleep(WIPE).await;
                if !drivers.knows(&name) {
                    clean_slices(&context, Some(&name)).await;
                }
            });
        })
    }
}

async fn follow_health(drivers: Arc<Drivers>, name: String, channel: Channel, gone: CancellationToken) {
    let mut delay = Duration::from_secs(1);
    loop {
        let mut client = DraResourceHealthClient::new(channel.clone());
        let following = async {
            let mut stream = client.node_watch_resources(NodeWatchResourcesRequest {}).await?.into_inner();
            while let Some(told) = stream.message().await? {
                drivers.note_health(&name, told);
            }
            Ok::<(), tonic::Status>(())
        };
        tokio::select! {
            ended = following => match ended {
                // A driver need not have this service.
                Err(status) if status.code() == tonic::Code::Unimplemented => return,
                Err(status) => tracing::debug!(status = status.message(), driver = name, "a driver tells nothing of its devices' health"),
                Ok(()) => delay = Duration::from_secs(1),
            },
            () = gone.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = gone.cancelled() => return,
        }
        delay = (delay * 2).min(Duration::from_secs(60));
    }
}

/// Tells workers of changes of their devices' health until shutdown. Slices of drivers that did not come after a start go.
pub(crate) async fn run(context: Shared, pods: Pods, shutdown: CancellationToken) {
    let mut changes = context.claims.changes();
    let mut wipe = Box::pin(tokio::time::sleep(WIPE));
    let mut wiped = false;
    loop {
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                context.claims.pods().iter().for_each(|uid| pods.wake(uid));
            }
            () = &mut wipe, if !wiped => {
                wiped = true;
                clean_slices(&context, None).await;
            }
            () = shutdown.cancelled() => return,
        }
    }
}

/// Deletes this node's ResourceSlices of a driver that is gone; of all drivers that are not here, if none is named.
async fn clean_slices(context: &Shared, driver: Option<&str>) {
    let node = &context.config.node_name;
    let api: Api<ResourceSlice> = Api::all(context.config.client.clone());
    let mut fields = format!("spec.nodeName={node}");
    if let Some(driver) = driver {
        fields.push_str(&format!(",spec.driver={driver}"));
    }
    let listed = match api.list(&ListParams::default().fields(&fields)).await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(%error, "cannot look for ResourceSlices of drivers that are gone");
            return;
        }
    };
    for slice in listed {
        if context.claims.drivers().knows(&slice.spec.driver) {
            continue;
        }
        let name = slice.metadata.name.unwrap_or_default();
        tracing::info!(
            slice = name,
            driver = slice.spec.driver,
            "deleting the slice of a driver that is gone"
        );
        if let Err(error) = api.delete(&name, &DeleteParams::default()).await {
            tracing::warn!(%error, slice = name, "cannot delete a ResourceSlice");
        }
    }
}
