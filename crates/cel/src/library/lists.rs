//! Functions on lists: Kubernetes' own, and the extensions of lists and sets.

use std::cmp::Ordering;

use super::standard::contains;
use super::{Result, int, list};
use crate::error::EvalError;
use crate::functions::{Def, Native};
use crate::value::{List, Value, compare, equal};

/// The overloads of a function for lists of each comparable type.
macro_rules! comparable {
    ($of:literal, $result:literal) => {
        &[
            concat!("list_int_", $of, "_", $result, ": list(int).() -> ", $result),
            concat!("list_uint_", $of, "_", $result, ": list(uint).() -> ", $result),
            concat!("list_double_", $of, "_", $result, ": list(double).() -> ", $result),
            concat!("list_bool_", $of, "_", $result, ": list(bool).() -> ", $result),
            concat!("list_duration_", $of, "_", $result, ": list(duration).() -> ", $result),
            concat!("list_timestamp_", $of, "_", $result, ": list(timestamp).() -> ", $result),
            concat!("list_string_", $of, "_", $result, ": list(string).() -> ", $result),
            concat!("list_bytes_", $of, "_", $result, ": list(bytes).() -> ", $result),
        ]
    };
    ($of:literal) => {
        &[
            concat!("list_int_", $of, "_int: list(int).() -> int"),
            concat!("list_uint_", $of, "_uint: list(uint).() -> uint"),
            concat!("list_double_", $of, "_double: list(double).() -> double"),
            concat!("list_bool_", $of, "_bool: list(bool).() -> bool"),
            concat!("list_duration_", $of, "_duration: list(duration).() -> duration"),
            concat!("list_timestamp_", $of, "_timestamp: list(timestamp).() -> timestamp"),
            concat!("list_string_", $of, "_string: list(string).() -> string"),
            concat!("list_bytes_", $of, "_bytes: list(bytes).() -> bytes"),
        ]
    };
}

