//! The metrics of CRI: the families that dashboards know from cAdvisor, as far as this machine counts them.
//!
//! CRI's values are whole numbers, so times are whole seconds here; the statistics carry nanoseconds.

use cri::v1::{ContainerMetrics, Metric, MetricDescriptor, MetricType, PodSandboxMetrics, UInt64Value};

use super::stats;
use crate::node::records::Phase;
use crate::node::{Container, Node, Sandbox, now};
use accounting::Usage;

/// Label of every metric: the container's or sandbox's name.
const ID: &str = "id";
const SECOND: u64 = 1_000_000_000;

struct Family {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    gauge: bool,
    read: fn(&Usage) -> Vec<(Vec<String>, u64)>,
}

macro_rules! families {
    ($($kind:ident $name:literal $help:literal [$($label:literal),*] $read:expr;)*) => {
        const FAMILIES: &[Family] = &[$(Family {
            name: $name, help: $help, labels: &[$($label),*], gauge: stringify!($kind).len() == 5, read: $read,
        }),*];
    };
}

fn one(value: Option<u64>) -> Vec<(Vec<String>, u64)> {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn labelled(values: &[(&[&str], Option<u64>)]) -> Vec<(Vec<String>, u64)> {
    let all = values.iter().filter_map(|(labels, value)| {
        Some((labels.iter().map(|label| (*label).to_owned()).collect(), (*value)?))
    });
    all.collect()
}

fn devices(usage: &Usage, read: fn(&accounting::DeviceIo) -> u64) -> Vec<(Vec<String>, u64)> {
    usage.io.iter().map(|io| (vec![io.device.clone()], read(io))).collect()
}

fn seconds(nanos: Option<u64>) -> Option<u64> {
    nanos.map(|nanos| nanos / SECOND)
}

families! {
    counter "container_cpu_usage_seconds_total" "Cumulative cpu time consumed in seconds." ["cpu"]
        |u| labelled(&[(&["total"], seconds(u.cpu.total))]);
    counter "container_cpu_user_seconds_total" "Cumulative user cpu time consumed in seconds." []
        |u| one(seconds(u.cpu.user));
    counter "container_cpu_system_seconds_total" "Cumulative system cpu time consumed in seconds." []
        |u| one(seconds(u.cpu.system));
    counter "container_cpu_cfs_periods_total" "Number of elapsed enforcement period intervals." []
        |u| one(u.cpu.periods);
    counter "container_cpu_cfs_throttled_periods_total" "Number of throttled period intervals." []
        |u| one(u.cpu.throttled_periods);
    counter "container_cpu_cfs_throttled_seconds_total" "Total time duration the container has been throttled." []
        |u| one(seconds(u.cpu.throttled));
    gauge "container_memory_cache" "Number of bytes of page cache memory." [] |u| one(u.memory.cache);
    gauge "container_memory_rss" "Size of RSS in bytes." [] |u| one(u.memory.rss);
    gauge "container_memory_mapped_file" "Size of memory mapped files in bytes." [] |u| one(u.memory.mapped);
    gauge "container_memory_kernel_usage" "Size of kernel memory allocated in bytes." [] |u| one(u.memory.kernel);
    gauge "container_memory_swap" "Container swap usage in bytes." [] |u| one(u.memory.swap);
    counter "container_memory_failcnt" "Number of memory usage hits limits" [] |u| one(u.memory.limit_hits);
    gauge "container_memory_usage_bytes" "Current memory usage in bytes, including all memory regardless of when it was accessed" []
        |u| one(u.memory.usage);
    gauge "container_memory_max_usage_bytes" "Maximum memory usage recorded in bytes" [] |u| one(u.memory.peak);
    gauge "container_memory_working_set_bytes" "Current working set in bytes." [] |u| one(u.memory.working_set);
    gauge "container_memory_total_active_file_bytes" "Current total active file in bytes." []
        |u| one(u.memory.active_file);
    gauge "container_memory_total_inactive_file_bytes" "Current total inactive file in bytes." []
        |u| one(u.memory.inactive_file);
    counter "container_memory_failures_total" "Cumulative count of memory allocation failures." ["failure_type", "scope"]
        |u| labelled(&[(&["pgfault", "hierarchy"], u.memory.faults), (&["pgmajfault", "hierarchy"], u.memory.major_faults)]);
    counter "container_oom_events_total" "Count of out of memory events observed for the container" []
        |u| one(u.memory.oom_kills);
    counter "container_fs_reads_bytes_total" "Cumulative count of bytes read" ["device"] |u| devices(u, |io| io.read_bytes);
    counter "container_fs_writes_bytes_total" "Cumulative count of bytes written" ["device"]
        |u| devices(u, |io| io.written_bytes);
    counter "container_fs_reads_total" "Cumulative count of reads completed" ["device"] |u| devices(u, |io| io.reads);
    counter "container_fs_writes_total" "Cumulative count of writes completed" ["device"] |u| devices(u, |io| io.writes);
    gauge "container_threads" "Number of threads running inside the container" [] |u| one(u.processes);
    gauge "container_threads_max" "Maximum number of threads allowed inside the container, infinity if value is zero" []
        |u| one(Some(u.processes_limit.unwrap_or(0)));
    gauge "container_spec_cpu_shares" "CPU share of the container." [] |u| one(u.cpu.shares);
    gauge "container_spec_cpu_period" "CPU period of the container." [] |u| one(u.cpu.period);
    gauge "container_spec_cpu_quota" "CPU quota of the container." [] |u| one(u.cpu.quota);
    gauge "container_spec_memory_limit_bytes" "Memory limit for the container." []
        |u| one(Some(u.memory.limit.unwrap_or(0)));
    counter "container_pressure_cpu_stalled_seconds_total" "Total time duration no tasks in the container could make progress due to CPU congestion." []
        |u| one(seconds(u.cpu.pressure.map(|p| p.full.total)));
    counter "container_pressure_cpu_waiting_seconds_total" "Total time duration tasks in the container have waited due to CPU congestion." []
        |u| one(seconds(u.cpu.pressure.map(|p| p.some.total)));
    counter "container_pressure_memory_stalled_seconds_total" "Total time duration no tasks in the container could make progress due to memory congestion." []
        |u| one(seconds(u.memory.pressure.map(|p| p.full.total)));
    counter "container_pressure_memory_waiting_seconds_total" "Total time duration tasks in the container have waited due to memory congestion." []
        |u| one(seconds(u.memory.pressure.map(|p| p.some.total)));
    counter "container_pressure_io_stalled_seconds_total" "Total time duration no tasks in the container could make progress due to IO congestion." []
        |u| one(seconds(u.io_pressure.map(|p| p.full.total)));
    counter "container_pressure_io_waiting_seconds_total" "Total time duration tasks in the container have waited due to IO congestion." []
        |u| one(seconds(u.io_pressure.map(|p| p.some.total)));
}

/// Of the pod's links, by `interface`: name, help, and which counter.
const LINKS: &[(&str, &str, fn(&stats::Link) -> u64)] = &[
    ("container_network_receive_bytes_total", "Cumulative count of bytes received", |l| l.received[0]),
    ("container_network_receive_packets_total", "Cumulative count of packets received", |l| l.received[1]),
    (
        "container_network_receive_errors_total",
        "Cumulative count of errors encountered while receiving",
        |l| l.received[2],
    ),
    (
        "container_network_receive_packets_dropped_total",
        "Cumulative count of packets dropped while receiving",
        |l| l.received[3],
    ),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |l| l.sent[0]),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", |l| l.sent[1]),
    (
        "container_network_transmit_errors_total",
        "Cumulative count of errors encountered while transmitting",
        |l| l.sent[2],
    ),
    (
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting",
        |l| l.sent[3],
    ),
];

