//! The standard library: operators, sizes, conversions, and tests of strings; and optional values.

use std::cmp::Ordering;

use super::{Result, text};
use crate::error::EvalError;
use crate::eval::ordered;
use crate::functions::Def;
use crate::types::Type;
use crate::value::{Key, List, Timestamp, Value, equal, time};

pub(super) const FUNCTIONS: &[Def] = &[
    Def("_?_:_", &["conditional: (bool, A, A) -> A"], unbound),
    Def("_&&_", &["logical_and: (bool, bool) -> bool"], unbound),
    Def("_||_", &["logical_or: (bool, bool) -> bool"], unbound),
    Def("!_", &["logical_not: (bool) -> bool"], not),
    Def("@not_strictly_false", &["not_strictly_false: (bool) -> bool"], unbound),
    Def("_==_", &["equals: (A, A) -> bool"], unbound),
    Def("_!=_", &["not_equals: (A, A) -> bool"], unbound),
    Def(
        "_+_",
        &[
            "add_bytes: (bytes, bytes) -> bytes",
            "add_double: (double, double) -> double",
            "add_duration_duration: (duration, duration) -> duration",
            "add_duration_timestamp: (duration, timestamp) -> timestamp",
            "add_timestamp_duration: (timestamp, duration) -> timestamp",
            "add_int64: (int, int) -> int",
            "add_list: (list(A), list(A)) -> list(A)",
            "add_string: (string, string) -> string",
            "add_uint64: (uint, uint) -> uint",
        ],
        add,
    ),
    Def(
        "_/_",
        &[
            "divide_double: (double, double) -> double",
            "divide_int64: (int, int) -> int",
            "divide_uint64: (uint, uint) -> uint",
        ],
        divide,
    ),
    Def("_%_", &["modulo_int64: (int, int) -> int", "modulo_uint64: (uint, uint) -> uint"], modulo),
    Def(
        "_*_",
        &[
            "multiply_double: (double, double) -> double",
            "multiply_int64: (int, int) -> int",
            "multiply_uint64: (uint, uint) -> uint",
        ],
        multiply,
    ),
    Def("-_", &["negate_double: (double) -> double", "negate_int64: (int) -> int"], negate),
    Def(
        "_-_",
        &[
            "subtract_double: (double, double) -> double",
            "subtract_duration_duration: (duration, duration) -> duration",
            "subtract_int64: (int, int) -> int",
            "subtract_timestamp_duration: (timestamp, duration) -> timestamp",
            "subtract_timestamp_timestamp: (timestamp, timestamp) -> duration",
            "subtract_uint64: (uint, uint) -> uint",
        ],
        subtract,
    ),
    Def(
        "_<_",
        &[
            "less_bool: (bool, bool) -> bool",
            "less_int64: (int, int) -> bool",
            "less_int64_double: (int, double) -> bool",
            "less_int64_uint64: (int, uint) -> bool",
            "less_uint64: (uint, uint) -> bool",
            "less_uint64_double: (uint, double) -> bool",
            "less_uint64_int64: (uint, int) -> bool",
            "less_double: (double, double) -> bool",
            "less_double_int64: (double, int) -> bool",
            "less_double_uint64: (double, uint) -> bool",
            "less_string: (string, string) -> bool",
            "less_bytes: (bytes, bytes) -> bool",
            "less_timestamp: (timestamp, timestamp) -> bool",
            "less_duration: (duration, duration) -> bool",
        ],
        |args| order(args, &[Ordering::Less]),
    ),
    Def(
        "_<=_",
        &[
            "less_equals_bool: (bool, bool) -> bool",
            "less_equals_int64: (int, int) -> bool",
            "less_equals_int64_double: (int, double) -> bool",
            "less_equals_int64_uint64: (int, uint) -> bool",
            "less_equals_uint64: (uint, uint) -> bool",
            "less_equals_uint64_double: (uint, double) -> bool",
            "less_equals_uint64_int64: (uint, int) -> bool",
            "less_equals_double: (double, double) -> bool",
            "less_equals_double_int64: (double, int) -> bool",
            "less_equals_double_uint64: (double, uint) -> bool",
            "less_equals_string: (string, string) -> bool",
            "less_equals_bytes: (bytes, bytes) -> bool",
            "less_equals_timestamp: (timestamp, timestamp) -> bool",
            "less_equals_duration: (duration, duration) -> bool",
        ],
        |args| order(args, &[Ordering::Less, Ordering::Equal]),
    ),
    Def(
        "_>_",
        &[
            "greater_bool: (bool, bool) -> bool",
            "greater_int64: (int, int) -> bool",
            "greater_int64_double: (int, double) -> bool",
            "greater_int64_uint64: (int, uint) -> bool",
            "greater_uint64: (uint, uint) -> bool",
            "greater_uint64_double: (uint, double) -> bool",
            "greater_uint64_int64: (uint, int) -> bool",
            "greater_double: (double, double) -> bool",
            "greater_double_int64: (double, int) -> bool",
            "greater_double_uint64: (double, uint) -> bool",
            "greater_string: (string, string) -> bool",
            "greater_bytes: (bytes, bytes) -> bool",
            "greater_timestamp: (timestamp, timestamp) -> bool",
            "greater_duration: (duration, duration) -> bool",
        ],
        |args| order(args, &[Ordering::Greater]),
    ),
    Def(
        "_>=_",
        &[
            "greater_equals_bool: (bool, bool) -> bool",
            "greater_equals_int64: (int, int) -> bool",
            "greater_equals_int64_double: (int, double) -> bool",
            "greater_equals_int64_uint64: (int, uint) -> bool",
            "greater_equals_uint64: (uint, uint) -> bool",
            "greater_equals_uint64_double: (uint, double) -> bool",
            "greater_equals_uint64_int64: (uint, int) -> bool",
            "greater_equals_double: (double, double) -> bool",
            "greater_equals_double_int64: (double, int) -> bool",
            "greater_equals_double_uint64: (double, uint) -> bool",
            "greater_equals_string: (string, string) -> bool",
            "greater_equals_bytes: (bytes, bytes) -> bool",
            "greater_equals_timestamp: (timestamp, timestamp) -> bool",
            "greater_equals_duration: (duration, duration) -> bool",
        ],
        |args| order(args, &[Ordering::Greater, Ordering::Equal]),
    ),
    Def(
        "_[_]",
        &[
            "index_list: (list(A), int) -> A",
            "index_map: (map(A, B), A) -> B",
            "optional_list_index_int: (optional(list(V)), int) -> optional(V)",
            "optional_map_index_value: (optional(map(K, V)), K) -> optional(V)",
        ],
        unbound,
    ),
    Def(
        "_[?_]",
        &[
            "list_optindex_optional_int: (list(V), int) -> optional(V)",
            "optional_list_optindex_optional_int: (optional(list(V)), int) -> optional(V)",
            "map_optindex_optional_value: (map(K, V), K) -> optional(V)",
            "optional_map_optindex_optional_value: (optional(map(K, V)), K) -> optional(V)",
        ],
        unbound,
    ),
    Def("@in", &["in_list: (A, list(A)) -> bool", "in_map: (A, map(A, B)) -> bool"], contained),
    Def(
        "size",
        &[
            "size_bytes: (bytes) -> int",
            "bytes_size: bytes.() -> int",
            "size_list: (list(A)) -> int",
            "list_size: list(A).() -> int",
            "size_map: (map(A, B)) -> int",
            "map_size: map(A, B).() -> int",
            "size_string: (string) -> int",
            "string_size: string.() -> int",
        ],
        size,
    ),
    Def("type", &["type: (A) -> type(A)"], |args| Ok(Value::Type(args[0].type_of()))),
    Def("dyn", &["to_dyn: (A) -> dyn"], |args| Ok(args[0].clone())),
    Def("bool", &["bool_to_bool: (bool) -> bool", "string_to_bool: (string) -> bool"], to_bool),
    Def("bytes", &["bytes_to_bytes: (bytes) -> bytes", "string_to_bytes: (string) -> bytes"], to_bytes),
    Def(
        "double",
        &[
            "double_to_double: (double) -> double",
            "int64_to_double: (int) -> double",
            "string_to_double: (string) -> double",
            "uint64_to_double: (uint) -> double",
        ],
        to_double,
    ),
    Def(
        "duration",
        &[
            "duration_to_duration: (duration) -> duration",
            "int64_to_duration: (int) -> duration",
            "string_to_duration: (string) -> duration",
        ],
        to_duration,
    ),
    Def(
        "int",
        &[
            "int64_to_int64: (int) -> int",
            "double_to_int64: (double) -> int",
            "duration_to_int64: (duration) -> int",
            "string_to_int64: (string) -> int",
            "timestamp_to_int64: (timestamp) -> int",
            "uint64_to_int64: (uint) -> int",
        ],
        to_int,
    ),
    Def(
        "string",
        &[
            "string_to_string: (string) -> string",
            "bool_to_string: (bool) -> string",
            "bytes_to_string: (bytes) -> string",
            "double_to_string: (double) -> string",
            "duration_to_string: (duration) -> string",
            "int64_to_string: (int) -> string",
            "timestamp_to_string: (timestamp) -> string",
            "uint64_to_string: (uint) -> string",
        ],
        to_string,
    ),
    Def(
        "timestamp",
        &[
            "timestamp_to_timestamp: (timestamp) -> timestamp",
            "int64_to_timestamp: (int) -> timestamp",
            "string_to_timestamp: (string) -> timestamp",
        ],
        to_timestamp,
    ),
    Def(
        "uint",
        &[
            "uint64_to_uint64: (uint) -> uint",
            "double_to_uint64: (double) -> uint",
            "int64_to_uint64: (int) -> uint",
            "string_to_uint64: (string) -> uint",
        ],
        to_uint,
    ),
    Def("contains", &["contains_string: string.(string) -> bool"], |args| {
        Ok(Value::Bool(text(args.first())?.contains(&**text(args.get(1))?)))
    }),
    Def("endsWith", &["ends_with_string: string.(string) -> bool"], |args| {
        Ok(Value::Bool(text(args.first())?.ends_with(&**text(args.get(1))?)))
    }),
    Def("startsWith", &["starts_with_string: string.(string) -> bool"], |args| {
        Ok(Value::Bool(text(args.first())?.starts_with(&**text(args.get(1))?)))
    }),
    Def(
        "matches",
        &["matches: (string, string) -> bool", "matches_string: string.(string) -> bool"],
        |args| {
            let pattern = crate::pattern::compile(text(args.get(1))?).map_err(EvalError::new)?;
            Ok(Value::Bool(pattern.is_match(text(args.first())?)))
        },
    ),
    Def(
        "cel.@mapInsert",
        &[
            "@mapInsert_map_key_value: (map(K, V), K, V) -> map(K, V)",
            "@mapInsert_map_map: (map(K, V), map(K, V)) -> map(K, V)",
        ],
        unbound,
    ),
    Def("optional.of", &["optional_of: (V) -> optional(V)"], |args| Ok(Value::some(args[0].clone()))),
    Def("optional.ofNonZeroValue", &["optional_ofNonZeroValue: (V) -> optional(V)"], |args| {
        Ok(if is_zero(&args[0]) { Value::Optional(None) } else { Value::some(args[0].clone()) })
    }),
    Def("optional.none", &["optional_none: () -> optional(V)"], |_| Ok(Value::Optional(None))),
    Def("value", &["optional_value: optional(V).() -> V"], |args| match &args[0] {
        Value::Optional(Some(value)) => Ok((**value).clone()),
        Value::Optional(None) => Err(EvalError::new("optional.none() dereference")),
        _ => Err(EvalError::no_such_overload()),
    }),
    Def("hasValue", &["optional_hasValue: optional(V).() -> bool"], |args| match &args[0] {
        Value::Optional(value) => Ok(Value::Bool(value.is_some())),
        _ => Err(EvalError::no_such_overload()),
    }),
    Def("or", &["optional_or_optional: optional(V).(optional(V)) -> optional(V)"], unbound),
    Def("orValue", &["optional_orValue_value: optional(V).(V) -> V"], unbound),
    Def("optional.unwrap", &["optional_unwrap: (list(optional(V))) -> list(V)"], unwrap),
    Def("unwrapOpt", &["optional_unwrapOpt: list(optional(V)).() -> list(V)"], unwrap),
];

