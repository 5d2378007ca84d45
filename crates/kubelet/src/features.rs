//! What the runtime can do, by handler, as it tells of itself; and which handler a pod's RuntimeClass names.

use std::collections::BTreeMap;

use cri::v1::{RuntimeFeatures, RuntimeHandlerFeatures, StatusRequest, StatusResponse};
use k8s_openapi::api::core::v1::{NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use parking_lot::Mutex;

use crate::context::Context;
use crate::podutil::spec;

#[derive(Default, Clone)]
struct Told {
    handlers: BTreeMap<String, RuntimeHandlerFeatures>,
    own: Option<RuntimeFeatures>,
}

/// What the runtime last told.
#[derive(Default)]
pub(crate) struct Features(Mutex<Option<Told>>);

impl Features {
    /// Takes note of what the runtime says with its status.
    pub(crate) fn note(&self, status: &StatusResponse) {
        let handlers = status.runtime_handlers.iter();
        let handlers =
            handlers.map(|handler| (handler.name.clone(), handler.features.unwrap_or_default())).collect();
        *self.0.lock() = Some(Told { handlers, own: status.features });
    }

    /// What a handler can do; nothing if it is not known.
    pub(crate) fn of(&self, handler: &str) -> RuntimeHandlerFeatures {
        let told = self.0.lock();
        told.as_ref().and_then(|told| told.handlers.get(handler).copied()).unwrap_or_default()
    }

    fn knows_something(&self) -> bool {
        self.0.lock().is_some()
    }

    /// As the node's status shows it.
    pub(crate) fn shown(&self) -> (Option<Vec<NodeRuntimeHandler>>, Option<NodeFeatures>) {
        let Some(told) = self.0.lock().clone() else { return (None, None) };
        let handlers = told.handlers.into_iter().map(|(name, features)| NodeRuntimeHandler {
            name: Some(name),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
                user_namespaces: Some(features.user_namespaces),
            }),
        });
        let handlers: Vec<_> = handlers.collect();
        let own = told
            .own
            .map(|own| NodeFeatures { supplemental_groups_policy: Some(own.supplemental_groups_policy) });
        ((!handlers.is_empty()).then_some(handlers), own)
    }
}

/// The handler that the pod's RuntimeClass names; empty for the runtime's own choice.
pub(crate) async fn handler(context: &Context, pod: &Pod) -> Result<String, String> {
    let Some(name) = spec(pod).runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(String::new());
    };
    let api: Api<RuntimeClass> = Api::all(context.config.client.clone());
    let class = api.get_opt(name).await;
    let class = class.map_err(|error| format!("failed to get RuntimeClass {name:?}: {error}"))?;
    class.map(|class| class.handler).ok_or_else(|| format!("RuntimeClass {name:?} not found"))
}

/// Refuses a pod that wants of its handler what it cannot do.
pub(crate) async fn check(context: &Context, pod: &Pod, handler: &str) -> Result<(), String> {
    if !context.features.knows_something() {
        let status = context.cri.runtime().status(StatusRequest { verbose: false }).await;
        context.features.note(&status.map_err(|status| status.message().to_owned())?.into_inner());
    }
    if spec(pod).host_users == Some(false) && !context.features.of(handler).user_namespaces {
        return Err(
            "can't set `spec.hostUsers: false`: the runtime does not support user namespaces here".to_owned()
        );
    }
    Ok(())
}
