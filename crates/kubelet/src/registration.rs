//! The sockets of plug-ins that want to be known to the kubelet: each that appears below `plugins_registry` is asked what it
//! is, handed to the handler of its kind, and told whether that worked. A socket that goes takes its plug-in with it.
//! The protocol is that of upstream's `pkg/kubelet/pluginmanager`.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use plugins::registration::registration_client::RegistrationClient;
use plugins::registration::{InfoRequest, RegistrationStatus};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::inotify::Watch;

/// How long a plug-in may take to say who it is, and to take note of the outcome.
const PATIENCE: Duration = Duration::from_secs(10);
/// A socket at which nobody listens yet is tried again after so long, and twice as long each time up to the second.
const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(60);
/// More sockets than this, and folders this deep, are no plug-ins of a node.
const MOST: usize = 1024;
const DEEPEST: usize = 8;

/// A plug-in, as it tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plugin {
    /// `CSIPlugin`, `DRAPlugin` or `DevicePlugin`.
    pub kind: String,
    /// Its name, such as that of a CSI driver.
    pub name: String,
    /// The socket of its own service.
    pub endpoint: PathBuf,
    /// What it speaks, as `v1` or `1.2.0`; what that means is the handler's to know.
    pub versions: Vec<String>,
}

/// Takes plug-ins of one kind.
pub(crate) trait Handler: Send + Sync {
    /// The kind that plug-ins give.
    fn kind(&self) -> &'static str;
    /// Takes the plug-in, or says why not; asked again from time to time while it refuses. A plug-in of a name that is
    /// already known replaces it.
    fn register<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, Result<(), String>>;
    /// The plug-in's socket is gone. Another plug-in of its name with another endpoint may have come by now.
    fn deregister<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, ()>;
}

/// The handlers by kind.
pub(crate) type Handlers = Arc<Vec<Arc<dyn Handler>>>;

/// What tells a socket from another that takes its place.
type Identity = (u64, Option<SystemTime>);

struct Known {
    identity: Identity,
    gone: CancellationToken,
    task: JoinHandle<()>,
}

/// Follows the folder until shutdown; what is registered then stays so.
pub(crate) async fn run(folder: PathBuf, handlers: Handlers, shutdown: CancellationToken) {
    let watch = match std::fs::create_dir_all(&folder).and_then(|()| Watch::new()) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::error!(%error, folder = %folder.display(), "cannot follow the plug-ins' folder; none will be registered");
            return;
        }
    };
    let mut known: BTreeMap<PathBuf, Known> = BTreeMap::new();
    loop {
        let found = sockets(&folder, &watch);
        let gone = known.extract_if(.., |path, known| found.get(path) != Some(&known.identity));
        let mut leaving: BTreeMap<PathBuf, JoinHandle<()>> = gone
            .map(|(path, known)| {
                known.gone.cancel();
                (path, known.task)
            })
            .collect();
        for (path, identity) in found {
            if known.contains_key(&path) {
                continue;
            }
            let gone = CancellationToken::new();
            let before = leaving.remove(&path);
            let task = tokio::spawn(attend(path.clone(), before, handlers.clone(), gone.clone()));
            known.insert(path, Known { identity, gone, task });
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = watch.changed() => {}
        }
    }
    known.values().for_each(|known| known.task.abort());
}

/// The sockets below `folder`, which is watched from then on with all folders in it.
fn sockets(folder: &Path, watch: &Watch) -> BTreeMap<PathBuf, Identity> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        // Watched first, so that nothing comes unseen between the look and the watch.
        if let Err(error) = watch.add_entries(&folder) {
            tracing::warn!(%error, folder = %folder.display(), "cannot watch a folder of plug-ins");
        }
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let Ok(data) = entry.metadata() else { continue };
            if hidden {
                continue;
            }
            if data.is_dir() && depth < DEEPEST {
                folders.push((entry.path(), depth + 1));
            } else if data.file_type().is_socket() && found.len() < MOST {
                found.insert(entry.path(), (data.ino(), data.created().ok()));
            }
        }
    }
    found
}

/// Registers the plug-in behind a socket and keeps it until the socket is gone.
async fn attend(
    socket: PathBuf,
    before: Option<JoinHandle<()>>,
    handlers: Handlers,
    gone: CancellationToken,
) {
    if let Some(before) = before {
        let _ = before.await;
    }
    let mut delay = SOON;
    let (plugin, handler) = loop {
        tokio::select! {
            registered = register(&socket, &handlers) => match registered {
                Ok(registered) => break registered,
                Err(error) if delay >= Duration::from_secs(1) => {
                    tracing::warn!(%error, socket = %socket.display(), "cannot register a plug-in");
                }
                Err(error) => tracing::debug!(%error, socket = %socket.display(), "cannot register a plug-in yet"),
            },
            () = gone.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = gone.cancelled() => return,
        }
        delay = (delay * 2).min(LATE);
    };
    tracing::info!(kind = plugin.kind, name = plugin.name, endpoint = %plugin.endpoint.display(), "registered a plug-in");
    gone.cancelled().await;
    tracing::info!(kind = plugin.kind, name = plugin.name, "a plug-in is gone");
    handler.deregister(&plugin).await;
}

