//! How a resource behaves: by the static row of a built-in kind, or by a value made while the server runs.

use std::sync::Arc;

use jiff::Timestamp;
use schema::{DecodeError, Decoded, FieldValidation, Str};
use serde_json::Value;

use crate::{FieldError, ScalePaths, Strategy};

/// The rules of a kind that is defined while the server runs. The methods mean what the fields of [`Strategy`] mean.
pub trait Custom: Send + Sync {
    /// Brings a tree into the form in which it is validated: prunes, and checks what cannot be told by a field error.
    /// The answer is what was dropped, in the words of field validation.
    fn shape(&self, object: &mut Value, wanted: bool) -> Result<Vec<String>, DecodeError>;

    /// Defaults, and the normal form of the metadata.
    fn default(&self, object: &mut Value);

    /// The normal form of the metadata.
    fn normalize(&self, object: &mut Value);

    fn prepare_create(&self, object: &mut Value);
    fn prepare_update(&self, new: &mut Value, old: &Value);
    fn prepare_status(&self, new: &mut Value, old: &Value);
    fn validate(&self, object: &Value) -> Vec<FieldError>;

    /// All that is wrong with an update, beside its metadata.
    fn validate_update(&self, new: &Value, old: &Value) -> Findings;
    fn validate_status(&self, new: &Value, old: &Value) -> Findings;

    /// What is wrong with a change through `scale`.
    fn validate_scale(&self, new: &Value, old: &Value) -> Findings;
    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String>;
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value>;
    fn fields(&self, object: &Value) -> Vec<(Str, String)>;
    fn selects(&self, label: &str) -> bool;
    fn name(&self, name: &str) -> Vec<String>;
    fn scale(&self) -> Option<ScalePaths>;
}

/// What the validation of an update has found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What stands against the update.
    pub errors: Vec<FieldError>,
    /// What is told whether the update is made or not: wrong already before it, and let be.
    pub warnings: Vec<String>,
}

impl From<Vec<FieldError>> for Findings {
    fn from(errors: Vec<FieldError>) -> Self {
        Self { errors, warnings: Vec::new() }
    }
}

impl Findings {
    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        self.errors.extend(others.errors);
        self.warnings.extend(others.warnings);
    }
}

/// The rules of a resource.
#[derive(Clone)]
pub enum Behavior {
    BuiltIn(&'static Strategy),
    Custom(Arc<dyn Custom>),
}

impl Behavior {
    /// Whether the kind was defined while the server runs.
    pub fn is_custom(&self) -> bool {
        matches!(self, Self::Custom(_))
    }

    /// The kind's own defaulting; that of the type table comes before, see [`crate::Resource::complete`].
    pub fn default(&self, object: &mut Value) {
        match self {
            Self::BuiltIn(row) => (row.default)(object),
            Self::Custom(custom) => custom.default(object),
        }
    }

    /// Before a create is validated.
    pub fn prepare_create(&self, object: &mut Value) {
        match self {
            Self::BuiltIn(row) => (row.prepare_create)(object),
            Self::Custom(custom) => custom.prepare_create(object),
        }
    }

