//! CustomResourceDefinition. Paths are those of upstream's internal form, in which what all versions have in common stands
//! once, above them.

mod conversion;
mod leniency;
mod versions;

use schema::structural::{self, Meta, Schema};
use serde_json::Value;

use self::conversion::conversion;
use self::leniency::Leniency;
use self::versions::{Common, versions};
use super::super::json::Read;
use crate::custom::object_meta;
use crate::field::Errors;
use crate::{FieldError, names};

fn raw(version: &Value) -> &Value {
    version.at("schema").at("openAPIV3Schema")
}

fn schemas(object: &Value) -> Vec<Schema> {
    let versions = object.at("spec").items("versions");
    versions.iter().filter_map(|v| Schema::read(raw(v)).ok()).collect()
}

fn meta() -> Option<Meta<'static>> {
    let types = crate::types();
    let id = types.by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")?;
    Some(Meta { types, id, check: &object_meta })
}

fn is_true(object: &Value, kind: &str) -> bool {
    let conditions = object.at("status").items("conditions");
    conditions.iter().any(|c| c.text("type") == kind && c.text("status") == "True")
}

/// A new definition.
pub(crate) fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    whole_name(object, &mut errors);
    spec(object, None, &Leniency::create(), &mut errors);
    status(object, &mut errors);
    stored_versions(object, &mut errors);
    approval(object, None, &mut errors);
    if object.at("spec").flag("preserveUnknownFields") {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.invalid(&"spec.preserveUnknownFields", true, detail);
    }
    errors.0
}

/// An update of a definition.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    spec(new, Some(old), &Leniency::update(new, old), &mut errors);
    let (spec, before) = (new.at("spec"), old.at("spec"));
    let mut immutable = |path: &str, new: &Value, old: &Value| {
        if new != old {
            errors.invalid(&path, new.clone(), "field is immutable");
        }
    };
    if is_true(old, "Established") {
        immutable("spec.scope", spec.at("scope"), before.at("scope"));
        immutable("spec.names.kind", spec.at("names").at("kind"), before.at("names").at("kind"));
    }
    immutable("spec.group", spec.at("group"), before.at("group"));
    immutable("spec.names.plural", spec.at("names").at("plural"), before.at("names").at("plural"));
    status(new, &mut errors);
    stored_versions(new, &mut errors);
    approval(new, Some(old), &mut errors);
    if spec.flag("preserveUnknownFields") && !before.flag("preserveUnknownFields") {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.invalid(&"spec.preserveUnknownFields", true, detail);
    }
    errors.0
}

/// An update of the status of a definition.
pub(crate) fn status_update(new: &Value, _old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    status(new, &mut errors);
    errors.0
}

fn whole_name(object: &Value, errors: &mut Errors) {
    let spec = object.at("spec");
    let (name, wanted) = (
        object.at("metadata").text("name"),
        format!("{}.{}", spec.at("names").text("plural"), spec.text("group")),
    );
    if name != wanted {
        errors.invalid(&"metadata.name", name, "must be spec.names.plural+\".\"+spec.group");
    }
}

fn status(object: &Value, errors: &mut Errors) {
    kind_names(object.at("status").at("acceptedNames"), "status.acceptedNames", errors);
}

fn stored_versions(object: &Value, errors: &mut Errors) {
    let stored = object.at("status").items("storedVersions");
    let path = "status.storedVersions";
    let all = || Value::from(stored.to_vec());
    if stored.is_empty() {
        errors.invalid(&path, all(), "must have at least one stored version");
        return;
    }
    let versions = object.at("spec").items("versions");
    for version in versions.iter().filter(|v| v.flag("storage") && !stored.contains(v.at("name"))) {
        let detail = format!("must have the storage version {}", version.text("name"));
        errors.invalid(&path, all(), detail);
    }
    for (index, name) in stored.iter().enumerate() {
        if !versions.iter().any(|v| v.at("name") == name) {
            let text = name.as_str().unwrap_or_default();
            let detail = format!(
                "missing from spec.versions; {text} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {text} and removes {text} from status.storedVersions"
            );
            errors.invalid(&format!("{path}[{index}]"), text, detail);
        }
    }
}

const APPROVAL: &str = "api-approved.kubernetes.io";

/// What the approval annotation of a definition in a protected group says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

/// The groups whose definitions the community has to approve.
pub fn is_protected(group: &str) -> bool {
    let under = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    under("k8s.io") || under("kubernetes.io")
}

/// The state of a definition's approval, and why.
pub fn approval_state(object: &Value) -> (Approval, String) {
    let text = object.at("metadata").at("annotations").text(APPROVAL);
    let url = text.split_once("://").is_some_and(|(scheme, rest)| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric()) && !host.is_empty()
    });
    let reason = |detail: &str| {
        format!(
            "protected groups must have approval annotation {APPROVAL:?}{detail}, see https://github.com/kubernetes/enhancements/pull/1111"
        )
    };
    match text {
        "" => (Approval::Missing, reason("")),
        text if text.starts_with("unapproved") => (Approval::Bypassed, format!("not approved: {text:?}")),
        text if url && !text.contains(char::is_whitespace) => {
            (Approval::Approved, format!("approved in {text}"))
        }
        _ => (Approval::Invalid, reason(" with either a URL or a reason starting with \"unapproved\"")),
    }
}

