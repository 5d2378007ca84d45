//! Equality: across kinds of numbers, deep, by list type where a schema gives one.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use super::list::ListKind;
use super::{List, Map, Value, numbers};
use crate::error::EvalError;

/// `left == right`. Values of different types are unequal.
///
/// # Errors
/// If JSON inside is not of its schema's type, or a list or map of a schema meets another type.
pub(crate) fn equal(left: &Value<'_>, right: &Value<'_>) -> Result<bool, EvalError> {
    Ok(match (left, right) {
        (Value::Null, _) | (_, Value::Null) => matches!((left, right), (Value::Null, Value::Null)),
        (Value::Preserved(a), Value::Preserved(b)) => a == b,
        (Value::Preserved(a), other) | (other, Value::Preserved(a)) => {
            other.to_json().is_ok_and(|b| **a == b)
        }
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => a == b,
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a.instant() == b.instant(),
        (Value::Type(a), Value::Type(b)) => a.name() == b.name(),
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (Some(a), Some(b)) => return equal(a, b),
            (a, b) => a.is_none() && b.is_none(),
        },
        (Value::List(a), Value::List(b)) => return lists(a, b),
        (Value::Map(a), Value::Map(b)) => return maps(a, b),
        (Value::Struct(a), Value::Struct(b)) => {
            if a.name != b.name || a.fields.len() != b.fields.len() {
                return Ok(false);
            }
            for (name, value) in &a.fields {
                match b.fields.get(name) {
                    Some(other) if equal(value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Object(a), Value::Object(b)) => a.equals(&**b),
        (Value::List(a), _) if a.is_typed() => return Err(EvalError::no_such_overload()),
        (Value::Map(a), _) if a.is_typed() => return Err(EvalError::no_such_overload()),
        _ => matches!(numbers(left, right), Some(Ok(Ordering::Equal))),
    })
}

fn lists(left: &List<'_>, right: &List<'_>) -> Result<bool, EvalError> {
    if left.len() != right.len() {
        return Ok(false);
    }
    match left.kind {
        ListKind::Atomic => {
            for (a, b) in left.iter().zip(right.iter()) {
                if !equal(&a?, &b?)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        ListKind::Set => {
            let mut set = HashSet::new();
            for one in left.iter() {
                set.insert(identity(&one?));
            }
            for one in right.iter() {
                if !set.contains(&identity(&one?)) {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        ListKind::Map(names) => {
            let mut elements = HashMap::new();
            for one in left.iter() {
                let one = one?;
                elements.insert(keys(&one, names)?, one);
            }
            for one in right.iter() {
                let one = one?;
                match elements.get(&keys(&one, names)?) {
                    Some(other) if equal(other, &one)? => {}
                    _ => return Ok(false),
                }
            }
            Ok(true)
        }
    }
}

fn maps(left: &Map<'_>, right: &Map<'_>) -> Result<bool, EvalError> {
    if left.len() != right.len() {
        return Ok(false);
    }
    if let (Map::Json(a, Some(decl)), Map::Json(b, _)) = (left, right) {
        // Fields that the schema does not know are compared as they are.
        for (name, value) in a.iter().filter(|(name, _)| decl.entry_by_name(name).is_none()) {
            if b.get(name).is_some_and(|other| other != value) {
                return Ok(false);
            }
        }
    }
    for key in left.keys() {
        match (left.get(&key), right.get(&key)) {
            (None, None) => {}
            (Some(a), Some(b)) => {
                if !equal(&a?, &b?)? {
                    return Ok(false);
                }
            }
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// What tells a scalar of a set apart from the others.
pub(super) fn identity(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => format!("s{}", &**text),
        Value::Int(_) | Value::Uint(_) | Value::Double(_) => {
            match super::Key::of(value).map(|key| key.whole()) {
                Ok(Some(whole)) => format!("n{whole}"),
                _ => format!("n{value:?}"),
            }
        }
        Value::Timestamp(at) => format!("t{:?}", at.instant()),
        other => format!("{other:?}"),
    }
}

/// What tells an element of a map list apart from the others.
pub(super) fn keys(value: &Value<'_>, names: &[String]) -> Result<Vec<String>, EvalError> {
    let field = |name: &String| match value {
        Value::Map(map) => map.by_name(name).transpose(),
        Value::Struct(one) => Ok(one.fields.get(name.as_str()).cloned()),
        _ => {
            Err(EvalError::new("unexpected data format for element of array with x-kubernetes-list-type=map"))
        }
    };
    names.iter().map(|name| Ok(field(name)?.map_or_else(String::new, |value| identity(&value)))).collect()
}
