//! Keeps the Endpoints of Services, for clients from before EndpointSlices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Change, Informer, Key, Queue};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use scheduling::selector::{contains, labels_of};

use super::{HEADLESS, addresses, counts, find_port, hostname, is_headless, services_of};
use crate::kit::error::found;
use crate::kit::pods::{is_ready, node_name};
use crate::kit::written::Written;
use crate::kit::{Context, Error, Result};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MOST: usize = 1000;
/// By old custom, leader election kept its record here.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

struct Controller {
    client: Client,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    endpoints: Arc<Informer<Endpoints>>,
    written: Written,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        services: context.informer(),
        pods: context.informer(),
        endpoints: context.informer(),
        written: Written::default(),
    });
    let queue = Queue::new();
    let to = queue.clone();
    this.services.on_change(move |change| to.add(Key::of(change.latest().as_ref())));
    this.services.synced().await;
    let (to, services) = (queue.clone(), this.services.clone());
    this.pods.on_change(move |change| services_of(&services, change).into_iter().for_each(|key| to.add(key)));
    this.pods.synced().await;
    this.endpoints.synced().await;
    for endpoints in this.endpoints.list() {
        // Their service may have gone while nobody watched.
        queue.add(Key::of(endpoints.as_ref()));
    }
    let to = queue.clone();
    this.endpoints.on_change(move |change| {
        if let Change::Deleted(last) = change {
            to.add(Key::of(last.as_ref()));
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(key).await }
    };
    context.work("endpoints", 5, queue, sync).await;
}

type Group = (Vec<EndpointPort>, Vec<EndpointAddress>, Vec<EndpointAddress>);

/// The subsets of a service: addresses with the same ports stand together.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let wants_v6 = spec.ip_families.as_ref().and_then(|all| all.first()).is_some_and(|one| one == "IPv6")
        || (spec.ip_families.is_none() && spec.cluster_ip.as_deref().is_some_and(|ip| ip.contains(':')));
    let service_ports = spec.ports.unwrap_or_default();
    let headless_without_ports = service_ports.is_empty();
    let mut groups = BTreeMap::<String, Group>::new();
    for pod in pods.iter().filter(|pod| counts(pod, publish_all)) {
        let Some(ip) = addresses(pod).find(|ip| ip.is_ipv6() == wants_v6) else { continue };
        let ports: Vec<EndpointPort> = service_ports
            .iter()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone().filter(|name| !name.is_empty()),
                    port: find_port(pod, port)?,
                    protocol: port.protocol.clone(),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        if ports.is_empty() && !headless_without_ports {
            continue;
        }
        let address = EndpointAddress {
            ip: ip.to_string(),
            hostname: hostname(pod, service),
            node_name: Some(node_name(pod).to_owned()).filter(|name| !name.is_empty()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".into()),
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..ObjectReference::default()
            }),
        };
        let group = groups.entry(format!("{ports:?}")).or_insert_with(|| (ports, Vec::new(), Vec::new()));
        if publish_all || is_ready(pod) { &mut group.1 } else { &mut group.2 }.push(address);
    }
    let some = |list: Vec<EndpointAddress>| Some(list).filter(|list| !list.is_empty());
    groups
        .into_values()
        .map(|(ports, mut ready, mut other)| {
            ready.sort_by(|a, b| a.ip.cmp(&b.ip));
            other.sort_by(|a, b| a.ip.cmp(&b.ip));
            EndpointSubset {
                addresses: some(ready),
                not_ready_addresses: some(other),
                ports: Some(ports).filter(|ports| !ports.is_empty()),
            }
        })
        .collect()
}

