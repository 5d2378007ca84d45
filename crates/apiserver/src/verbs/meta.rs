//! What the server itself does with an object's metadata: system fields, generated names, and the rules that hold for
//! every kind.

use api::{FieldError, FieldErrorKind};
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value};

use crate::Status;
use crate::registry::Served;

const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_LIMIT: usize = 63;
const SUFFIX: usize = 5;

/// The metadata of an object, made if there is none.
pub fn of(object: &mut Value) -> Result<&mut Map<String, Value>, Status> {
    let map = object.as_object_mut().ok_or_else(|| Status::bad_request("the object is no JSON object"))?;
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().ok_or_else(|| Status::bad_request("metadata is no JSON object"))
}

/// A string of the metadata, `""` if absent.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// The finalizers of an object.
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The time as the API writes it, in whole seconds.
pub fn now() -> String {
    time(Timestamp::now())
}

pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A name after a base, as the reference generates them.
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(NAME_LIMIT - SUFFIX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut rng = rand::rng();
    let suffix: String =
        (0..SUFFIX).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
    format!("{}{suffix}", &base[..end])
}

/// Drops what only the server may set on a new object.
pub fn wipe(object: &mut Value) -> Result<(), Status> {
    let metadata = of(object)?;
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "uid", "creationTimestamp"] {
        metadata.remove(field);
    }
    Ok(())
}

/// Fills in uid and creation time.
pub fn fill(object: &mut Value) -> Result<(), Status> {
    let metadata = of(object)?;
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".to_owned(), now().into());
    Ok(())
}

/// The object's namespace must be the request's, and is filled in.
pub fn namespace(served: &Served, requested: &str, object: &mut Value) -> Result<(), Status> {
    let namespaced = served.resource.namespaced;
    let metadata = of(object)?;
    let own = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if namespaced && !own.is_empty() && own != requested {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if namespaced {
        metadata.insert("namespace".to_owned(), requested.into());
    } else {
        if !own.is_empty() && served.plural() != "namespaces" {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata.remove("namespace");
    }
    Ok(())
}

fn error(
    kind: FieldErrorKind,
    field: &str,
    value: impl Into<Value>,
    detail: impl Into<String>,
) -> FieldError {
    FieldError::new(kind, format!("metadata.{field}"), value, detail)
}

/// The rules for metadata on create and update.
pub fn validate(served: &Served, object: &Value) -> Vec<FieldError> {
    use FieldErrorKind::{Forbidden, Invalid, Required};
    let mut errors = Vec::new();
    let strategy = &served.resource.strategy;
    let (name, base) = (text(object, "name"), text(object, "generateName"));
    if !base.is_empty() {
        // A trailing dash is completed by the suffix.
        let probe = base.strip_suffix('-').map_or_else(|| base.to_owned(), |b| format!("{b}a"));
        errors.extend(strategy.name(&probe).into_iter().map(|d| error(Invalid, "generateName", base, d)));
    }
    if name.is_empty() {
        errors.push(error(Required, "name", "", "name or generateName is required"));
    } else {
        errors.extend(strategy.name(name).into_iter().map(|d| error(Invalid, "name", name, d)));
    }
    let namespace = text(object, "namespace");
    if served.resource.namespaced {
        if namespace.is_empty() {
            errors.push(error(Required, "namespace", "", ""));
        } else if !is_label(namespace) {
            errors.push(error(Invalid, "namespace", namespace, LABEL_RULE));
        }
    } else if !namespace.is_empty() {
        errors.push(error(Forbidden, "namespace", "", "not allowed on this type"));
    }
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    if metadata.get("generation").and_then(Value::as_i64).is_some_and(|g| g < 0) {
        let value = metadata["generation"].clone();
        errors.push(error(Invalid, "generation", value, "must be greater than or equal to 0"));
    }
    labels(metadata, &mut errors);
    annotations(metadata, &mut errors);
    owners(metadata, &mut errors);
    finalizer_names(metadata, strategy.standard_finalizers(), &mut errors);
    errors
}

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";

fn is_label(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
        && alphanumeric(bytes[0])
        && alphanumeric(bytes[bytes.len() - 1])
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|part| !part.is_empty() && is_subdomain_part(part))
}

fn is_subdomain_part(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
        && alphanumeric(bytes[0])
        && alphanumeric(bytes[bytes.len() - 1])
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
}

/// Why a label key, annotation key or finalizer is no qualified name.
pub fn qualified_name(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    match prefix {
        Some("") => return Some("prefix part must be non-empty"),
        Some(prefix) if !is_subdomain(prefix) => {
            return Some(
                "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            );
        }
        _ => {}
    }
    if name.is_empty() {
        Some("name part must be non-empty")
    } else if name.len() > 63 {
        Some("name part must be no more than 63 characters")
    } else if name.contains('/') {
        Some(
            "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character with an optional DNS subdomain prefix and '/'",
        )
    } else if !is_name_part(name) {
        Some(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
        )
    } else {
        None
    }
}

fn labels(metadata: &Value, errors: &mut Vec<FieldError>) {
    for (key, value) in metadata.get("labels").and_then(Value::as_object).into_iter().flatten() {
        if let Some(why) = qualified_name(key) {
            errors.push(error(FieldErrorKind::Invalid, "labels", key.as_str(), why));
        }
        let text = value.as_str().unwrap_or_default();
        let why = if text.len() > 63 {
            "must be no more than 63 characters"
        } else if !text.is_empty() && !is_name_part(text) {
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
        } else {
            continue;
        };
        errors.push(error(FieldErrorKind::Invalid, "labels", text, why));
    }
}

const ANNOTATIONS_LIMIT: usize = 256 << 10;

fn annotations(metadata: &Value, errors: &mut Vec<FieldError>) {
    let mut size = 0;
    for (key, value) in metadata.get("annotations").and_then(Value::as_object).into_iter().flatten() {
        if let Some(why) = qualified_name(&key.to_ascii_lowercase()) {
            errors.push(error(FieldErrorKind::Invalid, "annotations", key.as_str(), why));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT {
        let detail = format!("may not be more than {ANNOTATIONS_LIMIT} bytes");
        errors.push(error(FieldErrorKind::TooLong, "annotations", "", detail));
    }
}

fn owners(metadata: &Value, errors: &mut Vec<FieldError>) {
    use FieldErrorKind::Invalid;
    let list = metadata.get("ownerReferences").and_then(Value::as_array);
    let mut controller: Option<String> = None;
    for owner in list.into_iter().flatten() {
        // Upstream does not tell which of the references it is.
        let field = |name: &str| format!("ownerReferences.{name}");
        let text = |name: &str| owner.get(name).and_then(Value::as_str).unwrap_or_default();
        let version = text("apiVersion");
        if version.is_empty() || version.rsplit('/').next() == Some("") {
            errors.push(error(Invalid, &field("apiVersion"), version, "version must not be empty"));
        }
        if version == "v1" && text("kind") == "Event" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(error(Invalid, "ownerReferences", owner.clone(), detail));
        }
        for name in ["kind", "name", "uid"] {
            if text(name).is_empty() {
                errors.push(error(Invalid, &field(name), "", "must not be empty"));
            }
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            if let Some(first) = &controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {}/{}",
                    text("kind"),
                    text("name")
                );
                errors.push(error(Invalid, "ownerReferences", Value::from(list.cloned()), detail));
            }
            controller.get_or_insert_with(|| format!("{}/{}", text("kind"), text("name")));
        }
    }
}

/// Short names that upstream's own kinds may use.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

fn finalizer_names(metadata: &Value, standard: bool, errors: &mut Vec<FieldError>) {
    use FieldErrorKind::Invalid;
    let list = metadata.get("finalizers").and_then(Value::as_array);
    let names: Vec<&str> = list.into_iter().flatten().filter_map(Value::as_str).collect();
    for (index, name) in names.iter().enumerate() {
        if let Some(why) = qualified_name(name) {
            errors.push(error(Invalid, "finalizers", *name, why));
        }
        if standard && !name.contains('/') && !STANDARD_FINALIZERS.contains(name) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(error(Invalid, &format!("finalizers[{index}]"), *name, detail));
        }
    }
    if names.contains(&"orphan") && names.contains(&"foregroundDeletion") {
        let detail = "finalizers orphan and foregroundDeletion cannot be both set";
        errors.push(error(Invalid, "finalizers", list.cloned().unwrap_or_default(), detail));
    }
}

