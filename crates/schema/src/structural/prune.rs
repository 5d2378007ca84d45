//! Pruning: fields that the schema does not name are dropped.

use serde_json::Value;

use super::{Additional, Schema};

const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Drops unknown fields. At the root of a resource kind, version and metadata stay. The answer is the paths of what was
/// dropped, sorted, if `wanted`.
pub fn prune(object: &mut Value, schema: &Schema, root: bool, wanted: bool) -> Vec<String> {
    let schema = if root { schema.as_resource() } else { std::borrow::Cow::Borrowed(schema) };
    let mut pruner = Pruner { wanted, path: Vec::new(), found: Vec::new() };
    pruner.prune(object, Some(&schema));
    pruner.found.sort();
    pruner.found
}

struct Pruner {
    wanted: bool,
    path: Vec<String>,
    found: Vec<String>,
}

impl Pruner {
    fn below(&mut self, step: impl FnOnce() -> String, run: impl FnOnce(&mut Self)) {
        if self.wanted {
            let step = step();
            self.path.push(step);
        }
        run(self);
        if self.wanted {
            self.path.pop();
        }
    }

    fn key(&mut self, key: &str, run: impl FnOnce(&mut Self)) {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.below(|| format!("{dot}{key}"), run);
    }

    fn record(&mut self, key: &str) {
        if self.wanted {
            let dot = if self.path.is_empty() { "" } else { "." };
            self.found.push(format!("{}{dot}{key}", self.path.concat()));
        }
    }

    fn prune(&mut self, value: &mut Value, schema: Option<&Schema>) {
        let kept = schema.is_some_and(Schema::preserves);
        match value {
            Value::Object(map) => {
                let top = self.path.is_empty();
                let mut unknown = Vec::new();
                for (key, value) in map.iter_mut() {
                    let Some(schema) = schema else {
                        unknown.push(key.clone());
                        continue;
                    };
                    let meta = META.contains(&key.as_str());
                    if schema.embedded && meta {
                        continue;
                    }
                    if let Some(property) = schema.properties.get(key) {
                        self.key(key, |p| p.prune(value, Some(property)));
                    } else if let Some(additional) = &schema.additional {
                        self.key(key, |p| p.prune(value, additional.schema()));
                    } else if !kept {
                        unknown.push(key.clone());
                    }
                }
                for key in unknown {
                    if schema.is_none() || !META.contains(&key.as_str()) || !top {
                        self.record(&key);
                    }
                    map.remove(&key);
                }
            }
            Value::Array(list) => {
                let items = schema.and_then(|s| s.items.as_deref());
                for (index, value) in list.iter_mut().enumerate() {
                    self.below(
                        || format!("[{index}]"),
                        |p| match items {
                            // Below a preserving list the items preserve as well, unless they have a schema.
                            None if kept => {}
                            Some(items) if kept => p.skip(value, items),
                            items => p.prune(value, items),
                        },
                    );
                }
            }
            _ => {}
        }
    }

    /// Keeps what is unknown here, and prunes what is known below.
    fn skip(&mut self, value: &mut Value, schema: &Schema) {
        match value {
            Value::Object(map) => {
                for (key, value) in map.iter_mut() {
                    if schema.embedded && META.contains(&key.as_str()) {
                        continue;
                    }
                    if let Some(property) = schema.properties.get(key) {
                        self.key(key, |p| p.prune(value, Some(property)));
                    } else if let Some(additional) = &schema.additional {
                        self.key(key, |p| p.prune(value, Additional::schema(additional)));
                    }
                }
            }
            Value::Array(list) => {
                for (index, value) in list.iter_mut().enumerate() {
                    if let Some(items) = &schema.items {
                        self.below(|| format!("[{index}]"), |p| p.skip(value, items));
                    }
                }
            }
            _ => {}
        }
    }
}