/// For functions that the evaluation knows itself.
fn unbound<'a>(_: &[Value<'a>]) -> Result<'a> {
    Err(EvalError::no_such_overload())
}

fn order<'a>(args: &[Value<'a>], wants: &[Ordering]) -> Result<'a> {
    ordered(&args[0], &args[1], wants).map(Value::Bool)
}

fn not<'a>(args: &[Value<'a>]) -> Result<'a> {
    args[0].as_bool().map(|value| Value::Bool(!value)).ok_or_else(EvalError::no_such_overload)
}

fn int_overflow() -> EvalError {
    EvalError::new("integer overflow")
}

fn uint_overflow() -> EvalError {
    EvalError::new("unsigned integer overflow")
}

fn duration_overflow() -> EvalError {
    // As the reference has it.
    EvalError::new("integer overflow")
}

fn add<'a>(args: &[Value<'a>]) -> Result<'a> {
    Ok(match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_add(*b).ok_or_else(uint_overflow)?),
        (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
        (Value::String(a), Value::String(b)) => Value::string([&**a, &**b].concat()),
        (Value::Bytes(a), Value::Bytes(b)) => Value::Bytes([&**a, &**b].concat().into()),
        (Value::List(a), Value::List(b)) => Value::List(a.concat(b)?),
        (Value::Duration(a), Value::Duration(b)) => {
            Value::Duration(a.checked_add(*b).ok_or_else(duration_overflow)?)
        }
        (Value::Timestamp(at), Value::Duration(nanos)) | (Value::Duration(nanos), Value::Timestamp(at)) => {
            Value::Timestamp(at.plus(*nanos)?)
        }
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn subtract<'a>(args: &[Value<'a>]) -> Result<'a> {
    Ok(match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_sub(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_sub(*b).ok_or_else(uint_overflow)?),
        (Value::Double(a), Value::Double(b)) => Value::Double(a - b),
        (Value::Duration(a), Value::Duration(b)) => {
            Value::Duration(a.checked_sub(*b).ok_or_else(duration_overflow)?)
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => Value::Duration(a.minus(b)?),
        (Value::Timestamp(at), Value::Duration(nanos)) => {
            Value::Timestamp(at.plus(nanos.checked_neg().ok_or_else(duration_overflow)?)?)
        }
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn multiply<'a>(args: &[Value<'a>]) -> Result<'a> {
    Ok(match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_mul(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_mul(*b).ok_or_else(uint_overflow)?),
        (Value::Double(a), Value::Double(b)) => Value::Double(a * b),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn divide<'a>(args: &[Value<'a>]) -> Result<'a> {
    let by_zero = || EvalError::new("division by zero");
    Ok(match (&args[0], &args[1]) {
        (Value::Int(_), Value::Int(0)) => return Err(by_zero()),
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_div(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_div(*b).ok_or_else(by_zero)?),
        (Value::Double(a), Value::Double(b)) => Value::Double(a / b),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn modulo<'a>(args: &[Value<'a>]) -> Result<'a> {
    let by_zero = || EvalError::new("modulus by zero");
    Ok(match (&args[0], &args[1]) {
        (Value::Int(_), Value::Int(0)) => return Err(by_zero()),
        (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_rem(*b).ok_or_else(int_overflow)?),
        (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_rem(*b).ok_or_else(by_zero)?),
        _ => return Err(EvalError::no_such_overload()),
    })
}

