//! Metrics in Prometheus text format: the kubelet's own, and what metrics-server reads.

use std::collections::BTreeMap;
use std::fmt::Write;

use cri::v1::{ContainerState, PodSandboxState};
use jiff::Timestamp;
use tonic::Status;

use super::volumes::Told;
use super::{Server, stats};
use crate::csi::Usage;
use crate::metrics::{head, labels, line};
use crate::node::VERSION;
use crate::podutil::{self, spec};
use crate::static_pods;

/// A family of gauges whose values are read now.
fn gauges(out: &mut String, name: &str, help: &str, values: impl IntoIterator<Item = (String, f64)>) {
    head(out, name, "gauge", help);
    for (labels, value) in values {
        line(out, name, &labels, value);
    }
}

/// The kubelet's own.
pub(super) async fn own(server: &Server) -> String {
    let mut out = String::new();
    let context = &server.context;
    let pods = server.pods.list();
    let count = |is_static: bool, mirror: bool| {
        let fits = |pod: &&std::sync::Arc<k8s_openapi::api::core::v1::Pod>| {
            static_pods::is_static(pod) == is_static && (!mirror || static_pods::mirrored(pod).is_some())
        };
        pods.iter().filter(fits).count() as f64
    };
    let by_source = || {
        [("", false), ("true", true)]
            .map(|(text, is_static)| (labels(&[("static", text)]), count(is_static, false)))
    };
    let sandboxes = context.cri.sandboxes().await.unwrap_or_default();
    let ready = sandboxes
        .values()
        .filter(|list| list.iter().any(|sandbox| sandbox.state() == PodSandboxState::SandboxReady))
        .count();
    gauges(
        &mut out,
        "kubelet_running_pods",
        "Number of pods that have a running pod sandbox",
        [(String::new(), ready as f64)],
    );
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for container in context.cri.containers(None).await.unwrap_or_default() {
        let state = match container.state() {
            ContainerState::ContainerCreated => "created",
            ContainerState::ContainerRunning => "running",
            ContainerState::ContainerExited => "exited",
            ContainerState::ContainerUnknown => "unknown",
        };
        *states.entry(state).or_default() += 1;
    }
    let states = states.into_iter().map(|(state, n)| (labels(&[("container_state", state)]), n as f64));
    gauges(&mut out, "kubelet_running_containers", "Number of containers currently running", states);
    gauges(
        &mut out,
        "kubelet_desired_pods",
        "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.",
        by_source(),
    );
    gauges(
        &mut out,
        "kubelet_active_pods",
        "The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.",
        by_source(),
    );
    gauges(
        &mut out,
        "kubelet_mirror_pods",
        "The number of mirror pods the kubelet will try to create (one per admitted static pod)",
        [(String::new(), count(true, false))],
    );
    let phases = |deleting: bool| pods.iter().filter(|pod| podutil::deleting(pod) == deleting).count() as f64;
    let working = [("sync", false), ("terminating", true)];
    let working = working.map(|(lifecycle, deleting)| {
        (labels(&[("config", "desired"), ("lifecycle", lifecycle), ("static", "")]), phases(deleting))
    });
    gauges(
        &mut out,
        "kubelet_working_pods",
        "Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is desired, orphaned, or runtime only (also orphaned), and whether the pod is static.",
        working,
    );
    let ephemeral: usize =
        pods.iter().map(|pod| spec(pod).ephemeral_containers.as_ref().map_or(0, Vec::len)).sum();
    gauges(
        &mut out,
        "kubelet_managed_ephemeral_containers",
        "Current number of ephemeral containers in pods managed by this kubelet.",
        [(String::new(), ephemeral as f64)],
    );
    head(&mut out, "kubelet_containers_per_pod_count", "histogram", "The number of containers per pod.");
    let counts: Vec<usize> = pods.iter().map(|pod| spec(pod).containers.len()).collect();
    for bound in [1, 2, 4, 8, 16] {
        let n = counts.iter().filter(|count| **count <= bound).count();
        let _ = writeln!(out, "kubelet_containers_per_pod_count_bucket{{le=\"{bound}\"}} {n}");
    }
    let _ = writeln!(out, "kubelet_containers_per_pod_count_bucket{{le=\"+Inf\"}} {}", counts.len());
    line(&mut out, "kubelet_containers_per_pod_count_sum", "", counts.iter().sum::<usize>() as f64);
    line(&mut out, "kubelet_containers_per_pod_count_count", "", counts.len() as f64);
    let node = labels(&[("node", &context.config.node_name)]);
    gauges(&mut out, "kubelet_node_name", "The node's name. The count is always 1.", [(node, 1.0)]);
    let version = if server.hierarchies.unified() { 2.0 } else { 1.0 };
    gauges(&mut out, "kubelet_cgroup_version", "cgroup version on the hosts.", [(String::new(), version)]);
    let build = labels(&[
        ("git_version", VERSION),
        ("platform", &format!("linux/{}", crate::node::capacity::architecture())),
    ]);
    gauges(
        &mut out,
        "kubernetes_build_info",
        "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
        [(build, 1.0)],
    );
    volumes(server, &Told::ask(server).await, &mut out);
    certificates(server, &mut out);
    process(server, &mut out);
    context.metrics.write(&mut out, |name| !name.starts_with("prober_"));
    out
}

