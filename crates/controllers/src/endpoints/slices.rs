//! Keeps the EndpointSlices of Services that have a selector.

use std::sync::Arc;
use std::time::Duration;

use informer::{Change, Informer, Key, Queue};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use scheduling::selector::{contains, labels_of};

use super::plan::{CONTROLLER, plan};
use super::{MANAGED_BY, SERVICE_NAME, services_of};
use crate::kit::error::found;
use crate::kit::written::Written;
use crate::kit::{Context, Error, Result};

struct Controller {
    client: Client,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    slices: Arc<Informer<EndpointSlice>>,
    written: Written,
}

/// The service of a slice that a controller keeps.
pub(super) fn service_key(slice: &EndpointSlice, controller: &str) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.get(MANAGED_BY).map(String::as_str) != Some(controller) {
        return None;
    }
    Some(Key::new(slice.metadata.namespace.clone()?, labels.get(SERVICE_NAME)?.clone()))
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        services: context.informer(),
        pods: context.informer(),
        nodes: context.informer(),
        slices: context.informer(),
        written: Written::default(),
    });
    let queue = Queue::new();
    let to = queue.clone();
    this.services.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    this.services.synced().await;
    this.nodes.synced().await;
    let (to, services) = (queue.clone(), this.services.clone());
    this.pods.on_change(move |change| services_of(&services, change).into_iter().for_each(|key| to.add(key)));
    this.pods.synced().await;
    let to = queue.clone();
    this.slices.on_change(move |change| {
        let old = match change {
            Change::Applied { old, .. } => old.and_then(|old| service_key(old, CONTROLLER)),
            Change::Deleted(_) => None,
        };
        for key in old.into_iter().chain(service_key(change.latest(), CONTROLLER)) {
            to.add(key);
        }
    });
    this.slices.synced().await;
    let (to, services) = (queue.clone(), this.services.clone());
    this.nodes.on_change(move |change| {
        let zone = |node: &Node| node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").cloned();
        if let Change::Applied { old: Some(old), new } = change
            && zone(old) != zone(new)
        {
            services.list().iter().for_each(|service| to.add(Key::of(service.as_ref())));
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("endpointslice", 8, queue, sync).await;
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let Some(service) = self.services.get(&key) else { return Ok(None) };
        let spec = service.spec.clone().unwrap_or_default();
        // Without a selector the slices are the user's own.
        let Some(selector) = spec.selector.filter(|selector| !selector.is_empty()) else { return Ok(None) };
        if spec.type_.as_deref() == Some("ExternalName") {
            return Ok(None);
        }
        if !self.written.is_seen(&key, &self.slices) {
            return Err(Error::Stale);
        }
        let slices: Vec<_> = self
            .slices
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|slice| service_key(slice, CONTROLLER).as_ref() == Some(&key))
            .filter(|slice| slice.metadata.deletion_timestamp.is_none())
            .collect();
        let pods: Vec<_> = self
            .pods
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|pod| contains(labels_of(&pod.metadata.labels), Some(&selector)))
            .collect();
        let plan = plan(&service, &pods, |name| self.nodes.find("", name), &slices);

        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &key.namespace);
        if service.metadata.deletion_timestamp.is_none() {
            for slice in &plan.create {
                match api.create(&PostParams::default(), slice).await.map_err(Error::from) {
                    Ok(created) => self.written.wrote(&key, &created),
                    Err(error) if error.is_namespace_terminating() => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        }
        for slice in &plan.update {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let updated = api.replace(name, &PostParams::default(), slice).await?;
            self.written.wrote(&key, &updated);
        }
        for name in &plan.delete {
            found(api.delete(name, &DeleteParams::default()).await)?;
            self.written.deleted(&key, Key::new(key.namespace.clone(), name.clone()));
        }
        if plan.incomplete { Err(Error::Stale) } else { Ok(None) }
    }
}
