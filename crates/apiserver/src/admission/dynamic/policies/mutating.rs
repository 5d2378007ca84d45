//! MutatingAdmissionPolicy: one invocation after the other, each seeing what the one before left.

use std::sync::Arc;
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt, ready};
use schema::FieldValidation;
use serde_json::{Map, Value};

use super::super::expression::{Facts, Fault, POLICY_BUDGET, request};
use super::super::matching::{Matched, exempt};
use super::super::{Form, take_over};
use super::{Binding, Definition, MUTATING, Mutation, compile, namespace, params};
use crate::admission::Scene;
use crate::metrics::metrics;
use crate::read::Read;
use crate::{Cause, Status};

/// A policy that is asked about a request, with one binding and one parameter.
struct Invocation<'a> {
    definition: &'a Definition,
    binding: &'a Binding,
    matched: Matched,
    param: Arc<Value>,
}

/// What stands against the request: the message, and whether an expression is to blame.
#[derive(Default)]
struct Errors(Vec<(String, bool)>);

impl Errors {
    fn add(&mut self, definition: &Definition, binding: Option<&Binding>, why: &str, expression: bool) {
        if definition.ignore {
            return;
        }
        let name = &definition.name;
        let message = match binding {
            Some(b) => format!("policy '{name}' with binding '{}' denied request: {why}", b.name),
            None => format!("policy {name:?} denied request: {why}"),
        };
        self.0.push((message, expression));
    }

    fn configuration(&mut self, definition: &Definition, binding: Option<&Binding>, why: &str) {
        let what = if binding.is_some() { "binding" } else { "policy" };
        self.add(definition, binding, &format!("failed to configure {what}: {why}"), false);
    }
}

pub(crate) fn mutate<'a>(
    scene: Scene<'a>,
    object: &'a mut Value,
    old: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    let dynamic = scene.dynamic;
    let policies = dynamic.mutating_policies.get(scene.cluster, |c, before| compile(c, MUTATING, before));
    if policies.is_empty() || exempt(scene.request.group, scene.request.kind) {
        return ready(Ok(())).boxed();
    }
    async move {
        let mut errors = Errors::default();
        let mut invocations = Vec::new();
        for policy in policies.iter() {
            let (definition, bindings) = (&*policy.definition, policy.bindings.as_slice());
            choose(&scene, definition, bindings, (object, old), &mut invocations, &mut errors).await;
        }
        if !invocations.is_empty() {
            run(&scene, &invocations, object, old, &mut errors).await?;
        }
        refuse(&scene, object, errors)
    }
    .boxed()
}

/// The invocations of a policy for the request as it came.
async fn choose<'p>(
    scene: &Scene<'_>,
    definition: &'p Definition,
    bindings: &'p [Binding],
    (object, old): (&Value, Option<&Value>),
    invocations: &mut Vec<Invocation<'p>>,
    errors: &mut Errors,
) {
    let matched = match definition.matching.matches(scene, object, old).await {
        Ok(None) => return,
        Ok(Some(matched)) => matched,
        Err(status) => return errors.configuration(definition, None, status.message()),
    };
    if let Some(kind) = &definition.param
        && let Err(why) = params::known(scene.cluster, kind)
    {
        return errors.configuration(definition, None, &why);
    }
    for binding in bindings {
        match binding.matches(scene, object, old).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(status) => {
                errors.configuration(definition, Some(binding), status.message());
                continue;
            }
        }
        match params::collect(scene, definition, binding).await {
            Ok(params) => invocations.extend(params.into_iter().map(|param| {
                let matched = matched.clone();
                Invocation { definition, binding, matched, param }
            })),
            Err(why) => errors.configuration(definition, Some(binding), &why),
        }
    }
}

async fn run(
    scene: &Scene<'_>,
    invocations: &[Invocation<'_>],
    object: &mut Value,
    old: Option<&Value>,
    errors: &mut Errors,
) -> Result<(), Status> {
    let again = {
        let mut rounds = scene.rounds.lock();
        let again = rounds.again;
        rounds.policies.begin(again, object);
        again
    };
    let namespace = namespace(scene, object).await?;
    let mut applied = false;
    for invocation in invocations {
        let Invocation { definition, binding, matched, param } = invocation;
        let request = request(scene, matched, object);
        let applies = {
            let form = Form::of(scene, matched, object, old).await?;
            let facts = facts(scene, invocation, &form, &request, &namespace);
            facts.settled(|| definition.conditions.hold(&facts, definition.ignore)).await
        };
        match applies {
            Ok(true) => {}
            Ok(false) => continue,
            Err(why) => {
                errors.add(definition, Some(binding), &why, true);
                continue;
            }
        }
        let id = format!("{}/{}/{}/{}", definition.name, binding.name, param.namespace(), param.name());
        if again && !scene.rounds.lock().policies.is_due(&id) {
            continue;
        }
        let (mut changed, before) = (false, Instant::now());
        let mut wrong = "no_error";
        for mutation in &definition.mutations {
            // What is deleted cannot be changed.
            if object.is_null() {
                continue;
            }
            let made = {
                let form = Form::of(scene, matched, object, old).await?;
                let facts = facts(scene, invocation, &form, &request, &namespace);
                let after = facts.settled(|| made(scene, mutation, matched, &facts)).await;
                after.map(|after| (form.object.into_owned(), after))
            };
            match made {
                Ok((before, after)) => {
                    applied = true;
                    let validation = match mutation {
                        Mutation::Patch(_) => FieldValidation::Strict,
                        Mutation::Apply(_) => FieldValidation::Ignore,
                    };
                    changed |= take_over(scene, matched, &before, after, object, validation).await?;
                }
                Err(fault) => {
                    wrong = fault.kind();
                    errors.add(definition, Some(binding), &fault.text(), true);
                }
            }
        }
        let labels = [wrong, definition.name.as_str(), binding.name.as_str()];
        metrics().mutating_policy_checks.with(&labels).increment();
        metrics().mutating_policy_time.with(&labels).observe(before.elapsed().as_secs_f64());
        let mut rounds = scene.rounds.lock();
        if changed {
            rounds.policies.changed();
            rounds.wanted = true;
        }
        if definition.again {
            rounds.policies.called(&id);
        }
    }
    let mut rounds = scene.rounds.lock();
    if applied {
        // Also the policies that were called last may see the object again.
        rounds.policies.changed();
        rounds.wanted = true;
    }
    rounds.policies.end(object);
    Ok(())
}

fn facts<'a>(
    scene: &Scene<'_>,
    invocation: &'a Invocation<'_>,
    form: &'a Form<'_>,
    request: &'a Value,
    namespace: &'a Value,
) -> Facts<'a> {
    let mut facts = Facts::of(scene, form, request, namespace);
    facts.params = invocation.definition.param.is_some().then_some(&invocation.param);
    facts.variables = &invocation.definition.variables;
    facts
}