/// Claims' volumes.
fn volumes(server: &Server, told: &Told, out: &mut String) {
    let families = [
        ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume"),
        ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume"),
        ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume"),
        ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume"),
        ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume"),
        ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume"),
    ];
    let mut rows: [Vec<(String, f64)>; 6] = Default::default();
    let mut seen = std::collections::HashSet::new();
    let mut all = 0;
    for pod in server.pods.list() {
        let paths = server.pods.volumes(podutil::uid(&pod));
        all += paths.len();
        for volume in spec(&pod).volumes.iter().flatten() {
            let Some(claim) = podutil::claim(&pod, volume) else { continue };
            let Some(path) = paths.get(&volume.name) else { continue };
            let series =
                labels(&[("namespace", podutil::namespace(&pod)), ("persistentvolumeclaim", &claim)]);
            // One claim may be in several pods.
            if !seen.insert(series.clone()) {
                continue;
            }
            let Some(usage) = told.usage(path) else { continue };
            let Usage { capacity, available, used, inodes, inodes_free, inodes_used } = usage;
            let values = [capacity, available, used, inodes, inodes_free, inodes_used];
            for (row, value) in rows.iter_mut().zip(values) {
                row.push((series.clone(), value as f64));
            }
        }
    }
    for ((name, help), rows) in families.into_iter().zip(rows).filter(|(_, rows)| !rows.is_empty()) {
        gauges(out, name, help, rows);
    }
    let total = [("actual_state_of_world", all), ("desired_state_of_world", all)]
        .map(|(state, n)| (labels(&[("plugin_name", "kubernetes.io/all"), ("state", state)]), n as f64));
    gauges(out, "volume_manager_total_volumes", "Number of volumes in Volume Manager", total);
}

/// How long certificates still hold.
fn certificates(server: &Server, out: &mut String) {
    let Some(until) = server.certificate_ends() else { return };
    let left = until.duration_since(Timestamp::now()).as_secs_f64();
    gauges(
        out,
        "kubelet_certificate_manager_server_ttl_seconds",
        "Gauge of the shortest TTL (time-to-live) of the Kubelet's serving certificate. The value is in seconds until certificate expiry (negative if already expired). If serving certificate is invalid or unused, the value will be +INF.",
        [(String::new(), left)],
    );
}

/// What every Prometheus client tells of its process.
fn process(server: &Server, out: &mut String) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    let field = |index: usize| fields.get(index).copied().unwrap_or(0.0);
    head(out, "process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.");
    line(out, "process_cpu_seconds_total", "", (field(11) + field(12)) / 100.0);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64;
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Resident memory size in bytes.", field(21) * 4096.0),
        ("process_virtual_memory_bytes", "Virtual memory size in bytes.", field(20)),
        ("process_open_fds", "Number of open file descriptors.", open),
        (
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            server.started.as_second() as f64,
        ),
    ] {
        gauges(out, name, help, [(String::new(), value)]);
    }
}

