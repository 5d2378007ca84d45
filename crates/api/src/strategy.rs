//! What a kind adds to the generic verbs: defaults, validation, what an update may change, table cells. A kind is a row of
//! functions; what a row does not name is generic.

use jiff::Timestamp;
use schema::Str;
use serde_json::Value;

use crate::FieldError;

/// The functions of one kind. Rows are written `Strategy { default: ..., ..Strategy::GENERIC }`.
#[derive(Clone)]
pub struct Strategy {
    /// Defaulting, run after decoding; the table's OpenAPI defaults have been filled in before.
    pub default: fn(&mut Value),
    /// Before a create is validated: drops status, sets generation.
    pub prepare_create: fn(&mut Value),
    /// Before an update is validated: keeps status, bumps generation when the specification changed.
    pub prepare_update: fn(new: &mut Value, old: &Value),
    pub validate: fn(&Value) -> Vec<FieldError>,
    /// Runs after `validate` of the new object, and adds what depends on the old one.
    pub validate_update: fn(new: &Value, old: &Value) -> Vec<FieldError>,
    /// `validate_update` tells what is wrong with the new object as well, and `validate` is for creates alone.
    pub update_is_whole: bool,
    /// Warnings for a create or update.
    pub warnings: fn(new: &Value, old: Option<&Value>) -> Vec<String>,
    /// Warnings for a write to the status.
    pub warnings_status: fn(new: &Value, old: Option<&Value>) -> Vec<String>,
    /// Before a status update is validated: keeps everything but status.
    pub prepare_status: fn(new: &mut Value, old: &Value),
    pub validate_status: fn(new: &Value, old: &Value) -> Vec<FieldError>,
    /// Table cells in the order of the resource's columns.
    pub row: fn(&Value, now: Timestamp) -> Vec<Value>,
    /// Field selector values beside `metadata.name` and `metadata.namespace`.
    pub fields: fn(&Value) -> Vec<(&'static str, String)>,
    /// The field labels that a field selector may use beside the generic two.
    pub field_labels: &'static [&'static str],
    /// What is wrong with a name; empty if nothing is.
    pub name: fn(&str) -> Vec<String>,
    /// Finalizers without a domain must be one of those that upstream knows.
    pub standard_finalizers: bool,
    /// An update of an absent object creates it.
    pub allow_create_on_update: bool,
    /// An update without a resourceVersion is accepted.
    pub unconditional_update: bool,
    /// Where the scale subresource finds its numbers.
    pub scale: Option<ScalePaths>,
    /// A delete may be graceful: the object stays with a deletionTimestamp.
    pub has_graceful_delete: bool,
}

/// JSON pointers of the parts of the scale subresource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: Str,
    pub status_replicas: Str,
    /// The selector in the object: a LabelSelector, a map of labels, or its string form.
    pub selector: Str,
}

impl Strategy {
    /// What every kind does unless its row says otherwise.
    pub const GENERIC: Self = Self {
        default: |_| {},
        prepare_create: generic_prepare_create,
        prepare_update: generic_prepare_update,
        validate: |_| Vec::new(),
        validate_update: |_, _| Vec::new(),
        update_is_whole: false,
        warnings: |_, _| Vec::new(),
        warnings_status: |_, _| Vec::new(),
        prepare_status: generic_prepare_status,
        validate_status: |_, _| Vec::new(),
        row: generic_row,
        fields: |_| Vec::new(),
        field_labels: &[],
        name: |_| Vec::new(),
        standard_finalizers: false,
        allow_create_on_update: false,
        unconditional_update: true,
        scale: None,
        has_graceful_delete: false,
    };
}

/// Generation 1 for a kind that has a specification; status is the system's to write.
pub fn generic_prepare_create(object: &mut Value) {
    let has_spec = object.get("spec").is_some();
    if let Some(map) = object.as_object_mut()
        && map.contains_key("status")
    {
        map.insert("status".to_owned(), Value::Object(Default::default()));
    }
    if has_spec && let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("generation".to_owned(), 1.into());
    }
}

/// Status stays; generation counts the changes of the specification.
pub fn generic_prepare_update(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    let generation = old.pointer("/metadata/generation").and_then(Value::as_i64);
    if let Some(generation) = generation {
        let next = if new.get("spec") == old.get("spec") { generation } else { generation + 1 };
        if let Some(meta) = new.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.insert("generation".to_owned(), next.into());
        }
    }
}

/// Everything but status and the metadata that status writers may touch stays.
pub fn generic_prepare_status(new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    let generation = old.pointer("/metadata/generation").cloned();
    if let Some(meta) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        match generation {
            Some(generation) => meta.insert("generation".to_owned(), generation),
            None => meta.remove("generation"),
        };
    }
}

fn keep(new: &mut Value, old: &Value, part: &str) {
    let Some(map) = new.as_object_mut() else { return };
    match old.get(part) {
        Some(value) => {
            map.insert(part.to_owned(), value.clone());
        }
        None => {
            map.remove(part);
        }
    }
}

/// Takes the findings about forms of addresses back whose value the old object has as well: what older servers accepted
/// may stay.
pub fn ratchet(errors: &mut Vec<FieldError>, old: &Value) {
    fn holds(value: &Value, wanted: &Value) -> bool {
        match value {
            Value::Array(list) => list.iter().any(|item| holds(item, wanted)),
            Value::Object(map) => map.values().any(|item| holds(item, wanted)),
            other => other == wanted,
        }
    }
    errors.retain(|error| {
        !(crate::kinds::is_legacy_form(error)
            && ["spec", "status", "subsets", "endpoints"]
                .iter()
                .any(|part| old.get(part).is_some_and(|part| holds(part, &error.value))))
    });
}

/// Name and creation time.
pub fn generic_row(object: &Value, _now: Timestamp) -> Vec<Value> {
    let meta = |name: &str| object.pointer(name).cloned().unwrap_or(Value::Null);
    vec![meta("/metadata/name"), meta("/metadata/creationTimestamp")]
}
