//! Metrics in Prometheus text format.

use std::fmt::Write;

use tonic::Status;

use super::{Server, stats};

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// The kubelet's own.
pub(super) async fn own(server: &Server) -> String {
    let mut out = String::new();
    let pods = server.pods.list();
    let phase = |wanted: &str| {
        pods.iter()
            .filter(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(wanted))
            .count()
    };
    header(&mut out, "kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    let _ = writeln!(out, "kubelet_running_pods {}", phase("Running"));
    header(&mut out, "kubelet_active_pods", "gauge", "Number of pods the kubelet manages");
    let _ = writeln!(out, "kubelet_active_pods {}", pods.len());
    header(&mut out, "kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    let _ = writeln!(out, "kubelet_node_name{{node=\"{}\"}} 1", server.context.config.node_name);
    out
}

/// What metrics-server reads.
pub(super) async fn resource(server: &Server) -> Result<String, Status> {
    let pods = stats::pods(server).await?;
    let mut out = String::new();
    header(
        &mut out,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    let _ = writeln!(out, "node_cpu_usage_seconds_total {}", stats::node_cpu() as f64 / 1e9);
    header(&mut out, "node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    let _ = writeln!(out, "node_memory_working_set_bytes {}", stats::node_memory().0);
    let mut rows: [Vec<String>; 4] = Default::default();
    for pod in &pods {
        let Some(metadata) = pod.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref())
        else {
            continue;
        };
        let place = format!("namespace=\"{}\",pod=\"{}\"", metadata.namespace, metadata.name);
        let Some(linux) = &pod.linux else { continue };
        if let Some(cpu) = linux.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds) {
            rows[2].push(format!("pod_cpu_usage_seconds_total{{{place}}} {}", cpu.value as f64 / 1e9));
        }
        if let Some(memory) = linux.memory.as_ref().and_then(|memory| memory.working_set_bytes) {
            rows[3].push(format!("pod_memory_working_set_bytes{{{place}}} {}", memory.value));
        }
        for container in &linux.containers {
            let name = container.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
            let place =
                format!("container=\"{}\",{place}", name.map_or("", |metadata| metadata.name.as_str()));
            if let Some(cpu) = container.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds) {
                rows[0]
                    .push(format!("container_cpu_usage_seconds_total{{{place}}} {}", cpu.value as f64 / 1e9));
            }
            if let Some(memory) = container.memory.as_ref().and_then(|memory| memory.working_set_bytes) {
                rows[1].push(format!("container_memory_working_set_bytes{{{place}}} {}", memory.value));
            }
        }
    }
    let heads = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the container in core-seconds",
        ),
        ("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes"),
        ("pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds"),
        ("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes"),
    ];
    for ((name, kind, help), rows) in heads.into_iter().zip(rows) {
        header(&mut out, name, kind, help);
        for row in rows {
            let _ = writeln!(out, "{row}");
        }
    }
    Ok(out)
}
