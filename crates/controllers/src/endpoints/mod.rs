//! The addresses behind Services: EndpointSlices, the older Endpoints, and slices for Endpoints that users keep
//! by hand.

mod legacy;
mod mirror;
mod plan;
mod slices;

use std::net::IpAddr;
use std::sync::Arc;

use informer::{Change, Informer, Key};
use k8s_openapi::api::core::v1::{ContainerPort, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use scheduling::selector::{contains, labels_of};

use crate::kit::pods::{is_ready, is_terminal, node_name};

pub(crate) use legacy::run as endpoints;
pub(crate) use mirror::run as mirror;
pub(crate) use slices::run as slices;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The keys of the services that a change of a pod concerns.
fn services_of(services: &Informer<Service>, change: &Change<'_, Pod>) -> Vec<Key> {
    let (old, new) = match change {
        Change::Deleted(last) => (None, last.as_ref()),
        Change::Applied { old, new } => (old.map(|old| old.as_ref()), new.as_ref()),
    };
    let labels = [Some(new), old].map(|pod| pod.map(|pod| labels_of(&pod.metadata.labels)));
    if old.is_some_and(|old| labels[0] == labels[1] && view(old) == view(new)) {
        return Vec::new();
    }
    let namespace = new.metadata.namespace.as_deref().unwrap_or_default();
    let selects = |service: &Arc<Service>| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        selector.is_some_and(|selector| {
            !selector.is_empty() && labels.iter().flatten().any(|labels| contains(labels, Some(selector)))
        })
    };
    services
        .in_namespace(namespace)
        .iter()
        .filter(|one| selects(one))
        .map(|one| Key::of(one.as_ref()))
        .collect()
}

/// All of a pod that shows in an endpoint.
fn view(pod: &Pod) -> impl PartialEq {
    let status = pod.status.as_ref();
    let spec = pod.spec.as_ref();
    (
        status.and_then(|status| status.pod_ips.clone()),
        is_ready(pod),
        is_terminal(pod),
        pod.metadata.deletion_timestamp.is_some(),
        node_name(pod).to_owned(),
        spec.and_then(|spec| Some((spec.hostname.clone()?, spec.subdomain.clone()))),
    )
}

/// Whether a pod is an endpoint at all, ready or not.
fn counts(pod: &Pod, also_terminating: bool) -> bool {
    !is_terminal(pod)
        && addresses(pod).next().is_some()
        && (also_terminating || pod.metadata.deletion_timestamp.is_none())
}

fn addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let all = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    all.filter_map(|one| one.ip.parse().ok())
}

fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace)
        .then_some(hostname)
}

fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"))
}

/// The number of the pod's port that a service port means.
fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
            let mut ports = spec.containers.iter().chain(sidecars).flat_map(|one| one.ports.iter().flatten());
            let protocol = |of: &Option<String>| of.clone().unwrap_or_else(|| "TCP".into());
            let named = |one: &&ContainerPort| {
                one.name.as_ref() == Some(name) && protocol(&one.protocol) == protocol(&port.protocol)
            };
            ports.find(named).map(|port| port.container_port)
        }
    }
}
