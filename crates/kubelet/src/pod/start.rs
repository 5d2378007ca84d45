//! Making a sandbox, and starting a container in it.

use std::sync::Arc;
use std::time::Duration;

use cri::v1::{CreateContainerRequest, PodSandboxStatus, RunPodSandboxRequest, StartContainerRequest};
use k8s_openapi::api::core::v1::{Container, Pod};
use tonic::Status;

use super::kill;
use crate::cgroups::Lifted;
use crate::container::Recipe;
use crate::context::{Context, Shared};
use crate::events;
use crate::features;
use crate::images;
use crate::metrics::{
    SANDBOX_DURATION, SANDBOX_ERRORS, STARTED_CONTAINERS, STARTED_CONTAINERS_ERRORS, STARTED_PODS,
    STARTED_PODS_ERRORS,
};
use crate::plan::Start;
use crate::podutil::{self, Kind, spec};
use crate::sandbox;
use crate::status::Waiting;
use crate::volumes::Mounted;

/// Why a container did not start.
pub(super) struct StartError {
    pub waiting: Waiting,
    /// An image pull failed.
    pub pulled: bool,
}

fn failed(reason: &str, message: impl Into<String>) -> StartError {
    StartError { waiting: Waiting { reason: reason.to_owned(), message: message.into() }, pulled: false }
}

/// Runs the pod's sandbox; gives its id.
pub(super) async fn sandbox(context: &Context, pod: &Pod, attempt: u32) -> Result<String, String> {
    let runtime_handler = features::handler(context, pod).await?;
    features::check(context, pod, &runtime_handler).await?;
    context.users.give(pod).map_err(|error| error.to_string())?;
    // Nothing runs in the pod yet, and its first container is made with the quota lifted as well.
    let lifted = context.cgroups.as_ref().and_then(|cgroups| cgroups.lift(pod));
    if let Some(cgroups) = &context.cgroups {
        cgroups.ensure(pod).map_err(|error| format!("cannot make the pod's cgroup: {error}"))?;
    }
    if let Err(error) = context.claims.prepare(pod).await {
        let message = format!("Failed to prepare dynamic resources: {error}");
        context.recorder.warning(events::pod(pod), "FailedPrepareDynamicResources", message.clone());
        return Err(message);
    }
    sandbox::kernel_name(context, pod)?;
    let config = sandbox::config(context, pod, attempt);
    tokio::fs::create_dir_all(&config.log_directory)
        .await
        .map_err(|error| format!("cannot create {}: {error}", config.log_directory))?;
    failpoint::step("kubelet.start.sandbox");
    let metrics = &context.metrics;
    let handler = [("runtime_handler", runtime_handler.as_str())];
    let begun = std::time::Instant::now();
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: runtime_handler.clone() };
    let response = unhindered(context.cri.runtime().run_pod_sandbox(request), lifted).await;
    metrics.took(SANDBOX_DURATION, &handler, begun.elapsed());
    metrics.count(STARTED_PODS, &[]);
    if let Err(status) = &response {
        metrics.count(SANDBOX_ERRORS, &handler);
        metrics.count(STARTED_PODS_ERRORS, &[("code", &format!("{:?}", status.code()))]);
    }
    response.map(|response| response.into_inner().pod_sandbox_id).map_err(text)
}

/// How long a pod's quota may stay lifted at most.
const MOST_LIFTED: Duration = Duration::from_secs(2);

/// Does something for which the pod's quota is lifted; where it takes long, the quota comes back before its end.
async fn unhindered<T>(action: impl Future<Output = T>, lifted: Option<Lifted>) -> T {
    let mut action = std::pin::pin!(action);
    tokio::select! {
        done = &mut action => return done,
        () = tokio::time::sleep(MOST_LIFTED) => drop(lifted),
    }
    action.await
}

