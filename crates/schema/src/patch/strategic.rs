//! Strategic merge patch: maps merge by key, lists as the type table says (by merge key, as a set of scalars, or whole), with
//! the directives `$patch`, `$retainKeys`, `$deleteFromPrimitiveList` and `$setElementOrder`.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::PatchError;
use super::order::{identity, ordered, partition, places};
use crate::types::{Field, Shape, TypeId, Types};

type Object = Map<String, Value>;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList";
const ORDER_PREFIX: &str = "$setElementOrder";

/// The object with the patch merged in by its type.
pub fn strategic_merge_patch(
    types: &Types,
    id: TypeId,
    object: &Value,
    patch: &Value,
) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed(
            "json: cannot unmarshal into Go value of type map[string]interface {}".to_owned(),
        ));
    };
    let original = object.as_object().cloned().unwrap_or_default();
    merge_map(types, Some(id), original, patch.clone()).map(Value::Object)
}

/// How the table wants a field merged.
struct Meta<'t> {
    /// The type of the value, or of a list's elements.
    ty: Option<TypeId>,
    field: Option<&'t Field>,
}

impl Meta<'_> {
    fn merges(&self) -> bool {
        self.field.is_some_and(|f| f.patch_merge)
    }

    fn replaces(&self) -> bool {
        self.field.is_some_and(|f| f.patch_replace)
    }

    fn merge_key(&self) -> &str {
        self.field.and_then(|f| f.merge_key.as_deref()).unwrap_or("")
    }
}

fn lookup<'t>(types: &'t Types, owner: Option<TypeId>, key: &str) -> Result<Meta<'t>, PatchError> {
    let Some(owner) = owner else { return Ok(Meta { ty: None, field: None }) };
    match types.shape(owner) {
        Shape::Map(element) => Ok(Meta { ty: Some(*element), field: None }),
        Shape::Object(_) => match types.field(owner, key) {
            Some(field) => Ok(Meta { ty: Some(field.ty), field: Some(field) }),
            None => Err(PatchError::Internal(format!(
                "unable to find api field in struct {} for the json field {key:?}",
                types.get(owner).name.rsplit('.').next().unwrap_or_default()
            ))),
        },
        _ => Ok(Meta { ty: None, field: None }),
    }
}

fn lookup_list<'t>(types: &'t Types, owner: Option<TypeId>, key: &str) -> Result<Meta<'t>, PatchError> {
    let meta = lookup(types, owner, key)?;
    let ty = meta.ty.and_then(|ty| types.element(ty));
    Ok(Meta { ty, field: meta.field })
}

fn merge_map(
    types: &Types,
    ty: Option<TypeId>,
    mut original: Object,
    mut patch: Object,
) -> Result<Object, PatchError> {
    if let Some(directive) = patch.remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(&directive)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_order(types, ty, &mut original, &mut patch)?;
    for (key, value) in patch {
        let deletes = key.starts_with(DELETE_PREFIX);
        let key = if deletes { strip(&key, DELETE_PREFIX)?.to_owned() } else { key };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let current = original.get_mut(&key).map(Value::take);
        let merged = match (current, value) {
            (Some(Value::Object(current)), Value::Object(patch)) => {
                let meta = lookup(types, ty, &key)?;
                Some(Value::Object(if meta.replaces() {
                    patch
                } else {
                    merge_map(types, meta.ty, current, patch)?
                }))
            }
            (Some(Value::Array(current)), Value::Array(patch)) => {
                let meta = lookup_list(types, ty, &key)?;
                Some(Value::Array(merge_list(types, &meta, current, patch, deletes)?))
            }
            (current, _) if deletes => current,
            (_, mut value) => {
                discard_nulls(&mut value);
                without_directives(value)
            }
        };
        match merged {
            Some(value) => {
                original.insert(key, value);
            }
            None => {
                original.remove(&key);
            }
        }
    }
    Ok(original)
}

fn unknown_directive(directive: &Value) -> PatchError {
    let text = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    PatchError::Internal(format!("unknown patch type: {text} in map"))
}

fn strip<'k>(key: &'k str, prefix: &str) -> Result<&'k str, PatchError> {
    match key.split_once('/') {
        Some((head, rest)) if head == prefix => Ok(rest),
        _ if prefix == DELETE_PREFIX => {
            Err(PatchError::Malformed("invalid patch format of primitive list".to_owned()))
        }
        _ => Err(bad_order()),
    }
}

fn bad_order() -> PatchError {
    PatchError::Malformed("invalid patch format of setElementOrder list".to_owned())
}

