//! The table of functions: each library declares its own by text, with the native code that evaluates them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::error::EvalError;
use crate::library;
use crate::types::Type;
use crate::value::Value;

/// The code of a function. A receiver is the first argument.
pub(crate) type Native = for<'a> fn(&[Value<'a>]) -> Result<Value<'a>, EvalError>;

/// A library's declaration of a function: its name, its overloads as `id: (int, list(A)) -> A` or
/// `id: string.(int) -> string`, and its code. `#` stands before the name of a type without fields.
pub(crate) struct Def(pub &'static str, pub &'static [&'static str], pub Native);

#[derive(Debug)]
pub(crate) struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
    pub native: Native,
}

#[derive(Debug)]
pub(crate) struct Overload {
    pub id: &'static str,
    pub member: bool,
    pub args: Vec<Type>,
    pub result: Type,
    /// The names of its type variables.
    pub params: Vec<Arc<str>>,
}

static FUNCTIONS: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let mut table: HashMap<&'static str, Function> = HashMap::new();
    for Def(name, overloads, native) in library::all() {
        let function =
            table.entry(name).or_insert_with(|| Function { name, overloads: Vec::new(), native: *native });
        function.overloads.extend(overloads.iter().map(|text| overload(text)));
    }
    table
});

/// The function of a name.
pub(crate) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.get(name)
}

fn overload(text: &'static str) -> Overload {
    let (id, rest) = text.split_once(": ").unwrap_or((text, "() -> dyn"));
    let (head, result) = rest.rsplit_once(" -> ").unwrap_or((rest, "dyn"));
    let open = receiver_end(head);
    let receiver = head[..open].strip_suffix('.');
    let mut params = Vec::new();
    let mut args: Vec<Type> = receiver.into_iter().map(|of| read(&mut &*of, &mut params)).collect();
    let mut list = head[open..].trim_start_matches('(');
    while !list.is_empty() && list != ")" {
        args.push(read(&mut list, &mut params));
        list = list.trim_start_matches(", ");
    }
    let result = read(&mut &*result, &mut params);
    Overload { id, member: receiver.is_some(), args, result, params }
}

/// Where the list of arguments opens: the start, or after the dot of a receiver.
fn receiver_end(head: &str) -> usize {
    if head.starts_with('(') { 0 } else { head.find(".(").map_or(0, |dot| dot + 1) }
}

fn read(text: &mut &str, params: &mut Vec<Arc<str>>) -> Type {
    let opaque = text.starts_with('#');
    let rest = text.trim_start_matches('#');
    let len = rest.find(['(', ')', ',']).unwrap_or(rest.len());
    let name = &rest[..len];
    let mut rest = &rest[len..];
    let mut inner = Vec::new();
    if let Some(mut list) = rest.strip_prefix('(') {
        loop {
            inner.push(read(&mut list, params));
            match list.strip_prefix(", ") {
                Some(more) => list = more,
                None => break,
            }
        }
        rest = list.strip_prefix(')').unwrap_or(list);
    }
    *text = rest;
    let mut inner = inner.into_iter();
    let mut one = || inner.next().unwrap_or(Type::Dyn);
    match name {
        "list" => Type::list(one()),
        "map" => {
            let key = one();
            Type::map(key, one())
        }
        "optional" => Type::optional(one()),
        "type" => Type::Type(Some(Arc::new(one()))),
        "dyn" => Type::Dyn,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        _ if name.len() == 1 => {
            let name: Arc<str> = name.into();
            if !params.contains(&name) {
                params.push(name.clone());
            }
            Type::Param(name)
        }
        _ if opaque => Type::opaque(name),
        _ => Type::named(name).unwrap_or_else(|| Type::object(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read_as_they_are_written() {
        for function in FUNCTIONS.values() {
            for overload in &function.overloads {
                assert!(!overload.id.contains(' '), "{}: {}", function.name, overload.id);
                assert!(!overload.member || !overload.args.is_empty(), "{}", overload.id);
            }
        }
        let one = overload("x: map(K, list(V)).(int, #net.IP) -> optional(V)");
        assert!(one.member);
        let text: Vec<String> = one.args.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["map(K, list(V))", "int", "net.IP"]);
        assert_eq!(one.result.to_string(), "optional_type(V)");
        assert_eq!(one.params.len(), 2);
    }
}
