//! Whether an extension server can be reached: the condition Available of its APIService
//! (upstream: `kube-aggregator/pkg/controllers/status/remote`).

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use http::Request;
use serde_json::{Value, json};

use super::{Aggregator, GROUP, RESOURCE, Remote};
use crate::read::{Read, object_mut};
use crate::relay;
use crate::{ClusterRef, Status, UserInfo, dial};

const LIMIT: Duration = Duration::from_secs(5);
/// Endpoints are chosen at random: one that answers is enough.
const ATTEMPTS: usize = 5;

/// The condition Available.
pub fn condition(object: &Value) -> Option<&Value> {
    object.items("status.conditions").iter().find(|c| c.text("type") == "Available")
}

/// What a check found.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub available: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Verdict {
    fn no(reason: &'static str, message: String) -> Self {
        Self { available: false, reason, message }
    }

    fn passed() -> Self {
        Self { available: true, reason: "Passed", message: "all checks passed".to_owned() }
    }
}

/// What of the Service and its endpoints speaks against availability, before the server itself is asked.
pub fn objects(cluster: &ClusterRef, remote: &Remote) -> Option<Verdict> {
    let (namespace, name) = (remote.namespace.as_str(), remote.service.as_str());
    let Some(service) = cluster.get("", "services", namespace, name) else {
        let message = format!("service/{name} in {namespace:?} is not present");
        return Some(Verdict::no("ServiceNotFound", message));
    };
    if !matches!(service.text("spec.type"), "" | "ClusterIP") {
        return None;
    }
    let ports = service.items("spec.ports");
    let Some(port) = ports.iter().find(|p| p.at("port").as_u64() == Some(u64::from(remote.port))) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {}", remote.port);
        return Some(Verdict::no("ServicePortError", message));
    };
    if (namespace, name, remote.port) == ("default", "kubernetes", 443) {
        return None;
    }
    let slices = dial::slices(cluster, namespace, name);
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(Verdict::no("EndpointsNotFound", message));
    }
    let port = port.text("name");
    let active = slices.iter().any(|slice| {
        slice.items("endpoints").iter().any(|e| e.at("conditions.ready").as_bool() != Some(false))
            && slice.items("ports").iter().any(|p| p.text("name") == port && p.has("port"))
    });
    (!active).then(|| {
        let message = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port:?}"
        );
        Verdict::no("MissingEndpoints", message)
    })
}

/// The caller of the server's own requests.
pub fn aggregator() -> UserInfo {
    UserInfo {
        name: "system:kube-aggregator".to_owned(),
        groups: vec!["system:masters".to_owned()],
        ..UserInfo::default()
    }
}

/// Checks an extension server.
pub async fn check(aggregator: &Arc<Aggregator>, cluster: &ClusterRef, remote: &Remote) -> Verdict {
    if let Some(verdict) = objects(cluster, remote) {
        return verdict;
    }
    let mut attempts: FuturesUnordered<_> = (0..ATTEMPTS).map(|_| ask(aggregator, cluster, remote)).collect();
    let mut last = String::new();
    while let Some(result) = attempts.next().await {
        match result {
            Ok(()) => return Verdict::passed(),
            Err(why) => last = why,
        }
    }
    Verdict::no("FailedDiscoveryCheck", last)
}

async fn ask(owner: &Arc<Aggregator>, cluster: &ClusterRef, remote: &Remote) -> Result<(), String> {
    let path = remote.path();
    let (host, port) = owner.resolve(cluster, remote)?;
    let url = format!("https://{}{path}", dial::authority(&host, port));
    let mut request = Request::new(relay::full(bytes::Bytes::new()));
    *request.method_mut() = http::Method::GET;
    let user = aggregator();
    let sent = owner.send(cluster, remote, &user, request, &path, None);
    match tokio::time::timeout(LIMIT, sent).await {
        Ok(Ok(response)) if response.status().is_success() => Ok(()),
        Ok(Ok(response)) => Err(format!(
            "failing or missing response from {url}: bad status from {url}: {}",
            response.status().as_u16()
        )),
        Ok(Err(status)) => Err(format!("failing or missing response from {url}: {}", status.message())),
        Err(_) => Err(format!("timed out waiting for {url}")),
    }
}

/// Writes the verdict into the status if it says something new. Tells whether the object was changed.
pub async fn record(cluster: &ClusterRef, name: &str, verdict: &Verdict) -> Result<bool, Status> {
    let Some(object) = cluster.get(GROUP, RESOURCE, "", name) else { return Ok(false) };
    if !object.has("spec.service") {
        return Ok(false);
    }
    let status = if verdict.available { "True" } else { "False" };
    let before = condition(&object);
    if before.is_some_and(|c| {
        c.text("status") == status
            && c.text("reason") == verdict.reason
            && c.text("message") == verdict.message
    }) {
        return Ok(false);
    }
    let unchanged = before.filter(|c| c.text("status") == status).map(|c| c.at("lastTransitionTime").clone());
    let now = || jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
    let new = json!({
        "type": "Available",
        "status": status,
        "lastTransitionTime": unchanged.unwrap_or_else(now),
        "reason": verdict.reason,
        "message": verdict.message,
    });
    let mut conditions = object.items("status.conditions").to_vec();
    match conditions.iter_mut().find(|c| c.text("type") == "Available") {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
    let mut changed = (*object).clone();
    object_mut(&mut changed, "status").insert("conditions".to_owned(), conditions.into());
    tracing::info!(name, status, reason = verdict.reason, "APIService availability changed");
    cluster.update_status(GROUP, "v1", RESOURCE, "", changed).await.map(|_| true)
}
