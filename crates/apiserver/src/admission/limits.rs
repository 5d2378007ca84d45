//! LimitRanger: fills in what the namespace's LimitRanges say for containers, and holds pods and claims to their bounds.

use api::quantity::Quantity;
use serde_json::{Map, Value};

use super::Scene;
use super::amounts::{self, Amounts};
use crate::read::{Read, object_mut};
use crate::{Operation, Status};

const NOTE: &str = "kubernetes.io/limit-ranger";

fn concerns(scene: &Scene<'_>, old: Option<&Value>) -> bool {
    let (create, update) = (scene.operation() == Operation::Create, scene.operation() == Operation::Update);
    let fits = (scene.is("", "pods") && create)
        || (scene.is("", "pods/resize") && update)
        || scene.is("", "persistentvolumeclaims");
    fits && !old.is_some_and(|old| old.has("metadata.deletionTimestamp"))
}

pub(super) fn admit(scene: &Scene<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    if !concerns(scene, old) || scene.request.attributes.resource != "pods" {
        return Ok(());
    }
    for range in scene.cluster.list("", "limitranges", Some(scene.namespace())).items {
        let (mut requests, mut limits) = (Map::new(), Map::new());
        for item in range.items("spec.limits").iter().filter(|item| item.text("type") == "Container") {
            requests.extend(item.at("defaultRequest").as_object().cloned().unwrap_or_default());
            limits.extend(item.at("default").as_object().cloned().unwrap_or_default());
        }
        let mut notes = Vec::new();
        for (list, kind) in [("containers", "container"), ("initContainers", "init container")] {
            let containers = object["spec"].get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                let name = container.text("name").to_owned();
                for (which, word, defaults) in
                    [("requests", "request", &requests), ("limits", "limit", &limits)]
                {
                    let set = fill(container, which, defaults);
                    if !set.is_empty() {
                        notes.push(format!("{} {word} for {kind} {name}", set.join(", ")));
                    }
                }
            }
        }
        if !notes.is_empty() {
            let text = format!("LimitRanger plugin set: {}", notes.join("; "));
            object_mut(object, "metadata.annotations").insert(NOTE.into(), text.into());
        }
    }
    Ok(())
}

/// Sets the defaults that the container lacks; the names of these, sorted.
fn fill(container: &mut Value, which: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let mut set: Vec<String> = Vec::new();
    for (name, amount) in defaults {
        if container.at("resources").at(which).get(name).is_none() {
            object_mut(container, &format!("resources.{which}")).insert(name.clone(), amount.clone());
            set.push(name.clone());
        }
    }
    set.sort();
    set
}

pub(super) fn validate(scene: &Scene<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    if !concerns(scene, old) {
        return Ok(());
    }
    for range in scene.cluster.list("", "limitranges", Some(scene.namespace())).items {
        let mut errors = Vec::new();
        for item in range.items("spec.limits") {
            match (scene.request.attributes.resource.as_str(), item.text("type")) {
                ("pods", "Container") => {
                    let spec = object.at("spec");
                    for container in spec.items("containers").iter().chain(spec.items("initContainers")) {
                        let requests = amounts::read(container.at("resources.requests"));
                        let limits = amounts::read(container.at("resources.limits"));
                        check(item, &requests, &limits, &mut errors);
                    }
                }
                ("pods", "Pod") => {
                    let spec = object.at("spec");
                    let (requests, limits) =
                        (amounts::of_pod(spec, "requests"), amounts::of_pod(spec, "limits"));
                    check(item, &requests, &limits, &mut errors);
                }
                ("persistentvolumeclaims", "PersistentVolumeClaim") => {
                    check_claim(item, &amounts::read(object.at("spec.resources.requests")), &mut errors);
                }
                _ => {}
            }
        }
        match errors.as_slice() {
            [] => {}
            [one] => return Err(scene.forbid(object, one)),
            many => return Err(scene.forbid(object, format!("[{}]", many.join(", ")))),
        }
    }
    Ok(())
}

fn check(item: &Value, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    let kind = item.text("type");
    for (name, bound) in amounts::read(item.at("min")) {
        errors.extend(below(kind, &name, &bound, requests, limits));
    }
    for (name, bound) in amounts::read(item.at("max")) {
        let start = format!("maximum {name} usage per {kind} is {bound}");
        match (limits.get(&name), requests.get(&name)) {
            (None, _) => errors.push(format!("{start}.  No limit is specified")),
            (Some(limit), _) if *limit > bound => errors.push(format!("{start}, but limit is {limit}")),
            (_, Some(request)) if *request > bound => {
                errors.push(format!("{start}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, bound) in amounts::read(item.at("maxLimitRequestRatio")) {
        let start = format!("{name} max limit to request ratio per {kind} is {bound}, but");
        let given = |amounts: &Amounts| amounts.get(&name).filter(|a| !a.is_zero()).cloned();
        match (given(requests), given(limits)) {
            (None, _) => errors.push(format!("{start} no request is specified or request is 0")),
            (_, None) => errors.push(format!("{start} no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.milli_value() as f64 / request.milli_value() as f64;
                if ratio * 1000.0 > bound.milli_value() as f64 {
                    errors.push(format!("{start} provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn check_claim(item: &Value, requests: &Amounts, errors: &mut Vec<String>) {
    let kind = item.text("type");
    for (name, bound) in amounts::read(item.at("min")) {
        errors.extend(below(kind, &name, &bound, requests, &Amounts::new()));
    }
    for (name, bound) in amounts::read(item.at("max")) {
        let start = format!("maximum {name} usage per {kind} is {bound}");
        match requests.get(&name) {
            None => errors.push(format!("{start}.  No request is specified")),
            Some(request) if *request > bound => {
                errors.push(format!("{start}, but request is {request}"));
            }
            _ => {}
        }
    }
}

fn below(kind: &str, name: &str, bound: &Quantity, requests: &Amounts, limits: &Amounts) -> Option<String> {
    let start = format!("minimum {name} usage per {kind} is {bound}");
    match (requests.get(name), limits.get(name)) {
        (None, _) => Some(format!("{start}.  No request is specified")),
        (Some(request), _) if request < bound => Some(format!("{start}, but request is {request}")),
        (_, Some(limit)) if limit < bound => Some(format!("{start}, but limit is {limit}")),
        _ => None,
    }
}
