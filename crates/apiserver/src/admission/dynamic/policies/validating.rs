//! ValidatingAdmissionPolicy: what the expressions say of a request, and what follows from it.

use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt, ready};
use serde_json::{Value, json};

use super::super::Form;
use super::super::expression::{Facts, Fault, POLICY_BUDGET, request};
use super::super::matching::exempt;
use super::{Binding, Definition, VALIDATING, Validation, compile, namespace, params};
use crate::admission::Scene;
use crate::metrics::metrics;
use crate::{Cause, Status};

/// The longest message that an expression may make, and the longest annotation, in bytes.
const MESSAGE_LIMIT: usize = 5 << 10;
const ANNOTATION_LIMIT: usize = 10 << 10;

/// What one validation says, and how long that took.
#[derive(Debug)]
struct Decision {
    says: Says,
    /// How a failure of the evaluation is counted.
    wrong: Option<&'static str>,
    took: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Says {
    Admit,
    /// Refused, with reason (empty: the evaluation failed) and message.
    Deny(String, String),
}

/// What one annotation says.
#[derive(Debug)]
enum Note {
    Publish(String, String),
    Fail(Fault),
    Nothing,
}

/// What a policy with one binding and one parameter says.
#[derive(Debug, Default)]
struct Outcome {
    decisions: Vec<Decision>,
    notes: Vec<Note>,
}

/// Why a request is refused, for the answer.
struct Denial {
    policy: String,
    binding: Option<String>,
    reason: String,
    message: String,
}

#[derive(Default)]
struct Denials(Vec<Denial>);

impl Denials {
    fn add(&mut self, definition: &Definition, binding: Option<&Binding>, reason: String, message: String) {
        let (policy, binding) = (definition.name.clone(), binding.map(|b| b.name.clone()));
        self.0.push(Denial { policy, binding, reason, message });
    }

    /// A fault of the configuration, which the failure policy judges.
    fn misconfigured(&mut self, definition: &Definition, binding: Option<&Binding>, why: &str) {
        if !definition.ignore {
            let what = if binding.is_some() { "binding" } else { "policy" };
            self.add(definition, binding, String::new(), format!("failed to configure {what}: {why}"));
        }
    }
}

pub(crate) fn validate<'a>(
    scene: Scene<'a>,
    object: &'a Value,
    old: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    let dynamic = scene.dynamic;
    let policies = dynamic.validating_policies.get(scene.cluster, |c, before| compile(c, VALIDATING, before));
    if policies.is_empty() || exempt(scene.request.group, scene.request.kind) {
        return ready(Ok(())).boxed();
    }
    async move {
        let mut denials = Denials::default();
        for policy in policies.iter() {
            judge(&scene, &policy.definition, &policy.bindings, (object, old), &mut denials).await?;
        }
        match denials.0.into_iter().next() {
            None => Ok(()),
            Some(denial) => Err(refuse(&scene, object, denial)),
        }
    }
    .boxed()
}

async fn judge(
    scene: &Scene<'_>,
    definition: &Definition,
    bindings: &[Binding],
    (object, old): (&Value, Option<&Value>),
    denials: &mut Denials,
) -> Result<(), Status> {
    let matched = match definition.matching.matches(scene, object, old).await {
        Ok(None) => return Ok(()),
        Ok(Some(matched)) => matched,
        Err(status) => {
            denials.misconfigured(definition, None, status.message());
            return Ok(());
        }
    };
    if let Some(kind) = &definition.param
        && let Err(why) = params::known(scene.cluster, kind)
    {
        denials.misconfigured(definition, None, &why);
        return Ok(());
    }
    let mut form = None;
    let mut annotations: Vec<(String, Vec<String>)> = Vec::new();
    for binding in bindings {
        match binding.matches(scene, object, old).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(status) => {
                denials.misconfigured(definition, Some(binding), status.message());
                continue;
            }
        }
        let params = match params::collect(scene, definition, binding).await {
            Ok(params) => params,
            Err(why) => {
                denials.misconfigured(definition, Some(binding), &why);
                continue;
            }
        };
        if params.is_empty() {
            continue;
        }
        if form.is_none() {
            match Form::of(scene, &matched, object, old).await {
                Ok(made) => form = Some(made),
                Err(status) => {
                    let why = format!("failed to convert object version: {status}");
                    denials.misconfigured(definition, Some(binding), &why);
                    continue;
                }
            }
        }
        let Some(form) = &form else { continue };
        let namespace = namespace(scene, object).await?;
        let request = request(scene, &matched, object);
        for param in &params {
            let mut facts = Facts::of(scene, form, &request, &namespace);
            facts.params = definition.param.is_some().then_some(param);
            facts.variables = &definition.variables;
            let outcome = facts.settled(|| evaluate(definition, &facts)).await;
            act(scene, definition, binding, outcome, &mut annotations, denials);
        }
    }
    for (key, values) in annotations {
        scene.request.annotate(format!("{}/{key}", definition.name), values.join(", "));
    }
    Ok(())
}

