//! The scheduler: keeps a snapshot of nodes and pods from the shared informers, asks the pure crate
//! `scheduling` for a place for each waiting pod, and binds. It knows nothing of the store or of HTTP.

mod bind;
mod claims;
mod core;
mod queue;
mod volumes;
mod watch;

use std::sync::Arc;

use informer::{Factory, Recorder, while_leading};
use kube::Client;
use tokio_util::sync::CancellationToken;

pub use informer::LeaderElection;

/// How the scheduler runs.
#[derive(Clone, Default)]
pub struct Config {
    /// The name that pods ask for in `spec.schedulerName`; `default-scheduler` if empty.
    pub name: String,
    /// The informers to share with other parts of the process.
    pub informers: Option<Factory>,
    /// Runs only while holding a lease, so that several may be started.
    pub leader_election: Option<LeaderElection>,
}

/// What goes wrong for good.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process took the lease.
    #[error("the lease {0} was not renewed in time, or somebody else holds it")]
    LeaseLost(String),
}

/// Schedules pods until `shutdown`.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let Some(election) = config.leader_election.clone() else {
        schedule(client, config, shutdown).await;
        return Ok(());
    };
    let name = election.name.clone();
    let inner = client.clone();
    while_leading(client, election, shutdown.clone(), move |leading| schedule(inner, config, leading)).await;
    if shutdown.is_cancelled() { Ok(()) } else { Err(Error::LeaseLost(name)) }
}

async fn schedule(client: Client, config: Config, shutdown: CancellationToken) {
    let name = if config.name.is_empty() { "default-scheduler".to_owned() } else { config.name };
    let informers = config.informers.unwrap_or_else(|| Factory::new(client.clone(), shutdown.clone()));
    let recorder = Recorder::new(client.clone(), "default-scheduler", shutdown.clone());
    let core = Arc::new(core::Core::new(client, name, recorder, &informers));
    watch::connect(&core, &informers).await;
    core.run(shutdown).await;
}