fn negate<'a>(args: &[Value<'a>]) -> Result<'a> {
    Ok(match &args[0] {
        Value::Int(value) => Value::Int(value.checked_neg().ok_or_else(int_overflow)?),
        Value::Double(value) => Value::Double(-value),
        Value::Duration(value) => Value::Duration(value.checked_neg().ok_or_else(duration_overflow)?),
        _ => return Err(EvalError::no_such_overload()),
    })
}

/// `value in list` or `key in map`.
fn contained<'a>(args: &[Value<'a>]) -> Result<'a> {
    match &args[1] {
        Value::List(list) => contains(list, &args[0]).map(Value::Bool),
        Value::Map(map) => match Key::of(&args[0]) {
            Ok(key) => map.has(&key).map(Value::Bool),
            Err(_) => Ok(Value::Bool(false)),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

/// Whether a list has an element equal to a value; an error only if no element is.
pub(super) fn contains(list: &List<'_>, value: &Value<'_>) -> std::result::Result<bool, EvalError> {
    let mut fault = None;
    for one in list.iter() {
        match one.and_then(|one| equal(&one, value)) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(why) => fault = fault.or(Some(why)),
        }
    }
    fault.map_or(Ok(false), Err)
}

fn size<'a>(args: &[Value<'a>]) -> Result<'a> {
    match &args[0] {
        Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => {
            Ok(Value::Int(args[0].size().and_then(|size| i64::try_from(size).ok()).unwrap_or(i64::MAX)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn conversion(value: &Value<'_>, to: &Type) -> EvalError {
    EvalError::new(format!("type conversion error from '{}' to '{}'", value.type_of().name(), to.name()))
}

fn to_bool<'a>(args: &[Value<'a>]) -> Result<'a> {
    match &args[0] {
        Value::Bool(value) => Ok(Value::Bool(*value)),
        Value::String(text) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(conversion(&args[0], &Type::Bool)),
        },
        _ => Err(EvalError::no_such_overload()),
    }
}

