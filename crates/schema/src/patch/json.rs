//! JSON patch, RFC 6902, with upstream's limit of operations and its liberties: negative indices count from the end, and
//! `replace` of an absent key adds it.

use serde_json::{Map, Value};

use super::PatchError;

const MAX_OPERATIONS: usize = 10_000;
/// Most bytes that `copy` may add, as upstream's server has it.
const MAX_COPIED: usize = 3 << 20;
/// Deepest nesting that operations may build up.
const MAX_DEPTH: usize = 500;

/// The object after all operations of the patch, or the first failure.
pub fn json_patch(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let malformed = |kind: &str, ty: &str| {
        PatchError::Malformed(format!("json: cannot unmarshal {kind} into Go value of type jsonpatch.{ty}"))
    };
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => return Err(malformed(kind(other), "Patch")),
    };
    if let Some(bad) = operations.iter().find(|o| !o.is_object() && !o.is_null()) {
        return Err(malformed(kind(bad), "Operation"));
    }
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations { limit: MAX_OPERATIONS, got: operations.len() });
    }
    let mut document = object.clone();
    let empty = Map::new();
    let mut copied = 0;
    for operation in operations {
        let operation = operation.as_object().unwrap_or(&empty);
        apply(&mut document, operation, &mut copied).map_err(PatchError::Unprocessable)?;
    }
    Ok(document)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn apply(document: &mut Value, operation: &Map<String, Value>, copied: &mut usize) -> Result<(), String> {
    const MISSING: &str = "missing value";
    let op = operation.get("op").and_then(Value::as_str).unwrap_or("unknown");
    let text = |key: &str| operation.get(key).and_then(Value::as_str);
    let path = || text("path").ok_or(format!("{op} operation failed to decode path: {MISSING}"));
    let from = || text("from").ok_or(format!("{op} operation failed to decode from: {MISSING}"));
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    let gone = |what: &str, path: &str| format!("{op} operation does not apply: {what}: {path}: {MISSING}");
    let quoted =
        |path: &str| format!("{op} operation does not apply: doc is missing path: \"{path}\": {MISSING}");
    match op {
        "add" => {
            let path = path()?;
            let value = value();
            bounded(path, &value)?;
            let (place, key) = find(document, path).ok_or_else(|| quoted(path))?;
            add(place, &key, value).map_err(|e| format!("error in add for path: '{path}': {e}"))
        }
        "remove" => {
            let path = path()?;
            let (place, key) = find(document, path).ok_or_else(|| quoted(path))?;
            let removed = remove(place, &key);
            removed.map(drop).map_err(|e| format!("error in remove for path: '{path}': {e}"))
        }
        "replace" => {
            let path = path()?;
            if path.is_empty() {
                let value = value();
                if !value.is_object() && !value.is_array() {
                    return Err("replace operation value must be object or array: %!w(<nil>)".to_owned());
                }
                *document = value;
                return Ok(());
            }
            let value = value();
            bounded(path, &value)?;
            let (place, key) = find(document, path).ok_or_else(|| gone("doc is missing path", path))?;
            get(place, &key).map_err(|_| gone("doc is missing key", path))?;
            set(place, &key, value);
            Ok(())
        }
        "move" => {
            let from = from()?;
            let (place, key) = find(document, from).ok_or_else(|| gone("doc is missing from path", from))?;
            let moved = remove(place, &key).map_err(|e| format!("error in move for path: '{key}': {e}"))?;
            let path = path()?;
            bounded(path, &moved)?;
            let (place, key) =
                find(document, path).ok_or_else(|| gone("doc is missing destination path", path))?;
            add(place, &key, moved).map_err(|e| format!("error in move for path: '{path}': {e}"))
        }
        "copy" => {
            let from = from()?;
            let (place, key) = find(document, from).ok_or_else(|| gone("doc is missing from path", from))?;
            let source = get(place, &key).map_err(|e| format!("error in copy for from: '{from}': {e}"))?;
            let copy = source.cloned().unwrap_or(Value::Null);
            let path = path()?;
            bounded(path, &copy)?;
            *copied += copy.to_string().len();
            if *copied > MAX_COPIED {
                return Err(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
                ));
            }
            let (place, key) =
                find(document, path).ok_or_else(|| gone("doc is missing destination path", path))?;
            add(place, &key, copy).map_err(|e| format!("error while adding value during copy: {e}"))
        }
        "test" => {
            let path = path()?;
            let found = if path.is_empty() {
                Some(document.clone())
            } else {
                let (place, key) = find(document, path).ok_or_else(|| gone("is missing path", path))?;
                get(place, &key).map_err(|e| format!("error in test for path: '{path}': {e}"))?.cloned()
            };
            let same = found.unwrap_or(Value::Null) == value();
            same.then_some(()).ok_or(format!("testing value {path} failed: test failed"))
        }
        other => Err(format!("Unexpected kind: {other}")),
    }
}

/// The container that a pointer leads into, and the last key.
fn find<'d>(document: &'d mut Value, path: &str) -> Option<(&'d mut Value, String)> {
    let mut parts = path.split('/').skip(1).map(|p| p.replace("~1", "/").replace("~0", "~"));
    let mut key = parts.next()?;
    let mut place = document;
    for next in parts {
        place = match place {
            Value::Object(map) => map.get_mut(&key)?,
            Value::Array(list) => {
                let index = index(&key, list.len()).ok()?;
                &mut list[index]
            }
            _ => return None,
        };
        key = next;
    }
    (place.is_object() || place.is_array()).then_some((place, key))
}

fn integer(key: &str) -> Result<i64, String> {
    key.parse().map_err(|_| format!("strconv.Atoi: parsing {key:?}: invalid syntax"))
}

fn index(key: &str, length: usize) -> Result<usize, String> {
    let wanted = integer(key)?;
    let length = length as i64;
    let index = if wanted < 0 { wanted + length } else { wanted };
    if (0..length).contains(&index) {
        return Ok(index as usize);
    }
    Err(format!("Unable to access invalid index: {wanted}: invalid index referenced"))
}

fn get<'d>(place: &'d Value, key: &str) -> Result<Option<&'d Value>, String> {
    match place {
        Value::Array(list) => index(key, list.len()).map(|i| Some(&list[i])),
        other => Ok(other.get(key)),
    }
}

fn set(place: &mut Value, key: &str, value: Value) {
    match place {
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        Value::Array(list) => {
            if let Ok(index) = index(key, list.len()) {
                list[index] = value;
            }
        }
        _ => {}
    }
}

fn add(place: &mut Value, key: &str, value: Value) -> Result<(), String> {
    match place {
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => {
            integer(key).map_err(|e| format!("value was not a proper array index: '{key}': {e}"))?;
            let index = index(key, list.len() + 1)?;
            list.insert(index, value);
        }
        other => set(other, key, value),
    }
    Ok(())
}

fn remove(place: &mut Value, key: &str) -> Result<Value, String> {
    match place {
        Value::Array(list) => {
            let index = index(key, list.len())?;
            Ok(list.remove(index))
        }
        Value::Object(map) => {
            map.remove(key).ok_or_else(|| format!("Unable to remove nonexistent key: {key}: missing value"))
        }
        _ => Ok(Value::Null),
    }
}

/// Refuses a value that would lie too deep, so that no later walk overflows its stack.
fn bounded(path: &str, value: &Value) -> Result<(), String> {
    if path.split('/').count() + depth(value) > MAX_DEPTH {
        return Err("exceeded max depth".to_owned());
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
