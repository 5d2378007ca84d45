//! Extended resources that a class of devices stands behind (KEP-5004): what a claim for a pod's containers asks for, and which
//! container uses which of its requests. Init containers that end use again what later containers get.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest, Pod};
use k8s_openapi::api::resource::v1::{DeviceRequest, ExactDeviceRequest};

use super::exact;

/// Requests of a claim, and who uses them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extended {
    pub requests: Vec<DeviceRequest>,
    pub mappings: Vec<ContainerExtendedResourceRequest>,
}

struct One {
    name: String,
    count: i64,
}

/// What the pod asks for of these resources, each with the name of its class.
pub(super) fn requests(pod: &Pod, resources: &BTreeMap<String, String>) -> Extended {
    let Some(spec) = &pod.spec else { return Extended::default() };
    let first: &[Container] = spec.init_containers.as_deref().unwrap_or_default();
    let containers: Vec<&Container> = first.iter().chain(&spec.containers).collect();
    let (short, long): (Vec<usize>, Vec<usize>) = (0..containers.len())
        .partition(|at| *at < first.len() && containers[*at].restart_policy.as_deref() != Some("Always"));
    let mut all = Extended::default();
    for (resource, class) in resources {
        let mut own: BTreeMap<usize, One> = BTreeMap::new();
        for at in long.iter().copied() {
            let mut mappings = Vec::new();
            if let Some(one) = request(at, containers[at], resource, &[], &mut mappings) {
                own.insert(at, one);
            }
            all.mappings.append(&mut mappings);
        }
        let mut most: Option<One> = None;
        let mut mappings = Vec::new();
        let mut names = BTreeSet::new();
        for at in short.iter().copied() {
            let later: Vec<&One> = own.range(at..).map(|(_, one)| one).collect();
            let Some(one) = request(at, containers[at], resource, &later, &mut mappings) else { continue };
            names.insert(one.name.clone());
            if most.as_ref().is_none_or(|most| most.count < one.count) {
                most = Some(one);
            }
        }
        // They run one after another, so that the largest request does for all.
        if let Some(most) = &most {
            for mapping in mappings.iter_mut().filter(|mapping| names.contains(&mapping.request_name)) {
                mapping.request_name.clone_from(&most.name);
            }
        }
        all.mappings.append(&mut mappings);
        all.requests.extend(most.into_iter().chain(own.into_values()).map(|one| DeviceRequest {
            name: one.name,
            exactly: Some(ExactDeviceRequest {
                device_class_name: class.clone(),
                allocation_mode: Some("ExactCount".to_owned()),
                count: Some(one.count),
                ..ExactDeviceRequest::default()
            }),
            first_available: None,
        }));
    }
    all.requests.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// What the container needs beyond what others have that run later; who uses what goes to `mappings`.
fn request(
    at: usize,
    container: &Container,
    resource: &str,
    later: &[&One],
    mappings: &mut Vec<ContainerExtendedResourceRequest>,
) -> Option<One> {
    let asked = container.resources.as_ref()?.requests.as_ref()?;
    let wanted = exact(asked.get(resource)?);
    let wanted = wanted.is_whole().then(|| wanted.value()).filter(|wanted| *wanted > 0)?;
    let mut map = |name: &str| {
        mappings.push(ContainerExtendedResourceRequest {
            container_name: container.name.clone(),
            resource_name: resource.to_owned(),
            request_name: name.to_owned(),
        });
    };
    let mut has = 0_i64;
    for one in later {
        has = has.saturating_add(one.count);
        map(&one.name);
        if has >= wanted {
            return None;
        }
    }
    let index = asked.keys().position(|name| name == resource).unwrap_or_default();
    let name = format!("container-{at}-request-{index}");
    map(&name);
    Some(One { name, count: wanted - has })
}
