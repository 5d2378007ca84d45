//! Deployment, ReplicaSet, DaemonSet, StatefulSet, ReplicationController, ControllerRevision, PodTemplate.

use schema::Str;
use serde_json::{Value, json};

use super::json::{Read, Write, keep, same};
use super::{podspec, prepare, storage};
use crate::{ScalePaths, Strategy};

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

const REPLICAS: ScalePaths = ScalePaths {
    spec_replicas: Str::Borrowed("/spec/replicas"),
    status_replicas: Str::Borrowed("/status/replicas"),
    selector: Str::Borrowed("/spec/selector"),
};

pub(super) static DEPLOYMENT: Strategy = Strategy {
    default: default_deployment,
    prepare_create: prepare::create_first,
    prepare_update: |new, old| {
        prepare::update(new, old);
        // Annotations are copied to the replica sets, so they count as well.
        let annotations = |object: &Value| object.dig(&["metadata", "annotations"]).clone();
        let unchanged = same(new.at("spec"), old.at("spec")) && same(&annotations(new), &annotations(old));
        prepare::count(new, old, unchanged);
    },
    prepare_status: |new, old| {
        prepare::status(new, old);
        keep(new.child("metadata"), old.at("metadata"), "labels");
    },
    scale: Some(REPLICAS),
    ..Strategy::GENERIC
};

pub(super) static REPLICA_SET: Strategy = Strategy {
    default: |object| {
        let spec = object.child("spec");
        podspec::default_template(spec.child("template"));
        spec.fill("replicas", 1);
    },
    prepare_create: |object| prepare::create_with(object, json!({"replicas": 0})),
    prepare_update: prepare::update_counted,
    prepare_status: prepare::status,
    scale: Some(REPLICAS),
    ..Strategy::GENERIC
};

pub(super) static DAEMON_SET: Strategy = Strategy {
    default: default_daemon_set,
    prepare_create: |object| {
        prepare::create_with(
            object,
            json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0}),
        );
        let generation = template_generation(object).max(1);
        set_template_generation(object, generation);
    },
    prepare_update: |new, old| {
        prepare::update_counted(new, old);
        let unchanged = same(new.dig(&["spec", "template"]), old.dig(&["spec", "template"]));
        set_template_generation(new, template_generation(old) + i64::from(!unchanged));
    },
    prepare_status: prepare::status,
    ..Strategy::GENERIC
};

pub(super) static STATEFUL_SET: Strategy = Strategy {
    default: default_stateful_set,
    prepare_create: |object| prepare::create_with(object, json!({"replicas": 0, "availableReplicas": 0})),
    prepare_update: prepare::update_counted,
    prepare_status: prepare::status,
    scale: Some(REPLICAS),
    ..Strategy::GENERIC
};

pub(super) static REPLICATION_CONTROLLER: Strategy = Strategy {
    default: default_replication_controller,
    prepare_create: |object| prepare::create_with(object, json!({"replicas": 0})),
    prepare_update: prepare::update_counted,
    prepare_status: prepare::status,
    scale: Some(REPLICAS),
    fields: |object| vec![("status.replicas", object.at("status").num("replicas").to_string())],
    field_labels: &["status.replicas"],
    ..Strategy::GENERIC
};

pub(super) static CONTROLLER_REVISION: Strategy = Strategy {
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    ..Strategy::GENERIC
};

pub(super) static POD_TEMPLATE: Strategy = Strategy {
    default: |object| podspec::default_template(object.child("template")),
    prepare_create: prepare::first,
    prepare_update: |new, old| prepare::count(new, old, same(new.at("template"), old.at("template"))),
    ..Strategy::GENERIC
};

fn default_deployment(object: &mut Value) {
    let spec = object.child("spec");
    podspec::default_template(spec.child("template"));
    spec.fill("replicas", 1);
    let strategy = spec.child("strategy");
    strategy.fill_zero("type", "RollingUpdate");
    if strategy.text("type") == "RollingUpdate" {
        let rolling = strategy.child("rollingUpdate");
        rolling.fill("maxUnavailable", "25%");
        rolling.fill("maxSurge", "25%");
    }
    spec.fill("revisionHistoryLimit", 10);
    spec.fill("progressDeadlineSeconds", 600);
}

fn default_daemon_set(object: &mut Value) {
    let spec = object.child("spec");
    podspec::default_template(spec.child("template"));
    let strategy = spec.child("updateStrategy");
    strategy.fill_zero("type", "RollingUpdate");
    if strategy.text("type") == "RollingUpdate" {
        let rolling = strategy.child("rollingUpdate");
        rolling.fill("maxUnavailable", 1);
        rolling.fill("maxSurge", 0);
    }
    spec.fill("revisionHistoryLimit", 10);
}

fn default_stateful_set(object: &mut Value) {
    let spec = object.child("spec");
    podspec::default_template(spec.child("template"));
    for claim in spec.items_mut("volumeClaimTemplates") {
        claim.fill_zero("kind", "PersistentVolumeClaim");
        claim.fill_zero("apiVersion", "v1");
        storage::default_claim(claim);
    }
    spec.fill_zero("podManagementPolicy", "OrderedReady");
    let strategy = spec.child("updateStrategy");
    if strategy.text("type").is_empty() {
        strategy.put("type", "RollingUpdate");
        strategy.child("rollingUpdate");
    }
    if strategy.text("type") == "RollingUpdate"
        && let Some(rolling) = strategy.existing("rollingUpdate")
    {
        rolling.fill("partition", 0);
    }
    let retention = spec.child("persistentVolumeClaimRetentionPolicy");
    retention.fill_zero("whenDeleted", "Retain");
    retention.fill_zero("whenScaled", "Retain");
    spec.fill("replicas", 1);
    spec.fill("revisionHistoryLimit", 10);
}

fn default_replication_controller(object: &mut Value) {
    let spec = object.child("spec");
    spec.fill("replicas", 1);
    if spec.has("template") {
        podspec::default_template(spec.child("template"));
        let labels = spec.dig(&["template", "metadata", "labels"]).clone();
        if !labels.is_empty_value() {
            spec.fill_zero("selector", labels.clone());
            object.child("metadata").fill_zero("labels", labels);
        }
    }
}

/// The number that lives in an annotation since `extensions/v1beta1` went.
fn template_generation(object: &Value) -> i64 {
    object
        .dig(&["metadata", "annotations", TEMPLATE_GENERATION])
        .as_str()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

fn set_template_generation(object: &mut Value, generation: i64) {
    object.child("metadata").child("annotations").put(TEMPLATE_GENERATION, generation.to_string());
}
