//! Label and field selectors of lists and watches.

use serde_json::Value;

use crate::Status;
use crate::registry::Served;
use crate::registry::object::Object;
use crate::verbs::meta::qualified_name;

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: String,
    value: String,
    equal: bool,
}

/// What a list or watch chooses.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

impl Selector {
    pub fn parse(served: &Served, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = parse_labels(labels)
            .map_err(|e| Status::bad_request(format!("unable to parse requirement: {e}")))?;
        let fields = parse_fields(fields).map_err(Status::bad_request)?;
        for term in &fields {
            let known = matches!(term.field.as_str(), "metadata.name" | "metadata.namespace")
                || served.resource.strategy.field_labels.contains(&term.field.as_str());
            if !known {
                return Err(Status::bad_request(format!("field label not supported: {}", term.field)));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Whether it chooses everything.
    pub fn everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, served: &Served, object: &Object) -> bool {
        if self.everything() {
            return true;
        }
        let simple = |term: &FieldTerm| match term.field.as_str() {
            "metadata.name" => Some((object.name() == term.value) == term.equal),
            "metadata.namespace" => Some((object.namespace() == term.value) == term.equal),
            _ => None,
        };
        if self.fields.iter().any(|t| simple(t) == Some(false)) {
            return false;
        }
        if self.labels.is_empty() && self.fields.iter().all(|t| simple(t).is_some()) {
            return true;
        }
        let selectable = object.selectable(served.resource.strategy.fields);
        let label = |key: &str| selectable.labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let field =
            |key: &str| selectable.fields.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| v.as_str());
        self.labels.iter().all(|r| r.holds(&label))
            && self
                .fields
                .iter()
                .filter(|t| simple(t).is_none())
                .all(|t| (field(&t.field) == t.value) == t.equal)
    }
}

impl Requirement {
    fn holds<'a>(&self, label: &dyn Fn(&str) -> Option<&'a str>) -> bool {
        let number = |key: &str| label(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Self::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
            Self::Greater(key, than) => number(key).is_some_and(|n| n > *than),
            Self::Less(key, than) => number(key).is_some_and(|n| n < *than),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Sign(&'a str),
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let sign = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"].iter().find(|s| rest.starts_with(**s));
        let length = match sign {
            Some(sign) => sign.len(),
            None => rest
                .find(|c: char| c.is_whitespace() || matches!(c, '=' | '!' | '(' | ')' | ',' | '<' | '>'))
                .unwrap_or(rest.len()),
        };
        let (head, tail) = rest.split_at(length);
        tokens.push(if sign.is_some() { Token::Sign(head) } else { Token::Word(head) });
        rest = tail.trim_start();
    }
    tokens
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    let tokens = tokens(text);
    let mut rest = tokens.as_slice();
    let mut requirements = Vec::new();
    while !rest.is_empty() {
        let (requirement, tail) = requirement(rest)?;
        requirements.push(requirement);
        rest = match tail {
            [] => tail,
            [Token::Sign(","), Token::Word(_) | Token::Sign("!"), ..] => &tail[1..],
            [Token::Sign(","), ..] => return Err("found ',', expected: identifier after ','".to_owned()),
            [other, ..] => return Err(format!("found {other:?}, expected: ',' or 'end of string'")),
        };
    }
    Ok(requirements)
}

type Parsed<'t, 'a> = (Requirement, &'t [Token<'a>]);

fn requirement<'t, 'a>(tokens: &'t [Token<'a>]) -> Result<Parsed<'t, 'a>, String> {
    match tokens {
        [Token::Sign("!"), Token::Word(key), rest @ ..] => Ok((Requirement::Absent(checked(key)?), rest)),
        [Token::Word(key), rest @ ..] => operator(checked(key)?, rest),
        [other, ..] => Err(format!("found {other:?}, expected: !, identifier, or 'end of string'")),
        [] => Err("found '', expected: identifier".to_owned()),
    }
}

fn operator<'t, 'a>(key: String, tokens: &'t [Token<'a>]) -> Result<Parsed<'t, 'a>, String> {
    match tokens {
        [] | [Token::Sign(","), ..] => Ok((Requirement::Exists(key), tokens)),
        [Token::Sign("=" | "=="), rest @ ..] => {
            let (value, rest) = exact(rest)?;
            Ok((Requirement::In(key, vec![value]), rest))
        }
        [Token::Sign("!="), rest @ ..] => {
            let (value, rest) = exact(rest)?;
            Ok((Requirement::NotIn(key, vec![value]), rest))
        }
        [Token::Sign(sign @ (">" | "<")), Token::Word(number), rest @ ..] => {
            let bound = number
                .parse()
                .map_err(|_| format!("for 'Gt', 'Lt' operators, the value must be an integer: {number:?}"))?;
            let requirement =
                if *sign == ">" { Requirement::Greater(key, bound) } else { Requirement::Less(key, bound) };
            Ok((requirement, rest))
        }
        [Token::Word("in"), rest @ ..] => {
            let (values, rest) = values(rest)?;
            Ok((Requirement::In(key, values), rest))
        }
        [Token::Word("notin"), rest @ ..] => {
            let (values, rest) = values(rest)?;
            Ok((Requirement::NotIn(key, values), rest))
        }
        [other, ..] => Err(format!("found {other:?}, expected: in, notin, =, ==, !=, gt, lt")),
    }
}