fn to_bytes<'a>(args: &[Value<'a>]) -> Result<'a> {
    match &args[0] {
        Value::Bytes(bytes) => Ok(Value::Bytes(bytes.clone())),
        Value::String(text) => Ok(Value::Bytes(text.as_bytes().into())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn to_double<'a>(args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Double(match &args[0] {
        Value::Double(value) => *value,
        Value::Int(value) => *value as f64,
        Value::Uint(value) => *value as f64,
        Value::String(text) => parse_double(text).ok_or_else(|| conversion(&args[0], &Type::Double))?,
        _ => return Err(EvalError::no_such_overload()),
    }))
}

/// A number as Go reads it; one too large is none.
fn parse_double(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    let word = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    (!value.is_infinite() || word.starts_with("inf")).then_some(value)
}

fn to_duration<'a>(args: &[Value<'a>]) -> Result<'a> {
    match &args[0] {
        Value::Duration(nanos) => Ok(Value::Duration(*nanos)),
        Value::String(text) => {
            let nanos = time::parse_duration(text).ok_or_else(|| conversion(&args[0], &Type::Duration))?;
            Ok(Value::Duration(nanos))
        }
        Value::Int(_) => Err(conversion(&args[0], &Type::Duration)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn to_int<'a>(args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Int(match &args[0] {
        Value::Int(value) => *value,
        Value::Uint(value) => i64::try_from(*value).map_err(|_| int_overflow())?,
        Value::Double(value) if *value > i64::MIN as f64 && *value < i64::MAX as f64 => *value as i64,
        Value::Double(_) => return Err(int_overflow()),
        Value::Duration(nanos) => *nanos,
        Value::Timestamp(at) => at.instant().0,
        Value::String(text) => text.parse().map_err(|_| conversion(&args[0], &Type::Int))?,
        _ => return Err(EvalError::no_such_overload()),
    }))
}

