//! Reading of JSON objects by path, where absence and emptiness are the same, as they are for Go's zero values.

use serde_json::Value;

static NULL: Value = Value::Null;

/// Access to the fields of an object by a dotted path (`spec.nodeName`).
pub trait Read {
    /// The value at the path, or null.
    fn at(&self, path: &str) -> &Value;

    /// The string at the path, or `""`.
    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    /// The list at the path, or an empty one.
    fn items(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map_or(&[], Vec::as_slice)
    }

    /// The strings of the list at the path.
    fn texts(&self, path: &str) -> impl Iterator<Item = &str> {
        self.items(path).iter().filter_map(Value::as_str)
    }

    /// Whether the path leads to something that is not null.
    fn has(&self, path: &str) -> bool {
        !self.at(path).is_null()
    }

    /// `metadata.name`.
    fn name(&self) -> &str {
        self.text("metadata.name")
    }

    /// `metadata.namespace`.
    fn namespace(&self) -> &str {
        self.text("metadata.namespace")
    }

    /// `metadata.uid`.
    fn uid(&self) -> &str {
        self.text("metadata.uid")
    }

    /// One annotation.
    fn annotation(&self, key: &str) -> Option<&str> {
        self.at("metadata.annotations").get(key).and_then(Value::as_str)
    }

    /// One label.
    fn label(&self, key: &str) -> Option<&str> {
        self.at("metadata.labels").get(key).and_then(Value::as_str)
    }
}

impl Read for Value {
    fn at(&self, path: &str) -> &Value {
        let mut here = self;
        for key in path.split('.') {
            match here.get(key) {
                Some(next) => here = next,
                None => return &NULL,
            }
        }
        here
    }
}

/// The object at `path` for writing; what is missing or null on the way becomes an object.
pub fn object_mut<'a>(value: &'a mut Value, path: &str) -> &'a mut serde_json::Map<String, Value> {
    let mut here = value;
    for key in path.split('.').filter(|k| !k.is_empty()) {
        here = &mut force_object(here)[key];
    }
    fn force_object(value: &mut Value) -> &mut Value {
        if !value.is_object() {
            *value = Value::Object(serde_json::Map::new());
        }
        value
    }
    force_object(here).as_object_mut().expect("made an object just now")
}
