//! The versions of a definition: schemas, subresources, printer columns and selectable fields.

use std::collections::BTreeSet;

use schema::structural::{self, Schema};
use serde_json::Value;

use super::super::super::json::Read;
use super::leniency::Leniency;
use super::{joined, meta, raw};
use crate::custom::rules;
use crate::field::Errors;
use crate::names;

pub(super) const SELECTABLE_LIMIT: usize = 8;

/// A schema with its place, or why it cannot be read.
struct Shown {
    schema: Option<Schema>,
    status: bool,
    path: String,
    unchanged: bool,
}

/// What all versions have in common, as upstream moves it above them.
pub(super) struct Common {
    pub schema: bool,
    subresources: bool,
    columns: bool,
    selectable: bool,
}

impl Common {
    pub(super) fn of(versions: &[Value]) -> Self {
        let same = |key: &str| versions.windows(2).all(|pair| pair[0].at(key) == pair[1].at(key));
        let [schema, subresources, columns, selectable] =
            ["schema", "subresources", "additionalPrinterColumns", "selectableFields"].map(same);
        Self { schema, subresources, columns, selectable }
    }
}

pub(super) fn versions(
    object: &Value,
    old: Option<&Value>,
    lenient: &Leniency,
    must_be_structural: bool,
    errors: &mut Errors,
) {
    let spec = object.at("spec");
    let versions = spec.items("versions");
    let shared = Common::of(versions);
    let unchanged = |version: &Value| {
        let before = old.map_or(&[][..], |old| old.at("spec").items("versions"));
        before.iter().any(|v| v.at("name") == version.at("name") && raw(v) == raw(version))
    };
    let mut seen: Vec<&str> = Vec::new();
    let mut unique = true;
    for (index, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = version.text("name");
        unique &= !seen.contains(&name);
        seen.push(name);
        let found = names::dns1035_label(name);
        if !found.is_empty() {
            errors.invalid(&format!("{path}.name"), name, found.join(","));
        }
        deprecation(version, &path, errors);
        if !shared.schema {
            let shown = Shown {
                schema: Schema::read(raw(version)).ok(),
                status: version.at("subresources").has("status"),
                path: format!("{path}.schema"),
                unchanged: unchanged(version),
            };
            one_schema(shown, lenient, must_be_structural, errors);
        }
        if !shared.subresources {
            scale(version, &format!("{path}.subresources"), errors);
        }
        if !shared.columns {
            columns(version, &format!("{path}.additionalPrinterColumns"), errors);
        }
        if !shared.selectable {
            let many = lenient.many_selectable.contains(name);
            selectable(version, &format!("{path}.selectableFields"), many, errors);
        }
    }
    let Some(first) = versions.first() else {
        errors.invalid(
            &"spec.versions",
            Value::Null,
            "must have exactly one version marked as storage version",
        );
        return;
    };
    let all = || Value::from(versions.to_vec());
    if !unique {
        errors.invalid(&"spec.versions", all(), "must contain unique version names");
    }
    if versions.iter().filter(|v| v.flag("storage")).count() != 1 {
        errors.invalid(&"spec.versions", all(), "must have exactly one version marked as storage version");
    }
    let name = first.text("name");
    joined(errors, "spec.version", name, "", names::dns1035_label(name));
    if shared.schema {
        let shown = Shown {
            schema: Schema::read(raw(first)).ok(),
            status: versions.iter().any(|v| v.at("subresources").has("status")),
            path: "spec.validation".to_owned(),
            unchanged: unchanged(first),
        };
        one_schema(shown, lenient, must_be_structural, errors);
    }
    if shared.subresources {
        scale(first, "spec.subresources", errors);
    }
    if shared.columns {
        columns(first, "spec.additionalPrinterColumns", errors);
    }
    if shared.selectable {
        let many = lenient.many_selectable.contains("");
        selectable(first, "spec.selectableFields", many, errors);
    }
}

fn deprecation(version: &Value, path: &str, errors: &mut Errors) {
    let path = format!("{path}.deprecationWarning");
    let Some(warning) = version.at("deprecationWarning").as_str() else { return };
    let mut wrong = |detail: String| errors.invalid(&path, warning, detail);
    if !version.flag("deprecated") {
        wrong("can only be set for deprecated versions".to_owned());
        return;
    }
    if warning.len() > 256 {
        wrong("must be <= 256 characters long".to_owned());
    }
    if warning.is_empty() {
        wrong("must not be an empty string".to_owned());
    }
    // What Go's unicode.IsPrint refuses: control characters and all spaces but the plain one.
    let odd = |c: char| c.is_control() || (c.is_whitespace() && c != ' ');
    if let Some((index, _)) = warning.char_indices().find(|(_, c)| odd(*c)) {
        wrong(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {index}"
        ));
    }
}

