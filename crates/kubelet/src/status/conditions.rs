//! A pod's conditions.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Inputs;
use crate::pod::Restarting;
use crate::podutil::{self, init_containers, is_sidecar, spec};
use crate::resize;

const OWNED: [&str; 8] = [
    "AllContainersRestarting",
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
];

struct Made {
    status: bool,
    reason: Option<&'static str>,
    message: String,
}

impl Made {
    const TRUE: Made = Made { status: true, reason: None, message: String::new() };

    fn no(reason: &'static str, message: String) -> Self {
        Made { status: false, reason: Some(reason), message }
    }
}

/// The conditions of the kubelet, and those of others as the API has them.
pub(super) fn of(
    inputs: &Inputs<'_>,
    regular: &[ContainerStatus],
    init: &[ContainerStatus],
    phase: &str,
) -> Vec<PodCondition> {
    let foreign: Vec<PodCondition> = inputs
        .pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .filter(|condition| !OWNED.contains(&condition.type_.as_str()))
        .cloned()
        .collect();
    let containers_ready = containers_ready(inputs, regular, init, phase);
    let ready = ready(inputs, &containers_ready, &foreign);
    let made = [
        ("PodReadyToStartContainers", sandbox(inputs)),
        ("Initialized", initialized(inputs, regular, init, phase)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Made::TRUE),
    ];
    let mut conditions = foreign;
    if podutil::may_restart_all(inputs.pod) {
        let made = match (phase, inputs.restarting) {
            ("Succeeded", _) => Made::no("PodCompleted", String::new()),
            ("Failed", _) => Made::no("PodFailed", String::new()),
            (_, Restarting::Removing) => Made {
                status: true,
                reason: Some("RestartAllContainersStarted"),
                message: "container exited with restart policy rule".to_owned(),
            },
            _ => Made { status: false, reason: None, message: String::new() },
        };
        conditions.push(finish(inputs, "AllContainersRestarting", made));
    }
    for (name, made) in made {
        conditions.push(finish(inputs, name, made));
    }
    if let Some(verdict) = inputs.verdict.filter(|verdict| {
        // What the node needs, and not what the pod did.
        matches!(verdict.reason.as_str(), "Evicted" | "Terminated") && !inputs.refused
    }) {
        conditions.retain(|condition| condition.type_ != "DisruptionTarget");
        let message = verdict.message.clone();
        let made = Made { status: true, reason: Some("TerminationByKubelet"), message };
        conditions.push(finish(inputs, "DisruptionTarget", made));
    }
    if let Some(pending) = inputs.resize.pending.as_ref().filter(|_| !inputs.terminal) {
        let made = Made { status: true, reason: Some(pending.reason), message: pending.message.clone() };
        conditions.push(finish(inputs, "PodResizePending", made));
    }
    if !inputs.terminal && resize::in_progress(inputs.pod, inputs.view, inputs.rules) {
        let error = inputs.resize.error.clone();
        let reason = error.as_ref().map(|_| "Error");
        let made = Made { status: true, reason, message: error.unwrap_or_default() };
        let mut condition = finish(inputs, "PodResizeInProgress", made);
        condition.observed_generation = inputs.resize.granted_at.or(condition.observed_generation);
        conditions.push(condition);
    }
    conditions
}

fn find<'a>(status: &'a PodStatus, name: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == name)
}

fn finish(inputs: &Inputs<'_>, name: &str, made: Made) -> PodCondition {
    let status = if made.status { "True" } else { "False" };
    let api = inputs.pod.status.as_ref();
    let old = find(inputs.previous, name).or_else(|| find(api?, name));
    let since: Time = old
        .filter(|old| old.status == status)
        .and_then(|old| old.last_transition_time.clone())
        .unwrap_or_else(|| podutil::time(inputs.now));
    PodCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: made.reason.map(str::to_owned),
        message: (!made.message.is_empty()).then_some(made.message),
        last_transition_time: Some(since),
        observed_generation: inputs.pod.metadata.generation,
        ..PodCondition::default()
    }
}

fn sandbox(inputs: &Inputs<'_>) -> Made {
    let has_network = podutil::host_network(inputs.pod) || !inputs.view.ips().is_empty();
    Made { status: inputs.view.sandbox_ready() && has_network, reason: None, message: String::new() }
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

/// Sorts containers into unknown and not good; the message about both, empty if all are good.
fn trouble<'a>(
    containers: impl Iterator<Item = (&'a Container, Option<&'a ContainerStatus>)>,
    good: impl Fn(&Container, &ContainerStatus) -> bool,
    word: &str,
) -> (bool, String) {
    let (mut unknown, mut bad) = (Vec::new(), Vec::new());
    for (container, status) in containers {
        match status {
            None => unknown.push(container.name.as_str()),
            Some(status) if !good(container, status) => bad.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", list(&unknown)));
    }
    if !bad.is_empty() {
        parts.push(format!("containers with {word} status: {}", list(&bad)));
    }
    (unknown.is_empty(), parts.join(", "))
}

fn status_of<'a>(statuses: &'a [ContainerStatus], container: &Container) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|status| status.name == container.name)
}

fn containers_ready(
    inputs: &Inputs<'_>,
    regular: &[ContainerStatus],
    init: &[ContainerStatus],
    phase: &str,
) -> Made {
    let sidecars = init_containers(inputs.pod)
        .iter()
        .filter(|container| is_sidecar(container))
        .map(|container| (container, status_of(init, container)));
    let all = spec(inputs.pod).containers.iter().map(|container| (container, status_of(regular, container)));
    let (known, message) = trouble(sidecars.chain(all), |_, status| status.ready, "unready");
    if phase == "Succeeded" && known {
        return Made::no("PodCompleted", String::new());
    }
    if phase == "Failed" {
        return Made::no("PodFailed", String::new());
    }
    if message.is_empty() { Made::TRUE } else { Made::no("ContainersNotReady", message) }
}

fn ready(inputs: &Inputs<'_>, containers: &Made, foreign: &[PodCondition]) -> Made {
    if !containers.status {
        return Made { status: false, reason: containers.reason, message: containers.message.clone() };
    }
    let mut missing = Vec::new();
    for gate in spec(inputs.pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match foreign.iter().find(|condition| condition.type_ == *kind) {
            None => missing
                .push(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(condition) if condition.status != "True" => missing.push(format!(
                "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    if missing.is_empty() { Made::TRUE } else { Made::no("ReadinessGatesNotReady", missing.join(", ")) }
}

fn initialized(
    inputs: &Inputs<'_>,
    regular: &[ContainerStatus],
    init: &[ContainerStatus],
    phase: &str,
) -> Made {
    let all = init_containers(inputs.pod).iter().map(|container| (container, status_of(init, container)));
    let good = |container: &Container, status: &ContainerStatus| {
        if is_sidecar(container) { status.started == Some(true) } else { status.ready }
    };
    let (known, message) = trouble(all, good, "incomplete");
    if phase == "Succeeded" && known {
        return Made { status: true, reason: Some("PodCompleted"), message: String::new() };
    }
    let began = regular.iter().any(|status| {
        let state = status.state.as_ref();
        status.started == Some(true)
            || state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            || status.last_state.as_ref().is_some_and(|state| state.terminated.is_some())
    });
    if message.is_empty() || began {
        return Made::TRUE;
    }
    Made::no("ContainersNotInitialized", message)
}
