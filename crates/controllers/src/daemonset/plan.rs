//! Which nodes need a pod of the set, and which pods must go. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Toleration,
};
use scheduling::selector::{node_affinity, untolerated};

use crate::kit::history::REVISION_HASH;
use crate::kit::intstr::scaled;
use crate::kit::pods::{is_available, is_ready, is_terminal, node_name, phase};

const GENERATION: &str = "deprecated.daemonset.template.generation";

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Nodes to create a pod for.
    pub(super) create: Vec<String>,
    /// Names of pods to delete.
    pub(super) delete: Vec<String>,
    /// Of those, the ones that failed: by node, for their back-off.
    pub(super) failed: Vec<(String, String)>,
}

pub(super) type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;

/// The pods by the node that they are on or meant for.
pub(super) fn by_node(pods: &[Arc<Pod>]) -> ByNode {
    let mut map = ByNode::new();
    for pod in pods {
        if pod.metadata.deletion_timestamp.is_some() && is_terminal(pod) {
            continue;
        }
        if let Some(node) = target(pod) {
            map.entry(node.to_owned()).or_default().push(pod.clone());
        }
    }
    for pods in map.values_mut() {
        pods.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (node_name(pod).is_empty(), created, pod.metadata.name.clone())
        });
    }
    map
}

fn target(pod: &Pod) -> Option<&str> {
    if !node_name(pod).is_empty() {
        return Some(node_name(pod));
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut named = fields.filter(|field| field.key == "metadata.name" && field.operator == "In");
    named.find_map(|field| Some(field.values.as_ref()?.first()?.as_str()))
}

fn add_tolerations(spec: &mut PodSpec) {
    let host_network = spec.host_network == Some(true);
    let wanted = [
        ("node.kubernetes.io/not-ready", "NoExecute", true),
        ("node.kubernetes.io/unreachable", "NoExecute", true),
        ("node.kubernetes.io/disk-pressure", "NoSchedule", true),
        ("node.kubernetes.io/memory-pressure", "NoSchedule", true),
        ("node.kubernetes.io/pid-pressure", "NoSchedule", true),
        ("node.kubernetes.io/unschedulable", "NoSchedule", true),
        ("node.kubernetes.io/network-unavailable", "NoSchedule", host_network),
    ];
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect, _) in wanted.into_iter().filter(|(_, _, wanted)| *wanted) {
        tolerations.retain(|one| one.key.as_deref() != Some(key) || one.effect.as_deref() != Some(effect));
        tolerations.push(Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        });
    }
}

/// The template of the pod for one node.
pub(super) fn template_for(set: &DaemonSet, node: &str, hash: &str) -> PodTemplateSpec {
    let mut template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(REVISION_HASH.into(), hash.to_owned());
    if let Some(generation) = set.metadata.annotations.as_ref().and_then(|all| all.get(GENERATION)) {
        labels.insert("pod-template-generation".into(), generation.clone());
    }
    let spec = template.spec.get_or_insert_default();
    add_tolerations(spec);
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.to_owned()]),
            }]),
        }],
    });
    template
}

/// Whether a node should have a pod, and whether one that is there may stay.
pub(super) fn should_run(set: &DaemonSet, node: &Node) -> (bool, bool) {
    let Some(template) = set.spec.as_ref().map(|spec| &spec.template) else { return (false, false) };
    let mut spec = template.spec.clone().unwrap_or_default();
    let wanted = spec.node_name.as_deref().unwrap_or_default();
    if !wanted.is_empty() && Some(wanted) != node.metadata.name.as_deref() {
        return (false, false);
    }
    add_tolerations(&mut spec);
    let tolerations = spec.tolerations.clone();
    let pod = Pod { spec: Some(spec), ..Pod::default() };
    if !node_affinity(&pod, node) {
        return (false, false);
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let refuses = |effects: &[&str]| untolerated(taints, tolerations.as_ref(), effects).is_some();
    if refuses(&["NoSchedule", "NoExecute"]) { (false, !refuses(&["NoExecute"])) } else { (true, true) }
}

fn minimum(spec: &DaemonSetSpec) -> i32 {
    spec.min_ready_seconds.unwrap_or_default()
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn is_updated(set: &DaemonSet, pod: &Pod, hash: &str) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    let generation = set.metadata.annotations.as_ref().and_then(|all| all.get(GENERATION));
    let by_generation = generation.is_some() && label("pod-template-generation") == generation;
    by_generation || label(REVISION_HASH).is_some_and(|label| label == hash)
}

/// How many pods may be beyond one per node, and how many nodes may be without.
fn allowance(spec: &DaemonSetSpec, desired: i32) -> (usize, usize) {
    let rolling = spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let share = |value: Option<&_>| value.and_then(|value| scaled(value, desired, true)).unwrap_or_default();
    let surge = share(rolling.and_then(|rolling| rolling.max_surge.as_ref()));
    let unavailable = match rolling.and_then(|rolling| rolling.max_unavailable.as_ref()) {
        Some(value) => share(Some(value)),
        None => 1,
    };
    let unavailable = if desired > 0 && surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (usize::try_from(surge).unwrap_or_default(), usize::try_from(unavailable).unwrap_or_default())
}

fn surges(spec: &DaemonSetSpec) -> bool {
    let is_rolling = spec.update_strategy.as_ref().and_then(|one| one.type_.as_deref()) != Some("OnDelete");
    is_rolling && allowance(spec, i32::from(u8::MAX)).0 > 0
}

/// One pod on each node that should have one, and none elsewhere.
pub(super) fn manage(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &ByNode,
    hash: &str,
    now: Timestamp,
) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let mut plan = Plan::default();
    let none = Vec::new();
    for node in nodes {
        let node_name = node.metadata.name.clone().unwrap_or_default();
        let here = pods.get(&node_name);
        let (should, may_stay) = should_run(set, node);
        let here = match here {
            None if should => {
                plan.create.push(node_name);
                continue;
            }
            here => here.unwrap_or(&none),
        };
        let alive = here.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        if !may_stay {
            plan.delete.extend(alive.map(|pod| name(pod)));
            continue;
        }
        let mut running = Vec::new();
        for pod in alive {
            match phase(pod) {
                "Failed" => plan.failed.push((node_name.clone(), name(pod))),
                "Succeeded" => plan.delete.push(name(pod)),
                _ => running.push(pod),
            }
        }
        if !surges(&spec) {
            plan.delete.extend(running.iter().skip(1).map(|pod| name(pod)));
        } else if running.is_empty() && should {
            plan.create.push(node_name);
        } else if running.len() > 1 {
            let (mut new, mut old) = (None, None);
            for pod in running {
                let labels = pod.metadata.labels.as_ref();
                let is_new = labels.and_then(|all| all.get(REVISION_HASH)).is_some_and(|label| label == hash);
                let slot = if is_new { &mut new } else { &mut old };
                match slot {
                    None => *slot = Some(pod),
                    Some(_) => plan.delete.push(name(pod)),
                }
            }
            if let (Some(new), Some(old)) = (new, old)
                && (!is_ready(old) || is_available(new, minimum(&spec), now))
            {
                plan.delete.push(name(old));
            }
        }
    }
    // Pods for nodes that are gone, never placed.
    let known: std::collections::BTreeSet<_> =
        nodes.iter().filter_map(|node| node.metadata.name.as_deref()).collect();
    let lost = pods.iter().filter(|(node, _)| !known.contains(node.as_str())).flat_map(|(_, pods)| pods);
    plan.delete.extend(lost.filter(|pod| node_name(pod).is_empty()).map(|pod| name(pod)));
    plan
}

