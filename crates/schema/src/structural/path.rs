//! Paths into an object: the plain ones that name a field of a schema (`.spec.a['b']`), and the JSONPath dialect of kubectl
//! that printer columns are written in.

use std::cmp::Ordering;

use serde_json::Value;

use super::{Additional, Schema};

/// The way to a field, by the keys of objects.
pub type Way = Vec<String>;

/// The field that a plain path names, and its schema. `brackets`: keys may be quoted in brackets.
pub fn find<'a>(schema: &'a Schema, path: &str, brackets: bool) -> Result<(Way, &'a Schema), String> {
    let mut here = schema;
    let mut way = Vec::new();
    let mut rest = path;
    let unknown = || "does not refer to a valid field".to_owned();
    let end = || "unexpected end of JSON path".to_owned();
    while !rest.is_empty() {
        let key = if let Some(after) = rest.strip_prefix('.') {
            let length = after.find(['.', '[', ']']).unwrap_or(after.len());
            if after.is_empty() {
                return Err(end());
            }
            let (key, left) = after.split_at(length.max(1));
            rest = left;
            key.to_owned()
        } else if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            let Some(quoted) = after.strip_prefix('\'') else {
                let token = after.split(['.', '[', ']']).next().unwrap_or_default();
                return Err(format!("expected single quoted string but got {token}"));
            };
            let (key, left) = quoted_key(quoted).ok_or_else(end)?;
            rest = left.strip_prefix(']').ok_or_else(|| match left {
                "" => end(),
                left => format!("expected ] but got {left}"),
            })?;
            key
        } else {
            let token = rest.split(['.', '[', ']']).next().unwrap_or_default();
            return Err(format!("expected [ or . but got: {token}"));
        };
        here = match (here.properties.get(&key), &here.additional) {
            (Some(property), _) => property,
            (None, Some(Additional::Schema(schema))) if here.properties.is_empty() => schema,
            _ => return Err(unknown()),
        };
        way.push(key);
    }
    Ok((way, here))
}

fn quoted_key(text: &str) -> Option<(String, &str)> {
    let mut key = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => key.push(chars.next()?.1),
            '\'' => return Some((key, &text[at + 1..])),
            other => key.push(other),
        }
    }
    None
}

/// The value at the end of a way.
pub fn follow<'a>(value: &'a Value, way: &[String]) -> Option<&'a Value> {
    way.iter().try_fold(value, |here, key| here.get(key))
}

/// A JSONPath expression without its braces.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Field(String),
    Wildcard,
    Recursive,
    /// Start, end and step; an index is a slice of one.
    Slice {
        start: Option<i64>,
        end: Option<i64>,
        step: Option<i64>,
        one: bool,
    },
    Union(Vec<Vec<Node>>),
    Filter {
        left: Vec<Node>,
        right: Option<(Compare, Vec<Node>)>,
    },
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Compare {
    Less,
    LessEqual,
    Equal,
    NotEqual,
    Greater,
    GreaterEqual,
}

/// Why a path does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unrecognized column definition {0:?}")]
pub struct PathError(String);

/// Nesting of filters and unions.
const DEPTH: usize = 8;

impl JsonPath {
    /// Reads a path such as `.status.conditions[?(@.type=="Ready")].status`.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        parse(text, 0).map(Self).ok_or_else(|| PathError(text.to_owned()))
    }

    /// What the path finds; `None` if it cannot be followed in this object.
    pub fn find<'a>(&'a self, value: &'a Value) -> Option<Vec<&'a Value>> {
        walk(&self.0, vec![value])
    }
}

