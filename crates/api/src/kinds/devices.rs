//! The kinds of resource.k8s.io.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::json::{Read, Write};
use super::prepare;
use crate::Strategy;

pub(super) static DEVICE_CLASS: Strategy =
    Strategy { prepare_create: prepare::first, prepare_update: prepare::counted, ..Strategy::GENERIC };

pub(super) static RESOURCE_CLAIM: Strategy = Strategy {
    default: |claim| default_requests(claim.child("spec")),
    prepare_create: prepare::create,
    prepare_update: prepare::update,
    prepare_status: |new, old| {
        prepare::status_only(new, old);
        drop_deallocated(new, old);
    },
    ..Strategy::GENERIC
};

pub(super) static RESOURCE_CLAIM_TEMPLATE: Strategy = Strategy {
    default: |template| default_requests(template.child("spec").child("spec")),
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    ..Strategy::GENERIC
};

pub(super) static RESOURCE_SLICE: Strategy = Strategy {
    default: |slice| {
        let Some(spec) = slice.existing("spec") else { return };
        for device in spec.items_mut("devices") {
            for taint in device.items_mut("taints") {
                taint.fill("timeAdded", Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            }
        }
    },
    prepare_create: prepare::first,
    prepare_update: prepare::counted,
    fields: |slice| {
        let spec = slice.at("spec");
        vec![("spec.nodeName", spec.text("nodeName").into()), ("spec.driver", spec.text("driver").into())]
    },
    field_labels: &["spec.nodeName", "spec.driver"],
    ..Strategy::GENERIC
};

/// What tells one allocated device from another, as messages show it: `driver/pool/device`, and the share if there is one.
pub(super) fn device_id(result: &Value) -> String {
    let id = ["driver", "pool", "device"].map(|key| result.text(key)).join("/");
    match result.text("shareID") {
        "" => id,
        share => format!("{id}/{share}"),
    }
}

/// The status of a device goes with its allocation.
fn drop_deallocated(new: &mut Value, old: &Value) {
    let allocated = |claim: &Value| -> BTreeSet<String> {
        claim.dig(&["status", "allocation", "devices"]).items("results").iter().map(device_id).collect()
    };
    let still = allocated(new);
    let gone: BTreeSet<String> = allocated(old).into_iter().filter(|id| !still.contains(id)).collect();
    let devices = new.at("status").items("devices");
    if devices.is_empty() || gone.is_empty() {
        return;
    }
    let left: Vec<Value> = devices.iter().filter(|d| !gone.contains(&device_id(d))).cloned().collect();
    match left.is_empty() {
        true => {
            new.child("status").take_key("devices");
        }
        false => new.child("status").put("devices", left),
    }
}

fn default_requests(spec: &mut Value) {
    let Some(devices) = spec.existing("devices") else { return };
    for request in devices.items_mut("requests") {
        if let Some(exactly) = request.existing("exactly") {
            default_request(exactly);
        }
        request.items_mut("firstAvailable").iter_mut().for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    request.fill_zero("allocationMode", "ExactCount");
    if request.text("allocationMode") == "ExactCount" {
        request.fill_zero("count", 1);
    }
}
