//! Kinds of the control plane: flow control, leases, priority and runtime classes, certificates, API services, CRDs.

use serde_json::{Value, json};

use super::json::{Read, Write, keep};
use super::prepare;
use super::validation::definition;
use crate::Strategy;

pub(super) static FLOW_SCHEMA: Strategy =
    Strategy { default: |schema| schema.child("spec").fill_zero("matchingPrecedence", 1000), ..FLOW_CONTROL };

pub(super) static PRIORITY_LEVEL: Strategy = Strategy { default: default_priority_level, ..FLOW_CONTROL };

const FLOW_CONTROL: Strategy = Strategy {
    prepare_create: prepare::create_first,
    prepare_update: prepare::update_counted,
    prepare_status: |new, old| {
        let managed = new.at("metadata").at("managedFields").clone();
        prepare::status(new, old);
        keep(new, old, "metadata");
        if !managed.is_null() {
            new.child("metadata").put("managedFields", managed);
        }
    },
    ..Strategy::GENERIC
};

pub(super) static LEASE: Strategy = Strategy {
    prepare_create: |lease| drop_coordinated(lease, &Value::Null),
    prepare_update: |new, old| {
        prepare::keep_generation(new, old);
        drop_coordinated(new, old);
    },
    allow_create_on_update: true,
    unconditional_update: false,
    ..Strategy::GENERIC
};

pub(super) static PRIORITY_CLASS: Strategy = Strategy {
    default: |class| class.fill("preemptionPolicy", "PreemptLowerPriority"),
    prepare_create: prepare::first,
    prepare_update: prepare::keep_generation,
    ..Strategy::GENERIC
};

pub(super) static RUNTIME_CLASS: Strategy = Strategy {
    default: |class| {
        if let Some(fixed) = class.existing("overhead").and_then(|overhead| overhead.existing("podFixed")) {
            super::podspec::round_up_all(fixed);
        }
    },
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    allow_create_on_update: true,
    unconditional_update: false,
    ..Strategy::GENERIC
};

pub(super) static CERTIFICATE_SIGNING_REQUEST: Strategy = Strategy {
    prepare_create: prepare::create,
    prepare_update: |new, old| {
        keep(new, old, "spec");
        prepare::update(new, old);
    },
    prepare_status: |new, old| {
        prepare::status(new, old);
        populate_condition_times(new, old);
    },
    fields: |request| vec![("spec.signerName", request.at("spec").text("signerName").to_owned())],
    field_labels: &["spec.signerName"],
    ..Strategy::GENERIC
};

pub(super) static API_SERVICE: Strategy = Strategy {
    default: |service| {
        if let Some(service) = service.existing("spec").and_then(|spec| spec.existing("service")) {
            service.fill("port", 443);
        }
    },
    prepare_create: |service| {
        prepare::create(service);
        // What is served by the API server itself needs no check.
        if service.at("spec").at("service").is_null() {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let local = json!({
                "type": "Available",
                "status": "True",
                "lastTransitionTime": now,
                "reason": "Local",
                "message": "Local APIServices are always available",
            });
            service.child("status").put("conditions", json!([local]));
        }
    },
    prepare_update: prepare::update,
    prepare_status: |new, old| {
        prepare::status(new, old);
        for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
            keep(new.child("metadata"), old.at("metadata"), key);
        }
    },
    unconditional_update: false,
    ..Strategy::GENERIC
};

pub(super) static CUSTOM_RESOURCE_DEFINITION: Strategy = Strategy {
    default: default_definition,
    warnings: definition::warnings,
    unconditional_update: false,
    update_is_whole: true,
    prepare_create: |definition| {
        let stored: Vec<Value> = storage_version(definition).into_iter().collect();
        prepare::create_with(
            definition,
            json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}),
        );
    },
    prepare_update: |new, old| {
        prepare::update_counted(new, old);
        // The version that is stored from now on is one of those that were ever stored.
        if let Some(name) = storage_version(new) {
            let mut stored = new.at("status").items("storedVersions").to_vec();
            if !stored.contains(&name) {
                stored.push(name);
                new.child("status").put("storedVersions", stored);
            }
        }
    },
    // Unlike other kinds a definition lets its metadata be written here.
    prepare_status: prepare::status,
    ..Strategy::GENERIC
};

/// Before an update through `approval` is validated: only the conditions may change.
pub fn prepare_approval(new: &mut Value, old: &Value) {
    populate_condition_times(new, old);
    let conditions = new.at("status").at("conditions").clone();
    keep(new, old, "spec");
    keep(new, old, "status");
    let status = new.child("status");
    if conditions.is_null() {
        status.take_key("conditions");
    } else {
        status.put("conditions", conditions);
    }
    prepare::keep_generation(new, old);
}

/// Fills in the times that the writer of a condition left out.
fn populate_condition_times(new: &mut Value, old: &Value) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let Some(status) = new.existing("status") else { return };
    for condition in status.items_mut("conditions") {
        condition.fill("lastUpdateTime", now.as_str());
        if !condition.has("lastTransitionTime") {
            let before = old
                .at("status")
                .items("conditions")
                .iter()
                .find(|o| {
                    o.text("type") == condition.text("type") && o.text("status") == condition.text("status")
                })
                .map(|o| o.at("lastTransitionTime").clone())
                .filter(|time| !time.is_null());
            condition.put("lastTransitionTime", before.unwrap_or_else(|| now.as_str().into()));
        }
    }
}

fn default_priority_level(level: &mut Value) {
    let spec = level.child("spec");
    if let Some(exempt) = spec.existing("exempt") {
        exempt.fill("nominalConcurrencyShares", 0);
        exempt.fill("lendablePercent", 0);
    }
    if let Some(limited) = spec.existing("limited") {
        limited.fill("nominalConcurrencyShares", 30);
        limited.fill("lendablePercent", 0);
        if let Some(queuing) = limited.existing("limitResponse").and_then(|r| r.existing("queuing")) {
            for (key, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                queuing.fill_zero(key, value);
            }
        }
    }
}

/// Coordinated leader election is off by default; its fields stay only where they are in use.
fn drop_coordinated(new: &mut Value, old: &Value) {
    let Some(spec) = new.existing("spec") else { return };
    for key in ["strategy", "preferredHolder"] {
        if !old.at("spec").has(key) {
            spec.take_key(key);
        }
    }
}

fn default_definition(definition: &mut Value) {
    let spec = definition.child("spec");
    let names = spec.child("names");
    let kind = names.text("kind").to_owned();
    if !kind.is_empty() {
        names.fill_zero("singular", kind.to_lowercase());
        names.fill_zero("listKind", format!("{kind}List"));
    }
    if !spec.has("conversion") {
        spec.put("conversion", json!({"strategy": "None"}));
    }
    if let Some(service) = spec
        .existing("conversion")
        .and_then(|conversion| conversion.existing("webhook")?.existing("clientConfig")?.existing("service"))
    {
        service.fill("port", 443);
    }
    if definition.at("status").items("storedVersions").is_empty()
        && let Some(stored) = storage_version(definition)
    {
        let status = definition.child("status");
        status.put("storedVersions", json!([stored]));
        status.fill("conditions", Value::Null);
        status.fill("acceptedNames", json!({"plural": "", "kind": ""}));
    }
}

/// The name of the version that a definition stores.
fn storage_version(definition: &Value) -> Option<Value> {
    let versions = definition.at("spec").items("versions");
    versions.iter().find(|version| version.flag("storage")).map(|version| version.at("name").clone())
}