fn terminator(c: char) -> bool {
    c.is_whitespace() || matches!(c, '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}

fn parse(text: &str, depth: usize) -> Option<Vec<Node>> {
    if depth > DEPTH {
        return None;
    }
    let mut nodes = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let tail = &rest[c.len_utf8()..];
        if let Some(after) = rest.strip_prefix("[?(") {
            let (filter, left) = filter(after, depth)?;
            nodes.push(filter);
            rest = left;
        } else if let Some(after) = rest.strip_prefix("..") {
            if nodes.last() == Some(&Node::Recursive) {
                return None;
            }
            nodes.push(Node::Recursive);
            rest = after;
            if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
                rest = field(rest, &mut nodes);
            }
        } else {
            rest = match c {
                ' ' | '@' | '$' => tail,
                '[' => array(tail, depth, &mut nodes)?,
                '"' | '\'' => quoted(tail, c, &mut nodes)?,
                '.' => field(tail, &mut nodes),
                '+' | '-' | '0'..='9' => number(rest, &mut nodes)?,
                c if c.is_alphanumeric() || c == '_' => {
                    let length = rest.find(terminator).unwrap_or(rest.len());
                    let word = &rest[..length];
                    nodes.push(Node::Literal(
                        matches!(word, "true" | "false").then_some(word == "true")?.into(),
                    ));
                    &rest[length..]
                }
                _ => return None,
            };
        }
    }
    Some(nodes)
}

fn field<'a>(text: &'a str, nodes: &mut Vec<Node>) -> &'a str {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            c if terminator(c) => {
                end = at;
                break;
            }
            c => name.push(c),
        }
    }
    match name.as_str() {
        "*" => nodes.push(Node::Wildcard),
        "" => {}
        _ => nodes.push(Node::Field(name)),
    }
    &text[end..]
}

fn quoted<'a>(text: &'a str, quote: char, nodes: &mut Vec<Node>) -> Option<&'a str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            c if c == quote => {
                nodes.push(Node::Literal(value.into()));
                return Some(&text[at + 1..]);
            }
            c => value.push(c),
        }
    }
    None
}

fn number<'a>(text: &'a str, nodes: &mut Vec<Node>) -> Option<&'a str> {
    let length = text[1..].find(|c: char| c != '.' && !c.is_ascii_digit()).map_or(text.len(), |at| at + 1);
    let digits = text[..length].trim_start_matches('+');
    let value = match digits.parse::<i64>() {
        Ok(integer) => Value::from(integer),
        Err(_) => Value::from(digits.parse::<f64>().ok()?),
    };
    nodes.push(Node::Literal(value));
    Some(&text[length..])
}

fn array<'a>(text: &'a str, depth: usize, nodes: &mut Vec<Node>) -> Option<&'a str> {
    let end = text.find(']')?;
    let (inner, rest) = (&text[..end], &text[end + 1..]);
    if inner.contains(',') {
        let parts = inner.split(',').map(|part| parse(&format!("[{}]", part.trim_matches(' ')), depth + 1));
        nodes.push(Node::Union(parts.collect::<Option<_>>()?));
        return Some(rest);
    }
    let quote = inner.strip_prefix('\'').and_then(|i| i.strip_suffix('\''));
    if let Some(key) = quote.or_else(|| inner.strip_prefix('"').and_then(|i| i.strip_suffix('"'))) {
        nodes.push(Node::Field(key.replace('\\', "")));
        return Some(rest);
    }
    if inner == "*" {
        nodes.push(Node::Slice { start: None, end: None, step: None, one: false });
        return Some(rest);
    }
    let parts: Vec<&str> = inner.split(':').collect();
    let of = |at: usize| match parts.get(at).copied().unwrap_or_default() {
        "" => Some(None),
        digits => digits.parse::<i64>().ok().map(Some),
    };
    if parts.len() > 3 || inner.is_empty() {
        return None;
    }
    nodes.push(Node::Slice { start: of(0)?, end: of(1)?, step: of(2)?, one: parts.len() == 1 });
    Some(rest)
}

