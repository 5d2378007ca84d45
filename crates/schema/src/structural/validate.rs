//! Values against a schema, with the findings and words of kube-openapi's validator. On an update, what has not changed is
//! not found fault with (KEP-4008).

use serde_json::Value;

use super::correlate::Correlated;
use super::{Additional, Schema, formats};
use crate::field::{FieldError, FieldErrorKind};

/// What is wrong with a value. `path` is that of the value in its object, empty for the root.
pub fn value(value: &Value, schema: &Schema, path: &str) -> Vec<FieldError> {
    named(path, Validator { root: path }.node(value, schema, "", None).errors)
}

/// What is wrong with a new root object, leaving out what was so before.
pub fn update(new: &Value, old: &Value, schema: &Schema) -> Vec<FieldError> {
    let correlated = Correlated::new(old, new, schema);
    named("", Validator { root: "" }.node(new, schema, "", Some(correlated)).errors)
}

/// The same for a part of an object at a path, such as its status.
pub fn part(new: &Value, old: &Value, schema: &Schema, path: &str) -> Vec<FieldError> {
    let correlated = Correlated::new(old, new, schema);
    named(path, Validator { root: path }.node(new, schema, "", Some(correlated)).errors)
}

/// A finding without a place of its own is one of the whole object, whose path upstream prints so.
fn named(path: &str, mut errors: Vec<FieldError>) -> Vec<FieldError> {
    for error in &mut errors {
        if error.field.is_empty() {
            error.field = if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() };
        }
    }
    errors
}

/// Findings and how many checks were made, which tells the best of several alternatives.
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    checks: usize,
}

impl Outcome {
    fn add(&mut self, error: FieldError) {
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    fn merge(&mut self, other: Self) {
        self.checks += other.checks;
        other.errors.into_iter().for_each(|e| self.add(e));
    }
}

struct Validator<'a> {
    root: &'a str,
}

