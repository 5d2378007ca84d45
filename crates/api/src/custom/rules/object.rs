//! The rules of a version against an object, within a budget for the whole object.

use std::collections::BTreeMap;

use cel::{Activation, Budget, EvalError, Program};
use schema::structural::{Additional, Correlated, Rule, Schema};
use serde_json::Value;

use super::{OLD_SELF, Place, SELF, invalid};
use crate::{FieldError, FieldErrorKind, Findings};

/// The most that all evaluations for one object may cost.
const BUDGET: u64 = 10_000_000;
/// The longest message that an expression may make, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

/// The compiled rules of a version.
pub struct Rules {
    schema: Schema,
    root: Node,
}

/// The compiled rules of a schema, and of those below it that have any.
struct Node {
    /// `type`, which stands for values in some messages.
    kind: String,
    place: Option<Place>,
    rules: Vec<Compiled>,
    items: Option<Box<Node>>,
    additional: Option<Box<Node>>,
    properties: BTreeMap<String, Node>,
    all_of: Vec<Node>,
    /// Old and new values of fields can be brought together.
    correlates: bool,
    /// What tells the elements of a list apart, if old and new ones can be brought together.
    keys: Option<Vec<String>>,
}

struct Compiled {
    rule: Rule,
    program: Option<Result<Program, String>>,
    message: Option<Program>,
    /// The way from the value to the field that the rule is about, as in paths of errors.
    field: String,
}

impl Rules {
    /// Compiles the rules of a root schema; `None` if there are none.
    pub fn compile(schema: &Schema) -> Option<Self> {
        Self::of(schema, true)
    }

    /// Compiles the rules of a schema; `resource`: of a whole resource.
    pub(super) fn of(schema: &Schema, resource: bool) -> Option<Self> {
        if !schema.any(&|one| !one.rules.is_empty()) {
            return None;
        }
        Some(Self { root: Node::new(schema, schema, resource)?, schema: schema.clone() })
    }

    /// What the rules find wrong with an object. On an update, `old` is what was there before: what rules without
    /// `oldSelf` find in values that have not changed is only warned of.
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> Findings {
        self.validate_at(ROOT, new, old)
    }

    pub(super) fn validate_at(&self, path: &str, new: &Value, old: Option<&Value>) -> Findings {
        let mut run = Run { errors: Vec::new(), warnings: Vec::new(), left: BUDGET };
        let same = Same { here: old.map(|old| Correlated::new(old, new, &self.schema)), above: None };
        // Whoever stops has said why.
        let _ = run.node(path, &self.root, new, old, same);
        Findings { errors: run.errors, warnings: run.warnings }
    }

    /// The findings of an object, after `found`: objects that are wrong in shape are not evaluated.
    pub fn after(&self, found: &[FieldError], new: &Value, old: Option<&Value>) -> Findings {
        use FieldErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
        if found.iter().any(|e| matches!(e.kind, Required | TooLong | TooMany | TypeInvalid | NotSupported)) {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            return vec![invalid(ROOT, Value::Null, detail)].into();
        }
        self.validate(new, old)
    }
}

/// The path of the object itself.
const ROOT: &str = "<nil>";

fn child(path: &str, name: &str) -> String {
    if path == ROOT { name.to_owned() } else { format!("{path}.{name}") }
}

impl Node {
    /// `None` if there is no rule here or below. `rules` is the schema that holds the rules: `schema` itself or one of
    /// its `allOf`.
    fn new(rules: &Schema, schema: &Schema, resource: bool) -> Option<Self> {
        let below = |rules: Option<&Schema>, schema: Option<&Schema>| {
            let (rules, schema) = rules.zip(schema)?;
            Self::new(rules, schema, schema.embedded).map(Box::new)
        };
        let items = below(rules.items.as_deref(), schema.items.as_deref());
        let of = |schema: &'_ Schema| schema.additional.as_ref().and_then(Additional::schema).cloned();
        let additional = below(of(rules).as_ref(), of(schema).as_ref());
        let properties: BTreeMap<String, Node> = rules
            .properties
            .iter()
            .filter_map(|(name, rules)| {
                let schema = schema.properties.get(name)?;
                Some((name.clone(), Self::new(rules, schema, schema.embedded)?))
            })
            .collect();
        let all_of: Vec<Node> =
            rules.all_of.iter().filter_map(|one| Self::new(one, schema, resource)).collect();
        let nothing = items.is_none() && additional.is_none() && properties.is_empty() && all_of.is_empty();
        if rules.rules.is_empty() && nothing {
            return None;
        }
        let place = if rules.rules.is_empty() { None } else { Place::new(schema, resource) };
        let compile = |rule: &Rule| {
            let program = place.as_ref().and_then(|place| place.compile(rule));
            let message = place.as_ref().and_then(|place| place.compile_message(rule)).and_then(Result::ok);
            let field = schema::structural::path::find(schema, &rule.field_path, true);
            let field = field.map(|(way, _)| path_of(schema, &way)).unwrap_or_default();
            Compiled { rule: rule.clone(), program, message, field }
        };
        Some(Self {
            kind: schema.kind.clone(),
            rules: rules.rules.iter().map(compile).collect(),
            place,
            items,
            additional,
            properties,
            all_of,
            correlates: matches!(schema.map_type.as_deref(), None | Some("granular" | "atomic")),
            keys: (schema.list_type.as_deref() == Some("map")).then(|| schema.list_keys.clone()),
        })
    }
}