/// `$retainKeys`: what it does not name goes.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(list) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || PatchError::Malformed("invalid patch format of retainKeys".to_owned());
    let list = list.as_array().ok_or_else(bad)?;
    let list: HashSet<&str> = list.iter().filter_map(Value::as_str).collect();
    let retained = |key: &str| list.contains(key);
    for (key, value) in patch.iter() {
        let directive = key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX);
        if !value.is_null() && !directive && !retained(key) {
            return Err(bad());
        }
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// `$setElementOrder`: merges the list that it names and puts the result in that order; both leave the patch.
fn set_order(
    types: &Types,
    ty: Option<TypeId>,
    original: &mut Object,
    patch: &mut Object,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(ORDER_PREFIX)).cloned().collect();
    for directive in directives {
        let order = patch.remove(&directive).unwrap_or(Value::Null);
        let Value::Array(order) = order else { return Err(wrong_kind()) };
        let key = strip(&directive, ORDER_PREFIX)?;
        let list = |value: Option<&Value>| match value {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list.clone())),
            Some(_) => Err(wrong_kind()),
        };
        let current = list(original.get(key))?;
        let change = list(patch.get(key))?;
        let meta = lookup_list(types, ty, key)?;
        check_order(change.as_deref().unwrap_or(&[]), &order, meta.merge_key())?;
        let server_order = current.clone().unwrap_or_default();
        let merged = match (current, change) {
            (Some(current), None) => current,
            (None, Some(change)) => match without_directives(Value::Array(change)) {
                Some(Value::Array(list)) => list,
                _ => continue,
            },
            (Some(current), Some(change)) => merge_list(types, &meta, current, change, false)?,
            (None, None) => continue,
        };
        let (patched, server) = partition(merged, &order, meta.merge_key())?;
        let both = ordered(patched, server, &order, &server_order, meta.merge_key())?;
        original.insert(key.to_owned(), Value::Array(both));
        patch.remove(key);
    }
    Ok(())
}

fn wrong_kind() -> PatchError {
    PatchError::Internal("expected a []interface {}, but received another type".to_owned())
}

/// The patch's elements must stand in the order list, in the same order.
fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<(), PatchError> {
    if order.is_empty() || patch.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in patch {
        if item.get(PATCH).is_some() {
            continue;
        }
        let same = |other: &Value| match merge_key {
            "" => item == other,
            key => item.get(key).is_some() && item.get(key) == other.get(key),
        };
        if !wanted.any(same) {
            return Err(PatchError::Internal(format!(
                "The order in patch list:\n{}\n doesn't match {ORDER_PREFIX} list:\n{}\n",
                Value::from(patch),
                Value::from(order)
            )));
        }
    }
    Ok(())
}

fn merge_list(
    types: &Types,
    meta: &Meta<'_>,
    original: Vec<Value>,
    patch: Vec<Value>,
    deletes: bool,
) -> Result<Vec<Value>, PatchError> {
    if !meta.merges() && !deletes {
        return Ok(patch);
    }
    let Some(first) = original.first().or(patch.first()) else { return Ok(original) };
    if original.iter().chain(&patch).any(Value::is_array) {
        return Err(PatchError::Unprocessable("lists of lists are not supported".to_owned()));
    }
    let maps = first.is_object();
    if original.iter().chain(&patch).any(|v| v.is_object() != maps) {
        return Err(PatchError::Internal("list element types are not identical".to_owned()));
    }
    if !maps {
        return merge_scalars(original, patch, deletes);
    }
    let key = meta.merge_key();
    if key.is_empty() {
        return Err(PatchError::Internal("cannot merge lists without merge key for struct".to_owned()));
    }
    let (original, patch) = special_elements(original, patch, key)?;
    let merged = merge_elements(types, meta, original.clone(), &patch)?;
    let (patched, server) = partition(merged, &patch, key)?;
    ordered(patched, server, &patch, &original, key)
}

fn merge_scalars(original: Vec<Value>, patch: Vec<Value>, deletes: bool) -> Result<Vec<Value>, PatchError> {
    if deletes {
        let gone = places(&patch, "");
        return Ok(original.into_iter().filter(|v| !gone.contains_key(&identity(v, ""))).collect());
    }
    let mut seen = HashSet::new();
    let all = original.iter().chain(&patch);
    let merged = all.filter(|v| seen.insert(identity(v, ""))).cloned().collect();
    let (patched, server) = partition(merged, &patch, "")?;
    ordered(patched, server, &patch, &original, "")
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    PatchError::Internal(format!("map: {item} does not contain declared merge key: {key}"))
}

/// Takes `$patch` elements out of the patch and does what they say.
fn special_elements(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut plain = Vec::new();
    let mut gone = HashSet::new();
    let mut replace = false;
    for item in patch {
        match item.get(PATCH) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    item.get(key).ok_or_else(|| no_merge_key(&item, key))?;
                    gone.insert(identity(&item, key));
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(PatchError::Internal(
                        "merging lists cannot yet be specified in the patch".to_owned(),
                    ));
                }
                _ => return Err(unknown_directive(directive)),
            },
        }
    }
    original.retain(|v| !gone.contains(&identity(v, key)));
    Ok(if replace { (plain, Vec::new()) } else { (original, plain) })
}

fn merge_elements(
    types: &Types,
    meta: &Meta<'_>,
    mut original: Vec<Value>,
    patch: &[Value],
) -> Result<Vec<Value>, PatchError> {
    let key = meta.merge_key();
    let mut places = places(&original, key);
    for item in patch {
        item.get(key).ok_or_else(|| no_merge_key(item, key))?;
        match places.get(&identity(item, key)).map(|at| &mut original[*at]) {
            Some(slot) => {
                if let (Value::Object(current), Value::Object(change)) = (slot.take(), item.clone()) {
                    *slot = Value::Object(merge_map(types, meta.ty, current, change)?);
                }
            }
            None => {
                places.insert(identity(item, key), original.len());
                original.push(item.clone());
            }
        }
    }
    Ok(original)
}

/// A value as it is added: maps that carry `$patch` are left out.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => Some(Value::Object(
            map.into_iter().filter_map(|(k, v)| without_directives(v).map(|v| (k, v))).collect(),
        )),
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(without_directives).collect())),
        scalar => Some(scalar),
    }
}

fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.iter_mut().for_each(|(_, v)| discard_nulls(v));
        }
        Value::Array(list) => list.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}
