//! The loop that keeps the aggregation layer in step: reads the APIServices when they change, checks their servers when
//! something about them changes, after failures with growing pauses, and now and then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{GROUP, RESOURCE, Remote, availability, ensure_trust, registration};
use crate::ClusterRef;
use crate::read::Read;
use crate::server::Server;

/// A server that passes is checked again after this time, and its documents are fetched anew after that.
const RESYNC: Duration = Duration::from_secs(30);
const REFETCH: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Checks at once.
const WORKERS: usize = 8;
/// Changes that come in a burst are looked at together.
const SETTLE: Duration = Duration::from_millis(5);

/// What is known of one APIService's checks.
struct Entry {
    remote: Arc<Remote>,
    /// What the last check went by: the revisions of the objects that matter.
    seen: Vec<String>,
    due: Instant,
    failures: u32,
    running: bool,
    fetched: Option<Instant>,
}

/// Bells of the resources that matter.
struct Bells {
    services: Receiver<u64>,
    apis: Receiver<u64>,
    slices: Receiver<u64>,
    definitions: Receiver<u64>,
    maps: Receiver<u64>,
}

impl Bells {
    fn new(server: &Server) -> Option<Self> {
        let bell = |group: &str, resource: &str| Some(server.registry.any(group, resource)?.cache.bell());
        Some(Self {
            services: bell("", "services")?,
            apis: bell(GROUP, RESOURCE)?,
            slices: bell("discovery.k8s.io", "endpointslices")?,
            definitions: bell("apiextensions.k8s.io", "customresourcedefinitions")?,
            maps: bell("", "configmaps")?,
        })
    }
}

/// Runs until the server stops.
pub async fn run(server: Arc<Server>, cluster: ClusterRef) {
    let Some(mut bells) = Bells::new(&server) else { return };
    let owner = server.aggregation.clone();
    let mut entries: HashMap<String, Entry> = HashMap::new();
    let mut checks: JoinSet<(String, bool, bool)> = JoinSet::new();
    let (mut apis, mut definitions, mut maps) = (true, true, true);
    let mut trust_revision = None;
    loop {
        if apis {
            owner.refresh(&cluster);
            let table = owner.table();
            owner.documents.retain(|group, version| table.remote(group, version).is_some());
            entries.retain(|name, _| table.remotes().any(|r| r.name == *name));
        }
        if definitions || apis {
            let rows = server.registry.rows().clone();
            if let Err(error) = registration::ensure(&cluster, &rows, false).await {
                tracing::warn!(%error, "local APIServices could not be written");
            }
        }
        if maps {
            let revision = cluster.get("", "configmaps", "kube-system", "extension-apiserver-authentication");
            let revision = revision.map(|m| m.text("metadata.resourceVersion").to_owned());
            if trust_revision.as_ref() != Some(&revision) {
                let trust = owner.trust.lock().clone();
                if let Err(error) = ensure_trust(&cluster, &trust).await {
                    tracing::warn!(%error, "the trust of extension servers could not be written");
                }
                trust_revision = Some(revision);
            }
        }
        (apis, definitions, maps) = (false, false, false);
        let now = Instant::now();
        for remote in owner.table().remotes() {
            let seen = seen(&cluster, remote);
            let entry = entries.entry(remote.name.clone()).or_insert_with(|| Entry {
                remote: remote.clone(),
                seen: Vec::new(),
                due: now,
                failures: 0,
                running: false,
                fetched: None,
            });
            if entry.seen != seen {
                if !entry.remote.same_service(remote) {
                    entry.fetched = None;
                }
                (entry.seen, entry.due, entry.failures) = (seen, now, 0);
            }
            entry.remote = remote.clone();
        }
        for (name, entry) in &mut entries {
            if entry.due <= now && !entry.running && checks.len() < WORKERS {
                entry.running = true;
                let fetch = entry.fetched.is_none_or(|at| at.elapsed() >= REFETCH);
                let (owner, cluster) = (owner.clone(), cluster.clone());
                let (name, remote) = (name.clone(), entry.remote.clone());
                checks.spawn(async move {
                    let verdict = availability::check(&owner, &cluster, &remote).await;
                    let passed = verdict.available;
                    if let Err(error) = availability::record(&cluster, &name, &verdict).await {
                        tracing::debug!(%error, name, "APIService status not written");
                    }
                    if !passed {
                        owner.stale(&remote);
                    } else if fetch || !owner.documents.of(&remote).fresh {
                        owner.fetch(&cluster, &remote).await;
                    }
                    (name, passed, passed && fetch)
                });
            }
        }
        let next = entries.values().filter(|e| !e.running).map(|e| e.due).min();
        let next = next.unwrap_or(now + RESYNC).max(now + SETTLE);
        tokio::select! {
            () = server.shutdown.cancelled() => return,
            Ok(()) = bells.apis.changed() => apis = true,
            Ok(()) = bells.services.changed(), if !entries.is_empty() => {}
            Ok(()) = bells.slices.changed(), if !entries.is_empty() => {}
            Ok(()) = bells.definitions.changed() => definitions = true,
            Ok(()) = bells.maps.changed() => maps = true,
            () = tokio::time::sleep_until(next) => {}
            Some(done) = checks.join_next() => {
                if let Ok((name, passed, fetched)) = done
                    && let Some(entry) = entries.get_mut(&name)
                {
                    finished(entry, passed, fetched);
                }
            }
        }
        tokio::time::sleep(SETTLE).await;
    }
}

fn finished(entry: &mut Entry, passed: bool, fetched: bool) {
    entry.running = false;
    if fetched {
        entry.fetched = Some(Instant::now());
    }
    let pause = if passed {
        entry.failures = 0;
        RESYNC
    } else {
        entry.failures = entry.failures.saturating_add(1);
        FIRST_RETRY.saturating_mul(1 << entry.failures.min(16)).min(LAST_RETRY)
    };
    entry.due = Instant::now() + pause;
}

/// The specification of the APIService, and the revisions of the Service and its endpoints.
fn seen(cluster: &ClusterRef, remote: &Remote) -> Vec<String> {
    let mut seen = Vec::new();
    if let Some(object) = cluster.get(GROUP, RESOURCE, "", &remote.name) {
        seen.push(object.at("spec").to_string());
    }
    let version = |object: &serde_json::Value| object.text("metadata.resourceVersion").to_owned();
    if let Some(service) = cluster.get("", "services", &remote.namespace, &remote.service) {
        seen.push(version(&service));
        seen.extend(
            crate::dial::slices(cluster, &remote.namespace, &remote.service).iter().map(|s| version(s)),
        );
    }
    seen
}
