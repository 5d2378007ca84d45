//! What a schema must obey to be structural (KEP-1979 and the CustomResourceDefinition reference), and what each of its
//! parts may say.

use serde_json::Value;

use super::{Additional, Schema};
use crate::field::{Errors, FieldError};

/// Where a schema stands below its parent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What keeps a schema from being structural, sorted by message.
pub fn validate(path: &str, schema: &Schema) -> Vec<FieldError> {
    let mut errors = Errors::new();
    invariants(schema, Level::Root, path, &mut errors);
    complete(schema, Some(schema), path, path, &mut errors);
    errors.0.sort_by_cached_key(FieldError::message);
    errors.0
}

fn property(path: &str, key: &str) -> String {
    format!("{path}.properties[{key}]")
}

fn invariants(schema: &Schema, level: Level, path: &str, errors: &mut Errors) {
    if schema.kind == "array" && schema.items.is_none() {
        errors.required(&format!("{path}.items"), "must be specified");
    }
    if let Some(items) = &schema.items {
        invariants(items, Level::Item, &format!("{path}.items"), errors);
    }
    for (key, schema) in &schema.properties {
        invariants(schema, Level::Field, &property(path, key), errors);
    }
    let additional = format!("{path}.additionalProperties");
    if schema.additional.is_some() && level == Level::Root {
        errors.forbidden(&additional, "must not be used at the root");
    }
    if let Some(Additional::Schema(schema)) = &schema.additional {
        invariants(schema, Level::Field, &additional, errors);
    }
    if schema.int_or_string && schema.preserves() {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        errors.invalid(&format!("{path}.x-kubernetes-preserve-unknown-fields"), true, detail);
    }
    if schema.int_or_string && schema.embedded {
        let detail = "must be false if x-kubernetes-int-or-string is true";
        errors.invalid(&format!("{path}.x-kubernetes-embedded-resource"), true, detail);
    }
    let any_of = int_or_string(&schema.any_of);
    let all_of = schema.all_of.first().is_some_and(|first| int_or_string(&first.any_of));
    value_validation(schema, any_of, all_of, path, errors);
    kinds(schema, level, path, errors);
}

/// `anyOf` of an integer and a string, which is allowed to name types.
fn int_or_string(any_of: &[Schema]) -> bool {
    let of = |kind: &str| Schema { kind: kind.to_owned(), ..Schema::default() };
    any_of.len() == 2 && any_of[0] == of("integer") && any_of[1] == of("string")
}

fn kinds(schema: &Schema, level: Level, path: &str, errors: &mut Errors) {
    let kind = format!("{path}.type");
    if schema.embedded && schema.kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        match schema.kind.as_str() {
            "" => errors.required(&kind, detail),
            other => errors.invalid(&kind, other, detail),
        }
    } else if schema.kind.is_empty() && !schema.int_or_string && !schema.preserves() {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.required(&kind, detail);
    }
    if schema.embedded && schema.additional.is_some() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        errors.forbidden(&format!("{path}.additionalProperties"), detail);
    }
    if level == Level::Root && !schema.kind.is_empty() && schema.kind != "object" {
        errors.invalid(&kind, schema.kind.as_str(), "must be object at the root");
    }
    let resource = level == Level::Root || schema.embedded;
    for key in ["kind", "apiVersion"] {
        if let Some(of) = schema.properties.get(key).filter(|of| resource && of.kind != "string") {
            errors.invalid(&format!("{}.type", property(path, key)), of.kind.as_str(), "must be string");
        }
    }
    if let Some(metadata) = schema.properties.get("metadata") {
        let path = property(path, "metadata");
        if resource && metadata.kind != "object" {
            errors.invalid(&format!("{path}.type"), metadata.kind.as_str(), "must be object");
        }
        if level == Level::Root && !only_names(metadata) {
            let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.forbidden(&path, detail);
        }
    }
    if schema.embedded && !schema.preserves() && schema.properties.is_empty() {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.required(&format!("{path}.properties"), detail);
    }
}

/// Whether a schema of the root's metadata restricts the names alone.
fn only_names(metadata: &Schema) -> bool {
    let names = metadata.properties.keys().all(|key| matches!(key.as_str(), "name" | "generateName"));
    let rest = Schema {
        kind: String::new(),
        default: None,
        properties: if names { Default::default() } else { metadata.properties.clone() },
        ..metadata.clone()
    };
    rest == Schema::default()
}

