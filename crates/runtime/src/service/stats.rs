//! What containers and pods use, from their cgroups and from the pod's links.

use cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, SwapUsage, UInt64Value,
};

use super::image::disk_usage;
use crate::cgroups::Usage;
use crate::node::{Container, Node, Sandbox, now};

fn value(n: Option<u64>) -> Option<UInt64Value> {
    n.map(|value| UInt64Value { value })
}

fn cpu(usage: &Usage) -> CpuUsage {
    CpuUsage {
        timestamp: now(),
        usage_core_nano_seconds: value(usage.cpu),
        usage_nano_cores: None,
        psi: None,
    }
}

fn memory(usage: &Usage) -> MemoryUsage {
    let available = usage.limit.zip(usage.working_set).map(|(limit, used)| limit.saturating_sub(used));
    MemoryUsage {
        timestamp: now(),
        working_set_bytes: value(usage.working_set),
        available_bytes: value(available),
        usage_bytes: value(usage.memory),
        rss_bytes: value(usage.rss),
        page_faults: value(usage.faults),
        major_page_faults: value(usage.major_faults),
        psi: None,
    }
}

/// What a container uses. Blocks.
pub fn container(node: &Node, container: &Container) -> ContainerStats {
    let record = container.record.borrow().clone();
    let usage = node.cgroups.usage(&record.cgroup);
    let upper = node.config.root.join("containers").join(&record.id).join("upper");
    let (bytes, inodes) = disk_usage(&upper);
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: record.id,
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        }),
        cpu: Some(cpu(&usage)),
        memory: Some(memory(&usage)),
        writable_layer: Some(FilesystemUsage {
            timestamp: now(),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: node.config.root.join("containers").to_string_lossy().into_owned(),
            }),
            used_bytes: value(Some(bytes)),
            inodes_used: value(Some(inodes)),
        }),
        swap: Some(SwapUsage { timestamp: now(), ..SwapUsage::default() }),
        io: None,
    }
}

/// What a pod uses. Blocks.
pub fn sandbox(node: &Node, sandbox: &Sandbox, containers: Vec<ContainerStats>) -> PodSandboxStats {
    let record = sandbox.record.lock().clone();
    let usage = node.cgroups.usage(&record.cgroup);
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: record.id,
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(cpu(&usage)),
            memory: Some(memory(&usage)),
            network: (record.shim > 0).then(|| network(record.shim)),
            process: Some(ProcessUsage { timestamp: now(), process_count: value(usage.processes) }),
            containers,
            io: None,
        }),
        windows: None,
    }
}

/// Counters of the links in the namespace of process `pid`.
fn network(pid: i32) -> NetworkUsage {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let mut interfaces: Vec<NetworkInterfaceUsage> = text
        .lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let n: Vec<u64> = counters.split_whitespace().filter_map(|c| c.parse().ok()).collect();
            let at = |i: usize| value(n.get(i).copied());
            Some(NetworkInterfaceUsage {
                name: name.trim().to_owned(),
                rx_bytes: at(0),
                rx_errors: at(2),
                tx_bytes: at(8),
                tx_errors: at(10),
            })
        })
        .filter(|i| i.name != "lo")
        .collect();
    let default = interfaces.iter().position(|i| i.name == "eth0").map(|at| interfaces.remove(at));
    NetworkUsage { timestamp: now(), default_interface: default, interfaces }
}
