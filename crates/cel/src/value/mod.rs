//! The values that expressions work on. JSON is wrapped, not copied: a list or map of JSON makes the values of its
//! elements when they are asked for.

mod equal;
mod json;
mod list;
mod map;
pub(crate) mod time;

use std::any::Any;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

pub(crate) use self::equal::equal;
pub(crate) use self::json::wrap;
pub use self::list::List;
pub use self::map::{Key, Map};
pub use self::time::Timestamp;
use crate::error::EvalError;
use crate::types::Type;

/// A value; it borrows the JSON it was made of.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    /// In nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    /// An object of a declared type that the expression made.
    Struct(Arc<Struct<'a>>),
    Type(Type),
    Optional(Option<Arc<Value<'a>>>),
    /// A value of a library.
    Object(Arc<dyn Object>),
    /// A variable whose fields are evaluated when they are asked for; see [`crate::Activation::lazy`].
    Lazy(Arc<str>),
    /// JSON without a schema inside JSON with one; it can only be compared.
    Preserved(&'a serde_json::Value),
}

/// An object that the expression made, `Type{field: value}`.
#[derive(Clone, Debug)]
pub struct Struct<'a> {
    pub name: Arc<str>,
    /// In the order of the expression; names as in JSON.
    pub fields: indexmap::IndexMap<Arc<str>, Value<'a>>,
}

/// A value of a library: a quantity, an IP address, an authorizer.
pub trait Object: fmt::Debug + Send + Sync + 'static {
    fn type_of(&self) -> Type;
    fn equals(&self, other: &dyn Object) -> bool;
    fn as_any(&self) -> &dyn Any;
    /// How long it is, where it counts for the cost of functions on it.
    fn size(&self) -> Option<u64> {
        None
    }
}

/// A string, borrowed from JSON or shared.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text<'_> {}

impl std::hash::Hash for Text<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<'a> Value<'a> {
    /// JSON without a schema: whole numbers are `int`, others `double`.
    pub fn json(value: &'a serde_json::Value) -> Self {
        // Without a schema nothing can disagree with it.
        wrap(value, None).unwrap_or(Self::Null)
    }

    /// JSON with its schema: formats make durations, timestamps and bytes; lists compare by their list type.
    ///
    /// # Errors
    /// If the value is not of the schema's type; `object` and `array` are looked into only on access.
    pub fn typed(value: &'a serde_json::Value, decl: &'a crate::Decl) -> Result<Self, EvalError> {
        wrap(value, Some(decl))
    }

    pub fn string(text: impl AsRef<str>) -> Self {
        Self::String(Text::Shared(text.as_ref().into()))
    }

    /// A list of these elements.
    pub fn list(elements: Vec<Value<'a>>) -> Self {
        Self::List(List::owned(elements))
    }

    /// A map of these entries.
    pub fn map(entries: impl IntoIterator<Item = (Key<'a>, Value<'a>)>) -> Self {
        Self::Map(Map::Owned(Arc::new(entries.into_iter().collect())))
    }

    /// A map of these entries in which every other key leads to `other`.
    pub fn defaulting(entries: impl IntoIterator<Item = (Key<'a>, Value<'a>)>, other: Value<'a>) -> Self {
        Self::Map(Map::Defaulting(Arc::new(entries.into_iter().collect()), Arc::new(other)))
    }

    /// An amount, as the function `quantity` makes it.
    ///
    /// # Errors
    /// If the text is none.
    pub fn quantity(text: &str) -> Result<Self, EvalError> {
        crate::library::versions::quantity(text)
    }

    /// A semantic version, as the function `semver` makes it.
    ///
    /// # Errors
    /// If the text is none.
    pub fn semver(text: &str) -> Result<Self, EvalError> {
        crate::library::versions::version_of(text)
    }

    pub fn object(object: impl Object) -> Self {
        Self::Object(Arc::new(object))
    }

