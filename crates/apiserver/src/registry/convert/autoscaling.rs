//! HorizontalPodAutoscaler in autoscaling/v1 and v2. What v1 has no field for is kept in annotations, in upstream's form.

use serde_json::{Map, Value, json};

use super::Conversion;
use super::ordered::{self, Object};

pub(super) static V1: Conversion = Conversion { to_storage: to_v2, from_storage: to_v1 };

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

static NULL: Value = Value::Null;

fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    path.split('.').fold(value, |value, key| value.get(key).unwrap_or(&NULL))
}

fn take(value: &mut Value, part: &str, field: &str) -> Option<Value> {
    value.get_mut(part)?.as_object_mut()?.remove(field).filter(|v| !v.is_null())
}

fn take_list(value: &mut Value, part: &str, field: &str) -> Vec<Value> {
    match take(value, part, field) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn annotate(value: &mut Value, key: &str, content: String) {
    let metadata = value.get_mut("metadata").and_then(Value::as_object_mut);
    let annotations = metadata.map(|m| m.entry("annotations").or_insert_with(|| json!({})));
    if let Some(map) = annotations.and_then(Value::as_object_mut) {
        map.insert(key.to_owned(), content.into());
    }
}

fn cpu_target(metric: &Value) -> Option<&Value> {
    let found = at(metric, "type") == "Resource" && at(metric, "resource.name") == "cpu";
    found.then(|| at(metric, "resource.target.averageUtilization")).filter(|v| !v.is_null())
}

fn to_v1(value: &mut Value) {
    value["apiVersion"] = "autoscaling/v1".into();
    for key in api::kinds::AUTOSCALER_ANNOTATIONS {
        unannotate(value, key);
    }
    let metrics = take_list(value, "spec", "metrics");
    if let Some(target) = metrics.iter().find_map(cpu_target) {
        value["spec"]["targetCPUUtilizationPercentage"] = target.clone();
    }
    let rest: Vec<String> =
        metrics.iter().filter(|m| cpu_target(m).is_none()).map(|m| metric_to_v1(m, &SPEC)).collect();
    if !rest.is_empty() {
        annotate(value, METRICS, ordered::list(rest));
    }
    // The CPU's status is kept twice: v1 has no place for its raw value.
    let current = take_list(value, "status", "currentMetrics");
    for metric in &current {
        let now = at(metric, "resource.current.averageUtilization");
        if at(metric, "type") == "Resource" && at(metric, "resource.name") == "cpu" && !now.is_null() {
            value["status"]["currentCPUUtilizationPercentage"] = now.clone();
        }
    }
    if !current.is_empty() {
        let texts = current.iter().map(|m| metric_to_v1(m, &STATUS));
        annotate(value, CURRENT_METRICS, ordered::list(texts));
    }
    if let Some(behavior) = take(value, "spec", "behavior") {
        annotate(value, BEHAVIOR, behavior_text(&behavior));
    }
    let conditions = take_list(value, "status", "conditions");
    if !conditions.is_empty() {
        let text = |c: &Value| {
            Object::default()
                .with("type", at(c, "type").clone())
                .with("status", at(c, "status").clone())
                .with("lastTransitionTime", at(c, "lastTransitionTime").clone())
                .maybe("reason", c.get("reason"))
                .maybe("message", c.get("message"))
                .end()
        };
        annotate(value, CONDITIONS, ordered::list(conditions.iter().map(text)));
    }
}

/// The names by which a metric's numbers go.
struct Names {
    holder: &'static str,
    value: &'static str,
    average: &'static str,
    utilization: &'static str,
    /// An absent number is written as zero.
    filled: bool,
}

const SPEC: Names = Names {
    holder: "target",
    value: "targetValue",
    average: "targetAverageValue",
    utilization: "targetAverageUtilization",
    filled: false,
};
const STATUS: Names = Names {
    holder: "current",
    value: "currentValue",
    average: "currentAverageValue",
    utilization: "currentAverageUtilization",
    filled: true,
};

fn metric_to_v1(metric: &Value, names: &Names) -> String {
    let mut out = Object::default().with("type", at(metric, "type").clone());
    for kind in ["object", "pods", "resource", "containerResource", "external"] {
        if let Some(source) = metric.get(kind).filter(|v| !v.is_null()) {
            out = out.text(kind, &source_to_v1(kind, source, names));
        }
    }
    out.end()
}

fn selector(out: Object, name: &str, selector: &Value) -> Object {
    if selector.is_null() {
        return out;
    }
    let labels = selector.get("matchLabels").filter(|v| v.as_object().is_some_and(|m| !m.is_empty()));
    let expressions =
        selector.get("matchExpressions").filter(|v| v.as_array().is_some_and(|l| !l.is_empty()));
    let text = Object::default().maybe("matchLabels", labels).maybe("matchExpressions", expressions).end();
    out.text(name, &text)
}

fn source_to_v1(kind: &str, source: &Value, names: &Names) -> String {
    let numbers = at(source, names.holder);
    let (value, average) = (numbers.get("value"), numbers.get("averageValue"));
    let filled = |v: Option<&Value>| v.filter(|v| !v.is_null()).cloned().unwrap_or_else(|| "0".into());
    let metric = at(source, "metric");
    let metric_name = || at(metric, "name").as_str().unwrap_or_default().to_owned();
    let out = Object::default();
    match kind {
        "object" => {
            let described = at(source, "describedObject");
            let target = Object::default()
                .with("kind", at(described, "kind").as_str().unwrap_or_default())
                .with("name", at(described, "name").as_str().unwrap_or_default())
                .maybe("apiVersion", described.get("apiVersion"))
                .end();
            let out = out.text("target", &target).with("metricName", metric_name());
            let out = selector(out.with(names.value, filled(value)), "selector", at(metric, "selector"));
            out.maybe("averageValue", average).end()
        }
        "pods" => {
            let out = out.with("metricName", metric_name()).with(names.average, filled(average));
            selector(out, "selector", at(metric, "selector")).end()
        }
        "external" => {
            let out =
                selector(out.with("metricName", metric_name()), "metricSelector", at(metric, "selector"));
            let out = match names.filled {
                true => out.with(names.value, filled(value)),
                false => out.maybe(names.value, value),
            };
            out.maybe(names.average, average).end()
        }
        _ => {
            let out = out.with("name", at(source, "name").clone());
            let out = out.maybe(names.utilization, numbers.get("averageUtilization"));
            let out = match names.filled {
                true => out.with(names.average, filled(average)),
                false => out.maybe(names.average, average),
            };
            match kind {
                "containerResource" => out.with("container", at(source, "container").clone()).end(),
                _ => out.end(),
            }
        }
    }
}

/// The behavior goes by the names of upstream's internal type.
fn behavior_text(behavior: &Value) -> String {
    let policy = |policy: &Value| {
        Object::default()
            .with("Type", at(policy, "type").clone())
            .with("Value", at(policy, "value").clone())
            .with("PeriodSeconds", at(policy, "periodSeconds").clone())
            .end()
    };
    let rules = |rules: &Value| match rules {
        Value::Null => "null".to_owned(),
        rules => {
            let policies = match at(rules, "policies").as_array() {
                Some(list) => ordered::list(list.iter().map(policy)),
                None => "null".to_owned(),
            };
            Object::default()
                .with("StabilizationWindowSeconds", at(rules, "stabilizationWindowSeconds").clone())
                .with("SelectPolicy", at(rules, "selectPolicy").clone())
                .text("Policies", &policies)
                .with("Tolerance", at(rules, "tolerance").clone())
                .end()
        }
    };
    Object::default()
        .text("ScaleUp", &rules(at(behavior, "scaleUp")))
        .text("ScaleDown", &rules(at(behavior, "scaleDown")))
        .end()
}

/// Takes an annotation away; the annotations go with the last of them.
fn unannotate(value: &mut Value, key: &str) -> Option<Value> {
    let map = value.pointer_mut("/metadata/annotations")?.as_object_mut()?;
    let text = map.remove(key)?;
    if map.is_empty() {
        value.get_mut("metadata")?.as_object_mut()?.remove("annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn objects(value: Option<Value>) -> Option<Vec<Value>> {
    match value {
        Some(Value::Array(list)) if list.iter().all(Value::is_object) => Some(list),
        _ => None,
    }
}

fn to_v2(value: &mut Value) {
    value["apiVersion"] = "autoscaling/v2".into();
    let others = objects(unannotate(value, METRICS)).unwrap_or_default();
    let mut metrics: Vec<Value> = others.iter().map(|m| metric_to_v2(m, &SPEC)).collect();
    if let Some(target) = take(value, "spec", "targetCPUUtilizationPercentage") {
        metrics.push(cpu(target));
    }
    if metrics.is_empty() {
        metrics.push(cpu(80.into()));
    }
    value["spec"]["metrics"] = Value::Array(metrics);
    if let Some(behavior) = unannotate(value, BEHAVIOR).as_ref().and_then(behavior_to_v2) {
        value["spec"]["behavior"] = behavior;
    }
    let conditions = objects(unannotate(value, CONDITIONS));
    let annotated = objects(unannotate(value, CURRENT_METRICS));
    let utilization = take(value, "status", "currentCPUUtilizationPercentage");
    for key in api::kinds::AUTOSCALER_ANNOTATIONS {
        unannotate(value, key);
    }
    let Some(status) = value.get_mut("status").and_then(Value::as_object_mut) else { return };
    if status.get("currentReplicas").and_then(Value::as_i64) == Some(0) {
        status.remove("currentReplicas");
    }
    let current: Option<Vec<Value>> = match annotated {
        // These have more to say than the field.
        Some(list) => Some(list.iter().map(|m| metric_to_v2(m, &STATUS)).collect()),
        None => utilization.map(|now| {
            let resource = json!({"name": "cpu", "current": {"averageUtilization": now}});
            vec![json!({"type": "Resource", "resource": resource})]
        }),
    };
    status.insert("currentMetrics".to_owned(), current.filter(|l| !l.is_empty()).into());
    if let Some(conditions) = conditions {
        status.insert("conditions".to_owned(), Value::Array(conditions));
    }
}

fn cpu(target: Value) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": target});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn metric_to_v2(metric: &Value, names: &Names) -> Value {
    let mut out = Map::new();
    out.insert("type".to_owned(), at(metric, "type").clone());
    for kind in ["object", "pods", "resource", "containerResource", "external"] {
        if let Some(source) = metric.get(kind).filter(|v| v.is_object()) {
            out.insert(kind.to_owned(), source_to_v2(kind, source, names));
        }
    }
    Value::Object(out)
}

fn put(out: &mut Map<String, Value>, key: &str, value: Option<&Value>) {
    if let Some(value) = value.filter(|v| !v.is_null()) {
        out.insert(key.to_owned(), value.clone());
    }
}

fn source_to_v2(kind: &str, source: &Value, names: &Names) -> Value {
    let get = |key: &str| source.get(key).filter(|v| !v.is_null());
    let average = get(if kind == "object" { "averageValue" } else { names.average });
    let (value, utilization) = (get(names.value), get(names.utilization));
    let zero = value.is_none_or(|v| v == "0");
    // An object's value cannot be left out of v1: zero beside an average is none.
    let value = value.filter(|_| !(kind == "object" && !names.filled && average.is_some() && zero));
    let mut numbers = Map::new();
    if !names.filled {
        let form = match kind {
            "object" if average.is_none() => "Value",
            "external" if value.is_some() => "Value",
            "resource" | "containerResource" if utilization.is_some() => "Utilization",
            _ => "AverageValue",
        };
        numbers.insert("type".to_owned(), form.into());
    }
    put(&mut numbers, "value", value);
    put(&mut numbers, "averageValue", average);
    put(&mut numbers, "averageUtilization", utilization);
    let mut out = Map::new();
    out.insert(names.holder.to_owned(), Value::Object(numbers));
    match kind {
        "resource" | "containerResource" => {
            put(&mut out, "name", get("name"));
            put(&mut out, "container", get("container"));
        }
        _ => {
            let mut metric = Map::new();
            put(&mut metric, "name", get("metricName"));
            let key = if kind == "external" { "metricSelector" } else { "selector" };
            put(&mut metric, "selector", get(key));
            out.insert("metric".to_owned(), Value::Object(metric));
            if kind == "object" {
                put(&mut out, "describedObject", get("target"));
            }
        }
    }
    Value::Object(out)
}

/// Reads the behavior; names go by any case, as in the reference.
fn behavior_to_v2(text: &Value) -> Option<Value> {
    fn find<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
        let (_, found) = value.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(found).filter(|v| !v.is_null())
    }
    fn pick(value: &Value, names: &[&str]) -> Map<String, Value> {
        let mut out = Map::new();
        for name in names {
            put(&mut out, name, find(value, name));
        }
        out
    }
    let mut out = Map::new();
    for name in ["scaleUp", "scaleDown"] {
        let Some(rules) = find(text, name) else { continue };
        let mut given = pick(rules, &["stabilizationWindowSeconds", "selectPolicy", "tolerance"]);
        if let Some(policies) = find(rules, "policies").and_then(Value::as_array) {
            let policies = policies.iter().map(|p| pick(p, &["type", "value", "periodSeconds"]));
            given.insert("policies".to_owned(), policies.map(Value::Object).collect());
        }
        out.insert(name.to_owned(), Value::Object(given));
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_v1_cannot_say_survives() {
        let scaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "metrics": [
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
            {"type": "Pods", "pods": {"metric": {"name": "rps", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "1k"}}},
            {"type": "Object", "object": {"describedObject": {"kind": "Ingress", "name": "i", "apiVersion": "networking.k8s.io/v1"}, "metric": {"name": "x"}, "target": {"type": "Value", "value": "2"}}},
            {"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "Value", "value": "5"}}},
            {"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 5}}},
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5, "selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}}},
        "status": {"desiredReplicas": 0, "currentMetrics": [
            {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 1, "averageValue": "3"}}}],
            "conditions": [{"type": "AbleToScale", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
        let mut value = scaler.clone();
        to_v1(&mut value);
        assert_eq!(value["spec"]["targetCPUUtilizationPercentage"], 60);
        let annotations = &value["metadata"]["annotations"];
        let metrics = annotations[METRICS].as_str().expect("text");
        assert!(
            metrics.starts_with(r#"[{"type":"Resource","resource":{"name":"memory","targetAverageValue":"1Gi"}},{"type":"Pods","pods":{"metricName":"rps","targetAverageValue":"1k","selector":{"matchLabels":{"a":"b"}}}}"#),
            "{metrics}"
        );
        assert_eq!(
            annotations[BEHAVIOR],
            r#"{"ScaleUp":null,"ScaleDown":{"StabilizationWindowSeconds":5,"SelectPolicy":"Max","Policies":[{"Type":"Percent","Value":100,"PeriodSeconds":15}],"Tolerance":null}}"#
        );
        to_v2(&mut value);
        assert_eq!(value, scaler);
    }
}
