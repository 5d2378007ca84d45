//! The status of ResourceQuotas: what is used of each resource that has a limit. Admission counts up when objects
//! are made; this counts anew when they come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::{Format, Quantity as Exact};
use informer::{Change, Informer, Key};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use scheduling::resources::{Resources, request, value};

use crate::kit::discovery::kinds;
use crate::kit::error::found;
use crate::kit::pods::is_terminal;
use crate::kit::{Context, Result, now, plus_seconds};

struct Controller {
    client: Client,
    quotas: Arc<Informer<ResourceQuota>>,
    pods: Arc<Informer<Pod>>,
    services: Arc<Informer<Service>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
}

/// Runs the controller. Its keys are namespaces; `context.changed` tells of what comes and goes there.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        quotas: context.informer(),
        pods: context.informer(),
        services: context.informer(),
        claims: context.informer(),
    });
    this.pods.synced().await;
    this.services.synced().await;
    this.claims.synced().await;
    let queue = context.changed.clone();
    let to = queue.clone();
    this.quotas.on_change(move |change| to.add(namespace_key(&change.latest().metadata.namespace)));
    let to = queue.clone();
    this.pods.on_change(move |change| {
        if let Change::Applied { old: Some(old), new } = change
            && is_terminal(old) != is_terminal(new)
        {
            to.add(namespace_key(&new.metadata.namespace));
        }
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move { this.sync(&key.name).await }
    };
    context.work("resourcequota", 4, queue, sync).await;
}

fn namespace_key(namespace: &Option<String>) -> Key {
    Key::new("", namespace.clone().unwrap_or_default())
}

/// Whether a pod still counts: not when it has ended, nor when it should have been gone by now.
fn counts(pod: &Pod) -> bool {
    let meta = &pod.metadata;
    let overdue = meta.deletion_timestamp.as_ref().zip(meta.deletion_grace_period_seconds);
    !is_terminal(pod) && overdue.is_none_or(|(at, grace)| now() <= plus_seconds(at.0, grace))
}

/// Whether the quota is about this pod.
fn in_scope(spec: &ResourceQuotaSpec, pod: &Pod) -> bool {
    let pod_spec = pod.spec.clone().unwrap_or_default();
    let class = pod_spec.priority_class_name.clone().unwrap_or_default();
    let asks = pod_spec.containers.iter().chain(pod_spec.init_containers.iter().flatten()).any(|container| {
        let resources = container.resources.clone().unwrap_or_default();
        let mut all = resources.requests.into_iter().flatten().chain(resources.limits.into_iter().flatten());
        all.any(|(name, _)| name == "cpu" || name == "memory")
    });
    let holds = |scope: &str| match scope {
        "Terminating" => pod_spec.active_deadline_seconds.is_some(),
        "NotTerminating" => pod_spec.active_deadline_seconds.is_none(),
        "BestEffort" => !asks,
        "NotBestEffort" => asks,
        "PriorityClass" => !class.is_empty(),
        _ => false,
    };
    let selected =
        spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
    spec.scopes.iter().flatten().all(|scope| holds(scope))
        && selected.into_iter().all(|one| {
            let listed = one.values.iter().flatten().any(|value| *value == class);
            match one.operator.as_str() {
                "Exists" => holds(&one.scope_name),
                "DoesNotExist" => !holds(&one.scope_name),
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        })
}

fn limits(pod: &Pod) -> Resources {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
        for resources in containers.filter_map(|container| container.resources.as_mut()) {
            resources.requests = resources.limits.clone();
        }
    }
    request(&pod)
}

/// What pods use of one resource; `None` if it is not one of theirs.
fn of_pods(resource: &str, pods: &[Arc<Pod>]) -> Option<Exact> {
    let (wants_limits, name) = match resource.strip_prefix("limits.") {
        Some(name) => (true, name),
        None => (false, resource.strip_prefix("requests.").unwrap_or(resource)),
    };
    let count = || i64::try_from(pods.len()).unwrap_or(i64::MAX);
    if matches!(resource, "pods" | "count/pods") {
        return Some(Exact::new(count(), Format::DecimalSi));
    }
    let mut sum = Resources::default();
    for pod in pods {
        sum.add(&if wants_limits { limits(pod) } else { request(pod) });
    }
    match name {
        "cpu" => Some(Exact::milli(sum.cpu, Format::DecimalSi)),
        "memory" => Some(Exact::new(sum.memory, Format::BinarySi)),
        "ephemeral-storage" => Some(Exact::new(sum.ephemeral_storage, Format::BinarySi)),
        "storage" => None,
        _ if name.starts_with("hugepages-") || (resource.starts_with("requests.") && name.contains('/')) => {
            Some(Exact::new(sum.scalar.get(name).copied().unwrap_or_default(), Format::DecimalSi))
        }
        _ => None,
    }
}

