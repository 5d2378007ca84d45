//! The metadata of embedded resources, and of the root: checked by the type of ObjectMeta, whatever the schema says.

use serde_json::Value;

use super::Schema;
use crate::decode::{DecodeError, FieldValidation, decode_value};
use crate::field::{Errors, FieldError};
use crate::types::{TypeId, Types};

/// What the metadata of embedded resources is checked by.
#[derive(Clone, Copy)]
pub struct Meta<'a> {
    pub types: &'a Types,
    /// ObjectMeta in that table.
    pub id: TypeId,
    /// What is wrong with an ObjectMeta at a path; names and kinds are the caller's to know.
    pub check: &'a dyn Fn(&Value, &str) -> Vec<FieldError>,
}

impl Meta<'_> {
    /// The normal form of an ObjectMeta, and the unknown fields below it.
    pub fn normal(&self, metadata: &Value, wanted: bool) -> Result<(Value, Vec<String>), DecodeError> {
        let validation = if wanted { FieldValidation::Warn } else { FieldValidation::Ignore };
        let decoded = decode_value(self.types, self.id, metadata, validation)?;
        let name = |text: &String| text.split('"').nth(1).map(str::to_owned);
        Ok((decoded.value, decoded.warnings.iter().filter_map(name).collect()))
    }

    /// The normal form without the members that do not fit; what an old object in the store is read by.
    pub fn lenient(&self, metadata: &Value) -> Value {
        if let Ok((value, _)) = self.normal(metadata, false) {
            return value;
        }
        let fits = |(key, value): (&String, &Value)| {
            let alone = Value::Object([(key.clone(), value.clone())].into_iter().collect());
            self.normal(&alone, false).is_ok().then(|| (key.clone(), value.clone()))
        };
        let kept = metadata.as_object().map(|map| map.iter().filter_map(fits).collect()).unwrap_or_default();
        self.normal(&Value::Object(kept), false).map(|(value, _)| value).unwrap_or_default()
    }
}

/// How metadata is coerced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coerce {
    /// What does not fit is dropped instead of refused.
    pub lenient: bool,
    /// Unknown fields are told.
    pub wanted: bool,
}

/// Brings the metadata of embedded resources into normal form; `root`: that of the object itself as well. The answer is the
/// unknown fields, sorted.
pub fn coerce(
    object: &mut Value,
    schema: &Schema,
    root: bool,
    path: &str,
    meta: Meta<'_>,
    how: Coerce,
) -> Result<Vec<String>, FieldError> {
    let schema = if root { schema.as_resource() } else { std::borrow::Cow::Borrowed(schema) };
    let mut found = Vec::new();
    step(object, &schema, path, meta, how, &mut found)?;
    found.sort();
    Ok(found)
}

fn join(path: &str, key: &str) -> String {
    let dot = if path.is_empty() { "" } else { "." };
    format!("{path}{dot}{key}")
}

fn invalid(path: &str, value: &Value, why: impl Into<String>) -> FieldError {
    FieldError::new(crate::field::FieldErrorKind::Invalid, path, value.clone(), why)
}

fn step(
    value: &mut Value,
    schema: &Schema,
    path: &str,
    meta: Meta<'_>,
    how: Coerce,
    found: &mut Vec<String>,
) -> Result<(), FieldError> {
    match value {
        Value::Object(map) => {
            if schema.embedded {
                for key in ["apiVersion", "kind"] {
                    match map.get(key) {
                        Some(Value::String(_)) | None => {}
                        Some(_) if how.lenient => drop(map.remove(key)),
                        Some(other) => return Err(invalid(&join(path, key), other, "must be a string")),
                    }
                }
                if let Some(metadata) = map.get_mut("metadata") {
                    let path = join(path, "metadata");
                    match meta.normal(metadata, how.wanted) {
                        Ok((normal, unknown)) => {
                            found.extend(unknown.into_iter().map(|field| join(&path, &field)));
                            *metadata = normal;
                        }
                        Err(_) if how.lenient => *metadata = meta.lenient(metadata),
                        Err(error) => return Err(invalid(&path, metadata, error.to_string())),
                    }
                }
            }
            for (key, value) in map.iter_mut() {
                if let Some(property) = schema.properties.get(key) {
                    step(value, property, &join(path, key), meta, how, found)?;
                } else if let Some(schema) = schema.additional.as_ref().and_then(|a| a.schema()) {
                    step(value, schema, &join(path, key), meta, how, found)?;
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                for (index, value) in list.iter_mut().enumerate() {
                    step(value, items, &format!("{path}[{index}]"), meta, how, found)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// What is wrong with embedded resources; `root`: with the object itself as well.
pub fn validate(object: &Value, schema: &Schema, root: bool, path: &str, meta: Meta<'_>) -> Vec<FieldError> {
    let schema = if root { schema.as_resource() } else { std::borrow::Cow::Borrowed(schema) };
    let mut errors = Errors::new();
    check(object, &schema, path, meta, &mut errors);
    errors.0
}

fn check(value: &Value, schema: &Schema, path: &str, meta: Meta<'_>, errors: &mut Errors) {
    match value {
        Value::Object(map) => {
            if schema.embedded {
                resource(map, path, meta, errors);
            }
            for (key, value) in map {
                if let Some(property) = schema.properties.get(key) {
                    check(value, property, &join(path, key), meta, errors);
                } else if let Some(schema) = schema.additional.as_ref().and_then(|a| a.schema()) {
                    check(value, schema, &format!("{path}[{key}]"), meta, errors);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                for (index, value) in list.iter().enumerate() {
                    check(value, items, &format!("{path}[{index}]"), meta, errors);
                }
            }
        }
        _ => {}
    }
}

fn resource(map: &serde_json::Map<String, Value>, path: &str, meta: Meta<'_>, errors: &mut Errors) {
    for key in ["apiVersion", "kind"] {
        let path = join(path, key);
        match map.get(key) {
            None => errors.required(&path, ""),
            Some(Value::String(text)) if text.is_empty() => errors.invalid(&path, "", "must not be empty"),
            Some(Value::String(text)) if key == "apiVersion" => {
                if text.matches('/').count() > 1 {
                    errors.invalid(&path, text.as_str(), format!("unexpected GroupVersion string: {text}"));
                }
            }
            Some(Value::String(text)) => {
                if !is_label(&text.to_lowercase()) {
                    let detail = format!("may have mixed case, but should otherwise match: {LABEL_RULE}");
                    errors.invalid(&path, text.as_str(), detail);
                }
            }
            Some(other) => errors.invalid(&path, other.clone(), "must be a string"),
        }
    }
    if let Some(metadata) = map.get("metadata") {
        let path = join(path, "metadata");
        match meta.normal(metadata, false) {
            Err(error) => errors.invalid(&path, metadata.clone(), error.to_string()),
            Ok((normal, _)) => errors.0.extend((meta.check)(&normal, &path)),
        }
    }
}

const LABEL_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && fine(bytes[bytes.len() - 1])
        && bytes.iter().all(|b| fine(*b) || *b == b'-')
}
