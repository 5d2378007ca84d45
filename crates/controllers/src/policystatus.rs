//! ValidatingAdmissionPolicies: their expressions are checked against the schemas of the kinds that they are for. What looks
//! wrong is told in the status; it changes nothing of what the policy does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::expressions::{Compiler, Uses};
use cel::{Decl, JsonSchema};
use informer::{Informer, Key, Queue};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicySpec};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};

use crate::kit::error::found;
use crate::kit::{Context, Result};

/// The most kinds that one rule is checked against.
const MOST: usize = 10;
/// The deepest that schemas are followed into one another.
const DEPTH: usize = 40;

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let policies = context.informer::<ValidatingAdmissionPolicy>();
    let queue = Queue::new();
    let to = queue.clone();
    policies.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    policies.synced().await;
    let client = context.client.clone();
    let work = move |key: Key| sync(client.clone(), policies.clone(), key);
    context.work("validatingadmissionpolicy-status", 2, queue, work).await;
}

async fn sync(
    client: Client,
    policies: Arc<Informer<ValidatingAdmissionPolicy>>,
    key: Key,
) -> Result<Option<Duration>> {
    let Some(policy) = policies.get(&key) else { return Ok(None) };
    let generation = policy.metadata.generation.unwrap_or(0);
    let observed = policy.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
    let Some(spec) = policy.spec.as_ref().filter(|_| generation > observed) else { return Ok(None) };
    let mut schemas = Schemas { client: client.clone(), documents: Map::new() };
    let mut kinds = Vec::new();
    for (kind, group, version) in schemas.kinds(spec).await {
        if let Some(decl) = schemas.decl(&group, &version, &kind).await {
            kinds.push((named(&group, &version, &kind), decl));
        }
    }
    let params = match &spec.param_kind {
        None => None,
        Some(param) => {
            let api_version = param.api_version.as_deref().unwrap_or_default();
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let kind = param.kind.as_deref().unwrap_or_default();
            Some(schemas.decl(group, version, kind).await)
        }
    };
    let warnings = check(spec, &kinds, params.as_ref());
    let mut checking = json!({});
    if !warnings.is_empty() {
        checking["expressionWarnings"] = warnings.into();
    }
    let status = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": key.name},
        "status": {"observedGeneration": generation, "typeChecking": checking},
    });
    let params = PatchParams::apply("validatingadmissionpolicy-status").force();
    let api = Api::<ValidatingAdmissionPolicy>::all(client);
    found(api.patch_status(&key.name, &params, &Patch::Apply(status)).await)?;
    Ok(None)
}

fn named(group: &str, version: &str, kind: &str) -> String {
    format!("{group}/{version}, Kind={kind}")
}

/// The warnings: for each expression what is wrong with it for each kind.
fn check(
    spec: &ValidatingAdmissionPolicySpec,
    kinds: &[(String, Arc<Decl>)],
    params: Option<&Option<Arc<Decl>>>,
) -> Vec<Value> {
    let uses = Uses { params: params.is_some(), authorizer: true, patch: false };
    let compilers: Vec<(&String, Compiler)> = kinds
        .iter()
        .map(|(name, decl)| {
            let mut compiler = Compiler::typed(Some(decl.clone()), params.cloned());
            for variable in spec.variables.iter().flatten() {
                // A variable that is wrong is of any type for the others.
                drop(compiler.variable(&variable.name, &variable.expression, uses));
            }
            (name, compiler)
        })
        .collect();
    let mut warnings = Vec::new();
    let mut add = |path: String, expression: &str| {
        let found: Vec<String> = compilers
            .iter()
            .filter_map(|(name, compiler)| {
                compiler.check(expression, uses).err().map(|e| format!("{name}: {e}\n"))
            })
            .collect();
        if !found.is_empty() {
            warnings.push(json!({"fieldRef": path, "warning": found.join("\n")}));
        }
    };
    for (index, validation) in spec.validations.iter().flatten().enumerate() {
        add(format!("spec.validations[{index}].expression"), &validation.expression);
        if let Some(message) = validation.message_expression.as_deref().filter(|m| !m.is_empty()) {
            add(format!("spec.validations[{index}].messageExpression"), message);
        }
    }
    warnings
}

/// The documents of the server that tell kinds and schemas.
struct Schemas {
    client: Client,
    documents: Map<String, Value>,
}

impl Schemas {
    /// A document, once; null if there is none.
    async fn document(&mut self, path: String) -> &Value {
        if !self.documents.contains_key(&path) {
            let request = http::Request::get(&path).body(Vec::new());
            let document = match request {
                Ok(request) => self.client.request::<Value>(request).await.unwrap_or_default(),
                Err(_) => Value::Null,
            };
            self.documents.insert(path.clone(), document);
        }
        &self.documents[&path]
    }

