//! What containers and pods use, from their cgroups and from the pod's links.

use accounting::{Pressure, Stall, Usage};
use cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};

use super::image::disk_usage;
use crate::node::{Container, Node, Sandbox, now};

fn value(n: Option<u64>) -> Option<UInt64Value> {
    n.map(|value| UInt64Value { value })
}

fn psi(pressure: Option<Pressure>) -> Option<PsiStats> {
    let data = |stall: Stall| PsiData {
        total: stall.total,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    pressure.map(|p| PsiStats { full: Some(data(p.full)), some: Some(data(p.some)) })
}

fn cpu(node: &Node, group: &str, usage: &Usage) -> CpuUsage {
    let at = now();
    CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(usage.cpu.total),
        usage_nano_cores: value(node.rates.nanocores(group, at, usage.cpu.total)),
        psi: psi(usage.cpu.pressure),
    }
}

fn memory(usage: &Usage) -> MemoryUsage {
    let memory = &usage.memory;
    let available = memory.limit.zip(memory.working_set).map(|(limit, used)| limit.saturating_sub(used));
    MemoryUsage {
        timestamp: now(),
        working_set_bytes: value(memory.working_set),
        available_bytes: value(available),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.faults),
        major_page_faults: value(memory.major_faults),
        psi: psi(memory.pressure),
    }
}

fn io(usage: &Usage) -> Option<IoUsage> {
    usage.io_pressure.map(|p| IoUsage { timestamp: now(), psi: psi(Some(p)) })
}

/// What a container uses. Blocks.
pub fn container(node: &Node, container: &Container) -> ContainerStats {
    let record = container.record.borrow().clone();
    let usage = node.cgroups.usage(&record.cgroup);
    let upper = node.config.root.join("containers").join(&record.id).join("upper");
    let (bytes, inodes) = disk_usage(&upper);
    let swap_left =
        usage.memory.swap_limit.zip(usage.memory.swap).map(|(most, used)| most.saturating_sub(used));
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: record.id,
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        }),
        cpu: Some(cpu(node, &record.cgroup, &usage)),
        memory: Some(memory(&usage)),
        writable_layer: Some(FilesystemUsage {
            timestamp: now(),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: node.config.root.join("containers").to_string_lossy().into_owned(),
            }),
            used_bytes: value(Some(bytes)),
            inodes_used: value(Some(inodes)),
        }),
        swap: Some(SwapUsage {
            timestamp: now(),
            swap_available_bytes: value(swap_left),
            swap_usage_bytes: value(usage.memory.swap),
        }),
        io: io(&usage),
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
            cpu: Some(cpu(node, &record.cgroup, &usage)),
            memory: Some(memory(&usage)),
            network: (record.shim > 0).then(|| network(record.shim)),
            process: Some(ProcessUsage { timestamp: now(), process_count: value(usage.processes) }),
            containers,
            io: io(&usage),
        }),
        windows: None,
    }
}

/// Counters of one link: name, then those of `/proc/net/dev` in its order.
pub struct Link {
    /// In the pod.
    pub name: String,
    /// Received bytes, packets, errors and drops.
    pub received: [u64; 4],
    /// Sent bytes, packets, errors and drops.
    pub sent: [u64; 4],
}

/// The links in the namespace of process `pid`, but for loopback.
pub fn links(pid: i32) -> Vec<Link> {
    parse_links(&std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

fn parse_links(text: &str) -> Vec<Link> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let n: Vec<u64> = counters.split_whitespace().map_while(|c| c.parse().ok()).collect();
            let four = |from: usize| n.get(from..from + 4)?.try_into().ok();
            Some(Link { name: name.trim().to_owned(), received: four(0)?, sent: four(8)? })
        })
        .filter(|link| link.name != "lo")
        .collect()
}

fn network(pid: i32) -> NetworkUsage {
    let mut interfaces: Vec<NetworkInterfaceUsage> = links(pid)
        .into_iter()
        .map(|link| NetworkInterfaceUsage {
            name: link.name,
            rx_bytes: value(Some(link.received[0])),
            rx_errors: value(Some(link.received[2])),
            tx_bytes: value(Some(link.sent[0])),
            tx_errors: value(Some(link.sent[2])),
        })
        .collect();
    let default = interfaces.iter().position(|i| i.name == "eth0").map(|at| interfaces.remove(at));
    NetworkUsage { timestamp: now(), default_interface: default, interfaces }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n\
                    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let found = parse_links(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].received, found[0].sent), ([10, 2, 3, 4], [50, 6, 7, 8]));
    }
}
