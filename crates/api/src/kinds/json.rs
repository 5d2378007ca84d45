//! Reading and writing JSON objects by key, the way the kinds do it: absent and null are the same, a wrong type reads as empty.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Reading by key.
pub(crate) trait Read {
    /// The value of a key; null if there is none.
    fn at(&self, key: &str) -> &Value;
    /// The value at the end of a path of keys.
    fn dig(&self, path: &[&str]) -> &Value;
    /// A string; empty if absent.
    fn text(&self, key: &str) -> &str;
    /// A number, if there is one.
    fn int(&self, key: &str) -> Option<i64>;
    /// A number; 0 if absent.
    fn num(&self, key: &str) -> i64;
    /// A boolean; false if absent.
    fn flag(&self, key: &str) -> bool;
    /// A list; empty if absent.
    fn items(&self, key: &str) -> &[Value];
    /// An object's entries, in the order of keys; none if absent.
    fn entries(&self, key: &str) -> Vec<(&String, &Value)>;
    /// Whether the key has a value other than null.
    fn has(&self, key: &str) -> bool;
    /// Whether the value is null, `""`, 0, false, or an empty list or object.
    fn is_empty_value(&self) -> bool;
}

impl Read for Value {
    fn at(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&NULL)
    }

    fn dig(&self, path: &[&str]) -> &Value {
        path.iter().fold(self, |value, key| value.at(key))
    }

    fn text(&self, key: &str) -> &str {
        self.at(key).as_str().unwrap_or_default()
    }

    fn int(&self, key: &str) -> Option<i64> {
        self.at(key).as_i64()
    }

    fn num(&self, key: &str) -> i64 {
        self.int(key).unwrap_or_default()
    }

    fn flag(&self, key: &str) -> bool {
        self.at(key).as_bool().unwrap_or_default()
    }

    fn items(&self, key: &str) -> &[Value] {
        self.at(key).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn entries(&self, key: &str) -> Vec<(&String, &Value)> {
        self.at(key).as_object().map(|map| map.iter().collect()).unwrap_or_default()
    }

    fn has(&self, key: &str) -> bool {
        !self.at(key).is_null()
    }

    fn is_empty_value(&self) -> bool {
        match self {
            Value::Null => true,
            Value::Bool(b) => !b,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
        }
    }
}

/// Writing by key. Writing into something that is not an object does nothing.
pub(crate) trait Write {
    /// Sets a key.
    fn put(&mut self, key: &str, value: impl Into<Value>);
    /// Removes a key and gives its value.
    fn take_key(&mut self, key: &str) -> Option<Value>;
    /// Sets a key that is absent: a Go pointer, list or map.
    fn fill(&mut self, key: &str, value: impl Into<Value>);
    /// Sets a key that is absent or empty: a Go value.
    fn fill_zero(&mut self, key: &str, value: impl Into<Value>);
    /// The object under a key, made if there is none; a wrong type stays as it is.
    fn child(&mut self, key: &str) -> &mut Value;
    /// The value under a key if it is an object.
    fn existing(&mut self, key: &str) -> Option<&mut Value>;
    /// The elements of a list.
    fn items_mut(&mut self, key: &str) -> &mut [Value];
}

impl Write for Value {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        if let Some(map) = self.as_object_mut() {
            map.insert(key.to_owned(), value.into());
        }
    }

    fn take_key(&mut self, key: &str) -> Option<Value> {
        self.as_object_mut().and_then(|map| map.remove(key))
    }

    fn fill(&mut self, key: &str, value: impl Into<Value>) {
        if !self.has(key) {
            self.put(key, value);
        }
    }

    fn fill_zero(&mut self, key: &str, value: impl Into<Value>) {
        if self.at(key).is_empty_value() {
            self.put(key, value);
        }
    }

    fn child(&mut self, key: &str) -> &mut Value {
        if !self.is_object() {
            *self = Value::Object(Map::new());
        }
        self.fill(key, Value::Object(Map::new()));
        self.get_mut(key).expect("filled above")
    }

    fn existing(&mut self, key: &str) -> Option<&mut Value> {
        self.get_mut(key).filter(|value| value.is_object())
    }

    fn items_mut(&mut self, key: &str) -> &mut [Value] {
        self.get_mut(key).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default()
    }
}

/// An empty object.
pub(crate) fn empty() -> Value {
    Value::Object(Map::new())
}

/// Copies a key from `old`, or removes it where `old` has none.
pub(crate) fn keep(new: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(value) => new.put(key, value.clone()),
        None => {
            new.take_key(key);
        }
    }
}

/// Whether two values are the same where null, absent, and empty lists and maps mean nothing, as upstream's semantic
/// comparison has it; quantities are compared in their canonical form, which decoding gives them.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(key, value)| same(value, b.at(key)))
                && y.iter().all(|(key, value)| x.contains_key(key) || same(&NULL, value))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w)),
        (Value::Null, Value::Array(x)) | (Value::Array(x), Value::Null) => x.is_empty(),
        _ => a == b,
    }
}
