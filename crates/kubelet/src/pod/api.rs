//! What a worker writes to the API, and what it takes away from the node at the end.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::podutil::{name, namespace, uid};
use crate::volumes;

fn pods(context: &Context, pod: &Pod) -> Api<Pod> {
    Api::namespaced(context.config.client.clone(), namespace(pod))
}

/// Whether the API no longer has this pod (or has another one of its name).
pub(super) fn gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || (status.code == 409 && status.message.contains("Precondition")))
}

/// Writes what changed between `sent` and `status`, as a strategic merge patch that is bound to the pod's uid.
pub(super) async fn write_status(
    context: &Context,
    pod: &Pod,
    sent: &PodStatus,
    status: &PodStatus,
) -> Result<(), kube::Error> {
    let before = serde_json::to_value(sent).map_err(kube::Error::SerdeError)?;
    let after = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
    let patch = json!({"metadata": {"uid": uid(pod)}, "status": changes(&before, &after)});
    pods(context, pod)
        .patch_status(name(pod), &PatchParams::default(), &Patch::Strategic(&patch))
        .await
        .map(|_| ())
}

/// The top-level fields of `after` that differ, and `null` for those that are gone. Conditions merge by type, so their lost
/// fields need a `null` too.
fn changes(before: &Value, after: &Value) -> Value {
    let empty = Map::new();
    let before = before.as_object().unwrap_or(&empty);
    let after = after.as_object().unwrap_or(&empty);
    let mut patch = Map::new();
    for (key, value) in after {
        if before.get(key) == Some(value) {
            continue;
        }
        let mut value = value.clone();
        if key == "conditions" {
            let old = before.get(key).and_then(Value::as_array);
            let kinds: Vec<Value> =
                value.as_array().into_iter().flatten().map(|c| c["type"].clone()).collect();
            let lost = old.into_iter().flatten().filter(|old| !kinds.contains(&old["type"]));
            let lost: Vec<Value> = lost.map(|old| json!({"$patch": "delete", "type": old["type"]})).collect();
            for condition in value.as_array_mut().into_iter().flatten() {
                let kind = condition["type"].clone();
                let same = old.into_iter().flatten().find(|old| old["type"] == kind);
                let (Some(same), Some(fields)) = (same.and_then(Value::as_object), condition.as_object_mut())
                else {
                    continue;
                };
                for field in same.keys() {
                    fields.entry(field.clone()).or_insert(Value::Null);
                }
            }
            value.as_array_mut().into_iter().for_each(|list| list.extend(lost.clone()));
        }
        patch.insert(key.clone(), value);
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// Deletes the object for good.
pub(super) async fn delete(context: &Context, pod: &Pod) -> Result<(), kube::Error> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    failpoint::step("kubelet.delete.object");
    match pods(context, pod).delete(name(pod), &params).await {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Takes volumes and the cgroup away. Can be tried again.
pub(super) async fn clean(context: &Context, pod: &Pod) -> Result<(), String> {
    failpoint::step("kubelet.clean.claims");
    context.claims.unprepare(uid(pod)).await.map_err(|error| error.to_string())?;
    failpoint::step("kubelet.clean.volumes");
    volumes::teardown(context, uid(pod)).await.map_err(|error| error.to_string())?;
    failpoint::step("kubelet.clean.cgroup");
    if let Some(cgroups) = &context.cgroups {
        cgroups.remove(pod).map_err(|error| format!("cannot remove the pod's cgroup: {error}"))?;
    }
    context.users.release(uid(pod));
    failpoint::step("kubelet.clean.done");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_written() {
        let before = json!({"phase": "Pending", "podIP": "1", "reason": "r",
            "conditions": [{"type": "Ready", "status": "False", "reason": "x"}]});
        let after =
            json!({"phase": "Running", "podIP": "1", "conditions": [{"type": "Ready", "status": "True"}]});
        let expected = json!({"phase": "Running", "reason": null,
            "conditions": [{"type": "Ready", "status": "True", "reason": null}]});
        assert_eq!(changes(&before, &after), expected);
        assert_eq!(changes(&after, &after), json!({}));
        let none = json!({"phase": "Running", "podIP": "1", "conditions": []});
        let expected = json!({"conditions": [{"$patch": "delete", "type": "Ready"}]});
        assert_eq!(changes(&after, &none), expected);
    }
}
