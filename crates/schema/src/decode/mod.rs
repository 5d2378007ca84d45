//! Bytes to objects, by type. Unknown and duplicate fields, nulls and wrong types are treated as upstream's decoder treats
//! them, and told of in its words; the result is in normal form (see [`crate::normalize`]).

mod lexer;
mod typed;
mod yaml;

use serde_json::Value;

use crate::normalize::normalize_open;
use crate::types::{TypeId, Types};
use lexer::{Lexer, Syntax};

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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The text is not JSON.
    #[error("{0}")]
    Syntax(String),
    /// The text is not YAML.
    #[error("{0}")]
    Yaml(String),
    /// A value does not fit its field.
    #[error("{0}")]
    Type(String),
    /// Unknown or duplicate fields under strict validation.
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
}

impl From<Syntax> for DecodeError {
    fn from(error: Syntax) -> Self {
        Self::Syntax(error.0)
    }
}

/// Decodes a JSON body as an object of a type, in normal form but for optional lists that are empty: defaults are for what
/// is absent. Whoever has no defaults to fill in calls [`normalize`](crate::normalize) next.
pub fn decode_json(
    types: &Types,
    id: TypeId,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    decode(types, id, body, validation, Vec::new())
}

/// Decodes a YAML body as an object of a type, as [`decode_json`] does. Only the first document counts.
pub fn decode_yaml(
    types: &Types,
    id: TypeId,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    let parsed = yaml::parse(body)?;
    let text = parsed.value.to_string();
    decode(types, id, text.as_bytes(), validation, parsed.duplicates)
}

/// Decodes a value that is at hand already (a patched object) as an object of a type.
pub fn decode_value(
    types: &Types,
    id: TypeId,
    value: &Value,
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    decode(types, id, value.to_string().as_bytes(), validation, Vec::new())
}

/// Decodes JSON of no particular type (a patch); only duplicate fields are found fault with.
pub fn decode_any(body: &[u8], validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let (value, errors) = decode_tree(body, validation)?;
    finish(value, errors, validation)
}

/// Reads JSON of no particular type and tells its duplicate fields, for a caller that goes on looking for faults.
pub fn decode_tree(body: &[u8], validation: FieldValidation) -> Result<(Value, Vec<String>), DecodeError> {
    let mut lexer = Lexer::new(body);
    let mut findings = typed::Findings::new(validation != FieldValidation::Ignore);
    let value = lexer.any(&mut |step| findings.step(step))?;
    lexer.end()?;
    Ok((value, findings.errors))
}

/// Reads YAML of no particular type and tells its duplicate fields.
pub fn decode_tree_yaml(
    body: &[u8],
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), DecodeError> {
    let parsed = yaml::parse(body)?;
    let wanted = validation != FieldValidation::Ignore;
    Ok((parsed.value, if wanted { parsed.duplicates } else { Vec::new() }))
}

/// Decodes YAML of no particular type (an apply configuration).
pub fn decode_any_yaml(body: &[u8], validation: FieldValidation) -> Result<Decoded, DecodeError> {
    let parsed = yaml::parse(body)?;
    finish(parsed.value, parsed.duplicates, validation)
}

fn decode(
    types: &Types,
    id: TypeId,
    body: &[u8],
    validation: FieldValidation,
    mut errors: Vec<String>,
) -> Result<Decoded, DecodeError> {
    let mut decoder = typed::Decoder::new(types, body, validation != FieldValidation::Ignore);
    let mut value = decoder.run(id)?;
    errors.append(&mut decoder.findings.errors);
    normalize_open(types, id, &mut value);
    finish(value, errors, validation)
}

fn finish(value: Value, errors: Vec<String>, validation: FieldValidation) -> Result<Decoded, DecodeError> {
    match validation {
        FieldValidation::Strict if !errors.is_empty() => Err(DecodeError::Strict(errors)),
        FieldValidation::Warn => Ok(Decoded { value, warnings: errors }),
        _ => Ok(Decoded { value, warnings: Vec::new() }),
    }
}

#[cfg(test)]
mod tests;
