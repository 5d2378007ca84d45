//! The kinds of networking.k8s.io.

use serde_json::{Value, json};

use super::json::{Read, Write};
use super::prepare;
use crate::Strategy;

pub(super) static INGRESS: Strategy = Strategy {
    prepare_create: |ingress| prepare::create_with(ingress, json!({"loadBalancer": {}})),
    prepare_update: prepare::update_counted,
    prepare_status: prepare::status,
    ..Strategy::GENERIC
};

pub(super) static INGRESS_CLASS: Strategy = Strategy {
    default: |class| {
        if let Some(parameters) = class.existing("spec").and_then(|spec| spec.existing("parameters")) {
            parameters.fill("scope", "Cluster");
        }
    },
    prepare_create: prepare::first,
    prepare_update: prepare::counted,
    ..Strategy::GENERIC
};

pub(super) static NETWORK_POLICY: Strategy = Strategy {
    default: |policy| {
        let spec = policy.child("spec");
        for direction in ["ingress", "egress"] {
            for rule in spec.items_mut(direction) {
                for port in rule.items_mut("ports") {
                    port.fill("protocol", "TCP");
                }
            }
        }
        let mut types = vec![Value::from("Ingress")];
        if !spec.items("egress").is_empty() {
            types.push("Egress".into());
        }
        spec.fill_zero("policyTypes", types);
    },
    prepare_create: prepare::first,
    prepare_update: prepare::counted,
    ..Strategy::GENERIC
};

pub(super) static SERVICE_CIDR: Strategy = Strategy {
    prepare_create: prepare::create,
    prepare_update: prepare::update,
    prepare_status: prepare::status_only,
    ..Strategy::GENERIC
};

pub(super) static IP_ADDRESS: Strategy = Strategy {
    prepare_create: prepare::nothing,
    prepare_update: prepare::keep_generation,
    ..Strategy::GENERIC
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_with_egress_rules_has_both_types() {
        let mut policy = json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 1}]}]}});
        (NETWORK_POLICY.default)(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
    }
}
