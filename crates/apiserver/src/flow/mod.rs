//! API Priority and Fairness (KEP-1040): every request belongs to the first FlowSchema that matches it, and takes seats of
//! that schema's priority level. Where seats are short, flows wait in queues that are served fairly, so that a flood by one
//! client leaves the others' requests alone. The configuration is followed while the server runs.

mod allocate;
mod config;
mod dropped;
mod estimate;
mod integrator;
mod level;
mod queueset;
mod shuffle;
#[cfg(test)]
mod tests;
mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use serde_json::{Value, json};

use crate::Attributes;
use crate::metrics::metrics;
use allocate::{Need, allocate};
use config::{CATCH_ALL, EXEMPT, LevelConfig, Schema};
use level::{Level, Numbers, Series};

pub use estimate::{Stored, Watches, Watching, estimate};
pub use level::{Permit, Refused};
pub use upkeep::{read, run};

/// How slowly demand is forgotten, per adjustment period.
const SMOOTHING: f64 = 0.977;
/// No request waits longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A request may take this share of its level's seats at most.
const MOST_SHARE: f64 = 0.15;

/// A schema in force.
pub struct Entry {
    schema: Schema,
    level: Arc<Level>,
    series: Arc<Series>,
    /// For the answer's headers: names would tell clients too much.
    pub schema_uid: HeaderValue,
    pub level_uid: HeaderValue,
}

impl Entry {
    /// The level's name.
    pub fn level(&self) -> &Level {
        &self.level
    }

    /// Notes how many seats a request is judged to need, and how many watchers a write has to tell.
    pub fn estimated(&self, work: &queueset::Work, watchers: Option<usize>) {
        self.series.work.observe(work.most_seats() as f64);
        if let Some(watchers) = watchers {
            self.series.watchers.observe(watchers as f64);
        }
    }
}

struct State {
    /// In matching order; the last one is the catch-all.
    entries: Vec<Arc<Entry>>,
    levels: BTreeMap<String, Arc<Level>>,
    /// What the levels have together.
    total: usize,
}

/// The seats of a server and who gets them.
pub struct Fairness {
    state: ArcSwap<State>,
    /// Seats of all levels together.
    seats: usize,
    base: Instant,
    pub watches: Watches,
    /// The timers of the levels.
    timers: parking_lot::Mutex<HashMap<String, tokio::task::JoinHandle<()>>>,
}

impl Drop for Fairness {
    fn drop(&mut self) {
        self.timers.get_mut().drain().for_each(|(_, timer)| timer.abort());
    }
}

impl Fairness {
    /// With the mandatory objects alone.
    pub fn new(seats: usize) -> Self {
        let state = State { entries: Vec::new(), levels: BTreeMap::new(), total: 0 };
        let own = Self {
            state: ArcSwap::from_pointee(state),
            seats: seats.max(1),
            base: Instant::now(),
            watches: Watches::default(),
            timers: parking_lot::Mutex::default(),
        };
        own.configure(Vec::new(), Vec::new());
        own
    }

    /// The schema of a request.
    pub fn classify(&self, attributes: &Attributes) -> Arc<Entry> {
        let state = self.state.load();
        let found = state.entries.iter().find(|entry| entry.schema.matches(attributes));
        // Somebody who is in no group at all is caught as well.
        let found = found.or_else(|| state.entries.iter().find(|entry| entry.schema.name == CATCH_ALL));
        found.or_else(|| state.entries.last()).expect("the mandatory schemas are always there").clone()
    }

    /// Waits for the seats of a request. `limit` is the whole time that it may take.
    pub async fn admit(
        &self,
        entry: &Entry,
        attributes: &Attributes,
        work: queueset::Work,
        limit: Duration,
    ) -> Result<Permit, Refused> {
        let flow = if entry.level.exempt { 0 } else { entry.schema.flow(attributes) };
        let patience = (limit / 4).min(LONGEST_WAIT);
        entry.level.admit(flow, work, &entry.series, attributes.verb == "watch", patience).await
    }