fn value_validation(schema: &Schema, skip_any: bool, skip_all: bool, path: &str, errors: &mut Errors) {
    if !skip_any {
        for (index, schema) in schema.any_of.iter().enumerate() {
            nested(schema, false, &format!("{path}.anyOf[{index}]"), errors);
        }
    }
    for (index, schema) in schema.all_of.iter().enumerate() {
        nested(schema, skip_all && index == 0, &format!("{path}.allOf[{index}]"), errors);
    }
    for (index, schema) in schema.one_of.iter().enumerate() {
        nested(schema, false, &format!("{path}.oneOf[{index}]"), errors);
    }
    if let Some(not) = &schema.not {
        nested(not, false, &format!("{path}.not"), errors);
    }
    if let Some(why) = schema.pattern.error() {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.invalid(&format!("{path}.pattern"), schema.pattern.text(), detail);
    }
}

/// A schema below `anyOf` and the like may only validate values.
fn nested(schema: &Schema, skip_any: bool, path: &str, errors: &mut Errors) {
    value_validation(schema, skip_any, false, path, errors);
    if let Some(items) = &schema.items {
        nested(items, false, &format!("{path}.items"), errors);
    }
    for (key, schema) in &schema.properties {
        nested(schema, false, &property(path, key), errors);
    }
    let mut forbid = |set: bool, name: &str, detail: &str| {
        if set {
            errors.forbidden(&format!("{path}.{name}"), format!("{detail} to be structural"));
        }
    };
    forbid(!schema.kind.is_empty(), "type", "must be empty");
    let additional = matches!(schema.additional, Some(Additional::Schema(_) | Additional::Allowed(true)));
    forbid(additional, "additionalProperties", "must be undefined");
    forbid(schema.default.is_some(), "default", "must be undefined");
    forbid(!schema.title.is_empty(), "title", "must be empty");
    forbid(!schema.description.is_empty(), "description", "must be empty");
    forbid(schema.nullable, "nullable", "must be false");
    forbid(schema.preserves(), "x-kubernetes-preserve-unknown-fields", "must be false");
    forbid(schema.embedded, "x-kubernetes-embedded-resource", "must be false");
    forbid(schema.int_or_string, "x-kubernetes-int-or-string", "must be false");
    forbid(!schema.list_keys.is_empty(), "x-kubernetes-list-map-keys", "must be empty");
    forbid(schema.list_type.is_some(), "x-kubernetes-list-type", "must be undefined");
    forbid(schema.map_type.is_some(), "x-kubernetes-map-type", "must be undefined");
    forbid(!schema.rules.is_empty(), "x-kubernetes-validations", "must be empty");
    if schema.properties.contains_key("metadata") {
        let detail = "must not be specified in a nested context";
        errors.forbidden(&property(path, "metadata"), detail);
    }
}

/// Everything that a value validation names must be named by the structure as well.
fn complete(nested: &Schema, structure: Option<&Schema>, path: &str, place: &str, errors: &mut Errors) {
    let mut below = |nested: &Schema, place: String| named(nested, structure, path, &place, errors);
    if let Some(not) = &nested.not {
        below(not, format!("{place}.not"));
    }
    for (list, name) in [(&nested.all_of, "allOf"), (&nested.any_of, "anyOf"), (&nested.one_of, "oneOf")] {
        for (index, schema) in list.iter().enumerate() {
            below(schema, format!("{place}.{name}[{index}]"));
        }
    }
}

fn named(nested: &Schema, structure: Option<&Schema>, path: &str, place: &str, errors: &mut Errors) {
    let Some(structure) = structure else {
        errors.required(&path, format!("because it is defined in {place}"));
        return;
    };
    complete(nested, Some(structure), path, place, errors);
    if let Some(items) = &nested.items {
        let (path, place) = (format!("{path}.items"), format!("{place}.items"));
        named(items, structure.items.as_deref(), &path, &place, errors);
    }
    for (key, schema) in &nested.properties {
        let (path, place) = (property(path, key), property(place, key));
        named(schema, structure.properties.get(key), &path, &place, errors);
    }
}

/// How strictly the parts of a schema are judged; what an update finds in the old definition it need not refuse.
#[derive(Clone, Copy)]
pub struct Strictness {
    pub valid_types: bool,
    pub atomic_sets: bool,
    pub map_keys: bool,
}

/// Whether a list that is a set or a map by itself breaks the rules for its items and keys.
pub fn has_loose_keys(schema: &Schema) -> bool {
    let mut errors = Errors::new();
    map_keys(schema, "", &mut errors);
    !errors.is_empty()
}

#[derive(Clone)]
struct Place {
    defaults: Result<(), String>,
    in_meta: bool,
}

/// What is wrong with the parts of a schema, each by itself.
pub fn validate_properties(path: &str, schema: &Schema, strictness: Strictness) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let place = Place { defaults: Ok(()), in_meta: false };
    parts(schema, path, &place, true, strictness, &mut errors);
    errors.0
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

