//! The controllers: each watches what it needs through shared informers and makes the cluster as its objects
//! say. They know only the Kubernetes API through `kube::Client`.

use informer::{Factory, LeaderElection, while_leading};
use kube::Client;
use tokio_util::sync::CancellationToken;

/// How the controllers run.
#[derive(Clone, Default)]
pub struct Config {
    /// The informers to share with other parts of the process.
    pub informers: Option<Factory>,
    /// Runs only while holding a lease, so that several may be started.
    pub leader_election: Option<LeaderElection>,
    /// The cluster's CA certificate as PEM, published in each namespace as `kube-root-ca.crt`.
    pub root_ca: String,
}

/// What goes wrong for good.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process took the lease.
    #[error("the lease {0} was lost to another holder")]
    LeaseLost(String),
}

/// Runs all controllers until `shutdown`.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let Some(election) = config.leader_election.clone() else {
        control(client, config, shutdown).await;
        return Ok(());
    };
    let name = election.name.clone();
    let inner = client.clone();
    while_leading(client, election, shutdown.clone(), move |leading| control(inner, config, leading)).await;
    if shutdown.is_cancelled() { Ok(()) } else { Err(Error::LeaseLost(name)) }
}

async fn control(client: Client, config: Config, shutdown: CancellationToken) {
    let informers = config.informers.unwrap_or_else(|| Factory::new(client, shutdown.clone()));
    drop(informers);
    shutdown.cancelled().await;
}
