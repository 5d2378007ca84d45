//! Pods: a delete leaves them time to end; binding gives them a node; eviction respects disruption budgets.

use std::sync::Arc;

use api::labels::Selector;
use futures::FutureExt;
use serde_json::{Value, json};

use super::{PartRules, Special};
use crate::registry::Served;
use crate::server::Server;
use crate::verbs::delete::{DeleteOptions, delete};
use crate::verbs::write::{Checks, Part, Update, update};
use crate::verbs::{Call, meta};
use crate::{Cause, Status};

pub static ROW: Special = Special { returns_deleted: true, grace: Some(grace), ..Special::GENERIC };

pub static EPHEMERAL: PartRules = PartRules {
    name: "ephemeralcontainers",
    prepare: |new, old| api::kinds::pod::prepare_ephemeral_containers(new, old),
    validate: |new, old| api::kinds::validate_ephemeral_containers(new, old),
};

pub static RESIZE: PartRules = PartRules {
    name: "resize",
    prepare: |new, old| api::kinds::pod::prepare_resize(new, old),
    validate: |new, old| api::kinds::validate_resize(new, old),
};

/// A change that the server makes itself.
static OWN: PartRules = PartRules { name: "", prepare: |_, _| {}, validate: |_, _| Vec::new() };

/// The seconds that a pod is given; none are needed where no kubelet has it, or where it has ended.
fn grace(pod: &Value, asked: Option<i64>) -> Option<i64> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let mut period = asked.or(own).unwrap_or(0);
    if text("/spec/nodeName").is_empty() || ended(pod) {
        period = 0;
    }
    Some(if period < 0 { 1 } else { period })
}

fn ended(pod: &Value) -> bool {
    matches!(pod.pointer("/status/phase").and_then(Value::as_str), Some("Failed" | "Succeeded"))
}

/// Gives a pod its node, as a Binding says.
pub async fn bind(
    server: &Server,
    pods: &Served,
    (namespace, name): (&str, &str),
    binding: &Value,
    dry_run: bool,
) -> Result<(), Status> {
    let text = |pointer: &str| binding.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (node, kind) = (text("/target/name"), text("/target/kind"));
    let mut errors = Vec::new();
    if !matches!(kind, "" | "Node") {
        let detail = "supported values: \"Node\", \"<empty>\"";
        errors.push(crate::FieldError::new(crate::FieldErrorKind::NotSupported, "target.kind", kind, detail));
    }
    if node.is_empty() {
        errors.push(crate::FieldError::new(crate::FieldErrorKind::Required, "target.name", "", ""));
    }
    if !errors.is_empty() {
        let text: Vec<String> = errors.iter().map(crate::FieldError::message).collect();
        return Err(Status::unknown(text.join(", ")));
    }
    let key = pods.key(namespace, name);
    let how = Update {
        key: &key,
        name,
        namespace,
        part: Part::Other(&OWN),
        create: false,
        retry: true,
        managed: false,
    };
    let (uid, version) = (text("/metadata/uid"), text("/metadata/resourceVersion"));
    let make = |old: Option<Arc<Value>>| {
        let made = old.as_deref().ok_or_else(|| pods.not_found(name)).and_then(|old| {
            let conflict = |why: String| Status::conflict("", "pods/binding", name, why);
            if !uid.is_empty() && uid != meta::text(old, "uid") {
                return Err(conflict(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta::text(old, "uid")
                )));
            }
            if !version.is_empty() && version != meta::text(old, "resourceVersion") {
                return Err(conflict("the object has been modified".to_owned()));
            }
            if !meta::text(old, "deletionTimestamp").is_empty() {
                return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            let present = old.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
            if !present.is_empty() {
                return Err(conflict(format!("pod {name} is already assigned to node {present:?}")));
            }
            let gates = old.pointer("/spec/schedulingGates").and_then(Value::as_array);
            if gates.is_some_and(|g| !g.is_empty()) {
                return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            assigned(old, node, binding)
        });
        async move { made }.boxed()
    };
    let checks = Checks { dry_run, ..Checks::OWN };
    update(server, pods, &how, &make, &checks).await.map(drop)
}

fn assigned(old: &Value, node: &str, binding: &Value) -> Result<Value, Status> {
    let mut pod = old.clone();
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        let added = binding.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_object);
        if let Some(added) = added.filter(|a| !a.is_empty()) {
            let entry = meta::of(&mut pod)?.entry(field).or_insert_with(|| json!({}));
            if let Some(map) = entry.as_object_mut() {
                map.extend(added.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
        }
    }
    let scheduled = json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": meta::now(),
    });
    set_condition(&mut pod, scheduled);
    Ok(pod)
}

/// Deletes a pod if no disruption budget stands against it.
pub async fn evict(call: &Call, pods: &Served, eviction: &Value) -> Result<(), Status> {
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let named = meta::text(eviction, "name");
    if !named.is_empty() && named != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let server = &call.server;
    let key = pods.key(namespace, name);
    let object = server.registry.get(pods, &key).await?.ok_or_else(|| pods.not_found(name))?;
    let pod = pods.read(&object).await?;
    let mut options = DeleteOptions::of(eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({})))?;
    options.dry_run |= call.query.all("dryRun").any(|d| d == "All");
    let pending = pod.pointer("/status/phase").and_then(Value::as_str) == Some("Pending");
    let free = ended(&pod) || pending || !meta::text(&pod, "deletionTimestamp").is_empty();
    if !free {
        allow(server, namespace, &pod, options.dry_run).await?;
    }
    if options.uid.is_none() {
        options.uid = Some(meta::text(&pod, "uid").to_owned());
    }
    if !options.dry_run && !free {
        mark(server, pods, &key, namespace, name).await?;
    }
    delete(call, pods, &key, name, &options).await.map(drop)
}

