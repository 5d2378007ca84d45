//! The health of nodes: a node whose lease and status stand still is Unknown, its taints say so, and its pods
//! are no longer ready. Times are measured by our own clock, from when a heartbeat was seen.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use super::{condition, readiness, taints};
use crate::kit::error::found;
use crate::kit::pods::is_ready;
use crate::kit::{Context, Result, now, time};

/// How long a node may be silent.
const GRACE: Duration = Duration::from_secs(50);
/// How long a new node may be silent.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
const WATCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

struct Controller {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<Queue<Key>>,
    /// When each node was last heard of.
    heard: Mutex<HashMap<String, Instant>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("node-controller"),
        nodes: context.informer(),
        pods: context.informer(),
        queue: Queue::new(),
        heard: Mutex::default(),
    });
    this.pods.synced().await;
    let leases = context.informers.selected::<Lease>("metadata.namespace=kube-node-lease");
    let to = this.clone();
    leases.on_change(move |change| {
        if let Change::Applied { old, new } = change {
            let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
            if old.is_none_or(|old| renewed(old) != renewed(new)) {
                to.hear(new.metadata.name.as_deref().unwrap_or_default());
            }
        }
    });
    let to = this.clone();
    this.nodes.on_change(move |change| to.node_changed(change));
    let queue = this.queue.clone();
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("nodelifecycle", 8, queue, sync).await;
}

impl Controller {
    fn hear(&self, node: &str) {
        self.heard.lock().insert(node.to_owned(), Instant::now());
    }

    fn node_changed(&self, change: &Change<'_, Node>) {
        let node = change.latest();
        let name = node.metadata.name.as_deref().unwrap_or_default();
        match change {
            Change::Deleted(_) => {
                self.heard.lock().remove(name);
                let message = format!("Node {name} event: Removing Node {name} from Controller");
                self.recorder.event(reference(node.as_ref()), EventType::Normal, "RemovingNode", message);
            }
            Change::Applied { old: None, .. } => {
                // A new node is given a little longer.
                let ahead = Instant::now() + (STARTUP_GRACE - GRACE);
                self.heard.lock().entry(name.to_owned()).or_insert(ahead);
                let message = format!("Node {name} event: Registered Node {name} in Controller");
                self.recorder.event(reference(node.as_ref()), EventType::Normal, "RegisteredNode", message);
            }
            Change::Applied { old: Some(old), new } => {
                let beat =
                    |node: &Node| condition(node, "Ready").and_then(|one| one.last_heartbeat_time.clone());
                if beat(old) != beat(new) {
                    self.hear(name);
                }
                if readiness(old) != readiness(new) {
                    // Whether any node is ready decides about all.
                    self.nodes.list().iter().for_each(|node| self.queue.add(Key::of(node.as_ref())));
                }
            }
        }
        self.queue.add(Key::of(node.as_ref()));
    }

    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(node) = self.nodes.get(&key) else { return Ok(None) };
        let heard = self.heard.lock().get(&key.name).copied();
        let silent = heard.map_or(GRACE, |heard| heard.elapsed());
        let left = GRACE.saturating_sub(silent);
        if left.is_zero() && self.mark_unknown(&node).await? {
            // Our own write brings us back.
            return Ok(None);
        }
        let all = self.nodes.list();
        let any_ready = all.iter().any(|node| readiness(node) == "True");
        if let Some(taints) = taints::plan(&node, any_ready, now()) {
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints},
            });
            let api = Api::<Node>::all(self.client.clone());
            found(api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        }
        if condition(&node, "Ready").is_some_and(|one| one.status != "True") {
            self.mark_pods_not_ready(&key.name).await?;
        }
        // A heartbeat does not wake us; the next look finds it.
        let silent_already = readiness(&node) == "Unknown" && left.is_zero();
        Ok((!silent_already).then(|| left.max(Duration::from_secs(1))))
    }

    /// Sets what nobody vouches for any more to Unknown; whether that was needed.
    async fn mark_unknown(&self, node: &Node) -> Result<bool> {
        let at = time(now());
        let conditions: Vec<NodeCondition> = WATCHED
            .iter()
            .filter_map(|kind| {
                let old = condition(node, kind);
                if old.is_some_and(|old| old.status == "Unknown") {
                    return None;
                }
                let (reason, message) = match old {
                    Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                    None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
                };
                let heartbeat = old.and_then(|old| old.last_heartbeat_time.clone());
                Some(NodeCondition {
                    type_: (*kind).to_owned(),
                    status: "Unknown".into(),
                    reason: Some(reason.into()),
                    message: Some(message.into()),
                    last_heartbeat_time: heartbeat.or_else(|| node.metadata.creation_timestamp.clone()),
                    last_transition_time: Some(at.clone()),
                })
            })
            .collect();
        if conditions.is_empty() {
            return Ok(false);
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({"status": {"conditions": conditions}});
        let api = Api::<Node>::all(self.client.clone());
        found(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
        let message = format!("Node {name} status is now: NodeNotReady");
        self.recorder.event(reference(node), EventType::Normal, "NodeNotReady", message);
        Ok(true)
    }

    async fn mark_pods_not_ready(&self, node: &str) -> Result<()> {
        for pod in self.pods.on_node(node).iter().filter(|pod| is_ready(pod)) {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": time(now())}]},
            });
            let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
            found(api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await)?;
            let message = "Node is not ready";
            self.recorder.event(reference(pod.as_ref()), EventType::Warning, "NodeNotReady", message);
        }
        Ok(())
    }
}
