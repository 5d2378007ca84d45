//! Selectors over labels and nodes, taints and tolerations. A selector that cannot be read matches nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels, as objects carry them.
pub type Labels = BTreeMap<String, String>;

static NO_LABELS: Labels = Labels::new();

/// The labels of an object, whether it has any or not.
pub fn labels_of(labels: &Option<Labels>) -> &Labels {
    labels.as_ref().unwrap_or(&NO_LABELS)
}

/// Whether the selector selects by nothing, so that it matches everything.
pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(|labels| labels.is_empty())
        && selector.match_expressions.as_ref().is_none_or(|expressions| expressions.is_empty())
}

/// Whether a label selector matches; an empty one matches everything.
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    contains(labels, selector.match_labels.as_ref())
        && selector.match_expressions.iter().flatten().all(|expression| {
            let values = expression.values.as_deref().unwrap_or_default();
            requirement(&expression.operator, labels.get(&expression.key).map(String::as_str), values)
        })
}

/// Whether a label selector matches; a missing one matches nothing.
pub fn matches_some(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    selector.is_some_and(|selector| matches(selector, labels))
}

/// Whether `labels` hold all of `wanted`.
pub fn contains(labels: &Labels, wanted: Option<&Labels>) -> bool {
    wanted.into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

fn requirement(operator: &str, value: Option<&str>, values: &[String]) -> bool {
    let among = |value: &str| values.iter().any(|other| other == value);
    match operator {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" | "Lt" => {
            let (Some(value), [bound]) = (value, values) else { return false };
            let (Ok(value), Ok(bound)) = (value.parse::<i64>(), bound.parse::<i64>()) else { return false };
            if operator == "Gt" { value > bound } else { value < bound }
        }
        _ => false,
    }
}

/// Whether a node selector matches: any of its terms, of which an empty one matches nothing.
pub fn node_selector(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| node_selector_term(term, node))
}

/// Whether all requirements of one term hold for a node.
pub fn node_selector_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = labels_of(&node.metadata.labels);
    let holds = |one: &NodeSelectorRequirement, value| {
        requirement(&one.operator, value, one.values.as_deref().unwrap_or_default())
    };
    expressions.iter().all(|one| holds(one, labels.get(&one.key).map(String::as_str)))
        && fields.iter().all(|one| one.key == "metadata.name" && holds(one, node.metadata.name.as_deref()))
}

/// Whether a pod's `nodeSelector` and required node affinity allow a node.
pub fn node_affinity(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    if !contains(labels_of(&node.metadata.labels), spec.node_selector.as_ref()) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|selector| node_selector(selector, node))
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    if toleration.effect.as_deref().is_some_and(|effect| !effect.is_empty() && effect != taint.effect) {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let value = toleration.value.as_deref().unwrap_or_default();
    let of_taint = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => value == of_taint,
        "Exists" => true,
        operator @ ("Gt" | "Lt") => match (of_taint.parse::<i64>(), value.parse::<i64>()) {
            (Ok(has), Ok(bound)) => {
                if operator == "Gt" {
                    has > bound
                } else {
                    has < bound
                }
            }
            _ => false,
        },
        _ => false,
    }
}

/// The first taint with one of these effects that no toleration covers.
pub fn untolerated<'a>(
    taints: Option<&'a Vec<Taint>>,
    tolerations: Option<&Vec<Toleration>>,
    effects: &[&str],
) -> Option<&'a Taint> {
    taints.into_iter().flatten().find(|taint| {
        effects.contains(&taint.effect.as_str())
            && !tolerations.into_iter().flatten().any(|toleration| tolerates(toleration, taint))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn label_selectors() {
        let labels: Labels = [("app".into(), "web".into()), ("tier".into(), "2".into())].into();
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "web"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
            (json!({"matchExpressions": [{"key": "none", "operator": "NotIn", "values": ["web"]}]}), true),
            (json!({"matchExpressions": [{"key": "none", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "Wrong"}]}), false),
        ] {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).expect("a selector");
            assert_eq!(matches(&parsed, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn node_selectors() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"cpus": "8"}}}))
            .expect("a node");
        let check = |terms: Value, expected: bool| {
            let selector = serde_json::from_value(json!({"nodeSelectorTerms": terms})).expect("a selector");
            assert_eq!(node_selector(&selector, &node), expected, "{terms}");
        };
        check(json!([]), false);
        check(json!([{}]), false);
        check(json!([{"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["4"]}]}]), true);
        check(json!([{"matchExpressions": [{"key": "cpus", "operator": "Lt", "values": ["4"]}]}]), false);
        check(
            json!([{}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]),
            true,
        );
    }

    #[test]
    fn tolerations() {
        let taint: Taint = serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoSchedule"}))
            .expect("a taint");
        for (toleration, expected) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
        ] {
            let parsed: Toleration = serde_json::from_value(toleration.clone()).expect("a toleration");
            assert_eq!(tolerates(&parsed, &taint), expected, "{toleration}");
        }
    }
}