/// The object as a mutation makes it.
fn made(
    scene: &Scene<'_>,
    mutation: &Mutation,
    matched: &Matched,
    facts: &Facts<'_>,
) -> Result<Value, Fault> {
    let mut series = facts.series(POLICY_BUDGET);
    match mutation {
        Mutation::Apply(expression) => {
            if let Some(wrong) = expression.wrong() {
                return Err(Fault::Broken(wrong.to_owned()));
            }
            let value = series.run(expression)?;
            check_names(&value, "Object").map_err(Fault::Failed)?;
            let mut config = value.to_json().map_err(|e| Fault::Failed(e.to_string()))?;
            for key in ["apiVersion", "kind"] {
                config[key] = facts.object[key].clone();
            }
            let overlaid = scene.cluster.overlay(&matched.resource, &matched.kind, facts.object, &config);
            overlaid.map_err(|why| Fault::Failed(format!("error applying patch: {why}")))
        }
        Mutation::Patch(expression) => {
            if let Some(wrong) = expression.wrong() {
                return Err(Fault::Broken(wrong.to_owned()));
            }
            let value = series.run(expression)?;
            let patch = patch(&value).map_err(Fault::Failed)?;
            match schema::json_patch(facts.object, &patch) {
                Ok(after) => Ok(after),
                // A test that fails says that the patch is not meant for this object.
                Err(e) if e.to_string().ends_with("test failed") => Ok(facts.object.clone()),
                Err(e) => Err(Fault::Failed(format!("JSON Patch: {e}"))),
            }
        }
    }
}

/// The JSON patch of a list of `JSONPatch` objects.
fn patch(value: &cel::Value<'_>) -> Result<Value, String> {
    let cel::Value::List(operations) = value else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
    };
    let mut patch = Vec::new();
    for operation in operations.iter() {
        let operation = operation.map_err(|e| e.to_string())?;
        let cel::Value::Struct(operation) = &operation else {
            return Err(
                "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".to_owned()
            );
        };
        let text =
            |key: &str| operation.fields.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let mut made = Map::new();
        made.insert("op".to_owned(), text("op").into());
        made.insert("path".to_owned(), text("path").into());
        if !text("from").is_empty() {
            made.insert("from".to_owned(), text("from").into());
        }
        if let Some(value) = operation.fields.get("value") {
            if let cel::Value::Struct(object) = value {
                check_names(value, object.name.split('.').next().unwrap_or("Object"))?;
            }
            let json = value.to_json().map_err(|e| {
                format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {e}")
            })?;
            made.insert("value".to_owned(), json);
        }
        patch.push(Value::Object(made));
    }
    Ok(Value::Array(patch))
}

/// Objects inside an object must be of the type that their path names: `Object.spec` under `spec`.
fn check_names(value: &cel::Value<'_>, path: &str) -> Result<(), String> {
    match value {
        cel::Value::Struct(object) => {
            if *object.name != *path {
                return Err(format!(
                    "type mismatch: unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
                    &*object.name
                ));
            }
            object.fields.iter().try_for_each(|(key, inner)| check_names(inner, &format!("{path}.{key}")))
        }
        cel::Value::List(list) => list.iter().flatten().try_for_each(|inner| check_names(&inner, path)),
        cel::Value::Map(map) => {
            let values = map.keys().into_iter().filter_map(|key| map.get(&key)?.ok());
            values.into_iter().try_for_each(|inner| check_names(&inner, path))
        }
        _ => Ok(()),
    }
}

fn refuse(scene: &Scene<'_>, object: &Value, errors: Errors) -> Result<(), Status> {
    let Some((first, expression)) = errors.0.first().cloned() else { return Ok(()) };
    let attributes = scene.request.attributes;
    let cause = |(message, _)| Cause { reason: String::new(), message, field: String::new() };
    let reason = if expression { "Invalid" } else { "Forbidden" };
    Err(Status::new(403, reason, first)
        .about(&attributes.group, &attributes.resource, scene.name(object))
        .with_causes(errors.0.into_iter().map(cause).collect()))
}