fn of_services(resource: &str, services: &[Arc<Service>]) -> Option<usize> {
    let kind =
        |service: &Service| service.spec.as_ref().and_then(|spec| spec.type_.clone()).unwrap_or_default();
    let ports = |service: &Service| {
        let spec = service.spec.clone().unwrap_or_default();
        let ports = spec.ports.unwrap_or_default();
        match spec.type_.as_deref() {
            Some("NodePort") => ports.len(),
            Some("LoadBalancer") => {
                ports.iter().filter(|port| port.node_port.unwrap_or_default() != 0).count()
            }
            _ => 0,
        }
    };
    match resource {
        "services" | "count/services" => Some(services.len()),
        "services.nodeports" => Some(services.iter().map(|service| ports(service)).sum()),
        "services.loadbalancers" => {
            Some(services.iter().filter(|service| kind(service) == "LoadBalancer").count())
        }
        _ => None,
    }
}

fn of_claims(resource: &str, claims: &[Arc<PersistentVolumeClaim>]) -> Option<Exact> {
    let (class, what) = match resource.split_once(".storageclass.storage.k8s.io/") {
        Some((class, what)) => (Some(class), what),
        None => (None, resource),
    };
    let of_class = |claim: &&Arc<PersistentVolumeClaim>| {
        let own = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
        class.is_none_or(|class| own == Some(class))
    };
    let claims = claims.iter().filter(of_class);
    match what {
        "persistentvolumeclaims" | "count/persistentvolumeclaims" => {
            Some(Exact::new(i64::try_from(claims.count()).unwrap_or(i64::MAX), Format::DecimalSi))
        }
        "requests.storage" => {
            let asked = claims.filter_map(|claim| {
                let resources = claim.spec.as_ref()?.resources.as_ref()?;
                Some(value(resources.requests.as_ref()?.get("storage")?))
            });
            Some(Exact::new(asked.sum(), Format::BinarySi))
        }
        _ => None,
    }
}

impl Controller {
    async fn sync(&self, namespace: &str) -> Result<Option<Duration>> {
        for quota in self.quotas.in_namespace(namespace) {
            self.sync_quota(&quota, namespace).await?;
        }
        Ok(None)
    }

    async fn sync_quota(&self, quota: &ResourceQuota, namespace: &str) -> Result<()> {
        let spec = quota.spec.clone().unwrap_or_default();
        let hard = spec.hard.clone().unwrap_or_default();
        let mut pods = self.pods.in_namespace(namespace);
        pods.retain(|pod| counts(pod) && in_scope(&spec, pod));
        let services = self.services.in_namespace(namespace);
        let claims = self.claims.in_namespace(namespace);
        let mut used = BTreeMap::new();
        for resource in hard.keys() {
            let amount = match of_pods(resource, &pods).or_else(|| of_claims(resource, &claims)) {
                Some(amount) => Some(amount.to_string()),
                None => match of_services(resource, &services) {
                    Some(count) => Some(count.to_string()),
                    None => self.count(resource, namespace).await?.map(|count| count.to_string()),
                },
            };
            if let Some(amount) = amount {
                used.insert(resource.clone(), Quantity(amount));
            }
        }
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
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

    /// How many objects of a kind there are, for `count/<plural>.<group>` and the older plain names.
    async fn count(&self, resource: &str, namespace: &str) -> Result<Option<usize>> {
        let name = match resource.strip_prefix("count/") {
            Some(name) => name,
            None if matches!(
                resource,
                "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas"
            ) =>
            {
                resource
            }
            None => return Ok(None),
        };
        let (plural, group) = name.split_once('.').unwrap_or((name, ""));
        let all = kinds(&self.client).await?;
        let wanted = |one: &&crate::kit::discovery::Kind| {
            one.resource.group == group && one.resource.plural == plural && one.namespaced
        };
        let Some(kind) = all.iter().find(wanted) else { return Ok(None) };
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &kind.resource);
        Ok(Some(api.list_metadata(&ListParams::default()).await?.items.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_use_what_they_ask_for() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": {
            "requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "1"}}}]}}))
        .expect("a pod");
        let pods = [Arc::new(pod.clone()), Arc::new(pod.clone())];
        for (resource, expected) in [
            ("pods", Some("2")),
            ("cpu", Some("500m")),
            ("requests.memory", Some("2Gi")),
            ("limits.cpu", Some("2")),
            ("configmaps", None),
            ("requests.storage", None),
        ] {
            let used = of_pods(resource, &pods).map(|amount| amount.to_string());
            assert_eq!(used.as_deref(), expected, "{resource}");
        }
        let spec: ResourceQuotaSpec =
            serde_json::from_value(json!({"scopes": ["BestEffort"]})).expect("a spec");
        assert!(!in_scope(&spec, &pod));
        assert!(in_scope(&spec, &Pod::default()));
    }
}
