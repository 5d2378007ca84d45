//! Removes pods that nobody else will: on nodes that are gone or declared out of service, ended before they were
//! placed, and the oldest of very many that have ended.

use std::sync::Arc;
use std::time::Duration;

use informer::{Change, Informer, Key, Queue};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::Api;

use super::{disrupt, readiness};
use crate::kit::pods::{is_terminal, node_name};
use crate::kit::{Context, Result};

/// A node that is missing may be about to come back.
const QUARANTINE: Duration = Duration::from_secs(40);
const MOST_ENDED: usize = 12_500;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

struct Controller {
    client: Client,
    nodes: Arc<Informer<Node>>,
    pods: Arc<Informer<Pod>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        nodes: context.informer(),
        pods: context.informer(),
    });
    let queue = Queue::new();
    this.nodes.synced().await;
    let (to, nodes) = (queue.clone(), this.nodes.clone());
    this.pods.on_change(move |change| {
        let Change::Applied { old, new } = change else { return };
        let key = Key::of(new.as_ref());
        if node_name(new).is_empty() {
            if new.metadata.deletion_timestamp.is_some() {
                to.add(key);
            }
        } else if nodes.find("", node_name(new)).is_none() {
            to.add_after(key, QUARANTINE);
        } else if new.metadata.deletion_timestamp.is_some()
            || (is_terminal(new) && old.is_some_and(|old| !is_terminal(old)))
        {
            to.add(key);
        }
    });
    this.pods.synced().await;
    let (to, pods) = (queue.clone(), this.pods.clone());
    this.nodes.on_change(move |change| {
        let (name, wait) = match change {
            Change::Deleted(last) => (&last.metadata.name, QUARANTINE),
            Change::Applied { new, .. } if is_out_of_service(new) => (&new.metadata.name, Duration::ZERO),
            Change::Applied { .. } => return,
        };
        for pod in pods.on_node(name.as_deref().unwrap_or_default()) {
            to.add_after(Key::of(pod.as_ref()), wait);
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("podgc", 8, queue, sync).await;
}

fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == OUT_OF_SERVICE)
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(pod) = self.pods.get(&key) else { return Ok(None) };
        let deleting = pod.metadata.deletion_timestamp.is_some();
        let name = node_name(&pod);
        let why = if name.is_empty() {
            deleting.then_some("PodGC: unscheduled and terminating")
        } else {
            match self.nodes.find("", name) {
                // The cache may not know a node that has just come.
                None => {
                    let gone = Api::<Node>::all(self.client.clone()).get_opt(name).await?.is_none();
                    gone.then_some("PodGC: node no longer exists")
                }
                Some(node) => (deleting && readiness(&node) != "True" && is_out_of_service(&node))
                    .then_some("PodGC: node has the out-of-service taint"),
            }
        };
        if let Some(why) = why {
            disrupt(&self.client, &pod, "DeletionByPodGC", why, true).await?;
        } else if is_terminal(&pod) && self.pods.len() > MOST_ENDED {
            self.remove_oldest().await?;
        }
        Ok(None)
    }

    async fn remove_oldest(&self) -> Result<()> {
        let mut ended: Vec<_> = self.pods.list().into_iter().filter(|pod| is_terminal(pod)).collect();
        let surplus = ended.len().saturating_sub(MOST_ENDED);
        ended.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        for pod in ended.iter().take(surplus) {
            disrupt(&self.client, pod, "DeletionByPodGC", "PodGC: too many pods that have ended", true)
                .await?;
        }
        Ok(())
    }
}
