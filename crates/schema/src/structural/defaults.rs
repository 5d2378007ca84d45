//! Defaults of a structural schema: filling them in, and the rules that they must themselves obey.

use serde_json::{Map, Value, json};

use super::meta::{self, Coerce, Meta};
use super::{Additional, Schema, prune, validate};
use crate::field::{Errors, FieldError};

/// Fills in what is missing, or is null where the schema allows no null.
pub fn apply(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            for (key, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                match map.get_mut(key) {
                    None => drop(map.insert(key.clone(), default.clone())),
                    Some(present) if present.is_null() && !property.nullable => *present = default.clone(),
                    Some(_) => {}
                }
            }
            let additional = schema.additional.as_ref().and_then(Additional::schema);
            for (key, value) in map.iter_mut() {
                if let Some(property) = schema.properties.get(key) {
                    apply(value, property);
                } else if let Some(additional) = additional {
                    element(value, additional);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                list.iter_mut().for_each(|value| element(value, items));
            }
        }
        _ => {}
    }
}

fn element(value: &mut Value, schema: &Schema) {
    if value.is_null() && !schema.nullable {
        *value = schema.default.clone().unwrap_or_default();
    }
    apply(value, schema);
}

/// Drops nulls where the schema allows none and has no default.
pub fn prune_nulls(value: &mut Value, schema: Option<&Schema>) {
    match value {
        Value::Object(map) => {
            let below = |key: &str| {
                let schema = schema?;
                schema.properties.get(key).or_else(|| schema.additional.as_ref()?.schema())
            };
            map.retain(|key, value| {
                !value.is_null() || below(key).is_none_or(|s| s.nullable || s.default.is_some())
            });
            for (key, value) in map.iter_mut() {
                prune_nulls(value, below(key));
            }
        }
        Value::Array(list) => {
            let items = schema.and_then(|s| s.items.as_deref());
            list.iter_mut().for_each(|value| prune_nulls(value, items));
        }
        _ => {}
    }
}

/// Brings the defaults of a schema into the form that the server serves: without unknown fields.
pub fn prune_defaults(schema: &mut Schema, meta: Meta<'_>) {
    let below = schema.clone();
    if let Some(default) = &mut schema.default {
        // A default that is no valid metadata was accepted by an older server, and is left alone.
        drop(meta::coerce(default, &below, false, "", meta, Coerce { lenient: true, wanted: false }));
        prune::prune(default, &below, false, false);
    }
    if let Some(Additional::Schema(schema)) = &mut schema.additional {
        prune_defaults(schema, meta);
    }
    if let Some(items) = &mut schema.items {
        prune_defaults(items, meta);
    }
    for (_, property) in schema.properties.iter_mut() {
        prune_defaults(property, meta);
    }
}

/// Way from the nearest resource to a value.
#[derive(Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index,
}

/// What is wrong with the defaults of a schema. `pruned`: they may hold no unknown fields. `rules` checks a default against
/// the validation rules of its schema.
pub fn validate_defaults(
    path: &str,
    schema: &Schema,
    pruned: bool,
    meta: Meta<'_>,
    rules: &dyn Fn(&str, &Schema, &Value, bool) -> Vec<FieldError>,
) -> Vec<FieldError> {
    let root = schema.as_resource();
    let mut check = Check { pruned, meta, rules, errors: Errors::new() };
    check.schema(path, &root, &root, &mut Vec::new(), false);
    check.errors.0
}

struct Check<'a> {
    pruned: bool,
    meta: Meta<'a>,
    rules: &'a dyn Fn(&str, &Schema, &Value, bool) -> Vec<FieldError>,
    errors: Errors,
}

/// An object that holds a value at the end of a way.
fn surround(value: &Value, way: &[Step<'_>]) -> Value {
    let mut object = way.iter().rev().fold(value.clone(), |inner, step| match step {
        Step::Key(key) => Value::Object(Map::from_iter([((*key).to_owned(), inner)])),
        Step::Index => json!([inner]),
    });
    if let Some(map) = object.as_object_mut() {
        map.entry("kind").or_insert_with(|| "Validation".into());
        map.entry("apiVersion").or_insert_with(|| "validation/v1".into());
    }
    object
}

impl Check<'_> {
    fn schema<'s>(
        &mut self,
        path: &str,
        schema: &'s Schema,
        mut root: &'s Schema,
        way: &mut Vec<Step<'s>>,
        mut inside_meta: bool,
    ) {
        let outer = std::mem::take(way);
        if schema.embedded {
            inside_meta = false;
            root = schema;
        } else {
            way.clone_from(&outer);
        }
        if let Some(default) = &schema.default {
            let place = format!("{path}.default");
            let found = if inside_meta {
                self.in_metadata(&place, schema, root, default, way)
            } else {
                self.plain(&place, schema, default)
            };
            self.errors.0.extend(found);
        }
        if let Some(items) = &schema.items {
            way.push(Step::Index);
            self.schema(&format!("{path}.items"), items, root, way, inside_meta);
            way.pop();
        }
        for (key, property) in &schema.properties {
            let meta = schema.embedded && matches!(key.as_str(), "metadata" | "apiVersion" | "kind");
            way.push(Step::Key(key));
            let path = format!("{path}.properties[{key}]");
            self.schema(&path, property, root, way, inside_meta || meta);
            way.pop();
        }
        *way = outer;
    }

    fn in_metadata(
        &self,
        place: &str,
        schema: &Schema,
        root: &Schema,
        default: &Value,
        way: &[Step<'_>],
    ) -> Vec<FieldError> {
        let mut object = surround(default, way);
        let mut errors = Errors::new();
        let coerced = meta::coerce(&mut object, root, true, "", self.meta, Coerce::default());
        if let Err(error) = coerced {
            let detail = format!("must result in valid metadata: {}", error.message());
            errors.invalid(&place, default.clone(), detail);
            return errors.0;
        }
        let found = meta::validate(&object, root, true, "", self.meta);
        if !found.is_empty() {
            let all: Vec<String> = found.iter().map(FieldError::message).collect();
            let detail = format!("must result in valid metadata: {}", all.join(", "));
            errors.invalid(&place, default.clone(), detail);
            return errors.0;
        }
        self.values(place, schema, default)
    }

    fn plain(&self, place: &str, schema: &Schema, default: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        if self.pruned {
            let mut pruned = default.clone();
            prune::prune(&mut pruned, schema, schema.embedded, false);
            if pruned != *default {
                errors.invalid(&place, default.clone(), "must not have unknown fields");
            }
        }
        let mut coerced = default.clone();
        let found =
            match meta::coerce(&mut coerced, schema, schema.embedded, place, self.meta, Coerce::default()) {
                Err(error) => vec![error],
                Ok(_) => match meta::validate(&coerced, schema, schema.embedded, place, self.meta) {
                    found if found.is_empty() => self.values(place, schema, default),
                    found => found,
                },
            };
        errors.0.extend(found);
        errors.0
    }

    fn values(&self, place: &str, schema: &Schema, default: &Value) -> Vec<FieldError> {
        match validate::value(default, schema, place) {
            found if found.is_empty() => (self.rules)(place, schema, default, schema.embedded),
            found => found,
        }
    }
}
