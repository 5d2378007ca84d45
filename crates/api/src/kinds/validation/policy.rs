//! PodDisruptionBudget and HorizontalPodAutoscaler.

use serde_json::Value;

use super::common::{self, at_most_hundred, number_or_percent, required};
use super::resources::quantity;
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

pub(crate) fn disruption_budget(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        errors.invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if spec.has(key) {
            number_or_percent(&mut errors, spec.at(key), &path.child(key));
            at_most_hundred(&mut errors, spec.at(key), &path.child(key));
        }
    }
    common::label_selector(&mut errors, spec.at("selector"), &path.child("selector"));
    let policy = spec.text("unhealthyPodEvictionPolicy");
    let known = ["AlwaysAllow", "IfHealthyBudget"];
    if spec.has("unhealthyPodEvictionPolicy") && !known.contains(&policy) {
        errors.not_supported(&path.child("unhealthyPodEvictionPolicy"), policy, &known);
    }
    errors.0
}

pub(crate) fn autoscaler(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let (least, most) = (spec.int("minReplicas"), spec.num("maxReplicas"));
    if let Some(least) = least.filter(|least| *least < 1) {
        errors.invalid(&path.child("minReplicas"), least, "must be greater than or equal to 1");
    }
    let at = path.child("maxReplicas");
    if most == 0 {
        errors.required(&at, "must be set and greater than 0");
    } else if most < 0 {
        errors.invalid(&at, most, "must be greater than or equal to 1");
    }
    if least.is_some_and(|least| most < least) {
        errors.invalid(&at, most, "must be greater than or equal to `minReplicas`");
    }
    reference(&mut errors, spec.at("scaleTargetRef"), &path.child("scaleTargetRef"), true);
    let list = path.child("metrics");
    for (index, metric) in spec.items("metrics").iter().enumerate() {
        metric_spec(&mut errors, metric, &list.index(index));
    }
    if let Some(percent) = spec.int("targetCPUUtilizationPercentage").filter(|percent| *percent < 1) {
        errors.invalid(&path.child("targetCPUUtilizationPercentage"), percent, "must be greater than 0");
    }
    let behavior = path.child("behavior");
    for key in ["scaleUp", "scaleDown"] {
        let rules = spec.at("behavior").at(key);
        if rules.is_object() {
            scaling_rules(&mut errors, rules, &behavior.child(key));
        }
    }
    errors.0
}

fn reference(errors: &mut Errors, target: &Value, path: &Path<'_>, grouped: bool) {
    for key in ["kind", "name"] {
        match target.text(key) {
            "" => errors.required(&path.child(key), ""),
            name => errors.all_invalid(&path.child(key), name, names::path_segment(name)),
        }
    }
    let version = target.text("apiVersion");
    let at = path.child("apiVersion");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    if version.matches('/').count() > 1 {
        errors.invalid(&at, version, format!("unexpected GroupVersion string: {version}"));
    } else if grouped && group.is_empty() && target.text("kind") != "ReplicationController" {
        errors.invalid(&at, version, "apiVersion must specify API group");
    }
}

const TYPES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn metric_spec(errors: &mut Errors, metric: &Value, path: &Path<'_>) {
    let kind = metric.text("type");
    let known: Vec<&str> = TYPES.iter().map(|(kind, _)| *kind).collect();
    let Some((_, key)) = TYPES.iter().find(|(name, _)| *name == kind) else {
        if kind.is_empty() {
            errors.required(&path.child("type"), "must specify a metric source type");
        }
        errors.not_supported(&path.child("type"), kind, &known);
        return;
    };
    if !metric.has(key) {
        errors.required(&path.child(key), "must populate information for the given metric source");
    }
    for (_, other) in TYPES.iter().filter(|(_, other)| other != key && metric.has(other)) {
        errors.forbidden(&path.child(other), "must populate the given metric source only");
    }
    let source = metric.at(key);
    if source.is_null() {
        return;
    }
    let at = path.child(key);
    metric_source(errors, source, key, &at);
}

