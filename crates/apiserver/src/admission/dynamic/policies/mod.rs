//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy with their bindings, compiled.

mod mutating;
mod params;
mod validating;

use std::sync::Arc;

use api::expressions::{Compiler, Returns, Uses};
use serde_json::Value;

use super::GROUP;
use super::conditions::{Conditions, Whose};
use super::expression::{Expression, Variables, namespace_object};
use super::matching::Matching;
use crate::admission::Scene;
use crate::read::Read;
use crate::{ClusterRef, Gvk, Status};

pub(crate) use mutating::mutate;
pub(crate) use validating::validate;

pub(super) const VALIDATING: [&str; 2] = ["validatingadmissionpolicies", "validatingadmissionpolicybindings"];
pub(super) const MUTATING: [&str; 2] = ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"];

/// A policy that is bound, with its bindings.
#[derive(Debug)]
pub(crate) struct Policy {
    definition: Arc<Definition>,
    bindings: Vec<Binding>,
}

/// What a policy says.
#[derive(Debug)]
struct Definition {
    name: String,
    /// As it was written; a policy is compiled anew when this changes.
    spec: Value,
    matching: Matching,
    ignore: bool,
    param: Option<Gvk>,
    variables: Variables,
    conditions: Conditions,
    validations: Vec<Validation>,
    annotations: Vec<(String, Expression)>,
    mutations: Vec<Mutation>,
    again: bool,
}

#[derive(Debug)]
struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
}

#[derive(Debug)]
enum Mutation {
    Apply(Expression),
    Patch(Expression),
}

#[derive(Debug)]
struct Binding {
    name: String,
    policy: String,
    matching: Option<Matching>,
    param: Value,
    actions: Vec<String>,
}

impl Definition {
    fn new(policy: &Value) -> Self {
        let spec = policy.at("spec");
        let params = spec.has("paramKind");
        let uses = Uses { params, authorizer: true, patch: false };
        let mut compiler = Compiler::with_variables();
        let variables = Variables::new(&mut compiler, spec.items("variables"), uses);
        let compile =
            |text: &str, uses: Uses, returns: Returns| Expression::new(&compiler, text, uses, returns);
        let validation = |v: &Value| Validation {
            expression: compile(v.text("expression"), uses, Returns::Bool),
            message: v.text("message").trim().to_owned(),
            message_expression: match v.text("messageExpression") {
                "" => None,
                text => Some(compile(text, Uses { authorizer: false, ..uses }, Returns::String)),
            },
            reason: v.text("reason").to_owned(),
        };
        let annotation = |a: &Value| {
            let value = compile(a.text("valueExpression"), uses, Returns::StringOrNull);
            (a.text("key").to_owned(), value)
        };
        let patching = Uses { patch: true, ..uses };
        let mutation = |m: &Value| match m.text("patchType") {
            "JSONPatch" => {
                Mutation::Patch(compile(m.text("jsonPatch.expression"), patching, Returns::Patches))
            }
            _ => Mutation::Apply(compile(m.text("applyConfiguration.expression"), patching, Returns::Object)),
        };
        Self {
            name: policy.name().to_owned(),
            spec: spec.clone(),
            matching: Matching::new(spec.at("matchConstraints"), "resourceRules"),
            ignore: spec.text("failurePolicy") == "Ignore",
            param: params.then(|| {
                let version = spec.text("paramKind.apiVersion");
                let (group, version) = version.split_once('/').unwrap_or(("", version));
                let kind = spec.text("paramKind.kind").to_owned();
                Gvk { group: group.to_owned(), version: version.to_owned(), kind }
            }),
            conditions: Conditions::new(
                &compiler,
                spec.items("matchConditions"),
                uses,
                Whose { kind: "policy", name: policy.name().to_owned(), step: "validate" },
            ),
            validations: spec.items("validations").iter().map(validation).collect(),
            annotations: spec.items("auditAnnotations").iter().map(annotation).collect(),
            mutations: spec.items("mutations").iter().map(mutation).collect(),
            again: spec.text("reinvocationPolicy") == "IfNeeded",
            variables,
        }
    }
}

impl Binding {
    fn new(binding: &Value) -> Self {
        let spec = binding.at("spec");
        let matches = spec.at("matchResources");
        Self {
            name: binding.name().to_owned(),
            policy: spec.text("policyName").to_owned(),
            matching: matches.is_object().then(|| Matching::new(matches, "resourceRules")),
            param: spec.at("paramRef").clone(),
            actions: spec.texts("validationActions").map(str::to_owned).collect(),
        }
    }

    /// Whether the binding is for a request that its policy is for.
    async fn matches(&self, scene: &Scene<'_>, object: &Value, old: Option<&Value>) -> Result<bool, Status> {
        match &self.matching {
            None => Ok(true),
            Some(matching) => Ok(matching.matches(scene, object, old).await?.is_some()),
        }
    }
}

/// The policies that have bindings, both in the order of their names. What has not changed is taken over.
pub(super) fn compile(
    cluster: &ClusterRef,
    [policies, bindings]: [&str; 2],
    before: &[Policy],
) -> Vec<Policy> {
    let mut all: Vec<Binding> =
        cluster.list(GROUP, bindings, None).items.iter().map(|binding| Binding::new(binding)).collect();
    all.sort_by(|a, b| (&a.policy, &a.name).cmp(&(&b.policy, &b.name)));
    let mut out: Vec<Policy> = Vec::new();
    for binding in all {
        if let Some(last) = out.last_mut().filter(|last| last.definition.name == binding.policy) {
            last.bindings.push(binding);
            continue;
        }
        let Some(policy) = cluster.get(GROUP, policies, "", &binding.policy) else { continue };
        let same =
            |p: &&Policy| p.definition.name == binding.policy && p.definition.spec == *policy.at("spec");
        let definition = match before.iter().find(same) {
            Some(same) => same.definition.clone(),
            None => Arc::new(Definition::new(&policy)),
        };
        out.push(Policy { definition, bindings: vec![binding] });
    }
    out
}

/// The namespace of the request as expressions see it.
async fn namespace(scene: &Scene<'_>, object: &Value) -> Result<Value, Status> {
    let name = scene.namespace_name(object);
    let request = scene.request;
    if name.is_empty() || (request.group, request.version, request.kind) == ("", "v1", "Namespace") {
        return Ok(Value::Null);
    }
    let found = scene.find("namespaces", "", name).await;
    found.map(|n| namespace_object(&n)).ok_or_else(|| Status::not_found("", "namespaces", name))
}