pub(super) const FUNCTIONS: &[Def] = &[
    Def("isSorted", comparable!("is_sorted", "bool"), is_sorted),
    Def(
        "sum",
        &[
            "list_int_sum_int: list(int).() -> int",
            "list_uint_sum_uint: list(uint).() -> uint",
            "list_double_sum_double: list(double).() -> double",
            "list_duration_sum_duration: list(duration).() -> duration",
        ],
        |args| sum(args, Value::Int(0)),
    ),
    Def("max", comparable!("max"), |args| extreme(args, "max", Ordering::Less)),
    Def("min", comparable!("min"), |args| extreme(args, "min", Ordering::Greater)),
    Def("indexOf", &["list_a_index_of_int: list(A).(A) -> int"], index_of),
    Def("lastIndexOf", &["list_a_last_index_of_int: list(A).(A) -> int"], last_index_of),
    Def("slice", &["list_slice: list(T).(int, int) -> list(T)"], slice),
    Def(
        "flatten",
        &["list_flatten: list(list(T)).() -> list(T)", "list_flatten_int: list(dyn).(int) -> list(dyn)"],
        |args| {
            let depth = if args.len() > 1 { int(args.get(1))? } else { 1 };
            let mut out = Vec::new();
            flatten(list(args.first())?, depth, &mut out)?;
            Ok(Value::list(out))
        },
    ),
    Def(
        "sort",
        &[
            "list_int_sort: list(int).() -> list(int)",
            "list_uint_sort: list(uint).() -> list(uint)",
            "list_double_sort: list(double).() -> list(double)",
            "list_bool_sort: list(bool).() -> list(bool)",
            "list_google.protobuf.Duration_sort: list(duration).() -> list(duration)",
            "list_google.protobuf.Timestamp_sort: list(timestamp).() -> list(timestamp)",
            "list_string_sort: list(string).() -> list(string)",
            "list_bytes_sort: list(bytes).() -> list(bytes)",
        ],
        |args| sort(args, args),
    ),
    Def(
        "@sortByAssociatedKeys",
        &[
            "list_int_sortByAssociatedKeys: list(T).(list(int)) -> list(T)",
            "list_uint_sortByAssociatedKeys: list(T).(list(uint)) -> list(T)",
            "list_double_sortByAssociatedKeys: list(T).(list(double)) -> list(T)",
            "list_bool_sortByAssociatedKeys: list(T).(list(bool)) -> list(T)",
            "list_google.protobuf.Duration_sortByAssociatedKeys: list(T).(list(duration)) -> list(T)",
            "list_google.protobuf.Timestamp_sortByAssociatedKeys: list(T).(list(timestamp)) -> list(T)",
            "list_string_sortByAssociatedKeys: list(T).(list(string)) -> list(T)",
            "list_bytes_sortByAssociatedKeys: list(T).(list(bytes)) -> list(T)",
        ],
        |args| sort(args, &args[1..]),
    ),
    Def("lists.range", &["lists_range: (int) -> list(int)"], |args| {
        Ok(Value::list((0..int(args.first())?).map(Value::Int).collect()))
    }),
    Def("reverse", &["list_reverse: list(T).() -> list(T)"], |args| {
        let mut all = elements(list(args.first())?)?;
        all.reverse();
        Ok(Value::list(all))
    }),
    Def("distinct", &["list_distinct: list(T).() -> list(T)"], distinct),
    Def("first", &["list_first: list(V).() -> optional(V)"], |args| optional(list(args.first())?.get(0))),
    Def("last", &["list_last: list(V).() -> optional(V)"], |args| {
        let list = list(args.first())?;
        optional(list.len().checked_sub(1).and_then(|at| list.get(at)))
    }),
    Def("sets.contains", &["list_sets_contains_list: (list(T), list(T)) -> bool"], |args| {
        contains_all(list(args.first())?, list(args.get(1))?).map(Value::Bool)
    }),
    Def("sets.equivalent", &["list_sets_equivalent_list: (list(T), list(T)) -> bool"], |args| {
        let (left, right) = (list(args.first())?, list(args.get(1))?);
        Ok(Value::Bool(contains_all(left, right)? && contains_all(right, left)?))
    }),
    Def("sets.intersects", &["list_sets_intersects_list: (list(T), list(T)) -> bool"], |args| {
        let (left, right) = (list(args.first())?, list(args.get(1))?);
        for one in left.iter() {
            if contains(right, &one?).unwrap_or(false) {
                return Ok(Value::Bool(true));
            }
        }
        Ok(Value::Bool(false))
    }),
];

fn optional<'a>(found: Option<Result<'a>>) -> Result<'a> {
    found.transpose().map(|found| found.map_or(Value::Optional(None), Value::some))
}

fn elements<'a>(list: &List<'a>) -> std::result::Result<Vec<Value<'a>>, EvalError> {
    list.iter().collect()
}

fn is_sorted<'a>(args: &[Value<'a>]) -> Result<'a> {
    let mut before: Option<Value<'a>> = None;
    for one in list(args.first())?.iter() {
        let one = one?;
        if let Some(before) = &before
            && compare(before, &one).is_ok_and(|order| order == Ordering::Greater)
        {
            return Ok(Value::Bool(false));
        }
        before = Some(one);
    }
    Ok(Value::Bool(true))
}

/// The code of `sum` for an overload: what the sum of nothing is depends on it.
pub(crate) fn sum_of(overload: &str) -> Native {
    match overload {
        "list_uint_sum_uint" => |args| sum(args, Value::Uint(0)),
        "list_double_sum_double" => |args| sum(args, Value::Double(0.0)),
        "list_duration_sum_duration" => |args| sum(args, Value::Duration(0)),
        _ => |args| sum(args, Value::Int(0)),
    }
}

fn sum<'a>(args: &[Value<'a>], zero: Value<'a>) -> Result<'a> {
    let list = list(args.first())?;
    let mut total = None;
    for one in list.iter() {
        let one = one?;
        total = Some(match (total, one) {
            (None, one) => one,
            (Some(Value::Int(a)), Value::Int(b)) => {
                Value::Int(a.checked_add(b).ok_or_else(|| EvalError::new("integer overflow"))?)
            }
            (Some(Value::Uint(a)), Value::Uint(b)) => {
                Value::Uint(a.checked_add(b).ok_or_else(|| EvalError::new("unsigned integer overflow"))?)
            }
            (Some(Value::Double(a)), Value::Double(b)) => Value::Double(a + b),
            (Some(Value::Duration(a)), Value::Duration(b)) => {
                Value::Duration(a.checked_add(b).ok_or_else(|| EvalError::new("duration overflow"))?)
            }
            _ => return Err(EvalError::no_such_overload()),
        });
    }
    Ok(total.unwrap_or(zero))
}

