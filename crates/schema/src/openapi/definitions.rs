//! Types as OpenAPI schemas.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Dialect, Route, described};
use crate::types::{Field, ListType, Shape, TypeId, Types};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
/// Types that the paths speak of beside the resources' own.
const COMMON: [&str; 5] = ["APIResourceList", "DeleteOptions", "Patch", "Status", "WatchEvent"];

/// The name of a common type.
pub(super) fn meta(name: &str) -> String {
    format!("{META}{name}")
}

/// Calls `emit` with every type that the routes need, by name.
pub(super) fn each(routes: &[Route<'_>], dialect: Dialect, emit: &mut dyn FnMut(&str, Value)) {
    let mut wanted: BTreeMap<&str, (&Types, TypeId)> = BTreeMap::new();
    let mut groups: BTreeSet<&str> = BTreeSet::new();
    for route in routes {
        groups.insert(route.group);
        let subresources = route.subresources.iter().filter_map(|s| s.type_id);
        let common = COMMON.iter().filter_map(|name| route.types.by_name(&meta(name)));
        for id in [route.type_id].into_iter().chain(route.list_type_id).chain(subresources).chain(common) {
            reach(route.types, id, &mut wanted);
        }
    }
    for (name, (types, id)) in wanted {
        emit(name, definition(types, id, dialect, &groups));
    }
}

fn reach<'t>(types: &'t Types, id: TypeId, wanted: &mut BTreeMap<&'t str, (&'t Types, TypeId)>) {
    let ty = types.get(id);
    match &ty.shape {
        Shape::List(element) | Shape::Map(element) => return reach(types, *element, wanted),
        Shape::String | Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Double | Shape::Bytes => return,
        _ => {}
    }
    if wanted.contains_key(ty.name.as_ref()) {
        return;
    }
    wanted.insert(&ty.name, (types, id));
    if ty.published.is_some() {
        for id in ["ObjectMeta", "ListMeta"].iter().filter_map(|name| types.by_name(&meta(name))) {
            reach(types, id, wanted);
        }
        return;
    }
    types.fields(id).iter().for_each(|field| reach(types, field.ty, wanted));
}

fn definition(types: &Types, id: TypeId, dialect: Dialect, groups: &BTreeSet<&str>) -> Value {
    let ty = types.get(id);
    if let Some(published) = &ty.published {
        return if dialect == Dialect::V2 { published.v2.clone() } else { published.v3.clone() };
    }
    let mut schema = match &ty.shape {
        Shape::Object(_) | Shape::RawExtension | Shape::FieldsV1 => json!({"type": "object"}),
        Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
        Shape::Quantity if dialect == Dialect::V3 => {
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]})
        }
        Shape::IntOrString if dialect == Dialect::V3 => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Shape::IntOrString => json!({"type": "string", "format": "int-or-string"}),
        Shape::Quantity => json!({"type": "string"}),
        _ => json!({}),
    };
    let Some(map) = schema.as_object_mut() else { return schema };
    let fields = types.fields(id);
    if !fields.is_empty() {
        let properties: Map<String, Value> =
            fields.iter().map(|f| (f.name.to_string(), property(types, &ty.name, f, dialect))).collect();
        map.insert("properties".to_owned(), Value::Object(properties));
    }
    let required: Vec<Value> = fields.iter().filter(|f| f.required).map(|f| f.name.as_ref().into()).collect();
    if !required.is_empty() {
        map.insert("required".to_owned(), required.into());
    }
    if ty.atomic {
        map.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    if ty.preserve_unknown {
        map.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
    }
    if let Some(unions) = &ty.unions {
        map.insert("x-kubernetes-unions".to_owned(), unions.clone());
    }
    let shown = |kind: &&crate::types::Kind| {
        ty.kinds.len() == 1 || kind.group.is_empty() || groups.contains(kind.group.as_ref())
    };
    let kinds: Vec<Value> = ty
        .kinds
        .iter()
        .filter(shown)
        .map(|k| json!({"group": k.group, "version": k.version, "kind": k.kind}))
        .collect();
    if !kinds.is_empty() {
        map.insert("x-kubernetes-group-version-kind".to_owned(), kinds.into());
    }
    schema
}

/// A reference to a named type.
pub(super) fn reference(name: &str, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
        Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
    }
}

fn property(types: &Types, of: &str, field: &Field, dialect: Dialect) -> Value {
    let mut schema = value(types, field.ty, dialect);
    if dialect == Dialect::V3 {
        if schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        if let Some(default) = &field.default {
            schema["default"] = default.clone();
        }
    }
    if let Some(description) = described::field(of, &field.name) {
        schema["description"] = description.into();
    }
    let mut strategies = Vec::new();
    for (on, name) in [
        (field.patch_merge, "merge"),
        (field.patch_replace, "replace"),
        (field.patch_retain_keys, "retainKeys"),
    ] {
        if on {
            strategies.push(name);
        }
    }
    if !strategies.is_empty() {
        schema["x-kubernetes-patch-strategy"] = strategies.join(",").into();
    }
    if let Some(key) = &field.merge_key {
        schema["x-kubernetes-patch-merge-key"] = key.as_ref().into();
    }
    if let Some(list) = field.list {
        schema["x-kubernetes-list-type"] = match list {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        }
        .into();
    }
    if !field.list_keys.is_empty() {
        schema["x-kubernetes-list-map-keys"] =
            field.list_keys.iter().map(|k| Value::from(k.as_ref())).collect();
    }
    if field.map_atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    schema
}

fn value(types: &Types, id: TypeId, dialect: Dialect) -> Value {
    let ty = types.get(id);
    match &ty.shape {
        Shape::String => json!({"type": "string"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Double => json!({"type": "number", "format": "double"}),
        Shape::List(element) => json!({"type": "array", "items": value(types, *element, dialect)}),
        Shape::Map(element) => {
            json!({"type": "object", "additionalProperties": value(types, *element, dialect)})
        }
        _ => reference(&ty.name, dialect),
    }
}
