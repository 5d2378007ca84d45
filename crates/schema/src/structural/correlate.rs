//! Which old value belongs to a new one, so that what has not changed need not be found fault with again (KEP-4008).

use serde_json::Value;

use super::Schema;

/// A new value, the old value in its place, and the schema of both.
#[derive(Clone, Copy, Debug)]
pub struct Correlated<'a> {
    pub old: &'a Value,
    pub new: &'a Value,
    pub schema: &'a Schema,
}

impl<'a> Correlated<'a> {
    pub fn new(old: &'a Value, new: &'a Value, schema: &'a Schema) -> Self {
        Self { old, new, schema }
    }

    /// The field of an object, if it was there before.
    pub fn key(&self, key: &str) -> Option<Self> {
        let (old, new) = (self.old.as_object()?.get(key)?, self.new.as_object()?.get(key)?);
        let schema = match self.schema.properties.get(key) {
            Some(schema) => schema,
            None => self.schema.additional.as_ref()?.schema()?,
        };
        Some(Self { old, new, schema })
    }

    /// The element of a list that is a map by its keys, if one with the same keys was there before.
    pub fn index(&self, index: usize) -> Option<Self> {
        let (old, new) = (self.old.as_array()?, self.new.as_array()?.get(index)?);
        let schema = self.schema.items.as_deref()?;
        if self.schema.list_type.as_deref() != Some("map") {
            return None;
        }
        let same = |candidate: &&Value| {
            candidate.is_object() && self.schema.list_keys.iter().all(|k| candidate.get(k) == new.get(k))
        };
        let old = old.iter().find(same).filter(|_| new.is_object())?;
        Some(Self { old, new, schema })
    }

    /// Whether nothing has changed; the order of a list that is a map does not count.
    pub fn equal(&self) -> bool {
        if self.old == self.new {
            return true;
        }
        match (self.old, self.new) {
            (Value::Array(old), Value::Array(new)) => {
                self.schema.list_type.as_deref() == Some("map")
                    && old.len() == new.len()
                    && (0..new.len()).all(|i| self.index(i).is_some_and(|c| c.equal()))
            }
            (Value::Object(old), Value::Object(new)) => {
                old.len() == new.len() && new.keys().all(|k| self.key(k).is_some_and(|c| c.equal()))
            }
            _ => false,
        }
    }
}
