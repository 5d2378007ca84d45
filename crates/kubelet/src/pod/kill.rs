//! Stopping containers in order: hook, signal, grace, and the sandbox last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::{ContainerState, StopContainerRequest, StopPodSandboxRequest};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tonic::Code;

use crate::context::{Context, Shared};
use crate::events;
use crate::handler::{self, Answer};
use crate::podutil::{self, Kind};
use crate::runtime::{PodView, container_name};

/// What a container gets in any case to end by itself.
const LEAST_GRACE: i64 = 2;

/// A container to stop.
pub(super) struct Order {
    pub context: Shared,
    pub pod: Arc<Pod>,
    /// Its spec, if the pod still has it.
    pub container: Option<Container>,
    pub kind: Kind,
    pub id: String,
    pub ip: String,
    pub message: String,
}

impl Order {
    /// Runs the preStop hook and stops the container within `grace` seconds.
    pub(super) async fn carry_out(&self, mut grace: i64) {
        let context = &self.context;
        if let Some(container) = &self.container {
            let object = events::container(&self.pod, self.kind, &container.name);
            context.recorder.normal(object.clone(), "Killing", self.message.clone());
            let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
            if let Some(hook) = hook
                && grace > 0
            {
                let begun = Instant::now();
                let limit = Duration::from_secs(grace.unsigned_abs());
                let answer = self::hook(context, hook, container, &self.id, &self.ip, limit).await;
                if !answer.good {
                    context.recorder.warning(object, "FailedPreStopHook", "PreStopHook failed");
                }
                grace -= i64::try_from(begun.elapsed().as_secs()).unwrap_or(grace);
            }
        }
        let timeout = grace.max(LEAST_GRACE);
        let request = StopContainerRequest { container_id: self.id.clone(), timeout };
        if let Err(status) = context.cri.runtime().stop_container(request).await
            && status.code() != Code::NotFound
        {
            tracing::warn!(status = status.message(), id = self.id, "cannot stop a container");
        }
    }
}

/// Runs a lifecycle hook within `limit`.
pub(super) async fn hook(
    context: &Context,
    hook: &LifecycleHandler,
    container: &Container,
    id: &str,
    ip: &str,
    limit: Duration,
) -> Answer {
    if let Some(action) = &hook.exec {
        return handler::exec(&context.cri, id, action.command.as_deref().unwrap_or_default(), limit).await;
    }
    if let Some(action) = &hook.http_get {
        return handler::http_get(action, container, ip, "kube-lifecycle/1.36", limit).await;
    }
    if let Some(action) = &hook.sleep {
        let wanted = Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(limit)).await;
        return Answer::yes("");
    }
    if let Some(action) = &hook.tcp_socket {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(ip);
        return match handler::port(&action.port, container) {
            Ok(port) => handler::tcp(host, port, limit).await,
            Err(error) => Answer::no(error),
        };
    }
    Answer::no("invalid handler")
}

/// Stops every container (sidecars after the others, the last one first), then the sandboxes.
pub(super) async fn pod(context: Shared, pod: Arc<Pod>, view: PodView, grace: i64) -> Result<(), String> {
    let begun = Instant::now();
    let ip = view.ips().into_iter().next().unwrap_or_default();
    let running = view.containers.iter().filter(|container| {
        matches!(container.state(), ContainerState::ContainerRunning | ContainerState::ContainerUnknown)
    });
    let (mut sidecars, mut others) = (Vec::new(), Vec::new());
    for status in running {
        let name = container_name(status);
        let found = podutil::container(&pod, name);
        let kind = found.as_ref().map_or(Kind::Regular, |(_, kind)| *kind);
        let order = Order {
            context: context.clone(),
            pod: pod.clone(),
            container: found.map(|(container, _)| container),
            kind,
            id: status.id.clone(),
            ip: ip.clone(),
            message: format!("Stopping container {name}"),
        };
        if kind == Kind::Sidecar { sidecars.push(order) } else { others.push(order) }
    }
    join_all(others.iter().map(|order| order.carry_out(grace))).await;
    let position = |order: &Order| {
        let name = order.container.as_ref().map(|container| container.name.as_str());
        podutil::init_containers(&pod).iter().position(|container| Some(container.name.as_str()) == name)
    };
    sidecars.sort_by_key(|order| std::cmp::Reverse(position(order)));
    for order in &sidecars {
        let passed = i64::try_from(begun.elapsed().as_secs()).unwrap_or(grace);
        order.carry_out((grace - passed).max(0)).await;
    }
    let mut result = Ok(());
    for id in view.sandbox.iter().map(|sandbox| &sandbox.id).chain(&view.stale) {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        if let Err(status) = context.cri.runtime().stop_pod_sandbox(request).await
            && status.code() != Code::NotFound
        {
            result = Err(status.message().to_owned());
        }
    }
    result
}
