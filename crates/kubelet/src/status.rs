//! The PodStatus of a pod: a pure function of its spec, what the runtime has, probe results and the previous status.
//! Phases, conditions and container states follow upstream's `getPhase`, `convertToAPIContainerStatuses` and `status/generate.go`.

use std::collections::HashMap;
use std::net::IpAddr;

use cri::v1::{ContainerState as CriState, ContainerStatus as CriStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP, PodStatus, VolumeMountStatus,
};

use crate::allocation::Pending;
use crate::claims::ClaimManager;
use crate::devices::Devices;
use crate::plan::Probed;
use crate::pod::Restarting;
use crate::podutil::{self, init_containers, is_sidecar, spec};
use crate::resize::{self, Rules};
use crate::runtime::{self, PodView};

mod conditions;
mod phase;

/// A reason for a container not to run yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub reason: String,
    pub message: String,
}

/// A decision about the whole pod that overrides what its containers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub reason: String,
    pub message: String,
}

/// Where a resize stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resize {
    /// Why it is not granted (yet).
    pub pending: Option<Pending>,
    /// Why what was granted cannot be carried out (now).
    pub error: Option<String>,
    /// The pod's generation at which the last one was granted.
    pub granted_at: Option<i64>,
}

/// Everything the status is made from.
pub(crate) struct Inputs<'a> {
    pub pod: &'a Pod,
    pub view: &'a PodView,
    pub probes: &'a HashMap<String, Probed>,
    pub waiting: &'a HashMap<String, Waiting>,
    /// The status last made, or that of the API at the start.
    pub previous: &'a PodStatus,
    pub host_ips: &'a [IpAddr],
    /// Nothing of the pod will be started any more.
    pub terminal: bool,
    /// The containers are gone for good: what still looks alive is lost.
    pub gone: bool,
    /// The pod has failed for this reason, whatever its containers say.
    pub verdict: Option<&'a Verdict>,
    /// The verdict came before anything of the pod existed.
    pub refused: bool,
    pub resize: &'a Resize,
    pub rules: Rules,
    /// Whose health is shown.
    pub devices: Option<(&'a Devices, &'a ClaimManager)>,
    /// All containers are being restarted in place.
    pub restarting: Restarting,
    pub now: Timestamp,
}

/// Makes the status.
pub(crate) fn generate(inputs: &Inputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let api = pod.status.clone().unwrap_or_default();
    if let Some(verdict) = inputs.verdict.filter(|_| inputs.refused) {
        return PodStatus {
            phase: Some("Failed".to_owned()),
            reason: Some(verdict.reason.clone()),
            message: Some(verdict.message.clone()),
            qos_class: Some(podutil::qos_class(pod).to_owned()),
            start_time: inputs.previous.start_time.clone().or_else(|| Some(podutil::time(inputs.now))),
            observed_generation: pod.metadata.generation,
            ..api
        };
    }
    let has_init = !init_containers(pod).is_empty();
    let regular = containers(
        inputs,
        &spec(pod).containers,
        inputs.previous.container_statuses.as_deref().unwrap_or_default(),
        has_init,
        false,
    );
    let init = containers(
        inputs,
        init_containers(pod),
        inputs.previous.init_container_statuses.as_deref().unwrap_or_default(),
        has_init,
        true,
    );
    let ephemeral_specs = podutil::ephemeral_containers(pod);
    let ephemeral = containers(
        inputs,
        &ephemeral_specs,
        inputs.previous.ephemeral_container_statuses.as_deref().unwrap_or_default(),
        has_init,
        false,
    );
    let mut status = PodStatus {
        qos_class: Some(podutil::qos_class(pod).to_owned()),
        start_time: inputs.previous.start_time.clone().or_else(|| Some(podutil::time(inputs.now))),
        observed_generation: pod.metadata.generation,
        nominated_node_name: api.nominated_node_name.clone(),
        resource_claim_statuses: api.resource_claim_statuses.clone(),
        resize: api.resize.clone(),
        ..PodStatus::default()
    };
    let mut phase = phase::of(pod, &regular, &init, inputs.terminal);
    // What has ended is not over: it is about to be started again.
    if inputs.restarting != Restarting::No && !inputs.terminal && matches!(phase, "Failed" | "Succeeded") {
        phase = "Pending";
    }
    for known in [inputs.previous.phase.as_deref(), api.phase.as_deref()] {
        if let Some(known @ ("Failed" | "Succeeded")) = known {
            phase = known;
        }
    }
    if inputs.previous.phase.as_deref() == Some(phase) {
        status.reason = inputs.previous.reason.clone().or(api.reason.clone());
        status.message = inputs.previous.message.clone().or(api.message.clone());
    }
    if let Some(verdict) = inputs.verdict {
        phase = "Failed";
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
    }
    status.phase = Some(phase.to_owned());
    addresses(inputs, &mut status);
    status.conditions = Some(conditions::of(inputs, &regular, &init, phase));
    status.container_statuses = (!regular.is_empty()).then_some(regular);
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status
}

