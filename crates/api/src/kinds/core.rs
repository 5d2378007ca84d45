//! The small kinds of the core group: ConfigMap, Secret, Namespace, Node, ServiceAccount, LimitRange, ResourceQuota, Event.

use serde_json::{Map, Value, json};

use super::json::{Read, Write, keep};
use super::{podspec, prepare};
use crate::Strategy;

pub(super) static CONFIG_MAP: Strategy = Strategy {
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    ..Strategy::GENERIC
};

pub(super) static SECRET: Strategy = Strategy {
    default: |secret| {
        merge_string_data(secret);
        secret.fill_zero("type", "Opaque");
    },
    prepare_create: prepare::nothing,
    prepare_update: |new, old| {
        prepare::keep_generation(new, old);
        if new.text("type").is_empty() {
            keep(new, old, "type");
        }
    },
    fields: |secret| vec![("type", secret.text("type").to_owned())],
    field_labels: &["type"],
    ..Strategy::GENERIC
};

pub(super) static NAMESPACE: Strategy = Strategy {
    default: |namespace| {
        let name = namespace.at("metadata").text("name").to_owned();
        if !name.is_empty() {
            namespace.child("metadata").child("labels").put("kubernetes.io/metadata.name", name);
        }
        namespace.child("status").fill_zero("phase", "Active");
    },
    prepare_create: |namespace| {
        namespace.put("status", json!({"phase": "Active"}));
        // The name may have been generated after the defaults.
        let name = namespace.at("metadata").text("name").to_owned();
        if !name.is_empty() {
            namespace.child("metadata").child("labels").put("kubernetes.io/metadata.name", name);
        }
        let spec = namespace.child("spec");
        let mut finalizers = spec.items("finalizers").to_vec();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        spec.put("finalizers", finalizers);
    },
    prepare_update: |new, old| {
        prepare::update(new, old);
        keep(new.child("spec"), old.at("spec"), "finalizers");
    },
    prepare_status: prepare::status,
    fields: |namespace| vec![("status.phase", namespace.at("status").text("phase").to_owned())],
    field_labels: &["status.phase"],
    ..Strategy::GENERIC
};

pub(super) static NODE: Strategy = Strategy {
    default: |node| {
        if let Some(spec) = node.existing("spec") {
            // The old single range is the first of the list.
            let (single, list) = (spec.text("podCIDR").to_owned(), spec.items("podCIDRs").to_vec());
            match list.first() {
                _ if !single.is_empty() && list.first().is_none_or(|first| *first != *single) => {
                    spec.put("podCIDRs", vec![Value::from(single)]);
                }
                Some(first) if single.is_empty() => {
                    let first = first.clone();
                    spec.put("podCIDR", first);
                }
                _ => {}
            }
        }
        if let Some(status) = node.existing("status") {
            for list in ["capacity", "allocatable"] {
                if let Some(list) = status.existing(list) {
                    podspec::round_up_all(list);
                }
            }
            if status.has("capacity") {
                let capacity = status.at("capacity").clone();
                status.fill("allocatable", capacity);
            }
        }
    },
    prepare_create: prepare::nothing,
    prepare_update: prepare::update,
    prepare_status: prepare::status,
    fields: |node| vec![("spec.unschedulable", node.at("spec").flag("unschedulable").to_string())],
    field_labels: &["spec.unschedulable"],
    ..Strategy::GENERIC
};

pub(super) static SERVICE_ACCOUNT: Strategy = Strategy {
    prepare_create: clean_secret_references,
    prepare_update: |new, old| {
        prepare::keep_generation(new, old);
        clean_secret_references(new);
    },
    ..Strategy::GENERIC
};

pub(super) static LIMIT_RANGE: Strategy = Strategy {
    default: |range| {
        if let Some(spec) = range.existing("spec") {
            spec.items_mut("limits").iter_mut().for_each(default_limit);
        }
    },
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    allow_create_on_update: true,
    ..Strategy::GENERIC
};

pub(super) static RESOURCE_QUOTA: Strategy = Strategy {
    default: |quota| {
        for (part, list) in [("spec", "hard"), ("status", "hard"), ("status", "used")] {
            if let Some(list) = quota.existing(part).and_then(|part| part.existing(list)) {
                podspec::round_up_all(list);
            }
        }
    },
    prepare_create: prepare::create,
    prepare_update: prepare::update,
    prepare_status: prepare::status,
    ..Strategy::GENERIC
};

