//! Slices for Endpoints that users keep by hand, for Services without a selector.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use informer::{Informer, Key, Queue};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use super::slices::service_key;
use super::{MANAGED_BY, SERVICE_NAME};
use crate::kit::error::found;
use crate::kit::refs::reference_to;
use crate::kit::written::Written;
use crate::kit::{Context, Error, Result};

const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const NOT_COPIED: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];
const MOST: usize = 1000;

struct Controller {
    client: Client,
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
    written: Written,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        services: context.informer(),
        endpoints: context.informer(),
        slices: context.informer(),
        written: Written::default(),
    });
    let queue = Queue::new();
    this.services.synced().await;
    this.slices.synced().await;
    let to = queue.clone();
    this.endpoints.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let to = queue.clone();
    this.services.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    let to = queue.clone();
    this.slices.on_change(move |change| {
        service_key(change.latest(), CONTROLLER).into_iter().for_each(|key| to.add(key))
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("endpointslicemirroring", 5, queue, sync).await;
}

fn should_mirror(endpoints: &Endpoints) -> bool {
    let label = endpoints.metadata.labels.as_ref().and_then(|all| all.get(SKIP));
    let annotations = endpoints.metadata.annotations.as_ref();
    label.is_none_or(|value| value != "true")
        && annotations.is_none_or(|all| !all.contains_key("control-plane.alpha.kubernetes.io/leader"))
}

fn mirrored(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        for (family, v6) in [("IPv4", false), ("IPv6", true)] {
            let found: Vec<Endpoint> = of_subset(subset, v6).take(MOST).collect();
            if !found.is_empty() {
                slices.push(slice(endpoints, subset, family, found));
            }
        }
    }
    slices
}

fn of_subset(subset: &EndpointSubset, v6: bool) -> impl Iterator<Item = Endpoint> {
    let ready = subset.addresses.iter().flatten().map(|one| (one, true));
    let other = subset.not_ready_addresses.iter().flatten().map(|one| (one, false));
    let of_family = move |(one, _): &(&EndpointAddress, bool)| {
        one.ip.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6() == v6)
    };
    ready.chain(other).filter(of_family).map(|(address, ready)| Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    })
}

fn slice(
    endpoints: &Endpoints,
    subset: &EndpointSubset,
    family: &str,
    found: Vec<Endpoint>,
) -> EndpointSlice {
    let meta = &endpoints.metadata;
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), meta.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    let annotations: BTreeMap<_, _> = meta.annotations.clone().unwrap_or_default();
    let annotations: BTreeMap<_, _> =
        annotations.into_iter().filter(|(key, _)| !NOT_COPIED.contains(&key.as_str())).collect();
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: port.protocol.clone().or_else(|| Some("TCP".into())),
        app_protocol: port.app_protocol.clone(),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: meta.name.as_ref().map(|name| format!("{name}-")),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|all| !all.is_empty()),
            owner_references: Some(vec![reference_to(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(found),
        ports: Some(ports.collect()),
    }
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        if !self.written.is_seen(&key, &self.slices) {
            return Err(Error::Stale);
        }
        let mut old: Vec<_> = self
            .slices
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|slice| service_key(slice, CONTROLLER).as_ref() == Some(&key))
            .collect();
        let by_hand = self
            .services
            .get(&key)
            .is_some_and(|service| service.spec.as_ref().is_none_or(|spec| spec.selector.is_none()));
        let endpoints = self.endpoints.get(&key).filter(|one| by_hand && should_mirror(one));
        let wanted = endpoints.as_deref().map(mirrored).unwrap_or_default();

        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &key.namespace);
        for mut slice in wanted {
            let like =
                |one: &Arc<EndpointSlice>| one.address_type == slice.address_type && one.ports == slice.ports;
            let at = old
                .iter()
                .position(like)
                .or_else(|| old.iter().position(|one| one.address_type == slice.address_type));
            let Some(at) = at else {
                match api.create(&PostParams::default(), &slice).await.map_err(Error::from) {
                    Ok(created) => self.written.wrote(&key, &created),
                    Err(error) if error.is_namespace_terminating() => return Ok(None),
                    Err(error) => return Err(error),
                }
                continue;
            };
            let before = old.remove(at);
            let same = before.endpoints == slice.endpoints
                && before.ports == slice.ports
                && before.metadata.labels == slice.metadata.labels
                && before.metadata.annotations == slice.metadata.annotations;
            if same {
                continue;
            }
            let name = before.metadata.name.clone().unwrap_or_default();
            slice.metadata.name = Some(name.clone());
            slice.metadata.generate_name = None;
            slice.metadata.resource_version = before.metadata.resource_version.clone();
            let updated = api.replace(&name, &PostParams::default(), &slice).await?;
            self.written.wrote(&key, &updated);
        }
        for slice in old.iter().filter(|slice| slice.metadata.deletion_timestamp.is_none()) {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            found(api.delete(name, &DeleteParams::default()).await)?;
            self.written.deleted(&key, Key::of(slice.as_ref()));
        }
        Ok(None)
    }
}
