//! The Node object: registered at the start, its status written on change, its Lease renewed, its pod ranges passed to the runtime.

use std::sync::Arc;
use std::time::Duration;

use cri::v1::{NetworkConfig, RuntimeConfig, UpdateRuntimeConfigRequest};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::watch_object;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::KubeletConfig;
use crate::context::Shared;
use crate::events;

pub(crate) mod capacity;
mod lease;
mod status;

pub(crate) use status::VERSION;

/// How often the status is looked over while something is missing.
const EAGER: Duration = Duration::from_millis(100);

/// Keeps the Node, until shutdown. `seen` always holds the object as the API has it.
pub(crate) async fn run(
    context: Shared,
    seen: watch::Sender<Option<Arc<Node>>>,
    shutdown: CancellationToken,
) {
    let api: Api<Node> = Api::all(context.config.client.clone());
    let Some(node) = until(&shutdown, register(&context, &api)).await else { return };
    seen.send_replace(Some(Arc::new(node)));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(lease::run(context.clone(), seen.subscribe()));
    tasks.spawn(follow(context.clone(), api.clone(), seen.clone()));
    tasks.spawn(report(context.clone(), api, seen.subscribe()));
    shutdown.cancelled().await;
}

async fn until<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = shutdown.cancelled() => None,
    }
}

/// Creates the Node, or brings the labels of the one that is there up to date. Tries until it succeeds.
async fn register(context: &Shared, api: &Api<Node>) -> Node {
    let config = &context.config;
    let mut delay = Duration::from_millis(20);
    if !config.settings.register_node {
        return found(api, &config.node_name).await;
    }
    loop {
        let mut wanted = object(config);
        wanted.status = Some(status::make(context, &NodeStatus::default()).await);
        let error = match api.create(&PostParams::default(), &wanted).await {
            Ok(node) => {
                tracing::info!(node = config.node_name, "registered the node");
                context.recorder.normal(events::node(&config.node_name), "Starting", "Starting kubelet.");
                return node;
            }
            Err(kube::Error::Api(answer)) if answer.code == 409 => {
                let labels = json!({"metadata": {
                    "labels": wanted.metadata.labels,
                    "annotations": wanted.metadata.annotations,
                }});
                match api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(&labels)).await {
                    Ok(node) => return node,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        tracing::debug!(%error, "cannot register the node yet");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(2));
    }
}

/// The Node that somebody else makes.
async fn found(api: &Api<Node>, name: &str) -> Node {
    loop {
        match api.get_opt(name).await {
            Ok(Some(node)) => return node,
            Ok(None) => tracing::debug!("the node is not registered yet"),
            Err(error) => tracing::debug!(%error, "cannot read the node yet"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn object(config: &KubeletConfig) -> Node {
    let arch = capacity::architecture();
    let mut labels = config.labels.clone();
    for (key, value) in [
        ("beta.kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
    ] {
        labels.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    let mut taints: Vec<Taint> = config.taints.iter().filter_map(|text| taint(text)).collect();
    taints.extend(config.settings.register_with_taints.iter().cloned());
    let provider_id = Some(config.settings.provider_id.clone()).filter(|id| !id.is_empty());
    let annotations =
        [("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())];
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            provider_id,
            ..NodeSpec::default()
        }),
        status: None,
    }
}

/// Reads `key[=value]:Effect`.
fn taint(text: &str) -> Option<Taint> {
    let (key, effect) = text.rsplit_once(':')?;
    let (key, value) = key.split_once('=').map_or((key, None), |(key, value)| (key, Some(value.to_owned())));
    Some(Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None })
}

/// Watches the Node and passes its pod ranges on.
async fn follow(context: Shared, api: Api<Node>, seen: watch::Sender<Option<Arc<Node>>>) {
    let mut passed = None;
    let known = seen.borrow().clone();
    if let Some(node) = known {
        pass_ranges(&context, &node, &mut passed).await;
    }
    let name = context.config.node_name.clone();
    let mut nodes = watch_object(api.clone(), &name).boxed();
    while let Some(next) = nodes.next().await {
        match next {
            Ok(Some(node)) => {
                pass_ranges(&context, &node, &mut passed).await;
                seen.send_replace(Some(Arc::new(node)));
            }
            Ok(None) => {
                // Somebody deleted the Node; as long as this kubelet runs it is to be there.
                let node = register(&context, &api).await;
                seen.send_replace(Some(Arc::new(node)));
            }
            Err(error) => {
                tracing::warn!(%error, "watching the node failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn pass_ranges(context: &Shared, node: &Node, passed: &mut Option<String>) {
    let spec = node.spec.as_ref();
    let listed = spec.and_then(|spec| spec.pod_cidrs.clone()).filter(|ranges| !ranges.is_empty());
    let ranges = listed.map(|ranges| ranges.join(",")).or(spec.and_then(|spec| spec.pod_cidr.clone()));
    let Some(ranges) = ranges.filter(|ranges| !ranges.is_empty() && passed.as_ref() != Some(ranges)) else {
        return;
    };
    let network_config = Some(NetworkConfig { pod_cidr: ranges.clone() });
    let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
    match context.cri.runtime().update_runtime_config(request).await {
        Ok(_) => *passed = Some(ranges),
        Err(error) => tracing::warn!(error = error.message(), "cannot pass the pod range to the runtime"),
    }
}

/// Writes the status when it changed, and once in a while anyway.
async fn report(context: Shared, api: Api<Node>, mut seen: watch::Receiver<Option<Arc<Node>>>) {
    let name = context.config.node_name.clone();
    let mut written = Instant::now();
    let mut last: Option<NodeStatus> = None;
    let mut short = context.pressures.follow();
    let mut devices = context.devices.changes();
    let mut down = context.going_down.subscribe();
    loop {
        let known = seen.borrow_and_update().clone();
        let api_status = known.and_then(|node| node.status.clone()).unwrap_or_default();
        let base = last.clone().unwrap_or(api_status);
        let fresh = status::make(&context, &base).await;
        let ready = status::is_ready(&fresh);
        let due = written.elapsed() >= context.config.status_interval;
        if last.is_none() || due || status::differs(&base, &fresh) {
            let mut patch = json!({"status": fresh});
            // Their merge key is the type, of which a dual-stack node has two addresses.
            if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
                addresses.push(json!({"$patch": "replace"}));
            }
            match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
                Ok(_) => {
                    if ready && !status::is_ready(&base) {
                        tracing::info!(node = name, "the node is ready");
                        let message = format!("Node {name} status is now: NodeReady");
                        context.recorder.normal(events::node(&name), "NodeReady", message);
                    }
                    written = Instant::now();
                    last = Some(fresh);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot write the node's status");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
        let calm = context.config.settings.node_status_update_frequency.0;
        let pause = if ready { calm } else { EAGER };
        if ready {
            // A shortage is told at once: the scheduler is to send no more pods. So are devices that come and go.
            tokio::select! {
                _ = short.changed() => {}
                _ = devices.changed() => {}
                _ = down.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        } else {
            // A pod range that arrives is what mostly makes the node ready.
            let _ = tokio::time::timeout(pause, seen.changed()).await;
        }
    }
}