pub(super) static EVENT: Strategy = Strategy {
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    fields: event_fields,
    field_labels: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    allow_create_on_update: true,
    ..Strategy::GENERIC
};

/// The same events by the names that `events.k8s.io` gives the fields.
pub(super) static NEW_EVENT: Strategy = Strategy {
    field_labels: &[
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reason",
        "reportingController",
        "type",
    ],
    fields: event_fields,
    ..EVENT_BASE
};

const EVENT_BASE: Strategy = Strategy {
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    allow_create_on_update: true,
    ..Strategy::GENERIC
};

/// Write-only text goes into the data, and wins over it.
fn merge_string_data(secret: &mut Value) {
    use base64::Engine as _;
    let Some(Value::Object(strings)) = secret.take_key("stringData") else { return };
    if strings.is_empty() {
        return;
    }
    let data = secret.child("data");
    for (key, value) in strings {
        let text = value.as_str().unwrap_or_default();
        data.put(&key, base64::engine::general_purpose::STANDARD.encode(text));
    }
}

fn clean_secret_references(account: &mut Value) {
    for secret in account.items_mut("secrets") {
        let mut only = Map::new();
        if let Some(name) = secret.get("name").filter(|name| !name.is_empty_value()) {
            only.insert("name".to_owned(), name.clone());
        }
        *secret = Value::Object(only);
    }
}

fn default_limit(limit: &mut Value) {
    for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        if let Some(list) = limit.existing(list) {
            podspec::round_up_all(list);
        }
    }
    if limit.text("type") != "Container" {
        return;
    }
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        let Some(from) = limit.at(from).as_object().cloned() else { continue };
        for (name, amount) in from {
            limit.child(to).fill(&name, amount);
        }
    }
}

/// By the names of both groups: one stored event is served in both.
fn event_fields(event: &Value) -> Vec<(&'static str, String)> {
    let pick = |core: &'static str, new: &'static str| {
        let value = event.at(core);
        if value.is_null() { event.at(new) } else { value }
    };
    let object = pick("involvedObject", "regarding");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let controller = text(pick("reportingComponent", "reportingController"));
    let source = pick("source", "deprecatedSource").text("component").to_owned();
    let of_object = [
        ("kind", "involvedObject.kind", "regarding.kind"),
        ("namespace", "involvedObject.namespace", "regarding.namespace"),
        ("name", "involvedObject.name", "regarding.name"),
        ("uid", "involvedObject.uid", "regarding.uid"),
        ("apiVersion", "involvedObject.apiVersion", "regarding.apiVersion"),
        ("resourceVersion", "involvedObject.resourceVersion", "regarding.resourceVersion"),
        ("fieldPath", "involvedObject.fieldPath", "regarding.fieldPath"),
    ];
    let mut fields = Vec::with_capacity(2 * of_object.len() + 5);
    for (key, core, new) in of_object {
        fields.push((core, object.text(key).to_owned()));
        fields.push((new, object.text(key).to_owned()));
    }
    fields.push(("reason", event.text("reason").to_owned()));
    fields.push(("source", if source.is_empty() { controller.clone() } else { source }));
    fields.push(("reportingComponent", controller.clone()));
    fields.push(("reportingController", controller));
    fields.push(("type", event.text("type").to_owned()));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_wins() {
        let mut secret = json!({"stringData": {"k": "v"}, "data": {"k": "AA==", "l": "AA=="}});
        (SECRET.default)(&mut secret);
        assert_eq!(secret, json!({"data": {"k": "dg==", "l": "AA=="}, "type": "Opaque"}));
    }

    #[test]
    fn namespace_is_labelled_and_finalized() {
        let mut namespace = json!({"metadata": {"name": "n"}});
        (NAMESPACE.default)(&mut namespace);
        (NAMESPACE.prepare_create)(&mut namespace);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "n", "labels": {"kubernetes.io/metadata.name": "n"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
    }

    #[test]
    fn container_limits_follow_each_other() {
        let mut range =
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1"}}]}});
        (LIMIT_RANGE.default)(&mut range);
        let limit = &range["spec"]["limits"][0];
        assert_eq!(limit["default"], json!({"cpu": "2"}));
        assert_eq!(limit["defaultRequest"], json!({"cpu": "2", "memory": "1"}));
    }
}
