//! From chosen devices to what is written into a claim's status.

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::requests::{Asked, Wanted};
use super::search::Chosen;

/// The allocation of the claim at `index`.
pub(super) fn allocation(
    index: usize,
    asked: &Asked<'_>,
    chosen: &[Chosen<'_>],
    node: &Node,
) -> AllocationResult {
    let own: Vec<&Chosen<'_>> = chosen.iter().filter(|one| one.claim == index).collect();
    let wanted = |one: &Chosen<'_>| &asked.requests[one.request].alternatives[one.alternative];
    let results = own.iter().map(|one| {
        let device = one.candidate.device;
        let tolerations = wanted(one).tolerations.to_vec();
        let amounts = one.consumed.iter().flatten();
        let amounts = amounts.map(|(name, amount)| (name.clone(), Quantity(amount.to_string())));
        DeviceRequestAllocationResult {
            request: wanted(one).name.clone(),
            driver: one.id.driver.clone(),
            pool: one.id.pool.clone(),
            device: one.id.device.clone(),
            admin_access: one.admin.then_some(true),
            tolerations: (!tolerations.is_empty()).then_some(tolerations),
            binding_conditions: device.binding_conditions.clone(),
            binding_failure_conditions: device.binding_failure_conditions.clone(),
            consumed_capacity: Some(amounts.collect())
                .filter(|all: &std::collections::BTreeMap<_, _>| !all.is_empty()),
            // The caller makes it up.
            share_id: one.consumed.as_ref().map(|_| String::new()),
        }
    });
    let results: Vec<_> = results.collect();
    let config = config(asked, &own);
    AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult {
            results: (!results.is_empty()).then_some(results),
            config: (!config.is_empty()).then_some(config),
        }),
        node_selector: selector(&own, node),
    }
}

/// The alternative that was chosen for each request.
fn decided<'a>(asked: &'a Asked<'a>, own: &[&Chosen<'_>]) -> Vec<(&'a str, &'a Wanted<'a>)> {
    let one = |(at, request): (usize, &'a super::requests::Request<'a>)| {
        let chosen = own.iter().find(|one| one.request == at)?;
        Some((request.name, &request.alternatives[chosen.alternative]))
    };
    asked.requests.iter().enumerate().filter_map(one).collect()
}

/// The classes' parameters, each class's once, then those of the claim that are for something that was chosen.
fn config(asked: &Asked<'_>, own: &[&Chosen<'_>]) -> Vec<DeviceAllocationConfiguration> {
    let decided = decided(asked, own);
    let mut config = Vec::new();
    let mut classes: Vec<&Option<String>> = Vec::new();
    for (_, wanted) in &decided {
        let class = &wanted.class.metadata.name;
        if classes.contains(&class) {
            continue;
        }
        classes.push(class);
        let of_class = decided.iter().filter(|(_, other)| other.class.metadata.name == *class);
        let requests: Vec<String> = of_class.map(|(_, other)| other.name.clone()).collect();
        config.extend(wanted.class.spec.config.iter().flatten().map(|one| DeviceAllocationConfiguration {
            source: "FromClass".to_owned(),
            requests: Some(requests.clone()),
            opaque: one.opaque.clone(),
        }));
    }
    let of_claim = asked.claim.spec.devices.iter().flat_map(|devices| devices.config.iter().flatten());
    let matters = |requests: &Option<Vec<String>>| {
        let requests = requests.as_deref().unwrap_or_default();
        let named = |name: &String| decided.iter().any(|(main, wanted)| name == main || *name == wanted.name);
        requests.is_empty() || requests.iter().any(named)
    };
    config.extend(of_claim.filter(|one| matters(&one.requests)).map(|one| DeviceAllocationConfiguration {
        source: "FromClaim".to_owned(),
        requests: one.requests.clone(),
        opaque: one.opaque.clone(),
    }));
    config
}

/// Where all the devices can be reached; `None` for everywhere.
fn selector(own: &[&Chosen<'_>], node: &Node) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    for one in own {
        let (device, spec) = (one.candidate.device, &one.candidate.slice.spec);
        let (name, selector) = if spec.per_device_node_selection == Some(true) {
            (&device.node_name, &device.node_selector)
        } else {
            (&spec.node_name, &spec.node_selector)
        };
        if name.as_ref().is_some_and(|name| !name.is_empty()) || device.binds_to_node == Some(true) {
            return Some(only(node));
        }
        // A slice has one term.
        let Some(given) = selector.as_ref().and_then(|selector| selector.node_selector_terms.first()) else {
            continue;
        };
        add(&mut term.match_fields, &given.match_fields);
        add(&mut term.match_expressions, &given.match_expressions);
    }
    let is_empty = term.match_fields.is_none() && term.match_expressions.is_none();
    (!is_empty).then(|| NodeSelector { node_selector_terms: vec![term] })
}

fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, from: &Option<Vec<NodeSelectorRequirement>>) {
    for requirement in from.iter().flatten() {
        if !to.iter().flatten().any(|one| one == requirement) {
            to.get_or_insert_default().push(requirement.clone());
        }
    }
}

fn only(node: &Node) -> NodeSelector {
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.metadata.name.clone().unwrap_or_default()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    NodeSelector { node_selector_terms: vec![term] }
}
