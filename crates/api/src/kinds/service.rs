//! Service, Endpoints, EndpointSlice. Addresses and ports are the allocators' to fill in.

use serde_json::{Value, json};

use super::json::{Read, Write, same};
use super::prepare;
use crate::Strategy;

pub(super) static SERVICE: Strategy = Strategy {
    default: default_service,
    prepare_create: |object| {
        object.put("status", json!({"loadBalancer": {}}));
        drop_internal_policy(object);
    },
    prepare_update: |new, old| {
        prepare::update(new, old);
        drop_type_dependent(new, old);
        drop_internal_policy(new);
    },
    prepare_status: prepare::status,
    fields: |object| {
        let spec = object.at("spec");
        vec![("spec.clusterIP", spec.text("clusterIP").into()), ("spec.type", spec.text("type").into())]
    },
    field_labels: &["spec.clusterIP", "spec.type"],
    allow_create_on_update: true,
    ..Strategy::GENERIC
};

pub(super) static ENDPOINTS: Strategy = Strategy {
    default: |object| {
        for subset in object.items_mut("subsets") {
            for port in subset.items_mut("ports") {
                port.fill_zero("protocol", "TCP");
            }
        }
    },
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    allow_create_on_update: true,
    ..Strategy::GENERIC
};

pub(super) static ENDPOINT_SLICE: Strategy = Strategy {
    default: |object| {
        for port in object.items_mut("ports") {
            port.fill("name", "");
            port.fill("protocol", "TCP");
        }
    },
    prepare_create: prepare::first,
    prepare_update: |new, old| {
        let parts = ["endpoints", "ports", "addressType"];
        let labels = |object: &Value| object.dig(&["metadata", "labels"]).clone();
        let unchanged =
            parts.iter().all(|part| same(new.at(part), old.at(part))) && same(&labels(new), &labels(old));
        prepare::count(new, old, unchanged);
    },
    ..Strategy::GENERIC
};

fn default_service(object: &mut Value) {
    let spec = object.child("spec");
    spec.fill_zero("sessionAffinity", "None");
    match spec.text("sessionAffinity") {
        "None" => {
            spec.take_key("sessionAffinityConfig");
        }
        "ClientIP" if !spec.dig(&["sessionAffinityConfig", "clientIP"]).has("timeoutSeconds") => {
            spec.put("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    spec.fill_zero("type", "ClusterIP");
    for port in spec.items_mut("ports") {
        port.fill_zero("protocol", "TCP");
        let number = port.at("port").clone();
        port.fill_zero("targetPort", number);
    }
    if externally_accessible(spec) {
        spec.fill_zero("externalTrafficPolicy", "Cluster");
    }
    if matches!(spec.text("type"), "NodePort" | "LoadBalancer" | "ClusterIP") {
        spec.fill("internalTrafficPolicy", "Cluster");
    }
    if spec.text("type") == "LoadBalancer" {
        spec.fill("allocateLoadBalancerNodePorts", true);
        if let Some(balancer) = object.existing("status").and_then(|s| s.existing("loadBalancer")) {
            for ingress in balancer.items_mut("ingress") {
                if !ingress.text("ip").is_empty() {
                    ingress.fill("ipMode", "VIP");
                }
            }
        }
    }
}

/// Whether a service is reached from outside the cluster.
pub(crate) fn externally_accessible(spec: &Value) -> bool {
    match spec.text("type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec.items("externalIPs").is_empty(),
        _ => false,
    }
}

fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether the service takes node ports.
pub(crate) fn needs_node_port(spec: &Value) -> bool {
    spec.text("type") == "NodePort"
        || spec.text("type") == "LoadBalancer"
            && spec.at("allocateLoadBalancerNodePorts").as_bool().unwrap_or(true)
}

fn needs_health_check_port(spec: &Value) -> bool {
    spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}

/// Drops what the new type does not have, where the writer left it as it was.
fn drop_type_dependent(new: &mut Value, old: &Value) {
    let old = old.at("spec");
    let spec = new.child("spec");
    let unchanged = |spec: &Value, key: &str| same(spec.at(key), old.at(key));
    if needs_cluster_ip(old) && !needs_cluster_ip(spec) {
        if unchanged(spec, "clusterIP") && unchanged(spec, "clusterIPs") {
            spec.take_key("clusterIP");
            spec.take_key("clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if unchanged(spec, key) {
                spec.take_key(key);
            }
        }
    }
    if needs_node_port(old) && !needs_node_port(spec) && same_node_ports(spec, old) {
        for port in spec.items_mut("ports") {
            port.take_key("nodePort");
        }
    }
    if needs_health_check_port(old)
        && !needs_health_check_port(spec)
        && unchanged(spec, "healthCheckNodePort")
    {
        spec.take_key("healthCheckNodePort");
    }
    let left_balancer = old.text("type") == "LoadBalancer" && spec.text("type") != "LoadBalancer";
    if left_balancer {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if unchanged(spec, key) {
                spec.take_key(key);
            }
        }
    }
    if externally_accessible(old) && !externally_accessible(spec) && unchanged(spec, "externalTrafficPolicy")
    {
        spec.take_key("externalTrafficPolicy");
    }
    if spec.text("type") != "LoadBalancer" {
        new.child("status").put("loadBalancer", json!({}));
    }
}

/// An alias has no traffic of its own. Upstream hides the field on every read.
fn drop_internal_policy(object: &mut Value) {
    let spec = object.child("spec");
    if spec.text("type") == "ExternalName"
        && matches!(spec.text("internalTrafficPolicy"), "Cluster" | "Local")
    {
        spec.take_key("internalTrafficPolicy");
    }
}

/// Whether no port names a node port that the old service did not have.
fn same_node_ports(new: &Value, old: &Value) -> bool {
    let had: Vec<i64> = old.items("ports").iter().map(|port| port.num("nodePort")).collect();
    new.items("ports").iter().map(|port| port.num("nodePort")).all(|port| port == 0 || had.contains(&port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_policies() {
        let mut object = json!({"spec": {"ports": [{"port": 80}, {"port": 90, "targetPort": "web"}]}});
        (SERVICE.default)(&mut object);
        assert_eq!(
            object["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80},
                          {"port": 90, "protocol": "TCP", "targetPort": "web"}]})
        );
    }

    #[test]
    fn node_ports_go_with_the_type() {
        let old = json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Cluster", "ports": [{"port": 1, "nodePort": 30000}]}});
        let mut new = json!({"spec": {"type": "ClusterIP", "externalTrafficPolicy": "Cluster", "ports": [{"port": 1, "nodePort": 30000}]}});
        (SERVICE.prepare_update)(&mut new, &old);
        assert_eq!(new["spec"], json!({"type": "ClusterIP", "ports": [{"port": 1}]}));
    }
}
