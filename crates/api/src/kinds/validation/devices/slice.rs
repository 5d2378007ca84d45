//! ResourceSlice: the devices that a driver offers.

use serde_json::Value;

use super::shared::{EFFECTS, binding_conditions, label_value, list, pool_name, qualified_name, set, text};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, same};
use crate::kinds::validation::resources::quantity;
use crate::kinds::validation::{common, scheduling, storage};
use crate::quantity::Quantity;

const DEVICES: usize = 128;
const ADVANCED_DEVICES: usize = 64;
const ATTRIBUTES: usize = 32;
const ATTRIBUTE_VALUES: usize = 48;
const VALUE: usize = 64;
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

pub(crate) fn slice(object: &Value) -> Vec<FieldError> {
    spec(object.at("spec"), &Value::Null)
}

/// What depends on the slice before; the whole slice is validated as well.
pub(crate) fn slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let pool = path.child("pool");
    let name = pool.child("name");
    common::immutable(&mut errors, spec.at("pool").at("name"), before.at("pool").at("name"), &name);
    for key in ["driver", "nodeName"] {
        common::immutable(&mut errors, spec.at(key), before.at(key), &path.child(key));
    }
    errors.0
}

fn spec(spec: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    storage::driver_name(&mut errors, spec.text("driver"), &path.child("driver"));
    let (pool, at) = (spec.at("pool"), path.child("pool"));
    pool_name(&mut errors, pool.text("name"), &at.child("name"));
    common::positive_count(&mut errors, pool.num("resourceSliceCount"), &at.child("resourceSliceCount"));
    if pool.num("generation") < 0 {
        let detail = "must be greater than or equal to zero";
        errors.invalid(&at.child("generation"), pool.num("generation"), detail);
    }
    nodes(&mut errors, spec, &path);
    if !spec.at("sharedCounters").is_null() && !spec.at("devices").is_null() {
        errors.invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let devices = spec.items("devices");
    let advanced = devices.iter().any(|device| {
        let mut attributes = device.entries("attributes").into_iter();
        !device.items("taints").is_empty()
            || !device.items("consumesCounters").is_empty()
            || attributes.any(|(_, attribute)| LISTS.iter().any(|key| attribute.has(key)))
    });
    let most = if advanced { ADVANCED_DEVICES } else { DEVICES };
    let name = |device| Read::text(device, "name");
    let each_node = spec.flag("perDeviceNodeSelection");
    set(&mut errors, devices, most, &path.child("devices"), name, |errors, item, at| {
        let before = old.items("devices").iter().find(|old| old.text("name") == item.text("name"));
        device(errors, item, before, each_node, at);
    });
    set(&mut errors, spec.items("sharedCounters"), 8, &path.child("sharedCounters"), name, |e, item, at| {
        counters(e, item, "name", at);
    });
    errors.0
}

fn nodes(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    const ONE: &str =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let empty = "must be either unset or set to a non-empty string";
    let set = chosen(errors, spec, path, &["allNodes", "perDeviceNodeSelection"], empty);
    let (terms, at) = (spec.at("nodeSelector").items("nodeSelectorTerms"), path.child("nodeSelector"));
    if spec.has("nodeSelector") && terms.len() != 1 {
        let detail = "must have exactly one node selector term";
        errors.invalid(&at.child("nodeSelectorTerms"), terms.to_vec(), detail);
    }
    match set.len() {
        0 => errors.required(path, ONE),
        1 => {}
        _ => {
            let detail = format!("{ONE}, but multiple fields are set");
            errors.invalid(path, format!("{{{}}}", set.join(", ")), detail);
        }
    }
}

/// Which of the ways to choose nodes are in use.
fn chosen(errors: &mut Errors, holder: &Value, path: &Path<'_>, flags: &[&str], empty: &str) -> Vec<String> {
    let mut set = Vec::new();
    match holder.at("nodeName").as_str() {
        Some("") => errors.invalid(&path.child("nodeName"), "", empty),
        Some(name) => {
            set.push("`nodeName`".to_owned());
            common::subdomain(errors, name, &path.child("nodeName"));
        }
        None => {}
    }
    if holder.has("nodeSelector") {
        set.push("`nodeSelector`".to_owned());
        scheduling::node_selector(errors, holder.at("nodeSelector"), &path.child("nodeSelector"));
    }
    for key in flags {
        match holder.at(key).as_bool() {
            Some(true) => set.push(format!("`{key}`")),
            Some(false) => {
                errors.invalid(&path.child(key), false, "must be either unset or set to true");
            }
            None => {}
        }
    }
    set
}

fn device(errors: &mut Errors, device: &Value, old: Option<&Value>, each_node: bool, path: &Path<'_>) {
    common::label(errors, device.text("name"), &path.child("name"));
    let (attributes, capacity) = (device.entries("attributes"), device.entries("capacity"));
    let total = attributes.len() + capacity.len();
    if total > ATTRIBUTES {
        let detail = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES}");
        errors.invalid(path, total, detail);
    }
    let values = |attribute: &Value| LISTS.iter().map(|key| attribute.items(key).len()).sum::<usize>().max(1);
    let total: usize = attributes.iter().map(|(_, attribute)| values(attribute)).sum();
    if total > ATTRIBUTE_VALUES {
        let detail = format!("the total number of attribute values must not exceed {ATTRIBUTE_VALUES}");
        errors.invalid(path, total, detail);
    }
    let at = path.child("attributes");
    for (key, value) in attributes {
        qualified_name(errors, key, &at);
        attribute(errors, value, &at.key(key));
    }
    let at = path.child("capacity");
    for (key, value) in capacity {
        qualified_name(errors, key, &at);
        let at = at.key(key);
        let (policy, at) = (value.at("requestPolicy"), at.child("requestPolicy"));
        match device.flag("allowMultipleAllocations") {
            _ if policy.is_null() => {}
            true => request_policy(errors, value, policy, &at),
            false => errors.forbidden(&at, "allowMultipleAllocations must be true"),
        }
    }
    if old.is_none_or(|old| !same(old.at("taints"), device.at("taints"))) {
        list(errors, device.items("taints"), 16, &path.child("taints"), taint);
    }
    let consumed = device.items("consumesCounters");
    let name = |counter| Read::text(counter, "counterSet");
    set(errors, consumed, 2, &path.child("consumesCounters"), name, |errors, item, at| {
        counters(errors, item, "counterSet", at);
    });
    device_nodes(errors, device, each_node, path);
    binding_conditions(errors, device, path);
    mappings(errors, device, path);
}