fn metric_source(errors: &mut Errors, source: &Value, key: &str, path: &Path<'_>) {
    let target = source.at("target");
    let at = path.child("target");
    let both = target.has("averageUtilization") && target.has("averageValue");
    match key {
        "resource" | "containerResource" => {
            required(errors, source, path, "name");
            if key == "containerResource" {
                match source.text("container") {
                    "" => errors.required(&path.child("container"), "must specify a container"),
                    name => common::label(errors, name, &path.child("container")),
                }
            }
            metric_target(errors, target, &at);
            if !target.has("averageUtilization") && !target.has("averageValue") {
                errors.required(
                    &at.child("averageUtilization"),
                    "must set either a target raw value or a target utilization",
                );
            }
            if both {
                errors.forbidden(
                    &at.child("averageValue"),
                    "may not set both a target raw value and a target utilization",
                );
            }
            return;
        }
        "object" => {
            reference(errors, source.at("describedObject"), &path.child("describedObject"), false);
        }
        _ => {}
    }
    let metric = path.child("metric");
    match source.at("metric").text("name") {
        "" => errors.required(&metric.child("name"), "must specify a metric name"),
        name => errors.all_invalid(&metric.child("name"), name, names::path_segment(name)),
    }
    metric_target(errors, target, &at);
    let (value, average) = (target.has("value"), target.has("averageValue"));
    match key {
        "pods" if !average => {
            errors.required(&at.child("averageValue"), "must specify a positive target averageValue");
        }
        "object" | "external" if !value && !average => {
            errors.required(&at.child("averageValue"), "must set either a target value or averageValue");
        }
        "external" if value && average => errors
            .forbidden(&at.child("value"), "may not set both a target value for metric and a per-pod target"),
        _ => {}
    }
}

fn metric_target(errors: &mut Errors, target: &Value, path: &Path<'_>) {
    let kind = target.text("type");
    if kind.is_empty() {
        errors.required(&path.child("type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errors.invalid(&path.child("type"), kind, "must be either Utilization, Value, or AverageValue");
    }
    for key in ["value", "averageValue"] {
        let amount = quantity(target.at(key));
        if let Some(amount) = amount.filter(|amount| amount.is_zero() || amount.is_negative()) {
            errors.invalid(&path.child(key), amount.to_string(), "must be positive");
        }
    }
    if let Some(percent) = target.int("averageUtilization").filter(|percent| *percent < 1) {
        errors.invalid(&path.child("averageUtilization"), percent, "must be greater than 0");
    }
}

fn scaling_rules(errors: &mut Errors, rules: &Value, path: &Path<'_>) {
    let at = path.child("stabilizationWindowSeconds");
    match rules.int("stabilizationWindowSeconds") {
        Some(seconds) if seconds < 0 => {
            errors.invalid(&at, seconds, "must be greater than or equal to zero");
        }
        Some(seconds) if seconds > 3600 => {
            errors.invalid(&at, seconds, "must be less than or equal to 3600");
        }
        _ => {}
    }
    let select = rules.text("selectPolicy");
    if rules.has("selectPolicy") && !matches!(select, "Disabled" | "Max" | "Min") {
        errors.not_supported(&path.child("selectPolicy"), select, &["Disabled", "Max", "Min"]);
    }
    let list = path.child("policies");
    if rules.items("policies").is_empty() {
        errors.required(&list, "must specify at least one Policy");
    }
    for (index, policy) in rules.items("policies").iter().enumerate() {
        let at = list.index(index);
        let kind = policy.text("type");
        if !matches!(kind, "Percent" | "Pods") {
            errors.not_supported(&at.child("type"), kind, &["Percent", "Pods"]);
        }
        for key in ["value", "periodSeconds"] {
            if policy.num(key) <= 0 {
                errors.invalid(&at.child(key), policy.num(key), "must be greater than zero");
            }
        }
        if policy.num("periodSeconds") > 1800 {
            let detail = "must be less than or equal to 1800";
            errors.invalid(&at.child("periodSeconds"), policy.num("periodSeconds"), detail);
        }
    }
}