fn keywords(schema: &Schema, path: &str, place: &Place, strictness: Strictness, errors: &mut Errors) {
    if strictness.valid_types && !schema.kind.is_empty() && !TYPES.contains(&schema.kind.as_str()) {
        errors.not_supported(&format!("{path}.type"), schema.kind.as_str(), &TYPES);
    }
    if schema.default.is_some()
        && let Err(why) = &place.defaults
    {
        errors.forbidden(&format!("{path}.default"), format!("must not be set {why}"));
    }
    let u = &schema.unsupported;
    for (set, name) in [
        (u.id, "id"),
        (u.additional_items, "additionalItems"),
        (u.pattern_properties, "patternProperties"),
        (!u.definitions.is_empty(), "definitions"),
        (u.dependencies, "dependencies"),
        (u.reference, "$ref"),
    ] {
        if set {
            errors.forbidden(&format!("{path}.{name}"), format!("{name} is not supported"));
        }
    }
    if schema.kind == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        errors.forbidden(&format!("{path}.type"), detail);
    }
    if !schema.item_list.is_empty() {
        errors.forbidden(&format!("{path}.items"), "items must be a schema object and not an array");
    }
    if place.in_meta && schema.embedded {
        let detail = "must not be used inside of resource meta";
        errors.forbidden(&format!("{path}.x-kubernetes-embedded-resource"), detail);
    }
    if schema.unique_items {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.forbidden(&format!("{path}.uniqueItems"), detail);
    }
}

fn parts(
    schema: &Schema,
    path: &str,
    place: &Place,
    root: bool,
    strictness: Strictness,
    errors: &mut Errors,
) {
    keywords(schema, path, place, strictness, errors);
    if let Some(additional) = &schema.additional {
        let path = format!("{path}.additionalProperties");
        if !schema.properties.is_empty() && *additional != Additional::Allowed(true) {
            errors.forbidden(&path, "additionalProperties and properties are mutual exclusive");
        }
        let mut place = place.clone();
        if place.in_meta {
            let why = "inside additionalProperties applying to object metadata";
            place.defaults = Err(why.to_owned());
        }
        if let Additional::Schema(schema) = additional {
            parts(schema, &path, &place, false, strictness, errors);
        }
    }
    for (key, schema_of) in &schema.properties {
        let mut place = place.clone();
        if (root || schema.embedded) && matches!(key.as_str(), "metadata" | "kind" | "apiVersion") {
            place.in_meta = true;
            if root {
                place.defaults = Err(format!("in top-level {key}"));
            }
        }
        parts(schema_of, &property(path, key), &place, false, strictness, errors);
    }
    if let Some(not) = &schema.not {
        parts(not, &format!("{path}.not"), place, false, strictness, errors);
    }
    for (list, name) in [
        (&schema.all_of, "allOf"),
        (&schema.one_of, "oneOf"),
        (&schema.any_of, "anyOf"),
        (&schema.item_list, "items"),
    ] {
        for (index, schema) in list.iter().enumerate() {
            parts(schema, &format!("{path}.{name}[{index}]"), place, false, strictness, errors);
        }
    }
    for (key, schema) in &schema.unsupported.definitions {
        parts(schema, &format!("{path}.definitions[{key}]"), place, false, strictness, errors);
    }
    if let Some(items) = &schema.items {
        parts(items, &format!("{path}.items"), place, false, strictness, errors);
    }
    extensions(schema, path, strictness, errors);
    list_map(schema, path, errors);
    if strictness.map_keys {
        map_keys(schema, path, errors);
    }
    rule_texts(schema, path, errors);
}

fn extensions(schema: &Schema, path: &str, strictness: Strictness, errors: &mut Errors) {
    let kind = format!("{path}.type");
    if schema.preserve == Some(false) {
        let path = format!("{path}.x-kubernetes-preserve-unknown-fields");
        errors.invalid(&path, false, "must be true or undefined");
    }
    let mut typed = |wanted: &str, extension: &str| {
        let detail = format!("must be {wanted} if {extension} is specified");
        match schema.kind.as_str() {
            "" => errors.required(&kind, detail),
            other => errors.invalid(&kind, other, detail),
        }
    };
    if schema.map_type.is_some() && schema.kind != "object" {
        typed("object", "x-kubernetes-map-type");
    }
    let wrong_list = schema.list_type.is_some() && schema.kind != "array";
    if wrong_list {
        typed("array", "x-kubernetes-list-type");
    }
    if let Some(map_type) = schema.map_type.as_deref().filter(|t| !matches!(*t, "atomic" | "granular")) {
        let path = format!("{path}.x-kubernetes-map-type");
        errors.not_supported(&path, map_type, &["atomic", "granular"]);
    }
    if !wrong_list && strictness.atomic_sets && schema.list_type.as_deref() == Some("set") {
        non_atomic(schema, path, errors);
    }
    if let Some(list) = schema.list_type.as_deref().filter(|t| !matches!(*t, "atomic" | "set" | "map")) {
        errors.not_supported(&format!("{path}.x-kubernetes-list-type"), list, &["atomic", "set", "map"]);
    }
}

