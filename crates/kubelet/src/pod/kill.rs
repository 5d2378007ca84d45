//! Stopping containers in order: hook, signal, grace, and the sandbox last.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1::{ContainerState, StopContainerRequest, StopPodSandboxRequest};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio::sync::watch;
use tonic::Code;

use crate::context::{Context, Shared};
use crate::events;
use crate::handler::{self, Answer};
use crate::podutil::{self, Kind};
use crate::runtime::{PodView, container_name};

/// Seconds that a container gets in any case to end by itself.
pub(super) const LEAST_GRACE: i64 = 2;
/// The same in a pod that was deleted with no grace at all.
pub(super) const LEAST_GRACE_FORCED: i64 = 1;

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
    /// Seconds that it gets at least.
    pub least: i64,
}

impl Order {
    /// Runs the preStop hook and stops the container within `grace` seconds.
    pub(super) async fn carry_out(&self, grace: i64) {
        self.in_turn(grace, std::future::ready(())).await;
    }

    /// The same, but waits between hook and signal for `turn`, within the grace as well. Tells whether the container has ended.
    async fn in_turn(&self, mut grace: i64, turn: impl Future<Output = ()>) -> bool {
        let context = &self.context;
        let passed = |begun: Instant| i64::try_from(begun.elapsed().as_secs()).unwrap_or(i64::MAX);
        if let Some(container) = &self.container {
            let object = events::container(&self.pod, self.kind, &container.name);
            context.recorder.normal(object.clone(), "Killing", self.message.clone());
            let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
            if let Some(hook) = hook
                && grace > 0
            {
                let begun = Instant::now();
                let hook = Hook { context, pod: &self.pod, container, id: &self.id, ip: &self.ip, hook };
                // What takes longer is cut off, and is no failure of the hook.
                let answer = tokio::time::timeout(seconds(grace), hook.run()).await;
                if answer.is_ok_and(|answer| answer.is_err()) {
                    context.recorder.warning(object, "FailedPreStopHook", "PreStopHook failed");
                }
                grace = grace.saturating_sub(passed(begun));
            }
        }
        if grace > 0 {
            let begun = Instant::now();
            let _ = tokio::time::timeout(seconds(grace), turn).await;
            grace = grace.saturating_sub(passed(begun));
        }
        failpoint::step("kubelet.stop.container");
        let timeout = grace.max(self.least);
        let request = StopContainerRequest { container_id: self.id.clone(), timeout };
        if let Err(status) = context.cri.runtime().stop_container(request).await
            && status.code() != Code::NotFound
        {
            tracing::warn!(status = status.message(), id = self.id, "cannot stop a container");
            return false;
        }
        true
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// A lifecycle hook of a running container.
pub(super) struct Hook<'a> {
    pub context: &'a Context,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub id: &'a str,
    pub ip: &'a str,
    pub hook: &'a LifecycleHandler,
}

impl Hook<'_> {
    /// Runs it to its end; an error says what failed.
    pub(super) async fn run(&self) -> Result<(), String> {
        /// A hook has no limit of its own; whoever runs it may have one.
        const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
        let Hook { context, pod, container, id, ip, hook } = *self;
        let (what, answer) = if let Some(action) = &hook.exec {
            let command = action.command.as_deref().unwrap_or_default();
            let answer = handler::exec(&context.cri, id, command, LONGEST).await;
            (format!("Exec lifecycle hook ([{}])", command.join(" ")), answer)
        } else if let Some(action) = &hook.http_get {
            let fell_back = |host: &str| {
                let message = format!(
                    "request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded"
                );
                context.recorder.warning(events::pod(pod), "LifecycleHTTPFallback", message);
            };
            let answer = handler::http::hook(action, container, ip, LONGEST, fell_back).await;
            (format!("HTTP lifecycle hook ({})", action.path.as_deref().unwrap_or_default()), answer)
        } else if let Some(action) = &hook.sleep {
            tokio::time::sleep(seconds(action.seconds).min(LONGEST)).await;
            return Ok(());
        } else if let Some(action) = &hook.tcp_socket {
            let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(ip);
            let answer = match handler::port(&action.port, container) {
                Ok(port) => handler::tcp(host, port, LONGEST).await,
                Err(error) => Answer::no(error),
            };
            ("TCP lifecycle hook".to_owned(), answer)
        } else {
            return Err("Cannot run handler: invalid handler".to_owned());
        };
        if answer.is_good() {
            return Ok(());
        }
        let (name, pod) = (&container.name, podutil::described(pod));
        Err(format!("{what} for Container {name:?} in Pod {pod:?} failed - error: {}", answer.output))
    }
}

