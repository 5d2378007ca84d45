//! Kubernetes protobuf, driven by the field numbers of the type table. A body is the magic `k8s\0` and a `runtime.Unknown`:
//! the kind (1), the object's bytes (2), its encoding (3) and content type (4).

mod decode;
mod encode;
pub(crate) mod wire;

use serde_json::Value;

use crate::normalize::normalize;
use crate::types::{Field, Shape, TypeId, Types};
use wire::{Reader, Writer};

/// What a protobuf body starts with.
pub const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting of messages.
const MAX_DEPTH: usize = 200;

/// Why a body is no protobuf of the wanted type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("proto: illegal wireType {0}")]
    WireType(u8),
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: message is nested too deeply")]
    Depth,
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind { api_version: String, kind: String },
    #[error("{0}")]
    Value(String),
}

/// The messages of an object type: its fields by number, with those that lie in a message of their own inside it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Layout {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    /// A field of the type, by its place in the table.
    Field {
        number: u32,
        index: usize,
    },
    Inside {
        number: u32,
        layout: Layout,
    },
}

impl Entry {
    fn number(&self) -> u32 {
        match self {
            Self::Field { number, .. } | Self::Inside { number, .. } => *number,
        }
    }
}

impl Layout {
    fn of(fields: &[Field]) -> Self {
        let mut layout = Self::default();
        for (index, field) in fields.iter().enumerate().filter(|(_, f)| f.proto != 0) {
            layout.insert(&field.proto_via, field.proto, index);
        }
        layout
    }

    fn insert(&mut self, via: &[u32], number: u32, index: usize) {
        let Some((first, rest)) = via.split_first() else {
            let at = self.entries.partition_point(|e| e.number() < number);
            self.entries.insert(at, Entry::Field { number, index });
            return;
        };
        let at = self.entries.partition_point(|e| e.number() < *first);
        if self.entries.get(at).is_none_or(|e| e.number() != *first) {
            self.entries.insert(at, Entry::Inside { number: *first, layout: Self::default() });
        }
        if let Entry::Inside { layout, .. } = &mut self.entries[at] {
            layout.insert(rest, number, index);
        }
    }
}

impl Types {
    fn layout(&self, id: TypeId) -> &Layout {
        let all = self.layouts.get_or_init(|| {
            self.iter()
                .map(|(_, ty)| match &ty.shape {
                    Shape::Object(fields) => Layout::of(fields),
                    _ => Layout::default(),
                })
                .collect()
        });
        &all[id.0 as usize]
    }
}

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub api_version: String,
    pub kind: String,
    /// The type that the body was read as.
    pub type_id: TypeId,
    /// The object in normal form, with apiVersion and kind set if the body named them.
    pub value: Value,
}

/// A whole body: magic, kind and object.
pub fn encode(types: &Types, id: TypeId, value: &Value) -> Result<Vec<u8>, ProtoError> {
    let text = |name| value.get(name).and_then(Value::as_str).unwrap_or("");
    let object = encode_raw(types, id, value)?;
    Ok(wrap(text("apiVersion"), text("kind"), &object))
}

/// The object alone, without magic and kind.
pub fn encode_raw(types: &Types, id: TypeId, value: &Value) -> Result<Vec<u8>, ProtoError> {
    let mut out = Writer::default();
    encode::object(types, id, value, &mut out)?;
    Ok(out.bytes)
}

/// An object's bytes as a body of its kind.
pub fn wrap(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
    let mut meta = Writer::default();
    meta.bytes(1, api_version.as_bytes());
    meta.bytes(2, kind.as_bytes());
    let mut out = Writer { bytes: Vec::with_capacity(object.len() + meta.bytes.len() + 20) };
    out.bytes.extend_from_slice(MAGIC);
    out.bytes(1, &meta.bytes);
    out.bytes(2, object);
    out.bytes(3, b"");
    out.bytes(4, b"");
    out.bytes
}

/// A watch event as it stands in a protobuf watch stream, where each is preceded by its length in four big-endian bytes.
/// `object` is a whole body.
pub fn watch_event(event: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Writer::default();
    raw.bytes(1, object);
    let mut out = Writer::default();
    out.bytes(1, event.as_bytes());
    out.bytes(2, &raw.bytes);
    out.bytes
}

/// The kind that a body names, and its object's bytes.
pub fn unwrap(body: &[u8]) -> Result<(String, String, &[u8]), ProtoError> {
    let body = body.strip_prefix(MAGIC).ok_or(ProtoError::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &body[..0]);
    let mut reader = Reader::new(body);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => {
                let mut meta = Reader::new(field.bytes()?);
                while let Some((number, field)) = meta.next()? {
                    match number {
                        1 => api_version = field.text()?,
                        2 => kind = field.text()?,
                        _ => {}
                    }
                }
            }
            2 => raw = field.bytes()?,
            _ => {}
        }
    }
    Ok((api_version, kind, raw))
}

/// Reads a body. What it leaves out of its kind is taken from `default`.
pub fn decode(types: &Types, default: Option<TypeId>, body: &[u8]) -> Result<Decoded, ProtoError> {
    let (api_version, kind, raw) = unwrap(body)?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let named = types.by_gvk(group, version, &kind);
    let type_id = match named.or(if kind.is_empty() { default } else { None }) {
        Some(id) => id,
        None => return Err(ProtoError::UnknownKind { api_version, kind }),
    };
    let mut value = decode_raw(types, type_id, raw)?;
    for (name, text) in [("apiVersion", &api_version), ("kind", &kind)] {
        if let (false, Some(map)) = (text.is_empty(), value.as_object_mut()) {
            map.insert(name.to_owned(), text.as_str().into());
        }
    }
    Ok(Decoded { api_version, kind, type_id, value })
}

/// Reads an object's bytes as a type, into normal form.
pub fn decode_raw(types: &Types, id: TypeId, raw: &[u8]) -> Result<Value, ProtoError> {
    let mut value = decode::object(types, id, raw, 0)?;
    normalize(types, id, &mut value);
    Ok(value)
}

#[cfg(test)]
mod tests;