fn device_nodes(errors: &mut Errors, device: &Value, each_node: bool, path: &Path<'_>) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when \
                       `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    if !each_node {
        if ["nodeName", "nodeSelector", "allNodes"].iter().any(|key| device.has(key)) {
            let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to \
                          true in the ResourceSlice spec";
            errors.invalid(path, Value::Null, detail);
        }
        return;
    }
    let set = chosen(errors, device, path, &["allNodes"], "must not be empty");
    match set.len() {
        0 => errors.required(path, ONE),
        1 => {}
        _ => errors.invalid(path, format!("{{{}}}", set.join(", ")), ONE),
    }
}

fn mappings(errors: &mut Errors, device: &Value, path: &Path<'_>) {
    let list = path.child("nodeAllocatableResourceMappings");
    for (name, mapping) in device.entries("nodeAllocatableResourceMappings") {
        let at = list.key(name);
        if name.contains('/') && !name.contains("kubernetes.io/") {
            errors.invalid(&at, name.as_str(), "must be a node allocatable resource name");
        }
        let multiplier = quantity(mapping.at("allocationMultiplier"));
        if multiplier.is_none() && !mapping.has("capacityKey") {
            errors.invalid(&at, "", "at least one of allocationMultiplier or capacityKey must be set");
        }
        if let Some(multiplier) = multiplier.filter(|m| m.is_zero() || m.is_negative()) {
            errors.invalid(&at.child("allocationMultiplier"), multiplier.to_string(), "must be positive");
        }
        if let Some(key) = mapping.at("capacityKey").as_str() {
            let at = at.child("capacityKey");
            match key {
                "" => errors.invalid(&at, "", "capacityKey must not be an empty string"),
                key if !device.at("capacity").has(key) => errors.not_found(&at, key),
                _ => {}
            }
        }
    }
}

fn counters(errors: &mut Errors, holder: &Value, name: &str, path: &Path<'_>) {
    match holder.text(name) {
        "" => errors.required(&path.child(name), ""),
        text => common::label(errors, text, &path.child(name)),
    }
    let (counters, at) = (holder.entries("counters"), path.child("counters"));
    if counters.is_empty() {
        errors.required(&at, "");
    } else if counters.len() > 32 {
        errors.too_many(&at, counters.len(), 32);
    } else {
        counters.iter().for_each(|(key, _)| common::label(errors, key, &at));
    }
}

fn attribute(errors: &mut Errors, attribute: &Value, path: &Path<'_>) {
    let scalars = ["bool", "int", "string", "version"];
    let given = scalars.iter().chain(&LISTS).filter(|key| attribute.has(key)).count();
    let strings = |errors: &mut Errors, value: &str, at: &Path<'_>, version: bool| {
        if version && !is_version(value) {
            errors.invalid(at, value, "must be a string compatible with semver.org spec 2.0.0");
        }
        if value.len() > VALUE {
            errors.too_long(at, VALUE);
        }
    };
    for key in ["string", "version"] {
        if let Some(value) = attribute.at(key).as_str() {
            strings(errors, value, &path.child(key), key == "version");
        }
    }
    for key in LISTS {
        let at = path.child(key);
        if attribute.has(key) && attribute.items(key).is_empty() {
            errors.invalid(&at, Vec::<Value>::new(), "must not be empty if specified");
        }
        for (index, value) in attribute.items(key).iter().enumerate() {
            if let Some(value) = value.as_str() {
                strings(errors, value, &at.index(index), key == "versions");
            }
        }
    }
    match given {
        0 => errors.invalid(path, "", "exactly one value must be specified"),
        1 => {}
        _ => errors.invalid(path, attribute.clone(), "exactly one value must be specified"),
    }
}