fn approval(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    if !is_protected(object.at("spec").text("group")) {
        return;
    }
    let (state, reason) = approval_state(object);
    if old.is_some_and(|old| approval_state(old).0 == state) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVAL}]");
    match state {
        Approval::Missing => errors.required(&path, reason),
        Approval::Invalid => {
            errors.invalid(&path, object.at("metadata").at("annotations").text(APPROVAL), reason);
        }
        Approval::Approved | Approval::Bypassed => {}
    }
}

fn joined(errors: &mut Errors, path: &str, value: &str, prefix: &str, found: Vec<String>) {
    if !value.is_empty() && !found.is_empty() {
        errors.invalid(&path, value, format!("{prefix}{}", found.join(",")));
    }
}

fn kind_names(value: &Value, path: &str, errors: &mut Errors) {
    for key in ["plural", "singular"] {
        let name = value.text(key);
        joined(errors, &format!("{path}.{key}"), name, "", names::dns1035_label(name));
    }
    for key in ["kind", "listKind"] {
        let name = value.text(key);
        let found = names::dns1035_label(&name.to_lowercase());
        let prefix = "may have mixed case, but should otherwise match: ";
        joined(errors, &format!("{path}.{key}"), name, prefix, found);
    }
    let (kind, list) = (value.text("kind"), value.text("listKind"));
    for (index, name) in value.items("shortNames").iter().filter_map(Value::as_str).enumerate() {
        joined(errors, &format!("{path}.shortNames[{index}]"), name, "", names::dns1035_label(name));
    }
    if !kind.is_empty() && kind == list {
        errors.invalid(&format!("{path}.listKind"), list, "kind and listKind may not be the same");
    }
    for (index, name) in value.items("categories").iter().filter_map(Value::as_str).enumerate() {
        joined(errors, &format!("{path}.categories[{index}]"), name, "", names::dns1035_label(name));
    }
}

fn spec(object: &Value, old: Option<&Value>, lenient: &Leniency, errors: &mut Errors) {
    let spec = object.at("spec");
    let group = spec.text("group");
    match names::dns1123_subdomain(group) {
        _ if group.is_empty() => errors.required(&"spec.group", ""),
        found if !found.is_empty() => errors.invalid(&"spec.group", group, found.join(",")),
        _ if !group.contains('.') => {
            errors.invalid(&"spec.group", group, "should be a domain with at least one dot");
        }
        _ => {}
    }
    match spec.text("scope") {
        "" => errors.required(&"spec.scope", ""),
        "Cluster" | "Namespaced" => {}
        other => errors.not_supported(&"spec.scope", other, &["Cluster", "Namespaced"]),
    }
    let preserve = spec.flag("preserveUnknownFields");
    let versions = spec.items("versions");
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
        if raw(version).is_object() {
            continue;
        }
        if lenient.schema_everywhere {
            errors.required(&path, "");
        } else if !preserve && version.flag("served") {
            errors.required(&path, "because otherwise all fields are pruned");
        }
    }
    let all = schemas(object);
    let extended = |s: &Schema| {
        s.embedded
            || s.preserve.is_some()
            || s.int_or_string
            || !s.list_keys.is_empty()
            || s.list_type.is_some()
            || !s.rules.is_empty()
    };
    let has = |test: &dyn Fn(&Schema) -> bool| all.iter().any(|schema| schema.any(test));
    let defaults = has(&|s| s.default.is_some());
    if defaults && preserve {
        let detail = "must be false in order to use defaults in the schema";
        errors.invalid(&"spec.preserveUnknownFields", true, detail);
    }
    let must_be_structural = lenient.structural || !preserve || defaults || has(&extended);
    self::versions(object, old, lenient, must_be_structural, errors);
    let names = spec.at("names");
    for key in ["plural", "singular", "kind", "listKind"] {
        if names.text(key).is_empty() {
            errors.required(&format!("spec.names.{key}"), "");
        }
    }
    kind_names(names, "spec.names", errors);
    let conversion_of = spec.at("conversion");
    if preserve && conversion_of.has("strategy") && conversion_of.text("strategy") != "None" {
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.invalid(&"spec.conversion.strategy", conversion_of.text("strategy"), detail);
    }
    conversion(conversion_of, lenient, errors);
}

/// Warnings for formats that mean nothing here.
pub(crate) fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    fn formats(schema: &Schema, found: &mut Vec<String>) {
        let kind = if schema.int_or_string { "" } else { schema.kind.as_str() };
        if structural::unrecognized_format(kind, &schema.format) {
            found.push(schema.format.clone());
        }
        schema.children().for_each(|child| formats(child, found));
    }
    let of = |object: &Value| {
        let mut found = Vec::new();
        let all = schemas(object);
        let shared = Common::of(object.at("spec").items("versions")).schema;
        all.iter().take(if shared { 1 } else { all.len() }).for_each(|schema| formats(schema, &mut found));
        found
    };
    let before = old.map(of).unwrap_or_default();
    let new = of(new).into_iter().filter(|format| !before.contains(format));
    new.map(|format| format!("unrecognized format {format:?}")).collect()
}
