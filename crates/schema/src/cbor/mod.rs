//! CBOR (RFC 8949) as upstream writes and reads it: the tree of the JSON form, strings as byte strings, raw data under the
//! tag "expected base64", keys in bytewise order, and the self-describing tag in front of every object.

mod decode;
mod encode;

use serde_json::Value;

use crate::types::{TypeId, Types};

pub use decode::{decode, item_length};

/// The tag that every encoded object starts with (RFC 8949, 3.4.6).
pub const MAGIC: &[u8] = &[0xd9, 0xd9, 0xf7];

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    #[error("cbor: unexpected end of input")]
    Truncated,
    #[error("cbor: {0} bytes of extraneous data")]
    Trailing(usize),
    #[error("cbor: exceeded max nested level")]
    Depth,
    #[error("cbor: ill-formed data item at byte {0}")]
    Malformed(usize),
    #[error("cbor: found duplicate map key {0:?}")]
    Duplicate(String),
    #[error("cbor: {0}")]
    Unsupported(&'static str),
}

/// An object as a body of its own. With a type, raw data and fractions are written as their kind has them; without, as a
/// custom resource is: whatever the JSON shows.
pub fn encode(typed: Option<(&Types, TypeId)>, value: &Value) -> Result<Vec<u8>, CborError> {
    let mut out = MAGIC.to_vec();
    encode::value(typed, value, &mut out)?;
    Ok(out)
}

/// A watch event; `object` is a whole body.
pub fn watch_event(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    encode::head(&mut out, encode::MAP, 2);
    encode::bytes(&mut out, b"type");
    encode::bytes(&mut out, event.as_bytes());
    encode::bytes(&mut out, b"object");
    out.extend_from_slice(object);
    out
}

#[cfg(test)]
mod tests;
