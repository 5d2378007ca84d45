//! Match conditions: whether a webhook or policy is asked at all.

use std::time::Instant;

use api::expressions::{Compiler, Returns, Uses};
use serde_json::Value;

use super::expression::{CONDITIONS_BUDGET, Expression, Facts, Fault};
use crate::metrics::metrics;
use crate::read::Read;

/// Whose conditions they are, as they are counted.
#[derive(Clone, Debug)]
pub(super) struct Whose {
    /// `webhook` or `policy`.
    pub kind: &'static str,
    pub name: String,
    /// `admit`, `validating` or `validate`, as upstream has it for each.
    pub step: &'static str,
}

/// The conditions of one webhook or policy.
#[derive(Debug)]
pub(super) struct Conditions {
    all: Vec<Expression>,
    whose: Whose,
}

impl Conditions {
    pub fn new(compiler: &Compiler, conditions: &[Value], uses: Uses, whose: Whose) -> Self {
        let compile = |c: &Value| Expression::new(compiler, c.text("expression"), uses, Returns::Bool);
        Self { all: conditions.iter().map(compile).collect(), whose }
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether all hold. One that does not hold decides; if others fail instead, the failure policy does: the error is why
    /// the request fails.
    pub fn hold(&self, facts: &Facts<'_>, ignore: bool) -> Result<bool, String> {
        if self.is_empty() {
            return Ok(true);
        }
        let before = Instant::now();
        let (result, failed) = self.evaluate(facts, ignore);
        // What waits for an authorizer is evaluated again.
        if !facts.waiting() {
            let (metrics, Whose { kind, name, step }) = (metrics(), &self.whose);
            let labels = [*kind, name.as_str(), facts.operation, *step];
            if failed {
                metrics.match_condition_errors.with(&labels).increment();
            }
            if result == Ok(false) {
                metrics.match_condition_exclusions.with(&labels).increment();
            }
            metrics.match_condition_time.with(&labels).observe(before.elapsed().as_secs_f64());
        }
        result
    }

    /// The result, and whether conditions failed.
    fn evaluate(&self, facts: &Facts<'_>, ignore: bool) -> (Result<bool, String>, bool) {
        let mut series = facts.series(CONDITIONS_BUDGET);
        let mut errors = Vec::new();
        for condition in &self.all {
            match series.run(condition) {
                Ok(value) if value.as_bool() == Some(false) => return (Ok(false), false),
                Ok(_) => {}
                Err(Fault::Failed(why) | Fault::Broken(why)) => errors.push(why),
                Err(Fault::Over(why)) => {
                    errors = vec![why];
                    break;
                }
            }
        }
        let failed = !errors.is_empty();
        let result = Self::settle(&errors, ignore);
        (result, failed)
    }

    fn settle(errors: &[String], ignore: bool) -> Result<bool, String> {
        match errors {
            [] => Ok(true),
            _ if ignore => Ok(false),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}
