//! Objects as server-side apply sees them: granular or atomic maps, lists that are atomic, sets, or keyed. Which fields an
//! object has, how two objects differ, how one is merged into another, and what is left when fields are taken away.

mod compare;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::set::{Set, display, field, keys};
use crate::types::{Field, ListType, Shape, TypeId, Types};

/// What is known of a value's type.
#[derive(Clone, Copy)]
pub(super) enum Ref<'t> {
    Type(TypeId),
    /// The value of a field, whose markers go before those of its type.
    Field(&'t Field),
    /// Nothing; lists are atomic, maps granular.
    Deduced,
    /// Nothing; lists and maps are atomic.
    Atomic,
}

/// How a value is owned.
enum Atom<'t> {
    Scalar,
    List { element: Ref<'t>, list: Keyed<'t> },
    Map { owner: Option<TypeId>, element: Option<Ref<'t>>, atomic: bool },
}

enum Keyed<'t> {
    Atomic,
    Set,
    By(&'t [crate::types::Str]),
}

/// The fields that the second object has and the first has not, the other way round, and those that differ.
#[derive(Default)]
pub(super) struct Comparison {
    pub added: Set,
    pub removed: Set,
    pub modified: Set,
}

impl Comparison {
    /// Without the ignored fields and what lies below them.
    pub fn without(mut self, ignored: &Set) -> Self {
        for set in [&mut self.added, &mut self.removed, &mut self.modified] {
            *set = set.recursive_difference(ignored);
        }
        self
    }
}

/// A value present, and not null.
fn filled(value: Option<&Value>) -> Option<&Value> {
    value.filter(|v| !v.is_null())
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_bare(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) | None => true,
    }
}

#[derive(Clone, Copy)]
pub(super) struct Typed<'t> {
    pub types: &'t Types,
}

impl<'t> Typed<'t> {
    fn atom(self, place: Ref<'t>, value: Option<&Value>) -> Atom<'t> {
        let untyped = |deduced: bool| match filled(value) {
            Some(Value::Object(_)) => Atom::Map {
                owner: None,
                element: Some(if deduced { Ref::Deduced } else { Ref::Atomic }),
                atomic: !deduced,
            },
            Some(Value::Array(_)) => Atom::List { element: Ref::Atomic, list: Keyed::Atomic },
            _ => Atom::Scalar,
        };
        let (id, marks) = match place {
            Ref::Deduced => return untyped(true),
            Ref::Atomic => return untyped(false),
            Ref::Type(id) => (id, None),
            Ref::Field(field) => (field.ty, Some(field)),
        };
        let ty = self.types.get(id);
        let atomic = ty.atomic || marks.is_some_and(|f| f.map_atomic);
        match &ty.shape {
            Shape::Object(_) => {
                Atom::Map { owner: Some(id), element: ty.preserve_unknown.then_some(Ref::Deduced), atomic }
            }
            Shape::Map(element) => Atom::Map { owner: None, element: Some(Ref::Type(*element)), atomic },
            Shape::List(element) => {
                let list = match marks.and_then(|f| f.list) {
                    Some(ListType::Set) => Keyed::Set,
                    Some(ListType::Map) => Keyed::By(marks.map_or(&[], |f| &f.list_keys)),
                    Some(ListType::Atomic) | None => Keyed::Atomic,
                };
                Atom::List { element: Ref::Type(*element), list }
            }
            Shape::RawExtension | Shape::FieldsV1 => {
                Atom::Map { owner: None, element: Some(Ref::Deduced), atomic: false }
            }
            Shape::Any if ty.preserve_unknown => untyped(true),
            Shape::Any | Shape::Either(..) => untyped(false),
            _ => Atom::Scalar,
        }
    }

    fn member(self, owner: Option<TypeId>, element: Option<Ref<'t>>, key: &str) -> Option<Ref<'t>> {
        owner.and_then(|id| self.types.field(id, key)).map(Ref::Field).or(element)
    }

    /// The path element of a list's member.
    fn item(self, list: &Keyed<'_>, element: Ref<'t>, item: &Value) -> Result<String, String> {
        let Keyed::By(names) = list else {
            return match item {
                Value::Object(_) => {
                    Err("associative list without keys has an element that's a map type".to_owned())
                }
                Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                Value::Null => {
                    Err("associative list without keys has an element that's an explicit null".to_owned())
                }
                scalar => Ok(format!("v:{scalar}")),
            };
        };
        match item {
            Value::Object(_) => {}
            Value::Null => {
                return Err("associative list with keys may not have a null element".to_owned());
            }
            _ => return Err("associative list with keys may not have non-map elements".to_owned()),
        }
        let default = |name: &str| match element {
            Ref::Type(id) => self.types.field(id, name).and_then(|f| f.default.clone()),
            _ => None,
        };
        let found: Vec<(String, Value)> = names
            .iter()
            .filter_map(|name| {
                item.get(name.as_ref()).cloned().or_else(|| default(name)).map(|v| (name.to_string(), v))
            })
            .collect();
        if found.is_empty() {
            return Err(format!(
                "associative list with keys has an element that omits all key fields {names:?} (and doesn't have default values for any key fields)"
            ));
        }
        Ok(keys(found))
    }

    /// The fields that a value has.
    pub fn fields(self, place: Ref<'t>, value: &Value, path: &mut Vec<String>, out: &mut Set) {
        match self.atom(place, Some(value)) {
            Atom::Scalar | Atom::Map { atomic: true, .. } | Atom::List { list: Keyed::Atomic, .. } => {
                out.insert(path)
            }
            Atom::Map { owner, element, .. } => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    let declared = owner.is_some_and(|id| self.types.field(id, key).is_some());
                    path.push(field(key));
                    if let Some(place) = self.member(owner, element, key) {
                        self.fields(place, inner, path, out);
                    }
                    let bare = inner.is_null() || inner.as_object().is_some_and(Map::is_empty);
                    if bare || !declared {
                        out.insert(path);
                    }
                    path.pop();
                }
            }
            Atom::List { element, list } => {
                let mut seen = BTreeMap::new();
                for item in items(Some(value)) {
                    if let Ok(name) = self.item(&list, element, item) {
                        seen.entry(name).and_modify(|n| *n += 1).or_insert(1);
                    }
                }
                for item in items(Some(value)) {
                    let Ok(name) = self.item(&list, element, item) else { continue };
                    let once = seen.get(&name) == Some(&1);
                    path.push(name);
                    if once {
                        self.fields(element, item, path, out);
                    }
                    out.insert(path);
                    path.pop();
                }
            }
        }
    }

