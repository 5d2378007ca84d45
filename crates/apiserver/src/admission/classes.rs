//! RuntimeClass, DefaultIngressClass and PodTopologyLabels: what follows from another object that is named.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use serde_json::{Map, Value};

use super::storage::default_of;
use super::{Scene, amounts};
use crate::Status;
use crate::read::{Read, object_mut};

pub(super) fn runtime<'a>(
    scene: Scene<'a>,
    pod: &'a mut Value,
    _: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    async move {
        if !scene.is("", "pods") {
            return Ok(());
        }
        let name = pod.text("spec.runtimeClassName");
        if name.is_empty() {
            return Ok(());
        }
        if runtime_class(&scene, name).is_none() {
            scene.cluster.fresh("node.k8s.io", "runtimeclasses").await;
        }
        let class = runtime_class(&scene, name).ok_or_else(|| {
            scene.forbid(pod, format!("pod rejected: RuntimeClass {name:?} not found"))
        })?;
        let overhead = class.at("overhead.podFixed");
        if class.has("overhead") {
            let given = pod.at("spec.overhead");
            let some = given.as_object().is_some_and(|map| !map.is_empty());
            if some && amounts::read(given) != amounts::read(overhead) {
                return Err(scene.forbid(pod, MISMATCH));
            }
            if overhead.is_object() {
                let overhead = overhead.clone();
                object_mut(pod, "spec").insert("overhead".into(), overhead);
            }
        }
        if class.has("scheduling") {
            let mut selector: Map<String, Value> =
                pod.at("spec.nodeSelector").as_object().cloned().unwrap_or_default();
            for (key, value) in class.at("scheduling.nodeSelector").as_object().into_iter().flatten() {
                if let Some(own) = selector.get(key).filter(|own| *own != value) {
                    let shown = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                    let why = format!(
                        "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                        shown(value),
                        shown(own)
                    );
                    return Err(scene.forbid(pod, why));
                }
                selector.insert(key.clone(), value.clone());
            }
            let tolerations =
                merge(pod.items("spec.tolerations"), class.items("scheduling.tolerations"));
            let spec = object_mut(pod, "spec");
            if !selector.is_empty() {
                spec.insert("nodeSelector".into(), selector.into());
            }
            if !tolerations.is_empty() {
                spec.insert("tolerations".into(), tolerations.into());
            }
        }
        Ok(())
    }
    .boxed()
}

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

pub(super) fn overhead(scene: &Scene<'_>, pod: &Value, _: Option<&Value>) -> Result<(), Status> {
    if !scene.is("", "pods") {
        return Ok(());
    }
    let class = match pod.text("spec.runtimeClassName") {
        "" => None,
        name => runtime_class(scene, name),
    };
    match class.filter(|class| class.has("overhead")) {
        Some(class) => {
            let wanted = amounts::read(class.at("overhead.podFixed"));
            if wanted != amounts::read(pod.at("spec.overhead")) {
                return Err(scene.forbid(pod, MISMATCH));
            }
        }
        None if pod.has("spec.overhead") => {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(scene.forbid(pod, why));
        }
        None => {}
    }
    Ok(())
}

fn runtime_class(scene: &Scene<'_>, name: &str) -> Option<Arc<Value>> {
    scene.cluster.get("node.k8s.io", "runtimeclasses", "", name)
}

/// Both lists without what another one of them covers; of equal ones the first stays.
fn merge(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let covered = merged.iter().any(|m| covers(m, toleration))
            || all[i + 1..].iter().any(|later| *later != *toleration && covers(later, toleration));
        if !covered {
            merged.push((*toleration).clone());
        }
    }
    merged
}

