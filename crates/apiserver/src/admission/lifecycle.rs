//! NamespaceLifecycle: objects are made in namespaces that exist and stay; some namespaces never go.

use futures::future::{BoxFuture, FutureExt};
use serde_json::Value;

use super::Scene;
use crate::read::Read;
use crate::{Cause, Operation, Status};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) fn admit<'a>(
    scene: Scene<'a>,
    object: &'a mut Value,
    _: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    let object = &*object;
    async move {
        let attributes = scene.request.attributes;
        let (group, resource) = (attributes.group.as_str(), attributes.resource.as_str());
        let namespace = scene.namespace();
        if (group, resource) == ("", "namespaces") {
            if scene.operation() == Operation::Delete && IMMORTAL.contains(&attributes.name.as_str()) {
                return Err(scene.forbid(object, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        // An access review must not tell whether a namespace exists.
        if namespace.is_empty()
            || scene.operation() == Operation::Delete
            || (group, resource) == ("authorization.k8s.io", "localsubjectaccessreviews")
        {
            return Ok(());
        }
        let Some(found) = scene.find("namespaces", "", namespace).await else {
            return Err(Status::not_found("", "namespaces", namespace));
        };
        if scene.operation() == Operation::Create && found.text("status.phase") == "Terminating" {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            let cause = Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".to_owned(),
            };
            return Err(scene.forbid(object, why).with_causes(vec![cause]));
        }
        Ok(())
    }
    .boxed()
}
