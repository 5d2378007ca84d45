//! Where `x-kubernetes-validations` meet the other checks: compiled when a definition is written, evaluated when an object
//! is. The expressions themselves are not this crate's business.

use std::collections::BTreeSet;

use schema::structural::Schema;
use serde_json::Value;

use crate::{FieldError, FieldErrorKind};

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

/// What is wrong with the rules of a schema whose other parts are in order.
pub fn check_definition(path: &str, schema: &Schema, before: &Before) -> Vec<FieldError> {
    let _ = (path, schema, before);
    Vec::new()
}

/// What is wrong with a default by the rules of its schema; `root`: the value is a whole resource.
pub fn check_default(path: &str, schema: &Schema, value: &Value, root: bool) -> Vec<FieldError> {
    let _ = (path, schema, value, root);
    Vec::new()
}

/// The compiled rules of a version.
pub struct Rules;

impl Rules {
    /// Compiles the rules of a root schema; `None` if there are none.
    pub fn compile(schema: &Schema) -> Option<Self> {
        let _ = schema;
        None
    }

    /// What the rules find wrong with an object. On an update, `old` is what was there before: rules over values that have
    /// not changed are left out (see [`schema::structural::Correlated`]).
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let _ = (new, old);
        Vec::new()
    }

    /// The findings of an object, after `found`: objects that are wrong in shape are not evaluated.
    pub fn after(&self, found: &[FieldError], new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        use FieldErrorKind::{Required, TooLong, TooMany, TypeInvalid};
        if found.iter().any(|e| matches!(e.kind, Required | TooLong | TooMany | TypeInvalid)) {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            return vec![FieldError::new(FieldErrorKind::Invalid, "<nil>", Value::Null, detail)];
        }
        self.validate(new, old)
    }
}
