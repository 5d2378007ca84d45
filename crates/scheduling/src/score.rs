//! The scores of the nodes that passed the filters, each plugin's on a scale of 0 to 100 times its weight.

use std::sync::Arc;

use crate::devices::DeviceNeeds;
use crate::selector::{node_selector_term, untolerated};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::{interpod, spread};

const MOST: i64 = 100;
const MIB: i64 = 1024 * 1024;

/// One total per node, in the same order.
pub(crate) fn scores(
    snapshot: &Snapshot,
    pod: &PodInfo,
    nodes: &[&Arc<NodeInfo>],
    devices: Option<&DeviceNeeds>,
) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    };
    let each =
        |score: &dyn Fn(&NodeInfo) -> i64| -> Vec<i64> { nodes.iter().map(|node| score(node)).collect() };

    add(3, by_most(each(&|node| unwelcome(pod, node)), true));
    add(2, by_most(each(&|node| preferred(pod, node)), false));
    add(1, each(&|node| least_allocated(pod, node)));
    add(1, each(&|node| balanced(pod, node)));
    if let Some(scores) = spread::scores(snapshot, pod, nodes) {
        add(2, scores);
    }
    if let Some(devices) = devices {
        add(2, by_most(each(&|node| devices.score(node.name())), false));
    }
    add(2, by_range(interpod::preferences(snapshot, pod, nodes)));
    let all = snapshot.nodes().count();
    let holders = |image: &str| snapshot.nodes().filter(|node| node.images.contains_key(image)).count();
    add(1, each(&|node| images(pod, node, all, &holders)));
    totals
}

/// Taints that ask not to be used and that the pod does not tolerate.
fn unwelcome(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let taints = node.node.as_ref().and_then(|node| node.spec.as_ref()?.taints.as_ref());
    let tolerations = pod.pod.spec.as_ref().and_then(|spec| spec.tolerations.as_ref());
    let one = |taint: &&k8s_openapi::api::core::v1::Taint| {
        let taint = vec![(*taint).clone()];
        untolerated(Some(&taint), tolerations, &["PreferNoSchedule"]).is_some()
    };
    i64::try_from(taints.into_iter().flatten().filter(one).count()).unwrap_or(i64::MAX)
}

fn preferred(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let Some(node) = &node.node else { return 0 };
    let affinity = pod.pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let terms = affinity
        .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten();
    terms
        .filter(|term| {
            // An empty preference means every node.
            let empty = term.preference.match_expressions.as_ref().is_none_or(|all| all.is_empty())
                && term.preference.match_fields.as_ref().is_none_or(|all| all.is_empty());
            empty || node_selector_term(&term.preference, node)
        })
        .map(|term| i64::from(term.weight))
        .sum()
}

fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let free = |used: i64, all: i64| {
        if all == 0 {
            None
        } else {
            Some(((all - used).max(0) as i128 * i128::from(MOST) / i128::from(all)) as i64)
        }
    };
    let parts = [
        free(node.assumed.0 + pod.assumed.0, node.allocatable.cpu),
        free(node.assumed.1 + pod.assumed.1, node.allocatable.memory),
    ];
    let count = parts.iter().flatten().count() as i64;
    if count == 0 { 0 } else { parts.iter().flatten().sum::<i64>() / count }
}

fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    if pod.request.cpu == 0 && pod.request.memory == 0 {
        return 0;
    }
    let score = |cpu: i64, memory: i64| {
        let part = |used: i64, all: i64| (used as f64 / all as f64).min(1.0);
        if node.allocatable.cpu == 0 || node.allocatable.memory == 0 {
            return MOST;
        }
        let apart = (part(cpu, node.allocatable.cpu) - part(memory, node.allocatable.memory)).abs() / 2.0;
        ((1.0 - apart) * MOST as f64) as i64
    };
    let (cpu, memory) = (node.requested.cpu, node.requested.memory);
    let with = score(cpu + pod.request.cpu, memory + pod.request.memory);
    MOST / 2 + (MOST / 2 + with - score(cpu, memory)) / 2
}

fn images(pod: &PodInfo, node: &NodeInfo, nodes: usize, holders: &dyn Fn(&str) -> usize) -> i64 {
    let Some(spec) = &pod.pod.spec else { return 0 };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let named = containers.filter_map(|container| container.image.as_deref());
    let mounted =
        spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    let sum: i64 = named
        .chain(mounted)
        .map(|image| {
            let image = with_tag(image);
            let size = node.images.get(&image).copied().unwrap_or_default();
            if size == 0 { 0 } else { (size as f64 * (holders(&image) as f64 / nodes as f64)) as i64 }
        })
        .sum();
    let containers = spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len);
    let (low, high) = (23 * MIB, 1000 * MIB * containers.max(1) as i64);
    MOST * (sum.clamp(low, high) - low) / (high - low)
}

fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

fn by_most(scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let most = scores.iter().max().copied().unwrap_or_default();
    let scale = |score: i64| if most == 0 { 0 } else { MOST * score / most };
    scores.into_iter().map(|score| if reverse { MOST - scale(score) } else { scale(score) }).collect()
}

fn by_range(scores: Vec<i64>) -> Vec<i64> {
    let least = scores.iter().min().copied().unwrap_or_default();
    let range = scores.iter().max().copied().unwrap_or_default() - least;
    let scale = |score: i64| if range == 0 { 0 } else { MOST * (score - least) / range };
    scores.into_iter().map(scale).collect()
}