    /// The value with `config` merged in.
    pub fn merge(self, place: Ref<'t>, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
        let keep = || config.or(live).cloned();
        let atom = self.atom(place, filled(config).or(live));
        match atom {
            Atom::Scalar | Atom::Map { atomic: true, .. } | Atom::List { list: Keyed::Atomic, .. } => keep(),
            _ if is_bare(live) && is_bare(config) => keep(),
            Atom::Map { owner, element, .. } => {
                let empty = Map::new();
                let object =
                    |v: Option<&'_ Value>| v.and_then(Value::as_object).cloned().unwrap_or(empty.clone());
                let (live, config) = (object(live), object(config));
                let mut out = Map::new();
                let names: BTreeSet<&String> = live.keys().chain(config.keys()).collect();
                for name in names {
                    let place = self.member(owner, element, name).unwrap_or(Ref::Atomic);
                    if let Some(value) = self.merge(place, live.get(name), config.get(name)) {
                        out.insert(name.clone(), value);
                    }
                }
                (!out.is_empty()).then_some(Value::Object(out))
            }
            Atom::List { element, list } => {
                let out = self.merge_list(&list, element, items(live), items(config));
                (!out.is_empty()).then_some(Value::Array(out))
            }
        }
    }

    /// Both orders are kept where they agree; the configuration's goes before the live one's.
    fn merge_list(self, list: &Keyed<'_>, element: Ref<'t>, live: &[Value], config: &[Value]) -> Vec<Value> {
        let name = |item: &Value| self.item(list, element, item).unwrap_or_default();
        let left: Vec<String> = live.iter().map(name).collect();
        let right: Vec<String> = config.iter().map(name).collect();
        let mut lefts: BTreeMap<&str, Option<&Value>> = BTreeMap::new();
        for (name, item) in left.iter().zip(live) {
            // Several of one name are not merged with the new value.
            lefts.entry(name).and_modify(|v| *v = None).or_insert(Some(item));
        }
        let rights: BTreeMap<&str, &Value> = right.iter().map(String::as_str).zip(config).collect();
        let mut shared = right.iter().filter(|n| lefts.contains_key(n.as_str()));
        let mut next = shared.next();
        let mut merged: BTreeSet<&str> = BTreeSet::new();
        let mut out = Vec::new();
        let both = |name: &str| {
            let live = lefts.get(name).map(|v| v.unwrap_or(&Value::Null));
            self.merge(element, live, rights.get(name).copied())
        };
        let (mut l, mut r) = (0, 0);
        while l < left.len() || r < right.len() {
            if l < left.len() && r < right.len() {
                if left[l] == right[r] {
                    merged.insert(&left[l]);
                    out.extend(both(&left[l]));
                    l += 1;
                    r += 1;
                    next = shared.next();
                    continue;
                }
                if rights.contains_key(left[l].as_str()) && next.is_some_and(|n| *n != left[l]) {
                    l += 1;
                    continue;
                }
            }
            if l < left.len() {
                if !rights.contains_key(left[l].as_str()) {
                    out.extend(self.merge(element, Some(&live[l]), None));
                    l += 1;
                    continue;
                }
                if merged.contains(left[l].as_str()) {
                    l += 1;
                }
            }
            if r < right.len() {
                merged.insert(&right[r]);
                out.extend(both(&right[r]));
                if next.is_some_and(|n| *n == right[r]) {
                    next = shared.next();
                }
                r += 1;
            }
        }
        out
    }

