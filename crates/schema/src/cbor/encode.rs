//! JSON values to CBOR, in the core deterministic encoding.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value};

use super::CborError;
use crate::types::{Shape, TypeId, Types};

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const ARRAY: u8 = 4;
pub(super) const MAP: u8 = 5;
const TAG: u8 = 6;
/// "Expected conversion to base64" (RFC 8949, 3.4.5.2).
const BASE64: u64 = 22;

/// The head of an item: its major type and its argument, as short as can be.
pub(super) fn head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    match argument {
        0..=23 => out.push(major | argument as u8),
        24..=0xff => out.extend([major | 24, argument as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend((argument as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend((argument as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend(argument.to_be_bytes());
        }
    }
}

pub(super) fn bytes(out: &mut Vec<u8>, content: &[u8]) {
    head(out, BYTES, content.len() as u64);
    out.extend_from_slice(content);
}

/// One value; null where nothing is known of its type.
pub(super) fn value(
    typed: Option<(&Types, TypeId)>,
    value: &Value,
    out: &mut Vec<u8>,
) -> Result<(), CborError> {
    let shape = typed.map(|(types, id)| types.shape(id));
    match value {
        Value::Null => out.push(0xf6),
        Value::Bool(value) => out.push(if *value { 0xf5 } else { 0xf4 }),
        Value::Number(number) if matches!(shape, Some(Shape::Double)) => {
            float(out, number.as_f64().unwrap_or_default());
        }
        Value::Number(number) => self::number(out, number)?,
        Value::String(text) if matches!(shape, Some(Shape::Bytes)) => {
            let raw = STANDARD.decode(text).map_err(|_| CborError::Unsupported("invalid base64"))?;
            head(out, TAG, BASE64);
            bytes(out, &raw);
        }
        Value::String(text) => bytes(out, text.as_bytes()),
        Value::Array(items) => {
            head(out, ARRAY, items.len() as u64);
            let element = element(typed, false);
            items.iter().try_for_each(|item| self::value(element, item, out))?;
        }
        Value::Object(map) => {
            head(out, MAP, map.len() as u64);
            let mut keys: Vec<&String> = map.keys().collect();
            // Bytewise order of the encoded keys: the shorter first, since the length stands in front.
            keys.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
            for key in keys {
                bytes(out, key.as_bytes());
                self::value(member(typed, key), &map[key], out)?;
            }
        }
    }
    Ok(())
}

/// The type behind a union of an object and something else.
fn element(typed: Option<(&Types, TypeId)>, object: bool) -> Option<(&Types, TypeId)> {
    let (types, id) = typed?;
    match types.shape(id) {
        Shape::List(ty) if !object => Some((types, *ty)),
        Shape::Either(first, second) => {
            let id = if object { *first } else { *second };
            if object { Some((types, id)) } else { element(Some((types, id)), false) }
        }
        _ => None,
    }
}

fn member<'t>(typed: Option<(&'t Types, TypeId)>, key: &str) -> Option<(&'t Types, TypeId)> {
    let (types, id) = typed?;
    match types.shape(id) {
        Shape::Object(_) => types.field(id, key).map(|field| (types, field.ty)),
        Shape::Map(ty) => Some((types, *ty)),
        Shape::Either(..) => member(element(typed, true), key),
        _ => None,
    }
}

fn number(out: &mut Vec<u8>, number: &Number) -> Result<(), CborError> {
    if let Some(number) = number.as_i64() {
        match number {
            0.. => head(out, UNSIGNED, number as u64),
            _ => head(out, NEGATIVE, !number as u64),
        }
    } else if number.is_u64() {
        return Err(CborError::Unsupported("an integer does not fit 64 bits"));
    } else {
        float(out, number.as_f64().unwrap_or_default());
    }
    Ok(())
}

/// A fraction in the narrowest form that holds it.
fn float(out: &mut Vec<u8>, number: f64) {
    let single = number as f32;
    if f64::from(single) != number {
        out.push(0xfb);
        out.extend(number.to_be_bytes());
    } else if let Some(half) = half(single) {
        out.push(0xf9);
        out.extend(half.to_be_bytes());
    } else {
        out.push(0xfa);
        out.extend(single.to_be_bytes());
    }
}

/// The half-precision form of a number that has one.
fn half(number: f32) -> Option<u16> {
    let bits = number.to_bits();
    let (sign, exponent, fraction) =
        ((bits >> 16 & 0x8000) as u16, (bits >> 23 & 0xff) as i32, bits & 0x7f_ffff);
    match exponent - 127 {
        -127 if fraction == 0 => Some(sign),
        exponent @ -14..=15 if fraction.trailing_zeros() >= 13 => {
            Some(sign | ((exponent + 15) as u16) << 10 | (fraction >> 13) as u16)
        }
        // Subnormal: the leading one becomes part of the fraction.
        exponent @ -24..=-15 => {
            let (whole, shift) = (fraction | 0x80_0000, (-exponent - 1) as u32);
            (whole.trailing_zeros() >= shift).then(|| sign | (whole >> shift) as u16)
        }
        _ => None,
    }
}
