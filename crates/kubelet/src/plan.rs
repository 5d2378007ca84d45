//! What is to be done for a pod that shall run: a pure function from its spec, what the runtime has, probe results
//! and the clock to actions. It decides as upstream's `computePodActions` does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use cri::v1::{ContainerState, ContainerStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::backoff::Backoffs;
use crate::podutil::{self, Kind, init_containers, is_sidecar, spec};
use crate::resize::{self, Rules};
use crate::runtime::{PodView, container_name};

/// Annotation of a container by which a changed spec is seen.
pub(crate) const SPEC_HASH: &str = "io.kubernetes.container.hash";

/// What probes say about one container instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Probed {
    /// `None` until the startup probe has decided.
    pub startup: Option<bool>,
    pub liveness: Option<bool>,
    pub readiness: Option<bool>,
}

/// Everything `plan` looks at.
pub(crate) struct Inputs<'a> {
    pub pod: &'a Pod,
    pub view: &'a PodView,
    /// By container id.
    pub probes: &'a HashMap<String, Probed>,
    /// Containers that some action is already under way for.
    pub busy: &'a HashSet<String>,
    pub backoffs: &'a Backoffs,
    pub rules: Rules,
    pub now: Timestamp,
}

/// Why a running container is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KillReason {
    Liveness,
    Startup,
    SpecChanged,
    Resize,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    pub id: String,
    pub name: String,
    pub reason: KillReason,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub name: String,
    pub kind: Kind,
    pub attempt: u32,
    /// When the previous instance ended.
    pub after: Option<Timestamp>,
}

/// A start that has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    pub remaining: Duration,
    pub delay: Duration,
}

/// The actions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Stop all containers and the sandbox; nothing is to run (before `create_sandbox`, if that is set too).
    pub kill_pod: bool,
    pub create_sandbox: Option<u32>,
    pub start: Vec<Start>,
    pub kill: Vec<Kill>,
    /// Running containers whose resources are to be changed in place.
    pub resize: Vec<String>,
    pub wait: BTreeMap<String, Wait>,
    /// All containers are to be removed, to start from the first init container again; the name is that of the container whose
    /// end asks for it, with the time of that end.
    pub reset: Option<(String, Timestamp)>,
}

/// The back-off key of restarts of a whole pod in place.
pub(crate) const RESET_KEY: &str = "/reset";

/// The back-off key of a container.
pub(crate) fn backoff_key(container: &Container) -> String {
    format!("{}/{:x}", container.name, spec_hash(container))
}

/// Changes when the container has to be replaced: upstream looks at its name and image.
pub(crate) fn spec_hash(container: &Container) -> u64 {
    let text = format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default());
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Decides what to do for `inputs.pod`.
pub(crate) fn plan(inputs: &Inputs<'_>) -> Plan {
    let Inputs { pod, view, .. } = inputs;
    let mut plan = Plan::default();
    if !view.sandbox_ready() {
        plan_sandbox(inputs, &mut plan);
        return plan;
    }
    if let Some(ended) = podutil::restarts_all(pod, view).filter(|_| !podutil::deleting(pod)) {
        plan_reset(inputs, ended, &mut plan);
        return plan;
    }
    for container in podutil::ephemeral_containers(pod) {
        if view.container(&container.name).is_none() {
            start(inputs, &mut plan, &container, Kind::Ephemeral);
        }
    }
    if !plan_init(inputs, &mut plan) {
        return plan;
    }
    let mut kept = 0;
    for container in &spec(pod).containers {
        let running = view
            .container(&container.name)
            .filter(|status| status.state() == ContainerState::ContainerRunning);
        let Some(status) = running else {
            if podutil::should_restart(container, pod, view) {
                kept += 1;
                let unknown = |status: &&ContainerStatus| status.state() == ContainerState::ContainerUnknown;
                if let Some(status) = view.container(&container.name).filter(unknown) {
                    // It may run after all, and must not run twice.
                    let message = "Container is in unknown state, try killing it before restart".to_owned();
                    kill(inputs, &mut plan, status, KillReason::Unknown, message);
                }
                start(inputs, &mut plan, container, Kind::Regular);
            }
            continue;
        };
        kept += 1;
        if let Some((reason, message)) = unwanted(inputs, container, status, "Container") {
            let restarts =
                matches!(reason, KillReason::SpecChanged | KillReason::Resize) || may_restart(container, pod);
            let message = if restarts { format!("{message}, will be restarted") } else { message };
            kill(inputs, &mut plan, status, reason, message);
        } else if resize::actual(status)
            .is_some_and(|now| now != resize::wanted(inputs.pod, container, inputs.rules))
        {
            plan.resize.push(container.name.clone());
        }
    }
    if kept == 0 {
        // Sidecars must not keep a finished pod alive.
        plan.start.clear();
        plan.kill_pod = true;
    }
    plan
}

