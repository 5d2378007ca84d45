//! Nodes: pod ranges, health by heartbeats, taints that follow, and what becomes of the pods on nodes that
//! fail or go.

mod evict;
mod gc;
mod health;
mod ipam;
mod taints;
mod ttl;

pub(crate) use evict::run as evict;
pub(crate) use gc::run as gc;
pub(crate) use health::run as health;
pub use ipam::Range;
pub(crate) use ipam::run as ipam;
pub(crate) use ttl::run as ttl;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::kit::error::found;
use crate::kit::pods::is_terminal;
use crate::kit::{Error, Result, now, time};

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|one| one.type_ == kind)
}

/// The status of the Ready condition, `Unknown` if there is none.
fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |one| one.status.as_str())
}

/// Marks a pod as disrupted, and as failed if it should be, and deletes it.
pub(crate) async fn disrupt(
    client: &Client,
    pod: &Pod,
    reason: &str,
    message: &str,
    force: bool,
) -> Result<()> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let condition = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(time(now())),
        ..PodCondition::default()
    };
    let mut patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
    if force && !is_terminal(pod) {
        patch["status"]["phase"] = json!("Failed");
    }
    if found(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await)?.is_none() {
        return Ok(());
    }
    let mut params = DeleteParams::default()
        .preconditions(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None });
    if force {
        params = params.grace_period(0);
    }
    match found(api.delete(name, &params).await) {
        Err(error) if !error.is_conflict() => Err(error),
        _ => Ok::<(), Error>(()),
    }
}
