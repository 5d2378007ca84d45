//! Functions on strings; places are counted in characters.

use super::{Result, int, list, text};
use crate::error::EvalError;
use crate::functions::Def;
use crate::value::Value;

pub(super) const FUNCTIONS: &[Def] = &[
    Def("charAt", &["string_char_at_int: string.(int) -> string"], char_at),
    Def(
        "indexOf",
        &[
            "string_index_of_string: string.(string) -> int",
            "string_index_of_string_int: string.(string, int) -> int",
        ],
        |args| if matches!(args[0], Value::List(_)) { super::lists::index_of(args) } else { index_of(args) },
    ),
    Def(
        "lastIndexOf",
        &[
            "string_last_index_of_string: string.(string) -> int",
            "string_last_index_of_string_int: string.(string, int) -> int",
        ],
        |args| {
            if matches!(args[0], Value::List(_)) {
                super::lists::last_index_of(args)
            } else {
                last_index_of(args)
            }
        },
    ),
    Def("lowerAscii", &["string_lower_ascii: string.() -> string"], |args| {
        Ok(Value::string(text(args.first())?.to_ascii_lowercase()))
    }),
    Def("upperAscii", &["string_upper_ascii: string.() -> string"], |args| {
        Ok(Value::string(text(args.first())?.to_ascii_uppercase()))
    }),
    Def(
        "replace",
        &[
            "string_replace_string_string: string.(string, string) -> string",
            "string_replace_string_string_int: string.(string, string, int) -> string",
        ],
        replace,
    ),
    Def(
        "split",
        &[
            "string_split_string: string.(string) -> list(string)",
            "string_split_string_int: string.(string, int) -> list(string)",
        ],
        split,
    ),
    Def(
        "substring",
        &[
            "string_substring_int: string.(int) -> string",
            "string_substring_int_int: string.(int, int) -> string",
        ],
        substring,
    ),
    Def("trim", &["string_trim: string.() -> string"], |args| Ok(Value::string(text(args.first())?.trim()))),
    Def("strings.quote", &["strings_quote: (string) -> string"], |args| {
        Ok(Value::string(quote(text(args.first())?)))
    }),
    Def(
        "join",
        &["list_join: list(string).() -> string", "list_join_string: list(string).(string) -> string"],
        join,
    ),
];

fn out_of_range(at: i64) -> EvalError {
    EvalError::new(format!("index out of range: {at}"))
}

fn char_at<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (text, at) = (text(args.first())?, int(args.get(1))?);
    let index = usize::try_from(at).map_err(|_| out_of_range(at))?;
    match text.chars().nth(index) {
        Some(c) => Ok(Value::string(c.to_string())),
        None if text.chars().count() == index => Ok(Value::string("")),
        None => Err(out_of_range(at)),
    }
}

/// The byte at which a character begins, or the end.
fn byte_of(text: &str, character: usize) -> usize {
    text.char_indices().nth(character).map_or(text.len(), |(byte, _)| byte)
}

fn index_of<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (whole, part) = (text(args.first())?, text(args.get(1))?);
    let offset = if args.len() > 2 { int(args.get(2))? } else { 0 };
    if part.is_empty() {
        return Ok(Value::Int(offset));
    }
    let from = usize::try_from(offset).map_err(|_| out_of_range(offset))?;
    let start = byte_of(whole, from);
    let found = whole[start..].find(&**part);
    Ok(Value::Int(found.map_or(-1, |at| whole[..start + at].chars().count() as i64)))
}

fn last_index_of<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (whole, part) = (text(args.first())?, text(args.get(1))?);
    let len = whole.chars().count();
    let offset = if args.len() > 2 { int(args.get(2))? } else { len as i64 - 1 };
    if part.is_empty() {
        return Ok(Value::Int(if args.len() > 2 { offset } else { len as i64 }));
    }
    if args.len() == 2 && whole.len() < part.len() {
        return Ok(Value::Int(-1));
    }
    let from = usize::try_from(offset).map_err(|_| out_of_range(offset))?;
    if from >= len {
        return Ok(Value::Int(-1));
    }
    // The last place from which the part may begin, and so where it ends.
    let end = byte_of(whole, from.saturating_add(part.chars().count()));
    let found = whole[..end].rfind(&**part);
    Ok(Value::Int(found.map_or(-1, |at| whole[..at].chars().count() as i64)))
}

fn replace<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (whole, old, new) = (text(args.first())?, text(args.get(1))?, text(args.get(2))?);
    let count = if args.len() > 3 { int(args.get(3))? } else { -1 };
    Ok(Value::string(match usize::try_from(count) {
        Ok(count) => whole.replacen(&**old, new, count),
        Err(_) => whole.replace(&**old, new),
    }))
}

fn split<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (whole, by) = (text(args.first())?, text(args.get(1))?);
    let limit = if args.len() > 2 { int(args.get(2))? } else { -1 };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if limit == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let parts: Vec<Value<'a>> = if by.is_empty() {
        let mut parts = Vec::new();
        let mut rest = &**whole;
        while let Some(c) = rest.chars().next() {
            let len = if parts.len() + 1 == limit { rest.len() } else { c.len_utf8() };
            parts.push(Value::string(&rest[..len]));
            rest = &rest[len..];
        }
        parts
    } else {
        whole.splitn(limit, &**by).map(Value::string).collect()
    };
    Ok(Value::list(parts))
}

fn substring<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (whole, start) = (text(args.first())?, int(args.get(1))?);
    let len = whole.chars().count() as i64;
    let end = if args.len() > 2 { int(args.get(2))? } else { len };
    if args.len() > 2 && start > end {
        return Err(EvalError::new(format!("invalid substring range. start: {start}, end: {end}")));
    }
    for at in [start, end] {
        if !(0..=len).contains(&at) {
            return Err(out_of_range(at));
        }
    }
    // Both are within the length.
    Ok(Value::string(&whole[byte_of(whole, start as usize)..byte_of(whole, end as usize)]))
}

fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

fn join<'a>(args: &[Value<'a>]) -> Result<'a> {
    let by = if args.len() > 1 { &**text(args.get(1))? } else { "" };
    let mut out = String::new();
    for (at, one) in list(args.first())?.iter().enumerate() {
        if at > 0 {
            out.push_str(by);
        }
        match one? {
            Value::String(text) => out.push_str(&text),
            other => return Err(EvalError::new(format!("join: invalid input of type {}", other.type_of()))),
        }
        if out.len() > MAX_JOINED {
            return Err(EvalError::CostExceeded);
        }
    }
    Ok(Value::string(out))
}

/// Past this a string costs more than any evaluation may.
pub(super) const MAX_JOINED: usize = 32 << 20;