async fn register(socket: &Path, handlers: &Handlers) -> Result<(Plugin, Arc<dyn Handler>), String> {
    let channel = plugins::connect(socket).await.map_err(|error| error.to_string())?;
    let mut client = RegistrationClient::new(channel);
    let info = tokio::time::timeout(PATIENCE, client.get_info(InfoRequest {})).await;
    let info = info.map_err(|_| "it does not say who it is in time".to_owned())?;
    let info =
        info.map_err(|status| format!("it does not say who it is: {}", status.message()))?.into_inner();
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(info.endpoint) };
    let plugin = Plugin { kind: info.r#type, name: info.name, endpoint, versions: info.supported_versions };
    let handler = handlers.iter().find(|handler| handler.kind() == plugin.kind);
    let outcome = match handler {
        None => Err(format!(
            "no handler registered for plugin type: {} at socket {}",
            plugin.kind,
            socket.display()
        )),
        Some(handler) => handler.register(&plugin).await.map(|()| handler.clone()),
    };
    let error = outcome.as_ref().err().cloned().unwrap_or_default();
    let status = RegistrationStatus { plugin_registered: outcome.is_ok(), error };
    let told = tokio::time::timeout(PATIENCE, client.notify_registration_status(status)).await;
    let told = told.map_err(|_| "it does not take note in time".to_owned());
    let told =
        told.and_then(|told| told.map_err(|status| format!("it does not take note: {}", status.message())));
    match (outcome, told) {
        (Ok(handler), Ok(_)) => Ok((plugin, handler)),
        (Ok(handler), Err(error)) => {
            handler.deregister(&plugin).await;
            Err(error)
        }
        (Err(error), _) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use plugins::registration::registration_server::{Registration, RegistrationServer};
    use plugins::registration::{PluginInfo, RegistrationStatusResponse};
    use tokio::sync::mpsc;
    use tonic::{Request, Response, Status};

    use super::*;

    /// A plug-in that tells what it was told.
    struct Fake(&'static str, mpsc::UnboundedSender<String>);

    #[tonic::async_trait]
    impl Registration for Fake {
        async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
            Ok(Response::new(PluginInfo {
                r#type: self.0.to_owned(),
                name: "x.example.com".to_owned(),
                endpoint: "/x/csi.sock".to_owned(),
                supported_versions: vec!["1.0.0".to_owned()],
            }))
        }

        async fn notify_registration_status(
            &self,
            status: Request<RegistrationStatus>,
        ) -> Result<Response<RegistrationStatusResponse>, Status> {
            let status = status.into_inner();
            let _ = self.1.send(format!("told {} {}", status.plugin_registered, status.error));
            Ok(Response::new(RegistrationStatusResponse {}))
        }
    }

    struct Taker(mpsc::UnboundedSender<String>);

    impl Handler for Taker {
        fn kind(&self) -> &'static str {
            "CSIPlugin"
        }
        fn register<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, Result<(), String>> {
            let _ = self.0.send(format!("registered {} {:?}", plugin.name, plugin.versions));
            Box::pin(async { Ok(()) })
        }
        fn deregister<'a>(&'a self, plugin: &'a Plugin) -> BoxFuture<'a, ()> {
            let _ = self.0.send(format!("deregistered {}", plugin.name));
            Box::pin(async {})
        }
    }

    fn serve(socket: &Path, kind: &'static str, said: &mpsc::UnboundedSender<String>) -> JoinHandle<()> {
        let listener = tokio::net::UnixListener::bind(socket).expect("a socket");
        let stream = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(Fake(kind, said.clone())))
            .serve_with_incoming(stream);
        tokio::spawn(async move { server.await.expect("served") })
    }

    #[tokio::test]
    async fn plugins_come_and_go_with_their_sockets() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("registry");
        let (said, mut heard) = mpsc::unbounded_channel();
        let handlers: Handlers = Arc::new(vec![Arc::new(Taker(said.clone()))]);
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(folder.clone(), handlers, stop.clone()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut expect = async |text: &str| assert_eq!(heard.recv().await.as_deref(), Some(text));
        // In a folder of its own, that is made while all runs.
        std::fs::create_dir(folder.join("sub")).expect("a folder");
        let socket = folder.join("sub/x.sock");
        let server = serve(&socket, "CSIPlugin", &said);
        expect(r#"registered x.example.com ["1.0.0"]"#).await;
        expect("told true ").await;
        // Another takes its place.
        server.abort();
        std::fs::remove_file(&socket).expect("removed");
        let server = serve(&socket, "CSIPlugin", &said);
        expect("deregistered x.example.com").await;
        expect(r#"registered x.example.com ["1.0.0"]"#).await;
        expect("told true ").await;
        server.abort();
        std::fs::remove_file(&socket).expect("removed");
        expect("deregistered x.example.com").await;
        let other = folder.join("y.sock");
        let server = serve(&other, "OtherPlugin", &said);
        let no = format!("no handler registered for plugin type: OtherPlugin at socket {}", other.display());
        expect(&format!("told false {no}")).await;
        server.abort();
        stop.cancel();
        running.await.expect("it ends");
    }
}