/// The next step of a rolling update.
pub(super) fn roll(set: &DaemonSet, nodes: &[Arc<Node>], pods: &ByNode, hash: &str, now: Timestamp) -> Plan {
    let spec = set.spec.clone().unwrap_or_default();
    let wanting: Vec<&Arc<Node>> = nodes.iter().filter(|node| should_run(set, node).0).collect();
    let (surge, unavailable) = allowance(&spec, i32::try_from(wanting.len()).unwrap_or(i32::MAX));
    let mut all: BTreeMap<&str, &[Arc<Pod>]> =
        pods.iter().map(|(node, pods)| (node.as_str(), pods.as_slice())).collect();
    for node in &wanting {
        all.entry(node.metadata.name.as_deref().unwrap_or_default()).or_insert(&[]);
    }
    let mut plan = Plan::default();
    let mut out = 0;
    let mut extra = 0;
    let mut candidates = Vec::new();
    let available = |pod: &Pod| is_available(pod, minimum(&spec), now);
    for (node, pods) in all {
        let alive: Vec<_> = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
            alive.into_iter().partition(|pod| is_updated(set, pod, hash));
        if new.len() > 1 || old.len() > 1 {
            // Too many: the other step sees to that.
            out += 1;
            extra += 1;
            continue;
        }
        let (new, old) = (new.first(), old.first());
        if surge == 0 {
            match (new, old) {
                (None, None) | (Some(_), Some(_)) => out += 1,
                (Some(new), None) => out += usize::from(!available(new)),
                (None, Some(old)) if !available(old) => {
                    plan.delete.push(name(old));
                    out += 1;
                }
                (None, Some(old)) => candidates.push(name(old)),
            }
        } else {
            match (new, old) {
                (_, None) => {}
                (None, Some(old)) => {
                    if !wanting.iter().any(|one| one.metadata.name.as_deref() == Some(node)) {
                        if !available(old) {
                            plan.delete.push(name(old));
                        }
                    } else if !available(old) {
                        plan.create.push(node.to_owned());
                    } else {
                        candidates.push(node.to_owned());
                    }
                }
                (Some(new), Some(old)) => {
                    if available(new) {
                        plan.delete.push(name(old));
                    } else {
                        extra += 1;
                    }
                }
            }
        }
    }
    if surge == 0 {
        plan.delete.extend(candidates.into_iter().take(unavailable.saturating_sub(out)));
    } else {
        plan.create.extend(candidates.into_iter().take(surge.saturating_sub(extra)));
    }
    plan
}

/// The status, without what the caller keeps of the old one.
pub(super) fn status(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &ByNode,
    hash: &str,
    now: Timestamp,
) -> DaemonSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let old = set.status.clone().unwrap_or_default();
    let (mut desired, mut current, mut wrong, mut ready, mut updated, mut available) = (0, 0, 0, 0, 0, 0);
    for node in nodes {
        let first = pods.get(node.metadata.name.as_deref().unwrap_or_default()).and_then(|pods| pods.first());
        if should_run(set, node).0 {
            desired += 1;
            if let Some(pod) = first {
                current += 1;
                ready += i32::from(is_ready(pod));
                available += i32::from(is_available(pod, minimum(&spec), now));
                updated += i32::from(is_updated(set, pod, hash));
            }
        } else {
            wrong += i32::from(first.is_some());
        }
    }
    DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: current,
        number_misscheduled: wrong,
        number_ready: ready,
        updated_number_scheduled: Some(updated),
        number_available: Some(available),
        number_unavailable: Some(desired - available),
        observed_generation: old.observed_generation,
        collision_count: old.collision_count,
        conditions: old.conditions,
    }
}

#[cfg(test)]
mod tests;
