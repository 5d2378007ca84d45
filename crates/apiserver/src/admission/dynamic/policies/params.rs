//! The parameter objects that a binding names.

use std::sync::Arc;

use api::labels::Selector;
use serde_json::Value;

use super::{Binding, Definition};
use crate::admission::Scene;
use crate::read::Read;
use crate::{ClusterRef, Gvk, Gvr};

/// The parameters to evaluate with: none means that the binding is passed over, a null that there are no parameters. The
/// error is one of the configuration.
pub(super) async fn collect(
    scene: &Scene<'_>,
    definition: &Definition,
    binding: &Binding,
) -> Result<Vec<Arc<Value>>, String> {
    let Some(kind) = &definition.param else { return Ok(vec![Arc::new(Value::Null)]) };
    let reference = &binding.param;
    if reference.is_null() {
        return Ok(vec![Arc::new(Value::Null)]);
    }
    let (resource, namespaced) = known(scene.cluster, kind)?;
    let own = scene.request.attributes.namespace.as_str();
    let namespace = match (namespaced, reference.text("namespace")) {
        (false, "") => "",
        (false, _) => {
            let why = "paramRef.namespace must not be provided for a cluster-scoped `paramKind`";
            return Err(why.to_owned());
        }
        (true, "") if own.is_empty() => {
            let why =
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(why.to_owned());
        }
        (true, "") => own,
        (true, namespace) => namespace,
    };
    let (group, plural) = (resource.group.as_str(), resource.resource.as_str());
    let found: Vec<Arc<Value>> = match reference.text("name") {
        "" => {
            let selector = Selector::from_json(reference.at("selector"))?;
            let all = scene.cluster.list(group, plural, namespaced.then_some(namespace)).items;
            all.into_iter().filter(|p| selector.matches_labels(p.at("metadata.labels"))).collect()
        }
        name => scene.cluster.get(group, plural, namespace, name).into_iter().collect(),
    };
    if found.is_empty() && reference.text("parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    let mut params = Vec::with_capacity(found.len());
    for param in found {
        params.push(as_kind(scene.cluster, kind, &resource, param).await?);
    }
    Ok(params)
}

fn named(kind: &Gvk) -> String {
    format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind)
}

/// The resource of the parameters' kind.
pub(super) fn known(cluster: &ClusterRef, kind: &Gvk) -> Result<(Gvr, bool), String> {
    let found = cluster.resource_of(kind);
    found.ok_or_else(|| format!("failed to find resource referenced by paramKind: '{}'", named(kind)))
}

/// The object in the version that the policy names.
async fn as_kind(
    cluster: &ClusterRef,
    kind: &Gvk,
    resource: &Gvr,
    param: Arc<Value>,
) -> Result<Arc<Value>, String> {
    let is = param.text("apiVersion");
    let (group, version) = is.split_once('/').unwrap_or(("", is));
    if version == kind.version && group == kind.group {
        return Ok(param);
    }
    let from = Gvr { version: version.to_owned(), group: group.to_owned(), ..resource.clone() };
    let converted = cluster.convert(&from, resource, (*param).clone()).await;
    converted.map(Arc::new).map_err(|e| e.to_string())
}
