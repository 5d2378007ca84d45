//! Checks that many kinds share.

use std::net::{IpAddr, Ipv6Addr};

use serde_json::Value;

use crate::FieldError;
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

/// An address of an old field, by today's rules; the answer is `None` where something is wrong with it.
/// [`crate::ratchet`] forgives an update what was there before.
pub(crate) fn ip(errors: &mut Errors, text: &str, path: &Path<'_>) -> Option<IpAddr> {
    let before = errors.0.len();
    let ip = parse_ip(text);
    if ip.is_none() {
        errors.invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    } else if text.parse::<IpAddr>().is_err() {
        errors.invalid(path, text, LEADING_ZEROS);
    } else if is_mapped(text) {
        errors.invalid(path, text, MAPPED);
    }
    ip.filter(|_| errors.0.len() == before)
}

const LEADING_ZEROS: &str = "must not have leading 0s";
const MAPPED: &str = "must not be an IPv4-mapped IPv6 address";
const RANGE_ZEROS: &str = "must not have leading 0s in IP or prefix length";
const RANGE_MAPPED: &str = "must not have an IPv4-mapped IPv6 address";
const RANGE_BITS: &str = "must not have bits set beyond the prefix length";

/// Whether a finding is about a form of address that older servers accepted.
pub(crate) fn is_legacy_form(error: &FieldError) -> bool {
    [LEADING_ZEROS, MAPPED, RANGE_ZEROS, RANGE_MAPPED, RANGE_BITS].contains(&error.detail.as_str())
}

fn is_mapped(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok_and(|v6| v6.to_ipv4_mapped().is_some())
}

/// The address and prefix length of a range; leading zeros as in [`parse_ip`].
pub(crate) fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = length.trim_start_matches('0').parse().ok().or(digits.then_some(0))?;
    let ip = parse_ip(address)?;
    let most = if address.contains(':') { 128 } else { 32 };
    if !digits || length > most {
        return None;
    }
    // A range of mapped addresses is one of IPv4 if it lies within them.
    match ip {
        IpAddr::V6(v6) if length >= 96 && v6.to_ipv4_mapped().is_some() => {
            Some((IpAddr::V4(v6.to_ipv4_mapped()?), length - 96))
        }
        ip => Some((ip, length)),
    }
}

pub(crate) fn cidr(errors: &mut Errors, text: &str, path: &Path<'_>) {
    let Some((ip, length)) = parse_cidr(text) else {
        errors.invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        return;
    };
    let (address, digits) = text.split_once('/').unwrap_or((text, ""));
    if address.parse::<IpAddr>().is_err() || (digits.len() > 1 && digits.starts_with('0')) {
        errors.invalid(path, text, RANGE_ZEROS);
    } else if is_mapped(address) {
        errors.invalid(path, text, RANGE_MAPPED);
    } else if ipnet::IpNet::new(ip, length).is_ok_and(|net| net.addr() != net.trunc().addr()) {
        errors.invalid(path, text, RANGE_BITS);
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
