//! NamespaceLifecycle: objects are made in namespaces that exist and stay; some namespaces never go.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use serde_json::Value;

use super::Scene;
use crate::hooks::Home;
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
        if (attributes.group.as_str(), attributes.resource.as_str()) == ("", "namespaces") {
            if scene.operation() == Operation::Delete && IMMORTAL.contains(&attributes.name.as_str()) {
                return Err(scene.forbid(object, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        if !concerns(&scene) || scene.operation() == Operation::Delete {
            return Ok(());
        }
        let found = scene.find("namespaces", "", scene.namespace()).await;
        stands(&scene, object, found).map(drop)
    }
    .boxed()
}

/// The namespace of a new object, which must not have begun to end when the object is written.
pub(super) fn home(scene: &Scene<'_>, object: &Value) -> Result<Option<Home>, Status> {
    if !concerns(scene) {
        return Ok(None);
    }
    let name = scene.namespace();
    let found = stands(scene, object, scene.cluster.get("", "namespaces", "", name))?;
    let revision = found.text("metadata.resourceVersion").parse().map_err(Status::internal)?;
    Ok(Some(Home { group: "", resource: "namespaces", key: name.to_owned(), revision }))
}

/// Whether the request is about something in a namespace. An access review must not tell whether a namespace exists.
fn concerns(scene: &Scene<'_>) -> bool {
    let attributes = scene.request.attributes;
    let kind = (attributes.group.as_str(), attributes.resource.as_str());
    !scene.namespace().is_empty()
        && kind != ("", "namespaces")
        && kind != ("authorization.k8s.io", "localsubjectaccessreviews")
}

fn stands(scene: &Scene<'_>, object: &Value, found: Option<Arc<Value>>) -> Result<Arc<Value>, Status> {
    let namespace = scene.namespace();
    let found = found.ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
    if scene.operation() == Operation::Create && found.text("status.phase") == "Terminating" {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        };
        return Err(scene.forbid(object, why).with_causes(vec![cause]));
    }
    Ok(found)
}