    /// The value without the fields of a set; null if nothing is left.
    pub fn remove(self, place: Ref<'t>, value: &Value, gone: &Set) -> Value {
        let keep_form = |old: &Value, new: Value| match (old, new) {
            (Value::Object(_), Value::Null) => Value::Object(Map::new()),
            (Value::Array(_), Value::Null) => Value::Array(Vec::new()),
            (_, new) => new,
        };
        match self.atom(place, Some(value)) {
            Atom::Scalar => value.clone(),
            Atom::Map { atomic: true, .. } | Atom::List { list: Keyed::Atomic, .. } => Value::Null,
            Atom::Map { owner, element, .. } => {
                let mut out = Map::new();
                let mut matched = false;
                for (key, inner) in value.as_object().into_iter().flatten() {
                    let name = field(key);
                    if gone.has_member(&name) {
                        continue;
                    }
                    let left = match (gone.child(&name), self.member(owner, element, key)) {
                        (Some(below), Some(place)) => {
                            matched = true;
                            keep_form(inner, self.remove(place, inner, below))
                        }
                        _ => inner.clone(),
                    };
                    out.insert(key.clone(), left);
                }
                if out.is_empty() && !matched { Value::Null } else { Value::Object(out) }
            }
            Atom::List { element, list } => {
                let mut out = Vec::new();
                let mut matched = false;
                for item in items(Some(value)) {
                    let name = self.item(&list, element, item).unwrap_or_default();
                    if gone.has_member(&name) {
                        continue;
                    }
                    out.push(match gone.child(&name) {
                        Some(below) => {
                            matched = true;
                            keep_form(item, self.remove(element, item, below))
                        }
                        None => item.clone(),
                    });
                }
                if out.is_empty() && !matched { Value::Null } else { Value::Array(out) }
            }
        }
    }

