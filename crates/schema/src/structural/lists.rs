//! Lists that are sets or maps hold no element twice.

use serde_json::{Map, Value};

use super::Schema;
use crate::field::{Errors, FieldError};

/// The duplicates in an object's lists. `path` is empty at the root.
pub fn validate(object: &Value, schema: &Schema, path: &str) -> Vec<FieldError> {
    let mut errors = Errors::new();
    value(object, schema, path, &mut errors);
    errors.0
}

fn value(value: &Value, schema: &Schema, path: &str, errors: &mut Errors) {
    match value {
        Value::Object(map) => object(map, schema, path, errors),
        Value::Array(list) => array(list, schema, path, errors),
        _ => {}
    }
}

fn object(map: &Map<String, Value>, schema: &Schema, path: &str, errors: &mut Errors) {
    for (key, child) in map {
        if let Some(property) = schema.properties.get(key) {
            let dot = if path.is_empty() { "" } else { "." };
            value(child, property, &format!("{path}{dot}{key}"), errors);
        }
        if let Some(additional) = schema.additional.as_ref().and_then(|a| a.schema()) {
            value(child, additional, &format!("{path}[{key}]"), errors);
        }
    }
}

fn array(list: &[Value], schema: &Schema, path: &str, errors: &mut Errors) {
    match schema.list_type.as_deref() {
        Some("set") => {
            for index in repeated(list) {
                errors.duplicate(&format!("{path}[{index}]"), list[index].clone());
            }
        }
        Some("map") => map_list(list, schema, path, errors),
        _ => {}
    }
    if let Some(items) = &schema.items {
        for (index, item) in list.iter().enumerate() {
            value(item, items, &format!("{path}[{index}]"), errors);
        }
    }
}

fn map_list(list: &[Value], schema: &Schema, path: &str, errors: &mut Errors) {
    if let Some((index, item)) = list.iter().enumerate().find(|(_, v)| !v.is_object() && !v.is_null()) {
        let detail = "must be an object for an array of list-type map";
        errors.invalid(&format!("{path}[{index}]"), item.clone(), detail);
        return;
    }
    let keys: Vec<Value> = list
        .iter()
        .map(|item| {
            let parts = schema.list_keys.iter();
            parts
                .filter_map(|key| item.get(key).map(|v| (key.clone(), v.clone())))
                .collect::<Map<_, _>>()
                .into()
        })
        .collect();
    for index in repeated(&keys) {
        errors.duplicate(&format!("{path}[{index}]"), keys[index].clone());
    }
}

/// Where a value stands for the second time.
fn repeated(list: &[Value]) -> Vec<usize> {
    let mut seen = std::collections::HashMap::with_capacity(list.len());
    let mut found = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let times = seen.entry(value.to_string()).or_insert(0u32);
        *times += 1;
        if *times == 2 {
            found.push(index);
        }
    }
    found
}
