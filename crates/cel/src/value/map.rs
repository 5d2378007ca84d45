//! Maps: of values, or JSON objects.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use indexmap::IndexMap;

use super::{Text, Value, wrap};
use crate::decl::Decl;
use crate::error::EvalError;

/// A map. An object of a schema is a map by its fields' names in expressions.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    Owned(Arc<IndexMap<Key<'a>, Value<'a>>>),
    Json(&'a serde_json::Map<String, serde_json::Value>, Option<&'a Decl>),
    /// Entries, and what every other key leads to (`in` does not find those).
    Defaulting(Arc<IndexMap<Key<'a>, Value<'a>>>, Arc<Value<'a>>),
}

/// A key; numbers are equal across their kinds.
#[derive(Clone, Debug)]
pub enum Key<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
}

impl<'a> Key<'a> {
    /// The key that a value stands for.
    ///
    /// # Errors
    /// If values of its type are no keys.
    pub fn of(value: &Value<'a>) -> Result<Self, EvalError> {
        Ok(match value {
            Value::Bool(value) => Self::Bool(*value),
            Value::Int(value) => Self::Int(*value),
            Value::Uint(value) => Self::Uint(*value),
            Value::Double(value) => Self::Double(*value),
            Value::String(text) => Self::String(text.clone()),
            other => return Err(EvalError::new(format!("unsupported key type: {}", other.type_of().name()))),
        })
    }

    /// The key as a value.
    pub fn value(&self) -> Value<'a> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Uint(value) => Value::Uint(*value),
            Self::Double(value) => Value::Double(*value),
            Self::String(text) => Value::String(text.clone()),
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The whole number it is.
    pub(crate) fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some((*value).into()),
            Self::Uint(value) => Some((*value).into()),
            // Within these bounds the conversion is exact.
            Self::Double(value) if value.fract() == 0.0 && value.abs() < 1e19 => Some(*value as i128),
            _ => None,
        }
    }
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Uint(value) => write!(f, "{value}"),
            Self::Double(value) => write!(f, "{value}"),
            Self::String(text) => f.write_str(text),
        }
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::String(a), Self::String(b)) => a == b,
            (Self::Double(a), Self::Double(b)) => a == b,
            _ => self.whole().is_some_and(|whole| other.whole() == Some(whole)),
        }
    }
}

impl Eq for Key<'_> {}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match (self, self.whole()) {
            (_, Some(whole)) => whole.hash(state),
            (Self::Bool(value), _) => value.hash(state),
            (Self::String(text), _) => text.hash(state),
            (Self::Double(value), _) => value.to_bits().hash(state),
            _ => {}
        }
    }
}

impl<'a> Map<'a> {
    /// How many entries it has.
    pub fn len(&self) -> usize {
        match self {
            Self::Owned(entries) | Self::Defaulting(entries, _) => entries.len(),
            Self::Json(entries, _) => entries.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_typed(&self) -> bool {
        matches!(self, Self::Json(_, Some(_)))
    }

    /// The value of a key, if there is one. Nulls of an object's fields count as absent.
    pub fn get(&self, key: &Key<'a>) -> Option<Result<Value<'a>, EvalError>> {
        match self {
            Self::Owned(entries) => entries.get(key).cloned().map(Ok),
            Self::Defaulting(entries, other) => Some(Ok(entries.get(key).unwrap_or(other).clone())),
            Self::Json(entries, None) => entries.get(key.text()?).map(|one| wrap(one, None)),
            Self::Json(entries, Some(decl)) => {
                let Some(text) = key.text() else { return Some(Err(EvalError::no_such_overload())) };
                let (name, of) = decl.entry(text)?;
                let value = entries.get(name.unwrap_or(text))?;
                (!(decl.has_fields() && value.is_null())).then(|| wrap(value, Some(of)))
            }
        }
    }

    /// Whether the key is one of the map's own.
    ///
    /// # Errors
    /// If the map cannot have keys of its type.
    pub(crate) fn has(&self, key: &Key<'a>) -> Result<bool, EvalError> {
        match self {
            Self::Defaulting(entries, _) => Ok(entries.contains_key(key)),
            _ => Ok(self.get(key).transpose()?.is_some()),
        }
    }

    /// The value of a JSON name, whatever the name is in expressions.
    pub(crate) fn by_name(&self, name: &str) -> Option<Result<Value<'a>, EvalError>> {
        match self {
            Self::Owned(entries) | Self::Defaulting(entries, _) => {
                entries.iter().find(|(key, _)| key.text() == Some(name)).map(|(_, value)| Ok(value.clone()))
            }
            Self::Json(entries, decl) => {
                let of = match decl {
                    None => None,
                    Some(decl) => Some(decl.entry_by_name(name)?),
                };
                entries.get(name).map(|one| wrap(one, of))
            }
        }
    }

    /// The keys: insertion order, or JSON's.
    pub fn keys(&self) -> Vec<Key<'a>> {
        match self {
            Self::Owned(entries) | Self::Defaulting(entries, _) => entries.keys().cloned().collect(),
            Self::Json(entries, None) => {
                entries.keys().map(|name| Key::String(Text::Borrowed(name))).collect()
            }
            Self::Json(entries, Some(decl)) => {
                let keys = entries.keys().filter(|name| decl.entry_by_name(name).is_some());
                keys.map(|name| match decl.has_fields().then(|| crate::escape::escape(name)).flatten() {
                    Some(escaped) if escaped != *name => Key::String(Text::Shared(escaped.into())),
                    _ => Key::String(Text::Borrowed(name)),
                })
                .collect()
            }
        }
    }

    /// Adds an entry, in place where nobody else holds the map.
    ///
    /// # Errors
    /// If the key is there already.
    pub(crate) fn insert(&mut self, key: Key<'a>, value: Value<'a>) -> Result<(), EvalError> {
        if self.has(&key)? {
            return Err(EvalError::new(format!("insert failed: key {key} already exists")));
        }
        if !matches!(self, Self::Owned(_)) {
            let mut entries = IndexMap::new();
            for key in self.keys() {
                if let Some(value) = self.get(&key) {
                    entries.insert(key, value?);
                }
            }
            *self = Self::Owned(Arc::new(entries));
        }
        if let Self::Owned(entries) = self {
            Arc::make_mut(entries).insert(key, value);
        }
        Ok(())
    }
}