    /// Puts a new configuration in force. Levels that stay keep their queues; those that go end when they are empty.
    pub fn configure(&self, levels: Vec<LevelConfig>, schemas: Vec<Schema>) {
        let old = self.state.load();
        let mut configs: BTreeMap<String, LevelConfig> =
            levels.into_iter().map(|l| (l.name.clone(), l)).collect();
        for mandatory in [EXEMPT, CATCH_ALL] {
            let imagined = || LevelConfig::read(&mandatory_level(mandatory)).expect("a constant object");
            configs.entry(mandatory.to_owned()).or_insert_with(imagined);
        }
        let levels: BTreeMap<String, Arc<Level>> = configs
            .values()
            .map(|config| {
                let kept = old.levels.get(&config.name).filter(|level| level.exempt == config.exempt);
                (config.name.clone(), kept.cloned().unwrap_or_else(|| self.level(config)))
            })
            .collect();
        let mut schemas: Vec<Schema> =
            schemas.into_iter().filter(|s| levels.contains_key(&s.level)).collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        if !schemas.iter().any(|s| s.name == EXEMPT) {
            schemas.insert(0, Schema::read(&mandatory_schema(EXEMPT)));
        }
        if !schemas.iter().any(|s| s.name == CATCH_ALL) {
            schemas.push(Schema::read(&mandatory_schema(CATCH_ALL)));
        }
        let header = |uid: &str| HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""));
        let mut entries = Vec::with_capacity(schemas.len());
        for schema in schemas {
            let Some(level) = levels.get(&schema.level) else { continue };
            entries.push(Arc::new(Entry {
                level: level.clone(),
                series: Arc::new(Series::new(&schema.name, &schema.level)),
                schema_uid: header(&schema.uid),
                level_uid: header(configs.get(&schema.level).map_or("", |c| &c.uid)),
                schema,
            }));
        }
        let total = self.seat(&configs, &levels);
        for name in old.levels.keys().filter(|name| !levels.contains_key(*name)) {
            self.timers.lock().remove(name).inspect(|timer| timer.abort());
            forget(name);
        }
        for (name, level) in &levels {
            if let Some(config) = configs.get(name) {
                level.configure(config);
            }
        }
        self.state.store(Arc::new(State { entries, levels, total }));
        self.rebalance();
    }

    fn level(&self, config: &LevelConfig) -> Arc<Level> {
        let level = Level::new(config, self.base);
        // Without a runtime (in a test of the configuration alone) there is nobody to wait either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let timer = runtime.spawn(level.clone().run());
            self.timers.lock().insert(config.name.clone(), timer).inspect(|old| old.abort());
        }
        level
    }

    /// Divides the seats by shares; the sum, which rounding up makes a little larger than the seats there are.
    fn seat(&self, configs: &BTreeMap<String, LevelConfig>, levels: &BTreeMap<String, Arc<Level>>) -> usize {
        let shares: u64 = configs.values().map(|config| config.shares).sum();
        let mut total = 0;
        for (config, level) in configs.values().filter_map(|c| Some((c, levels.get(&c.name)?))) {
            let nominal = (self.seats as f64 * config.shares as f64 / shares.max(1) as f64).ceil();
            let percent = |percent: u64| (nominal * percent as f64 / 100.0).round() as usize;
            let (nominal, lendable) = (nominal as usize, percent(config.lendable_percent));
            let borrowing = config.borrowing_percent.map_or(self.seats, percent);
            total += nominal;
            let mut numbers = level.numbers.lock();
            let fresh = *numbers == Numbers::default();
            numbers.nominal = nominal;
            numbers.lower = nominal.saturating_sub(lendable);
            numbers.upper = nominal + borrowing;
            if fresh {
                numbers.current = nominal - lendable.min(nominal) / 2;
            }
            let most = config.queuing.map_or(0, |queuing| {
                let share = (nominal as f64 * MOST_SHARE).ceil().min((nominal / queuing.hand) as f64);
                share.max(1.0) as usize
            });
            level.most_seats.store(most, Ordering::Relaxed);
            let label = [config.name.as_str()];
            metrics().flow_nominal.with(&label).set(numbers.nominal as f64);
            metrics().flow_lower.with(&label).set(numbers.lower as f64);
            metrics().flow_upper.with(&label).set(numbers.upper as f64);
        }
        total
    }

    /// Lends seats that are not needed to levels that need them.
    pub fn rebalance(&self) {
        let state = self.state.load();
        let mut remaining = state.total as f64;
        let mut needs = Vec::new();
        let mut limited = Vec::new();
        for level in state.levels.values() {
            let demand = level.take_demand();
            let mut numbers = level.numbers.lock();
            if demand.seconds > 0.0 {
                let envelope = demand.mean + demand.deviation;
                numbers.smoothed = envelope.max(SMOOTHING * numbers.smoothed + (1.0 - SMOOTHING) * envelope);
            }
            let high = demand.most.round() as usize;
            let label = [level.name.as_str()];
            metrics().flow_demand_high.with(&label).set(demand.most);
            metrics().flow_demand_average.with(&label).set(demand.mean);
            metrics().flow_demand_deviation.with(&label).set(demand.deviation);
            metrics().flow_demand_smoothed.with(&label).set(numbers.smoothed);
            if level.exempt {
                numbers.current = numbers.lower.max(high);
                remaining -= numbers.current as f64;
            } else {
                let lower = numbers.lower.max(numbers.nominal.min(high)) as f64;
                let target = lower.max(numbers.smoothed);
                needs.push(Need { target, lower, upper: numbers.upper as f64 });
                limited.push((level, *numbers));
                metrics().flow_target.with(&label).set(target);
            }
        }
        let least: f64 = limited.iter().map(|(_, numbers)| numbers.lower as f64).sum();
        let wanted: f64 = needs.iter().map(|need| need.lower).sum();
        let mut fraction = 0.0;
        let seats: Vec<f64> = if remaining <= least {
            limited.iter().map(|(_, numbers)| numbers.lower as f64).collect()
        } else if remaining <= wanted {
            let share = (remaining - least) / (wanted - least);
            let bases = limited.iter().map(|(_, numbers)| numbers.lower as f64).zip(&needs);
            bases.map(|(base, need)| base + (need.lower - base) * share).collect()
        } else {
            match allocate(state.total as f64, &needs) {
                Some((seats, share)) => {
                    fraction = share;
                    seats
                }
                None => limited.iter().map(|(_, numbers)| numbers.current as f64).collect(),
            }
        };
        metrics().flow_fair_fraction.with(&[]).set(fraction);
        for ((level, _), seats) in limited.iter().zip(seats) {
            level.numbers.lock().current = seats.round() as usize;
        }
        for level in state.levels.values() {
            let current = level.numbers.lock().current;
            metrics().flow_current.with(&[&level.name]).set(current as f64);
            level.set_limit(current);
        }
    }
}