    /// The kinds that a policy names in its rules without wildcards, sorted: kind, group, version.
    async fn kinds(&mut self, spec: &ValidatingAdmissionPolicySpec) -> Vec<(String, String, String)> {
        let mut kinds = BTreeSet::new();
        let rules = spec.match_constraints.as_ref().and_then(|m| m.resource_rules.as_ref());
        for rule in rules.into_iter().flatten() {
            let exact = |list: &Option<Vec<String>>| -> Vec<String> {
                let list = list.clone().unwrap_or_default();
                if list.iter().any(|item| item.contains('*')) { Vec::new() } else { list }
            };
            let resources = rule.resources.iter().flatten().filter(|r| !r.contains(['*', '/']));
            let mut resources: Vec<&String> = resources.collect();
            resources.sort();
            let mut count = 0;
            for group in exact(&rule.api_groups) {
                for version in exact(&rule.api_versions) {
                    let path = if group.is_empty() {
                        format!("/api/{version}")
                    } else {
                        format!("/apis/{group}/{version}")
                    };
                    let document = self.document(path).await;
                    for resource in &resources {
                        let mut all = document["resources"].as_array().into_iter().flatten();
                        let row = all.find(|r| r["name"].as_str() == Some(resource.as_str()));
                        if let Some(kind) = row.and_then(|r| r["kind"].as_str()).filter(|_| count < MOST) {
                            kinds.insert((group.clone(), version.clone(), kind.to_owned()));
                            count += 1;
                        }
                    }
                }
            }
        }
        kinds.into_iter().map(|(group, version, kind)| (kind, group, version)).collect()
    }

    /// The type of a kind by its published schema.
    async fn decl(&mut self, group: &str, version: &str, kind: &str) -> Option<Arc<Decl>> {
        let path = if group.is_empty() {
            format!("/openapi/v3/api/{version}")
        } else {
            format!("/openapi/v3/apis/{group}/{version}")
        };
        let document = self.document(path).await;
        let all = document.pointer("/components/schemas").and_then(Value::as_object)?;
        let own = all.values().find(|schema| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds.into_iter().flatten().any(|k| {
                k["group"].as_str().unwrap_or_default() == group
                    && k["version"] == version
                    && k["kind"] == kind
            })
        })?;
        let whole = resolve(own, all, &mut Vec::new());
        Some(Arc::new(Decl::new(&JsonSchema(&whole), kind, true)))
    }
}

/// A schema with those put in that it refers to. What refers to itself ends in a schema without fields.
fn resolve<'a>(schema: &'a Value, all: &'a Map<String, Value>, within: &mut Vec<&'a str>) -> Value {
    let Some(map) = schema.as_object() else { return schema.clone() };
    let reference = |map: &'a Map<String, Value>| map.get("$ref").and_then(Value::as_str);
    let single = map.get("allOf").and_then(Value::as_array).filter(|list| list.len() == 1);
    let single = single.and_then(|list| list[0].as_object()).and_then(reference);
    if let Some(target) = reference(map).or(single) {
        let name = target.rsplit('/').next().unwrap_or_default();
        let Some(found) = all.get(name) else { return json!({}) };
        if within.contains(&name) || within.len() > DEPTH {
            return json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        }
        within.push(name);
        let mut made = resolve(found, all, within);
        within.pop();
        if let Some(default) = map.get("default") {
            made["default"] = default.clone();
        }
        return made;
    }
    let mut out = map.clone();
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get(key) {
            out.insert(key.to_owned(), resolve(inner, all, within));
        }
    }
    if let Some(properties) = map.get("properties").and_then(Value::as_object) {
        let resolved = properties.iter().map(|(key, inner)| (key.clone(), resolve(inner, all, within)));
        out.insert("properties".to_owned(), Value::Object(resolved.collect()));
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_checked_for_each_kind() {
        let all = json!({
            "Spec": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
            "Thing": {"type": "object", "properties": {"spec": {"allOf": [{"$ref": "#/components/schemas/Spec"}]}}},
            "Loop": {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Loop"}}},
        });
        let all = all.as_object().expect("a map");
        let decl = |name: &str| {
            Arc::new(Decl::new(&JsonSchema(&resolve(&all[name], all, &mut Vec::new())), name, true))
        };
        decl("Loop");
        let spec = serde_json::from_value(json!({
            "variables": [{"name": "n", "expression": "object.spec.replicas"}],
            "validations": [
                {"expression": "variables.n > 1"},
                {"expression": "object.spec.wrong > 1", "messageExpression": "string(object.spec.replicas + 'x')"},
            ],
        }))
        .expect("a spec");
        let warnings = check(&spec, &[("g/v1, Kind=Thing".to_owned(), decl("Thing"))], None);
        let [first, second] = warnings.as_slice() else { panic!("{warnings:?}") };
        assert_eq!(first["fieldRef"], "spec.validations[1].expression");
        let text = first["warning"].as_str().expect("text");
        assert!(text.starts_with("g/v1, Kind=Thing: ERROR: <input>:1:12: undefined field 'wrong'"), "{text}");
        assert_eq!(second["fieldRef"], "spec.validations[1].messageExpression");
    }
}
