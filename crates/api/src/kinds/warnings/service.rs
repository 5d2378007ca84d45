//! Services, their endpoints, ingresses and network policies.

use serde_json::Value;

use super::{address, annotated};
use crate::kinds::json::Read;

pub(super) fn service(service: &Value) -> Vec<String> {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let spec = service.at("spec");
    let mut out = Vec::new();
    if annotated(service, HINTS) {
        out.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let kind = spec.text("type");
    let external_name = kind == "ExternalName";
    let headless = kind == "ClusterIP" && spec.text("clusterIP") == "None";
    if !external_name && !matches!(spec.text("clusterIP"), "" | "None") {
        addresses(&mut out, spec, "clusterIPs");
    }
    let external = !spec.items("externalIPs").is_empty();
    if headless {
        if !spec.text("loadBalancerIP").is_empty() {
            out.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if external {
            out.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if spec.text("sessionAffinity") != "None" {
            out.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    addresses(&mut out, spec, "externalIPs");
    if external && !headless && !external_name {
        out.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned(),
        );
    }
    if !spec.text("loadBalancerIP").is_empty() {
        out.extend(address::ip("spec.loadBalancerIP", spec.text("loadBalancerIP")));
    }
    for (index, range) in spec.items("loadBalancerSourceRanges").iter().enumerate() {
        let path = format!("spec.loadBalancerSourceRanges[{index}]");
        out.extend(address::cidr(&path, range.as_str().unwrap_or_default()));
    }
    if external_name && external {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !external_name && !spec.text("externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec.text("trafficDistribution") == "PreferClose" {
        out.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
    out
}

fn addresses(out: &mut Vec<String>, spec: &Value, list: &str) {
    for (index, ip) in spec.items(list).iter().enumerate() {
        out.extend(address::ip(&format!("spec.{list}[{index}]"), ip.as_str().unwrap_or_default()));
    }
}

/// The addresses that a load balancer reports in a status.
pub(super) fn load_balancer(object: &Value) -> Vec<String> {
    let entries = object.dig(&["status", "loadBalancer"]).items("ingress");
    let path = |index| format!("status.loadBalancer.ingress[{index}]");
    let told = entries.iter().enumerate().filter_map(|(i, entry)| address::ip(&path(i), entry.text("ip")));
    told.collect()
}

pub(super) fn endpoints(endpoints: &Value, _: Option<&Value>) -> Vec<String> {
    const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
    let mut out = Vec::new();
    if endpoints.dig(&["metadata", "labels"]).text(MANAGED_BY) == "endpoint-controller" {
        return out;
    }
    for (i, subset) in endpoints.items("subsets").iter().enumerate() {
        for list in ["addresses", "notReadyAddresses"] {
            for (j, one) in subset.items(list).iter().enumerate() {
                out.extend(address::ip(&format!("subsets[{i}].{list}[{j}].ip"), one.text("ip")));
            }
        }
    }
    out
}

pub(super) fn endpoint_slice(slice: &Value, old: Option<&Value>) -> Vec<String> {
    const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
    let mut out = Vec::new();
    if old.is_none() && slice.text("addressType") == "FQDN" {
        out.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
    }
    let manager = slice.dig(&["metadata", "labels"]).text(MANAGED_BY);
    if matches!(manager, "endpointslice-controller.k8s.io" | "endpointslicemirroring-controller.k8s.io") {
        return out;
    }
    for (i, endpoint) in slice.items("endpoints").iter().enumerate() {
        for (j, ip) in endpoint.items("addresses").iter().enumerate() {
            let path = format!("endpoints[{i}].addresses[{j}]");
            out.extend(address::ip(&path, ip.as_str().unwrap_or_default()));
        }
    }
    out
}

pub(super) fn ingress(ingress: &Value, old: Option<&Value>) -> Vec<String> {
    const CLASS: &str = "kubernetes.io/ingress.class";
    if old.is_some() || !annotated(ingress, CLASS) || ingress.at("spec").has("ingressClassName") {
        return Vec::new();
    }
    vec![format!("annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead")]
}

pub(super) fn network_policy(policy: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in policy.at("spec").items(list).iter().enumerate() {
            for (j, peer) in rule.items(peers).iter().enumerate() {
                let block = peer.at("ipBlock");
                if block.is_null() {
                    continue;
                }
                let path = format!("spec.{list}[{i}].{peers}[{j}].ipBlock");
                out.extend(address::cidr(&format!("{path}.cidr"), block.text("cidr")));
                for (k, except) in block.items("except").iter().enumerate() {
                    let except = except.as_str().unwrap_or_default();
                    out.extend(address::cidr(&format!("{path}.except[{k}]"), except));
                }
            }
        }
    }
    out
}
