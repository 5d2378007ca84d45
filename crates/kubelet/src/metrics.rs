//! The kubelet's own metrics: counters and histograms under upstream's names, noted where things happen and written out in Prometheus
//! text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

mod calls;

pub(crate) use calls::Timed;

/// Label sets that one family may have; more are dropped, so that names from outside cannot fill the memory.
const MAX_SERIES: usize = 5000;

/// How a family's values are to be read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Shape {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets, in seconds.
    Histogram(&'static [f64]),
}

/// A family of metrics.
#[derive(Debug)]
pub(crate) struct Family {
    pub name: &'static str,
    pub help: &'static str,
    pub shape: Shape,
}

const SHORT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const LONG: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const PULL: &[f64] = &[1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 3600.0];

macro_rules! families {
    ($($id:ident $shape:expr, $name:literal, $help:literal;)*) => {
        $(pub(crate) const $id: &Family = &Family { name: $name, help: $help, shape: $shape };)*
        #[cfg(test)]
        const ALL: &[&Family] = &[$($id),*];
    };
}

families! {
    RUNTIME_OPERATIONS Shape::Counter, "kubelet_runtime_operations_total",
        "Cumulative number of runtime operations by operation type.";
    RUNTIME_ERRORS Shape::Counter, "kubelet_runtime_operations_errors_total",
        "Cumulative number of runtime operation errors by operation type.";
    RUNTIME_DURATION Shape::Histogram(SHORT), "kubelet_runtime_operations_duration_seconds",
        "Duration in seconds of runtime operations. Broken down by operation type.";
    POD_START Shape::Histogram(LONG), "kubelet_pod_start_duration_seconds",
        "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run";
    POD_START_SLI Shape::Histogram(LONG), "kubelet_pod_start_sli_duration_seconds",
        "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch";
    POD_START_TOTAL Shape::Histogram(LONG), "kubelet_pod_start_total_duration_seconds",
        "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch";
    POD_STATUS_SYNC Shape::Histogram(SHORT), "kubelet_pod_status_sync_duration_seconds",
        "Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.";
    SANDBOX_DURATION Shape::Histogram(SHORT), "kubelet_run_podsandbox_duration_seconds",
        "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.";
    SANDBOX_ERRORS Shape::Counter, "kubelet_run_podsandbox_errors_total",
        "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.";
    STARTED_PODS Shape::Counter, "kubelet_started_pods_total", "Cumulative number of pods started";
    STARTED_PODS_ERRORS Shape::Counter, "kubelet_started_pods_errors_total",
        "Cumulative number of errors when starting pods";
    STARTED_CONTAINERS Shape::Counter, "kubelet_started_containers_total",
        "Cumulative number of containers started";
    STARTED_CONTAINERS_ERRORS Shape::Counter, "kubelet_started_containers_errors_total",
        "Cumulative number of errors when starting containers";
    IMAGE_PULL Shape::Histogram(PULL), "kubelet_image_pull_duration_seconds",
        "Duration in seconds to pull an image.";
    IMAGES_COLLECTED Shape::Counter, "kubelet_image_garbage_collected_total",
        "Total number of images garbage collected by the kubelet, whether through disk usage or image age.";
    IMAGE_VOLUMES Shape::Counter, "kubelet_image_volume_requested_total",
        "Number of requested image volumes.";
    IMAGE_VOLUMES_MOUNTED Shape::Counter, "kubelet_image_volume_mounted_succeed_total",
        "Number of successful image volume mounts.";
    IMAGE_VOLUMES_ERRORS Shape::Counter, "kubelet_image_volume_mounted_errors_total",
        "Number of failed image volume mounts.";
    EVICTIONS Shape::Counter, "kubelet_evictions", "Cumulative number of pod evictions by eviction signal";
    REJECTIONS Shape::Counter, "kubelet_admission_rejections_total",
        "Cumulative number pod admission rejections by the Kubelet.";
    EVENTS_CONNECTED Shape::Counter, "kubelet_evented_pleg_connection_success_count",
        "The number of times a streaming client was obtained to receive CRI Events.";
    EVENTS_BROKEN Shape::Counter, "kubelet_evented_pleg_connection_error_count",
        "The number of errors encountered during the establishment of streaming connection with the CRI runtime.";
    HTTP_REQUESTS Shape::Counter, "kubelet_http_requests_total",
        "Number of the http requests received since the server started";
    HTTP_DURATION Shape::Histogram(SHORT), "kubelet_http_requests_duration_seconds",
        "Duration in seconds to serve http requests";
    HTTP_INFLIGHT Shape::Gauge, "kubelet_http_inflight_requests",
        "Number of the inflight http requests";
    PROBES Shape::Counter, "prober_probe_total",
        "Cumulative number of a liveness, readiness or startup probe for a container by result.";
    PROBE_DURATION Shape::Histogram(SHORT), "prober_probe_duration_seconds",
        "Duration in seconds for a probe response.";
    STORAGE_OPERATIONS Shape::Histogram(SHORT), "storage_operation_duration_seconds",
        "Storage operation duration";
    CREDENTIAL_PLUGINS Shape::Histogram(SHORT), "kubelet_credential_provider_plugin_duration",
        "Duration of execution in seconds for credential provider plugin";
    CREDENTIAL_ERRORS Shape::Counter, "kubelet_credential_provider_plugin_errors_total",
        "Number of errors from credential provider plugin";
}

#[derive(Debug, Clone)]
enum Value {
    Number(f64),
    Histogram { counts: Vec<u64>, sum: f64, count: u64 },
}