/// Results of probes.
pub(super) fn probes(server: &Server) -> String {
    let mut out = String::new();
    server.context.metrics.write(&mut out, |name| name.starts_with("prober_"));
    out
}

/// What metrics-server reads.
pub(super) async fn resource(server: &Server) -> Result<String, Status> {
    let pods = stats::pods(server).await?;
    let running = server.pods.list();
    let mut out = String::new();
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let (swapped, _) = stats::node_swap();
    for (name, kind, help, value) in [
        (
            "node_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the node in core-seconds",
            seconds(stats::node_cpu()),
        ),
        (
            "node_memory_working_set_bytes",
            "gauge",
            "Current working set of the node in bytes",
            stats::node_memory().0 as f64,
        ),
        (
            "node_swap_usage_bytes",
            "gauge",
            "Current swap usage of the node in bytes. Reported only on non-windows systems",
            swapped as f64,
        ),
    ] {
        head(&mut out, name, kind, help);
        line(&mut out, name, "", value);
    }
    let heads = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the container in core-seconds",
        ),
        ("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes"),
        ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds"),
        (
            "container_swap_usage_bytes",
            "gauge",
            "Current amount of the container swap usage in bytes. Reported only on non-windows systems",
        ),
        ("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds"),
        ("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes"),
        (
            "pod_swap_usage_bytes",
            "gauge",
            "Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
        ),
    ];
    let mut rows: [Vec<(String, f64)>; 7] = Default::default();
    for pod in &pods {
        let metadata = pod.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
        let (Some(metadata), Some(linux)) = (metadata, &pod.linux) else { continue };
        let place = [("namespace", metadata.namespace.as_str()), ("pod", metadata.name.as_str())];
        let of_pod = labels(&place);
        let known = running.iter().find(|known| podutil::uid(known) == metadata.uid);
        let mut swap = None;
        for container in &linux.containers {
            let name = container.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
            let name = name.map_or("", |metadata| metadata.name.as_str());
            let series = labels(&[("container", name), place[0], place[1]]);
            if let Some(cpu) = container.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds) {
                rows[0].push((series.clone(), seconds(cpu.value)));
            }
            if let Some(memory) = container.memory.as_ref().and_then(|memory| memory.working_set_bytes) {
                rows[1].push((series.clone(), memory.value as f64));
            }
            let started = known.and_then(|pod| {
                let status = pod.status.as_ref()?;
                let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
                let state =
                    all.filter(|status| status.name == name).find_map(|status| status.state.as_ref())?;
                state.running.as_ref()?.started_at.as_ref().map(|time| time.0.as_second())
            });
            rows[2].extend(started.map(|started| (series.clone(), started as f64)));
            if let Some(used) = container.swap.as_ref().and_then(|swap| swap.swap_usage_bytes) {
                rows[3].push((series, used.value as f64));
                *swap.get_or_insert(0) += used.value;
            }
        }
        if let Some(cpu) = linux.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds) {
            rows[4].push((of_pod.clone(), seconds(cpu.value)));
        }
        if let Some(memory) = linux.memory.as_ref().and_then(|memory| memory.working_set_bytes) {
            rows[5].push((of_pod.clone(), memory.value as f64));
        }
        rows[6].extend(swap.map(|swap| (of_pod, swap as f64)));
    }
    for ((name, kind, help), rows) in heads.into_iter().zip(rows) {
        head(&mut out, name, kind, help);
        for (labels, value) in rows {
            line(&mut out, name, &labels, value);
        }
    }
    for name in ["scrape_error", "resource_scrape_error"] {
        let help = "1 if there was an error while getting container metrics, 0 otherwise";
        gauges(&mut out, name, help, [(String::new(), 0.0)]);
    }
    Ok(out)
}
