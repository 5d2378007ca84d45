//! Which objects a quota is about.

use serde_json::{Value, json};

use super::Charge;
use super::amounts;
use crate::read::Read;

/// Whether a pod is to end by itself.
pub fn terminating(pod: &Value) -> bool {
    pod.at("spec.activeDeadlineSeconds").as_i64().is_some_and(|seconds| seconds >= 0)
}

fn best_effort(pod: &Value) -> bool {
    let says = |holder: &Value| {
        ["requests", "limits"].iter().any(|which| {
            let amounts = amounts::read(holder.at("resources").at(which));
            ["cpu", "memory"].iter().any(|name| amounts.get(*name).is_some_and(|a| !a.is_zero()))
        })
    };
    let spec = pod.at("spec");
    !says(spec) && !["initContainers", "containers"].into_iter().flat_map(|key| spec.items(key)).any(says)
}

/// Whether all scopes of the quota hold for the object.
pub fn in_scope(quota: &Value, charge: Charge, object: &Value) -> bool {
    let plain = quota.texts("spec.scopes").map(|scope| json!({"scopeName": scope, "operator": "Exists"}));
    let selected = quota.items("spec.scopeSelector.matchExpressions").iter().cloned();
    plain.chain(selected).all(|requirement| match charge {
        Charge::Pod => pod_in_scope(&requirement, object),
        Charge::Claim => claim_in_scope(&requirement, object),
        Charge::Service | Charge::Devices | Charge::Count => false,
    })
}

fn pod_in_scope(requirement: &Value, pod: &Value) -> bool {
    match requirement.text("scopeName") {
        "Terminating" => terminating(pod),
        "NotTerminating" => !terminating(pod),
        "BestEffort" => best_effort(pod),
        "NotBestEffort" => !best_effort(pod),
        "PriorityClass" => {
            let class = pod.text("spec.priorityClassName");
            selected(requirement, if class.is_empty() { vec![] } else { vec![class] })
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn claim_in_scope(requirement: &Value, claim: &Value) -> bool {
    if requirement.text("scopeName") != "VolumeAttributesClass" {
        return false;
    }
    let paths = [
        "spec.volumeAttributesClassName",
        "status.currentVolumeAttributesClassName",
        "status.modifyVolumeStatus.targetVolumeAttributesClassName",
    ];
    selected(requirement, paths.map(|path| claim.text(path)).into_iter().filter(|n| !n.is_empty()).collect())
}

fn selected(requirement: &Value, names: Vec<&str>) -> bool {
    let listed = |name: &str| requirement.texts("values").any(|value| value == name);
    match requirement.text("operator") {
        "Exists" => !names.is_empty(),
        "DoesNotExist" => names.is_empty(),
        "In" => names.into_iter().any(listed),
        "NotIn" => names.is_empty() || names.into_iter().any(|name| !listed(name)),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crosses = |term: &Value| !term.items("namespaces").is_empty() || term.has("namespaceSelector");
    ["spec.affinity.podAffinity", "spec.affinity.podAntiAffinity"].iter().any(|path| {
        let affinity = pod.at(path);
        affinity.items("requiredDuringSchedulingIgnoredDuringExecution").iter().any(crosses)
            || affinity
                .items("preferredDuringSchedulingIgnoredDuringExecution")
                .iter()
                .any(|weighted| crosses(weighted.at("podAffinityTerm")))
    })
}