/// Evaluates all expressions of a policy.
fn evaluate(definition: &Definition, facts: &Facts<'_>) -> Outcome {
    // Of a failure alone the failure policy decides.
    let failed = |message: String, wrong: &'static str, took: Duration| {
        let says = match definition.ignore {
            true => Says::Admit,
            false => Says::Deny(String::new(), message),
        };
        Decision { says, wrong: Some(wrong), took }
    };
    let over = |fault: Fault| {
        let wrong = fault.kind();
        failed(fault.text(), wrong, Duration::ZERO)
    };
    let only = |decision: Decision| Outcome { decisions: vec![decision], notes: Vec::new() };
    if !definition.conditions.is_empty() {
        match definition.conditions.hold(facts, definition.ignore) {
            Ok(true) => {}
            Ok(false) => return Outcome::default(),
            Err(why) => return only(failed(why, "invalid_error", Duration::ZERO)),
        }
    }
    let mut series = facts.series(POLICY_BUDGET);
    let mut results = Vec::with_capacity(definition.validations.len());
    for validation in &definition.validations {
        let before = Instant::now();
        match series.run(&validation.expression) {
            Err(fault @ Fault::Over(_)) => return only(over(fault)),
            Err(fault) => results.push((Err(fault), before.elapsed())),
            Ok(value) => results.push((Ok(value.as_bool() == Some(true)), before.elapsed())),
        }
    }
    // Messages share the budget that is left; there is nothing to say where all hold, but it would be told that they do
    // not come to an end.
    let mut series = facts.series(series.left);
    let mut messages = Vec::with_capacity(definition.validations.len());
    let mut spent = None;
    for validation in &definition.validations {
        let made = match &validation.message_expression {
            None => None,
            Some(expression) => match series.run(expression) {
                Ok(value) => value.as_str().map(|text| text.trim().to_owned()),
                Err(Fault::Over(why)) => {
                    spent = Some(why);
                    break;
                }
                Err(fault) => {
                    tracing::debug!(
                        policy = definition.name,
                        why = fault.text(),
                        "a messageExpression failed"
                    );
                    None
                }
            },
        };
        messages.push(made);
    }
    let mut decisions = Vec::with_capacity(results.len());
    for (index, ((result, took), validation)) in results.into_iter().zip(&definition.validations).enumerate()
    {
        decisions.push(match (result, &spent) {
            (Err(fault), _) => {
                let wrong = fault.kind();
                failed(fault.text(), wrong, took)
            }
            (Ok(_), Some(why)) => failed(format!("failed messageExpression: {why}"), "out_of_budget", took),
            (Ok(true), None) => Decision { says: Says::Admit, wrong: None, took },
            (Ok(false), None) => {
                let made = messages.get(index).cloned().flatten();
                let says = Says::Deny(reason(validation), message(validation, made));
                Decision { says, wrong: None, took }
            }
        });
    }
    match notes(definition, facts) {
        Ok(notes) => Outcome { decisions, notes },
        Err(fault) => only(over(fault)),
    }
}

fn reason(validation: &Validation) -> String {
    if validation.reason.is_empty() { "Invalid".to_owned() } else { validation.reason.clone() }
}

/// The message: of the expression if it is fit, else the fixed one, else the expression itself.
fn message(validation: &Validation, made: Option<String>) -> String {
    let fit = made.filter(|m| !m.is_empty() && m.len() <= MESSAGE_LIMIT && !m.contains('\n'));
    match fit {
        Some(made) => made,
        None if validation.message.is_empty() => {
            format!("failed expression: {}", validation.expression.text.trim())
        }
        None => validation.message.clone(),
    }
}

