//! Bytes to objects, by type.

use serde_json::Value;

use crate::types::{TypeId, Types};

/// What happens to unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, and each gives a warning.
    #[default]
    Warn,
    /// They are an error.
    Strict,
}

/// A decoded object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.foo"` and the like; empty unless validation is `Warn`.
    pub warnings: Vec<String>,
}

/// Why a body is no object of the wanted type; the text is upstream's.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The text is not JSON.
    #[error("{0}")]
    Syntax(String),
    /// The text is not YAML.
    #[error("error converting YAML to JSON: {0}")]
    Yaml(String),
    /// A value does not fit its field.
    #[error("{0}")]
    Type(String),
    /// Unknown or duplicate fields under strict validation.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

/// Decodes a JSON body as an object of a type.
pub fn decode_json(
    _types: &Types,
    _id: TypeId,
    body: &[u8],
    _validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    let value = serde_json::from_slice(body).map_err(|e| DecodeError::Syntax(e.to_string()))?;
    Ok(Decoded { value, warnings: Vec::new() })
}

/// Decodes a YAML body as an object of a type.
pub fn decode_yaml(
    _types: &Types,
    _id: TypeId,
    body: &[u8],
    _validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    let text = std::str::from_utf8(body).map_err(|e| DecodeError::Yaml(e.to_string()))?;
    let value = serde_saphyr::from_str(text).map_err(|e| DecodeError::Yaml(e.to_string()))?;
    Ok(Decoded { value, warnings: Vec::new() })
}
