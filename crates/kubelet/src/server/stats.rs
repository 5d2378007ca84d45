//! `/stats/summary`: use of CPU, memory and disk by the node and its pods.

use cri::v1::{ContainerStats, ListPodSandboxStatsRequest, PodSandboxStats, UInt64Value};
use jiff::Timestamp;
use serde_json::{Value, json};
use tonic::Status;

use super::Server;
use crate::node::capacity;
use crate::podutil;

fn number(value: Option<&UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

pub(super) async fn pods(server: &Server) -> Result<Vec<PodSandboxStats>, Status> {
    let request = ListPodSandboxStatsRequest { filter: None };
    Ok(server.context.cri.runtime().list_pod_sandbox_stats(request).await?.into_inner().stats)
}

/// CPU seconds of the whole machine, in nanoseconds.
pub(super) fn node_cpu() -> u64 {
    let table = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = table.lines().next().unwrap_or_default();
    // user nice system idle iowait irq softirq steal, in hundredths of a second.
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let busy: u64 = ticks
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != 3 && *index != 4 && *index < 8)
        .map(|(_, n)| n)
        .sum();
    busy * 10_000_000
}

/// Memory in use and available, in bytes.
pub(super) fn node_memory() -> (u64, u64) {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = capacity::meminfo(&table, "MemAvailable");
    (capacity::memory().saturating_sub(available), available)
}

fn container(stats: &ContainerStats) -> Value {
    let name = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
    let (cpu, memory) = (stats.cpu.as_ref(), stats.memory.as_ref());
    let now = Timestamp::now();
    json!({
        "name": name.map(|metadata| metadata.name.as_str()),
        "startTime": null,
        "cpu": {
            "time": now,
            "usageNanoCores": number(cpu.and_then(|cpu| cpu.usage_nano_cores.as_ref())),
            "usageCoreNanoSeconds": number(cpu.and_then(|cpu| cpu.usage_core_nano_seconds.as_ref())),
        },
        "memory": {
            "time": now,
            "workingSetBytes": number(memory.and_then(|memory| memory.working_set_bytes.as_ref())),
            "usageBytes": number(memory.and_then(|memory| memory.usage_bytes.as_ref())),
            "rssBytes": number(memory.and_then(|memory| memory.rss_bytes.as_ref())),
            "availableBytes": number(memory.and_then(|memory| memory.available_bytes.as_ref())),
        },
        "rootfs": {
            "time": now,
            "usedBytes": number(stats.writable_layer.as_ref().and_then(|layer| layer.used_bytes.as_ref())),
            "inodesUsed": number(stats.writable_layer.as_ref().and_then(|layer| layer.inodes_used.as_ref())),
        },
    })
}

pub(super) async fn summary(server: &Server) -> Result<Value, Status> {
    let now = Timestamp::now();
    let (used, available) = node_memory();
    let disk = capacity::file_system(&server.context.config.root_dir);
    let known = server.pods.list();
    let mut pods_out = Vec::new();
    for stats in pods(server).await? {
        let Some(metadata) = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.clone())
        else {
            continue;
        };
        let linux = stats.linux.unwrap_or_default();
        let (cpu, memory) = (linux.cpu.as_ref(), linux.memory.as_ref());
        let network = linux.network.as_ref().and_then(|network| network.default_interface.as_ref());
        let start = known
            .iter()
            .find(|pod| podutil::uid(pod) == metadata.uid)
            .and_then(|pod| pod.status.as_ref()?.start_time.clone());
        pods_out.push(json!({
            "podRef": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
            "startTime": start,
            "containers": linux.containers.iter().map(container).collect::<Vec<_>>(),
            "cpu": {
                "time": now,
                "usageNanoCores": number(cpu.and_then(|cpu| cpu.usage_nano_cores.as_ref())),
                "usageCoreNanoSeconds": number(cpu.and_then(|cpu| cpu.usage_core_nano_seconds.as_ref())),
            },
            "memory": {
                "time": now,
                "workingSetBytes": number(memory.and_then(|memory| memory.working_set_bytes.as_ref())),
                "usageBytes": number(memory.and_then(|memory| memory.usage_bytes.as_ref())),
            },
            "network": network.map(|network| json!({
                "time": now,
                "name": network.name,
                "rxBytes": number(network.rx_bytes.as_ref()),
                "txBytes": number(network.tx_bytes.as_ref()),
            })),
        }));
    }
    let fs = disk.map(|(size, free, inodes, free_inodes)| {
        json!({"time": now, "capacityBytes": size, "availableBytes": free, "usedBytes": size - free.min(size),
            "inodes": inodes, "inodesFree": free_inodes, "inodesUsed": inodes - free_inodes.min(inodes)})
    });
    Ok(json!({
        "node": {
            "nodeName": server.context.config.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": node_cpu()},
            "memory": {"time": now, "availableBytes": available, "usageBytes": used, "workingSetBytes": used},
            "fs": fs,
        },
        "pods": pods_out,
    }))
}
