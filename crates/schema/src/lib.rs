//! The object engine: types as data, and everything the API does with an object by its type. Decoding, normal form,
//! patches, server-side apply, OpenAPI and protobuf all read the same [`Types`]. Knows no kind by name; no I/O.

pub mod cbor;
mod decode;
pub mod field;
pub mod managed;
mod normalize;
pub mod openapi;
mod ordered;
pub mod patch;
pub mod proto;
pub mod quantity;
pub mod structural;
mod table;
pub mod time;
mod types;

pub use decode::{
    DecodeError, Decoded, FieldValidation, decode_any, decode_any_yaml, decode_json, decode_tree,
    decode_tree_yaml, decode_value, decode_yaml,
};
pub use normalize::{fill_defaults, normalize, normalize_open};
pub use ordered::Ordered;
pub use patch::{PatchError, json_patch, merge_patch, strategic_merge_patch};
pub use table::TableError;
pub use types::{Field, Kind, ListType, Omit, Shape, Str, Type, TypeId, Types};

#[cfg(test)]
mod sample;
