//! Kinds that are served in several versions or groups and stored in one: where they are stored, and the conversions.

use api::Resource;
use serde_json::{Map, Value, json};

/// Both directions between a served version and the stored one, in place.
pub struct Conversion {
    pub to_storage: fn(&mut Value),
    pub from_storage: fn(&mut Value),
}

static EVENTS: Conversion = Conversion { to_storage: event_to_core, from_storage: event_from_core };
static AUTOSCALING_V1: Conversion = Conversion { to_storage: scaler_to_v2, from_storage: scaler_to_v1 };

/// Where a resource's objects are stored, and how they get there.
pub fn storage(resource: &Resource) -> ((String, String), Option<&'static Conversion>) {
    let conversion = match (&*resource.group, &*resource.version, &*resource.plural) {
        ("events.k8s.io", _, "events") => {
            return ((String::new(), "events".to_owned()), Some(&EVENTS));
        }
        ("autoscaling", "v1", "horizontalpodautoscalers") => Some(&AUTOSCALING_V1),
        _ => None,
    };
    ((resource.group.to_string(), resource.plural.to_string()), conversion)
}

/// events.k8s.io/v1 names beside those of v1.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(value: &mut Value, from: &str, to: &str) {
    if let Some(map) = value.as_object_mut()
        && let Some(inner) = map.remove(from)
    {
        map.insert(to.to_owned(), inner);
    }
}

fn event_to_core(value: &mut Value) {
    for (new, core) in EVENT_FIELDS {
        rename(value, new, core);
    }
    value["apiVersion"] = "v1".into();
    let Some(map) = value.as_object_mut() else { return };
    // These are always written in the core form.
    for required in ["involvedObject", "source"] {
        map.entry(required).or_insert_with(|| json!({}));
    }
    for required in ["reportingComponent", "reportingInstance"] {
        map.entry(required).or_insert_with(|| "".into());
    }
    for time in ["eventTime", "firstTimestamp", "lastTimestamp"] {
        map.entry(time).or_insert(Value::Null);
    }
}

fn event_from_core(value: &mut Value) {
    for (new, core) in EVENT_FIELDS {
        rename(value, core, new);
    }
    value["apiVersion"] = "events.k8s.io/v1".into();
    let Some(map) = value.as_object_mut() else { return };
    map.retain(|key, v| !(key == "reportingController" || key == "reportingInstance") || v != "");
}

/// What autoscaling/v1 cannot say is kept in annotations.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

fn take(value: &mut Value, part: &str, field: &str) -> Option<Value> {
    value.get_mut(part)?.as_object_mut()?.remove(field)
}

fn annotations(value: &mut Value) -> Option<&mut Map<String, Value>> {
    let metadata = value.get_mut("metadata")?.as_object_mut()?;
    metadata.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
}

fn annotate(value: &mut Value, key: &str, content: &Value) {
    if let Some(map) = annotations(value) {
        map.insert(key.to_owned(), content.to_string().into());
    }
}

fn unannotate(value: &mut Value, key: &str) -> Option<Value> {
    let map = value.pointer_mut("/metadata/annotations")?.as_object_mut()?;
    let text = map.remove(key)?;
    if map.is_empty() {
        value.get_mut("metadata")?.as_object_mut()?.remove("annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn cpu_target(metric: &Value) -> Option<&Value> {
    let resource = metric.get("resource").filter(|r| r["name"] == "cpu")?;
    resource.pointer("/target/averageUtilization")
}

fn scaler_to_v1(value: &mut Value) {
    value["apiVersion"] = "autoscaling/v1".into();
    let (mut rest, mut target) = (Vec::new(), None);
    if let Some(Value::Array(metrics)) = take(value, "spec", "metrics") {
        for metric in metrics {
            match cpu_target(&metric).filter(|_| target.is_none()).cloned() {
                Some(utilization) => target = Some(utilization),
                None => rest.push(metric),
            }
        }
    }
    if let Some(target) = target {
        value["spec"]["targetCPUUtilizationPercentage"] = target;
    }
    if !rest.is_empty() {
        annotate(value, METRICS, &Value::Array(rest));
    }
    if let Some(behavior) = take(value, "spec", "behavior") {
        annotate(value, BEHAVIOR, &behavior);
    }
    if let Some(conditions) = take(value, "status", "conditions") {
        annotate(value, CONDITIONS, &conditions);
    }
    if let Some(Value::Array(metrics)) = take(value, "status", "currentMetrics") {
        let mut rest = Vec::new();
        for metric in metrics {
            match metric.pointer("/resource/current/averageUtilization").cloned() {
                Some(now) if metric["resource"]["name"] == "cpu" => {
                    value["status"]["currentCPUUtilizationPercentage"] = now;
                }
                _ => rest.push(metric),
            }
        }
        if !rest.is_empty() {
            annotate(value, CURRENT_METRICS, &Value::Array(rest));
        }
    }
}

fn scaler_to_v2(value: &mut Value) {
    value["apiVersion"] = "autoscaling/v2".into();
    let mut metrics = match unannotate(value, METRICS) {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    if let Some(target) = take(value, "spec", "targetCPUUtilizationPercentage") {
        let target = json!({"type": "Utilization", "averageUtilization": target});
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        metrics.insert(0, cpu);
    }
    if !metrics.is_empty() {
        value["spec"]["metrics"] = Value::Array(metrics);
    }
    if let Some(behavior) = unannotate(value, BEHAVIOR) {
        value["spec"]["behavior"] = behavior;
    }
    if let Some(conditions) = unannotate(value, CONDITIONS) {
        value["status"]["conditions"] = conditions;
    }
    let mut current = match unannotate(value, CURRENT_METRICS) {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    if let Some(now) = take(value, "status", "currentCPUUtilizationPercentage") {
        let now = json!({"averageUtilization": now});
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "current": now}});
        current.insert(0, cpu);
    }
    if !current.is_empty() {
        value["status"]["currentMetrics"] = Value::Array(current);
    }
    if let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) {
        status.entry("currentMetrics").or_insert(Value::Null);
    }
}

/// An object in another version of its kind, with that version's type; `None` if there is none.
pub fn between(resource: &Resource, value: &Value, wanted: &str) -> Option<(schema::TypeId, Value)> {
    let (group, version) = wanted.split_once('/').unwrap_or(("", wanted));
    let other = api::resources().find(group, version, &resource.plural)?;
    let ((from, from_conversion), (to, to_conversion)) = (storage(resource), storage(other));
    if from != to {
        return None;
    }
    let mut value = value.clone();
    if let Some(conversion) = from_conversion {
        (conversion.to_storage)(&mut value);
    }
    if let Some(conversion) = to_conversion {
        (conversion.from_storage)(&mut value);
    }
    Some((other.type_id, value))
}