/// Semantic Versioning 2.0.0.
fn is_version(text: &str) -> bool {
    let number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let prerelease = |part: &str| word(part) && (number(part) || !part.bytes().all(|b| b.is_ascii_digit()));
    let (rest, build) = match text.split_once('+') {
        Some((rest, build)) => (rest, Some(build)),
        None => (text, None),
    };
    let (core, pre) = match rest.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (rest, None),
    };
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(prerelease))
        && build.is_none_or(|build| build.split('.').all(word))
}

fn taint(errors: &mut Errors, taint: &Value, path: &Path<'_>) {
    common::label_name(errors, taint.text("key"), &path.child("key"));
    label_value(errors, taint.text("value"), &path.child("value"));
    common::one_of(errors, taint.text("effect"), &path.child("effect"), &EFFECTS);
}

/// How much of a capacity a request may take.
fn request_policy(errors: &mut Errors, capacity: &Value, policy: &Value, path: &Path<'_>) {
    let Some(most) = quantity(capacity.at("value")) else { return };
    let (values, range) = (policy.items("validValues"), policy.at("validRange"));
    if !values.is_empty() && !range.is_null() {
        let detail = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same \
                      time";
        errors.forbidden(path, detail);
        return;
    }
    let used = if values.is_empty() { "validRange" } else { "validValues" };
    if values.is_empty() && range.is_null() {
        return;
    }
    match quantity(policy.at("default")) {
        None => errors.required(&path.child("default"), format!("required when {used} is defined")),
        Some(default) if values.is_empty() => {
            valid_range(errors, range, &default, &most, &path.child("validRange"));
        }
        Some(default) => valid_values(errors, values, &default, &most, &path.child("validValues")),
    }
}

fn valid_values(errors: &mut Errors, values: &[Value], default: &Quantity, most: &Quantity, path: &Path<'_>) {
    let amounts: Vec<Quantity> = values.iter().filter_map(quantity).collect();
    for (index, pair) in amounts.windows(2).enumerate().filter(|(_, pair)| pair[0] > pair[1]) {
        let detail = "values must be sorted in ascending order";
        errors.invalid(&path.index(index + 1), pair[1].to_string(), detail);
    }
    set(errors, values, 10, path, text, |errors, value, at| {
        if let Some(amount) = quantity(value).filter(|amount| amount > most) {
            let detail = format!("option is larger than capacity value: {most}");
            errors.invalid(at, amount.to_string(), detail);
        }
    });
    if !amounts.contains(default) {
        let detail = "default value is not valid according to the requestPolicy";
        errors.invalid(path, default.to_string(), detail);
    }
}

fn valid_range(errors: &mut Errors, range: &Value, default: &Quantity, most: &Quantity, path: &Path<'_>) {
    let Some(least) = quantity(range.at("min")) else {
        errors.required(&path.child("min"), "required when validRange is defined");
        return;
    };
    let at = path.child("min");
    if least > *most {
        let detail = format!("min is larger than capacity value: {most}");
        errors.invalid(&at, least.to_string(), detail);
    }
    if *default < least {
        errors.invalid(&at, default.to_string(), format!("default is less than min: {least}"));
    }
    let upper = quantity(range.at("max"));
    let at = path.child("max");
    if let Some(upper) = &upper {
        if least > *upper {
            errors.invalid(&at, least.to_string(), format!("min is larger than max: {upper}"));
        }
        if upper > most {
            errors.invalid(&at, upper.to_string(), format!("max is larger than capacity value: {most}"));
        }
        if default > upper {
            errors.invalid(&at, default.to_string(), format!("default is more than max: {upper}"));
        }
    }
    let Some(step) = quantity(range.at("step")) else { return };
    let at = path.child("step");
    let first = least.add(&step);
    if first > *most {
        let detail = format!("one step {first} is larger than capacity value: {most}");
        errors.invalid(&at, step.to_string(), detail);
    }
    for value in [Some(default), upper.as_ref()].into_iter().flatten() {
        let above = value.value().saturating_sub(least.value());
        if above.checked_rem(step.value()) != Some(0) {
            let detail = format!("value is not a multiple of a given step ({step}) from ({least})");
            errors.invalid(&at, value.to_string(), detail);
        }
    }
}
