//! The kinds of admissionregistration.k8s.io.

use serde_json::Value;

use super::json::{Read, Write, empty, same};
use super::prepare;
use crate::Strategy;

pub(super) static VALIDATING_WEBHOOKS: Strategy =
    Strategy { default: |object| default_webhooks(object, false), ..WEBHOOKS };
pub(super) static MUTATING_WEBHOOKS: Strategy =
    Strategy { default: |object| default_webhooks(object, true), ..WEBHOOKS };

const WEBHOOKS: Strategy = Strategy {
    prepare_create: prepare::first,
    prepare_update: |new, old| prepare::count(new, old, same(new.at("webhooks"), old.at("webhooks"))),
    unconditional_update: false,
    ..Strategy::GENERIC
};

pub(super) static VALIDATING_POLICY: Strategy = Strategy {
    default: default_policy,
    prepare_create: prepare::create_first,
    prepare_update: prepare::update_counted,
    prepare_status: prepare::status_only,
    unconditional_update: false,
    ..Strategy::GENERIC
};

pub(super) static MUTATING_POLICY: Strategy = Strategy {
    default: default_policy,
    prepare_create: prepare::first,
    prepare_update: prepare::counted,
    unconditional_update: false,
    ..Strategy::GENERIC
};

pub(super) static POLICY_BINDING: Strategy = Strategy {
    default: |binding| {
        if let Some(spec) = binding.existing("spec")
            && let Some(matches) = spec.existing("matchResources")
        {
            default_match(matches);
        }
    },
    prepare_create: prepare::first,
    prepare_update: prepare::counted,
    unconditional_update: false,
    ..Strategy::GENERIC
};

fn default_webhooks(object: &mut Value, mutating: bool) {
    for hook in object.items_mut("webhooks") {
        hook.fill("failurePolicy", "Fail");
        default_match(hook);
        hook.fill("timeoutSeconds", 10);
        if mutating {
            hook.fill("reinvocationPolicy", "Never");
        }
        if let Some(service) = hook.existing("clientConfig").and_then(|config| config.existing("service")) {
            service.fill("port", 443);
        }
        for rule in hook.items_mut("rules") {
            rule.fill("scope", "*");
        }
    }
}

fn default_policy(policy: &mut Value) {
    let spec = policy.child("spec");
    spec.fill("failurePolicy", "Fail");
    if let Some(matches) = spec.existing("matchConstraints") {
        default_match(matches);
    }
}

fn default_match(holder: &mut Value) {
    holder.fill("matchPolicy", "Equivalent");
    holder.fill("namespaceSelector", empty());
    holder.fill("objectSelector", empty());
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in holder.items_mut(list) {
            rule.fill("scope", "*");
        }
    }
}
