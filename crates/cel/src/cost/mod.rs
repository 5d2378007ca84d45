//! What evaluations cost: counted while they run ([`before`], [`after`]), and estimated from the sizes that
//! declarations allow ([`estimate`]). Both follow cel-go's figures with those of Kubernetes' libraries, which are
//! part of the API: they decide which rules a CustomResourceDefinition may have.

mod calls;
mod estimate;
mod size;

pub(crate) use self::estimate::estimate;
use crate::value::Value;

pub(crate) const CREATE_LIST: u64 = 10;
pub(crate) const CREATE_MAP: u64 = 30;
pub(crate) const CREATE_OBJECT: u64 = 40;
/// Of going once through a string.
const TRAVERSAL: f64 = 0.1;
/// Of a regular expression, by its length.
const PATTERN: f64 = 0.25;
const CHECK: u64 = 350_000;
/// How many elements of lists inside lists are counted before counting ends.
const MAX_COUNTED: u64 = 1 << 24;

fn size(value: Option<&Value<'_>>) -> u64 {
    value.and_then(Value::size).unwrap_or(1)
}

/// A size times a factor, rounded up.
fn times(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

/// Of `==` and `!=`.
pub(crate) fn equality(left: &Value<'_>, right: &Value<'_>, negate: bool) -> u64 {
    if matches!(left, Value::Object(_)) && !negate {
        return 1;
    }
    times(size(Some(left)).min(size(Some(right))), TRAVERSAL)
}

/// Of a call, where the arguments tell it.
pub(crate) fn before(function: &str, overload: &str, args: &[Value<'_>]) -> Option<u64> {
    let first = || size(args.first());
    let second = || size(args.get(1));
    let pattern = || times(first() + 1, TRAVERSAL).saturating_mul(times(second(), PATTERN));
    if let Some(cost) = lists(overload, args) {
        return cost;
    }
    Some(match function {
        "check" => CHECK,
        "fieldSelector" | "labelSelector" if args.len() >= 2 => selector(second()),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            args.first().map_or(0, |value| traversal(value, &mut 0))
        }
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => times(first(), TRAVERSAL),
        "replace" | "split" | "ip.isCanonical" => times(first(), 2.0 * TRAVERSAL),
        "join" => return None,
        "find" | "findAll" => pattern(),
        "ip" if overload != "cidr_ip" => times(first(), TRAVERSAL),
        "containsIP" => {
            let text = if overload == "cidr_contains_ip_string" { times(second(), TRAVERSAL) } else { 0 };
            times(2 * first(), TRAVERSAL) + text
        }
        "containsCIDR" => {
            let text = if overload == "cidr_contains_cidr_string" { times(second(), TRAVERSAL) } else { 0 };
            times(2 * first(), TRAVERSAL) + times(first(), TRAVERSAL) + 1 + text
        }
        "validate" if args.len() >= 2 => times(second() + 1, TRAVERSAL) * times(first(), PATTERN),
        _ => match overload {
            "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string"
            | "strings_quote" | "string_format" => times(first(), TRAVERSAL),
            "in_list" => second(),
            "less_string"
            | "greater_string"
            | "less_equals_string"
            | "greater_equals_string"
            | "less_bytes"
            | "greater_bytes"
            | "less_equals_bytes"
            | "greater_equals_bytes" => times(first().min(second()), TRAVERSAL),
            "add_string" | "add_bytes" => times(first() + second(), TRAVERSAL),
            "matches_string" => pattern(),
            "contains_string" => times(first(), TRAVERSAL) * times(second(), TRAVERSAL),
            _ => 1,
        },
    })
}

/// Of a call whose result tells it.
pub(crate) fn after(function: &str, overload: &str, args: &[Value<'_>], result: Option<&Value<'_>>) -> u64 {
    match function {
        "join" => times(size(result), 2.0 * TRAVERSAL),
        _ if matches!(overload, "list_slice" | "lists_range") => allocated(size(result) as f64),
        _ => before(function, overload, args).unwrap_or(1),
    }
}

fn allocated(work: f64) -> u64 {
    work as u64 + 1 + CREATE_LIST
}

/// Of the extensions for lists and sets, which go by overload: `Some(None)` where only the result tells it.
fn lists(overload: &str, args: &[Value<'_>]) -> Option<Option<u64>> {
    let first = || size(args.first());
    let compared = |value: Option<&Value<'_>>| {
        let Some(Value::List(list)) = value else { return allocated(0.0) };
        let text = matches!(list.get(0), Some(Ok(Value::String(_) | Value::Bytes(_))));
        let len = list.len() as f64;
        allocated(len * len * if text { 2.0 + TRAVERSAL } else { 2.0 })
    };
    let sets = |factor: f64| 1 + (first() as f64 * size(args.get(1)) as f64 * factor) as u64;
    Some(Some(match overload {
        "list_slice" => match (args.get(1), args.get(2)) {
            (Some(Value::Int(start)), Some(Value::Int(end)))
                if (0..=*end).contains(start) && *end as u64 <= first() =>
            {
                allocated((end - start) as f64)
            }
            _ => allocated(1.0),
        },
        "lists_range" => match args.first() {
            Some(Value::Int(count)) => allocated((*count).max(0) as f64),
            _ => return Some(None),
        },
        "list_reverse" | "list_flatten" => allocated(first() as f64),
        "list_flatten_int" => match args.get(1) {
            Some(Value::Int(depth)) => allocated(first() as f64 * (*depth).max(0) as f64),
            _ => return None,
        },
        "list_distinct" => compared(args.first()),
        "list_sets_contains_list" | "list_sets_intersects_list" => sets(1.0),
        "list_sets_equivalent_list" => sets(2.0),
        _ if overload.ends_with("_sort") && overload.starts_with("list_") => compared(args.first()),
        _ if overload.ends_with("_sortByAssociatedKeys") => compared(args.get(1)),
        _ => return None,
    }))
}

/// Of parsing a selector of a length and keeping its requirements.
fn selector(length: u64) -> u64 {
    CREATE_LIST + times(length, TRAVERSAL) + times(times(length, 0.5), (CREATE_LIST + CREATE_OBJECT) as f64)
}

/// Of going through all of a value.
fn traversal(value: &Value<'_>, counted: &mut u64) -> u64 {
    *counted += 1;
    if *counted > MAX_COUNTED {
        return MAX_COUNTED;
    }
    match value {
        Value::String(text) => (text.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => {
            let mut cost: u64 = 0;
            for one in list.iter() {
                cost = cost.saturating_add(one.map_or(1, |one| traversal(&one, counted)));
                if *counted > MAX_COUNTED {
                    break;
                }
            }
            cost
        }
        Value::Map(map) => map
            .keys()
            .into_iter()
            .map(|key| {
                let of = map.get(&key).map_or(0, |value| value.map_or(1, |value| traversal(&value, counted)));
                traversal(&key.value(), counted).saturating_add(of)
            })
            .fold(0, u64::saturating_add),
        _ => 1,
    }
}
