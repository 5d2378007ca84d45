//! `/metrics/cadvisor`: the `container_*` and `machine_*` families that dashboards are made of, read from the pods' cgroups, with the
//! network's from the runtime.

use std::collections::BTreeMap;
use std::path::Path;

use accounting::{DeviceIo, Usage};
use cri::v1::{ContainerState, ListPodSandboxMetricsRequest};
use jiff::Timestamp;
use tonic::Status;

use super::Server;
use crate::metrics::{head, labels, line};
use crate::node::capacity;
use crate::podutil;
use crate::runtime::CONTAINER_NAME;

/// Families with their samples, in order of their names.
#[derive(Default)]
struct Samples(BTreeMap<&'static str, (&'static str, &'static str, Vec<(String, f64)>)>);

impl Samples {
    fn add(
        &mut self,
        kind: &'static str,
        name: &'static str,
        help: &'static str,
        labels: String,
        value: f64,
    ) {
        self.0.entry(name).or_insert((kind, help, Vec::new())).2.push((labels, value));
    }

    fn write(&self) -> String {
        let mut out = String::new();
        for (name, (kind, help, samples)) in &self.0 {
            head(&mut out, name, kind, help);
            for (labels, value) in samples {
                line(&mut out, name, labels, *value);
            }
        }
        out
    }
}

/// What a sample is about, as labels.
#[derive(Default, Clone)]
struct Subject {
    container: String,
    id: String,
    image: String,
    name: String,
    namespace: String,
    pod: String,
}

impl Subject {
    fn labels(&self, more: &[(&str, &str)]) -> String {
        let mut pairs = vec![
            ("container", self.container.as_str()),
            ("id", &self.id),
            ("image", &self.image),
            ("name", &self.name),
            ("namespace", &self.namespace),
            ("pod", &self.pod),
        ];
        pairs.extend_from_slice(more);
        pairs.sort_unstable();
        labels(&pairs)
    }
}

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// `8:0` as `/dev/sda`.
fn device(number: &str) -> String {
    let link = std::fs::read_link(format!("/sys/dev/block/{number}")).ok();
    let name =
        link.as_ref().and_then(|link| link.file_name()).map(|name| name.to_string_lossy().into_owned());
    name.map_or_else(|| number.to_owned(), |name| format!("/dev/{name}"))
}

fn usage(samples: &mut Samples, subject: &Subject, usage: &Usage) {
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let mut add = |kind, name, help, more: &[(&str, &str)], value: Option<f64>| {
        if let Some(value) = value {
            samples.add(kind, name, help, subject.labels(more), value);
        }
    };
    let (cpu, memory) = (&usage.cpu, &usage.memory);
    let time = |nanos: Option<u64>| nanos.map(seconds);
    let plain = |value: Option<u64>| value.map(|value| value as f64);
    add(
        COUNTER,
        "container_cpu_usage_seconds_total",
        "Cumulative cpu time consumed in seconds.",
        &[("cpu", "total")],
        time(cpu.total),
    );
    add(
        COUNTER,
        "container_cpu_user_seconds_total",
        "Cumulative user cpu time consumed in seconds.",
        &[],
        time(cpu.user),
    );
    add(
        COUNTER,
        "container_cpu_system_seconds_total",
        "Cumulative system cpu time consumed in seconds.",
        &[],
        time(cpu.system),
    );
    if cpu.quota.is_some() {
        add(
            COUNTER,
            "container_cpu_cfs_periods_total",
            "Number of elapsed enforcement period intervals.",
            &[],
            plain(cpu.periods),
        );
        add(
            COUNTER,
            "container_cpu_cfs_throttled_periods_total",
            "Number of throttled period intervals.",
            &[],
            plain(cpu.throttled_periods),
        );
        add(
            COUNTER,
            "container_cpu_cfs_throttled_seconds_total",
            "Total time duration the container has been throttled.",
            &[],
            time(cpu.throttled),
        );
        add(GAUGE, "container_spec_cpu_quota", "CPU quota of the container.", &[], plain(cpu.quota));
    }
    add(GAUGE, "container_spec_cpu_period", "CPU period of the container.", &[], plain(cpu.period));
    add(GAUGE, "container_spec_cpu_shares", "CPU share of the container.", &[], plain(cpu.shares));
    add(
        GAUGE,
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        &[],
        plain(memory.usage),
    );
    add(
        GAUGE,
        "container_memory_max_usage_bytes",
        "Maximum memory usage recorded in bytes",
        &[],
        plain(memory.peak),
    );
    add(
        GAUGE,
        "container_memory_working_set_bytes",
        "Current working set in bytes.",
        &[],
        plain(memory.working_set),
    );
    add(GAUGE, "container_memory_rss", "Size of RSS in bytes.", &[], plain(memory.rss));
    add(GAUGE, "container_memory_cache", "Number of bytes of page cache memory.", &[], plain(memory.cache));
    add(
        GAUGE,
        "container_memory_mapped_file",
        "Size of memory mapped files in bytes.",
        &[],
        plain(memory.mapped),
    );
    add(
        GAUGE,
        "container_memory_kernel_usage",
        "Size of kernel memory allocated in bytes.",
        &[],
        plain(memory.kernel),
    );
    add(GAUGE, "container_memory_swap", "Container swap usage in bytes.", &[], plain(memory.swap));
    add(
        GAUGE,
        "container_memory_total_active_file_bytes",
        "Current total active file in bytes.",
        &[],
        plain(memory.active_file),
    );
    add(
        GAUGE,
        "container_memory_total_inactive_file_bytes",
        "Current total inactive file in bytes.",
        &[],
        plain(memory.inactive_file),
    );
    add(
        COUNTER,
        "container_memory_failcnt",
        "Number of memory usage hits limits",
        &[],
        plain(memory.limit_hits),
    );
    for (kind, value) in [("pgfault", memory.faults), ("pgmajfault", memory.major_faults)] {
        let more = [("failure_type", kind), ("scope", "hierarchy")];
        add(
            COUNTER,
            "container_memory_failures_total",
            "Cumulative count of memory allocation failures.",
            &more,
            plain(value),
        );
    }
    add(
        COUNTER,
        "container_oom_events_total",
        "Count of out of memory events observed for the container",
        &[],
        plain(memory.oom_kills),
    );
    add(
        GAUGE,
        "container_spec_memory_limit_bytes",
        "Memory limit for the container.",
        &[],
        Some(memory.limit.unwrap_or(0) as f64),
    );
    add(
        GAUGE,
        "container_spec_memory_swap_limit_bytes",
        "Memory swap limit for the container.",
        &[],
        Some(memory.swap_limit.unwrap_or(0) as f64),
    );
    add(
        GAUGE,
        "container_threads",
        "Number of threads running inside the container",
        &[],
        plain(usage.processes),
    );
    add(
        GAUGE,
        "container_threads_max",
        "Maximum number of threads allowed inside the container, infinity if value is zero",
        &[],
        Some(usage.processes_limit.unwrap_or(0) as f64),
    );
    for io in &usage.io {
        let DeviceIo { read_bytes, written_bytes, reads, writes, .. } = io;
        let name = device(&io.device);
        let more = [("device", name.as_str())];
        add(
            COUNTER,
            "container_fs_reads_bytes_total",
            "Cumulative count of bytes read",
            &more,
            Some(*read_bytes as f64),
        );
        add(
            COUNTER,
            "container_fs_writes_bytes_total",
            "Cumulative count of bytes written",
            &more,
            Some(*written_bytes as f64),
        );
        add(
            COUNTER,
            "container_fs_reads_total",
            "Cumulative count of reads completed",
            &more,
            Some(*reads as f64),
        );
        add(
            COUNTER,
            "container_fs_writes_total",
            "Cumulative count of writes completed",
            &more,
            Some(*writes as f64),
        );
    }
    for (pressure, stalled, waiting, stalled_help, waiting_help) in [
        (
            cpu.pressure,
            "container_pressure_cpu_stalled_seconds_total",
            "container_pressure_cpu_waiting_seconds_total",
            "Total time duration no tasks in the container could make progress due to CPU congestion.",
            "Total time duration tasks in the container have waited due to CPU congestion.",
        ),
        (
            memory.pressure,
            "container_pressure_memory_stalled_seconds_total",
            "container_pressure_memory_waiting_seconds_total",
            "Total time duration no tasks in the container could make progress due to memory congestion.",
            "Total time duration tasks in the container have waited due to memory congestion.",
        ),
        (
            usage.io_pressure,
            "container_pressure_io_stalled_seconds_total",
            "container_pressure_io_waiting_seconds_total",
            "Total time duration no tasks in the container could make progress due to IO congestion.",
            "Total time duration tasks in the container have waited due to IO congestion.",
        ),
    ] {
        add(COUNTER, stalled, stalled_help, &[], pressure.map(|p| seconds(p.full.total)));
        add(COUNTER, waiting, waiting_help, &[], pressure.map(|p| seconds(p.some.total)));
    }
    add(
        GAUGE,
        "container_last_seen",
        "Last time a container was seen by the exporter",
        &[],
        Some(Timestamp::now().as_second() as f64),
    );
}

/// Processes, their open files and sockets.
fn processes(samples: &mut Samples, subject: &Subject, list: &[i32]) {
    let (mut files, mut sockets) = (0, 0);
    for pid in list {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            files += 1;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            sockets += usize::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    for (name, help, value) in [
        ("container_processes", "Number of processes running inside the container.", list.len()),
        ("container_file_descriptors", "Number of open file descriptors for the container.", files),
        ("container_sockets", "Number of open sockets for the container.", sockets),
    ] {
        samples.add(GAUGE, name, help, subject.labels(&[]), value as f64);
    }
}

fn disk(samples: &mut Samples, subject: &Subject, root: &str, used: f64) {
    let Some((size, _, inodes, free)) = capacity::file_system(Path::new(root)) else { return };
    let name = podutil::device_of(Path::new(root)).map(|number| device(&number)).unwrap_or_default();
    for (name, help, value, label) in [
        (
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
            used,
            &name,
        ),
        (
            "container_fs_limit_bytes",
            "Number of bytes that can be consumed by the container on this filesystem.",
            size as f64,
            &name,
        ),
        ("container_fs_inodes_total", "Number of Inodes", inodes as f64, &name),
        ("container_fs_inodes_free", "Number of available Inodes", free as f64, &name),
    ] {
        samples.add(GAUGE, name, help, subject.labels(&[("device", label)]), value);
    }
}

/// Everything, as one text.
pub(super) async fn metrics(server: &Server) -> Result<String, Status> {
    let context = &server.context;
    let pods = server.pods.list();
    let stats = super::stats::pods(server).await?;
    let containers = context.cri.containers(None).await?;
    // A runtime that has no metrics leaves the network out.
    let links = context.cri.runtime().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await;
    let links = links.map(|answer| answer.into_inner().pod_metrics).unwrap_or_default();
    let mut samples = Samples::default();
    let text = tokio::task::block_in_place(|| {
        if let Some(cgroups) = &context.cgroups {
            let top = cgroups.top();
            for path in [top.clone(), format!("{top}/burstable"), format!("{top}/besteffort")] {
                let subject = Subject { id: path.clone(), ..Subject::default() };
                usage(&mut samples, &subject, &server.hierarchies.usage(&path));
            }
        }
        for stats in &stats {
            let attributes = stats.attributes.clone().unwrap_or_default();
            let metadata = attributes.metadata.unwrap_or_default();
            let Some(pod) = pods.iter().find(|pod| podutil::uid(pod) == metadata.uid) else { continue };
            let Some(path) = context.cgroups.as_ref().map(|cgroups| cgroups.parent(pod)) else { continue };
            let of_pod = Subject {
                id: path.clone(),
                namespace: metadata.namespace.clone(),
                pod: metadata.name.clone(),
                ..Subject::default()
            };
            usage(&mut samples, &of_pod, &server.hierarchies.usage(&path));
            network(&mut samples, &of_pod, links.iter().find(|one| one.pod_sandbox_id == attributes.id));
            for one in stats.linux.iter().flat_map(|linux| &linux.containers) {
                let id = one.attributes.as_ref().map(|a| a.id.clone()).unwrap_or_default();
                let Some(container) = containers.iter().find(|container| container.id == id) else {
                    continue;
                };
                if container.state() != ContainerState::ContainerRunning {
                    continue;
                }
                let subject = Subject {
                    container: container.labels.get(CONTAINER_NAME).cloned().unwrap_or_default(),
                    id: format!("{path}/{id}"),
                    image: container.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
                    name: id,
                    ..of_pod.clone()
                };
                usage(&mut samples, &subject, &server.hierarchies.usage(&subject.id));
                processes(&mut samples, &subject, &server.hierarchies.processes(&subject.id));
                let started = container.created_at as f64 / 1e9;
                let help = "Start time of the container since unix epoch in seconds.";
                samples.add(
                    GAUGE,
                    "container_start_time_seconds",
                    help,
                    subject.labels(&[]),
                    started.floor(),
                );
                if let Some(layer) = &one.writable_layer
                    && let Some(root) = &layer.fs_id
                {
                    let used = layer.used_bytes.map_or(0.0, |used| used.value as f64);
                    disk(&mut samples, &subject, &root.mountpoint, used);
                }
            }
        }
        machine(&mut samples);
        samples.write()
    });
    Ok(text)
}

/// The pod's links, which the runtime counts under the same names.
fn network(samples: &mut Samples, subject: &Subject, metrics: Option<&cri::v1::PodSandboxMetrics>) {
    const NAMES: [(&str, &str); 8] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received"),
        ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving"),
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
        ),
        ("container_network_receive_packets_total", "Cumulative count of packets received"),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted"),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
        ),
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
        ),
        ("container_network_transmit_packets_total", "Cumulative count of packets transmitted"),
    ];
    for metric in metrics.into_iter().flat_map(|metrics| &metrics.metrics) {
        let Some((name, help)) = NAMES.iter().find(|(name, _)| *name == metric.name) else { continue };
        let interface = metric.label_values.last().map_or("", String::as_str);
        let value = metric.value.map_or(0.0, |value| value.value as f64);
        samples.add(COUNTER, name, help, subject.labels(&[("interface", interface)]), value);
    }
}

