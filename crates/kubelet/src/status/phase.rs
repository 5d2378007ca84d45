//! A pod's phase from the states of its containers.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

use crate::podutil::{self, init_containers, is_sidecar, spec};

enum Seen {
    Unknown,
    Waiting,
    Running,
    Ended { exit_code: i32, now: bool },
}

fn seen(statuses: &[ContainerStatus], container: &Container) -> Seen {
    let Some(status) = statuses.iter().find(|status| status.name == container.name) else {
        return Seen::Unknown;
    };
    let state = status.state.as_ref();
    if state.is_some_and(|state| state.running.is_some()) {
        return Seen::Running;
    }
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        return Seen::Ended { exit_code: ended.exit_code, now: true };
    }
    if state.is_some_and(|state| state.waiting.is_some()) {
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        return match last {
            Some(ended) => Seen::Ended { exit_code: ended.exit_code, now: false },
            None => Seen::Waiting,
        };
    }
    Seen::Unknown
}

/// The phase. `terminal` tells that nothing will be started any more.
pub(super) fn of(
    pod: &Pod,
    regular: &[ContainerStatus],
    init: &[ContainerStatus],
    terminal: bool,
) -> &'static str {
    let (mut pending_init, mut pending_sidecars) = (0, 0);
    let (mut unknown, mut running, mut waiting) = (0, 0, 0);
    for container in init_containers(pod) {
        let seen = seen(init, container);
        if !is_sidecar(container) {
            match seen {
                Seen::Ended { exit_code: 0, .. } => {}
                Seen::Ended { exit_code, .. } => {
                    if !podutil::restarts_after(container, pod, exit_code) {
                        return "Failed";
                    }
                    // A failed one that waits for its next try is neither pending nor done, as upstream counts.
                }
                _ => pending_init += 1,
            }
            continue;
        }
        match seen {
            Seen::Running => {
                running += 1;
                let started =
                    init.iter().any(|status| status.name == container.name && status.started == Some(true));
                pending_sidecars += i32::from(!started);
            }
            Seen::Ended { .. } => {}
            Seen::Waiting => {
                pending_sidecars += 1;
                waiting += 1;
            }
            Seen::Unknown => unknown += 1,
        }
    }
    let (mut stopped, mut final_stops, mut succeeded) = (0, 0, 0);
    let mut initialized = false;
    for container in &spec(pod).containers {
        match seen(regular, container) {
            Seen::Running => {
                running += 1;
                initialized = true;
            }
            Seen::Ended { exit_code, now } => {
                stopped += 1;
                final_stops += i32::from(!podutil::restarts_after(container, pod, exit_code));
                succeeded += i32::from(now && exit_code == 0);
            }
            Seen::Waiting => waiting += 1,
            Seen::Unknown => unknown += 1,
        }
    }
    if pending_init > 0 || (pending_sidecars > 0 && !initialized) || waiting > 0 {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        if !terminal && stopped != final_stops {
            return "Running";
        }
        return if stopped == succeeded { "Succeeded" } else { "Failed" };
    }
    "Pending"
}
