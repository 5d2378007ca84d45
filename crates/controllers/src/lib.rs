//! The controllers: each watches what it needs through shared informers and makes the cluster as its objects
//! say. They know only the Kubernetes API through `kube::Client`.

mod autoscaling;
mod bootstrap;
mod certificates;
mod clusterroles;
mod cronjob;
mod daemonset;
mod deployment;
mod devices;
mod disruption;
mod endpoints;
mod garbage;
mod job;
mod kit;
mod migration;
mod namespace;
mod node;
mod policystatus;
mod quota;
mod replicaset;
mod serviceaccount;
mod servicecidrs;
mod statefulset;
mod tokens;
mod volume;

use std::sync::Arc;

use informer::{Factory, LeaderElection, while_leading};
use kube::Client;
pub use node::Range;
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
    /// Signs the certificates of approved requests; none if something else signs.
    pub signing: Option<Arc<pki::Authority>>,
    /// How long signed certificates hold at most; a year unless set.
    pub signing_duration: Option<std::time::Duration>,
    /// Signs the tokens that are kept in Secrets.
    pub account_key: Option<Arc<pki::Key>>,
    /// The ranges from which each node gets its pod addresses, one per family; none if something else gives them.
    pub pod_ranges: Vec<Range>,
    /// Performs StorageVersionMigrations, which a server must have been told to serve.
    pub storage_migration: bool,
}

/// Makes the client that acts as the controller of this name, `system:serviceaccount:kube-system:<name>` where
/// the bootstrap policy is in force.
pub type Clients = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// What goes wrong for good.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process took the lease.
    #[error("the lease {0} was not renewed in time, or somebody else holds it")]
    LeaseLost(String),
}

/// Runs all controllers until `shutdown`. `client` is for the shared informers and must be able to list and watch
/// everything; each controller writes with its own of `clients`.
pub async fn run(
    client: Client,
    clients: Clients,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let Some(election) = config.leader_election.clone() else {
        control(client, clients, config, shutdown).await;
        return Ok(());
    };
    let name = election.name.clone();
    let inner = client.clone();
    let work = move |leading| control(inner, clients, config, leading);
    while_leading(client, election, shutdown.clone(), work).await;
    if shutdown.is_cancelled() { Ok(()) } else { Err(Error::LeaseLost(name)) }
}

async fn control(client: Client, clients: Clients, config: Config, shutdown: CancellationToken) {
    let informers =
        config.informers.clone().unwrap_or_else(|| Factory::new(client.clone(), shutdown.clone()));
    let context = kit::Context {
        client,
        clients,
        informers,
        config: Arc::new(config),
        changed: informer::Queue::new(),
        tally: Arc::default(),
        shutdown,
    };
    tokio::join!(
        serviceaccount::accounts(context.named("service-account-controller")),
        serviceaccount::root_ca(context.named("root-ca-cert-publisher")),
        certificates::approve(context.named("certificate-controller")),
        certificates::sign(context.named("certificate-controller")),
        certificates::clean(context.named("certificate-controller")),
        bootstrap::clean(context.named("token-cleaner")),
        bootstrap::sign(context.named("bootstrap-signer")),
        // As upstream's: with the rights of the whole, not of a controller.
        tokens::run(context.clone()),
        tokens::unused(context.named("legacy-service-account-token-cleaner")),
        namespace::run(context.named("namespace-controller")),
        node::ipam(context.named("node-controller")),
        node::health(context.named("node-controller")),
        node::evict(context.named("node-controller")),
        node::gc(context.named("pod-garbage-collector")),
        garbage::run(context.named("generic-garbage-collector")),
        endpoints::slices(context.named("endpointslice-controller")),
        endpoints::endpoints(context.named("endpoint-controller")),
        endpoints::mirror(context.named("endpointslicemirroring-controller")),
        replicaset::replica_sets(context.named("replicaset-controller")),
        replicaset::replication_controllers(context.named("replication-controller")),
        deployment::run(context.named("deployment-controller")),
        daemonset::run(context.named("daemon-set-controller")),
        job::run(context.named("job-controller")),
        cronjob::run(context.named("cronjob-controller")),
        clusterroles::run(context.named("clusterrole-aggregation-controller")),
        quota::run(context.named("resourcequota-controller")),
        disruption::run(context.named("disruption-controller")),
        policystatus::run(context.named("validatingadmissionpolicy-status-controller")),
        statefulset::run(context.named("statefulset-controller")),
        job::ttl(context.named("ttl-after-finished-controller")),
        autoscaling::run(context.named("horizontal-pod-autoscaler")),
        devices::claims(context.named("resource-claim-controller")),
        devices::taints(context.named("device-taint-eviction-controller")),
        node::ttl(context.named("ttl-controller")),
        servicecidrs::run(context.named("service-cidrs-controller")),
        volume::binder(context.named("persistent-volume-binder")),
        volume::attach(context.named("attachdetach-controller")),
        volume::expand(context.named("expand-controller")),
        volume::ephemeral(context.named("ephemeral-volume-controller")),
        volume::protect_claims(context.named("pvc-protection-controller")),
        volume::protect_volumes(context.named("pv-protection-controller")),
        volume::protect_classes(context.named("volumeattributesclass-protection-controller")),
        migration::run(context.named("storage-version-migrator-controller")),
    );
}
