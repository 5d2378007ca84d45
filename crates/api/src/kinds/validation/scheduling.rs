//! Where a pod may go: node selectors, affinity, tolerations, spreading.

use std::collections::HashSet;

use serde_json::Value;

use super::common::{self, label_name, label_selector, label_values};
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(crate) fn tolerations(errors: &mut Errors, list: &[Value], path: &Path<'_>) {
    for (index, toleration) in list.iter().enumerate() {
        let at = path.index(index);
        let (key, operator) = (toleration.text("key"), toleration.text("operator"));
        if !key.is_empty() {
            label_name(errors, key, &at.child("key"));
        } else if operator != "Exists" {
            errors.invalid(
                &at.child("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        let effect = toleration.text("effect");
        if toleration.has("tolerationSeconds") && effect != "NoExecute" {
            errors.invalid(
                &at.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        let value = toleration.text("value");
        match operator {
            "Equal" | "" => {
                let wrong = names::label_value(value);
                if !wrong.is_empty() {
                    errors.invalid(&at.child("operator"), value, wrong.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.invalid(&at.child("operator"), value, detail);
            }
            "Exists" => {}
            "Lt" | "Gt" => {
                let supported = ["Equal", "Exists", "Lt", "Gt"];
                errors.not_supported(&at.child("operator"), operator, &supported);
            }
            other => errors.not_supported(&at.child("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.not_supported(&at.child("effect"), effect, &EFFECTS);
        }
    }
}

/// A taint's effect, which must be there.
pub(crate) fn taint_effect(errors: &mut Errors, effect: &str, path: &Path<'_>) {
    common::one_of(errors, effect, path, &EFFECTS);
}

/// A NodeSelector: at least one term.
pub(crate) fn node_selector(errors: &mut Errors, selector: &Value, path: &Path<'_>) {
    let terms = path.child("nodeSelectorTerms");
    if selector.items("nodeSelectorTerms").is_empty() {
        errors.required(&terms, "must have at least one node selector term");
    }
    for (index, term) in selector.items("nodeSelectorTerms").iter().enumerate() {
        node_selector_term(errors, term, &terms.index(index), true);
    }
}

fn node_selector_term(errors: &mut Errors, term: &Value, path: &Path<'_>, strict: bool) {
    let expressions = path.child("matchExpressions");
    for (index, requirement) in term.items("matchExpressions").iter().enumerate() {
        let at = expressions.index(index);
        let values = requirement.items("values");
        match requirement.text("operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
                &at.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "Gt" | "Lt" if values.len() != 1 => errors.required(
                &at.child("values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        label_name(errors, requirement.text("key"), &at.child("key"));
        if strict {
            label_values(errors, values, &at.child("values"));
        }
    }
    let fields = path.child("matchFields");
    for (index, requirement) in term.items("matchFields").iter().enumerate() {
        let at = fields.index(index);
        let values = requirement.items("values");
        match requirement.text("operator") {
            "In" | "NotIn" if values.len() != 1 => errors.required(
                &at.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ),
            "In" | "NotIn" => {}
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        if requirement.text("key") != "metadata.name" {
            let key = requirement.text("key");
            errors.invalid(&at.child("key"), key, "not a valid field selector key");
            continue;
        }
        let list = at.child("values");
        for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
            common::subdomain(errors, value, &list.index(index));
        }
    }
}

pub(crate) fn affinity(errors: &mut Errors, affinity: &Value, path: &Path<'_>) {
    let node = affinity.at("nodeAffinity");
    let node_path = path.child("nodeAffinity");
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    if node.has(required) {
        node_selector(errors, node.at(required), &node_path.child(required));
    }
    let preferred_path = node_path.child(preferred);
    for (index, term) in node.items(preferred).iter().enumerate() {
        let at = preferred_path.index(index);
        weight(errors, term, &at);
        node_selector_term(errors, term.at("preference"), &at.child("preference"), false);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.at(kind);
        let kind_path = path.child(kind);
        let list = kind_path.child(required);
        for (index, term) in pods.items(required).iter().enumerate() {
            pod_affinity_term(errors, term, &list.index(index));
        }
        let list = kind_path.child(preferred);
        for (index, term) in pods.items(preferred).iter().enumerate() {
            let at = list.index(index);
            weight(errors, term, &at);
            pod_affinity_term(errors, term.at("podAffinityTerm"), &at.child("podAffinityTerm"));
        }
    }
}

fn weight(errors: &mut Errors, term: &Value, path: &Path<'_>) {
    let weight = term.num("weight");
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn pod_affinity_term(errors: &mut Errors, term: &Value, path: &Path<'_>) {
    label_selector(errors, term.at("labelSelector"), &path.child("labelSelector"));
    label_selector(errors, term.at("namespaceSelector"), &path.child("namespaceSelector"));
    for name in term.items("namespaces").iter().filter_map(Value::as_str) {
        common::label(errors, name, &path.child("namespace"));
    }
    for key in ["matchLabelKeys", "mismatchLabelKeys"] {
        label_keys(errors, term, path, key);
    }
    let mismatched = term.items("mismatchLabelKeys");
    let list = path.child("matchLabelKeys");
    for (index, key) in term.items("matchLabelKeys").iter().enumerate() {
        if mismatched.contains(key) {
            errors.invalid(
                &list.index(index),
                key.clone(),
                "exists in both matchLabelKeys and mismatchLabelKeys",
            );
        }
    }
    let topology = term.text("topologyKey");
    if topology.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    }
    label_name(errors, topology, &path.child("topologyKey"));
}

fn label_keys(errors: &mut Errors, holder: &Value, path: &Path<'_>, key: &str) {
    let keys = holder.items(key);
    let list = path.child(key);
    if keys.is_empty() {
        return;
    }
    if !holder.has("labelSelector") {
        errors.forbidden(&list, "must not be specified when labelSelector is not set");
        return;
    }
    for (index, key) in keys.iter().filter_map(Value::as_str).enumerate() {
        label_name(errors, key, &list.index(index));
    }
}

pub(crate) fn spread_constraints(errors: &mut Errors, list: &[Value], path: &Path<'_>) {
    const ACTIONS: [&str; 2] = ["DoNotSchedule", "ScheduleAnyway"];
    for (index, constraint) in list.iter().enumerate() {
        let at = path.index(index);
        common::positive(errors, constraint.num("maxSkew"), &at.child("maxSkew"));
        if constraint.text("topologyKey").is_empty() {
            errors.required(&at.child("topologyKey"), "can not be empty");
        }
        let action = constraint.text("whenUnsatisfiable");
        if !ACTIONS.contains(&action) {
            errors.not_supported(&at.child("whenUnsatisfiable"), action, &ACTIONS);
        }
        let again = list[index + 1..].iter().any(|other| {
            other.text("topologyKey") == constraint.text("topologyKey")
                && other.text("whenUnsatisfiable") == action
        });
        if again {
            errors.duplicate(
                &at.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{}, {action}}}", constraint.text("topologyKey")),
            );
        }
        if let Some(domains) = constraint.int("minDomains") {
            let at = at.child("minDomains");
            common::positive(errors, domains, &at);
            if action != "DoNotSchedule" {
                let detail =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(&at, domains, detail);
            }
        }
        for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let policy = constraint.text(key);
            if constraint.has(key) && !matches!(policy, "Honor" | "Ignore") {
                errors.not_supported(&at.child(key), policy, &["Honor", "Ignore"]);
            }
        }
        label_keys(errors, constraint, &at, "matchLabelKeys");
        label_selector(errors, constraint.at("labelSelector"), &at.child("labelSelector"));
    }
}

/// Tolerations may be added, and an old one may change its seconds.
pub(crate) fn only_added_tolerations(errors: &mut Errors, new: &[Value], old: &[Value], path: &Path<'_>) {
    let identity = |toleration: &Value| {
        ["key", "operator", "value", "effect"].map(|key| toleration.text(key).to_owned())
    };
    let new: HashSet<_> = new.iter().map(identity).collect();
    if !old.iter().all(|old| new.contains(&identity(old))) {
        errors.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
    }
}
