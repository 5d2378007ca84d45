//! The status of a ResourceClaim: allocation, reservation, and what drivers report of the devices.

use std::collections::BTreeSet;

use serde_json::Value;

use super::shared::{
    CONFIGS, REQUESTS, Requests, binding_conditions, list, opaque, pool_name, raw, set, text, uid,
};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::devices::device_id;
use crate::kinds::json::{Read, same};
use crate::kinds::validation::{common, control, scheduling, storage};

const RESERVED_FOR: usize = 256;

pub(crate) fn claim_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (status, before, path) = (new.at("status"), old.at("status"), Path::new("status"));
    let reserved = status.items("reservedFor");
    let at = path.child("reservedFor");
    let consumer = |consumer| Read::text(consumer, "uid");
    set(&mut errors, reserved, RESERVED_FOR, &at, consumer, |errors, consumer, at| {
        for key in ["resource", "name", "uid"] {
            common::required(errors, consumer, at, key);
        }
    });
    let (allocation, results) =
        (status.at("allocation"), status.dig(&["allocation", "devices"]).items("results"));
    let allocated: BTreeSet<String> = results.iter().map(device_id).collect();
    set(&mut errors, status.items("devices"), usize::MAX, &path.child("devices"), device_id, |e, d, at| {
        device(e, d, &allocated, at);
    });
    if !reserved.is_empty() {
        if allocation.is_null() {
            errors.forbidden(&at, "may not be specified when `allocated` is not set");
        } else if new.at("metadata").has("deletionTimestamp")
            && reserved.iter().any(|consumer| !before.items("reservedFor").contains(consumer))
        {
            let detail =
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.forbidden(&at, detail);
        }
    }
    let at = path.child("allocation");
    if !allocation.is_null() && before.has("allocation") {
        if !same(allocation, before.at("allocation")) {
            errors.invalid(&at, allocation.clone(), "field is immutable");
        }
    } else if !allocation.is_null() {
        allocation_result(&mut errors, allocation, &Requests::of(new.at("spec")), &at);
    }
    errors.0
}

fn allocation_result(errors: &mut Errors, allocation: &Value, requests: &Requests<'_>, path: &Path<'_>) {
    let (devices, at) = (allocation.at("devices"), path.child("devices"));
    list(errors, devices.items("results"), REQUESTS, &at.child("results"), |errors, result, at| {
        requests.reference(errors, result.text("request"), &at.child("request"));
        place(errors, result, at);
        binding_conditions(errors, result, at);
    });
    list(errors, devices.items("config"), 2 * CONFIGS, &at.child("config"), |errors, config, at| {
        let (source, from) = (config.text("source"), at.child("source"));
        common::one_of(errors, source, &from, &["FromClaim", "FromClass"]);
        requests.references(errors, config, at);
        opaque(errors, config, at);
    });
    let selector = allocation.at("nodeSelector");
    if !selector.is_null() {
        scheduling::node_selector(errors, selector, &path.child("nodeSelector"));
    }
}

/// Driver, pool, device and share.
fn place(errors: &mut Errors, holder: &Value, path: &Path<'_>) {
    storage::driver_name(errors, holder.text("driver"), &path.child("driver"));
    pool_name(errors, holder.text("pool"), &path.child("pool"));
    common::label(errors, holder.text("device"), &path.child("device"));
    if holder.has("shareID") {
        uid(errors, holder.text("shareID"), &path.child("shareID"));
    }
}

fn device(errors: &mut Errors, device: &Value, allocated: &BTreeSet<String>, path: &Path<'_>) {
    place(errors, device, path);
    let id = device_id(device);
    if !allocated.contains(&id) {
        errors.invalid(path, id, "must be an allocated device in the claim");
    }
    let at = path.child("conditions");
    let conditions = device.items("conditions");
    if conditions.len() > 8 {
        errors.too_many(&at, conditions.len(), 8);
    }
    control::meta_conditions(errors, conditions, &at);
    if device.has("data") {
        raw(errors, device.at("data"), &path.child("data"));
    }
    let (network, at) = (device.at("networkData"), path.child("networkData"));
    for (key, most) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if network.text(key).len() > most {
            errors.too_long(&at.child(key), most);
        }
    }
    set(errors, network.items("ips"), 16, &at.child("ips"), text, |errors, address, at| {
        interface_address(errors, text(address), at);
    });
}

fn interface_address(errors: &mut Errors, address: &str, path: &Path<'_>) {
    match address.parse::<ipnet::IpNet>() {
        Err(_) => errors.invalid(
            path,
            address,
            "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)",
        ),
        Ok(net) if net.to_string() != address => {
            errors.invalid(path, address, format!("must be in canonical form (\"{net}\")"));
        }
        Ok(_) => {}
    }
}