fn text(status: Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// A container to start.
pub(super) struct Order {
    pub context: Shared,
    pub pod: Arc<Pod>,
    pub container: Container,
    pub start: Start,
    pub sandbox: PodSandboxStatus,
    pub mounted: Arc<Mounted>,
    pub ips: Vec<String>,
    /// Container whose processes an ephemeral container shall see.
    pub target: Option<String>,
}

impl Order {
    pub(super) async fn carry_out(&self) -> Result<(), StartError> {
        let Order { context, pod, container, start, .. } = self;
        let object = || events::container(pod, start.kind, &container.name);
        let attempt = self.sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
        let sandbox = sandbox::config(context, pod, attempt);
        let image = images::ensure(context, pod, container, start.kind, &sandbox)
            .await
            .map_err(|error| StartError { waiting: error.waiting, pulled: error.pulled })?;
        let image_volumes = images::volumes(context, pod, container, &sandbox)
            .await
            .map_err(|error| StartError { waiting: error.waiting, pulled: error.pulled })?;
        let recipe = Recipe {
            image_volumes,
            context,
            pod,
            container,
            attempt: start.attempt,
            image: &image,
            ips: &self.ips,
            mounted: &self.mounted,
            target: self.target.clone(),
        };
        let fail = |reason: &str, message: String| {
            context.recorder.warning(object(), "Failed", format!("Error: {message}"));
            failed(reason, message)
        };
        let prepared = context.devices.before_start(podutil::uid(pod), &container.name).await;
        prepared.map_err(|error| fail("PreStartContainerError", error.to_string()))?;
        let config =
            recipe.config().await.map_err(|error| fail("CreateContainerConfigError", error.to_string()))?;
        let request = CreateContainerRequest {
            pod_sandbox_id: self.sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let mut runtime = context.cri.runtime();
        let kind = match start.kind {
            Kind::Init | Kind::Sidecar => "init_container",
            Kind::Regular => "container",
            Kind::Ephemeral => "ephemeral_container",
        };
        context.metrics.count(STARTED_CONTAINERS, &[("container_type", kind)]);
        let failing = |status: &Status| {
            let code = format!("{:?}", status.code());
            context.metrics.count(STARTED_CONTAINERS_ERRORS, &[("code", &code), ("container_type", kind)]);
        };
        failpoint::step("kubelet.start.create");
        let created = runtime.create_container(request).await.inspect_err(failing);
        let id =
            created.map_err(|status| fail("CreateContainerError", text(status)))?.into_inner().container_id;
        context.recorder.normal(object(), "Created", "Container created");
        failpoint::step("kubelet.start.start");
        let lifted = context.cgroups.as_ref().and_then(|cgroups| cgroups.lift(pod));
        let starting = runtime.start_container(StartContainerRequest { container_id: id.clone() });
        let started = unhindered(starting, lifted).await;
        started.inspect_err(failing).map_err(|status| fail("RunContainerError", text(status)))?;
        failpoint::step("kubelet.start.done");
        context.recorder.normal(object(), "Started", "Container started");
        let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        if let Some(hook) = hook {
            let ip = self.ips.first().map_or("", String::as_str);
            let hook = kill::Hook { context, pod, container, id: &id, ip, hook };
            if let Err(error) = hook.run().await {
                context.recorder.warning(object(), "FailedPostStartHook", "PostStartHook failed");
                let grace = spec(pod).termination_grace_period_seconds.unwrap_or(30);
                let order = kill::Order {
                    context: context.clone(),
                    pod: pod.clone(),
                    container: Some(container.clone()),
                    kind: start.kind,
                    id: id.clone(),
                    ip: ip.to_owned(),
                    message: "FailedPostStartHook".to_owned(),
                    least: kill::LEAST_GRACE,
                };
                // Whether it stops or not, the container's state is read again after this.
                order.carry_out(grace).await;
                return Err(failed("PostStartHookError", error));
            }
        }
        Ok(())
    }
}
