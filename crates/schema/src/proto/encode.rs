//! JSON values to protobuf. What is no pointer in Go is written even when it is zero or absent, in the order of its number.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::wire::Writer;
use super::{Entry, Layout, ProtoError};
use crate::types::{Field, Shape, TypeId, Types};

/// The message of an object.
pub(super) fn object(types: &Types, id: TypeId, value: &Value, out: &mut Writer) -> Result<(), ProtoError> {
    entries(types, types.fields(id), types.layout(id), value, out)
}

fn entries(
    types: &Types,
    fields: &[Field],
    layout: &Layout,
    value: &Value,
    out: &mut Writer,
) -> Result<(), ProtoError> {
    for entry in &layout.entries {
        match entry {
            Entry::Inside { number, layout } => {
                let mut inner = Writer::default();
                entries(types, fields, layout, value, &mut inner)?;
                out.bytes(*number, &inner.bytes);
            }
            Entry::Field { number, index } => {
                let field = &fields[*index];
                let present = value.get(field.name.as_ref()).filter(|v| !v.is_null());
                if present.is_none() && field.pointer {
                    continue;
                }
                one(types, field, *number, present.unwrap_or(&Value::Null), out)?;
            }
        }
    }
    Ok(())
}

fn one(types: &Types, field: &Field, number: u32, value: &Value, out: &mut Writer) -> Result<(), ProtoError> {
    match types.shape(field.ty) {
        Shape::List(element_ty) => {
            let Some(items) = value.as_array() else { return Ok(()) };
            if field.go == "v1.Verbs" {
                let inner = list_message(types, *element_ty, items)?;
                out.bytes(number, &inner);
                return Ok(());
            }
            items.iter().try_for_each(|item| element(types, *element_ty, number, item, out))
        }
        Shape::Map(element_ty) => {
            for (key, item) in value.as_object().into_iter().flatten() {
                let mut entry = Writer::default();
                entry.bytes(1, key.as_bytes());
                element(types, *element_ty, 2, item, &mut entry)?;
                out.bytes(number, &entry.bytes);
            }
            Ok(())
        }
        Shape::Bytes if value.is_null() => Ok(()),
        _ => element(types, field.ty, number, value, out),
    }
}

/// A list where protobuf needs a message around it.
fn list_message(types: &Types, ty: TypeId, items: &[Value]) -> Result<Vec<u8>, ProtoError> {
    let mut inner = Writer::default();
    items.iter().try_for_each(|item| element(types, ty, 1, item, &mut inner))?;
    Ok(inner.bytes)
}

/// One value under a number; null is the type's zero.
fn element(
    types: &Types,
    id: TypeId,
    number: u32,
    value: &Value,
    out: &mut Writer,
) -> Result<(), ProtoError> {
    let mut inner = Writer::default();
    match types.shape(id) {
        Shape::String => {
            out.bytes(number, value.as_str().unwrap_or("").as_bytes());
            return Ok(());
        }
        Shape::Bool => {
            out.int(number, value.as_bool().unwrap_or(false).into());
            return Ok(());
        }
        Shape::Int32 | Shape::Int64 => {
            out.int(number, value.as_i64().unwrap_or(0));
            return Ok(());
        }
        Shape::Double => {
            out.double(number, value.as_f64().unwrap_or(0.0));
            return Ok(());
        }
        Shape::Bytes => {
            let bytes = STANDARD.decode(value.as_str().unwrap_or(""));
            out.bytes(number, &bytes.map_err(|e| ProtoError::Value(e.to_string()))?);
            return Ok(());
        }
        Shape::Quantity => inner.bytes(1, value.as_str().unwrap_or("0").as_bytes()),
        Shape::IntOrString => {
            inner.int(1, value.is_string().into());
            inner.int(2, value.as_i64().unwrap_or(0));
            inner.bytes(3, value.as_str().unwrap_or("").as_bytes());
        }
        Shape::Time | Shape::MicroTime => {
            if let Some(text) = value.as_str() {
                let time: jiff::Timestamp =
                    text.parse().map_err(|e: jiff::Error| ProtoError::Value(e.to_string()))?;
                let micro = matches!(types.shape(id), Shape::MicroTime);
                let nanos = if micro { time.subsec_nanosecond() / 1000 * 1000 } else { 0 };
                inner.int(1, time.as_second());
                inner.int(2, nanos.into());
            }
        }
        Shape::FieldsV1 => {
            if !value.is_null() {
                inner.bytes(1, crate::managed::fields_text(value).as_bytes());
            }
        }
        Shape::RawExtension | Shape::Any => {
            if !value.is_null() {
                inner.bytes(1, value.to_string().as_bytes());
            }
        }
        Shape::Either(object_ty, other) => either(types, *object_ty, *other, value, &mut inner)?,
        Shape::Object(_) => object(types, id, value, &mut inner)?,
        Shape::List(ty) => {
            inner.bytes = list_message(types, *ty, value.as_array().map_or(&[], Vec::as_slice))?;
        }
        Shape::Map(_) => return Err(ProtoError::Value("maps in lists have no protobuf form".to_owned())),
    }
    out.bytes(number, &inner.bytes);
    Ok(())
}

/// The alternatives of a JSON schema: `schema` and a list are fields 1 and 2; with a boolean it is the other way round.
fn either(
    types: &Types,
    object_ty: TypeId,
    other: TypeId,
    value: &Value,
    out: &mut Writer,
) -> Result<(), ProtoError> {
    let boolean = matches!(types.shape(other), Shape::Bool);
    if boolean {
        out.int(1, (value.is_object() || value == &Value::Bool(true)).into());
    }
    if value.is_object() {
        return element(types, object_ty, if boolean { 2 } else { 1 }, value, out);
    }
    if let (Some(items), Shape::List(ty)) = (value.as_array(), types.shape(other)) {
        items.iter().try_for_each(|item| element(types, *ty, 2, item, out))?;
    }
    Ok(())
}