fn exact<'t, 'a>(tokens: &'t [Token<'a>]) -> Result<(String, &'t [Token<'a>]), String> {
    match tokens {
        [] | [Token::Sign(","), ..] => Ok((String::new(), tokens)),
        [Token::Word(value), rest @ ..] => Ok((valued(value)?, rest)),
        [other, ..] => Err(format!("found {other:?}, expected: identifier")),
    }
}

fn values<'t, 'a>(tokens: &'t [Token<'a>]) -> Result<(Vec<String>, &'t [Token<'a>]), String> {
    let [Token::Sign("("), rest @ ..] = tokens else { return Err("expected: '('".to_owned()) };
    let mut rest = rest;
    let mut values = Vec::new();
    let mut last_was_value = false;
    loop {
        match rest {
            [Token::Word(value), tail @ ..] if !last_was_value => {
                values.push(valued(value)?);
                last_was_value = true;
                rest = tail;
            }
            [Token::Sign(","), tail @ ..] => {
                if !last_was_value {
                    values.push(String::new());
                }
                last_was_value = false;
                rest = tail;
            }
            [Token::Sign(")"), tail @ ..] => {
                if !last_was_value {
                    values.push(String::new());
                }
                return Ok((values, tail));
            }
            _ => return Err("expected: ',', ')' or identifier".to_owned()),
        }
    }
}

fn checked(key: &str) -> Result<String, String> {
    match qualified_name(key) {
        Some(why) => Err(format!("<nil>: Invalid value: {key:?}: {why}")),
        None => Ok(key.to_owned()),
    }
}

fn valued(value: &str) -> Result<String, String> {
    let fine =
        value.len() <= 63 && (value.is_empty() || qualified_name(value).is_none()) && !value.contains('/');
    if fine {
        Ok(value.to_owned())
    } else {
        Err(format!(
            "Invalid value: {value:?}: a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'"
        ))
    }
}

fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, String> {
    let mut terms = Vec::new();
    for part in split_terms(text) {
        if part.is_empty() {
            continue;
        }
        let (at, length, equal) = find_operator(&part)
            .ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
        terms.push(FieldTerm { field: part[..at].to_owned(), value: unescape(&part[at + length..])?, equal });
    }
    Ok(terms)
}

/// Splits at commas that no backslash protects.
fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = terms.last_mut() {
            last.push(c);
        }
    }
    terms
}

fn find_operator(term: &str) -> Option<(usize, usize, bool)> {
    let bytes = term.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 1,
            b'!' if bytes.get(i + 1) == Some(&b'=') => return Some((i, 2, false)),
            b'=' if bytes.get(i + 1) == Some(&b'=') => return Some((i, 2, true)),
            b'=' => return Some((i, 1, true)),
            _ => {}
        }
        i += 1;
    }
    None
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: unterminated escape sequence".to_owned()),
            },
            '=' | ',' => return Err(format!("invalid field selector: unescaped character in value: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// The string form of a selector in an object: a LabelSelector, a map of labels, or a string already.
pub fn to_text(selector: &Value) -> String {
    let Some(map) = selector.as_object() else { return selector.as_str().unwrap_or_default().to_owned() };
    let plain = !map.contains_key("matchLabels") && !map.contains_key("matchExpressions");
    let labels = if plain { Some(map) } else { map.get("matchLabels").and_then(Value::as_object) };
    let mut terms: Vec<(String, String)> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.clone(), format!("{k}={}", v.as_str().unwrap_or_default())))
        .collect();
    for expression in map.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        terms.push((key.to_owned(), text));
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors() {
        for good in ["a=b", "a==b,c!=d", "a in (x, y),!b", "a notin (z)", "a", "x.y/z > 3", "a=", ""] {
            assert!(parse_labels(good).is_ok(), "{good}");
        }
        for bad in ["a=b=c", "=x", "a,,b", "a b", "a in x", "-bad", "a/b/c=d"] {
            assert!(parse_labels(bad).is_err(), "{bad}");
        }
        let label = |key: &str| (key == "a").then_some("x");
        let holds = |text: &str| parse_labels(text).expect("parses").iter().all(|r| r.holds(&label));
        assert!(holds("a in (x,y),b!=1,!c"));
        assert!(!holds("a notin (x)"));
    }

    #[test]
    fn field_selectors() {
        let terms = parse_fields("a=b\\,c,d!=e").expect("parses");
        assert_eq!(terms[0].value, "b,c");
        assert!(!terms[1].equal);
        assert!(parse_fields("nonsense").is_err());
    }
}
