//! The status of ResourceQuotas: what is used of each resource that has a limit. Admission counts up when objects are
//! made; this counts anew when they go or change, by the same rules ([`api::quota`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity as Exact;
use api::quota::amounts::{Amounts, add};
use api::quota::{Charge, in_scope, is_ignored};
use informer::{Change, Informer, Key, Object, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, PodSpec, ResourceQuota, ResourceQuotaStatus, Service,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, PostParams};
use serde::Serialize;
use serde_json::Value;

use crate::kit::error::found;
use crate::kit::pods::is_terminal;
use crate::kit::tally::Tally;
use crate::kit::{Context, Result, now};

/// Every status is computed anew this often, in case someone else wrote it.
const RESYNC: Duration = Duration::from_secs(300);

struct Controller {
    client: Client,
    quotas: Arc<Informer<ResourceQuota>>,
    pods: Arc<Informer<Pod>>,
    services: Arc<Informer<Service>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    devices: Arc<Informer<ResourceClaim>>,
    tally: Arc<Tally>,
    queue: Arc<Queue<Key>>,
}

/// Runs the controller. Its keys are namespaces.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        quotas: context.informer(),
        pods: context.informer(),
        services: context.informer(),
        claims: context.informer(),
        devices: context.informer(),
        tally: context.tally.clone(),
        queue: context.changed.clone(),
    });
    this.pods.synced().await;
    this.services.synced().await;
    this.claims.synced().await;
    this.devices.synced().await;
    let (to, tally) = (this.queue.clone(), this.tally.clone());
    this.quotas.on_change(move |change| {
        // Charges by admission change what is used alone, and come before their object is in any cache.
        if let Change::Applied { old: Some(old), new } = change {
            let hard = new.spec.as_ref().and_then(|spec| spec.hard.as_ref());
            let told = new.status.as_ref().and_then(|status| status.hard.as_ref());
            if old.spec == new.spec && hard == told {
                return;
            }
        }
        let gone = matches!(change, Change::Deleted(_));
        note_limits(&tally, change.latest(), gone);
        to.add(namespace_key(&change.latest().metadata.namespace));
    });
    replenish(&this, &this.pods, |old, new| {
        (old.spec != new.spec && unbound(old) != unbound(new)) || is_terminal(old) != is_terminal(new)
    });
    replenish(&this, &this.services, |old, new| old.spec != new.spec);
    replenish(&this, &this.claims, |old, new| old.spec != new.spec || old.status != new.status);
    replenish(&this, &this.devices, |old, new| old.spec != new.spec);
    let queue = this.queue.clone();
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(&key.name).await }
    };
    context.work("resourcequota", 4, queue, sync).await;
}

fn namespace_key(namespace: &Option<String>) -> Key {
    Key::new("", namespace.clone().unwrap_or_default())
}

/// A pod's specification without its node, which it does not pay for.
fn unbound(pod: &Pod) -> Option<PodSpec> {
    let mut spec = pod.spec.clone()?;
    spec.node_name = None;
    Some(spec)
}

/// Notes since when a quota's limits have been enforced.
fn note_limits(tally: &Tally, quota: &ResourceQuota, gone: bool) {
    let meta = &quota.metadata;
    let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { return };
    let revision = meta.resource_version.as_deref().and_then(|version| version.parse().ok());
    match revision {
        Some(revision) if !gone => tally.limited(namespace, name, revision),
        _ => tally.unlimited(namespace, name),
    }
}

/// Looks at the namespace again when one of the kind goes or changes what it uses. What comes was counted by admission, and
/// may be counted there before it is in any cache: counting anew at that moment would forget another that is on its way,
/// and let one too many in. Only what is older than the quota, but was not yet known here, is counted after all.
fn replenish<K: Object>(
    this: &Controller,
    informer: &Informer<K>,
    differs: impl Fn(&K, &K) -> bool + Send + Sync + 'static,
) {
    let (to, tally) = (this.queue.clone(), this.tally.clone());
    informer.on_change(move |change| match change {
        Change::Applied { old: None, new } if !is_late(&tally, new.meta()) => {}
        Change::Applied { old: Some(old), new } if !differs(old, new) => {}
        _ => to.add(namespace_key(&change.latest().meta().namespace)),
    });
}

fn is_late(tally: &Tally, meta: &ObjectMeta) -> bool {
    tally.is_late(meta.namespace.as_deref().unwrap_or_default(), meta.resource_version.as_deref())
}

/// Adds what these objects use of the quota.
fn charge<K: Serialize>(
    used: &mut Amounts,
    quota: &Value,
    (group, resource): (&str, &str),
    objects: &[Arc<K>],
    at: Timestamp,
) -> Result<()> {
    let charge = Charge::of(group, resource);
    let concerned = |name: &&String| charge.concerns(group, resource, name);
    let names: Vec<_> = used.keys().filter(concerned).cloned().collect();
    if names.is_empty() {
        return Ok(());
    }
    for object in objects {
        let object = serde_json::to_value(object.as_ref())?;
        if in_scope(quota, charge, &object) {
            let mut usage = charge.usage(group, resource, &object, at);
            usage.retain(|name, _| names.contains(name));
            add(used, &usage);
        }
    }
    Ok(())
}