/// The JSON type of a value and its format, as Go's decoder makes it.
fn type_of(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(n) if n.is_f64() => ("number", "float64"),
        Value::Number(_) => ("integer", "int64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

/// A float as Go's `%v` prints it.
fn float(number: f64) -> String {
    let magnitude = number.abs();
    if number != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        let text = format!("{number:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(("+", exponent), |d| ("-", d));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{number}")
}

fn whole(number: f64) -> bool {
    number.is_finite() && (number - number.round()).abs() < 1e-9 * number.abs().max(1.0)
}

impl Validator<'_> {
    /// A place in the object: the path below the root, as messages name it, becomes that of the finding.
    fn field(&self, name: &str) -> String {
        let name = name.trim_start_matches('.');
        match (self.root.is_empty(), name.is_empty()) {
            (_, true) => String::new(),
            (true, false) => name.to_owned(),
            (false, false) if name.starts_with('[') => format!("{}{name}", self.root),
            (false, false) => format!("{}.{name}", self.root),
        }
    }

    fn error(
        &self,
        kind: FieldErrorKind,
        name: &str,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> FieldError {
        FieldError::new(kind, self.field(name), value, detail)
    }

    fn whole_error(&self, detail: String) -> FieldError {
        FieldError::new(FieldErrorKind::Invalid, self.root, "", detail)
    }

    /// A value with what belongs to it from before.
    fn node(&self, value: &Value, schema: &Schema, name: &str, old: Option<Correlated<'_>>) -> Outcome {
        let mut outcome = self.check(value, schema, name, old);
        if !outcome.errors.is_empty() && old.is_some_and(|old| old.equal()) {
            outcome.errors.clear();
        }
        outcome
    }

    fn check(&self, value: &Value, schema: &Schema, name: &str, old: Option<Correlated<'_>>) -> Outcome {
        let mut outcome = Outcome::default();
        let types: &[&str] = match (schema.int_or_string, schema.kind.as_str()) {
            (true, _) => &["integer", "string"],
            (false, "") => &[],
            (false, kind) => &[kind],
        };
        let kind = if let [one] = types { one } else { "" };
        let format = if formats::unrecognized(kind, &schema.format) { "" } else { schema.format.as_str() };
        if value.is_null() {
            if !types.is_empty() && !schema.nullable {
                outcome.add(self.wrong_type(name, &types.join(","), "null"));
            }
            self.enumeration(value, schema, name, &mut outcome);
            return outcome;
        }
        if !types.is_empty() || !format.is_empty() {
            self.types(value, types, format, name, &mut outcome);
            outcome.checks += 2;
        }
        self.combined(value, schema, name, old, &mut outcome);
        outcome.checks += 2;
        match value {
            Value::String(text) => {
                self.string(text, schema, name, &mut outcome);
                if !format.is_empty() && !formats::accepts(format, text) {
                    let detail = format!("{name} in body must be of type {format}: {text:?}");
                    outcome.add(self.error(FieldErrorKind::TypeInvalid, name, text.as_str(), detail));
                }
                outcome.checks += 1 + usize::from(!format.is_empty());
            }
            Value::Number(_) => {
                self.number(value, schema, (kind, format), name, &mut outcome);
                outcome.checks += 2;
            }
            Value::Array(list) => {
                self.array(list, schema, name, old, &mut outcome);
                outcome.checks += 2;
            }
            _ => {}
        }
        self.enumeration(value, schema, name, &mut outcome);
        outcome.checks += 1;
        if let Value::Object(map) = value {
            self.object(map, schema, name, old, &mut outcome);
            outcome.checks += 1;
        }
        outcome.checks += 1;
        outcome
    }

    fn wrong_type(&self, name: &str, wanted: &str, is: &str) -> FieldError {
        let detail = format!("{name} in body must be of type {wanted}: {is:?}");
        self.error(FieldErrorKind::TypeInvalid, name, is, detail)
    }

    fn types(&self, value: &Value, types: &[&str], format: &str, name: &str, outcome: &mut Outcome) {
        let (kind, own_format) = type_of(value);
        let wants = |wanted: &str| types.contains(&wanted);
        let float_as_int = kind == "number" && value.as_f64().is_some_and(whole) && wants("integer");
        let int_as_float = kind == "integer" && wants("number");
        let fits = wants(kind) || float_as_int || int_as_float;
        let textual = matches!(kind, "string" | "array");
        if !textual && !format.is_empty() && !fits && own_format != format {
            outcome.add(self.wrong_type(name, format, own_format));
            return;
        }
        if textual && !format.is_empty() && !wants("number") && !wants("integer") {
            return;
        }
        if !fits {
            outcome.add(self.wrong_type(name, &types.join(","), kind));
        }
    }

    fn combined(
        &self,
        value: &Value,
        schema: &Schema,
        name: &str,
        old: Option<Correlated<'_>>,
        outcome: &mut Outcome,
    ) {
        let run = |schema: &Schema| self.check(value, schema, name, old);
        if !schema.any_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut fits = false;
            for schema in &schema.any_of {
                let result = run(schema);
                if result.errors.is_empty() {
                    fits = true;
                    best = Some(result);
                    break;
                }
                if best.as_ref().is_none_or(|b| result.checks > b.checks) {
                    best = Some(result);
                }
            }
            if !fits {
                outcome.add(self.whole_error(format!("{name:?} must validate at least one schema (anyOf)")));
            }
            best.into_iter().for_each(|best| outcome.merge(best));
        }
        if !schema.one_of.is_empty() {
            let (mut fit, mut first, mut best) = (0, None, None::<Outcome>);
            for result in schema.one_of.iter().map(run) {
                if result.errors.is_empty() {
                    fit += 1;
                    best = None;
                    first.get_or_insert(result);
                } else if fit == 0 && best.as_ref().is_none_or(|b| result.checks > b.checks) {
                    best = Some(result);
                }
            }
            match (fit, first) {
                (1, Some(first)) => outcome.merge(first),
                _ => {
                    let why = match fit {
                        0 => "Found none valid".to_owned(),
                        fit => format!("Found {fit} valid alternatives"),
                    };
                    let detail = format!("{name:?} must validate one and only one schema (oneOf). {why}");
                    outcome.add(self.whole_error(detail));
                    best.into_iter().for_each(|best| outcome.merge(best));
                }
            }
        }
        if !schema.all_of.is_empty() {
            let mut fit = 0;
            for result in schema.all_of.iter().map(run) {
                fit += usize::from(result.errors.is_empty());
                outcome.merge(result);
            }
            if fit != schema.all_of.len() {
                let none = if fit == 0 { ". None validated" } else { "" };
                outcome
                    .add(self.whole_error(format!("{name:?} must validate all the schemas (allOf){none}")));
            }
        }
        if schema.not.as_deref().is_some_and(|not| run(not).errors.is_empty()) {
            outcome.add(self.whole_error(format!("{name:?} must not validate the schema (not)")));
        }
    }

    fn string(&self, text: &str, schema: &Schema, name: &str, outcome: &mut Outcome) {
        let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if let Some(most) = schema.max_length.filter(|most| length > *most) {
            let bytes = if most == 1 { "byte" } else { "bytes" };
            let detail = format!("may not be more than {most} {bytes}");
            outcome.add(self.error(FieldErrorKind::TooLong, name, "<value omitted>", detail));
        } else if let Some(least) = schema.min_length.filter(|least| length < *least) {
            let detail = format!("{name} in body should be at least {least} chars long");
            outcome.add(self.error(FieldErrorKind::Invalid, name, text, detail));
        } else if schema.pattern.refuses(text) {
            let detail = format!("{name} in body should match '{}'", schema.pattern.text());
            outcome.add(self.error(FieldErrorKind::Invalid, name, text, detail));
        }
    }

    fn number(
        &self,
        value: &Value,
        schema: &Schema,
        (kind, format): (&str, &str),
        name: &str,
        outcome: &mut Outcome,
    ) {
        let integer = value.as_i64();
        let number = value.as_f64().unwrap_or(0.0);
        let in_range = match (kind, format) {
            ("integer", "int32") => {
                whole(number) && i32::try_from(number as i64).is_ok() && number.abs() < 1e18
            }
            ("integer", _) => integer.is_some() || (whole(number) && number.abs() < 9.3e18),
            (_, "float") => number.abs() <= f64::from(f32::MAX),
            _ => true,
        };
        if !in_range {
            let of = if format.is_empty() {
                "(default format)".to_owned()
            } else {
                format!("with format {format}")
            };
            outcome.add(self.whole_error(format!("Checked value must be of type {kind} {of} in {name}")));
        }
        let invalid = |detail: String| self.error(FieldErrorKind::Invalid, name, value.clone(), detail);
        let bound = |bound: f64| match integer {
            Some(_) => (bound as i64).to_string(),
            None => float(bound),
        };
        // Bounds of integers are cut to integers.
        let against = |bound: f64| match integer {
            Some(integer) => integer.cmp(&(bound as i64)),
            None => number.partial_cmp(&bound).unwrap_or(std::cmp::Ordering::Equal),
        };
        if let Some(factor) = schema.multiple_of {
            let fits = match integer {
                _ if factor <= 0.0 => {
                    let detail =
                        format!("factor MultipleOf declared for {name} must be positive: {}", bound(factor));
                    outcome.add(invalid(detail));
                    true
                }
                Some(integer) if factor >= 1.0 && whole(factor) => integer % (factor as i64) == 0,
                _ => whole(if factor < 1.0 { 1.0 / factor * number } else { number / factor }),
            };
            if !fits {
                outcome.add(invalid(format!("{name} in body should be a multiple of {}", bound(factor))));
            }
        }
        if let Some(least) = schema.minimum {
            let order = against(least);
            let (bad, words) = match schema.exclusive_minimum {
                true => (order.is_le(), "greater than"),
                false => (order.is_lt(), "greater than or equal to"),
            };
            if bad {
                outcome.add(invalid(format!("{name} in body should be {words} {}", bound(least))));
            }
        }
        if let Some(most) = schema.maximum {
            let order = against(most);
            let (bad, words) = match schema.exclusive_maximum {
                true => (order.is_ge(), "less than"),
                false => (order.is_gt(), "less than or equal to"),
            };
            if bad {
                outcome.add(invalid(format!("{name} in body should be {words} {}", bound(most))));
            }
        }
    }

    fn array(
        &self,
        list: &[Value],
        schema: &Schema,
        name: &str,
        old: Option<Correlated<'_>>,
        outcome: &mut Outcome,
    ) {
        if let Some(items) = &schema.items {
            for (index, item) in list.iter().enumerate() {
                let old = old.and_then(|old| old.index(index));
                outcome.merge(self.node(item, items, &format!("{name}[{index}]"), old));
            }
        }
        let size = i64::try_from(list.len()).unwrap_or(i64::MAX);
        if let Some(least) = schema.min_items.filter(|least| size < *least) {
            let detail = format!("{name} in body should have at least {least} items");
            outcome.add(self.error(FieldErrorKind::Invalid, name, size, detail));
        }
        if let Some(most) = schema.max_items.filter(|most| size > *most) {
            outcome.add(self.too_many(name, size, most));
        }
        if schema.unique_items && list.iter().enumerate().any(|(i, item)| list[..i].contains(item)) {
            let detail = format!("{name} in body shouldn't contain duplicates");
            outcome.add(self.error(FieldErrorKind::Invalid, name, "", detail));
        }
    }

    fn too_many(&self, name: &str, actual: i64, most: i64) -> FieldError {
        let items = if most == 1 { "item" } else { "items" };
        self.error(FieldErrorKind::TooMany, name, actual, format!("must have at most {most} {items}"))
    }

    fn enumeration(&self, value: &Value, schema: &Schema, name: &str, outcome: &mut Outcome) {
        let same = |allowed: &Value| match (allowed, value) {
            (Value::Null, _) => false,
            (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
            (a, b) => a == b,
        };
        if schema.enumeration.is_empty() || schema.enumeration.iter().any(same) {
            return;
        }
        let text = |value: &Value| match value {
            Value::String(text) => format!("{text:?}"),
            other => format!("{:?}", other.to_string()),
        };
        let allowed: Vec<String> = schema.enumeration.iter().map(text).collect();
        let detail = format!("supported values: {}", allowed.join(", "));
        outcome.add(self.error(FieldErrorKind::NotSupported, name, value.clone(), detail));
    }

    fn object(
        &self,
        map: &serde_json::Map<String, Value>,
        schema: &Schema,
        name: &str,
        old: Option<Correlated<'_>>,
        outcome: &mut Outcome,
    ) {
        let size = i64::try_from(map.len()).unwrap_or(i64::MAX);
        if let Some(least) = schema.min_properties.filter(|least| size < *least) {
            let detail = format!("{name} in body should have at least {least} properties");
            outcome.add(self.error(FieldErrorKind::Invalid, name, size, detail));
        }
        if let Some(most) = schema.max_properties.filter(|most| size > *most) {
            outcome.add(self.too_many(name, size, most));
        }
        // Kind and version are of the version served: a change of theirs cannot be seen.
        let before = |key: &str| {
            let hidden = name.is_empty() && matches!(key, "kind" | "apiVersion");
            old.filter(|_| !hidden).and_then(|old| old.key(key))
        };
        for (key, value) in map.iter().filter(|(key, _)| !schema.properties.contains_key(*key)) {
            match &schema.additional {
                Some(Additional::Allowed(false)) => {
                    let detail = format!("{name}.{key} in body is a forbidden property");
                    outcome.add(self.error(FieldErrorKind::Invalid, name, key.as_str(), detail));
                }
                Some(Additional::Schema(schema)) => {
                    outcome.merge(self.node(value, schema, &format!("{name}.{key}"), before(key)));
                }
                _ => {}
            }
        }
        for (key, schema) in &schema.properties {
            if let Some(value) = map.get(key) {
                let dot = if name.is_empty() { "" } else { "." };
                outcome.merge(self.node(value, schema, &format!("{name}{dot}{key}"), before(key)));
            }
        }
        for key in schema.required.iter().filter(|key| !map.contains_key(*key)) {
            outcome.add(self.error(FieldErrorKind::Required, &format!("{name}.{key}"), "", ""));
        }
    }
}
