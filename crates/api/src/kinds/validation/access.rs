//! The kinds of rbac.authorization.k8s.io.

use serde_json::Value;

use super::common;
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, same};
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

fn rules(errors: &mut Errors, role: &Value, namespaced: bool) {
    let path = Path::new("rules");
    for (index, rule) in role.items("rules").iter().enumerate() {
        let at = path.index(index);
        if rule.items("verbs").is_empty() {
            errors.required(&at.child("verbs"), "verbs must contain at least one value");
        }
        let urls = rule.items("nonResourceURLs");
        if !urls.is_empty() {
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(&at.child("nonResourceURLs"), urls.to_vec(), detail);
            }
            let mixed =
                ["apiGroups", "resources", "resourceNames"].iter().any(|key| !rule.items(key).is_empty());
            if mixed {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(&at.child("nonResourceURLs"), urls.to_vec(), detail);
            }
            continue;
        }
        if rule.items("apiGroups").is_empty() {
            let detail = "resource rules must supply at least one api group";
            errors.required(&at.child("apiGroups"), detail);
        }
        if rule.items("resources").is_empty() {
            let detail = "resource rules must supply at least one resource";
            errors.required(&at.child("resources"), detail);
        }
    }
}

pub(crate) fn role(role: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    rules(&mut errors, role, true);
    errors.0
}

pub(crate) fn cluster_role(role: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    rules(&mut errors, role, false);
    let aggregation = role.at("aggregationRule");
    if !aggregation.is_null() {
        let path = Path::new("aggregationRule");
        let list = path.child("clusterRoleSelectors");
        let selectors = aggregation.items("clusterRoleSelectors");
        if selectors.is_empty() {
            let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.required(&list, detail);
        }
        for (index, selector) in selectors.iter().enumerate() {
            common::label_selector(&mut errors, selector, &list.index(index));
        }
    }
    errors.0
}

fn binding(binding: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (role, path) = (binding.at("roleRef"), Path::new("roleRef"));
    if role.text("apiGroup") != GROUP {
        errors.not_supported(&path.child("apiGroup"), role.text("apiGroup"), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&role.text("kind")) {
        errors.not_supported(&path.child("kind"), role.text("kind"), kinds);
    }
    match role.text("name") {
        "" => errors.required(&path.child("name"), ""),
        name => errors.all_invalid(&path.child("name"), name, names::path_segment(name)),
    }
    let list = Path::new("subjects");
    for (index, one) in binding.items("subjects").iter().enumerate() {
        subject(&mut errors, one, namespaced, &list.index(index));
    }
    errors.0
}

fn subject(errors: &mut Errors, subject: &Value, namespaced: bool, path: &Path<'_>) {
    let (name, group) = (subject.text("name"), subject.text("apiGroup"));
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    match subject.text("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                common::subdomain(errors, name, &path.child("name"));
            }
            if !group.is_empty() {
                errors.not_supported(&path.child("apiGroup"), group, &[""]);
            }
            if !namespaced && subject.text("namespace").is_empty() {
                errors.required(&path.child("namespace"), "");
            }
        }
        "User" | "Group" if group != GROUP => {
            errors.not_supported(&path.child("apiGroup"), group, &[GROUP]);
        }
        "User" | "Group" => {}
        other => {
            errors.not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]);
        }
    }
}

pub(crate) fn role_binding(object: &Value) -> Vec<FieldError> {
    binding(object, true)
}

pub(crate) fn cluster_role_binding(object: &Value) -> Vec<FieldError> {
    binding(object, false)
}

pub(crate) fn binding_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    if !same(new.at("roleRef"), old.at("roleRef")) {
        errors.invalid(&Path::new("roleRef"), new.at("roleRef").clone(), "cannot change roleRef");
    }
    errors.0
}