/// The items of a set are compared as wholes.
fn non_atomic(schema: &Schema, path: &str, errors: &mut Errors) {
    let Some(items) = &schema.items else { return };
    let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let value = || items.list_type.clone().map_or(Value::Null, Value::from);
    match items.kind.as_str() {
        "array" if items.list_type.as_deref().is_some_and(|t| t != "atomic") => {
            errors.invalid(&format!("{path}.items.x-kubernetes-list-type"), value(), detail);
        }
        "object" if items.map_type.as_deref() != Some("atomic") => {
            errors.invalid(&format!("{path}.items.x-kubernetes-map-type"), value(), detail);
        }
        _ => {}
    }
}

fn list_map(schema: &Schema, path: &str, errors: &mut Errors) {
    let (list_type, keys) =
        (format!("{path}.x-kubernetes-list-type"), format!("{path}.x-kubernetes-list-map-keys"));
    if !schema.list_keys.is_empty() {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match schema.list_type.as_deref() {
            None => errors.required(&list_type, detail),
            Some("map") => {}
            Some(other) => errors.invalid(&list_type, other, detail),
        }
    }
    if schema.list_type.as_deref() != Some("map") {
        return;
    }
    if schema.list_keys.is_empty() {
        errors.required(&keys, "must not be empty if x-kubernetes-list-type is map");
    }
    let path = format!("{path}.items");
    let Some(items) = &schema.items else {
        match schema.item_list.is_empty() {
            true => errors.required(&path, "must have a schema if x-kubernetes-list-type is map"),
            false => {
                let detail = "must only have a single schema if x-kubernetes-list-type is map";
                errors.invalid(&path, Value::Null, detail);
            }
        }
        return;
    };
    if items.kind != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.invalid(&format!("{path}.type"), items.kind.as_str(), detail);
        return;
    }
    let all = || Value::from(schema.list_keys.clone());
    for (index, key) in schema.list_keys.iter().enumerate() {
        match items.properties.get(key) {
            Some(of) if matches!(of.kind.as_str(), "array" | "object") => {
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.invalid(&format!("{}.type", property(&path, key)), items.kind.as_str(), detail);
            }
            Some(_) => {}
            None => errors.invalid(&keys, all(), "entries must all be names of item properties"),
        }
        if schema.list_keys[..index].contains(key) {
            errors.invalid(&keys, all(), "must not contain duplicate entries");
        }
    }
}

fn map_keys(schema: &Schema, path: &str, errors: &mut Errors) {
    let Some(items) = &schema.items else { return };
    let Some(list_type @ ("set" | "map")) = schema.list_type.as_deref() else { return };
    let path = format!("{path}.items");
    if items.nullable {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.forbidden(&format!("{path}.nullable"), detail);
    }
    if list_type != "map" {
        return;
    }
    for key in &schema.list_keys {
        let Some(of) = items.properties.get(key) else { continue };
        let path = property(&path, key);
        if !items.required.contains(key) && of.default.is_none() {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.required(&format!("{path}.default"), detail);
        }
        if of.nullable {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(&format!("{path}.nullable"), detail);
        }
    }
}

const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// The texts of validation rules, before any of them is compiled.
fn rule_texts(schema: &Schema, path: &str, errors: &mut Errors) {
    let lines = |text: &str| text.contains(['\n', '\r']);
    for (index, rule) in schema.rules.iter().enumerate() {
        let part = |name: &str| format!("{path}.x-kubernetes-validations[{index}].{name}");
        let (text, message) = (rule.rule.trim(), rule.message.trim());
        if text.is_empty() {
            errors.required(&part("rule"), "rule is not specified");
        } else if !rule.message.is_empty() && message.is_empty() {
            errors.invalid(&part("message"), rule.message.as_str(), "must be non-empty if specified");
        } else if lines(message) {
            errors.invalid(&part("message"), rule.message.as_str(), "must not contain line breaks");
        } else if lines(text) && message.is_empty() {
            errors.required(&part("message"), "message must be specified if rule contains line breaks");
        }
        if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            errors.required(&part("messageExpression"), detail);
        }
        if let Some(reason) = rule.reason.as_deref().filter(|r| !REASONS.contains(r)) {
            errors.not_supported(&part("reason"), reason, &REASONS);
        }
        if rule.field_path.is_empty() {
            continue;
        }
        let place = part("fieldPath");
        if rule.field_path.trim().is_empty() {
            errors.invalid(&place, rule.field_path.as_str(), "must be non-empty if specified");
        }
        if lines(&rule.field_path) {
            errors.invalid(&place, rule.field_path.as_str(), "must not contain line breaks");
        }
        if super::path::find(schema, &rule.field_path, true).is_err() {
            errors.invalid(&place, rule.field_path.as_str(), "must be a valid path");
        }
    }
}
