//! Resource requirements: names, amounts, requests against limits.

use std::collections::BTreeSet;

use serde_json::Value;

use super::common::{self, NOT_NEGATIVE};
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;
use crate::quantity::Quantity;

const HUGE_PAGES: &str = "hugepages-";
const NOT_INTEGER: &str = "must be an integer";

pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn may_overcommit(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE_PAGES)
}

fn is_standard_for_containers(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with(HUGE_PAGES)
}

/// The names that may stand without a domain.
fn is_standard(name: &str) -> bool {
    is_standard_for_containers(name)
        || matches!(
            name,
            "requests.cpu"
                | "requests.memory"
                | "requests.ephemeral-storage"
                | "limits.cpu"
                | "limits.memory"
                | "limits.ephemeral-storage"
                | "pods"
                | "resourcequotas"
                | "services"
                | "replicationcontrollers"
                | "secrets"
                | "configmaps"
                | "persistentvolumeclaims"
                | "storage"
                | "requests.storage"
                | "services.nodeports"
                | "services.loadbalancers"
        )
        || name.starts_with("requests.hugepages-")
}

fn is_integer(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "resourcequotas"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    ) || is_extended(name)
}

/// A resource's name: qualified, and standard where it has no domain.
pub(crate) fn name(errors: &mut Errors, name: &str, path: &Path<'_>) -> bool {
    let wrong = names::qualified_name(name);
    if !wrong.is_empty() {
        errors.all_invalid(path, name, wrong);
        return false;
    }
    if !name.contains('/') && !is_standard(name) {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

fn container_name(errors: &mut Errors, resource: &str, path: &Path<'_>) {
    name(errors, resource, path);
    if !resource.contains('/') {
        if !is_standard_for_containers(resource) {
            errors.invalid(path, resource, "must be a standard resource for containers");
        }
    } else if !is_native(resource) && !is_extended(resource) {
        errors.invalid(path, resource, "doesn't follow extended resource name standard");
    }
}

fn pod_name(errors: &mut Errors, resource: &str, path: &Path<'_>) {
    name(errors, resource, path);
    if !matches!(resource, "cpu" | "memory") && !resource.starts_with(HUGE_PAGES) {
        let supported = ["cpu", "hugepages-", "memory"];
        errors.not_supported(path, resource, &supported);
    }
}

/// An amount: not negative, and whole where the resource is counted.
pub(crate) fn amount(
    errors: &mut Errors,
    resource: &str,
    value: &Value,
    path: &Path<'_>,
) -> Option<Quantity> {
    let amount = quantity(value)?;
    if amount.is_negative() {
        errors.invalid(path, amount.to_string(), NOT_NEGATIVE);
    }
    if is_integer(resource) && !amount.is_whole() {
        errors.invalid(path, value.clone(), NOT_INTEGER);
    }
    Some(amount)
}

fn huge_page(errors: &mut Errors, resource: &str, amount: &Quantity, path: &Path<'_>) {
    let Some(size) = resource.strip_prefix(HUGE_PAGES).and_then(|size| size.parse::<Quantity>().ok()) else {
        return;
    };
    if size.value() > 0 && amount.value() % size.value() != 0 {
        errors.invalid(
            path,
            amount.to_string(),
            format!("{amount} is not positive integer multiple of {resource}"),
        );
    }
}

/// Whose requirements are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Container,
    Pod,
}

/// Limits, requests, and the claims that a container takes of its pod's.
pub(crate) fn requirements(
    errors: &mut Errors,
    holder: &Value,
    claims: &BTreeSet<&str>,
    path: &Path<'_>,
    level: Level,
) {
    let check_name = match level {
        Level::Container => container_name,
        Level::Pod => pod_name,
    };
    let (limits, requests) = (path.child("limits"), path.child("requests"));
    let (mut compute, mut huge) = (false, false);
    for (list, list_path) in [("limits", &limits), ("requests", &requests)] {
        for (resource, value) in holder.entries(list) {
            let at = list_path.key(resource);
            check_name(errors, resource, &at);
            let amount = amount(errors, resource, value, &at);
            compute |= matches!(resource.as_str(), "cpu" | "memory");
            if list == "requests" {
                against_limit(errors, holder, resource, amount.as_ref(), &limits, &requests);
            }
            if let Some(amount) = amount.filter(|_| resource.starts_with(HUGE_PAGES)) {
                huge = true;
                huge_page(errors, resource, &amount, &at);
            }
        }
    }
    if huge && !compute {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    claim_names(errors, holder.items("claims"), claims, &path.child("claims"));
}

fn against_limit(
    errors: &mut Errors,
    holder: &Value,
    resource: &str,
    amount: Option<&Quantity>,
    limits: &Path<'_>,
    requests: &Path<'_>,
) {
    let limit = quantity(holder.at("limits").at(resource));
    match (amount, limit) {
        (Some(amount), Some(limit)) => {
            if *amount != limit && !may_overcommit(resource) {
                let detail = format!("must be equal to {resource} limit of {limit}");
                errors.invalid(requests, amount.to_string(), detail);
            } else if *amount > limit {
                let detail = format!("must be less than or equal to {resource} limit of {limit}");
                errors.invalid(requests, amount.to_string(), detail);
            }
        }
        (_, None) if !may_overcommit(resource) => {
            errors.required(limits, "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

fn claim_names(errors: &mut Errors, claims: &[Value], known: &BTreeSet<&str>, path: &Path<'_>) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (index, claim) in claims.iter().enumerate() {
        let at = path.index(index);
        let (name, request) = (claim.text("name"), claim.text("request"));
        if name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let mut key = name.to_owned();
        if !request.is_empty() {
            common::label(errors, request, &at.child("request"));
            key = format!("{name}/{request}");
        }
        let whole_taken = seen.contains(name);
        let part_taken = request.is_empty() && seen.iter().any(|k| k.starts_with(&format!("{name}/")));
        if whole_taken || part_taken {
            errors.duplicate(&at, name);
        } else if seen.contains(&key) {
            errors.duplicate(&at, key.clone());
        }
        seen.insert(key);
        if !known.contains(name) {
            errors.not_found(&at, name);
        }
    }
}