    /// Before an update is validated.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        match self {
            Self::BuiltIn(row) => (row.prepare_update)(new, old),
            Self::Custom(custom) => custom.prepare_update(new, old),
        }
    }

    /// Before an update of the status is validated.
    pub fn prepare_status(&self, new: &mut Value, old: &Value) {
        match self {
            Self::BuiltIn(row) => (row.prepare_status)(new, old),
            Self::Custom(custom) => custom.prepare_status(new, old),
        }
    }

    /// What is wrong with a new object.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        match self {
            Self::BuiltIn(row) => (row.validate)(object),
            Self::Custom(custom) => custom.validate(object),
        }
    }

    /// What is wrong with an update: with the new object, and with the change.
    pub fn validate_update(&self, new: &Value, old: &Value) -> Findings {
        match self {
            Self::BuiltIn(row) => {
                let mut errors = if row.update_is_whole { Vec::new() } else { (row.validate)(new) };
                errors.extend((row.validate_update)(new, old));
                errors.into()
            }
            Self::Custom(custom) => custom.validate_update(new, old),
        }
    }

    /// What is wrong with an update of the status.
    pub fn validate_status(&self, new: &Value, old: &Value) -> Findings {
        match self {
            Self::BuiltIn(row) => (row.validate_status)(new, old).into(),
            Self::Custom(custom) => custom.validate_status(new, old),
        }
    }

    /// What is wrong with an update through `scale`, beside the Scale itself.
    pub fn validate_scale(&self, new: &Value, old: &Value) -> Findings {
        match self {
            Self::BuiltIn(_) => Findings::default(),
            Self::Custom(custom) => custom.validate_scale(new, old),
        }
    }

    /// Warnings for a create or update.
    pub fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        match self {
            Self::BuiltIn(row) => (row.warnings)(new, old),
            Self::Custom(custom) => custom.warnings(new, old),
        }
    }

    /// Warnings for a write to the status.
    pub fn warnings_status(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        match self {
            Self::BuiltIn(row) => (row.warnings_status)(new, old),
            Self::Custom(_) => Vec::new(),
        }
    }

    /// Finalizers without a domain must be one of those that upstream knows.
    pub fn standard_finalizers(&self) -> bool {
        matches!(self, Self::BuiltIn(row) if row.standard_finalizers)
    }

    /// Table cells in the order of the resource's columns.
    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match self {
            Self::BuiltIn(row) => (row.row)(object, now),
            Self::Custom(custom) => custom.row(object, now),
        }
    }

    /// Field selector values beside name and namespace.
    pub fn fields(&self, object: &Value) -> Vec<(Str, String)> {
        match self {
            Self::BuiltIn(row) => {
                (row.fields)(object).into_iter().map(|(label, value)| (Str::from(label), value)).collect()
            }
            Self::Custom(custom) => custom.fields(object),
        }
    }

    /// Whether a field selector may use a label beside name and namespace.
    pub fn selects(&self, label: &str) -> bool {
        match self {
            Self::BuiltIn(row) => row.field_labels.contains(&label),
            Self::Custom(custom) => custom.selects(label),
        }
    }

    /// What is wrong with a name.
    pub fn name(&self, name: &str) -> Vec<String> {
        match self {
            Self::BuiltIn(row) => (row.name)(name),
            Self::Custom(custom) => custom.name(name),
        }
    }

    /// An update of an absent object creates it.
    pub fn allow_create_on_update(&self) -> bool {
        matches!(self, Self::BuiltIn(row) if row.allow_create_on_update)
    }

    /// An update without a resourceVersion is accepted.
    pub fn unconditional_update(&self) -> bool {
        matches!(self, Self::BuiltIn(row) if row.unconditional_update)
    }

    /// Where the scale subresource finds its numbers.
    pub fn scale(&self) -> Option<ScalePaths> {
        match self {
            Self::BuiltIn(row) => row.scale.clone(),
            Self::Custom(custom) => custom.scale(),
        }
    }

    /// A delete may be graceful.
    pub fn has_graceful_delete(&self) -> bool {
        matches!(self, Self::BuiltIn(row) if row.has_graceful_delete)
    }
}

impl crate::Resource {
    /// Decodes a JSON body, open and not yet defaulted.
    pub fn decode_json(&self, body: &[u8], validation: FieldValidation) -> Result<Decoded, DecodeError> {
        match &self.strategy {
            Behavior::BuiltIn(_) => schema::decode_json(&self.types, self.type_id, body, validation),
            Behavior::Custom(custom) => shaped(&**custom, schema::decode_tree(body, validation)?, validation),
        }
    }

    /// Decodes a YAML body, open and not yet defaulted.
    pub fn decode_yaml(&self, body: &[u8], validation: FieldValidation) -> Result<Decoded, DecodeError> {
        match &self.strategy {
            Behavior::BuiltIn(_) => schema::decode_yaml(&self.types, self.type_id, body, validation),
            Behavior::Custom(custom) => {
                shaped(&**custom, schema::decode_tree_yaml(body, validation)?, validation)
            }
        }
    }

    /// Brings a tree into that form, as if it had been decoded.
    pub fn decode_value(&self, value: &Value, validation: FieldValidation) -> Result<Decoded, DecodeError> {
        match &self.strategy {
            Behavior::BuiltIn(_) => schema::decode_value(&self.types, self.type_id, value, validation),
            Behavior::Custom(custom) => shaped(&**custom, (value.clone(), Vec::new()), validation),
        }
    }

    /// Fills in all defaults of a decoded object. It stays open ([`schema::normalize_open`]) until it has been validated.
    pub fn complete(&self, object: &mut Value) {
        if !self.strategy.is_custom() {
            schema::fill_defaults(&self.types, self.type_id, object);
        }
        self.strategy.default(object);
        self.open(object);
    }

    /// Brings an object into normal form, but for empty lists, which are for validation to see.
    pub fn open(&self, object: &mut Value) {
        match &self.strategy {
            Behavior::BuiltIn(_) => schema::normalize_open(&self.types, self.type_id, object),
            Behavior::Custom(custom) => custom.normalize(object),
        }
    }

    /// Brings an object into normal form.
    pub fn normalize(&self, object: &mut Value) {
        match &self.strategy {
            Behavior::BuiltIn(_) => schema::normalize(&self.types, self.type_id, object),
            Behavior::Custom(custom) => custom.normalize(object),
        }
    }
}

fn shaped(
    custom: &dyn Custom,
    (mut value, mut findings): (Value, Vec<String>),
    validation: FieldValidation,
) -> Result<Decoded, DecodeError> {
    findings.extend(custom.shape(&mut value, validation != FieldValidation::Ignore)?);
    match validation {
        FieldValidation::Strict if !findings.is_empty() => Err(DecodeError::Strict(findings)),
        FieldValidation::Warn => Ok(Decoded { value, warnings: findings }),
        _ => Ok(Decoded { value, warnings: Vec::new() }),
    }
}
