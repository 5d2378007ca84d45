//! The order of a merged list: the patch's elements in the patch's order, and those that only the server has put between them
//! where they stood.

use std::collections::HashMap;

use serde_json::Value;

use super::PatchError;

/// The elements that `by` has too, and the others.
pub(super) fn partition(
    list: Vec<Value>,
    by: &[Value],
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    if !key.is_empty()
        && let Some(bad) = list.iter().find(|v| v.get(key).is_none())
    {
        return Err(PatchError::Internal(format!("map: {bad} does not contain declared merge key: {key}")));
    }
    let places = places(by, key);
    Ok(list.into_iter().partition(|v| places.contains_key(&identity(v, key))))
}

/// Merges both lists into one order; each keeps its own, the server's order decides between them where it knows both.
pub(super) fn ordered(
    patched: Vec<Value>,
    server: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    key: &str,
) -> Result<Vec<Value>, PatchError> {
    let patched = sorted(patched, patch_order, key);
    let server = sorted(server, server_order, key);
    let places = places(server_order, key);
    let place = |v: &Value| places.get(&identity(v, key)).copied();
    let mut out = Vec::with_capacity(patched.len() + server.len());
    let mut left = server.into_iter().peekable();
    for item in patched {
        let right = place(&item);
        while let Some(candidate) = left.peek() {
            match (place(candidate), right) {
                (Some(l), Some(r)) if l < r => out.extend(left.next()),
                _ => break,
            }
        }
        out.push(item);
    }
    out.extend(left);
    Ok(out)
}

fn sorted(mut list: Vec<Value>, order: &[Value], key: &str) -> Vec<Value> {
    let places = places(order, key);
    list.sort_by_key(|v| places.get(&identity(v, key)).copied());
    list
}

/// What makes an element the same as another: its merge key, or all of it.
pub(super) fn identity(value: &Value, key: &str) -> String {
    match key {
        "" => value.to_string(),
        key => value.get(key).map(Value::to_string).unwrap_or_default(),
    }
}

/// The first place of each element.
pub(super) fn places(list: &[Value], key: &str) -> HashMap<String, usize> {
    let mut places = HashMap::new();
    for (index, value) in list.iter().enumerate() {
        places.entry(identity(value, key)).or_insert(index);
    }
    places
}
