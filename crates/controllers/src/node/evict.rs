//! Evicts pods from nodes with NoExecute taints that they do not tolerate, or no longer do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::Client;
use parking_lot::Mutex;
use scheduling::selector::tolerates;

use super::disrupt;
use crate::kit::pods::node_name;
use crate::kit::{Context, Result, now, plus_seconds, until};

struct Controller {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
    /// Since when the time of each pod runs, by UID.
    since: Mutex<HashMap<String, Timestamp>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("taint-eviction-controller"),
        nodes: context.informer(),
        pods: context.informer(),
        since: Mutex::default(),
    });
    let queue = Queue::new();
    this.nodes.synced().await;
    let (to, there) = (queue.clone(), this.clone());
    this.pods.on_change(move |change| match change {
        Change::Applied { old, new } => {
            let placed = old.is_none_or(|old| {
                node_name(old) != node_name(new)
                    || old.spec.as_ref().map(|spec| &spec.tolerations)
                        != new.spec.as_ref().map(|spec| &spec.tolerations)
            });
            if placed && !node_name(new).is_empty() {
                to.add(Key::of(new.as_ref()));
            }
        }
        Change::Deleted(last) => {
            there.since.lock().remove(last.metadata.uid.as_deref().unwrap_or_default());
        }
    });
    this.pods.synced().await;
    let (to, pods) = (queue.clone(), this.pods.clone());
    this.nodes.on_change(move |change| {
        if let Change::Applied { old, new } = change
            && old.map(|old| taints(old)).unwrap_or_default() != taints(new)
        {
            let name = new.metadata.name.as_deref().unwrap_or_default();
            pods.on_node(name).iter().for_each(|pod| to.add(Key::of(pod.as_ref())));
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("tainteviction", 8, queue, sync).await;
}

fn taints(node: &Node) -> Vec<Taint> {
    let all = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    all.filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

/// How long a pod may stay: `None` for ever, otherwise some seconds.
fn tolerated_for(taints: &[Taint], tolerations: &[Toleration]) -> Option<i64> {
    let mut shortest = None;
    for taint in taints {
        let matching: Vec<_> = tolerations.iter().filter(|one| tolerates(one, taint)).collect();
        if matching.is_empty() {
            return Some(0);
        }
        let seconds = matching.iter().filter_map(|one| one.toleration_seconds).map(|one| one.max(0)).min();
        shortest = match (shortest, seconds) {
            (Some(a), Some(b)) => Some(i64::min(a, b)),
            (a, b) => a.or(b),
        };
    }
    shortest
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(pod) = self.pods.get(&key).filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let taints = self.nodes.find("", node_name(&pod)).map(|node| taints(&node)).unwrap_or_default();
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let Some(seconds) = tolerated_for(&taints, &tolerations).filter(|_| !taints.is_empty()) else {
            if self.since.lock().remove(&uid).is_some() {
                let message = format!("Cancelling deletion of Pod {key}");
                self.recorder.event(
                    reference(pod.as_ref()),
                    EventType::Normal,
                    "TaintManagerEviction",
                    message,
                );
            }
            return Ok(None);
        };
        let now = now();
        let since = *self.since.lock().entry(uid).or_insert(now);
        if let Some(left) = until(plus_seconds(since, seconds), now) {
            return Ok(Some(left));
        }
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.event(reference(pod.as_ref()), EventType::Normal, "TaintManagerEviction", message);
        let why = "Taint manager: deleting due to NoExecute taint";
        disrupt(&self.client, &pod, "DeletionByTaintManager", why, false).await?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_shortest_toleration_counts() {
        let taints: Vec<Taint> = ["a", "b"]
            .map(|key| Taint { key: key.into(), effect: "NoExecute".into(), ..Taint::default() })
            .into();
        let check = |tolerations: Value, expected: Option<i64>| {
            let parsed: Vec<Toleration> = serde_json::from_value(tolerations.clone()).expect("tolerations");
            assert_eq!(tolerated_for(&taints, &parsed), expected, "{tolerations}");
        };
        check(json!([]), Some(0));
        check(json!([{"operator": "Exists"}]), None);
        check(json!([{"key": "a", "operator": "Exists"}]), Some(0));
        check(
            json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 30},
            {"key": "b", "operator": "Exists", "tolerationSeconds": 20}]),
            Some(20),
        );
        check(
            json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 30},
            {"key": "b", "operator": "Exists"}]),
            Some(30),
        );
    }
}