fn addresses(inputs: &Inputs<'_>, status: &mut PodStatus) {
    let hosts: Vec<String> = inputs.host_ips.iter().map(IpAddr::to_string).collect();
    status.host_ip = hosts.first().cloned();
    status.host_ips = (!hosts.is_empty()).then(|| hosts.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    let mut ips = if podutil::host_network(inputs.pod) { hosts } else { inputs.view.ips() };
    let prefers_v6 = inputs.host_ips.first().is_some_and(IpAddr::is_ipv6);
    ips.sort_by_key(|ip| ip.contains(':') != prefers_v6);
    if ips.is_empty() {
        status.pod_ip = inputs.previous.pod_ip.clone();
        status.pod_ips = inputs.previous.pod_ips.clone();
    } else {
        status.pod_ip = ips.first().cloned();
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let waiting = ContainerStateWaiting { reason: text(reason), message: text(message) };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn lost(message: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some(message.to_owned()),
        ..ContainerStateTerminated::default()
    }
}

fn containers(
    inputs: &Inputs<'_>,
    specs: &[Container],
    previous: &[ContainerStatus],
    has_init: bool,
    init: bool,
) -> Vec<ContainerStatus> {
    let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let mut statuses: Vec<ContainerStatus> = specs
        .iter()
        .map(|container| {
            let old = previous.iter().find(|status| status.name == container.name);
            let mut status = base(container, old, default_reason, inputs.restarting);
            // One that is only created is on its way, and shows as if it were not there yet.
            let mut instances = inputs.view.containers.iter().filter(|found| {
                runtime::container_name(found) == container.name
                    && found.state() != CriState::ContainerCreated
            });
            match instances.next() {
                Some(newest) => {
                    status = convert(inputs, container, newest, old);
                    status.last_state = match instances.next() {
                        Some(before) => Some(state(before)),
                        None => old.and_then(|old| old.last_state.clone()),
                    };
                }
                None => missing(inputs, container, old, default_reason, init, &mut status),
            }
            not_started(inputs, container, init, &mut status);
            probed(inputs, container, init, &mut status);
            status
        })
        .collect();
    if init {
        // Upstream lists init containers in the order of the spec, regular ones by name.
        return statuses;
    }
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

/// What is said of a container nothing is known of.
fn base(
    container: &Container,
    old: Option<&ContainerStatus>,
    reason: &str,
    restarting: Restarting,
) -> ContainerStatus {
    let ended = old.and_then(|old| old.state.clone()).filter(|state| state.terminated.is_some());
    if restarting == Restarting::No
        && let Some(old) = old
        && old.state.as_ref().is_some_and(|state| state.terminated.is_some())
    {
        return old.clone();
    }
    let image = container.image.clone().unwrap_or_default();
    ContainerStatus {
        name: container.name.clone(),
        image,
        restart_count: old.map_or(0, |old| old.restart_count),
        last_state: Some(ended.or(old.and_then(|old| old.last_state.clone())).unwrap_or_default()),
        state: Some(waiting(reason, "")),
        volume_mounts: mounts(container),
        ..ContainerStatus::default()
    }
}

fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let status = mounts.iter().map(|mount| {
        let read_only = mount.read_only.filter(|read_only| *read_only);
        let recursive = read_only.map(|_| match mount.recursive_read_only.as_deref() {
            Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
            _ => "Disabled".to_owned(),
        });
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only,
            recursive_read_only: recursive,
            ..VolumeMountStatus::default()
        }
    });
    Some(status.collect())
}

fn state(container: &CriStatus) -> ContainerState {
    match container.state() {
        CriState::ContainerRunning => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(podutil::nanos(container.started_at)) }),
            ..ContainerState::default()
        },
        CriState::ContainerExited => {
            ContainerState { terminated: Some(terminated(container)), ..ContainerState::default() }
        }
        CriState::ContainerCreated | CriState::ContainerUnknown => waiting("", ""),
    }
}