const START: (&str, &str) =
    ("container_start_time_seconds", "Start time of the container since unix epoch in seconds.");
const DISK: [(&str, &str); 2] = [
    ("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem."),
    ("container_fs_inodes_used", "Number of inodes that are consumed by the container on this filesystem."),
];

/// What [`pod`] gives, each once.
pub fn descriptors() -> Vec<MetricDescriptor> {
    let make = |name: &str, help: &str, labels: &[&str]| MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: std::iter::once(ID).chain(labels.iter().copied()).map(str::to_owned).collect(),
    };
    let usage = FAMILIES.iter().map(|f| make(f.name, f.help, f.labels));
    let links = LINKS.iter().map(|(name, help, _)| make(name, help, &["interface"]));
    let others = DISK.iter().chain([&START]).map(|(name, help)| make(name, help, &[]));
    usage.chain(links).chain(others).collect()
}

fn metric(name: &str, gauge: bool, id: &str, labels: Vec<String>, value: u64) -> Metric {
    Metric {
        name: name.to_owned(),
        timestamp: now(),
        metric_type: if gauge { MetricType::Gauge } else { MetricType::Counter } as i32,
        label_values: std::iter::once(id.to_owned()).chain(labels).collect(),
        value: Some(UInt64Value { value }),
    }
}