fn plan_reset(inputs: &Inputs<'_>, ended: &ContainerStatus, plan: &mut Plan) {
    let name = container_name(ended).to_owned();
    let since = Timestamp::from_nanosecond(i128::from(ended.finished_at)).unwrap_or(inputs.now);
    match inputs.backoffs.remaining(RESET_KEY, since, inputs.now) {
        Some((remaining, delay)) => {
            plan.wait.insert(name, Wait { remaining, delay });
        }
        None => plan.reset = Some((name, since)),
    }
}

fn plan_sandbox(inputs: &Inputs<'_>, plan: &mut Plan) {
    let Inputs { pod, view, .. } = inputs;
    plan.kill_pod = view.sandbox.is_some() || view.any_running();
    let attempt = view
        .sandbox
        .as_ref()
        .map_or(0, |sandbox| sandbox.metadata.as_ref().map_or(0, |metadata| metadata.attempt) + 1);
    let policy = spec(pod).restart_policy.as_deref();
    if policy == Some("Never") && attempt != 0 && !view.containers.is_empty() {
        return;
    }
    let wanted = spec(pod).containers.iter().any(|container| {
        let once = container.restart_policy.as_deref().or(policy) == Some("OnFailure");
        !(once && view.container(&container.name).is_some_and(podutil::succeeded))
    });
    let initialized = spec(pod).containers.iter().any(|container| view.container(&container.name).is_some());
    if wanted || !initialized {
        plan.create_sandbox = Some(attempt);
    }
}

/// Plans init containers; tells whether the pod is initialized.
fn plan_init(inputs: &Inputs<'_>, plan: &mut Plan) -> bool {
    let Inputs { pod, view, probes, .. } = inputs;
    let containers = init_containers(pod);
    if containers.is_empty() {
        return true;
    }
    // Once a regular container is there, init containers have run, even if their records are gone.
    let previously = spec(pod).containers.iter().any(|container| {
        view.container(&container.name).is_some_and(|status| {
            matches!(status.state(), ContainerState::ContainerCreated | ContainerState::ContainerRunning)
        })
    });
    let mut initialized = previously;
    let mut to_start: Vec<usize> = Vec::new();
    let mut found = previously;
    // From the last to the first: records of completed ones may have been removed.
    for (index, container) in containers.iter().enumerate().rev() {
        let sidecar = is_sidecar(container);
        let last = index + 1 == containers.len();
        let Some(status) = view.container(&container.name) else {
            if previously && sidecar {
                to_start.push(index);
            }
            continue;
        };
        if found && !sidecar {
            continue;
        }
        let first_found = !found;
        found = true;
        match status.state() {
            ContainerState::ContainerCreated => to_start.push(index),
            ContainerState::ContainerRunning if !sidecar => {}
            ContainerState::ContainerRunning => {
                let probed = probes.get(&status.id).copied().unwrap_or_default();
                let started = container.startup_probe.is_none() || probed.startup == Some(true);
                if started && first_found {
                    if last {
                        initialized = true;
                    } else {
                        to_start.push(index + 1);
                    }
                }
                if let Some((reason, message)) = unwanted(inputs, container, status, "Init container") {
                    kill(inputs, plan, status, reason, message);
                } else if resize::actual(status)
                    .is_some_and(|now| now != resize::wanted(inputs.pod, container, inputs.rules))
                {
                    plan.resize.push(container.name.clone());
                }
            }
            ContainerState::ContainerExited if sidecar => to_start.push(index),
            ContainerState::ContainerExited => {
                if status.exit_code != 0 {
                    if !podutil::restarts_after(container, pod, status.exit_code) {
                        plan.kill_pod = true;
                        plan.start.clear();
                        return false;
                    }
                    to_start.push(index);
                } else if last {
                    initialized = true;
                } else {
                    to_start.push(index + 1);
                }
            }
            ContainerState::ContainerUnknown => {
                let message = "Init container is in unknown state, try killing it before restart".to_owned();
                kill(inputs, plan, status, KillReason::Unknown, message);
                if sidecar || may_restart(container, pod) {
                    to_start.push(index);
                } else {
                    plan.kill_pod = true;
                    plan.start.clear();
                    return false;
                }
            }
        }
    }
    if !found {
        to_start.push(0);
    }
    to_start.sort_unstable();
    to_start.dedup();
    for index in to_start {
        let container = &containers[index];
        let kind = if is_sidecar(container) { Kind::Sidecar } else { Kind::Init };
        start(inputs, plan, container, kind);
    }
    initialized
}