fn filter(text: &str, depth: usize) -> Option<(Node, &str)> {
    let mut quote = None;
    let mut open = 0usize;
    let mut end = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(') => open += 1,
            (None, ')') if open > 0 => open -= 1,
            (None, ')') => {
                end = Some(at);
                break;
            }
            _ => {}
        }
    }
    let end = end?;
    let rest = text[end + 1..].strip_prefix(']')?;
    let inner = &text[..end];
    let Some(at) = inner.find(['!', '<', '>', '=']).filter(|at| *at > 0) else {
        return Some((Node::Filter { left: parse(inner, depth + 1)?, right: None }, rest));
    };
    let length = inner[at..].find(|c| !matches!(c, '!' | '<' | '>' | '=')).unwrap_or(inner.len() - at);
    let compare = match &inner[at..at + length] {
        "<" => Compare::Less,
        "<=" => Compare::LessEqual,
        "==" => Compare::Equal,
        "!=" => Compare::NotEqual,
        ">" => Compare::Greater,
        ">=" => Compare::GreaterEqual,
        _ => return None,
    };
    let (left, right) = (parse(&inner[..at], depth + 1)?, parse(&inner[at + length..], depth + 1)?);
    Some((Node::Filter { left, right: Some((compare, right)) }, rest))
}

fn walk<'a>(nodes: &'a [Node], mut values: Vec<&'a Value>) -> Option<Vec<&'a Value>> {
    for node in nodes {
        values = step(node, values)?;
    }
    Some(values)
}

fn members(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn recurse<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    let below = members(value);
    if !below.is_empty() {
        found.push(value);
        below.into_iter().for_each(|value| recurse(value, found));
    }
}

fn step<'a>(node: &'a Node, values: Vec<&'a Value>) -> Option<Vec<&'a Value>> {
    let mut found = Vec::new();
    match node {
        Node::Field(name) => found.extend(values.into_iter().filter_map(|v| v.as_object()?.get(name))),
        Node::Wildcard => found.extend(values.into_iter().flat_map(members)),
        Node::Recursive => values.into_iter().for_each(|v| recurse(v, &mut found)),
        Node::Literal(value) => found.push(value),
        Node::Union(parts) => {
            for part in parts {
                found.extend(walk(part, values.clone())?);
            }
        }
        Node::Slice { start, end, step, one } => {
            for value in values.into_iter().filter(|v| !v.is_null()) {
                let list = value.as_array()?;
                let length = i64::try_from(list.len()).ok()?;
                let from = |at: i64| if at < 0 { at + length } else { at };
                let first = from(start.unwrap_or(0));
                let last = if *one { first + 1 } else { end.map_or(length, from) };
                if first == last {
                    continue;
                }
                if first < 0
                    || first >= length
                    || last > length
                    || first > last
                    || step.is_some_and(|s| s <= 0)
                {
                    return None;
                }
                let range = usize::try_from(first).ok()?..usize::try_from(last).ok()?;
                let by = usize::try_from(step.unwrap_or(1)).ok()?;
                found.extend(list[range].iter().step_by(by));
            }
        }
        Node::Filter { left, right } => {
            for value in values {
                for item in value.as_array()? {
                    if passes(item, left, right.as_ref())? {
                        found.push(item);
                    }
                }
            }
        }
    }
    Some(found)
}

fn passes(item: &Value, left: &[Node], right: Option<&(Compare, Vec<Node>)>) -> Option<bool> {
    let found = walk(left, vec![item]);
    let Some((compare, right)) = right else { return Some(found.is_some_and(|f| !f.is_empty())) };
    let (left, right) = (found?, walk(right, vec![item])?);
    match (left.as_slice(), right.as_slice()) {
        ([], _) | (_, []) => Some(false),
        ([left], [right]) => {
            let order = match (left, right) {
                (Value::String(a), Value::String(b)) => a.cmp(b),
                (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?)?,
                (Value::Bool(a), Value::Bool(b)) if a == b => Ordering::Equal,
                (Value::Bool(_), Value::Bool(_)) if *compare == Compare::Equal => return Some(false),
                (Value::Bool(_), Value::Bool(_)) if *compare == Compare::NotEqual => return Some(true),
                _ => return None,
            };
            Some(match compare {
                Compare::Less => order.is_lt(),
                Compare::LessEqual => order.is_le(),
                Compare::Equal => order.is_eq(),
                Compare::NotEqual => order.is_ne(),
                Compare::Greater => order.is_gt(),
                Compare::GreaterEqual => order.is_ge(),
            })
        }
        _ => None,
    }
}
