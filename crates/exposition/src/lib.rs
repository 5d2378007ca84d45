//! Counters, gauges and histograms with labels, and the Prometheus text format. The number of series of a family is
//! bounded: what comes after shares one series whose labels all say `other`. Parts of a process that serve nothing
//! themselves hand their families to the one that does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

/// Most series of one family.
const MOST_SERIES: usize = 20_000;

/// How much a metric's name and labels can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stability {
    Alpha,
    Beta,
    Stable,
}

impl Stability {
    fn name(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Stable => "STABLE",
        }
    }
}

/// One time series.
pub trait Series: Send + Sync + 'static {
    const KIND: &'static str;

    /// Appends the lines of the series; `labels` is without braces.
    fn write(&self, out: &mut String, name: &str, labels: &str);
}

/// A number that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn increment(&self) {
        self.add(1);
    }

    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    pub fn add(&self, by: f64) {
        add(&self.0, by);
    }

    pub fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

fn add(cell: &AtomicU64, by: f64) {
    let sum = |bits| Some((f64::from_bits(bits) + by).to_bits());
    // The closure always answers, so that the update cannot fail.
    let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
}

/// Observations counted in buckets.
pub struct Histogram {
    bounds: &'static [f64],
    /// Not cumulative; the last one is beyond all bounds.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0) }
    }

    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        add(&self.sum, value);
    }
}

/// Writing to a string cannot fail.
fn line(out: &mut String, name: &str, suffix: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = match labels {
        "" => writeln!(out, "{name}{suffix} {value}"),
        labels => writeln!(out, "{name}{suffix}{{{labels}}} {value}"),
    };
}

impl Series for Counter {
    const KIND: &'static str = "counter";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        line(out, name, "", labels, self.value());
    }
}

impl Series for Gauge {
    const KIND: &'static str = "gauge";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        line(out, name, "", labels, self.value());
    }
}

impl Series for Histogram {
    const KIND: &'static str = "histogram";

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bucket, bound) in self.buckets.iter().zip(self.bounds) {
            below += bucket.load(Ordering::Relaxed);
            line(out, name, "_bucket", &format!("{labels}{comma}le=\"{bound}\""), below);
        }
        below += self.buckets[self.bounds.len()].load(Ordering::Relaxed);
        line(out, name, "_bucket", &format!("{labels}{comma}le=\"+Inf\""), below);
        line(out, name, "_sum", labels, f64::from_bits(self.sum.load(Ordering::Relaxed)));
        line(out, name, "_count", labels, below);
    }
}

/// All series of one metric.
pub struct Family<S> {
    name: &'static str,
    help: &'static str,
    stability: Stability,
    /// In alphabetical order, as the text format shows them.
    labels: &'static [&'static str],
    make: Box<dyn Fn() -> S + Send + Sync>,
    series: RwLock<HashMap<Box<str>, Arc<S>>>,
}

thread_local! {
    /// Where label texts are put together, so that a known series is found without an allocation.
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

impl<S: Series + Default> Family<S> {
    pub fn new(
        name: &'static str,
        stability: Stability,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Self {
        Self::with_make(name, stability, help, labels, Box::new(S::default))
    }
}

impl Family<Histogram> {
    /// A histogram's buckets are upper bounds in ascending order.
    pub fn histogram(
        name: &'static str,
        stability: Stability,
        help: &'static str,
        labels: &'static [&'static str],
        bounds: &'static [f64],
    ) -> Self {
        Self::with_make(name, stability, help, labels, Box::new(move || Histogram::new(bounds)))
    }
}

impl<S: Series> Family<S> {
    fn with_make(
        name: &'static str,
        stability: Stability,
        help: &'static str,
        labels: &'static [&'static str],
        make: Box<dyn Fn() -> S + Send + Sync>,
    ) -> Self {
        debug_assert!(labels.is_sorted(), "the labels of {name} are in order");
        Self { name, help, stability, labels, make, series: RwLock::default() }
    }

    /// The series of these values, one for each label in order; made when it is new.
    pub fn with(&self, values: &[&str]) -> Arc<S> {
        debug_assert_eq!(values.len(), self.labels.len(), "labels of {}", self.name);
        TEXT.with_borrow_mut(|text| {
            text.clear();
            for (label, value) in self.labels.iter().zip(values) {
                if !text.is_empty() {
                    text.push(',');
                }
                text.push_str(label);
                text.push_str("=\"");
                escape(text, value);
                text.push('"');
            }
            if let Some(series) = self.series.read().get(text.as_str()) {
                return series.clone();
            }
            let mut all = self.series.write();
            if all.len() >= MOST_SERIES {
                text.clear();
                for label in self.labels {
                    let comma = if text.is_empty() { "" } else { "," };
                    let _ = write!(text, "{comma}{label}=\"other\"");
                }
            }
            all.entry(text.as_str().into()).or_insert_with(|| Arc::new((self.make)())).clone()
        })
    }

    /// Forgets all series whose label has this value: what it named is gone.
    pub fn forget(&self, label: &str, value: &str) {
        let mut text = format!("{label}=\"");
        escape(&mut text, value);
        text.push('"');
        self.series.write().retain(|labels, _| !labels.split(',').any(|own| own == text));
    }
}

