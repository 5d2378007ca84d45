//! Protobuf to JSON values. Unknown numbers are passed over; the normal form is made afterwards.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::wire::{Reader, Wire};
use super::{Entry, Layout, MAGIC, MAX_DEPTH, ProtoError};
use crate::time;
use crate::types::{Field, Shape, TypeId, Types};

/// An object from its message.
pub(super) fn object(types: &Types, id: TypeId, raw: &[u8], depth: usize) -> Result<Value, ProtoError> {
    if depth > MAX_DEPTH {
        return Err(ProtoError::Depth);
    }
    let mut map = Map::new();
    entries(types, types.fields(id), types.layout(id), raw, &mut map, depth)?;
    Ok(Value::Object(map))
}

fn entries(
    types: &Types,
    fields: &[Field],
    layout: &Layout,
    raw: &[u8],
    map: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    let mut reader = Reader::new(raw);
    while let Some((number, wire)) = reader.next()? {
        let Ok(at) = layout.entries.binary_search_by_key(&number, Entry::number) else { continue };
        match &layout.entries[at] {
            Entry::Inside { layout, .. } => entries(types, fields, layout, wire.bytes()?, map, depth)?,
            Entry::Field { index, .. } => {
                let field = &fields[*index];
                let slot = map.entry(field.name.as_ref()).or_insert(Value::Null);
                one(types, field, wire, slot, depth)?;
            }
        }
    }
    Ok(())
}

fn one(
    types: &Types,
    field: &Field,
    wire: Wire<'_>,
    slot: &mut Value,
    depth: usize,
) -> Result<(), ProtoError> {
    match types.shape(field.ty) {
        Shape::List(ty) if field.go == "v1.Verbs" => *slot = list_message(types, *ty, wire, depth)?,
        Shape::List(ty) => {
            if !slot.is_array() {
                *slot = Value::Array(Vec::new());
            }
            let Value::Array(list) = slot else { return Ok(()) };
            match (types.shape(*ty), wire) {
                // Numbers may come packed.
                (Shape::Int32 | Shape::Int64 | Shape::Bool, Wire::Bytes(packed)) => {
                    let mut packed = Reader::new(packed);
                    while !packed.is_empty() {
                        let number = Wire::Varint(packed.varint()?);
                        list.push(element(types, *ty, number, depth)?);
                    }
                }
                _ => list.push(element(types, *ty, wire, depth)?),
            }
        }
        Shape::Map(ty) => {
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            let (mut key, mut value) = (String::new(), Value::Null);
            let mut entry = Reader::new(wire.bytes()?);
            while let Some((number, wire)) = entry.next()? {
                match number {
                    1 => key = wire.text()?,
                    2 => value = element(types, *ty, wire, depth)?,
                    _ => {}
                }
            }
            if let Value::Object(map) = slot {
                map.insert(key, value);
            }
        }
        _ => *slot = element(types, field.ty, wire, depth)?,
    }
    Ok(())
}

fn list_message(types: &Types, ty: TypeId, wire: Wire<'_>, depth: usize) -> Result<Value, ProtoError> {
    let mut list = Vec::new();
    let mut reader = Reader::new(wire.bytes()?);
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            list.push(element(types, ty, wire, depth)?);
        }
    }
    Ok(Value::Array(list))
}

fn element(types: &Types, id: TypeId, wire: Wire<'_>, depth: usize) -> Result<Value, ProtoError> {
    Ok(match types.shape(id) {
        Shape::String => wire.text()?.into(),
        Shape::Bool => (wire.int()? != 0).into(),
        Shape::Int32 => (wire.int()? as i32).into(),
        Shape::Int64 => wire.int()?.into(),
        Shape::Double => wire.double()?.into(),
        Shape::Bytes => STANDARD.encode(wire.bytes()?).into(),
        Shape::Quantity => quantity(wire.bytes()?)?,
        Shape::IntOrString => int_or_string(wire.bytes()?)?,
        Shape::Time | Shape::MicroTime => {
            timestamp(wire.bytes()?, matches!(types.shape(id), Shape::MicroTime))?
        }
        Shape::FieldsV1 | Shape::RawExtension | Shape::Any => raw(types, wire.bytes()?)?,
        Shape::Either(object, other) => either(types, *object, *other, wire.bytes()?, depth)?,
        Shape::Object(_) => object(types, id, wire.bytes()?, depth + 1)?,
        Shape::List(ty) => list_message(types, *ty, wire, depth + 1)?,
        Shape::Map(_) => return Err(ProtoError::Value("maps in lists have no protobuf form".to_owned())),
    })
}

fn quantity(message: &[u8]) -> Result<Value, ProtoError> {
    let mut text = String::new();
    let mut reader = Reader::new(message);
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            text = wire.text()?;
        }
    }
    if text.is_empty() {
        return Ok("0".into());
    }
    let canonical = crate::quantity::canonical(text.trim());
    canonical.map(Value::String).map_err(|e| ProtoError::Value(e.to_string()))
}

fn int_or_string(message: &[u8]) -> Result<Value, ProtoError> {
    let (mut kind, mut int, mut text) = (0, 0, String::new());
    let mut reader = Reader::new(message);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => kind = wire.int()?,
            2 => int = wire.int()? as i32,
            3 => text = wire.text()?,
            _ => {}
        }
    }
    Ok(if kind == 1 { text.into() } else { int.into() })
}

fn timestamp(message: &[u8], micro: bool) -> Result<Value, ProtoError> {
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(message);
    while let Some((number, wire)) = reader.next()? {
        match number {
            1 => seconds = wire.int()?,
            2 => nanos = wire.int()? as i32,
            _ => {}
        }
    }
    let nanos = if micro { nanos } else { 0 };
    let instant = jiff::Timestamp::new(seconds, nanos).map_err(|e| ProtoError::Value(e.to_string()))?;
    Ok(if micro { time::micros(&instant) } else { time::seconds(&instant) }.into())
}

/// JSON that is carried as it is; it may also be a protobuf body.
fn raw(types: &Types, message: &[u8]) -> Result<Value, ProtoError> {
    let mut text: &[u8] = &[];
    let mut reader = Reader::new(message);
    while let Some((number, wire)) = reader.next()? {
        if number == 1 {
            text = wire.bytes()?;
        }
    }
    if text.is_empty() {
        return Ok(Value::Null);
    }
    if text.starts_with(MAGIC) {
        return super::decode(types, None, text).map(|decoded| decoded.value);
    }
    let decoded = crate::decode_any(text, crate::FieldValidation::Ignore);
    decoded.map(|d| d.value).map_err(|e| ProtoError::Value(e.to_string()))
}

fn either(
    types: &Types,
    object_ty: TypeId,
    other: TypeId,
    message: &[u8],
    depth: usize,
) -> Result<Value, ProtoError> {
    let boolean = matches!(types.shape(other), Shape::Bool);
    let (mut schema, mut allows, mut list) = (None, false, Vec::new());
    let mut reader = Reader::new(message);
    while let Some((number, wire)) = reader.next()? {
        match (number, boolean) {
            (1, true) => allows = wire.int()? != 0,
            (1, false) | (2, true) => schema = Some(object(types, object_ty, wire.bytes()?, depth + 1)?),
            (2, false) => {
                if let Shape::List(ty) = types.shape(other) {
                    list.push(element(types, *ty, wire, depth + 1)?);
                }
            }
            _ => {}
        }
    }
    Ok(match schema {
        Some(schema) => schema,
        None if boolean => allows.into(),
        None => Value::Array(list),
    })
}
