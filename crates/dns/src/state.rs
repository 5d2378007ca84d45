//! From watch events to the zone.

use crate::zone::{Endpoint, Key, Port, Service, Zone};
use k8s_openapi::api::core::v1::{self, Namespace};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An event of one of the three watches.
pub(crate) enum Change {
    Service(Box<Event<v1::Service>>),
    Slice(Box<Event<EndpointSlice>>),
    Namespace(Box<Event<Namespace>>),
}

/// What is needed to turn events into changes of the zone.
#[derive(Default)]
pub(crate) struct State {
    /// Which service a slice was last known to belong to.
    owners: HashMap<Key, Key>,
    /// Which watches have delivered all there was at their start.
    complete: [bool; 3],
    fresh_services: HashSet<Key>,
    fresh_slices: HashSet<Key>,
    fresh_namespaces: HashSet<String>,
}

impl State {
    pub(crate) fn is_complete(&self) -> bool {
        self.complete == [true; 3]
    }

    pub(crate) fn apply(&mut self, zone: &mut Zone, change: Change) {
        match change {
            Change::Service(event) => self.service(zone, *event),
            Change::Slice(event) => self.slice(zone, *event),
            Change::Namespace(event) => self.namespace(zone, *event),
        }
    }

    fn service(&mut self, zone: &mut Zone, event: Event<v1::Service>) {
        match event {
            Event::Init => self.fresh_services.clear(),
            Event::Apply(service) => zone.put_service(key_of(&service), service_of(&service)),
            Event::InitApply(service) => {
                self.fresh_services.insert(key_of(&service));
                zone.put_service(key_of(&service), service_of(&service));
            }
            Event::InitDone => {
                let fresh = std::mem::take(&mut self.fresh_services);
                let gone: Vec<Key> =
                    zone.services.keys().filter(|key| !fresh.contains(*key)).cloned().collect();
                for key in gone {
                    zone.put_service(key, None);
                }
                self.complete[0] = true;
            }
            Event::Delete(service) => zone.put_service(key_of(&service), None),
        }
    }

    fn slice(&mut self, zone: &mut Zone, event: Event<EndpointSlice>) {
        match event {
            Event::Init => self.fresh_slices.clear(),
            Event::Apply(slice) => self.put_slice(zone, &slice),
            Event::InitApply(slice) => {
                self.fresh_slices.insert(key_of(&slice));
                self.put_slice(zone, &slice);
            }
            Event::InitDone => {
                let fresh = std::mem::take(&mut self.fresh_slices);
                let gone: Vec<Key> =
                    self.owners.keys().filter(|key| !fresh.contains(*key)).cloned().collect();
                for key in gone {
                    self.drop_slice(zone, key);
                }
                self.complete[1] = true;
            }
            Event::Delete(slice) => self.drop_slice(zone, key_of(&slice)),
        }
    }

    fn put_slice(&mut self, zone: &mut Zone, slice: &EndpointSlice) {
        let key = key_of(slice);
        let labels = slice.metadata.labels.as_ref();
        let owner =
            labels.and_then(|labels| labels.get(SERVICE_NAME)).map(|name| (key.0.clone(), name.clone()));
        if self.owners.get(&key) != owner.as_ref() {
            self.drop_slice(zone, key.clone());
        }
        if let Some(owner) = owner {
            self.owners.insert(key.clone(), owner.clone());
            zone.put_endpoints(owner, key.1, Some(endpoints_of(slice)));
        }
    }

    fn drop_slice(&mut self, zone: &mut Zone, key: Key) {
        if let Some(owner) = self.owners.remove(&key) {
            zone.put_endpoints(owner, key.1, None);
        }
    }

    fn namespace(&mut self, zone: &mut Zone, event: Event<Namespace>) {
        let name = |namespace: Namespace| namespace.metadata.name.unwrap_or_default();
        match event {
            Event::Init => self.fresh_namespaces.clear(),
            Event::Apply(namespace) => drop(zone.namespaces.insert(name(namespace))),
            Event::InitApply(namespace) => drop(self.fresh_namespaces.insert(name(namespace))),
            Event::InitDone => {
                zone.namespaces = std::mem::take(&mut self.fresh_namespaces);
                self.complete[2] = true;
            }
            Event::Delete(namespace) => drop(zone.namespaces.remove(&name(namespace))),
        }
    }
}

fn key_of<K: kube::Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// `None` for a service that has no addresses yet.
fn service_of(service: &v1::Service) -> Option<Service> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return spec.external_name.clone().map(Service::External);
    }
    let address = spec.cluster_ip.as_deref().unwrap_or_default();
    if address == "None" {
        return Some(Service::Headless);
    }
    let texts = spec.cluster_ips.clone().filter(|list| !list.is_empty()).unwrap_or(vec![address.to_owned()]);
    let addresses: Vec<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    if addresses.is_empty() {
        return None;
    }
    let ports = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| named(port.name.as_deref(), port.protocol.as_deref(), Some(port.port)))
        .collect();
    Some(Service::Cluster { addresses, ports })
}

fn named(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Port> {
    Some(Port {
        name: name.unwrap_or_default().to_ascii_lowercase(),
        protocol: protocol.unwrap_or("TCP").to_ascii_lowercase(),
        number: u16::try_from(number?).ok()?,
    })
}

/// The ready endpoints of a slice.
fn endpoints_of(slice: &EndpointSlice) -> Vec<Endpoint> {
    if slice.address_type == "FQDN" {
        return Vec::new();
    }
    let ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| named(port.name.as_deref(), port.protocol.as_deref(), port.port))
        .collect();
    let ready = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    };
    slice
        .endpoints
        .iter()
        .flatten()
        .filter(ready)
        .flat_map(|endpoint| {
            endpoint.addresses.iter().filter_map(|address| {
                Some(Endpoint {
                    address: address.parse().ok()?,
                    hostname: endpoint.hostname.clone(),
                    ports: ports.clone(),
                })
            })
        })
        .collect()
}
