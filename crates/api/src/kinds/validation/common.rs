//! Checks that many kinds share.

use std::net::IpAddr;

use serde_json::Value;

use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

pub(crate) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// A number, where it is given, is not negative.
pub(crate) fn not_negative(errors: &mut Errors, holder: &Value, path: &Path<'_>, key: &str) {
    if let Some(number) = holder.int(key).filter(|number| *number < 0) {
        errors.invalid(&path.child(key), number, NOT_NEGATIVE);
    }
}

/// A number is above zero.
pub(crate) fn positive(errors: &mut Errors, number: i64, path: &Path<'_>) {
    if number <= 0 {
        errors.invalid(path, number, "must be greater than 0");
    }
}

pub(crate) fn label_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    errors.all_invalid(path, name, names::qualified_name(name));
}

pub(crate) fn label(errors: &mut Errors, name: &str, path: &Path<'_>) {
    errors.all_invalid(path, name, names::dns1123_label(name));
}

pub(crate) fn subdomain(errors: &mut Errors, name: &str, path: &Path<'_>) {
    errors.all_invalid(path, name, names::dns1123_subdomain(name));
}

/// A name that must be there and be a subdomain.
pub(crate) fn required_subdomain(errors: &mut Errors, name: &str, path: &Path<'_>) {
    match name {
        "" => errors.required(path, ""),
        name => subdomain(errors, name, path),
    }
}

/// A string that must be there.
pub(crate) fn required(errors: &mut Errors, holder: &Value, path: &Path<'_>, key: &str) {
    if holder.text(key).is_empty() {
        errors.required(&path.child(key), "");
    }
}

/// One of a few strings: required when empty, not supported when another.
pub(crate) fn one_of(errors: &mut Errors, value: &str, path: &Path<'_>, supported: &[&str]) {
    match value {
        "" => errors.required(path, ""),
        value if supported.contains(&value) => {}
        value => errors.not_supported(path, value, supported),
    }
}

/// The labels of a map, keys and values.
pub(crate) fn labels(errors: &mut Errors, map: &Value, path: &Path<'_>) {
    for (key, value) in map.as_object().into_iter().flatten() {
        label_name(errors, key, path);
        let value = value.as_str().unwrap_or_default();
        errors.all_invalid(path, value, names::label_value(value));
    }
}

/// The annotations of a template.
pub(crate) fn annotations(errors: &mut Errors, map: &Value, path: &Path<'_>) {
    let mut total = 0;
    for (key, value) in map.as_object().into_iter().flatten() {
        label_name(errors, &key.to_lowercase(), path);
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > 256 * 1024 {
        errors.too_long(path, 256 * 1024);
    }
}

/// A LabelSelector.
pub(crate) fn label_selector(errors: &mut Errors, selector: &Value, path: &Path<'_>) {
    labels(errors, selector.at("matchLabels"), &path.child("matchLabels"));
    let list = path.child("matchExpressions");
    for (index, requirement) in selector.items("matchExpressions").iter().enumerate() {
        let path = list.index(index);
        let values = requirement.items("values");
        match requirement.text("operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors
                    .required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.forbidden(
                    &path.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        label_name(errors, requirement.text("key"), &path.child("key"));
        label_values(errors, values, &path.child("values"));
    }
}

pub(crate) fn label_values(errors: &mut Errors, values: &[Value], path: &Path<'_>) {
    for (index, value) in values.iter().filter_map(Value::as_str).enumerate() {
        errors.all_invalid(&path.index(index), value, names::label_value(value));
    }
}

/// Whether a selector's text is empty: it chooses everything.
pub(crate) fn is_empty_selector(selector: &Value) -> bool {
    selector.at("matchLabels").is_empty_value() && selector.items("matchExpressions").is_empty()
}

/// A field that an update may not change.
pub(crate) fn immutable(errors: &mut Errors, new: &Value, old: &Value, path: &Path<'_>) {
    if !crate::kinds::json::same(new, old) {
        errors.invalid(path, new.clone(), IMMUTABLE);
    }
}

/// Go reads octets with leading zeros as decimal; these old fields accept that.
pub(crate) fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let octets: Vec<&str> = text.split('.').collect();
    if octets.len() != 4 {
        return None;
    }
    let mut bytes = [0; 4];
    for (byte, octet) in bytes.iter_mut().zip(octets) {
        if octet.is_empty() || octet.len() > 3 || !octet.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *byte = octet.parse().ok()?;
    }
    Some(IpAddr::from(bytes))
}

pub(crate) fn ip(errors: &mut Errors, text: &str, path: &Path<'_>) {
    if parse_ip(text).is_none() {
        errors.invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

pub(crate) fn cidr(errors: &mut Errors, text: &str, path: &Path<'_>) {
    if text.parse::<ipnet::IpNet>().is_err() {
        errors.invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
}

/// A port's number or name.
pub(crate) fn port_number_or_name(errors: &mut Errors, port: &Value, path: &Path<'_>) {
    match port.as_str() {
        Some(name) => errors.all_invalid(path, name, names::port_name(name)),
        None => {
            let number = port.as_i64().unwrap_or_default();
            for message in names::port_number(number) {
                errors.invalid(path, number, message);
            }
        }
    }
}

/// A path that stays inside its directory.
pub(crate) fn local_path(errors: &mut Errors, target: &str, path: &Path<'_>) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    no_backsteps(errors, target, path);
}

pub(crate) fn no_backsteps(errors: &mut Errors, target: &str, path: &Path<'_>) {
    if target.split('/').any(|part| part == "..") {
        errors.invalid(path, target, "must not contain '..'");
    }
}

/// A local path that does not begin with what is reserved for the kubelet.
pub(crate) fn unreserved_path(errors: &mut Errors, target: &str, path: &Path<'_>) {
    local_path(errors, target, path);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.invalid(path, target, "must not start with '..'");
    }
}

/// A whole number or a percentage, not negative.
pub(crate) fn number_or_percent(errors: &mut Errors, value: &Value, path: &Path<'_>) {
    match value {
        Value::String(text) => errors.all_invalid(path, text, names::percent(text)),
        value => {
            if let Some(number) = value.as_i64().filter(|number| *number < 0) {
                errors.invalid(path, number, NOT_NEGATIVE);
            }
        }
    }
}

/// The percentage of a value that is one.
pub(crate) fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// The number of a value: 0 for what is a percentage.
pub(crate) fn whole(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// A percentage is at most 100.
pub(crate) fn at_most_hundred(errors: &mut Errors, value: &Value, path: &Path<'_>) {
    if percent(value).is_some_and(|percent| percent > 100) {
        errors.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

/// A count is above zero.
pub(crate) fn positive_count(errors: &mut Errors, count: i64, path: &Path<'_>) {
    if count <= 0 {
        errors.invalid(path, count, "must be greater than zero");
    }
}
