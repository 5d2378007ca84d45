//! Node labels that have been replaced by others.

use serde_json::Value;

use crate::kinds::json::Read;
use crate::names;

const DEPRECATED: [(&str, &str); 8] = [
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
];

/// What to say of a label's key, if it is an old one.
pub(super) fn deprecated(key: &str) -> Option<&'static str> {
    DEPRECATED.iter().find(|(old, _)| *old == key).map(|(_, told)| *told)
}

/// The requirements of a node selector term; `values` says whether their values are checked as well.
pub(super) fn term(out: &mut Vec<String>, term: &Value, values: bool, path: &str) {
    for (index, expression) in term.items("matchExpressions").iter().enumerate() {
        let key = expression.text("key");
        if let Some(told) = deprecated(key) {
            out.push(format!("{path}.matchExpressions[{index}].key: {key} is {told}"));
        }
        for (at, value) in expression.items("values").iter().enumerate().filter(|_| values) {
            let value = value.as_str().unwrap_or_default();
            for told in names::label_value(value) {
                out.push(format!(
                    "{path}.matchExpressions[{index}].values[{at}]: {value} is invalid, {told}"
                ));
            }
        }
    }
}

pub(super) fn terms(out: &mut Vec<String>, selector: &Value, path: &str) {
    for (index, one) in selector.items("nodeSelectorTerms").iter().enumerate() {
        term(out, one, false, &format!("{path}.nodeSelectorTerms[{index}]"));
    }
}

pub(super) fn runtime_class(class: &Value) -> Vec<String> {
    let labels = class.at("scheduling").entries("nodeSelector");
    let told = labels.into_iter().filter_map(|(key, _)| deprecated(key));
    told.map(|told| format!("scheduling.nodeSelector: {told}")).collect()
}

pub(super) fn storage_class(class: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for (i, topology) in class.items("allowedTopologies").iter().enumerate() {
        for (j, expression) in topology.items("matchLabelExpressions").iter().enumerate() {
            if let Some(told) = deprecated(expression.text("key")) {
                out.push(format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key: {told}"));
            }
        }
    }
    out
}

pub(super) fn capacity(capacity: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let topology = capacity.at("nodeTopology");
    term(&mut out, topology, false, "nodeTopology");
    for (key, _) in topology.entries("matchLabels") {
        if let Some(told) = deprecated(key) {
            out.push(format!("nodeTopology.matchLabels.{key}: {told}"));
        }
    }
    out
}