/// Why a running container must go, if it must.
fn unwanted(
    inputs: &Inputs<'_>,
    container: &Container,
    status: &ContainerStatus,
    what: &str,
) -> Option<(KillReason, String)> {
    let name = &container.name;
    let recorded = status.annotations.get(SPEC_HASH);
    if recorded.is_some_and(|hash| *hash != format!("{:x}", spec_hash(container))) {
        return Some((KillReason::SpecChanged, format!("{what} {name} definition changed")));
    }
    let now = resize::actual(status);
    if now.is_some_and(|now| {
        resize::restarts(container, now, resize::wanted(inputs.pod, container, inputs.rules))
    }) {
        return Some((KillReason::Resize, format!("{what} {name} resize requires restart")));
    }
    let probed = inputs.probes.get(&status.id).copied().unwrap_or_default();
    if probed.liveness == Some(false) {
        return Some((KillReason::Liveness, format!("{what} {name} failed liveness probe")));
    }
    if probed.startup == Some(false) {
        return Some((KillReason::Startup, format!("{what} {name} failed startup probe")));
    }
    None
}

fn may_restart(container: &Container, pod: &Pod) -> bool {
    container.restart_policy.as_deref().or(spec(pod).restart_policy.as_deref()) != Some("Never")
}

fn kill(inputs: &Inputs<'_>, plan: &mut Plan, status: &ContainerStatus, reason: KillReason, message: String) {
    let name = container_name(status).to_owned();
    if !inputs.busy.contains(&name) {
        plan.kill.push(Kill { id: status.id.clone(), name, reason, message });
    }
}

fn start(inputs: &Inputs<'_>, plan: &mut Plan, container: &Container, kind: Kind) {
    if inputs.busy.contains(&container.name) {
        return;
    }
    let previous = inputs.view.container(&container.name);
    let after = previous
        .filter(|status| status.finished_at > 0)
        .and_then(|status| Timestamp::from_nanosecond(i128::from(status.finished_at)).ok());
    if let Some(since) = after
        && let Some((remaining, delay)) =
            inputs.backoffs.remaining(&backoff_key(container), since, inputs.now)
    {
        plan.wait.insert(container.name.clone(), Wait { remaining, delay });
        return;
    }
    // The status of the API remembers restarts even when the runtime's records are gone.
    let recorded = inputs.pod.status.as_ref().and_then(|status| {
        let all =
            status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        all.filter(|status| status.name == container.name)
            .find(|status| status.container_id.is_some())
            .map(|status| status.restart_count as u32 + 1)
    });
    let attempt = previous.map(|status| crate::runtime::attempt(status) + 1).or(recorded).unwrap_or(0);
    plan.start.push(Start { name: container.name.clone(), kind, attempt, after });
}

#[cfg(test)]
mod tests;
