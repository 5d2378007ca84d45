//! The normal form of an object: what upstream writes after it has read the object into Go structs. Empty optional values
//! vanish, mandatory ones appear with their zero, nulls in lists and maps become the zero of their type.

use serde_json::{Map, Value};

use crate::types::{Field, Omit, Shape, TypeId, Types};

/// Brings an object of a type into normal form. Fields that the type does not know are left alone.
pub fn normalize(types: &Types, id: TypeId, value: &mut Value) {
    bring(types, id, value, false);
}

/// The same, but for optional lists that are empty: they stay, since defaults are for what is absent, and validation tells
/// an empty list from none. What is stored and what managers own is in normal form.
pub fn normalize_open(types: &Types, id: TypeId, value: &mut Value) {
    bring(types, id, value, true);
}

fn bring(types: &Types, id: TypeId, value: &mut Value, open: bool) {
    match types.shape(id) {
        Shape::Object(fields) => {
            if value.is_null() {
                *value = Value::Object(Map::new());
            }
            let Some(map) = value.as_object_mut() else { return };
            for field in fields {
                normalize_field(types, field, map, open);
            }
        }
        Shape::List(element) => {
            for item in value.as_array_mut().into_iter().flatten() {
                fill(types, *element, item, open);
            }
        }
        Shape::Map(element) => {
            for (_, item) in value.as_object_mut().into_iter().flatten() {
                fill(types, *element, item, open);
            }
        }
        Shape::Either(object, other) => {
            bring(types, if value.is_object() { *object } else { *other }, value, open);
        }
        _ => {}
    }
}

fn fill(types: &Types, id: TypeId, value: &mut Value, open: bool) {
    if value.is_null() {
        *value = zero(types, id);
    } else {
        bring(types, id, value, open);
    }
}

fn normalize_field(types: &Types, field: &Field, map: &mut Map<String, Value>, open: bool) {
    match map.get_mut(field.name.as_ref()) {
        Some(value) if !value.is_null() => {
            bring(types, field.ty, value, open);
            // The stored form does not tell an empty list or map from none.
            let shape = types.shape(field.ty);
            let list = matches!(shape, Shape::List(_));
            let gathers = list || matches!(shape, Shape::Map(_));
            if gathers && field.omit == Omit::Never && is_empty(shape, value) {
                *value = Value::Null;
            }
            let gone = !(field.pointer || list && open)
                && match field.omit {
                    Omit::Never => false,
                    Omit::Empty | Omit::Zero => is_empty(types.shape(field.ty), value),
                };
            if gone {
                map.remove(field.name.as_ref());
            }
        }
        present => {
            let present = present.is_some();
            let mut value = Value::Null;
            if !field.pointer {
                value = zero(types, field.ty);
            }
            let shape = types.shape(field.ty);
            let gone = match field.omit {
                Omit::Never => false,
                Omit::Zero => true,
                Omit::Empty => field.pointer || is_empty(shape, &value),
            };
            if !gone {
                map.insert(field.name.to_string(), value);
            } else if present {
                map.remove(field.name.as_ref());
            }
        }
    }
}

/// What Go calls empty: structs never are.
fn is_empty(shape: &Shape, value: &Value) -> bool {
    match shape {
        Shape::String | Shape::Bytes => value.as_str().is_some_and(str::is_empty) || value.is_null(),
        Shape::Bool => value == &Value::Bool(false),
        Shape::Int32 | Shape::Int64 => value.as_i64() == Some(0),
        Shape::Double => value.as_f64() == Some(0.0),
        Shape::List(_) => value.as_array().is_none_or(Vec::is_empty),
        Shape::Map(_) => value.as_object().is_none_or(Map::is_empty),
        _ => false,
    }
}

/// The zero of a type, as Go writes it.
pub(crate) fn zero(types: &Types, id: TypeId) -> Value {
    match types.shape(id) {
        Shape::String => Value::String(String::new()),
        Shape::Bool => Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => 0.into(),
        Shape::Quantity => Value::String("0".to_owned()),
        Shape::Object(_) => {
            let mut value = Value::Object(Map::new());
            normalize(types, id, &mut value);
            value
        }
        _ => Value::Null,
    }
}

/// Fills in the table's defaults (`protocol: TCP` and the like) where a field is absent or its type's zero.
pub fn fill_defaults(types: &Types, id: TypeId, value: &mut Value) {
    match types.shape(id) {
        Shape::Object(fields) => {
            let Some(map) = value.as_object_mut() else { return };
            for field in fields {
                match (&field.default, map.get_mut(field.name.as_ref())) {
                    (Some(default), slot) if !is_trivial(default) => {
                        let zero = slot.as_deref().is_none_or(|v| {
                            v.is_null() || (!field.pointer && is_empty(types.shape(field.ty), v))
                        });
                        if zero {
                            map.insert(field.name.to_string(), default.clone());
                        }
                    }
                    (_, Some(inner)) => fill_defaults(types, field.ty, inner),
                    _ => {}
                }
            }
        }
        Shape::List(element) => {
            for item in value.as_array_mut().into_iter().flatten() {
                fill_defaults(types, *element, item);
            }
        }
        Shape::Map(element) => {
            for (_, item) in value.as_object_mut().into_iter().flatten() {
                fill_defaults(types, *element, item);
            }
        }
        _ => {}
    }
}

/// OpenAPI says a default of every mandatory field; those that are the zero change nothing.
fn is_trivial(default: &Value) -> bool {
    match default {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}
