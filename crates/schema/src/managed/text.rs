//! The text of managedFields: the members of `fieldsV1` in upstream's order, which is not that of their written form
//! (port 80 stands before port 443), so that the bytes are the same.

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::Value;

/// The list of a metadata's `managedFields` as JSON.
pub fn entries_text(entries: &Value) -> String {
    let Some(list) = entries.as_array() else { return entries.to_string() };
    let mut out = String::from("[");
    for (index, entry) in list.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        let Some(entry) = entry.as_object() else {
            out.push_str(&entry.to_string());
            continue;
        };
        out.push('{');
        for (index, (key, value)) in entry.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            // Writing to a String cannot fail.
            let _ = write!(out, "{}:", Value::from(key.as_str()));
            match key.as_str() {
                "fieldsV1" => write_fields(value, &mut out),
                _ => out.push_str(&value.to_string()),
            }
        }
        out.push('}');
    }
    out.push(']');
    out
}

/// A `fieldsV1` as JSON.
pub fn fields_text(fields: &Value) -> String {
    let mut out = String::new();
    write_fields(fields, &mut out);
    out
}

fn write_fields(fields: &Value, out: &mut String) {
    let Some(map) = fields.as_object() else {
        out.push_str(&fields.to_string());
        return;
    };
    let mut members: Vec<(Element<'_>, &String, &Value)> =
        map.iter().map(|(key, value)| (Element::of(key), key, value)).collect();
    members.sort_by(|a, b| a.0.compare(&b.0).then_with(|| a.1.cmp(b.1)));
    out.push('{');
    for (index, (_, key, value)) in members.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        let _ = write!(out, "{}:", Value::from(key.as_str()));
        write_fields(value, out);
    }
    out.push('}');
}

/// A path element, ready to be compared: the dot, fields, keys, values and indices stand in this order.
enum Element<'a> {
    Dot,
    Field(&'a str),
    Keys(Value),
    Value(Value),
    Index(i64),
    Other,
}

impl<'a> Element<'a> {
    fn of(text: &'a str) -> Self {
        let parsed = |rest: &str| serde_json::from_str(rest).ok();
        let found = match text.split_once(':') {
            None if text == "." => Some(Self::Dot),
            Some(("f", rest)) => Some(Self::Field(rest)),
            Some(("k", rest)) => parsed(rest).map(Self::Keys),
            Some(("v", rest)) => parsed(rest).map(Self::Value),
            Some(("i", rest)) => rest.parse().ok().map(Self::Index),
            _ => None,
        };
        found.unwrap_or(Self::Other)
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Dot => 0,
            Self::Field(_) => 1,
            Self::Keys(_) => 2,
            Self::Value(_) => 3,
            Self::Index(_) => 4,
            Self::Other => 5,
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Keys(a), Self::Keys(b)) | (Self::Value(a), Self::Value(b)) => compare(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

/// Numbers before strings, booleans, lists, maps and null.
fn compare(a: &Value, b: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    };
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x.as_f64().unwrap_or_default().total_cmp(&y.as_f64().unwrap_or_default()),
        },
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => {
            let unequal = x.iter().zip(y).map(|(x, y)| compare(x, y)).find(|order| order.is_ne());
            unequal.unwrap_or_else(|| x.len().cmp(&y.len()))
        }
        (Value::Object(x), Value::Object(y)) => {
            let pairs = x.iter().zip(y).map(|((k, v), (l, w))| k.cmp(l).then_with(|| compare(v, w)));
            pairs.into_iter().find(|order| order.is_ne()).unwrap_or_else(|| x.len().cmp(&y.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_reference_order() {
        let fields = json!({
            "k:{\"port\":443}": {}, "k:{\"port\":80}": {".": {}, "f:port": {}}, "f:z": {}, ".": {},
            "v:\"a b\"": {}, "v:\"a\"": {}, "i:10": {}, "i:9": {},
        });
        assert_eq!(
            fields_text(&fields),
            r#"{".":{},"f:z":{},"k:{\"port\":80}":{".":{},"f:port":{}},"k:{\"port\":443}":{},"v:\"a\"":{},"v:\"a b\"":{},"i:9":{},"i:10":{}}"#
        );
        let entries = json!([{"manager": "m", "fieldsV1": {"k:{\"p\":10}": {}, "k:{\"p\":9}": {}}}]);
        let text = entries_text(&entries);
        assert_eq!(text, r#"[{"fieldsV1":{"k:{\"p\":9}":{},"k:{\"p\":10}":{}},"manager":"m"}]"#);
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), entries);
    }
}
