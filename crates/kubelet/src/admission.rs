//! Whether a pod that was bound to this node can run here: the node's own last word.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::context::Context;
use crate::eviction::{self, Pressure};
use crate::podutil::{self, init_containers, is_sidecar, spec};
use crate::quantity;
use crate::security;
use crate::shutdown;
use crate::status::Verdict;
use crate::sysctls;

/// Why the pod is refused, if it is. `pods` are all pods of the node, the new one among them.
pub(crate) fn check(context: &Context, pod: &Pod, pods: &[Arc<Pod>], node: Option<&Node>) -> Option<Verdict> {
    let others: Vec<&Arc<Pod>> =
        pods.iter().filter(|other| podutil::uid(other) != podutil::uid(pod) && active(other)).collect();
    let refuse = |reason: &str, message: String| {
        Some(Verdict { reason: reason.to_owned(), message: format!("Pod was rejected: {message}") })
    };
    if *context.going_down.borrow() {
        return Some(Verdict { reason: shutdown::REASON.to_owned(), message: shutdown::MESSAGE.to_owned() });
    }
    if let Some(verdict) = security::admit(pod, node, security::apparmor()) {
        return refuse(&verdict.reason, verdict.message);
    }
    if node.is_some_and(|node| !scheduling::selector::node_affinity(pod, node)) {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return refuse("NodeAffinity", message.to_owned());
    }
    if ports_taken(pod, &others) {
        let message =
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return refuse("NodePorts", message.to_owned());
    }
    if let Some(verdict) = short(context, pod) {
        return refuse(&verdict.reason, verdict.message);
    }
    let allowed = &context.config.settings.allowed_unsafe_sysctls;
    if let Some(verdict) = sysctls::check(pod, allowed, sysctls::kernel()) {
        return refuse(&verdict.reason, verdict.message);
    }
    for (name, milli) in [("cpu", true), ("memory", false)] {
        let wanted = request(pod, name, milli);
        let used: i64 = others
            .iter()
            .map(|other| match context.allocations.of(podutil::uid(other)) {
                Some((cpu, memory)) => {
                    if milli {
                        cpu
                    } else {
                        memory
                    }
                }
                None => request(other, name, milli),
            })
            .sum();
        let list = Some(&context.allocatable);
        let capacity = if milli { quantity::milli_amount(list, name) } else { quantity::amount(list, name) }
            .unwrap_or(0);
        if wanted > 0 && used + wanted > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            );
            return refuse(&format!("OutOf{name}"), message);
        }
    }
    let most = quantity::amount(Some(&context.allocatable), "pods")
        .unwrap_or_else(|| i64::from(context.config.max_pods));
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if count >= most {
        let message =
            format!("Node didn't have enough resource: pods, requested: 1, used: {count}, capacity: {most}");
        return refuse("OutOfpods", message);
    }
    None
}

/// Whether another pod of the node has a port of the host that this one asks for: such as were bound past the scheduler.
fn ports_taken(pod: &Pod, others: &[&Arc<Pod>]) -> bool {
    let wanted = scheduling::host_ports(pod);
    let taken = |other: &Arc<Pod>| {
        scheduling::host_ports(other).iter().any(|port| wanted.iter().any(|one| one.conflicts(port)))
    };
    !wanted.is_empty() && others.iter().any(|other| taken(other))
}

/// A node that is short of something takes critical pods only; of memory, also those that asked for what they use.
fn short(context: &Context, pod: &Pod) -> Option<Verdict> {
    let short = context.pressures.now();
    if short.is_empty() || eviction::is_critical(pod) {
        return None;
    }
    if short == [Pressure::Memory] {
        let tolerates = spec(pod).tolerations.iter().flatten().any(|toleration| {
            let effect = toleration.effect.as_deref().unwrap_or_default();
            let key = toleration.key.as_deref().unwrap_or_default();
            let any = key.is_empty() && toleration.operator.as_deref() == Some("Exists");
            (any || key == "node.kubernetes.io/memory-pressure") && matches!(effect, "" | "NoSchedule")
        });
        if podutil::qos_class(pod) != "BestEffort" || tolerates {
            return None;
        }
    }
    let names: Vec<&str> = short
        .iter()
        .map(|pressure| match pressure {
            Pressure::Memory => "MemoryPressure",
            Pressure::Disk | Pressure::Inodes => "DiskPressure",
            Pressure::Pids => "PIDPressure",
        })
        .collect();
    let message = format!("The node had condition: [{}]. ", names.join(", "));
    Some(Verdict { reason: "Evicted".to_owned(), message })
}

fn active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Failed" | "Succeeded"))
}

/// What the scheduler counts for the pod.
pub(crate) fn request(pod: &Pod, name: &str, milli: bool) -> i64 {
    let of = |container: &k8s_openapi::api::core::v1::Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        if milli { quantity::milli_amount(requests, name) } else { quantity::amount(requests, name) }
            .unwrap_or(0)
    };
    let (mut sidecars, mut peak) = (0, 0);
    for container in init_containers(pod) {
        if is_sidecar(container) {
            sidecars += of(container);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + of(container));
        }
    }
    let regular: i64 = spec(pod).containers.iter().map(of).sum();
    // What the pod asks for itself goes before the sum of its containers.
    let own = spec(pod).resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let own = if milli { quantity::milli_amount(own, name) } else { quantity::amount(own, name) };
    let overhead = spec(pod).overhead.as_ref();
    let overhead =
        if milli { quantity::milli_amount(overhead, name) } else { quantity::amount(overhead, name) };
    own.unwrap_or_else(|| (regular + sidecars).max(peak)) + overhead.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_the_host_belongs_to_one_pod() {
        let pod = |ports: &str| -> Arc<Pod> {
            let text = format!(
                r#"{{"metadata": {{}}, "spec": {{"containers": [{{"name": "c", "ports": [{ports}]}}]}}}}"#
            );
            Arc::new(serde_json::from_str(&text).expect("a pod"))
        };
        let cases = [
            (r#"{"containerPort": 80, "hostPort": 80}"#, true),
            (r#"{"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.1"}"#, true),
            (r#"{"containerPort": 80, "hostPort": 80, "protocol": "UDP"}"#, false),
            (r#"{"containerPort": 80, "hostPort": 81}"#, false),
            (r#"{"containerPort": 80}"#, false),
        ];
        let other = pod(cases[0].0);
        for (ports, expected) in cases {
            assert_eq!(ports_taken(&pod(ports), &[&other]), expected, "{ports}");
        }
    }
}
