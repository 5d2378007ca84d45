//! What a container may use, as CRI wants it: CPU, memory, swap, huge pages, processors and memory nodes, and its place in the
//! order in which the kernel kills when memory runs out.

use std::collections::HashMap;

use cri::v1::{HugepageLimit, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::cgroups::{self, CPU_PERIOD};
use crate::context::Context;
use crate::podutil::{self, spec};
use crate::quantity;
use crate::{eviction, resize};

const PAGE: f64 = 4096.0;

/// The container's limits.
pub(crate) fn of(context: &Context, pod: &Pod, container: &Container) -> LinuxContainerResources {
    let values = resize::wanted(pod, container, context.rules);
    let uid = podutil::uid(pod);
    let cpus = context.pinning.cpus(uid, &container.name).map(|(cpus, _)| cpus.to_string());
    let nodes = context.pinning.memory_nodes(uid, &container.name);
    let nodes = nodes.map(|nodes| nodes.iter().collect::<topology::CpuSet>().to_string());
    let mut resources = LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: values.quota,
        cpu_shares: values.shares,
        memory_limit_in_bytes: values.memory,
        oom_score_adj: oom_score(pod, container, context.memory),
        hugepage_limits: huge_pages(pod, container),
        cpuset_cpus: cpus.unwrap_or_default(),
        cpuset_mems: nodes.unwrap_or_default(),
        unified: HashMap::new(),
        ..LinuxContainerResources::default()
    };
    let cgroups = context.cgroups.as_ref();
    let machine = Machine {
        unified: cgroups.is_some_and(cgroups::Cgroups::is_unified),
        swap_accounted: cgroups.is_some_and(cgroups::Cgroups::accounts_swap),
        memory: context.memory,
        swap: i64::try_from(crate::node::capacity::swap()).unwrap_or(0),
        allocatable: quantity::amount(Some(&context.allocatable), "memory").unwrap_or(0),
    };
    let settings = &context.config.settings;
    let limited = settings.memory_swap.swap_behavior == "LimitedSwap" && settings.gate("NodeSwap", true);
    swap(&mut resources, pod, container, machine, limited);
    if machine.unified {
        if settings.single_process_oom_kill == Some(true) {
            resources.unified.insert("memory.oom.group".to_owned(), "0".to_owned());
        } else {
            // One that is short of memory ends as a whole, not one process of it.
            resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
        }
        if settings.gate("MemoryQoS", false) {
            let tiered = settings.memory_reservation_policy == "TieredReservation";
            let values = memory_qos(pod, container, machine, settings.memory_throttling_factor, tiered);
            resources.unified.extend(values.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
    }
    resources
}

/// What of the machine bears on memory.
#[derive(Debug, Clone, Copy)]
struct Machine {
    unified: bool,
    swap_accounted: bool,
    /// Bytes.
    memory: i64,
    swap: i64,
    allocatable: i64,
}

fn amount(container: &Container, name: &str, limit: bool) -> i64 {
    let resources = container.resources.as_ref();
    let list = resources.and_then(|r| if limit { r.limits.as_ref() } else { r.requests.as_ref() });
    quantity::amount(list, name).unwrap_or(0)
}

/// Swap that the container may use: none, or, on version 2 and for burstable pods, its request's part of the machine's swap.
fn swap(
    resources: &mut LinuxContainerResources,
    pod: &Pod,
    container: &Container,
    machine: Machine,
    limited: bool,
) {
    if !machine.swap_accounted {
        return;
    }
    let request = amount(container, "memory", false);
    let limit = amount(container, "memory", true);
    let may = limited
        && machine.unified
        && podutil::qos_class(pod) == "Burstable"
        && !eviction::is_critical(pod)
        // One that asks for all that it may have is as good as guaranteed.
        && (request != limit || request == 0);
    let swap = if may {
        (i128::from(request) * i128::from(machine.swap) / i128::from(machine.memory.max(1))) as i64
    } else {
        0
    };
    if machine.unified {
        resources.unified.insert("memory.swap.max".to_owned(), swap.to_string());
    }
    if resources.memory_limit_in_bytes > 0 {
        resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes + swap;
    }
}

fn huge_pages(pod: &Pod, container: &Container) -> Vec<HugepageLimit> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let of_pod = spec(pod).resources.as_ref().and_then(|own| own.limits.as_ref());
    let names = limits.into_iter().chain(of_pod).flatten().map(|(name, _)| name);
    let names: std::collections::BTreeSet<&String> = names.collect();
    let mut found: Vec<HugepageLimit> = names
        .into_iter()
        .filter_map(|name| {
            let limit = quantity::amount(limits, name).or_else(|| quantity::amount(of_pod, name))?;
            let limit = u64::try_from(limit).ok()?;
            Some(HugepageLimit { page_size: cgroups::page_size(name)?, limit })
        })
        .collect();
    // Sizes that are not asked for are not to be had.
    for page_size in ["2MB", "1GB"] {
        if !found.iter().any(|one| one.page_size == page_size) {
            found.push(HugepageLimit { page_size: page_size.to_owned(), limit: 0 });
        }
    }
    found
}

/// Memory protection and throttling on version 2 (KEP-2570).
fn memory_qos(
    pod: &Pod,
    container: &Container,
    machine: Machine,
    factor: f64,
    tiered: bool,
) -> Vec<(&'static str, String)> {
    let (request, limit) = (amount(container, "memory", false), amount(container, "memory", true));
    let mut values = match (tiered && request > 0, podutil::qos_class(pod)) {
        (true, "Guaranteed") => vec![("memory.min", request.to_string())],
        (true, _) => vec![("memory.low", request.to_string())],
        (false, _) => vec![("memory.min", "0".to_owned()), ("memory.low", "0".to_owned())],
    };
    if request != limit {
        let most = if limit > 0 { limit } else { machine.allocatable };
        let high = request as f64 + (most - request) as f64 * factor;
        let high = ((high / PAGE).floor() * PAGE) as i64;
        if high > request {
            values.push(("memory.high", high.to_string()));
        }
    }
    values
}

/// How readily the kernel kills the container when memory runs out: what uses more than it asked for goes first.
fn oom_score(pod: &Pod, container: &Container, memory: i64) -> i64 {
    if spec(pod).priority_class_name.as_deref() == Some("system-node-critical") {
        return -997;
    }
    match podutil::qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            // What the pod asks for beyond its containers' requests is shared among those.
            let own = spec(pod).resources.as_ref().and_then(|own| own.requests.as_ref());
            let regular = &spec(pod).containers;
            let asked: i64 = regular.iter().map(|one| amount(one, "memory", false)).sum();
            let rest = quantity::amount(own, "memory").map_or(0, |own| (own - asked).max(0));
            let part = rest / i64::try_from(regular.len().max(1)).unwrap_or(1);
            let request = amount(container, "memory", false) + part;
            let score = 1000 - (1000i128 * i128::from(request) / i128::from(memory.max(1))) as i64;
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GIB: i64 = 1 << 30;
    const V2: Machine =
        Machine { unified: true, swap_accounted: true, memory: 8 * GIB, swap: 4 * GIB, allocatable: 6 * GIB };

    fn pod(resources: serde_json::Value) -> Pod {
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn swap_is_a_part_of_the_machines() {
        let burstable = pod(json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}));
        let list = json!({"memory": "1Gi", "cpu": "1"});
        let guaranteed = pod(json!({"requests": list, "limits": list}));
        for (pod, limited, machine, wanted) in [
            (&burstable, true, V2, (Some("536870912"), 2 * GIB + GIB / 2)),
            (&burstable, false, V2, (Some("0"), 2 * GIB)),
            (&guaranteed, true, V2, (Some("0"), GIB)),
            (&burstable, true, Machine { unified: false, ..V2 }, (None, 2 * GIB)),
            (&burstable, true, Machine { swap_accounted: false, ..V2 }, (None, 0)),
        ] {
            let container = &spec(pod).containers[0];
            let memory = amount(container, "memory", true);
            let mut resources = LinuxContainerResources {
                memory_limit_in_bytes: memory,
                ..LinuxContainerResources::default()
            };
            swap(&mut resources, pod, container, machine, limited);
            let most = resources.unified.get("memory.swap.max").map(String::as_str);
            assert_eq!((most, resources.memory_swap_limit_in_bytes), wanted);
        }
    }

    #[test]
    fn memory_is_throttled_before_its_limit() {
        let of = |pod: &Pod, tiered| memory_qos(pod, &spec(pod).containers[0], V2, 0.9, tiered);
        let burstable = pod(json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}));
        let high = (GIB as f64 * 1.9 / PAGE).floor() as i64 * 4096;
        assert_eq!(
            of(&burstable, true),
            [("memory.low", GIB.to_string()), ("memory.high", high.to_string())]
        );
        let list = json!({"memory": "1Gi", "cpu": "1"});
        let guaranteed = pod(json!({"requests": list, "limits": list}));
        assert_eq!(of(&guaranteed, true), [("memory.min", GIB.to_string())]);
        assert_eq!(of(&guaranteed, false).len(), 2);
    }

    #[test]
    fn pages_that_are_not_asked_for_are_forbidden() {
        let own = pod(json!({"limits": {"hugepages-2Mi": "4Mi", "cpu": "1"}}));
        let found = huge_pages(&own, &spec(&own).containers[0]);
        let found: Vec<_> = found.iter().map(|one| (one.page_size.as_str(), one.limit)).collect();
        assert_eq!(found, [("2MB", 4 << 20), ("1GB", 0)]);
    }

    #[test]
    fn who_asks_for_more_is_killed_later() {
        let of = |resources| {
            let pod = pod(resources);
            oom_score(&pod, &spec(&pod).containers[0], 8 * GIB)
        };
        assert_eq!(of(json!({})), 1000);
        assert_eq!(of(json!({"requests": {"memory": "4Gi"}})), 500);
        assert_eq!(of(json!({"requests": {"memory": "8Gi"}})), 3);
    }
}
