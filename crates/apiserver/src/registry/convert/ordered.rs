//! JSON text whose members stand in a given order, for what is kept as text: readers compare it byte for byte.

use serde_json::Value;

/// Members that are left out where there is no value.
#[derive(Default)]
pub struct Object(String);

impl Object {
    fn name(&mut self, name: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0.push_str(&Value::from(name).to_string());
        self.0.push(':');
    }

    /// A member, whatever its value.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.name(name);
        self.0.push_str(&value.into().to_string());
        self
    }

    /// A member, unless it is absent or null.
    #[must_use]
    pub fn maybe(self, name: &str, value: Option<&Value>) -> Self {
        match value.filter(|v| !v.is_null()) {
            Some(value) => self.with(name, value.clone()),
            None => self,
        }
    }

    /// A member that is JSON text already.
    #[must_use]
    pub fn text(mut self, name: &str, text: &str) -> Self {
        self.name(name);
        self.0.push_str(text);
        self
    }

    pub fn end(mut self) -> String {
        if self.0.is_empty() {
            self.0.push('{');
        }
        self.0.push('}');
        self.0
    }
}

/// A list of texts.
pub fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
}