fn terminated(container: &CriStatus) -> ContainerStateTerminated {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let reason = match container.reason.as_str() {
        "" if container.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    let started = if container.started_at > 0 { container.started_at } else { container.created_at };
    ContainerStateTerminated {
        container_id: Some(container_id(container)),
        exit_code: container.exit_code,
        reason: text(reason),
        message: text(&container.message),
        started_at: Some(podutil::nanos(started)),
        finished_at: Some(podutil::nanos(container.finished_at)),
        signal: None,
    }
}

/// `<runtime>://<id>`.
fn container_id(container: &CriStatus) -> String {
    format!("carrack://{}", container.id)
}

fn convert(
    inputs: &Inputs<'_>,
    spec: &Container,
    container: &CriStatus,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let user = container.user.as_ref().and_then(|user| user.linux.as_ref()).map(|user| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: (!user.supplemental_groups.is_empty())
                .then(|| user.supplemental_groups.clone()),
        }),
    });
    let mut state = state(container);
    let mut restart_count = runtime::attempt(container) as i32;
    if container.state() == CriState::ContainerUnknown
        && let Some(old) = old
        && old.state.as_ref().is_some_and(|state| state.running.is_some())
    {
        let message = "The container could not be located when the pod was terminated";
        state = ContainerState { terminated: Some(lost(message)), ..ContainerState::default() };
        restart_count = old.restart_count + 1;
    }
    // Told where the pod chose one, as upstream does behind its gate.
    let chosen = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_ref());
    let image = container.image.as_ref().map(|image| {
        if image.user_specified_image.is_empty() {
            image.image.clone()
        } else {
            image.user_specified_image.clone()
        }
    });
    ContainerStatus {
        name: spec.name.clone(),
        image: image
            .filter(|image| !image.is_empty() && !image.starts_with("sha256:"))
            .or_else(|| spec.image.clone())
            .unwrap_or_default(),
        stop_signal: chosen.map(|_| container.stop_signal().as_str_name().to_owned()),
        image_id: container.image_ref.clone(),
        container_id: Some(container_id(container)),
        restart_count: restart_count.max(old.map_or(0, |old| {
            // Records of the runtime may have been lost; counts never go back.
            if old.container_id.as_deref() == Some(&container_id(container)) { old.restart_count } else { 0 }
        })),
        state: Some(state),
        user,
        volume_mounts: mounts(spec),
        resources: resize::shown(inputs.pod, spec, container, inputs.rules),
        allocated_resources_status: inputs
            .devices
            .map(|(devices, claims)| {
                let mut health = devices.health(podutil::uid(inputs.pod), &spec.name);
                health.extend(claims.health(inputs.pod, spec));
                health
            })
            .filter(|list| !list.is_empty()),
        allocated_resources: spec.resources.as_ref().and_then(|resources| resources.requests.clone()),
        ..ContainerStatus::default()
    }
}

/// The runtime has no such container: either it was never there, or its record is lost.
fn missing(
    inputs: &Inputs<'_>,
    container: &Container,
    old: Option<&ContainerStatus>,
    default_reason: &str,
    init: bool,
    status: &mut ContainerStatus,
) {
    let any_regular =
        spec(inputs.pod).containers.iter().any(|container| inputs.view.container(&container.name).is_some());
    if init && any_regular && !is_sidecar(container) && is_waiting(status) {
        status.state = Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                reason: Some("Completed".to_owned()),
                message: Some(
                    "Unable to get init container status from container runtime and pod has been initialized, \
                     treat it as exited normally"
                        .to_owned(),
                ),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        });
        return;
    }
    let was_running = old.is_some_and(|old| old.state.as_ref().is_some_and(|state| state.running.is_some()));
    let default = status
        .state
        .as_ref()
        .and_then(|state| state.waiting.as_ref())
        .is_some_and(|waiting| waiting.reason.as_deref() == Some(default_reason));
    let has_last = status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
    if was_running && default && !has_last {
        let message =
            "The container could not be located when the pod was deleted.  The container used to be Running";
        status.last_state =
            Some(ContainerState { terminated: Some(lost(message)), ..ContainerState::default() });
        if !podutil::deleting(inputs.pod) {
            status.restart_count += 1;
        }
    }
}

fn is_waiting(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.waiting.is_some())
}

/// A container that is to be started again but cannot yet is waiting, and says why.
fn not_started(inputs: &Inputs<'_>, container: &Container, init: bool, status: &mut ContainerStatus) {
    if inputs.gone {
        let alive = status.state.as_ref().is_some_and(|state| state.terminated.is_none());
        let began = status.container_id.is_some();
        if alive && (began || inputs.previous.start_time.is_some() && !is_waiting(status)) {
            let message = "The container could not be located when the pod was terminated";
            status.state =
                Some(ContainerState { terminated: Some(lost(message)), ..ContainerState::default() });
        }
        return;
    }
    if init
        && inputs.view.container(&container.name).is_some_and(podutil::succeeded)
        && !is_sidecar(container)
    {
        return;
    }
    if inputs.terminal || !podutil::should_restart(container, inputs.pod, inputs.view) {
        return;
    }
    let Some(why) = inputs.waiting.get(&container.name) else { return };
    if status.state.as_ref().is_some_and(|state| state.terminated.is_some()) {
        status.last_state = status.state.take();
    }
    status.state = Some(waiting(&why.reason, &why.message));
}

/// Fills `started` and `ready` from probe results.
fn probed(inputs: &Inputs<'_>, container: &Container, init: bool, status: &mut ContainerStatus) {
    let state = status.state.clone().unwrap_or_default();
    if init && !is_sidecar(container) {
        status.started = Some(state.running.is_some());
        status.ready = state.terminated.is_some_and(|terminated| terminated.exit_code == 0);
        return;
    }
    let probed = inputs
        .view
        .container(&container.name)
        .and_then(|found| inputs.probes.get(&found.id))
        .copied()
        .unwrap_or_default();
    let running = state.running.is_some();
    let started = running && (container.startup_probe.is_none() || probed.startup == Some(true));
    status.started = Some(started);
    status.ready = started && (container.readiness_probe.is_none() || probed.readiness == Some(true));
}

#[cfg(test)]
mod tests;