/// Carries over what an update may leave out, then tells what it may not change.
pub fn carry(new: &mut Value, old: &Value) -> Result<(), Status> {
    let old_meta = old.get("metadata").and_then(Value::as_object);
    let metadata = of(new)?;
    let mut keep = |field: &str, always: bool| match old_meta.and_then(|m| m.get(field)) {
        Some(value) if always || metadata.get(field).is_none_or(Value::is_null) => {
            metadata.insert(field.to_owned(), value.clone());
        }
        None if always => {
            metadata.remove(field);
        }
        _ => {}
    };
    keep("uid", false);
    for field in ["creationTimestamp", "deletionTimestamp"] {
        // Whatever the client says, unless there was nothing before.
        keep(field, old_meta.is_some_and(|m| m.get(field).is_some_and(|v| !v.is_null())));
    }
    keep("deletionGracePeriodSeconds", false);
    keep("generation", true);
    metadata.remove("selfLink");
    Ok(())
}

/// What an update may not change.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let field = |object: &Value, name: &str| object.get("metadata").and_then(|m| m.get(name)).cloned();
    let old_finalizers = finalizers(old);
    if !text(old, "deletionTimestamp").is_empty() {
        let added: Vec<&str> = finalizers(new).into_iter().filter(|f| !old_finalizers.contains(f)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(error(FieldErrorKind::Forbidden, "finalizers", "", detail));
        }
    }
    for name in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let (was, is) = (field(old, name), field(new, name));
        if was != is {
            let is = is.unwrap_or(Value::Null);
            errors.push(error(FieldErrorKind::Invalid, name, is, "field is immutable"));
        }
    }
    errors
}
