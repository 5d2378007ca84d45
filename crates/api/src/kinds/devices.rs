//! The kinds of resource.k8s.io.

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
    prepare_status: prepare::status_only,
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