fn one_schema(shown: Shown, lenient: &Leniency, must_be_structural: bool, errors: &mut Errors) {
    let Some(schema) = shown.schema else { return };
    let path = format!("{}.openAPIV3Schema", shown.path);
    let start = errors.0.len();
    if shown.status {
        root_fields(&schema, &path, errors);
    }
    if schema.nullable {
        errors.forbidden(&format!("{path}.nullable"), "nullable cannot be true at the root");
    }
    let mut unreadable = None;
    let mut ruled = false;
    if must_be_structural {
        match schema.unsupported() {
            Err(error) => unreadable = Some(error),
            Ok(()) => {
                let found = structural::validate_structural(&path, &schema);
                let found = match (found.is_empty(), meta()) {
                    (true, Some(meta)) => structural::validate_defaults(
                        &path,
                        &schema,
                        lenient.pruned_defaults,
                        meta,
                        &rules::check_default,
                    ),
                    _ => found,
                };
                ruled = found.is_empty();
                errors.0.extend(found);
            }
        }
    }
    let parts = structural::validate_properties(&path, &schema, lenient.strictness);
    if ruled && parts.is_empty() {
        let before = rules::Before { unchanged: shown.unchanged, ..lenient.before.clone() };
        errors.0.extend(rules::check_definition(&path, &schema, &before));
    }
    errors.0.extend(parts);
    if let Some(error) = unreadable.filter(|_| errors.0.len() == start) {
        errors.invalid(&path, "", error.to_string());
    }
}

/// With a status subresource the root may say little, since the status is validated by itself.
fn root_fields(schema: &Schema, path: &str, errors: &mut Errors) {
    if !schema.kind.is_empty() && schema.kind != "object" {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.invalid(&format!("{path}.type"), schema.kind.as_str(), detail);
        return;
    }
    let u = &schema.unsupported;
    let other = u.id
        || u.schema
        || u.reference
        || u.additional_items
        || u.pattern_properties
        || u.dependencies
        || !u.definitions.is_empty()
        || schema.nullable
        || schema.int_or_string
        || schema.embedded
        || schema.default.is_some()
        || schema.list_type.is_some()
        || !schema.list_keys.is_empty()
        || schema.map_type.is_some()
        || schema.max_properties.is_some()
        || schema.min_properties.is_some()
        || !schema.enumeration.is_empty()
        || !schema.all_of.is_empty()
        || !schema.any_of.is_empty()
        || !schema.one_of.is_empty()
        || schema.not.is_some()
        || schema.additional.is_some();
    if other {
        let detail = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";
        errors.invalid(&path, Value::Null, detail);
    }
}

/// A path in dot notation, below one of the given roots.
fn simple_path(path: &str, field: &str, roots: &[&str], place: &str, errors: &mut Errors) {
    if !path.starts_with('.') {
        errors.invalid(&field, path, "must be a simple json path starting with .");
    } else if !roots.is_empty() && !roots.iter().any(|root| path.starts_with(root)) {
        errors.invalid(&field, path, format!("should be a json path under {place}"));
    }
}

fn scale(version: &Value, path: &str, errors: &mut Errors) {
    let scale = version.at("subresources").at("scale");
    if !scale.is_object() {
        return;
    }
    for (key, root, place) in
        [("specReplicasPath", ".spec.", ".spec"), ("statusReplicasPath", ".status.", ".status")]
    {
        let field = format!("{path}.scale.{key}");
        match scale.text(key) {
            "" => errors.required(&field, ""),
            text => simple_path(text, &field, &[root], place, errors),
        }
    }
    let selector = scale.text("labelSelectorPath");
    if !selector.is_empty() {
        let field = format!("{path}.scale.labelSelectorPath");
        simple_path(selector, &field, &[".spec.", ".status."], "either .spec or .status", errors);
    }
}

const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

fn columns(version: &Value, path: &str, errors: &mut Errors) {
    for (index, column) in version.items("additionalPrinterColumns").iter().enumerate() {
        let at = |key: &str| format!("{path}[{index}].{key}");
        if column.text("name").is_empty() {
            errors.required(&at("name"), "");
        }
        let types = format!("must be one of {}", COLUMN_TYPES.join(","));
        match column.text("type") {
            "" => errors.required(&at("type"), types),
            kind if !COLUMN_TYPES.contains(&kind) => errors.invalid(&at("type"), kind, types),
            _ => {}
        }
        let format = column.text("format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            errors.invalid(&at("format"), format, format!("must be one of {}", COLUMN_FORMATS.join(",")));
        }
        match column.text("jsonPath") {
            "" => errors.required(&at("JSONPath"), ""),
            text => simple_path(text, &at("JSONPath"), &[], "", errors),
        }
    }
}

fn selectable(version: &Value, path: &str, many: bool, errors: &mut Errors) {
    let fields = version.items("selectableFields");
    if fields.is_empty() {
        return;
    }
    let Ok(schema) = Schema::read(raw(version)) else {
        errors.invalid(&path, "", "may only be set when `version.schema.openAPIV3Schema` is not included");
        return;
    };
    let mut seen = BTreeSet::new();
    for (index, field) in fields.iter().enumerate() {
        let at = format!("{path}[{index}].jsonPath");
        let text = field.text("jsonPath");
        if text.is_empty() {
            errors.required(&at, "");
            continue;
        }
        let (way, found) = match structural::path::find(&schema, text, false) {
            Ok(found) => found,
            Err(why) => {
                errors.invalid(&at, text, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if way.first().is_some_and(|first| first == "metadata") {
            errors.invalid(&at, text, "must not point to fields in metadata");
        }
        if !matches!(found.kind.as_str(), "string" | "boolean" | "integer") {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.invalid(&at, text, detail);
        }
        if !seen.insert(way) {
            errors.duplicate(&at, text);
        }
    }
    if seen.len() > SELECTABLE_LIMIT && !many {
        errors.too_many(&path, seen.len(), SELECTABLE_LIMIT);
    }
}
