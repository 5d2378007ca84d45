//! Service routing on a node: watches Services and EndpointSlices and keeps the nftables table of [`ruleset::services`] in step. Works in the
//! network namespace of the threads it runs on, and needs nothing of the pod network but its ranges.

#![forbid(unsafe_code)]

mod health;
mod state;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use ruleset::Ruleset;
use state::State;
use std::net::IpAddr;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long to wait before another try after the kernel refused a change.
const RETRY: Duration = Duration::from_secs(1);
/// Services with this label are for another proxy; headless ones need none.
const SERVICES: &str = "!service.kubernetes.io/service-proxy-name";
const SLICES: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// What the proxy needs to know.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfig {
    /// Name of this node.
    pub node_name: String,
    /// Ranges of this node's pods; if empty, they are taken from the Node object.
    pub pod_ranges: Vec<IpNet>,
    /// Ranges that service addresses come from.
    pub service_ranges: Vec<IpNet>,
    /// Service addresses that a server on this node answers itself (cluster DNS).
    pub served_here: Vec<IpAddr>,
}

/// Errors of the proxy that end it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel cannot do what services need.
    #[error("service routing does not work on this node")]
    Network(#[from] network::Error),
    /// A helper thread ended early.
    #[error("a helper thread of the proxy ended")]
    Thread(#[from] tokio::task::JoinError),
}

enum Change {
    Service(Box<Event<Service>>),
    Slice(Box<Event<EndpointSlice>>),
    Node(Box<Event<Node>>),
}

/// Routes services until `shutdown`; the rules stay in force after that, so that a restart disturbs nobody. Fails only if the kernel lacks
/// what is needed; all else is tried again.
pub async fn run(client: Client, config: ProxyConfig, shutdown: CancellationToken) -> Result<(), Error> {
    let ranges = config.service_ranges.clone();
    blocking(move || network::add_service_routes(&ranges)).await?;
    let named = watch::Config::default().fields(&format!("metadata.name={}", config.node_name));
    let services =
        watcher::watcher(Api::<Service>::all(client.clone()), watch::Config::default().labels(SERVICES));
    let slices =
        watcher::watcher(Api::<EndpointSlice>::all(client.clone()), watch::Config::default().labels(SLICES));
    let nodes = watcher::watcher(Api::<Node>::all(client), named);
    let mut changes = stream::select_all([
        services.default_backoff().map_ok(|event| Change::Service(Box::new(event.modify(strip)))).boxed(),
        slices.default_backoff().map_ok(|event| Change::Slice(Box::new(event.modify(strip)))).boxed(),
        nodes.default_backoff().map_ok(|event| Change::Node(Box::new(event.modify(strip)))).boxed(),
    ]);

    let mut state = State::new(&config);
    let mut health = health::Servers::new();
    let mut applied: Option<Ruleset> = None;
    let mut retry: Option<tokio::time::Instant> = None;
    loop {
        let again = async {
            match retry {
                Some(when) => tokio::time::sleep_until(when).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = again => {}
            change = changes.next() => {
                let Some(change) = change else { return Ok(()) };
                note(&mut state, change);
                // What else has arrived meanwhile goes into the same transaction.
                while let Some(Some(change)) = changes.next().now_or_never() {
                    note(&mut state, change);
                }
            }
        }
        retry = None;
        if !state.is_complete() {
            continue;
        }
        let wanted = state.ruleset();
        match bring(applied.take(), wanted).await {
            Ok(now) => {
                if state.take_udp_change() {
                    let known = state.udp_frontends();
                    let forgotten = blocking(move || network::forget_udp(|flow| known.is_stale(flow))).await;
                    if let Err(error) = forgotten {
                        tracing::warn!(%error, "stale UDP flows could not be removed");
                    }
                }
                applied = Some(now);
            }
            Err(Error::Network(error @ network::Error::Unsupported { .. })) => return Err(error.into()),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "services could not be routed; trying again"
                );
                retry = Some(tokio::time::Instant::now() + RETRY);
            }
        }
        health.sync(state.health_checks()).await;
    }
}

fn strip<K: kube::Resource>(object: &mut K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    meta.annotations = None;
}

fn note(state: &mut State, change: Result<Change, watcher::Error>) {
    match change {
        Ok(Change::Service(event)) => state.services(*event),
        Ok(Change::Slice(event)) => state.slices(*event),
        Ok(Change::Node(event)) => state.node(*event),
        Err(error) => tracing::warn!(%error, "watch interrupted; it will be taken up again"),
    }
}

/// Puts `wanted` in force: by its difference to what is, or whole if that is not known or does not work.
async fn bring(applied: Option<Ruleset>, wanted: Ruleset) -> Result<Ruleset, Error> {
    blocking(move || {
        let by_difference = applied.is_some_and(|applied| {
            let transaction = ruleset::diff(&applied, &wanted);
            network::commit(&transaction)
                .inspect_err(|error| tracing::warn!(%error, "replacing the service table as a whole"))
                .is_ok()
        });
        if !by_difference {
            network::apply(&wanted)?;
        }
        Ok(wanted)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> network::Result<T> + Send + 'static,
) -> Result<T, Error> {
    Ok(tokio::task::spawn_blocking(work).await??)
}

#[cfg(test)]
mod tests;
