//! JSON to values by a schema, and values to JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;

use super::list::ListKind;
use super::{Key, List, Map, Text, Timestamp, Value, time};
use crate::decl::{Decl, Format, Shape};
use crate::error::EvalError;

/// The value of JSON, by its schema if there is one.
pub(crate) fn wrap<'a>(value: &'a Json, decl: Option<&'a Decl>) -> Result<Value<'a>, EvalError> {
    let Some(decl) = decl else { return Ok(plain(value)) };
    if value.is_null() && !matches!(decl.shape, Shape::Preserved | Shape::Dyn) {
        return match decl.nullable {
            true => Ok(Value::Null),
            false => Err(EvalError::new("invalid data, got null for schema with nullable=false")),
        };
    }
    let expected = |what: &str| EvalError::new(format!("invalid data, expected {what}, got {}", kind(value)));
    match &decl.shape {
        Shape::Dyn => Ok(plain(value)),
        Shape::Preserved => Ok(Value::Preserved(value)),
        Shape::IntOrString => match value {
            Json::String(text) => Ok(Value::String(Text::Borrowed(text))),
            Json::Number(number) if number.is_i64() => Ok(plain(value)),
            _ => Err(EvalError::new(
                "invalid data, expected XIntOrString value to be either a string or integer",
            )),
        },
        Shape::Bool => value.as_bool().map(Value::Bool).ok_or_else(|| expected("bool")),
        Shape::Int => value.as_i64().map(Value::Int).ok_or_else(|| expected("int")),
        Shape::Double => value.as_f64().map(Value::Double).ok_or_else(|| expected("float")),
        Shape::String(format) => {
            let text = value.as_str().ok_or_else(|| expected("string"))?;
            formatted(text, *format)
        }
        Shape::List { items, map_keys, .. } => match value {
            Json::Array(elements) => {
                let kind = match decl.list_kind() {
                    crate::decl::ListType::Atomic => ListKind::Atomic,
                    crate::decl::ListType::Set => ListKind::Set,
                    crate::decl::ListType::Map => ListKind::Map(map_keys),
                };
                Ok(Value::List(List::json(elements, Some(items), kind)))
            }
            _ => {
                Err(EvalError::new("invalid data, expected an array for the provided schema with type=array"))
            }
        },
        Shape::Map { .. } | Shape::Object { .. } => match value {
            Json::Object(entries) => Ok(Value::Map(Map::Json(entries, Some(decl)))),
            _ => Err(EvalError::new("invalid data, expected a map for the provided schema with type=object")),
        },
        Shape::Other(_) => Ok(plain(value)),
    }
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "bool",
        Json::Number(number) if number.is_i64() => "int64",
        Json::Number(_) => "float64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
}

fn formatted(text: &str, format: Format) -> Result<Value<'_>, EvalError> {
    Ok(match format {
        Format::None => Value::String(Text::Borrowed(text)),
        Format::Duration => Value::Duration(
            time::parse_duration_lenient(text)
                .ok_or_else(|| EvalError::new(format!("Invalid duration {text}")))?,
        ),
        Format::Date => Value::Timestamp(
            Timestamp::parse_date(text)
                .ok_or_else(|| EvalError::new(format!("Invalid date formatted string {text}")))?,
        ),
        Format::DateTime => Value::Timestamp(
            Timestamp::parse_lenient(text)
                .ok_or_else(|| EvalError::new(format!("Invalid date-time formatted string {text}")))?,
        ),
        Format::Byte => Value::Bytes(
            STANDARD
                .decode(text)
                .map_err(|why| EvalError::new(format!("Invalid byte formatted string {text}: {why}")))?
                .into(),
        ),
    })
}

fn plain(value: &Json) -> Value<'_> {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(Text::Borrowed(text)),
        Json::Array(elements) => Value::List(List::json(elements, None, ListKind::Atomic)),
        Json::Object(entries) => Value::Map(Map::Json(entries, None)),
    }
}

pub(super) fn unwrap(value: &Value<'_>) -> Result<Json, EvalError> {
    Ok(match value {
        Value::Null | Value::Optional(None) => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => (*value).into(),
        Value::Uint(value) => (*value).into(),
        Value::Double(value) => serde_json::Number::from_f64(*value)
            .map(Json::Number)
            .ok_or_else(|| EvalError::new("a number that is not finite has no JSON"))?,
        Value::String(text) => Json::String(text.to_string()),
        Value::Bytes(bytes) => Json::String(STANDARD.encode(bytes)),
        Value::Duration(nanos) => Json::String(time::duration_text(*nanos)),
        Value::Timestamp(at) => Json::String(at.to_string()),
        Value::Optional(Some(value)) => return unwrap(value),
        Value::Preserved(json) => (*json).clone(),
        Value::List(list) => {
            Json::Array(list.iter().map(|one| unwrap(&one?)).collect::<Result<Vec<_>, _>>()?)
        }
        Value::Map(Map::Json(entries, _)) => Json::Object((*entries).clone()),
        Value::Map(Map::Owned(entries) | Map::Defaulting(entries, _)) => {
            let entry = |(key, value): (&Key<'_>, &Value<'_>)| Ok((key.to_string(), unwrap(value)?));
            Json::Object(entries.iter().map(entry).collect::<Result<_, EvalError>>()?)
        }
        Value::Struct(one) => {
            let fields = one.fields.iter();
            Json::Object(
                fields
                    .map(|(name, value)| Ok((name.to_string(), unwrap(value)?)))
                    .collect::<Result<_, EvalError>>()?,
            )
        }
        Value::Type(_) | Value::Object(_) | Value::Lazy(_) => {
            return Err(EvalError::new(format!("a value of type {} has no JSON", value.type_of())));
        }
    })
}