fn to_uint<'a>(args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Uint(match &args[0] {
        Value::Uint(value) => *value,
        Value::Int(value) => u64::try_from(*value).map_err(|_| uint_overflow())?,
        Value::Double(value) if *value >= 0.0 && *value < u64::MAX as f64 => *value as u64,
        Value::Double(_) => return Err(uint_overflow()),
        Value::String(text) if !text.starts_with('+') => {
            text.parse().map_err(|_| conversion(&args[0], &Type::Uint))?
        }
        Value::String(_) => return Err(conversion(&args[0], &Type::Uint)),
        _ => return Err(EvalError::no_such_overload()),
    }))
}

fn to_string<'a>(args: &[Value<'a>]) -> Result<'a> {
    match &args[0] {
        Value::String(text) => return Ok(Value::String(text.clone())),
        Value::Object(_) => return super::net::written(args),
        _ => {}
    }
    plain_text(&args[0]).map(Value::string)
}

/// The text that `string` makes of a scalar.
pub(super) fn plain_text(value: &Value<'_>) -> std::result::Result<String, EvalError> {
    Ok(match value {
        Value::String(text) => text.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Double(value) => double_text(*value),
        Value::Bytes(bytes) => String::from_utf8(bytes.to_vec())
            .map_err(|_| EvalError::new("invalid UTF-8 in bytes, cannot convert to string"))?,
        Value::Duration(nanos) => time::duration_text(*nanos),
        Value::Timestamp(at) => at.to_string(),
        Value::Type(of) => of.name().to_owned(),
        _ => return Err(EvalError::no_such_overload()),
    })
}

/// A number as Go's `%g` writes it.
fn double_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value < 0.0 { "-Inf" } else { "+Inf" }.into();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    value.to_string()
}

fn to_timestamp<'a>(args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Timestamp(match &args[0] {
        Value::Timestamp(at) => *at,
        Value::Int(seconds) => Timestamp::new(*seconds, 0)?,
        Value::String(text) => {
            Timestamp::parse(text).ok_or_else(|| conversion(&args[0], &Type::Timestamp))?.checked()?
        }
        _ => return Err(EvalError::no_such_overload()),
    }))
}

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null | Value::Optional(None) => true,
        Value::Bool(value) => !value,
        Value::Int(value) => *value == 0,
        Value::Uint(value) => *value == 0,
        Value::Double(value) => *value == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::Duration(nanos) => *nanos == 0,
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Struct(one) => one.fields.is_empty(),
        _ => false,
    }
}

fn unwrap<'a>(args: &[Value<'a>]) -> Result<'a> {
    let mut out = Vec::new();
    for one in super::list(args.first())?.iter() {
        match one? {
            Value::Optional(inner) => out.extend(inner.map(|inner| (*inner).clone())),
            other => {
                return Err(EvalError::new(format!("value of type {} is not optional", other.type_of())));
            }
        }
    }
    Ok(Value::list(out))
}
