//! Priority: a pod's class becomes its number; at most one class is the default.

use std::sync::Arc;

use serde_json::Value;

use super::Scene;
use crate::read::{Read, object_mut};
use crate::{Operation, Status};

const GROUP: &str = "scheduling.k8s.io";
const RESOURCE: &str = "priorityclasses";

pub(super) fn admit(scene: &Scene<'_>, pod: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    if !scene.is("", "pods") {
        return Ok(());
    }
    if scene.operation() == Operation::Update {
        // A client that does not know the fields must not lose them.
        for key in ["priority", "preemptionPolicy"] {
            let before = old.map_or(&Value::Null, |old| old.at("spec").at(key));
            if pod.at("spec").at(key).is_null() && !before.is_null() {
                let before = before.clone();
                object_mut(pod, "spec").insert(key.into(), before);
            }
        }
        return Ok(());
    }
    let asked = pod.text("spec.priorityClassName");
    let class = if asked.is_empty() {
        default_class(scene)
    } else {
        let found = scene.cluster.get(GROUP, RESOURCE, "", asked);
        Some(
            found
                .ok_or_else(|| scene.forbid(pod, format!("no PriorityClass with name {asked} was found")))?,
        )
    };
    let (name, value, policy) = match &class {
        Some(class) => {
            (class.name(), class.at("value").as_i64().unwrap_or_default(), class.text("preemptionPolicy"))
        }
        None => ("", 0, "PreemptLowerPriority"),
    };
    if let Some(given) = pod.at("spec.priority").as_i64().filter(|given| *given != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(scene.forbid(pod, why));
    }
    let given = pod.text("spec.preemptionPolicy");
    if !policy.is_empty() && !given.is_empty() && given != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        );
        return Err(scene.forbid(pod, why));
    }
    let spec = object_mut(pod, "spec");
    if !name.is_empty() {
        spec.insert("priorityClassName".into(), name.into());
    }
    spec.insert("priority".into(), value.into());
    if !policy.is_empty() {
        spec.insert("preemptionPolicy".into(), policy.into());
    }
    Ok(())
}

pub(super) fn validate(scene: &Scene<'_>, class: &Value, _: Option<&Value>) -> Result<(), Status> {
    if !scene.is(GROUP, RESOURCE) || class.at("globalDefault") != &Value::Bool(true) {
        return Ok(());
    }
    match default_class(scene) {
        Some(other) if scene.operation() == Operation::Create || other.name() != class.name() => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                other.name()
            );
            Err(scene.forbid(class, why))
        }
        _ => Ok(()),
    }
}

/// The default class; of several, which a race may leave, the lowest.
fn default_class(scene: &Scene<'_>) -> Option<Arc<Value>> {
    let classes = scene.cluster.list(GROUP, RESOURCE, None).items;
    let defaults = classes.into_iter().filter(|class| class.at("globalDefault") == &Value::Bool(true));
    defaults.min_by_key(|class| class.at("value").as_i64().unwrap_or_default())
}
