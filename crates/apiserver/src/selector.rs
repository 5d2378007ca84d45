//! Label and field selectors of lists and watches, applied to cached objects.

use std::sync::Arc;

use api::labels::{Operator, Requirement};
use serde_json::Value;

use crate::Status;
use crate::registry::Served;
use crate::registry::object::Object;
use crate::registry::topics::{self, Topic};

/// What a list or watch chooses.
pub struct Selector {
    labels: api::labels::Selector,
    fields: api::fields::Selector,
    /// Every field asked for is the name or the namespace, which the key tells.
    by_key: bool,
}

impl Selector {
    pub fn parse(served: &Served, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = api::labels::Selector::parse(labels)
            .map_err(|e| Status::bad_request(format!("unable to parse requirement: {e}")))?;
        let fields = api::fields::Selector::parse(fields).map_err(|e| Status::bad_request(e.to_string()))?;
        let mut by_key = true;
        for term in &fields.terms {
            if matches!(term.field.as_str(), "metadata.name" | "metadata.namespace") {
                continue;
            }
            by_key = false;
            if !served.resource.strategy.selects(&term.field) {
                let text = format!("field label not supported: {}", term.field);
                return Err(Status::bad_request(text));
            }
        }
        Ok(Self { labels, fields, by_key })
    }

    /// Chooses only the object of a name.
    pub fn only(&mut self, name: &str) {
        if self.name() != Some(name) {
            let (field, value) = ("metadata.name".to_owned(), name.to_owned());
            self.fields.terms.push(api::fields::Term { field, value, equal: true });
        }
    }

    /// Whether it chooses everything.
    pub fn everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// The name that every chosen object has.
    pub fn name(&self) -> Option<&str> {
        self.fields.required("metadata.name")
    }

    /// What a watch in a namespace can be indexed by: the object that it names, or the value of a field or label that it
    /// requires.
    pub fn topic(&self, served: &Served, namespace: &str) -> Option<(Topic, topics::Value)> {
        if let Some(name) = self.name()
            && (!served.resource.namespaced || !namespace.is_empty())
        {
            let topic = Topic { field: "metadata.name".to_owned(), value: served.key(namespace, name) };
            return Some((topic, Arc::new(|object: &Object| Some(object.key.to_string()))));
        }
        if !served.selects_stored() {
            return None;
        }
        let own = |field: &str| !matches!(field, "metadata.name" | "metadata.namespace");
        if let Some(term) = self.fields.terms.iter().find(|term| term.equal && own(&term.field)) {
            let (resource, field) = (served.resource.clone(), term.field.clone());
            let value = move |object: &Object| {
                let fields = object.fields(&resource.strategy);
                fields.iter().find(|(name, _)| *name == field).map(|(_, value)| value.clone())
            };
            return Some((Topic { field: term.field.clone(), value: term.value.clone() }, Arc::new(value)));
        }
        let one = |r: &&Requirement| r.operator == Operator::In && r.values.len() == 1;
        let required = self.labels.requirements().iter().find(one)?;
        let key = required.key.clone();
        // No field is called so.
        let topic = Topic { field: format!("metadata.labels[{key}]"), value: required.values[0].clone() };
        Some((topic, Arc::new(move |object: &Object| object.label(&key).map(str::to_owned))))
    }

    pub fn matches(&self, served: &Served, object: &Object) -> bool {
        if self.everything() {
            return true;
        }
        if self.name().is_some_and(|name| name != object.name()) {
            return false;
        }
        let of_key = |field: &str| match field {
            "metadata.name" => Some(object.name()),
            "metadata.namespace" => Some(object.namespace()),
            _ => None,
        };
        if self.by_key && self.labels.is_everything() {
            return self.fields.matches(of_key);
        }
        let field = |key: &str| {
            let fields = || object.fields(&served.resource.strategy);
            of_key(key).or_else(|| fields().iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str()))
        };
        self.labels.matches(|key| object.label(key)) && self.fields.matches(field)
    }
}

/// The string form of a selector in an object: a LabelSelector, a map of labels, or a string already.
pub fn to_text(selector: &Value) -> String {
    match selector {
        Value::String(text) => text.clone(),
        Value::Object(map) if map.contains_key("matchLabels") || map.contains_key("matchExpressions") => {
            api::labels::Selector::from_json(selector).map(|s| s.to_string()).unwrap_or_default()
        }
        Value::Object(_) => api::labels::Selector::from_map(selector).to_string(),
        _ => String::new(),
    }
}
