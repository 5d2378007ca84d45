//! The row of a pod: how many containers are ready, and the one word that says how it is.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{age, human_duration, name, or, seconds_between, time};
use crate::kinds::json::Read;

/// Restarts, and when the last one was.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += container.num("restartCount");
        let finished = time(container.dig(&["lastState", "terminated", "finishedAt"]));
        self.last = self.last.max(finished);
    }

    fn show(self, now: Timestamp) -> String {
        match self.last {
            Some(last) if self.count != 0 => {
                format!("{} ({} ago)", self.count, human_duration(seconds_between(last, now)))
            }
            _ => self.count.to_string(),
        }
    }
}

struct Summary {
    reason: String,
    restarts: Restarts,
    sidecar_restarts: Restarts,
    ready: usize,
    initializing: bool,
}

pub(crate) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (pod.at("spec"), pod.at("status"));
    let sidecars: HashSet<&str> = spec
        .items("initContainers")
        .iter()
        .filter(|container| container.text("restartPolicy") == "Always")
        .map(|container| container.text("name"))
        .collect();
    let conditions = status.items("conditions");
    let gated =
        conditions.iter().any(|c| c.text("type") == "PodScheduled" && c.text("reason") == "SchedulingGated");
    let reason = match gated {
        true => "SchedulingGated",
        false => or(status.text("reason"), status.text("phase")),
    };
    let mut summary = Summary {
        reason: reason.to_owned(),
        restarts: Restarts::default(),
        sidecar_restarts: Restarts::default(),
        ready: 0,
        initializing: false,
    };
    summary.init_containers(spec, status, &sidecars);
    let initialized = conditions
        .iter()
        .find(|c| c.text("type") == "Initialized")
        .is_some_and(|condition| condition.text("status") == "True");
    if !summary.initializing || initialized {
        summary.containers(status, conditions);
    }
    let deleted = pod.at("metadata").has("deletionTimestamp");
    if deleted && status.text("reason") == "NodeLost" {
        summary.reason = "Unknown".to_owned();
    } else if deleted && !matches!(status.text("phase"), "Failed" | "Succeeded") {
        summary.reason = "Terminating".to_owned();
    }
    let total = spec.items("containers").len() + sidecars.len();
    let ip = status.items("podIPs").first().map_or("", |ip| ip.text("ip"));
    vec![
        name(pod),
        format!("{}/{total}", summary.ready).into(),
        summary.reason.into(),
        summary.restarts.show(now).into(),
        age(pod, now),
        or(ip, "<none>").into(),
        or(spec.text("nodeName"), "<none>").into(),
        or(status.text("nominatedNodeName"), "<none>").into(),
        readiness_gates(spec, conditions).into(),
    ]
}

impl Summary {
    fn init_containers(&mut self, spec: &Value, status: &Value, sidecars: &HashSet<&str>) {
        for (index, container) in status.items("initContainerStatuses").iter().enumerate() {
            let sidecar = sidecars.contains(container.text("name"));
            self.restarts.add(container);
            if sidecar {
                self.sidecar_restarts.add(container);
            }
            let state = container.at("state");
            let terminated = state.at("terminated");
            if terminated.is_object() && terminated.num("exitCode") == 0 {
                continue;
            }
            if sidecar && container.flag("started") {
                self.ready += usize::from(container.flag("ready"));
                continue;
            }
            let waiting = state.at("waiting").text("reason");
            self.reason = if terminated.is_object() {
                format!("Init:{}", ending(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", spec.items("initContainers").len())
            };
            self.initializing = true;
            break;
        }
    }

    fn containers(&mut self, status: &Value, conditions: &[Value]) {
        self.restarts = self.sidecar_restarts;
        let mut running = false;
        let mut failed = String::new();
        for container in status.items("containerStatuses").iter().rev() {
            self.restarts.add(container);
            let state = container.at("state");
            let waiting = state.at("waiting").text("reason");
            let terminated = state.at("terminated");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if terminated.is_object() {
                self.reason = ending(terminated);
                if terminated.num("exitCode") != 0 {
                    failed.clone_from(&self.reason);
                }
            } else if container.flag("ready") && state.has("running") {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" {
            let ready = conditions.iter().any(|c| c.text("type") == "Ready" && c.text("status") == "True");
            if running && ready {
                self.reason = "Running".to_owned();
            } else if !failed.is_empty() {
                self.reason = failed;
            } else if running {
                self.reason = "NotReady".to_owned();
            }
        }
    }
}

/// How a container ended: its reason, or the signal or code.
fn ending(terminated: &Value) -> String {
    match (terminated.text("reason"), terminated.num("signal")) {
        ("", 0) => format!("ExitCode:{}", terminated.num("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn readiness_gates(spec: &Value, conditions: &[Value]) -> String {
    let gates = spec.items("readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates
        .iter()
        .filter(|gate| {
            let condition = conditions.iter().find(|c| c.text("type") == gate.text("conditionType"));
            condition.is_some_and(|condition| condition.text("status") == "True")
        })
        .count();
    format!("{met}/{}", gates.len())
}
