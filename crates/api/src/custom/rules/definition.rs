//! The rules of a definition: that they compile, what they may cost, and where `oldSelf` may be used.

use schema::structural::{Additional, Schema};
use serde_json::Value;

use super::{Before, OLD_SELF, Place, invalid};
use crate::{FieldError, FieldErrorKind};

/// The most that one rule may cost, and all rules of a schema.
const MAX_RULE: u64 = 10_000_000;
const MAX_ALL: u64 = 100_000_000;
/// How many of the most expensive rules are named, and what they must cost at least.
const NAMED: usize = 4;
const WORTH_NAMING: u64 = MAX_ALL / 100;

/// What is wrong with the rules of a schema whose other parts are in order.
pub fn check_definition(path: &str, schema: &Schema, before: &Before) -> Vec<FieldError> {
    let mut walk = Walk { before, errors: Vec::new(), total: 0, expensive: Vec::new() };
    walk.visit(path, schema, Scope { root: true, count: Some(1), uncorrelated: None });
    let Walk { mut errors, total, mut expensive, .. } = walk;
    if total > MAX_ALL {
        expensive.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, path) in expensive.into_iter().take(NAMED) {
            let detail =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.push(FieldError::new(FieldErrorKind::Forbidden, path, Value::Null, detail));
        }
        let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(too_expensive(path.to_owned(), name, total, MAX_ALL));
    }
    errors
}

struct Walk<'w> {
    before: &'w Before,
    errors: Vec<FieldError>,
    /// The cost of all rules.
    total: u64,
    expensive: Vec<(u64, String)>,
}

/// What holds for the schema that is visited.
#[derive(Clone, Copy)]
struct Scope<'p> {
    root: bool,
    /// How many values of the schema an object can have; `None` if nothing bounds it.
    count: Option<u64>,
    /// The schema above whose old and new values cannot be brought together.
    uncorrelated: Option<&'p str>,
}

impl Walk<'_> {
    fn visit(&mut self, path: &str, schema: &Schema, scope: Scope<'_>) {
        let grows = match schema.kind.as_str() {
            "object" if schema.additional.is_some() => schema.max_properties.map(|max| max.max(0) as u64),
            "array" => schema.max_items.map(|max| max.max(0) as u64),
            _ => Some(1),
        };
        let count = scope.count.zip(grows).map(|(count, grows)| count.saturating_mul(grows));
        let child = Scope { root: false, count, ..scope };
        if let Some(of) = schema.additional.as_ref().and_then(Additional::schema) {
            self.visit(&format!("{path}.additionalProperties"), of, child);
        }
        let granular = matches!(schema.map_type.as_deref(), None | Some("granular" | "atomic"));
        for (name, of) in &schema.properties {
            let uncorrelated = if granular { scope.uncorrelated } else { Some(path) };
            self.visit(&format!("{path}.properties[{name}]"), of, Scope { uncorrelated, ..child });
        }
        if let Some(items) = &schema.items {
            let map = schema.list_type.as_deref() == Some("map");
            let uncorrelated = if map { scope.uncorrelated } else { Some(path) };
            self.visit(&format!("{path}.items"), items, Scope { uncorrelated, ..child });
        }
        if !schema.rules.is_empty() {
            self.rules(path, schema, scope);
        }
    }

    fn rules(&mut self, path: &str, schema: &Schema, scope: Scope<'_>) {
        let list = format!("{path}.x-kubernetes-validations");
        let Some(place) = Place::new(schema, scope.root || schema.embedded) else {
            let detail = "internal error: failed to construct type information for x-kubernetes-validations rules: \
                          unable to convert structural schema to CEL declarations";
            self.errors.push(FieldError::new(FieldErrorKind::Internal, list, Value::Null, detail));
            return;
        };
        let count = scope.count.unwrap_or_else(|| place.decl.max_cardinality());
        for (index, rule) in schema.rules.iter().enumerate() {
            let at = |part: &str| format!("{list}[{index}].{part}");
            let Some(compiled) = place.compile(rule) else { continue };
            let uses_old = match compiled {
                Err(detail) => {
                    self.errors.push(invalid(at("rule"), rule.value.clone(), detail));
                    false
                }
                Ok(program) => {
                    let cost = program.max_cost().saturating_mul(count);
                    self.charge(at("rule"), "estimated rule cost", cost);
                    self.message(&place, rule, at("messageExpression"));
                    program.uses(OLD_SELF)
                }
            };
            match (uses_old, scope.uncorrelated) {
                (true, Some(above)) => {
                    let detail = format!(
                        "oldSelf cannot be used on the uncorrelatable portion of the schema within {above}"
                    );
                    self.errors.push(invalid(at("rule"), rule.rule.as_str(), detail));
                }
                (false, _) => {
                    if let Some(given) = rule.optional_old_self {
                        let detail = "may not be set if oldSelf is not used in rule";
                        self.errors.push(invalid(at("optionalOldSelf"), given, detail));
                    }
                }
                _ => {}
            }
        }
    }

    fn message(&mut self, place: &Place, rule: &schema::structural::Rule, path: String) {
        match place.compile_message(rule) {
            None => {}
            Some(Err(detail)) => self.errors.push(invalid(path, rule.value.clone(), detail)),
            Some(Ok(program)) => self.charge(path, "estimated messageExpression cost", program.max_cost()),
        }
    }

    fn charge(&mut self, path: String, name: &str, cost: u64) {
        if cost > MAX_RULE && !self.before.unchanged {
            self.errors.push(too_expensive(path.clone(), name, cost, MAX_RULE));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= WORTH_NAMING {
            self.expensive.push((cost, path));
        }
    }
}

fn too_expensive(path: String, name: &str, cost: u64, limit: u64) -> FieldError {
    let times = cost as f64 / limit as f64;
    let factor = if times > 100.0 {
        "more than 100x".to_owned()
    } else if times < 1.5 {
        format!("{times:.6}x")
    } else {
        format!("{times:.1}x")
    };
    let detail = format!(
        "{name} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    );
    FieldError::new(FieldErrorKind::Forbidden, path, Value::Null, detail)
}
