//! Match conditions: whether a webhook or policy is asked at all.

use api::expressions::{Compiler, Returns, Uses};
use serde_json::Value;

use super::expression::{CONDITIONS_BUDGET, Expression, Facts, Fault};
use crate::read::Read;

/// The conditions of one webhook or policy.
#[derive(Debug, Default)]
pub(super) struct Conditions(Vec<Expression>);

impl Conditions {
    pub fn new(compiler: &Compiler, conditions: &[Value], uses: Uses) -> Self {
        let compile = |c: &Value| Expression::new(compiler, c.text("expression"), uses, Returns::Bool);
        Self(conditions.iter().map(compile).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that does not hold decides; if others fail instead, the failure policy does: the error is why
    /// the request fails.
    pub fn hold(&self, facts: &Facts<'_>, ignore: bool) -> Result<bool, String> {
        let mut series = facts.series(CONDITIONS_BUDGET);
        let mut errors = Vec::new();
        for condition in &self.0 {
            match series.run(condition) {
                Ok(value) if value.as_bool() == Some(false) => return Ok(false),
                Ok(_) => {}
                Err(Fault::Failed(why)) => errors.push(why),
                Err(Fault::Over(why)) => {
                    errors = vec![why];
                    break;
                }
            }
        }
        match errors.as_slice() {
            [] => Ok(true),
            _ if ignore => Ok(false),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}