/// Cuts the addresses to what one object may hold, those that are not ready first; whether any were cut.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let len = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let ready: usize = subsets.iter().map(|one| len(&one.addresses)).sum();
    let all: usize = ready + subsets.iter().map(|one| len(&one.not_ready_addresses)).sum::<usize>();
    if all <= MOST {
        return false;
    }
    let mut room_ready = MOST;
    let mut room_other = MOST.saturating_sub(ready);
    for subset in subsets {
        for (list, room) in
            [(&mut subset.addresses, &mut room_ready), (&mut subset.not_ready_addresses, &mut room_other)]
        {
            if let Some(list) = list {
                list.truncate(*room);
                *room -= list.len();
            }
        }
    }
    true
}

impl Controller {
    async fn sync(&self, key: Key) -> Result<Option<Duration>> {
        let api = Api::<Endpoints>::namespaced(self.client.clone(), &key.namespace);
        let current = self.endpoints.get(&key);
        let Some(service) = self.services.get(&key) else {
            let ours = current.as_ref().is_some_and(|endpoints| {
                let annotations = endpoints.metadata.annotations.as_ref();
                labels_of(&endpoints.metadata.labels).contains_key(MANAGED_BY)
                    && annotations.is_none_or(|all| !all.contains_key(LEADER))
            });
            if ours {
                found(api.delete(&key.name, &DeleteParams::default()).await)?;
            }
            return Ok(None);
        };
        let spec = service.spec.clone().unwrap_or_default();
        let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
            return Ok(None);
        };
        if spec.type_.as_deref() == Some("ExternalName") {
            return Ok(None);
        }
        if !self.written.is_seen(&key, &self.endpoints) {
            return Err(Error::Stale);
        }
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|pod| contains(labels_of(&pod.metadata.labels), Some(selector)));
        let mut subsets = subsets(&service, &pods);
        let truncated = truncate(&mut subsets);
        let subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS);
        if is_headless(&spec) {
            labels.insert(HEADLESS.into(), String::new());
        }
        labels.insert(MANAGED_BY.into(), CONTROLLER.into());

        let mut new = current.as_deref().cloned().unwrap_or_else(|| Endpoints {
            metadata: ObjectMeta { name: Some(key.name.clone()), ..ObjectMeta::default() },
            subsets: None,
        });
        new.subsets = subsets;
        new.metadata.labels = Some(labels);
        if truncated {
            let annotations = new.metadata.annotations.get_or_insert_default();
            annotations.insert(OVER_CAPACITY.into(), "truncated".into());
        } else if let Some(annotations) = &mut new.metadata.annotations {
            annotations.remove(OVER_CAPACITY);
        }
        let written = match current {
            Some(current) if new == *current => return Ok(None),
            Some(_) => api.replace(&key.name, &PostParams::default(), &new).await.map_err(Error::from),
            None if service.metadata.deletion_timestamp.is_some() => return Ok(None),
            None => api.create(&PostParams::default(), &new).await.map_err(Error::from),
        };
        match written {
            Ok(written) => self.written.wrote(&key, &written),
            Err(error) if error.is_namespace_terminating() => {}
            Err(error) => return Err(error),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_with_the_same_ports_stand_together() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "d"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80, "targetPort": "http"}]},
        }))
        .expect("a service");
        let pod = |name: &str, ip: &str, port: i32, ready: &str| {
            Arc::new(
                serde_json::from_value::<Pod>(json!({
                    "metadata": {"name": name, "namespace": "d"},
                    "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
                    "status": {"podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": ready}]},
                }))
                .expect("a pod"),
            )
        };
        let pods = [
            pod("a", "10.0.0.2", 1, "True"),
            pod("b", "10.0.0.1", 1, "False"),
            pod("c", "10.0.0.3", 2, "True"),
        ];
        let subsets = subsets(&service, &pods);
        let shape: Vec<_> = subsets
            .iter()
            .map(|one| {
                let len = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
                (
                    one.ports.as_ref().map(|ports| ports[0].port),
                    len(&one.addresses),
                    len(&one.not_ready_addresses),
                )
            })
            .collect();
        assert_eq!(shape, [(Some(1), 1, 1), (Some(2), 1, 0)]);
    }
}