    pub(crate) fn some(value: Value<'a>) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The library's value inside, if it is one of this kind.
    pub(crate) fn downcast<T: 'static>(&self) -> Option<&T> {
        match self {
            Self::Object(object) => object.as_any().downcast_ref(),
            _ => None,
        }
    }

    /// The type, with `dyn` for what its elements are.
    pub fn type_of(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::Duration(_) => Type::Duration,
            Self::Timestamp(_) => Type::Timestamp,
            Self::List(_) => Type::list(Type::Dyn),
            Self::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Self::Struct(one) => Type::Object(one.name.clone()),
            Self::Type(_) => Type::Type(None),
            Self::Optional(_) => Type::optional(Type::Dyn),
            Self::Object(object) => object.type_of(),
            Self::Lazy(name) => Type::Object(name.clone()),
            Self::Preserved(_) => Type::Dyn,
        }
    }

    /// Its length, as `size` tells it and costs count it.
    pub(crate) fn size(&self) -> Option<u64> {
        match self {
            Self::String(text) => Some(text.chars().count() as u64),
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::List(list) => Some(list.len() as u64),
            Self::Map(map) => Some(map.len() as u64),
            Self::Optional(Some(value)) => value.size(),
            Self::Object(object) => object.size(),
            _ => None,
        }
    }

    /// As JSON: timestamps, durations and bytes become their texts, optional values their content or null.
    ///
    /// # Errors
    /// For values that have no JSON: types, and numbers that are not finite.
    pub fn to_json(&self) -> Result<serde_json::Value, EvalError> {
        json::unwrap(self)
    }
}

/// The order of two values of one kind, numbers across kinds.
pub(crate) fn compare(left: &Value<'_>, right: &Value<'_>) -> Result<Ordering, EvalError> {
    let order = match (left, right) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
        (Value::Timestamp(a), Value::Timestamp(b)) => a.instant().cmp(&b.instant()),
        _ => return numbers(left, right).ok_or_else(EvalError::no_such_overload)?,
    };
    Ok(order)
}

/// The order of two numbers of any kinds; `None` if one is no number.
pub(crate) fn numbers(left: &Value<'_>, right: &Value<'_>) -> Option<Result<Ordering, EvalError>> {
    let nan = || EvalError::new("NaN values cannot be ordered");
    Some(Ok(match (left, right) {
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Uint(a), Value::Uint(b)) => a.cmp(b),
        (Value::Int(a), Value::Uint(b)) => i128::from(*a).cmp(&i128::from(*b)),
        (Value::Uint(a), Value::Int(b)) => i128::from(*a).cmp(&i128::from(*b)),
        (Value::Double(a), Value::Double(b)) => return Some(a.partial_cmp(b).ok_or_else(nan)),
        (Value::Double(a), Value::Int(b)) => return Some(double_int(*a, *b).ok_or_else(nan)),
        (Value::Int(a), Value::Double(b)) => {
            return Some(double_int(*b, *a).map(Ordering::reverse).ok_or_else(nan));
        }
        (Value::Double(a), Value::Uint(b)) => return Some(double_uint(*a, *b).ok_or_else(nan)),
        (Value::Uint(a), Value::Double(b)) => {
            return Some(double_uint(*b, *a).map(Ordering::reverse).ok_or_else(nan));
        }
        _ => return None,
    }))
}

fn double_int(a: f64, b: i64) -> Option<Ordering> {
    if a < i64::MIN as f64 {
        return Some(Ordering::Less);
    }
    if a > i64::MAX as f64 {
        return Some(Ordering::Greater);
    }
    a.partial_cmp(&(b as f64))
}

fn double_uint(a: f64, b: u64) -> Option<Ordering> {
    if a < 0.0 {
        return Some(Ordering::Less);
    }
    if a > u64::MAX as f64 {
        return Some(Ordering::Greater);
    }
    a.partial_cmp(&(b as f64))
}
