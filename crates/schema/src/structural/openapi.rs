//! The published OpenAPI of a custom resource: its schema with the fields that every object has, in the two dialects.

use serde_json::{Map, Value, json};

use crate::types::Kind;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The name of a kind's definition: `com.example.v1.Foo`.
pub fn model(kind: &Kind) -> String {
    let group: Vec<&str> = kind.group.rsplit('.').collect();
    format!("{}.{}.{}", group.join("."), kind.version, kind.kind)
}

/// A definition as the v2 and the v3 document hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    pub v2: Value,
    pub v3: Value,
}

fn reference(name: &str, v2: bool) -> Value {
    match v2 {
        true => json!({"$ref": format!("#/definitions/{name}")}),
        false => json!({"$ref": format!("#/components/schemas/{name}")}),
    }
}

fn described(name: &str, v2: bool, description: &str) -> Value {
    let reference = reference(&format!("{META}{name}"), v2);
    match v2 {
        true => json!({"description": description, "$ref": reference["$ref"]}),
        false => json!({"description": description, "default": {}, "allOf": [reference]}),
    }
}

const API_VERSION: &str = "APIVersion defines the version of the schema this object is written in; the server converts what it knows.";
const KIND: &str = "What kind of resource this object is, in CamelCase; it cannot be changed.";
const OBJECT_META: &str = "Standard object's metadata: name, labels, owners and the like.";
const LIST_META: &str = "What all lists have: version and continuation.";

fn type_meta(properties: &mut Map<String, Value>) {
    for (key, description) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        properties.insert(key.to_owned(), json!({"type": "string", "description": description}));
    }
}

fn properties(schema: &mut Value) -> Option<&mut Map<String, Value>> {
    let map = schema.as_object_mut()?;
    map.entry("properties").or_insert_with(|| json!({})).as_object_mut()
}

fn marked(mut schema: Value, kind: &Kind, selectable: &[String]) -> Value {
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": kind.group, "version": kind.version, "kind": kind.kind}]);
    if !selectable.is_empty() {
        schema["x-kubernetes-selectable-fields"] =
            selectable.iter().map(|path| json!({"fieldPath": path.trim_start_matches('.')})).collect();
    }
    schema
}

/// The definition of a kind. `schema` is its `openAPIV3Schema`, or null if it has none that can be shown.
pub fn kind(kind: &Kind, schema: &Value, preserve: bool, selectable: &[String]) -> Published {
    let of = |v2: bool| {
        let open = preserve || schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        // Clients would take unknown fields for wrong if any were named.
        if schema.is_null() || (v2 && open) {
            return marked(json!({"type": "object"}), kind, selectable);
        }
        let mut schema = schema.clone();
        unfold(&mut schema);
        if v2 {
            flatten(&mut schema);
        }
        embed(&mut schema, v2);
        if let Some(properties) = properties(&mut schema) {
            properties.insert("metadata".to_owned(), described("ObjectMeta", v2, OBJECT_META));
            type_meta(properties);
        }
        marked(schema, kind, selectable)
    };
    Published { v2: of(true), v3: of(false) }
}

/// The definition of a kind's list.
pub fn list(kind: &Kind, list_kind: &str, plural: &str, selectable: &[String]) -> Published {
    let of = |v2: bool| {
        let mut schema = json!({
            "type": "object",
            "description": format!("{list_kind} is a list of {}", kind.kind),
            "required": ["items"],
            "properties": {
                "items": {
                    "type": "array",
                    "description": format!("The {plural}."),
                    "items": reference(&model(kind), v2),
                },
                "metadata": described("ListMeta", v2, LIST_META),
            },
        });
        if let Some(properties) = properties(&mut schema) {
            type_meta(properties);
        }
        let of = Kind { kind: list_kind.to_owned().into(), ..kind.clone() };
        marked(schema, &of, selectable)
    };
    Published { v2: of(true), v3: of(false) }
}

/// Calls a function with every schema that a schema's structure has, from below.
fn each(schema: &mut Value, run: &mut dyn FnMut(&mut Value)) {
    if let Some(map) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        map.iter_mut().for_each(|(_, schema)| each(schema, run));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get_mut(key).filter(|s| s.is_object()) {
            each(schema, run);
        }
    }
    run(schema);
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

/// Says what is implied: an integer or a string is one of both.
fn unfold(schema: &mut Value) {
    each(schema, &mut |schema| {
        if !flag(schema, "x-kubernetes-int-or-string") {
            return;
        }
        let either = json!([{"type": "integer"}, {"type": "string"}]);
        let named = schema.get("anyOf") == Some(&either)
            || schema.pointer("/allOf/0/anyOf").is_some_and(|any| *any == either);
        if named {
            return;
        }
        if schema.get("anyOf").is_none() {
            schema["anyOf"] = either;
        } else {
            let any = schema["anyOf"].take();
            let mut all = vec![json!({"anyOf": either}), json!({"anyOf": any})];
            if let Some(Value::Array(more)) = schema.get_mut("allOf").map(Value::take) {
                all.extend(more);
            }
            schema["allOf"] = all.into();
            if let Some(map) = schema.as_object_mut() {
                map.remove("anyOf");
            }
        }
    });
}

/// Takes out what v2 cannot say, in the way that kubectl can live with.
fn flatten(schema: &mut Value) {
    each(schema, &mut |schema| {
        let nullable: Vec<String> = schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter(|(_, property)| flag(property, "nullable_"))
            .map(|(key, _)| key.clone())
            .collect();
        let loose = schema.get("additionalProperties").is_some_and(|a| flag(a, "nullable_"));
        let was_nullable = flag(schema, "nullable");
        let open = flag(schema, "x-kubernetes-preserve-unknown-fields");
        let Some(map) = schema.as_object_mut() else { return };
        for key in ["allOf", "oneOf", "anyOf", "not", "nullable"] {
            map.remove(key);
        }
        if was_nullable || open {
            map.remove("items");
            map.remove("properties");
        }
        let kind = map.get("type").and_then(Value::as_str).unwrap_or_default();
        let shapeless = kind == "array" && !map.contains_key("items");
        if was_nullable || shapeless || (open && kind == "object") {
            map.remove("type");
        }
        if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|name| name.as_str().is_none_or(|name| !nullable.iter().any(|n| n == name)));
        }
        if loose || map.get("required").is_some_and(|r| r.as_array().is_some_and(Vec::is_empty)) {
            map.remove("required");
        }
        // Seen by the parent, and gone afterwards.
        if was_nullable {
            map.insert("nullable_".to_owned(), true.into());
        }
    });
    each(schema, &mut |schema| {
        if let Some(map) = schema.as_object_mut() {
            map.remove("nullable_");
        }
    });
}

/// Names the fields that embedded resources have.
fn embed(schema: &mut Value, v2: bool) {
    each(schema, &mut |schema| {
        let open = flag(schema, "x-kubernetes-preserve-unknown-fields");
        if !flag(schema, "x-kubernetes-embedded-resource") || (v2 && open) {
            return;
        }
        if let Some(properties) = properties(schema) {
            type_meta(properties);
            properties.insert("metadata".to_owned(), described("ObjectMeta", v2, OBJECT_META));
        }
        let mut required: Vec<Value> =
            schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        for key in ["kind", "apiVersion"] {
            if !required.iter().any(|name| name == key) {
                required.push(key.into());
            }
        }
        schema["required"] = required.into();
    });
}