fn usage(id: &str, usage: &Usage) -> Vec<Metric> {
    let all = FAMILIES.iter().flat_map(|family| {
        let values = (family.read)(usage).into_iter();
        values.map(|(labels, value)| metric(family.name, family.gauge, id, labels, value))
    });
    all.collect()
}

fn container(node: &Node, container: &Container) -> ContainerMetrics {
    let record = container.record.borrow().clone();
    let mut metrics = usage(&record.id, &node.cgroups.usage(&record.cgroup));
    let upper = node.config.root.join("containers").join(&record.id).join("upper");
    let (bytes, inodes) = super::image::disk_usage(&upper);
    let started = u64::try_from(record.started_at).unwrap_or(0) / SECOND;
    for ((name, _), value) in DISK.iter().chain([&START]).zip([bytes, inodes, started]) {
        metrics.push(metric(name, true, &record.id, Vec::new(), value));
    }
    ContainerMetrics { container_id: record.id, metrics }
}

/// The metrics of a pod and its running containers. Blocks.
pub fn pod(node: &Node, sandbox: &Sandbox) -> PodSandboxMetrics {
    let record = sandbox.record.lock().clone();
    let mut metrics = usage(&record.id, &node.cgroups.usage(&record.cgroup));
    if record.shim > 0 {
        for link in stats::links(record.shim) {
            for (name, _, read) in LINKS {
                metrics.push(metric(name, false, &record.id, vec![link.name.clone()], read(&link)));
            }
        }
    }
    let started = u64::try_from(record.created_at).unwrap_or(0) / SECOND;
    metrics.push(metric(START.0, true, &record.id, Vec::new(), started));
    let containers = node.containers_of(&record.id);
    let running = containers.iter().filter(|one| one.phase() == Phase::Running);
    PodSandboxMetrics {
        container_metrics: running.map(|one| container(node, one)).collect(),
        pod_sandbox_id: record.id,
        metrics,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_described_with_its_labels() {
        let all = descriptors();
        let mut names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        let some = Usage {
            io: vec![accounting::DeviceIo { device: "8:0".into(), ..Default::default() }],
            memory: accounting::Memory { faults: Some(1), ..Default::default() },
            cpu: accounting::Cpu { total: Some(2_500_000_000), ..Default::default() },
            ..Usage::default()
        };
        for metric in usage("c", &some) {
            let described = all.iter().find(|one| one.name == metric.name).expect("a descriptor");
            assert_eq!(described.label_keys.len(), metric.label_values.len(), "{}", metric.name);
            if metric.name == "container_cpu_usage_seconds_total" {
                assert_eq!((metric.value.unwrap().value, metric.label_values[1].as_str()), (2, "total"));
            }
        }
    }
}