fn notes(definition: &Definition, facts: &Facts<'_>) -> Result<Vec<Note>, Fault> {
    let mut series = facts.series(POLICY_BUDGET);
    let mut notes = Vec::with_capacity(definition.annotations.len());
    for (key, expression) in &definition.annotations {
        notes.push(match series.run(expression) {
            Ok(cel::Value::Null) => Note::Nothing,
            Ok(value) => match value.as_str().map(str::trim) {
                Some("") => Note::Nothing,
                Some(text) => Note::Publish(key.clone(), text.to_owned()),
                None => Note::Fail(Fault::Failed(format!(
                    "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                    expression.text,
                    value.type_of().name()
                ))),
            },
            Err(fault @ Fault::Over(_)) => return Err(fault),
            Err(_) if definition.ignore => Note::Nothing,
            Err(fault) => Note::Fail(fault),
        });
    }
    Ok(notes)
}

/// Does what the binding says with an outcome.
fn act(
    scene: &Scene<'_>,
    definition: &Definition,
    binding: &Binding,
    outcome: Outcome,
    annotations: &mut Vec<(String, Vec<String>)>,
    denials: &mut Denials,
) {
    let (policy, bound) = (definition.name.as_str(), binding.name.as_str());
    for (index, decision) in outcome.decisions.into_iter().enumerate() {
        let Decision { says, wrong, took } = decision;
        let count = |action: &str| count(definition, binding, wrong.unwrap_or("no_error"), action, took);
        let Says::Deny(reason, message) = says else {
            if wrong.is_some() {
                count("allow");
            }
            continue;
        };
        for action in &binding.actions {
            count(&action.to_lowercase());
            match action.as_str() {
                "Deny" => denials.add(definition, Some(binding), reason.clone(), message.clone()),
                "Warn" => scene.request.warn(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{bound}': {message}"
                )),
                "Audit" => {
                    let failure = json!([{
                        "message": message, "policy": policy, "binding": bound, "expressionIndex": index,
                        "validationActions": binding.actions,
                    }]);
                    let key = "validation.policy.admission.k8s.io/validation_failure";
                    scene.request.annotate(key, failure.to_string());
                }
                _ => {}
            }
        }
    }
    for note in outcome.notes {
        match note {
            Note::Nothing => {}
            Note::Fail(fault) => {
                count(definition, binding, fault.kind(), "deny", Duration::ZERO);
                denials.add(definition, Some(binding), String::new(), fault.text());
            }
            Note::Publish(key, mut value) => {
                let mut end = value.len().min(ANNOTATION_LIMIT);
                while !value.is_char_boundary(end) {
                    end -= 1;
                }
                value.truncate(end);
                match annotations.iter_mut().find(|(k, _)| *k == key) {
                    Some((_, values)) if values.contains(&value) => {}
                    Some((_, values)) => values.push(value),
                    None => annotations.push((key, vec![value])),
                }
            }
        }
    }
}

fn count(definition: &Definition, binding: &Binding, wrong: &str, action: &str, took: Duration) {
    let labels = [action, wrong, definition.name.as_str(), binding.name.as_str()];
    metrics().validating_policy_checks.with(&labels).increment();
    metrics().validating_policy_time.with(&labels).observe(took.as_secs_f64());
}

fn refuse(scene: &Scene<'_>, object: &Value, denial: Denial) -> Status {
    let Denial { policy, binding, reason, message } = denial;
    let with = binding.map(|b| format!(" with binding '{b}'")).unwrap_or_default();
    let message = format!("ValidatingAdmissionPolicy '{policy}'{with} denied request: {message}");
    let forbidden = scene.forbid(object, &message);
    let (code, reason) = match reason.as_str() {
        "Forbidden" => (403, "Forbidden"),
        "Unauthorized" => (401, "Unauthorized"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    let cause = Cause { reason: String::new(), message, field: String::new() };
    let attributes = scene.request.attributes;
    Status::new(code, reason, forbidden.message())
        .about(&attributes.group, &attributes.resource, scene.name(object))
        .with_causes(vec![cause])
}