fn covers(wide: &Value, narrow: &Value) -> bool {
    if wide == narrow {
        return true;
    }
    let exists = |t: &Value| t.text("operator") == "Exists";
    if wide.text("key") != narrow.text("key") && !(wide.text("key").is_empty() && exists(wide)) {
        return false;
    }
    if !wide.text("effect").is_empty() && wide.text("effect") != narrow.text("effect") {
        return false;
    }
    if wide.text("effect") == "NoExecute" {
        let (wide, narrow) = (wide.at("tolerationSeconds").as_i64(), narrow.at("tolerationSeconds").as_i64());
        match (wide, narrow) {
            (Some(_), None) => return false,
            (Some(wide), Some(narrow)) if wide < narrow => return false,
            _ => {}
        }
    }
    match wide.text("operator") {
        "Exists" => true,
        "" | "Equal" => {
            matches!(narrow.text("operator"), "" | "Equal") && wide.text("value") == narrow.text("value")
        }
        _ => false,
    }
}

pub(super) fn ingress(scene: &Scene<'_>, ingress: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !scene.is("networking.k8s.io", "ingresses")
        || ingress.has("spec.ingressClassName")
        || ingress.annotation("kubernetes.io/ingress.class").is_some()
    {
        return Ok(());
    }
    let marks = ["ingressclass.kubernetes.io/is-default-class"];
    if let Some(class) = default_of(scene, "networking.k8s.io", "ingressclasses", &marks) {
        object_mut(ingress, "spec").insert("ingressClassName".into(), class.name().into());
    }
    Ok(())
}

/// The node labels that a bound pod gets.
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub(super) fn topology(scene: &Scene<'_>, object: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    let node = if scene.is("", "pods") {
        object.text("spec.nodeName")
    } else if scene.is("", "pods/binding") && matches!(object.text("target.kind"), "Node") {
        object.text("target.name")
    } else {
        return Ok(());
    };
    let Some(node) = Some(node).filter(|n| !n.is_empty()).and_then(|n| scene.cluster.get("", "nodes", "", n))
    else {
        return Ok(());
    };
    for key in TOPOLOGY {
        if let Some(value) = node.label(key) {
            object_mut(object, "metadata.labels").insert(key.into(), value.into());
        }
    }
    Ok(())
}

/// PodResize: a bound pod may not ask for more than its node has.
pub(super) fn pod_resize(scene: &Scene<'_>, pod: &Value, old: Option<&Value>) -> Result<(), Status> {
    let name = pod.text("spec.nodeName");
    let unchanged = old.is_some_and(|old| old.at("spec") == pod.at("spec"));
    if !scene.is("", "pods/resize") || name.is_empty() || unchanged {
        return Ok(());
    }
    let node = scene
        .cluster
        .get("", "nodes", "", name)
        .ok_or_else(|| scene.forbid(pod, format!("node {name:?} not found")))?;
    let refuse = |reason: &str, why: String| {
        let cause = crate::Cause { reason: reason.to_owned(), message: String::new(), field: String::new() };
        scene.forbid(pod, why).with_causes(vec![cause])
    };
    if let Some(os) = node.label("kubernetes.io/os").filter(|os| *os != "linux") {
        let why = format!("pod resize is only supported on linux nodes, node {name:?} is {os:?}");
        return Err(refuse("UnsupportedPlatform", why));
    }
    let requests = amounts::of_pod(pod.at("spec"), "requests");
    let allocatable = amounts::read(node.at("status.allocatable"));
    let mut short = Vec::new();
    for resource in ["cpu", "memory"] {
        let Some(asked) = requests.get(resource) else { continue };
        let there = allocatable.get(resource);
        if there.is_none_or(|there| asked > there) && !asked.is_zero() {
            let shown = |q: &api::quantity::Quantity| {
                if resource == "cpu" { q.milli_value() } else { q.value() }
            };
            let there = there.map_or(0, &shown);
            short.push(format!("{resource}, requested: {}, allocatable: {there}", shown(asked)));
        }
    }
    if short.is_empty() {
        return Ok(());
    }
    let why = format!("node didn't have enough allocatable resources: {}", short.join("; "));
    Err(refuse("NodeCapacity", why))
}