/// A way as it stands in paths of errors: `a.b[key]`.
fn path_of(schema: &Schema, way: &[String]) -> String {
    let mut out = String::new();
    let mut here = Some(schema);
    for key in way {
        let named = here.is_some_and(|schema| schema.properties.contains_key(key));
        here = here.and_then(|schema| {
            schema.properties.get(key).or_else(|| schema.additional.as_ref().and_then(Additional::schema))
        });
        match (named, out.is_empty()) {
            (true, true) => out.push_str(key),
            (true, false) => out.push_str(&format!(".{key}")),
            (false, _) => out.push_str(&format!("[{key}]")),
        }
    }
    out
}

/// Which old value a value is compared with, to tell whether it has changed.
#[derive(Clone, Copy)]
struct Same<'v> {
    here: Option<Correlated<'v>>,
    /// That of the nearest value above, where there is none here.
    above: Option<Correlated<'v>>,
}

impl<'v> Same<'v> {
    fn unchanged(&self) -> bool {
        self.here.or(self.above).is_some_and(|one| one.equal())
    }

    fn key(self, name: &str) -> Self {
        match self.here {
            None => self,
            // These two are the same in both by conversion.
            Some(_) if self.above.is_none() && matches!(name, "apiVersion" | "kind") => {
                Self { here: None, above: None }
            }
            Some(here) => Self { here: here.key(name), above: Some(here) },
        }
    }

    fn index(self, index: usize) -> Self {
        match self.here {
            None => self,
            Some(here) => Self { here: here.index(index), above: Some(here) },
        }
    }
}

/// No further rule is to be evaluated.
struct Stop;

struct Run {
    errors: Vec<FieldError>,
    warnings: Vec<String>,
    /// What is left of the budget.
    left: u64,
}