/// Takes a level's series away.
fn forget(level: &str) {
    let m = metrics();
    for family in [
        &m.flow_nominal,
        &m.flow_lower,
        &m.flow_upper,
        &m.flow_current,
        &m.flow_demand_high,
        &m.flow_demand_average,
        &m.flow_demand_deviation,
        &m.flow_demand_smoothed,
        &m.flow_target,
    ] {
        family.forget("priority_level", level);
    }
}

/// The mandatory levels as they work even when their objects are missing.
fn mandatory_level(name: &str) -> Value {
    let spec = if name == EXEMPT {
        json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}})
    } else {
        json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0,
            "limitResponse": {"type": "Reject"}}})
    };
    json!({"metadata": {"name": name}, "spec": spec})
}

fn mandatory_schema(name: &str) -> Value {
    let groups: &[&str] = if name == EXEMPT {
        &["system:masters"]
    } else {
        &["system:unauthenticated", "system:authenticated"]
    };
    let subjects: Vec<Value> =
        groups.iter().map(|g| json!({"kind": "Group", "group": {"name": g}})).collect();
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": name},
        "matchingPrecedence": if name == EXEMPT { 1 } else { 10_000 },
        "rules": [{
            "subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true,
                "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }],
    });
    if name == CATCH_ALL {
        spec["distinguisherMethod"] = json!({"type": "ByUser"});
    }
    json!({"metadata": {"name": name}, "spec": spec})
}
