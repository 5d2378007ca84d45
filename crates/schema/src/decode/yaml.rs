//! YAML to JSON as upstream's YAML reader does it: YAML 1.1 words (`yes` is true), numbers in all bases, merge keys, the last
//! of duplicate keys wins. Aliases and depth are bounded, so that a small text cannot become a large value.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Number, Value};

use super::DecodeError;

const MAX_DEPTH: usize = 400;
/// Most nodes that aliases may add.
const MAX_ALIASED: usize = 200_000;
/// Most nodes that anchors may keep: those in several anchors count for each.
const MAX_ANCHORED: usize = 1_000_000;

pub(super) struct Parsed {
    pub value: Value,
    /// One text that names all duplicate keys, or none.
    pub duplicates: Vec<String>,
}

/// The first document of a text; null if there is none.
pub(super) fn parse(body: &[u8]) -> Result<Parsed, DecodeError> {
    let text = std::str::from_utf8(body)
        .map_err(|_| DecodeError::Yaml("yaml: invalid leading UTF-8 octet".to_owned()))?;
    if text.trim_start_matches([' ', '\n', '\r']).starts_with('\t') {
        return Err(DecodeError::Yaml("yaml: found character that cannot start any token".to_owned()));
    }
    let mut reader = Reader {
        events: Parser::new_from_str(text),
        anchors: HashMap::new(),
        aliased: 0,
        anchored: 0,
        duplicates: Vec::new(),
    };
    let value = reader.document()?;
    let duplicates = match reader.duplicates.as_slice() {
        [] => Vec::new(),
        lines => vec![format!("yaml: unmarshal errors:\n{}", lines.join("\n"))],
    };
    Ok(Parsed { value, duplicates })
}

struct Reader<'i> {
    events: Parser<'i, granit_parser::StrInput<'i>>,
    anchors: HashMap<usize, Value>,
    aliased: usize,
    anchored: usize,
    duplicates: Vec<String>,
}

fn fail(span: Option<&Span>, reason: &str) -> DecodeError {
    DecodeError::Yaml(match span {
        Some(span) => format!("yaml: line {}, column {}: {reason}", span.start.line(), span.start.col() + 1),
        None => format!("yaml: {reason}"),
    })
}

impl<'i> Reader<'i> {
    /// The next event that is no comment.
    fn next(&mut self) -> Result<Option<(Event<'i>, Span)>, DecodeError> {
        loop {
            let event = self.events.next_event().transpose().map_err(|error| {
                let at = error.marker();
                let place = format!("yaml: line {}, column {}: ", at.line(), at.col() + 1);
                DecodeError::Yaml(format!("{place}{}", error.info()))
            })?;
            if !matches!(event, Some((Event::Comment(..), _))) {
                return Ok(event);
            }
        }
    }

    fn document(&mut self) -> Result<Value, DecodeError> {
        while let Some((event, span)) = self.next()? {
            match event {
                Event::StreamStart | Event::DocumentStart(..) => {}
                Event::StreamEnd | Event::DocumentEnd => break,
                event => return self.node(event, &span, 0),
            }
        }
        Ok(Value::Null)
    }

    fn node(&mut self, event: Event<'i>, span: &Span, depth: usize) -> Result<Value, DecodeError> {
        if depth > MAX_DEPTH {
            return Err(fail(Some(span), "exceeded max depth"));
        }
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.as_deref().map(|t| t.suffix().to_owned());
                (anchor, scalar(&text, style, tag.as_deref()).map_err(|e| fail(Some(span), &e))?)
            }
            Event::SequenceStart(_, anchor, _) => (anchor, self.sequence(depth)?),
            Event::MappingStart(_, anchor, _) => (anchor, self.mapping(depth)?),
            Event::Alias(id) => {
                let value = self.anchors.get(&id).cloned();
                let value = value.ok_or_else(|| fail(Some(span), "anchor contains itself"))?;
                self.aliased += weight(&value);
                if self.aliased > MAX_ALIASED {
                    return Err(fail(None, "document contains excessive aliasing"));
                }
                (0, value)
            }
            _ => return Err(fail(Some(span), "did not find expected node content")),
        };
        if anchor != 0 {
            self.anchored += weight(&value);
            if self.anchored > MAX_ANCHORED {
                return Err(fail(None, "document contains excessive anchoring"));
            }
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut list = Vec::new();
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            list.push(self.node(event, &span, depth + 1)?);
        }
        Ok(Value::Array(list))
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut map = Map::new();
        let mut merged: Vec<Value> = Vec::new();
        while let Some((event, span)) = self.next()? {
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = self.node(event, &span, depth + 1)?;
            let Some((event, value_span)) = self.next()? else { break };
            let value = self.node(event, &value_span, depth + 1)?;
            if merge {
                match value {
                    Value::Array(list) => merged.extend(list),
                    one => merged.push(one),
                }
                continue;
            }
            let key = key_text(key).map_err(|e| fail(Some(&span), &e))?;
            if map.contains_key(&key) {
                self.duplicates.push(format!("  line {}: key {key:?} already set in map", span.start.line()));
            }
            map.insert(key, value);
        }
        for source in merged {
            let Value::Object(source) = source else {
                return Err(fail(None, "map merge requires map or sequence of maps as the value"));
            };
            for (key, value) in source {
                map.entry(key).or_insert(value);
            }
        }
        Ok(Value::Object(map))
    }
}

fn weight(value: &Value) -> usize {
    match value {
        Value::Array(list) => list.iter().map(weight).fold(1, usize::saturating_add),
        Value::Object(map) => map.values().map(weight).fold(1, usize::saturating_add),
        _ => 1,
    }
}

fn key_text(key: Value) -> Result<String, String> {
    match key {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Null => Err("unsupported map key of type: null".to_owned()),
        _ => Err("invalid map key".to_owned()),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&str>) -> Result<Value, String> {
    match tag {
        Some("str" | "binary") => return Ok(text.into()),
        None if style != ScalarStyle::Plain => return Ok(text.into()),
        _ => {}
    }
    let value = resolve(text);
    let fits = match tag {
        Some("int") => value.is_i64() || value.is_u64(),
        Some("float") => value.is_number(),
        Some("bool") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => true,
    };
    if !fits {
        return Err(format!("cannot decode `{text}` as a !!{}", tag.unwrap_or_default()));
    }
    Ok(value)
}

/// What a plain word means in YAML 1.1.
fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
    if !numeric {
        return text.into();
    }
    let plain = text.replace('_', "");
    integer(&plain).or_else(|| float(&plain)).unwrap_or_else(|| text.into())
}

fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if digits.starts_with(['-', '+']) {
        return None;
    }
    let lower = digits.to_ascii_lowercase();
    let magnitude = if let Some(hex) = lower.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        u64::from_str_radix(octal, 8)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        u64::from_str_radix(binary, 2)
    } else if lower.len() > 1 && lower.starts_with('0') {
        u64::from_str_radix(&lower, 8)
    } else {
        lower.parse()
    };
    let magnitude = magnitude.ok()?;
    if negative {
        let value = 0i128 - i128::from(magnitude);
        return i64::try_from(value).ok().map(Value::from);
    }
    Some(magnitude.into())
}

fn float(text: &str) -> Option<Value> {
    let shape = text.strip_prefix(['-', '+']).unwrap_or(text);
    let ok = shape.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'))
        && shape.bytes().any(|b| b.is_ascii_digit());
    if !ok {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT {
        return Some(Value::from(value as i64));
    }
    Number::from_f64(value).map(Value::Number)
}
