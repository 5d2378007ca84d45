//! The functions of the language and of Kubernetes' libraries.

pub(crate) mod authz;
pub(crate) mod format;
pub(crate) mod lists;
mod named;
mod net;
mod standard;
mod strings;
mod times;
mod urls;
pub(crate) mod versions;

pub(crate) use self::named::find_all;
use crate::error::EvalError;
use crate::functions::Def;
use crate::types::Type;
use crate::value::{List, Text, Value};

/// Every declaration of a function.
pub(crate) fn all() -> impl Iterator<Item = &'static Def> {
    [
        standard::FUNCTIONS,
        times::FUNCTIONS,
        strings::FUNCTIONS,
        format::FUNCTIONS,
        lists::FUNCTIONS,
        named::FUNCTIONS,
        net::FUNCTIONS,
        urls::FUNCTIONS,
        versions::FUNCTIONS,
        authz::FUNCTIONS,
    ]
    .into_iter()
    .flatten()
}

/// The library's type of a name.
pub(crate) fn named_type(name: &str) -> Option<Type> {
    match name {
        net::IP | net::CIDR => Some(Type::opaque(name)),
        _ => None,
    }
}

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// The string that a function asks for.
fn text<'v, 'a>(value: Option<&'v Value<'a>>) -> std::result::Result<&'v Text<'a>, EvalError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn int(value: Option<&Value<'_>>) -> std::result::Result<i64, EvalError> {
    match value {
        Some(Value::Int(value)) => Ok(*value),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn list<'v, 'a>(value: Option<&'v Value<'a>>) -> std::result::Result<&'v List<'a>, EvalError> {
    match value {
        Some(Value::List(list)) => Ok(list),
        _ => Err(EvalError::no_such_overload()),
    }
}