/// Which containers of a pod a sidecar outlives: all regular ones, and the sidecars that come after it.
fn outlived<'a>(pod: &'a Pod, sidecar: &str) -> HashSet<&'a str> {
    let later =
        podutil::init_containers(pod).iter().skip_while(|container| container.name != sidecar).skip(1);
    let later = later.filter(|container| podutil::is_sidecar(container));
    podutil::spec(pod).containers.iter().chain(later).map(|container| container.name.as_str()).collect()
}

/// Stops every container, then the sandboxes. All hooks run at once; a sidecar is stopped after those that it outlives.
/// Each has `grace` seconds to end by itself, and in any case `least`.
pub(super) async fn pod(
    context: Shared,
    pod: Arc<Pod>,
    view: PodView,
    grace: i64,
    least: i64,
) -> Result<(), String> {
    let ip = view.ips().into_iter().next().unwrap_or_default();
    let running = view.containers.iter().filter(|container| {
        matches!(container.state(), ContainerState::ContainerRunning | ContainerState::ContainerUnknown)
    });
    let names: HashSet<String> = running.clone().map(|status| container_name(status).to_owned()).collect();
    let left = watch::channel(names).0;
    let stops = running.map(|status| {
        let name = container_name(status).to_owned();
        let found = podutil::container(&pod, &name);
        let kind = found.as_ref().map_or(Kind::Regular, |(_, kind)| *kind);
        let order = Order {
            context: context.clone(),
            pod: pod.clone(),
            container: found.map(|(container, _)| container),
            kind,
            id: status.id.clone(),
            ip: ip.clone(),
            message: format!("Stopping container {name}"),
            least,
        };
        let (pod, left) = (pod.clone(), &left);
        async move {
            let first = if kind == Kind::Sidecar { outlived(&pod, &name) } else { HashSet::new() };
            let mut seen = left.subscribe();
            let turn = async {
                // The sender outlives this future.
                let _ = seen.wait_for(|left| left.iter().all(|name| !first.contains(name.as_str()))).await;
            };
            if order.in_turn(grace, turn).await {
                left.send_modify(|left| {
                    left.remove(&name);
                });
            }
        }
    });
    join_all(stops).await;
    let mut result = Ok(());
    for id in view.sandbox.iter().map(|sandbox| &sandbox.id).chain(&view.stale) {
        failpoint::step("kubelet.stop.sandbox");
        let request = StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        if let Err(status) = context.cri.runtime().stop_pod_sandbox(request).await
            && status.code() != Code::NotFound
        {
            result = Err(status.message().to_owned());
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_outlive_what_comes_after_them() {
        let sidecar = |name: &str| serde_json::json!({"name": name, "restartPolicy": "Always"});
        let init = serde_json::json!([sidecar("a"), {"name": "once"}, sidecar("b"), sidecar("c")]);
        let spec = serde_json::json!({"initContainers": init, "containers": [{"name": "m"}, {"name": "n"}]});
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).expect("a pod");
        let check = |name: &str, expect: &[&str]| {
            assert_eq!(outlived(&pod, name), expect.iter().copied().collect(), "{name}");
        };
        check("a", &["m", "n", "b", "c"]);
        check("b", &["m", "n", "c"]);
        check("c", &["m", "n"]);
    }
}
