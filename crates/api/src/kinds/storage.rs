//! PersistentVolume, PersistentVolumeClaim and the kinds of storage.k8s.io.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{Read, Write};
use super::{podspec, prepare};
use crate::Strategy;

pub(super) static PERSISTENT_VOLUME: Strategy = Strategy {
    default: |volume| {
        volume.child("status").fill_zero("phase", "Pending");
        let spec = volume.child("spec");
        spec.fill_zero("persistentVolumeReclaimPolicy", "Retain");
        spec.fill("volumeMode", "Filesystem");
        podspec::default_volume_source(spec);
        if let Some(capacity) = spec.existing("capacity") {
            podspec::round_up_all(capacity);
        }
    },
    prepare_create: |volume| {
        // The transition is the creation.
        let mut status = json!({"phase": "Pending"});
        status.put(
            "lastPhaseTransitionTime",
            match volume.dig(&["metadata", "creationTimestamp"]) {
                Value::Null => seconds(Timestamp::now()),
                created => created.clone(),
            },
        );
        volume.put("status", status);
    },
    prepare_update: prepare::update,
    prepare_status: |new, old| {
        prepare::status(new, old);
        let old = old.at("status");
        let status = new.child("status");
        let key = "lastPhaseTransitionTime";
        let same_phase = status.text("phase") == old.text("phase");
        if same_phase && !status.has(key) {
            if old.has(key) {
                status.put(key, old.at(key).clone());
            }
        } else if !same_phase && (!status.has(key) || status.at(key) == old.at(key)) {
            status.put(key, seconds(Timestamp::now()));
        }
    },
    ..Strategy::GENERIC
};

pub(super) static PERSISTENT_VOLUME_CLAIM: Strategy = Strategy {
    default: default_claim,
    prepare_create: |claim| {
        claim.put("status", json!({"phase": "Pending"}));
        if let Some(spec) = claim.existing("spec") {
            enforce_data_source(spec, &Value::Null);
            normalize_data_sources(spec);
        }
    },
    prepare_update: |new, old| {
        prepare::update(new, old);
        if let Some(spec) = new.existing("spec") {
            enforce_data_source(spec, old.at("spec"));
            normalize_data_sources(spec);
        }
    },
    prepare_status: prepare::status,
    ..Strategy::GENERIC
};

pub(super) static STORAGE_CLASS: Strategy = Strategy {
    default: |class| {
        class.fill("reclaimPolicy", "Delete");
        class.fill("volumeBindingMode", "Immediate");
    },
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    ..Strategy::GENERIC
};

pub(super) static CSI_DRIVER: Strategy = Strategy {
    default: |driver| {
        let spec = driver.child("spec");
        for (key, value) in [
            ("attachRequired", true),
            ("podInfoOnMount", false),
            ("storageCapacity", false),
            ("requiresRepublish", false),
            ("seLinuxMount", false),
        ] {
            spec.fill(key, value);
        }
        spec.fill("fsGroupPolicy", "ReadWriteOnceWithFSType");
        spec.fill_zero("volumeLifecycleModes", vec![Value::from("Persistent")]);
    },
    prepare_create: prepare::nothing,
    prepare_update: prepare::counted,
    unconditional_update: false,
    ..Strategy::GENERIC
};

/// CSINode and CSIStorageCapacity.
pub(super) static CONDITIONAL: Strategy = Strategy {
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    unconditional_update: false,
    ..Strategy::GENERIC
};

pub(super) static VOLUME_ATTACHMENT: Strategy = Strategy {
    default: |attachment| {
        if let Some(source) =
            attachment.existing("spec").and_then(|s| s.existing("source")?.existing("inlineVolumeSpec"))
        {
            podspec::default_volume_source(source);
        }
    },
    prepare_create: |attachment| attachment.put("status", json!({"attached": false})),
    prepare_update: prepare::update,
    prepare_status: prepare::status_only,
    unconditional_update: false,
    ..Strategy::GENERIC
};

pub(super) static VOLUME_ATTRIBUTES_CLASS: Strategy = Strategy {
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    ..Strategy::GENERIC
};

pub(super) static STORAGE_VERSION_MIGRATION: Strategy = Strategy {
    prepare_create: prepare::create,
    prepare_update: prepare::update,
    prepare_status: prepare::status_only,
    unconditional_update: false,
    ..Strategy::GENERIC
};

/// Defaults of a claim, also inside a StatefulSet.
pub(crate) fn default_claim(claim: &mut Value) {
    default_claim_spec(claim.child("spec"));
    let status = claim.child("status");
    status.fill_zero("phase", "Pending");
    for list in ["capacity", "allocatedResources"] {
        if let Some(list) = status.existing(list) {
            podspec::round_up_all(list);
        }
    }
}

/// Defaults of a claim's specification, also inside an ephemeral volume.
pub(crate) fn default_claim_spec(spec: &mut Value) {
    spec.fill("volumeMode", "Filesystem");
    podspec::default_resources(spec.child("resources"));
}

fn seconds(time: Timestamp) -> Value {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

/// A data source of another kind than claim or snapshot was ignored before `dataSourceRef` existed, and still is.
fn enforce_data_source(spec: &mut Value, old: &Value) {
    if old.has("dataSource") || old.has("dataSourceRef") || spec.has("dataSourceRef") {
        return;
    }
    let source = spec.at("dataSource");
    let known = matches!(
        (source.text("kind"), source.text("apiGroup")),
        ("PersistentVolumeClaim", "") | ("VolumeSnapshot", "snapshot.storage.k8s.io")
    );
    if !known {
        spec.take_key("dataSource");
    }
}

/// `dataSource` and `dataSourceRef` say the same where one of them is given.
fn normalize_data_sources(spec: &mut Value) {
    let (source, reference) = (spec.at("dataSource").clone(), spec.at("dataSourceRef").clone());
    let copy = |from: &Value| {
        let mut to = json!({"kind": from.text("kind"), "name": from.text("name")});
        if from.has("apiGroup") {
            to.put("apiGroup", from.at("apiGroup").clone());
        }
        to
    };
    if !source.is_null() && reference.is_null() {
        spec.put("dataSourceRef", copy(&source));
    } else if source.is_null() && !reference.is_null() && reference.text("namespace").is_empty() {
        spec.put("dataSource", copy(&reference));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sources_say_the_same() {
        let mut claim = json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "a"}}});
        (PERSISTENT_VOLUME_CLAIM.prepare_create)(&mut claim);
        assert_eq!(claim["spec"]["dataSourceRef"], json!({"kind": "PersistentVolumeClaim", "name": "a"}));
        let mut claim = json!({"spec": {"dataSource": {"kind": "Other", "name": "a"}}});
        (PERSISTENT_VOLUME_CLAIM.prepare_create)(&mut claim);
        assert_eq!(claim["spec"], json!({}));
    }
}
