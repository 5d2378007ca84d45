//! Tells kubelets for how long they may keep secrets and config maps, which is longer the more nodes there are
//! (upstream: `pkg/controller/ttl`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use informer::{Change, Informer, Key, Queue};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::kit::error::found;
use crate::kit::{Context, Result};

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// A size of the cluster: left downwards below `least` nodes and upwards above `most`, so that it does not flap.
struct Step {
    least: usize,
    most: usize,
    seconds: u32,
}

const STEPS: [Step; 5] = [
    Step { least: 0, most: 100, seconds: 0 },
    Step { least: 90, most: 500, seconds: 15 },
    Step { least: 450, most: 1000, seconds: 30 },
    Step { least: 900, most: 2000, seconds: 60 },
    Step { least: 1800, most: usize::MAX, seconds: 300 },
];

fn step(mut at: usize, nodes: usize) -> usize {
    while nodes > STEPS[at].most {
        at += 1;
    }
    while nodes < STEPS[at].least {
        at -= 1;
    }
    at
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let nodes = context.informer::<Node>();
    let queue = Queue::new();
    let at = Arc::new(AtomicUsize::new(0));
    let (to, all, now) = (queue.clone(), nodes.clone(), at.clone());
    nodes.on_change(move |change| {
        let before = now.load(Ordering::Relaxed);
        let after = step(before, all.len());
        if before != after {
            now.store(after, Ordering::Relaxed);
            all.list().iter().for_each(|node| to.add(Key::of(node.as_ref())));
        } else if let Change::Applied { new, .. } = change {
            to.add(Key::of(new.as_ref()));
        }
    });
    nodes.synced().await;
    let client = context.client.clone();
    let sync = move |key: Key| sync(client.clone(), nodes.clone(), at.clone(), key);
    context.work("ttl", 2, queue, sync).await;
}

async fn sync(
    client: Client,
    nodes: Arc<Informer<Node>>,
    at: Arc<AtomicUsize>,
    key: Key,
) -> Result<Option<Duration>> {
    let Some(node) = nodes.get(&key) else { return Ok(None) };
    let wanted = STEPS[at.load(Ordering::Relaxed)].seconds.to_string();
    let own = node.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
    if own != Some(&wanted) {
        let patch = Patch::Strategic(json!({"metadata": {"annotations": {ANNOTATION: wanted}}}));
        found(Api::<Node>::all(client).patch(&key.name, &PatchParams::default(), &patch).await)?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_do_not_flap() {
        let mut at = 0;
        for (nodes, seconds) in [(100, 0), (101, 15), (95, 15), (89, 0), (3000, 300), (1900, 300), (1799, 60)]
        {
            at = step(at, nodes);
            assert_eq!(STEPS[at].seconds, seconds, "{nodes}");
        }
    }
}
