//! Where `x-kubernetes-validations` meet the other checks: compiled when a definition is written, evaluated when an object
//! is. The expressions themselves are `cel`'s.

use std::collections::BTreeSet;
use std::sync::Arc;

use cel::{Decl, Env, Program, Type};
use schema::structural::{Rule, Schema};
use serde_json::Value;

use crate::{FieldError, FieldErrorKind};

mod data;
mod definition;
mod object;
#[cfg(test)]
mod tests;

pub use definition::check_definition;
pub use object::Rules;

/// The expressions that an old definition held already; they are compiled in the environment of stored ones.
#[derive(Clone, Debug, Default)]
pub struct Before {
    pub rules: BTreeSet<String>,
    pub message_expressions: BTreeSet<String>,
    /// The schema of this version is what it was, so that costs are not looked at again.
    pub unchanged: bool,
}

impl Before {
    /// Adds what a schema holds.
    pub fn add(&mut self, schema: &Schema) {
        for rule in &schema.rules {
            self.rules.insert(rule.rule.clone());
            if !rule.message_expression.is_empty() {
                self.message_expressions.insert(rule.message_expression.clone());
            }
        }
        schema.children().for_each(|child| self.add(child));
    }
}

/// What is wrong with a default by the rules of its schema; `root`: the value is a whole resource.
pub fn check_default(path: &str, schema: &Schema, value: &Value, root: bool) -> Vec<FieldError> {
    match Rules::of(schema, root) {
        Some(rules) => rules.validate_at(path, value, None).errors,
        None => Vec::new(),
    }
}

/// The variables of rules.
const SELF: &str = "self";
const OLD_SELF: &str = "oldSelf";
/// What the type of the value is called in messages; expressions must not depend on it.
const TYPE: &str = "selfType";

/// Where the rules of one schema are compiled: with `oldSelf` of the same type, or as an optional value.
struct Place {
    decl: Arc<Decl>,
    plain: Env,
    optional: Env,
}

impl Place {
    /// `None` if expressions cannot use data of the schema. `resource`: it is that of a whole resource.
    fn new(schema: &Schema, resource: bool) -> Option<Self> {
        let decl = Arc::new(Decl::new(&data::Of(schema), TYPE, resource));
        if !decl.is_exposed() {
            return None;
        }
        let env = Env::new().with_data(SELF, decl.clone());
        let plain = env.clone().with_data(OLD_SELF, decl.clone());
        let optional = env.with_optional_data(OLD_SELF, decl.clone());
        Some(Self { decl, plain, optional })
    }

    fn env(&self, rule: &Rule) -> &Env {
        if rule.optional_old_self == Some(true) { &self.optional } else { &self.plain }
    }

    /// The rule's program, or why there is none; `None` for an empty rule.
    fn compile(&self, rule: &Rule) -> Option<Result<Program, String>> {
        if rule.rule.trim().is_empty() {
            return None;
        }
        Some(match self.env(rule).compile(&rule.rule) {
            Err(why) => Err(why.detail()),
            Ok(program) if *program.result_type() != Type::Bool => {
                Err("cel expression must evaluate to a bool".to_owned())
            }
            Ok(program) => Ok(program),
        })
    }

    /// The program of the rule's message; `None` if it has none.
    fn compile_message(&self, rule: &Rule) -> Option<Result<Program, String>> {
        if rule.message_expression.is_empty() {
            return None;
        }
        Some(match self.env(rule).compile(&rule.message_expression) {
            Err(why) => Err(format!(
                "messageExpression {}",
                why.detail().replacen("program instantiation", "instantiation", 1)
            )),
            Ok(program) if *program.result_type() != Type::String => {
                Err("messageExpression must evaluate to a string".to_owned())
            }
            Ok(program) => Ok(program),
        })
    }
}

fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
    FieldError::new(FieldErrorKind::Invalid, path, value, detail)
}
