//! Which server, as whom, in which namespace.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::Error;
use crate::args::Global;

/// Where `carrack up` puts the administrator's kubeconfig unless told otherwise.
const LOCAL_CLUSTER: &str = "/var/lib/carrack/admin.kubeconfig";

/// An open connection and the namespace that requests go to.
pub(crate) struct Connection {
    pub client: Client,
    pub namespace: String,
}

pub(crate) async fn connect(global: &Global) -> Result<Connection, Error> {
    let failed = |error| Error::Kubeconfig(Box::new(error));
    let kubeconfig = match file(global) {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig.map_err(failed)?, &options).await.map_err(failed)?;
    // Watches and followed logs may be silent for as long as they like.
    config.read_timeout = None;
    let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config)?;
    Ok(Connection { client, namespace })
}

/// The file to use; none leaves it to the usual places (`$KUBECONFIG`, `~/.kube/config`).
fn file(global: &Global) -> Option<PathBuf> {
    if let Some(path) = &global.kubeconfig {
        return Some(path.clone());
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
    let usual = std::env::var_os("KUBECONFIG").is_some() || home.is_some_and(|path| path.exists());
    (!usual && Path::new(LOCAL_CLUSTER).exists()).then(|| LOCAL_CLUSTER.into())
}