impl Run {
    fn node(
        &mut self,
        path: &str,
        node: &Node,
        new: &Value,
        old: Option<&Value>,
        same: Same<'_>,
    ) -> Result<(), Stop> {
        if new.is_null() {
            return Ok(());
        }
        let old = old.filter(|old| !old.is_null());
        self.expressions(path, node, new, old, same)?;
        for one in &node.all_of {
            self.node(path, one, new, old, Same { here: None, above: same.above })?;
        }
        match new {
            Value::Object(fields) => {
                let old = old.and_then(Value::as_object).filter(|_| node.correlates);
                let before = |name: &String| old.and_then(|old| old.get(name));
                if let Some(of) = &node.additional {
                    for (name, value) in fields {
                        self.node(&format!("{path}[{name}]"), of, value, before(name), same.key(name))?;
                    }
                }
                for (name, value) in fields {
                    if let Some(of) = node.properties.get(name) {
                        self.node(&child(path, name), of, value, before(name), same.key(name))?;
                    }
                }
            }
            Value::Array(elements) => {
                let Some(of) = &node.items else { return Ok(()) };
                let old = old.and_then(Value::as_array);
                for (index, value) in elements.iter().enumerate() {
                    let before = node.keys.as_ref().zip(old).and_then(|(keys, old)| {
                        old.iter().find(|old| {
                            value.is_object()
                                && old.is_object()
                                && keys.iter().all(|key| old.get(key) == value.get(key))
                        })
                    });
                    self.node(&format!("{path}[{index}]"), of, value, before, same.index(index))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn expressions(
        &mut self,
        path: &str,
        node: &Node,
        new: &Value,
        old: Option<&Value>,
        same: Same<'_>,
    ) -> Result<(), Stop> {
        if node.rules.is_empty() {
            return Ok(());
        }
        let Some(place) = &node.place else {
            let detail =
                "rule compiler initialization error: failed to convert to declType for CEL validation rules";
            self.errors.push(invalid(path, node.kind.as_str(), detail));
            return Ok(());
        };
        if self.left == 0 {
            return self.out_of_budget(path, node);
        }
        let value = cel::Value::typed(new, &place.decl);
        let old_value = old.map(|old| cel::Value::typed(old, &place.decl));
        for one in &node.rules {
            let program = match &one.program {
                None => continue,
                Some(Ok(program)) => program,
                Some(Err(detail)) => {
                    self.errors.push(invalid(
                        path,
                        node.kind.as_str(),
                        format!("rule compile error: {detail}"),
                    ));
                    continue;
                }
            };
            let optional = one.rule.optional_old_self == Some(true);
            let uses_old = program.uses(OLD_SELF);
            if uses_old && old.is_none() && !optional {
                continue;
            }
            let activation = match bind(&value, old_value.as_ref(), optional) {
                Ok(activation) => activation,
                Err(why) => {
                    let detail = format!("{why} evaluating rule: {}", shown(&one.rule));
                    self.errors.push(invalid(path, node.kind.as_str(), detail));
                    continue;
                }
            };
            let mut budget = Budget::per_call();
            let result = program.eval(&activation, &mut budget);
            if budget.spent > self.left {
                return self.out_of_budget(path, node);
            }
            self.left -= budget.spent;
            match result {
                Ok(cel::Value::Bool(true)) => {}
                Ok(_) => {
                    let ratchet = !uses_old && same.unchanged();
                    self.failed(path, node, one, new, &activation, ratchet)?;
                }
                Err(why) => self.broken(path, node, &one.rule, &why)?,
            }
        }
        Ok(())
    }

    fn out_of_budget(&mut self, path: &str, node: &Node) -> Result<(), Stop> {
        let detail =
            "validation failed due to running out of cost budget, no further validation rules will be run";
        self.errors.push(invalid(path, node.kind.as_str(), detail));
        Err(Stop)
    }

    /// A rule could not be evaluated.
    fn broken(&mut self, path: &str, node: &Node, rule: &Rule, why: &EvalError) -> Result<(), Stop> {
        let rule = shown(rule);
        let text = why.to_string();
        let limit = *why == EvalError::CostExceeded;
        let detail = if limit {
            format!(
                "'{text}': no further validation rules will be run due to call cost exceeds limit for rule: {rule}"
            )
        } else if text.starts_with("no such overload") {
            format!(
                "'{text}': call arguments did not match a supported operator, function or macro signature for rule: {rule}"
            )
        } else {
            format!("{text} evaluating rule: {rule}")
        };
        self.errors.push(invalid(path, node.kind.as_str(), detail));
        if limit { Err(Stop) } else { Ok(()) }
    }

    /// A rule says no.
    fn failed(
        &mut self,
        path: &str,
        node: &Node,
        one: &Compiled,
        new: &Value,
        activation: &Activation<'_>,
        ratchet: bool,
    ) -> Result<(), Stop> {
        let path = match one.field.as_str() {
            "" => path.to_owned(),
            field => child(path, field),
        };
        let mut detail = None;
        if let Some(program) = &one.message {
            match self.message(program, activation) {
                Ok(text) => detail = text,
                Err(why) => {
                    self.tell(invalid(path, node.kind.as_str(), why), ratchet);
                    return Err(Stop);
                }
            }
        }
        let rule = &one.rule;
        let detail = detail.unwrap_or_else(|| match rule.message.is_empty() {
            true => format!("failed rule: {}", shown(rule)),
            false => rule.message.trim().to_owned(),
        });
        let whole = matches!(node.kind.as_str(), "object" | "array");
        let kind = match rule.reason.as_deref() {
            Some("FieldValueForbidden") => FieldErrorKind::Forbidden,
            Some("FieldValueRequired") => FieldErrorKind::Required,
            Some("FieldValueDuplicate") => FieldErrorKind::Duplicate,
            _ => FieldErrorKind::Invalid,
        };
        let detail = if kind == FieldErrorKind::Duplicate { String::new() } else { detail };
        let found = match whole {
            true => FieldError::new(kind, path, node.kind.as_str(), detail).hide(),
            false => FieldError::new(kind, path, new.clone(), detail),
        };
        self.tell(found, ratchet);
        Ok(())
    }

    /// `ratchet`: it was so before, and does not stand against the update.
    fn tell(&mut self, found: FieldError, ratchet: bool) {
        match ratchet {
            true => self.warnings.push(found.message()),
            false => self.errors.push(found),
        }
    }

    /// What a message's expression says; nothing if that is no message. An error ends the validation.
    fn message(&mut self, program: &Program, activation: &Activation<'_>) -> Result<Option<String>, String> {
        let mut budget = Budget::per_call();
        let result = program.eval(activation, &mut budget);
        if budget.spent > self.left {
            return Err("messageExpression evaluation failed due to running out of cost budget, no further validation \
                        rules will be run"
                .to_owned());
        }
        self.left -= budget.spent;
        match result {
            Ok(cel::Value::String(text)) => {
                let text = text.trim();
                let fine = !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n');
                Ok(fine.then(|| text.to_owned()))
            }
            Err(EvalError::CostExceeded) => Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                program.source()
            )),
            _ => Ok(None),
        }
    }
}

type Wrapped<'a> = Result<cel::Value<'a>, EvalError>;

/// The variables of a rule.
fn bind<'a>(
    new: &Wrapped<'a>,
    old: Option<&Wrapped<'a>>,
    optional: bool,
) -> Result<Activation<'a>, EvalError> {
    let old = old.cloned().transpose()?;
    let activation = Activation::new().with(SELF, new.clone()?);
    Ok(match (optional, old) {
        (true, old) => activation.with(OLD_SELF, cel::Value::Optional(old.map(Into::into))),
        (false, Some(old)) => activation.with(OLD_SELF, old),
        (false, None) => activation,
    })
}

/// How a rule is told in messages.
fn shown(rule: &Rule) -> &str {
    if rule.message.is_empty() { rule.rule.trim() } else { rule.message.trim() }
}