/// Says on the pod why it goes.
async fn mark(server: &Server, pods: &Served, key: &str, namespace: &str, name: &str) -> Result<(), Status> {
    let how =
        Update { key, name, namespace, part: Part::Other(&OWN), create: false, retry: true, managed: false };
    let make = |old: Option<Arc<Value>>| {
        let made = old.as_deref().ok_or_else(|| pods.not_found(name)).map(|old| {
            let mut pod = old.clone();
            let condition = json!({
                "type": "DisruptionTarget",
                "status": "True",
                "lastProbeTime": null,
                "lastTransitionTime": meta::now(),
                "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting",
            });
            set_condition(&mut pod, condition);
            pod
        });
        async move { made }.boxed()
    };
    update(server, pods, &how, &make, &Checks::OWN).await.map(drop)
}

/// Puts a condition in the place of the one of its type.
fn set_condition(object: &mut Value, condition: Value) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    match object["status"].get_mut("conditions").and_then(Value::as_array_mut) {
        Some(conditions) => match conditions.iter_mut().find(|c| c["type"] == condition["type"]) {
            Some(present) => *present = condition,
            None => conditions.push(condition),
        },
        None => object["status"]["conditions"] = json!([condition]),
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Takes one disruption from the pod's budget.
async fn allow(server: &Server, namespace: &str, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let Some(row) = server.registry.any("policy", "poddisruptionbudgets") else { return Ok(()) };
    let labels = pod.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    let mut budgets = Vec::new();
    for object in row.cache.list(&row.prefix(namespace), None).0 {
        let value = row.read(&object).await?;
        let selector = value.pointer("/spec/selector");
        let selected =
            selector.and_then(|s| Selector::from_json(s).ok()).is_some_and(|s| s.matches_labels(&labels));
        if selected {
            budgets.push(value);
        }
    }
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let number = |v: &Value, pointer: &str| v.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let (healthy, desired) =
        (number(budget, "/status/currentHealthy"), number(budget, "/status/desiredHealthy"));
    if !is_ready(pod) {
        let always =
            budget.pointer("/spec/unhealthyPodEvictionPolicy").and_then(Value::as_str) == Some("AlwaysAllow");
        if always || (healthy >= desired && desired > 0) {
            return Ok(());
        }
    }
    let budget_name = meta::text(budget, "name").to_owned();
    let key = row.key(namespace, &budget_name);
    let how = Update {
        key: &key,
        name: &budget_name,
        namespace,
        part: Part::Other(&OWN),
        create: false,
        retry: true,
        managed: false,
    };
    let pod_name = meta::text(pod, "name");
    let make = |old: Option<Arc<Value>>| {
        let made =
            old.as_deref().ok_or_else(|| row.not_found(&budget_name)).and_then(|old| taken(old, pod_name));
        async move { made }.boxed()
    };
    update(server, &row, &how, &make, &Checks { dry_run, ..Checks::OWN }).await.map(drop)
}

fn taken(budget: &Value, pod: &str) -> Result<Value, Status> {
    let number = |pointer: &str| budget.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let name = meta::text(budget, "name");
    let refuse = |message: &str, cause: String, retry: Option<u32>| {
        let cause = Cause { reason: "DisruptionBudget".to_owned(), message: cause, field: String::new() };
        let status = Status::new(429, "TooManyRequests", message).with_causes(vec![cause]);
        match retry {
            Some(seconds) => status.with_retry_after(seconds),
            None => status,
        }
    };
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    if number("/status/observedGeneration") < number("/metadata/generation") {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refuse(message, cause, Some(10)));
    }
    let allowed = number("/status/disruptionsAllowed");
    if allowed < 0 {
        return Err(Status::forbidden(
            "policy",
            "poddisruptionbudget",
            name,
            "pdb disruptions allowed is negative",
        ));
    }
    let disrupted = budget.pointer("/status/disruptedPods").and_then(Value::as_object);
    if disrupted.is_some_and(|d| d.len() > 2000) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden("policy", "poddisruptionbudget", name, why));
    }
    if allowed == 0 {
        let cause = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("/status/desiredHealthy"),
            number("/status/currentHealthy")
        );
        return Err(refuse(message, cause, None));
    }
    let mut budget = budget.clone();
    budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
    let mut map = disrupted.cloned().unwrap_or_default();
    map.insert(pod.to_owned(), meta::now().into());
    budget["status"]["disruptedPods"] = Value::Object(map);
    if allowed == 1 {
        let condition = json!({
            "type": "DisruptionAllowed",
            "status": "False",
            "observedGeneration": number("/status/observedGeneration"),
            "lastTransitionTime": meta::now(),
            "reason": "InsufficientPods",
            "message": "",
        });
        set_condition(&mut budget, condition);
    }
    Ok(budget)
}