fn escape(out: &mut String, value: &str) {
    if !value.contains(['\\', '"', '\n']) {
        return out.push_str(value);
    }
    for c in value.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\\' | '"' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
}

/// What can be shown.
pub trait Expose: Send + Sync {
    fn name(&self) -> &'static str;
    fn write(&self, out: &mut String);
}

impl<S: Series> Expose for Family<S> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn write(&self, out: &mut String) {
        let series = self.series.read();
        if series.is_empty() {
            return;
        }
        head(out, self.name, self.stability, self.help, S::KIND);
        let mut sorted: Vec<_> = series.iter().collect();
        sorted.sort_unstable_by_key(|(labels, _)| *labels);
        for (labels, one) in sorted {
            one.write(out, self.name, labels);
        }
    }
}

/// The two lines that precede a metric's series.
pub fn head(out: &mut String, name: &str, stability: Stability, help: &str, kind: &str) {
    let _ = write!(out, "# HELP {name} [{}] {help}\n# TYPE {name} {kind}\n", stability.name());
}

/// Writes the lines of a part's families.
pub type Source = fn(&mut String);

static SOURCES: Mutex<Vec<Source>> = Mutex::new(Vec::new());

/// Shows a part's families wherever the process shows its own. Adding one again changes nothing.
pub fn share(source: Source) {
    let mut sources = SOURCES.lock();
    if !sources.iter().any(|known| std::ptr::fn_addr_eq(*known, source)) {
        sources.push(source);
    }
}

/// Writes the families of all parts that share theirs.
pub fn write_shared(out: &mut String) {
    let sources = SOURCES.lock().clone();
    for source in sources {
        source(out);
    }
}

/// Declares a set of families, makes it and walks over it.
#[macro_export]
macro_rules! families {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($field:ident: $type:ty = $make:expr;)* }) => {
        $(#[$meta])*
        $vis struct $name { $(pub $field: $crate::Family<$type>,)* }

        impl $name {
            fn new() -> Self {
                Self { $($field: $make,)* }
            }

            /// All of them.
            pub fn each(&self) -> Vec<&dyn $crate::Expose> {
                vec![$(&self.$field,)*]
            }
        }
    };
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let counters: Family<Counter> = Family::new("n_total", Stability::Stable, "Things.", &["a", "b"]);
        counters.with(&["x", "say \"hi\"\n\\"]).add(2);
        counters.with(&["x", "say \"hi\"\n\\"]).increment();
        let mut out = String::new();
        counters.write(&mut out);
        let expect = "# HELP n_total [STABLE] Things.\n# TYPE n_total counter\n\
                      n_total{a=\"x\",b=\"say \\\"hi\\\"\\n\\\\\"} 3\n";
        assert_eq!(out, expect);

        let times = Family::histogram("t", Stability::Alpha, "Times.", &[], &[0.5, 1.0]);
        for value in [0.25, 0.5, 0.75, 4.0] {
            times.with(&[]).observe(value);
        }
        out.clear();
        times.write(&mut out);
        let expect = "# HELP t [ALPHA] Times.\n# TYPE t histogram\nt_bucket{le=\"0.5\"} 2\nt_bucket{le=\"1\"} 3\n\
                      t_bucket{le=\"+Inf\"} 4\nt_sum 5.5\nt_count 4\n";
        assert_eq!(out, expect);
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let gauges: Family<Gauge> = Family::new("g", Stability::Beta, "Much.", &["x"]);
        for i in 0..MOST_SERIES + 10 {
            gauges.with(&[&i.to_string()]).set(1.0);
        }
        gauges.with(&["fresh"]).set(7.0);
        assert_eq!(gauges.series.read().len(), MOST_SERIES + 1);
        assert_eq!(gauges.series.read()["x=\"other\""].value(), 7.0);
        gauges.forget("x", "3");
        assert_eq!(gauges.series.read().len(), MOST_SERIES);
    }
}