fn machine(samples: &mut Samples) {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let (machine_id, boot_id, system) = (
        read("/etc/machine-id"),
        read("/proc/sys/kernel/random/boot_id"),
        read("/sys/class/dmi/id/product_uuid"),
    );
    let series = labels(&[("boot_id", &boot_id), ("machine_id", &machine_id), ("system_uuid", &system)]);
    for (name, help, value) in [
        ("machine_cpu_cores", "Number of logical CPU cores.", cores as f64),
        ("machine_memory_bytes", "Amount of memory installed on the machine.", capacity::memory() as f64),
        (
            "machine_swap_bytes",
            "Amount of swap memory available on the machine.",
            capacity::meminfo(&table, "SwapTotal") as f64,
        ),
    ] {
        samples.add(GAUGE, name, help, series.clone(), value);
    }
    let kernel = read("/proc/sys/kernel/osrelease");
    let release = read("/etc/os-release");
    let system_name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let system_name = system_name.unwrap_or("Linux").trim_matches('"').to_owned();
    let info = labels(&[
        ("cadvisorRevision", ""),
        ("cadvisorVersion", ""),
        ("dockerVersion", ""),
        ("kernelVersion", &kernel),
        ("osVersion", &system_name),
    ]);
    samples.add(GAUGE, "cadvisor_version_info", "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.", info, 1.0);
    samples.add(
        GAUGE,
        "container_scrape_error",
        "1 if there was an error while getting container metrics, 0 otherwise",
        String::new(),
        0.0,
    );
}
