//! ClusterRoles that gather their rules from others by labels.

use std::sync::Arc;
use std::time::Duration;

use informer::{Informer, Key, Queue};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use scheduling::selector::{labels_of, matches};
use serde_json::json;

use crate::kit::error::found;
use crate::kit::{Context, Result};

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let roles = context.informer::<ClusterRole>();
    let queue = Queue::new();
    let (to, all) = (queue.clone(), roles.clone());
    roles.on_change(move |_| {
        // Any role may be gathered by any other.
        for role in all.list().iter().filter(|role| role.aggregation_rule.is_some()) {
            to.add(Key::of(role.as_ref()));
        }
    });
    roles.synced().await;
    let client = context.client.clone();
    let work = move |key: Key| sync(client.clone(), roles.clone(), key);
    context.work("clusterroleaggregation", 4, queue, work).await;
}

/// The rules of all roles that are selected, each once, in the order of the roles' names.
fn gather(role: &ClusterRole, roles: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let selectors = role.aggregation_rule.as_ref().and_then(|rule| rule.cluster_role_selectors.as_ref());
    let mut rules = Vec::new();
    for selector in selectors.into_iter().flatten() {
        for other in roles {
            if other.metadata.name == role.metadata.name
                || !matches(selector, labels_of(&other.metadata.labels))
            {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    rules
}

async fn sync(client: Client, roles: Arc<Informer<ClusterRole>>, key: Key) -> Result<Option<Duration>> {
    let Some(role) = roles.get(&key).filter(|role| role.aggregation_rule.is_some()) else { return Ok(None) };
    let rules = gather(&role, &roles.list());
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Ok(None);
    }
    let patch = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": key.name}, "rules": rules,
    });
    let params = PatchParams::apply("clusterrole-aggregation-controller").force();
    found(Api::<ClusterRole>::all(client).patch(&key.name, &params, &Patch::Apply(patch)).await)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_gathered_once() {
        let role = |name: &str, labels: serde_json::Value, rules: serde_json::Value| -> Arc<ClusterRole> {
            let role = json!({"metadata": {"name": name, "labels": labels}, "rules": rules,
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}});
            Arc::new(serde_json::from_value(role).expect("a role"))
        };
        let rule = json!([{"verbs": ["get"], "resources": ["pods"], "apiGroups": [""]}]);
        let all = [
            role("a", json!({"to": "view"}), rule.clone()),
            role("b", json!({"to": "view"}), rule.clone()),
            role("c", json!({}), json!([{"verbs": ["*"]}])),
            role("view", json!({"to": "view"}), json!([])),
        ];
        assert_eq!(gather(&all[3], &all).len(), 1);
    }
}