#[derive(Default)]
struct Store {
    series: BTreeMap<&'static str, (&'static Family, BTreeMap<String, Value>)>,
}

/// All that was noted; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Metrics(Arc<Mutex<Store>>);

/// `a="b",c="d"`, with the values escaped.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        if !out.is_empty() {
            out.push(',');
        }
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{key}=\"{value}\"");
    }
    out
}

impl Metrics {
    fn change(&self, family: &'static Family, pairs: &[(&str, &str)], change: impl FnOnce(&mut Value)) {
        let key = labels(pairs);
        let mut store = self.0.lock();
        let (_, series) = store.series.entry(family.name).or_insert_with(|| (family, BTreeMap::new()));
        if series.len() >= MAX_SERIES && !series.contains_key(&key) {
            return;
        }
        let fresh = || match family.shape {
            Shape::Histogram(bounds) => {
                Value::Histogram { counts: vec![0; bounds.len()], sum: 0.0, count: 0 }
            }
            _ => Value::Number(0.0),
        };
        change(series.entry(key).or_insert_with(fresh));
    }

    /// One more.
    pub(crate) fn count(&self, family: &'static Family, pairs: &[(&str, &str)]) {
        self.add(family, pairs, 1.0);
    }

    /// Adds to a counter or a gauge.
    pub(crate) fn add(&self, family: &'static Family, pairs: &[(&str, &str)], amount: f64) {
        self.change(family, pairs, |value| {
            if let Value::Number(number) = value {
                *number += amount;
            }
        });
    }

    /// Notes how long something took.
    pub(crate) fn took(&self, family: &'static Family, pairs: &[(&str, &str)], time: Duration) {
        let seconds = time.as_secs_f64();
        self.change(family, pairs, |value| {
            if let (Value::Histogram { counts, sum, count }, Shape::Histogram(bounds)) = (value, family.shape)
            {
                *sum += seconds;
                *count += 1;
                for (bound, n) in bounds.iter().zip(counts) {
                    *n += u64::from(seconds <= *bound);
                }
            }
        });
    }

    /// Forgets the series of one family with these labels: what they were about is gone.
    pub(crate) fn forget(&self, family: &'static Family, holds: &str) {
        if let Some((_, series)) = self.0.lock().series.get_mut(family.name) {
            series.retain(|key, _| !key.contains(holds));
        }
    }

    /// Writes the families whose name `wanted` takes.
    pub(crate) fn write(&self, out: &mut String, wanted: impl Fn(&str) -> bool) {
        let store = self.0.lock();
        for (name, (family, series)) in store.series.iter().filter(|(name, _)| wanted(name)) {
            let kind = match family.shape {
                Shape::Counter => "counter",
                Shape::Gauge => "gauge",
                Shape::Histogram(_) => "histogram",
            };
            head(out, name, kind, family.help);
            for (labels, value) in series {
                match (value, family.shape) {
                    (Value::Number(number), _) => line(out, name, labels, *number),
                    (Value::Histogram { counts, sum, count }, Shape::Histogram(bounds)) => {
                        let comma = if labels.is_empty() { "" } else { "," };
                        for (bound, n) in bounds.iter().zip(counts) {
                            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {n}");
                        }
                        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
                        line(out, &format!("{name}_sum"), labels, *sum);
                        line(out, &format!("{name}_count"), labels, *count as f64);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The lines that open a family.
pub(crate) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// One sample.
pub(crate) fn line(out: &mut String, name: &str, labels: &str, value: f64) {
    let _ = match labels {
        "" => writeln!(out, "{name} {value}"),
        _ => writeln!(out, "{name}{{{labels}}} {value}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_written() {
        let metrics = Metrics::default();
        metrics.count(EVICTIONS, &[("eviction_signal", "memory.available")]);
        metrics.count(EVICTIONS, &[("eviction_signal", "memory.available")]);
        metrics.took(POD_START, &[], Duration::from_millis(700));
        metrics.count(PROBES, &[("pod", "a\"b\n")]);
        let mut out = String::new();
        metrics.write(&mut out, |name| name.starts_with("kubelet_"));
        for line in [
            "# TYPE kubelet_evictions counter",
            "kubelet_evictions{eviction_signal=\"memory.available\"} 2",
            "kubelet_pod_start_duration_seconds_bucket{le=\"0.5\"} 0",
            "kubelet_pod_start_duration_seconds_bucket{le=\"1\"} 1",
            "kubelet_pod_start_duration_seconds_bucket{le=\"+Inf\"} 1",
            "kubelet_pod_start_duration_seconds_sum 0.7",
            "kubelet_pod_start_duration_seconds_count 1",
        ] {
            assert!(out.lines().any(|found| found == line), "{line} is missing in\n{out}");
        }
        assert!(!out.contains("prober"));
        let mut out = String::new();
        metrics.write(&mut out, |name| name.starts_with("prober_"));
        assert!(out.contains(r#"prober_probe_total{pod="a\"b\n"} 1"#), "{out}");
    }

    #[test]
    fn names_are_unlike() {
        let mut names: Vec<&str> = ALL.iter().map(|family| family.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn series_are_bounded() {
        let metrics = Metrics::default();
        for number in 0..MAX_SERIES + 10 {
            metrics.count(PROBES, &[("pod", &number.to_string())]);
        }
        assert_eq!(metrics.0.lock().series["prober_probe_total"].1.len(), MAX_SERIES);
    }
}