impl Controller {
    async fn sync(&self, namespace: &str) -> Result<Option<Duration>> {
        if namespace.is_empty() {
            for quota in self.quotas.list() {
                self.queue.add(namespace_key(&quota.metadata.namespace));
            }
            return Ok(None);
        }
        let quotas = self.quotas.in_namespace(namespace);
        for quota in &quotas {
            self.sync_quota(quota, namespace).await?;
        }
        Ok((!quotas.is_empty()).then_some(RESYNC))
    }

    /// What is used; a resource that no kind known here answers for is left out.
    fn used(&self, quota: &ResourceQuota, namespace: &str) -> Result<Amounts> {
        let value = serde_json::to_value(quota)?;
        let hard = quota.spec.iter().flat_map(|spec| spec.hard.iter().flatten());
        let zero = || Exact::new(0, api::quantity::Format::DecimalSi);
        let mut known: Vec<(String, String)> = self.tally.known();
        known.retain(|(group, resource)| !is_ignored(group, resource));
        let answered = |name: &str| {
            let fixed = [
                ("", "pods"),
                ("", "services"),
                ("", "persistentvolumeclaims"),
                ("resource.k8s.io", "resourceclaims"),
            ];
            let mut all = fixed
                .into_iter()
                .chain(known.iter().map(|(group, plural)| (group.as_str(), plural.as_str())));
            all.any(|(group, plural)| Charge::of(group, plural).concerns(group, plural, name))
        };
        let mut used: Amounts =
            hard.filter(|(name, _)| answered(name)).map(|(name, _)| (name.clone(), zero())).collect();
        let at = now();
        charge(&mut used, &value, ("", "pods"), &self.pods.in_namespace(namespace), at)?;
        charge(&mut used, &value, ("", "services"), &self.services.in_namespace(namespace), at)?;
        let claims = self.claims.in_namespace(namespace);
        charge(&mut used, &value, ("", "persistentvolumeclaims"), &claims, at)?;
        let devices = self.devices.in_namespace(namespace);
        charge(&mut used, &value, ("resource.k8s.io", "resourceclaims"), &devices, at)?;
        // What is only counted has no scope that it could be in.
        if !in_scope(&value, Charge::Count, &Value::Null) {
            return Ok(used);
        }
        for (group, plural) in &known {
            if Charge::of(group, plural) != Charge::Count {
                continue;
            }
            let names = used.keys().filter(|name| Charge::Count.concerns(group, plural, name));
            for name in names.cloned().collect::<Vec<_>>() {
                let count = i64::try_from(self.tally.count(group, plural, namespace)).unwrap_or(i64::MAX);
                used.insert(name, Exact::new(count, api::quantity::Format::DecimalSi));
            }
        }
        Ok(used)
    }

    async fn sync_quota(&self, quota: &ResourceQuota, namespace: &str) -> Result<()> {
        let used = self.used(quota, namespace)?;
        let before = quota.status.clone().unwrap_or_default();
        // What cannot be counted now keeps what was last known of it.
        let hard = quota.spec.clone().unwrap_or_default().hard.unwrap_or_default();
        let mut shown: BTreeMap<String, Quantity> = before.used.clone().unwrap_or_default();
        shown.retain(|name, _| hard.contains_key(name));
        for (name, amount) in used {
            let same =
                shown.get(&name).and_then(|old| old.0.parse::<Exact>().ok()).is_some_and(|old| old == amount);
            if !same {
                shown.insert(name, Quantity(amount.to_string()));
            }
        }
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(shown) };
        if quota.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut copy = quota.clone();
        copy.status = Some(status);
        let name = quota.metadata.name.as_deref().unwrap_or_default();
        let api = Api::<ResourceQuota>::namespaced(self.client.clone(), namespace);
        found(api.replace_status(name, &PostParams::default(), &copy).await)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_quota_names_is_added_up() {
        let pod = |priority: &str| -> Arc<Pod> {
            let pod = json!({"spec": {"priorityClassName": priority, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "250m"}}}]}});
            Arc::new(serde_json::from_value(pod).expect("a pod"))
        };
        let pods = [pod("high"), pod("high"), pod("low")];
        let check = |quota: Value, expected: &str| {
            let zero = Exact::new(0, api::quantity::Format::DecimalSi);
            let mut used = Amounts::from([("cpu".to_owned(), zero)]);
            charge(&mut used, &quota, ("", "pods"), &pods, now()).expect("pods are JSON");
            assert_eq!(used["cpu"].to_string(), expected, "{quota}");
            assert_eq!(used.len(), 1);
        };
        check(json!({}), "750m");
        let scope = json!({"scopeName": "PriorityClass", "operator": "In", "values": ["high"]});
        check(json!({"spec": {"scopeSelector": {"matchExpressions": [scope]}}}), "500m");
        check(json!({"spec": {"scopes": ["BestEffort"]}}), "0");
    }
}
