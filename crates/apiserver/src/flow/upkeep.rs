//! Follows the configuration's objects: puts every change in force, writes into each schema's status whether its level
//! exists, keeps the mandatory objects as they must be, and lends seats every ten seconds.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};

use super::Fairness;
use super::config::{GROUP, LevelConfig, Schema};
use crate::read::Read;
use crate::registry::Registry;
use crate::{ClusterRef, bootstrap};

const REBALANCE: Duration = Duration::from_secs(10);
const ENSURE: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// Two servers of different opinion must not write against each other without end.
const MOST_WRITES_A_MINUTE: usize = 6;

fn objects(registry: &Registry, resource: &str) -> Vec<Value> {
    let Some(row) = registry.any(GROUP, resource) else { return Vec::new() };
    let (objects, _) = row.cache.list("", None);
    objects.iter().filter_map(|object| row.read_now(object).ok()).collect()
}

/// The configuration as the objects have it; the schemas' objects as well.
fn digest(registry: &Registry) -> (Vec<LevelConfig>, Vec<Schema>, Vec<Value>) {
    let levels = objects(registry, "prioritylevelconfigurations");
    let levels = levels.iter().filter_map(|object| {
        let level = LevelConfig::read(object);
        if level.is_none() {
            tracing::warn!(
                name = object.name(),
                "a PriorityLevelConfiguration is broken and counts as missing"
            );
        }
        level
    });
    let levels = levels.collect();
    let schemas = objects(registry, "flowschemas");
    (levels, schemas.iter().map(Schema::read).collect(), schemas)
}

/// Puts what the store holds in force.
pub fn read(fairness: &Fairness, registry: &Registry) {
    let (levels, schemas, _) = digest(registry);
    fairness.configure(levels, schemas);
}

/// Runs until it is dropped.
pub async fn run(fairness: Arc<Fairness>, registry: Arc<Registry>, cluster: ClusterRef) {
    let rows = ["flowschemas", "prioritylevelconfigurations"].map(|r| registry.any(GROUP, r));
    let [Some(schemas), Some(levels)] = rows else { return };
    let (mut schemas, mut levels) = (schemas.cache.bell(), levels.cache.bell());
    let mut rebalance = tokio::time::interval(REBALANCE);
    let mut ensure = tokio::time::interval(ENSURE);
    // What was there before is looked at as well.
    let mut again = Retry { at: Some(tokio::time::Instant::now()), ..Retry::default() };
    let mut writes = Writes::default();
    loop {
        let retry = again.at;
        let changed = tokio::select! {
            _ = rebalance.tick() => {
                fairness.rebalance();
                false
            }
            _ = ensure.tick() => {
                if let Err(error) = bootstrap::ensure_flow_control(&cluster).await {
                    tracing::warn!(%error, "the objects of priority and fairness could not be kept");
                }
                false
            }
            changed = schemas.changed() => changed.is_ok(),
            changed = levels.changed() => changed.is_ok(),
            () = tokio::time::sleep_until(retry.unwrap_or_else(tokio::time::Instant::now)), if retry.is_some() => true,
        };
        if !changed {
            continue;
        }
        let (configs, own, objects) = digest(&registry);
        let known: Vec<String> = configs.iter().map(|level| level.name.clone()).collect();
        fairness.configure(configs, own);
        let mut done = bootstrap::ensure_mandatory_flow_control(&cluster).await.is_ok();
        for (schema, condition) in objects.iter().filter_map(|o| Some((o, dangling(o, &known)?))) {
            done &= writes.allow(schema.name(), Instant::now()) && write(&cluster, schema, condition).await;
        }
        again.note(done);
    }
}

/// When to look again although nothing changed.
#[derive(Default)]
struct Retry {
    at: Option<tokio::time::Instant>,
    wait: Duration,
}

impl Retry {
    fn note(&mut self, done: bool) {
        if done {
            *self = Self::default();
            return;
        }
        self.wait = (self.wait * 2).clamp(FIRST_RETRY, ENSURE);
        let spread = self.wait.mul_f64(rand::rng().random_range(0.0..0.5));
        self.at = Some(tokio::time::Instant::now() + self.wait + spread);
    }
}

/// The writes of the last minute by name.
#[derive(Default)]
struct Writes(HashMap<String, VecDeque<Instant>>);

impl Writes {
    fn allow(&mut self, name: &str, now: Instant) -> bool {
        self.0.retain(|_, times| {
            times.retain(|at| now.saturating_duration_since(*at) < ENSURE);
            !times.is_empty()
        });
        let times = self.0.entry(name.to_owned()).or_default();
        let allowed = times.len() < MOST_WRITES_A_MINUTE;
        if allowed {
            times.push_back(now);
        }
        allowed
    }
}

/// The condition that a schema must get, if it does not have it.
fn dangling(schema: &Value, levels: &[String]) -> Option<Value> {
    let name = schema.text("spec.priorityLevelConfiguration.name");
    let about = format!("This FlowSchema references the PriorityLevelConfiguration object named {name:?}");
    let (status, reason, message) = if levels.iter().any(|level| level == name) {
        ("False", "Found", format!("{about} and it exists"))
    } else {
        ("True", "NotFound", format!("{about} but there is no such object"))
    };
    let same = schema.items("status.conditions").iter().any(|condition| {
        condition.text("type") == "Dangling"
            && condition.text("status") == status
            && condition.text("reason") == reason
            && condition.text("message") == message
    });
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    (!same).then(|| {
        json!({"type": "Dangling", "status": status, "lastTransitionTime": now, "reason": reason, "message": message})
    })
}

/// Writes the condition; false if it must be tried again.
async fn write(cluster: &ClusterRef, schema: &Value, condition: Value) -> bool {
    let mut new = schema.clone();
    let mut conditions = schema.items("status.conditions").to_vec();
    conditions.retain(|c| c.text("type") != "Dangling");
    conditions.push(condition);
    new["status"] = json!({"conditions": conditions});
    match cluster.update_status(GROUP, "v1", "flowschemas", "", new).await {
        Ok(_) => true,
        // A change of it is on its way here, or it is gone.
        Err(status) if matches!(status.reason(), "Conflict" | "NotFound") => true,
        Err(error) => {
            tracing::warn!(name = schema.name(), %error, "a FlowSchema's status could not be written");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_told_whether_its_level_exists() {
        let mut schema =
            json!({"metadata": {"name": "s"}, "spec": {"priorityLevelConfiguration": {"name": "l"}}});
        let levels = ["l".to_owned()];
        let found = dangling(&schema, &levels).expect("a condition");
        assert_eq!((found["status"].as_str(), found["reason"].as_str()), (Some("False"), Some("Found")));
        schema["status"] = json!({"conditions": [found]});
        assert_eq!(dangling(&schema, &levels), None);
        let lost = dangling(&schema, &[]).expect("another condition");
        assert_eq!((lost["status"].as_str(), lost["reason"].as_str()), (Some("True"), Some("NotFound")));
    }

    #[test]
    fn writes_are_bounded() {
        let mut writes = Writes::default();
        let now = Instant::now();
        let allowed = (0..10).filter(|_| writes.allow("s", now)).count();
        assert_eq!(allowed, MOST_WRITES_A_MINUTE);
        assert!(writes.allow("t", now));
        assert!(writes.allow("s", now + Duration::from_secs(61)));
    }
}