fn extreme<'a>(args: &[Value<'a>], name: &str, replaces: Ordering) -> Result<'a> {
    let mut best: Option<Value<'a>> = None;
    for one in list(args.first())?.iter() {
        let one = one?;
        best = Some(match best {
            Some(best) if compare(&best, &one).is_ok_and(|order| order == replaces) => one,
            Some(best) => best,
            None => one,
        });
    }
    best.ok_or_else(|| EvalError::new(format!("{name} called on empty list")))
}

pub(super) fn index_of<'a>(args: &[Value<'a>]) -> Result<'a> {
    let list = list(args.first())?;
    let found = list.iter().position(|one| one.and_then(|one| equal(&one, &args[1])).unwrap_or(false));
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

pub(super) fn last_index_of<'a>(args: &[Value<'a>]) -> Result<'a> {
    let all = elements(list(args.first())?)?;
    let found = all.iter().rposition(|one| equal(one, &args[1]).unwrap_or(false));
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

fn slice<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (list, start, end) = (list(args.first())?, int(args.get(1))?, int(args.get(2))?);
    let fault = |why: String| EvalError::new(format!("cannot slice({start}, {end}), {why}"));
    if start < 0 || end < 0 {
        return Err(fault("negative indexes not supported".into()));
    }
    if start > end {
        return Err(fault("start index must be less than or equal to end index".into()));
    }
    let len = list.len();
    if end as u64 > len as u64 {
        return Err(fault(format!("list is length {len}")));
    }
    let (start, count) = (start as usize, (end - start) as usize);
    Ok(Value::list(list.iter().skip(start).take(count).collect::<std::result::Result<_, _>>()?))
}

fn flatten<'a>(list: &List<'a>, depth: i64, out: &mut Vec<Value<'a>>) -> std::result::Result<(), EvalError> {
    if depth < 0 {
        return Err(EvalError::new("level must be non-negative"));
    }
    for one in list.iter() {
        match one? {
            Value::List(inner) if depth > 0 => flatten(&inner, depth - 1, out)?,
            other => out.push(other),
        }
        if out.len() > MAX_ELEMENTS {
            return Err(EvalError::CostExceeded);
        }
    }
    Ok(())
}

/// Past this a list costs more than any evaluation may.
const MAX_ELEMENTS: usize = 4 << 20;

fn sort<'a>(args: &[Value<'a>], keys: &[Value<'a>]) -> Result<'a> {
    let all = elements(list(args.first())?)?;
    let keys = elements(list(keys.first())?)?;
    if all.len() != keys.len() {
        return Err(EvalError::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} \
             elements respectively",
            all.len(),
            keys.len()
        )));
    }
    if let Some(first) = keys.first() {
        let of = first.type_of();
        if keys.iter().any(|key| key.type_of() != of) {
            return Err(EvalError::new("list elements must have the same type"));
        }
        if compare(first, first).is_err() && !matches!(first, Value::Double(_)) {
            return Err(EvalError::new("list elements must be comparable"));
        }
    }
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|a, b| compare(&keys[*a], &keys[*b]).unwrap_or(Ordering::Equal));
    Ok(Value::list(order.into_iter().map(|at| all[at].clone()).collect()))
}

fn distinct<'a>(args: &[Value<'a>]) -> Result<'a> {
    let mut out: Vec<Value<'a>> = Vec::new();
    for one in list(args.first())?.iter() {
        let one = one?;
        if !out.iter().any(|other| equal(&one, other).unwrap_or(false)) {
            out.push(one);
        }
    }
    Ok(Value::list(out))
}

fn contains_all(list: &List<'_>, part: &List<'_>) -> std::result::Result<bool, EvalError> {
    for one in part.iter() {
        if !contains(list, &one?)? {
            return Ok(false);
        }
    }
    Ok(true)
}