    /// Adds the declared fields that lead to the paths of a set.
    pub fn with_named(self, id: TypeId, set: &Set) -> Set {
        let owner = |place: Ref<'t>| match place {
            Ref::Type(id) => Some(id),
            Ref::Field(field) => Some(field.ty),
            _ => None,
        };
        let named = |place: Ref<'t>, element: &str| {
            let name = element.strip_prefix("f:");
            let id = owner(place);
            id.zip(name).is_some_and(|(id, name)| self.types.field(id, name).is_some())
        };
        set.with_named(Ref::Type(id), &named, &|place, element| self.below(place, element))
    }

    /// What is known of the value behind a path element.
    fn below(self, place: Ref<'t>, element: &str) -> Ref<'t> {
        let id = match place {
            Ref::Type(id) => id,
            Ref::Field(field) => field.ty,
            _ => return Ref::Deduced,
        };
        let field = element.strip_prefix("f:").and_then(|name| self.types.field(id, name));
        match field {
            Some(field) => Ref::Field(field),
            None => self.types.element(id).map_or(Ref::Deduced, Ref::Type),
        }
    }

    /// A set of paths after the types have changed: values that are atomic now are owned as a whole.
    pub fn reconcile(self, id: TypeId, set: &Set) -> Set {
        let whole = |place: Ref<'t>| {
            matches!(
                self.atom(place, None),
                Atom::Map { atomic: true, .. } | Atom::List { list: Keyed::Atomic, .. }
            )
        };
        set.reconcile(Ref::Type(id), &whole, &|place, element| self.below(place, element))
    }

    /// What is wrong with an applied configuration.
    pub fn validate(self, place: Ref<'t>, value: &Value, path: &mut Vec<String>, errors: &mut Vec<String>) {
        if value.is_null() {
            return;
        }
        let fail = |path: &[String], text: String, errors: &mut Vec<String>| {
            let at = display(path);
            errors.push(if at.is_empty() { text } else { format!("{at}: {text}") });
        };
        match self.atom(place, Some(value)) {
            Atom::Scalar => {
                if let Err(text) = self.scalar(place, value) {
                    fail(path, text, errors);
                }
            }
            Atom::Map { owner, element, .. } => {
                let Some(map) = value.as_object() else {
                    return fail(path, format!("expected map, got &{{{}}}", plain(value)), errors);
                };
                for (key, inner) in map {
                    path.push(field(key));
                    match self.member(owner, element, key) {
                        Some(place) => self.validate(place, inner, path, errors),
                        None => fail(path, "field not declared in schema".to_owned(), errors),
                    }
                    path.pop();
                }
            }
            Atom::List { element, list } => {
                let Some(list_items) = value.as_array() else {
                    return fail(path, format!("expected list, got &{{{}}}", plain(value)), errors);
                };
                let mut seen = BTreeSet::new();
                for (index, item) in list_items.iter().enumerate() {
                    let name = match list {
                        Keyed::Atomic => format!("i:{index}"),
                        _ => match self.item(&list, element, item) {
                            Ok(name) => name,
                            Err(text) => return fail(path, format!("element {index}: {text}"), errors),
                        },
                    };
                    if !seen.insert(name.clone()) {
                        let shown = display(std::slice::from_ref(&name));
                        fail(path, format!("duplicate entries for key {shown}"), errors);
                    }
                    path.push(name);
                    self.validate(element, item, path, errors);
                    path.pop();
                }
            }
        }
    }

    /// The paths of the lists and maps in a value that are owned as a whole.
    pub fn atomics(self, place: Ref<'t>, value: &Value, path: &str, out: &mut Vec<String>) {
        match (self.atom(place, Some(value)), value) {
            (Atom::Map { owner, atomic, .. }, Value::Object(map)) => {
                if atomic {
                    out.push(path.to_owned());
                }
                for (key, inner) in map {
                    if let Some(place) = self.member(owner, None, key) {
                        self.atomics(place, inner, &format!("{path}.{key}"), out);
                    }
                }
            }
            (Atom::List { element, list }, Value::Array(items)) => {
                if matches!(list, Keyed::Atomic) {
                    out.push(path.to_owned());
                }
                for (index, inner) in items.iter().enumerate() {
                    self.atomics(element, inner, &format!("{path}[{index}]"), out);
                }
            }
            _ => {}
        }
    }

    fn scalar(self, place: Ref<'t>, value: &Value) -> Result<(), String> {
        let id = match place {
            Ref::Type(id) => id,
            Ref::Field(field) => field.ty,
            _ => return Ok(()),
        };
        let (wanted, ok) = match self.types.shape(id) {
            Shape::String | Shape::Bytes => ("string", value.is_string()),
            Shape::Bool => ("boolean", value.is_boolean()),
            Shape::Int32 | Shape::Int64 | Shape::Double => ("numeric (int or float)", value.is_number()),
            _ => ("any scalar", !value.is_object() && !value.is_array()),
        };
        if ok { Ok(()) } else { Err(format!("expected {wanted}, got {}", shown(value, wanted))) }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A value, or for numbers its Go type, as upstream's messages have it.
fn shown(value: &Value, wanted: &str) -> String {
    if !wanted.starts_with("numeric") {
        return format!("&value.valueUnstructured{{Value:{value}}}");
    }
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Array(_) => "[]interface {}",
        _ => "map[string]interface {}",
    }
    .to_owned()
}
