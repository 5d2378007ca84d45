//! Counters of requests in the Prometheus text format, under the reference's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

const BUCKETS: [f64; 10] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 5.0, 60.0];

type Labels = (String, String, String, String, String);

#[derive(Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

#[derive(Default)]
struct State {
    totals: BTreeMap<(Labels, u16), u64>,
    durations: BTreeMap<Labels, Histogram>,
}

/// The server's counters. Series are bounded by the resources that are served: other paths share one label.
#[derive(Default)]
pub struct Metrics(Mutex<State>);

impl Metrics {
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one answered request.
    pub fn request(
        &self,
        (verb, group, version, resource, subresource): (&str, &str, &str, &str, &str),
        code: u16,
        took: Duration,
    ) {
        let own = |text: &str| text.to_owned();
        let labels = if code == 404 && !resource.is_empty() {
            (own(verb), String::new(), String::new(), "unknown".to_owned(), String::new())
        } else {
            (verb.to_uppercase(), own(group), own(version), own(resource), own(subresource))
        };
        let mut state = self.0.lock();
        *state.totals.entry((labels.clone(), code)).or_default() += 1;
        let histogram = state.durations.entry(labels).or_default();
        let seconds = took.as_secs_f64();
        for (bucket, bound) in histogram.buckets.iter_mut().zip(BUCKETS) {
            if seconds <= bound {
                *bucket += 1;
            }
        }
        histogram.count += 1;
        histogram.sum += seconds;
    }

    /// The text format. Writing to a string cannot fail.
    pub fn text(&self, objects: &[(String, usize)]) -> String {
        let mut out = String::new();
        let state = self.0.lock();
        let help = |out: &mut String, name: &str, kind: &str, text: &str| {
            let _ = write!(out, "# HELP {name} [STABLE] {text}\n# TYPE {name} {kind}\n");
        };
        help(&mut out, "apiserver_request_total", "counter", "Requests by verb, resource and answer code.");
        for ((labels, code), count) in &state.totals {
            let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", render(labels));
        }
        let name = "apiserver_request_duration_seconds";
        help(&mut out, name, "histogram", "Time to the answer's header, by verb and resource.");
        for (labels, histogram) in &state.durations {
            let labels = render(labels);
            for (bound, count) in BUCKETS.iter().zip(histogram.buckets) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", histogram.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", histogram.sum);
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", histogram.count);
        }
        help(&mut out, "apiserver_storage_objects", "gauge", "Stored objects by resource.");
        for (resource, count) in objects {
            let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{resource}\"}} {count}");
        }
        out
    }
}

fn render((verb, group, version, resource, subresource): &Labels) -> String {
    let clean = |text: &str| text.replace(['\\', '"', '\n'], "_");
    format!(
        "group=\"{}\",resource=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
        clean(group),
        clean(resource),
        clean(subresource),
        clean(verb),
        clean(version)
    )
}
