//! Names, lists and opaque parameters.

use std::collections::BTreeSet;

use serde_json::Value;

use super::selectors::expression;
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::kinds::validation::{common, storage};
use crate::names;

/// Most requests of a claim, and with it most results of an allocation.
pub(super) const REQUESTS: usize = 32;
pub(super) const CONFIGS: usize = 32;
const SELECTORS: usize = 32;
const PARAMETERS: usize = 10 * 1024;
const BINDING_CONDITIONS: usize = 4;

/// A list of at most so many elements; a longer one is not looked into.
pub(super) fn list(
    errors: &mut Errors,
    items: &[Value],
    most: usize,
    path: &Path<'_>,
    mut check: impl FnMut(&mut Errors, &Value, &Path<'_>),
) {
    if items.len() > most {
        errors.too_many(path, items.len(), most);
        return;
    }
    for (index, item) in items.iter().enumerate() {
        check(errors, item, &path.index(index));
    }
}

/// The same for a list without duplicates by a key.
pub(super) fn set<'v, K: Ord + Into<Value> + Clone>(
    errors: &mut Errors,
    items: &'v [Value],
    most: usize,
    path: &Path<'_>,
    key: impl Fn(&'v Value) -> K,
    check: impl FnMut(&mut Errors, &Value, &Path<'_>),
) {
    list(errors, items, most, path, check);
    if items.len() > most {
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let key = key(item);
        if !seen.insert(key.clone()) {
            errors.duplicate(&path.index(index), key);
        }
    }
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn pool_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > 253 {
        errors.too_long(path, 253);
    }
    for part in name.split('/') {
        common::subdomain(errors, part, path);
    }
}

pub(super) fn uid(errors: &mut Errors, uid: &str, path: &Path<'_>) {
    let shape = uid.len() == 36
        && uid.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        });
    if !shape {
        errors.invalid(
            path,
            uid,
            "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal \
             characters",
        );
    }
}

/// A name, or a domain and a name.
pub(super) fn qualified_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    match name.split('/').collect::<Vec<_>>()[..] {
        [name] => identifier(errors, name, path),
        [domain, name] => {
            match domain {
                "" => errors.invalid(path, "", "the domain must not be empty"),
                domain => storage::driver_name(errors, domain, path),
            }
            match name {
                "" => errors.invalid(path, "", "the name must not be empty"),
                name => identifier(errors, name, path),
            }
        }
        // Upstream lets these pass.
        _ => {}
    }
}

pub(super) fn fully_qualified_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    qualified_name(errors, name, path);
    if !name.contains('/') {
        let detail = "a fully qualified name must be a domain and a name separated by a slash";
        errors.invalid(path, name, detail);
    }
}

fn identifier(errors: &mut Errors, id: &str, path: &Path<'_>) {
    if id.len() > 32 {
        errors.too_long(path, 32);
    }
    errors.all_invalid(path, id, names::c_identifier(id));
}

pub(super) fn selectors(errors: &mut Errors, holder: &Value, path: &Path<'_>) {
    list(errors, holder.items("selectors"), SELECTORS, &path.child("selectors"), |errors, selector, at| {
        let at = at.child("cel");
        match selector.has("cel") {
            true => expression(errors, selector.at("cel").text("expression"), &at.child("expression")),
            false => errors.required(&at, ""),
        }
    });
}

/// The configuration that a driver understands.
pub(super) fn opaque(errors: &mut Errors, config: &Value, path: &Path<'_>) {
    let path = path.child("opaque");
    let opaque = config.at("opaque");
    if opaque.is_null() {
        errors.required(&path, "");
        return;
    }
    storage::driver_name(errors, opaque.text("driver"), &path.child("driver"));
    raw(errors, opaque.at("parameters"), &path.child("parameters"));
}

/// An embedded JSON object of bounded size.
pub(super) fn raw(errors: &mut Errors, value: &Value, path: &Path<'_>) {
    match value {
        Value::Null => errors.required(path, ""),
        value if value.to_string().len() > PARAMETERS => errors.too_long(path, PARAMETERS),
        Value::Object(_) => {}
        _ => errors.invalid(path, "<value omitted>", "must be a valid JSON object"),
    }
}

pub(super) fn binding_conditions(errors: &mut Errors, holder: &Value, path: &Path<'_>) {
    let (wanted, failed) = (holder.items("bindingConditions"), holder.items("bindingFailureConditions"));
    let (wanted_at, failed_at) = (path.child("bindingConditions"), path.child("bindingFailureConditions"));
    for (items, at) in [(wanted, &wanted_at), (failed, &failed_at)] {
        set(errors, items, BINDING_CONDITIONS, at, text, |errors, name, at| {
            common::label_name(errors, text(name), at);
        });
    }
    for (index, name) in failed.iter().enumerate().filter(|(_, name)| wanted.contains(name)) {
        let detail = "bindingFailureConditions must not overlap with bindingConditions";
        errors.invalid(&failed_at.index(index), name.clone(), detail);
    }
    let alone = |errors: &mut Errors, at: &Path<'_>, missing: &str, used: &str| {
        errors.invalid(at, Value::Null, format!("{missing} are required to use {used}"));
    };
    match (wanted.is_empty(), failed.is_empty()) {
        (true, false) => alone(errors, &wanted_at, "bindingConditions", "bindingFailureConditions"),
        (false, true) => alone(errors, &failed_at, "bindingFailureConditions", "bindingConditions"),
        _ => {}
    }
}

pub(super) fn label_value(errors: &mut Errors, value: &str, path: &Path<'_>) {
    errors.all_invalid(path, value, names::label_value(value));
}

pub(super) const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

/// The requests of a claim by name: `main` or `main/sub`.
pub(super) struct Requests<'v>(&'v [Value]);

impl<'v> Requests<'v> {
    pub fn of(claim_spec: &'v Value) -> Self {
        Self(claim_spec.at("devices").items("requests"))
    }

    fn has(&self, name: &str) -> bool {
        let (main, sub) = match name.split_once('/') {
            Some((main, sub)) => (main, Some(sub)),
            None => (name, None),
        };
        let request = self.0.iter().rfind(|request| request.text("name") == main);
        request.is_some_and(|request| {
            sub.is_none_or(|sub| request.items("firstAvailable").iter().any(|r| r.text("name") == sub))
        })
    }

    pub fn reference(&self, errors: &mut Errors, name: &str, path: &Path<'_>) {
        const WANTED: &str = "must be the name of a request in the claim or the name of a request and a subrequest \
                              separated by '/'";
        if name.matches('/').count() > 1 {
            errors.invalid(path, name, WANTED);
            return;
        }
        for part in name.split('/') {
            common::label(errors, part, path);
        }
        if !self.has(name) {
            errors.invalid(path, name, WANTED);
        }
    }

    /// The `requests` of a constraint or configuration.
    pub fn references(&self, errors: &mut Errors, holder: &Value, path: &Path<'_>) {
        set(errors, holder.items("requests"), REQUESTS, &path.child("requests"), text, |errors, name, at| {
            self.reference(errors, text(name), at);
        });
    }
}
