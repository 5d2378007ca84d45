//! How device plug-ins are met: by the service `Registration` at `device-plugins/kubelet.sock`, or as a plug-in of the kind
//! `DevicePlugin` in the folder that all plug-ins register in. Each is followed for as long as its stream lasts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use plugins::device::device_plugin_client::DevicePluginClient;
use plugins::device::registration_server::{Registration, RegistrationServer};
use plugins::device::{DevicePluginOptions, Empty, ListAndWatchResponse, RegisterRequest};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use super::{Device, Devices, checkpoint};
use crate::manager::Pods;
use crate::registration::{Handler, Plugin};

/// How long a plug-in may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
const VERSION: &str = "v1beta1";
const SOCKET: &str = "kubelet.sock";
/// Devices of one resource at most.
const MOST: usize = 65_536;

/// Serves registrations until shutdown, and tells the workers of pods whose devices' health changed.
pub(crate) async fn run(devices: Arc<Devices>, pods: Pods, shutdown: CancellationToken) {
    let folder = devices.folder.clone();
    let listener = match listen(&folder) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, folder = %folder.display(), "device plug-ins cannot register");
            return;
        }
    };
    let service = Service { devices: devices.clone(), folder, shutdown: shutdown.clone() };
    let server = Server::builder()
        .add_service(RegistrationServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.clone().cancelled_owned());
    let mut changes = devices.changes();
    let telling = async {
        loop {
            for uid in devices.take_sick() {
                pods.wake(&uid);
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        served = server => if let Err(error) = served {
            tracing::error!(%error, "device plug-ins cannot register any more");
        },
        () = telling => {}
    }
}

/// Takes the socket anew. Whatever else lies in the folder is of plug-ins of an earlier run, which come again when they see
/// their sockets go.
fn listen(folder: &Path) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let kept = name.to_string_lossy().starts_with(checkpoint::FILE);
        if !kept && entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    UnixListener::bind(folder.join(SOCKET))
}

struct Service {
    devices: Arc<Devices>,
    folder: PathBuf,
    shutdown: CancellationToken,
}

/// Whether plug-ins may offer resources of that name: with a domain that is not Kubernetes's own.
fn check_name(name: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("the ResourceName {name:?} is invalid: {why}"));
    let Some((domain, rest)) = name.split_once('/') else { return bad("it has no domain") };
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    let word = |text: &str, more: &str| {
        !text.is_empty()
            && text.len() <= 253
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    if own || name.starts_with("requests.") {
        return bad("it is one of Kubernetes's own");
    }
    if !word(domain, "-.") || !word(rest, "-._") || rest.len() > 63 {
        return bad("it is no extended resource such as example.com/gpu");
    }
    Ok(())
}

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            let text = format!(
                "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
                request.version
            );
            return Err(Status::invalid_argument(text));
        }
        check_name(&request.resource_name).map_err(Status::invalid_argument)?;
        let endpoint = Path::new(&request.endpoint);
        let plain = endpoint.components().count() == 1 && endpoint.file_name() == Some(endpoint.as_os_str());
        if !plain {
            return Err(Status::invalid_argument(format!(
                "the endpoint {:?} is no file name",
                request.endpoint
            )));
        }
        let socket = self.folder.join(endpoint);
        let (devices, shutdown) = (self.devices.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            let met = meet(&devices, &request.resource_name, &socket, request.options).await;
            let Some((plugin, generation)) = met else { return };
            tokio::select! {
                () = follow(&devices, &request.resource_name, plugin, generation) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(Empty {}))
    }
}

async fn meet(
    devices: &Devices,
    name: &str,
    socket: &Path,
    options: Option<DevicePluginOptions>,
) -> Option<(DevicePluginClient<Channel>, u64)> {
    let channel = match plugins::connect(socket).await {
        Ok(channel) => channel,
        Err(error) => {
            tracing::warn!(%error, resource = name, "cannot reach a device plug-in that registered");
            return None;
        }
    };
    let mut plugin = DevicePluginClient::new(channel);
    let options = match options {
        Some(options) => options,
        None => match tokio::time::timeout(PATIENCE, plugin.get_device_plugin_options(Empty {})).await {
            Ok(Ok(options)) => options.into_inner(),
            // Old plug-ins do not know the question.
            _ => DevicePluginOptions::default(),
        },
    };
    let generation = devices.register(name, plugin.clone(), options);
    tracing::info!(resource = name, "a device plug-in has come");
    Some((plugin, generation))
}

/// Follows what the plug-in tells until its stream ends.
async fn follow(devices: &Devices, name: &str, mut plugin: DevicePluginClient<Channel>, generation: u64) {
    match plugin.list_and_watch(Empty {}).await {
        Ok(stream) => {
            let mut stream = stream.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(told)) => devices.update(name, generation, listed(told)),
                    Ok(None) => break,
                    Err(status) => {
                        tracing::warn!(status = status.message(), resource = name, "a device plug-in went");
                        break;
                    }
                }
            }
        }
        Err(status) => {
            tracing::warn!(
                status = status.message(),
                resource = name,
                "a device plug-in does not list its devices"
            );
        }
    }
    devices.lose(name, generation);
}

fn listed(told: ListAndWatchResponse) -> BTreeMap<String, Device> {
    let devices = told.devices.into_iter().take(MOST).map(|device| {
        let nodes = device.topology.map(|topology| topology.nodes).unwrap_or_default();
        let nodes = nodes.into_iter().filter_map(|node| u32::try_from(node.id).ok()).collect();
        (device.id, Device { healthy: device.health == "Healthy", nodes })
    });
    devices.collect()
}

/// Takes device plug-ins that register as all other plug-ins do.
pub(crate) struct PluginHandler {
    devices: Arc<Devices>,
    following: parking_lot::Mutex<BTreeMap<PathBuf, CancellationToken>>,
}

impl PluginHandler {
    pub(crate) fn new(devices: Arc<Devices>) -> Arc<Self> {
        Arc::new(PluginHandler { devices, following: parking_lot::Mutex::default() })
    }
}

impl Handler for PluginHandler {
    fn kind(&self) -> &'static str {
        "DevicePlugin"
    }

    fn register<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            if !plugin.versions.iter().any(|version| version == VERSION) {
                return Err(format!(
                    "manager version, {VERSION}, is not among plugin supported versions {:?}",
                    plugin.versions
                ));
            }
            check_name(&plugin.name)?;
            let met = meet(&self.devices, &plugin.name, &plugin.endpoint, None).await;
            let (client, generation) = met.ok_or_else(|| "it cannot be reached".to_owned())?;
            let gone = CancellationToken::new();
            if let Some(before) = self.following.lock().insert(plugin.endpoint.clone(), gone.clone()) {
                before.cancel();
            }
            let (devices, name) = (self.devices.clone(), plugin.name.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = follow(&devices, &name, client, generation) => {}
                    () = gone.cancelled() => devices.lose(&name, generation),
                }
            });
            Ok(())
        })
    }

    fn deregister<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(following) = self.following.lock().remove(&plugin.endpoint) {
                following.cancel();
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_domain_of_their_own() {
        for good in ["example.com/gpu", "nvidia.com/mig-1g.5gb"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in [
            "gpu",
            "kubernetes.io/gpu",
            "a.kubernetes.io/x",
            "example.com/",
            "/x",
            "example.com/a b",
            "a/b/c",
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
