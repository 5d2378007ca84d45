//! What an object uses of a quota, by the kind of object (upstream: `pkg/quota/v1/evaluator/core`).

use api::quantity::{Format, Quantity};
use serde_json::Value;

use crate::admission::amounts::{self, Amounts};
use crate::read::Read;

/// How objects of one resource are charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    Pod,
    Service,
    Claim,
    /// By number alone.
    Count,
}

const POD_RESOURCES: [&str; 11] = [
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
const SERVICE_RESOURCES: [&str; 4] =
    ["count/services", "services", "services.nodeports", "services.loadbalancers"];
const CLAIM_RESOURCES: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
const BY_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Resources whose plain name counts as well as `count/...`.
const ALIASES: [&str; 4] = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];

impl Charge {
    pub(super) fn of(group: &str, resource: &str) -> Self {
        match (group, resource) {
            ("", "pods") => Self::Pod,
            ("", "services") => Self::Service,
            ("", "persistentvolumeclaims") => Self::Claim,
            _ => Self::Count,
        }
    }

    /// Whether a quota on `name` concerns objects of this resource.
    pub(super) fn concerns(self, group: &str, resource: &str, name: &str) -> bool {
        match self {
            Self::Pod => {
                let asked = name.strip_prefix("requests.");
                POD_RESOURCES.contains(&name)
                    || asked.unwrap_or(name).starts_with("hugepages-")
                    || asked.is_some_and(|n| {
                        is_extended(n) || n.starts_with("deviceclass.resource.kubernetes.io/")
                    })
            }
            Self::Service => SERVICE_RESOURCES.contains(&name),
            Self::Claim => {
                name == "count/persistentvolumeclaims"
                    || CLAIM_RESOURCES.contains(&name)
                    || name.split_once(BY_CLASS).is_some_and(|(_, rest)| CLAIM_RESOURCES.contains(&rest))
            }
            Self::Count => {
                name == count_name(group, resource)
                    || (group.is_empty() && name == resource && ALIASES.contains(&resource))
            }
        }
    }

    /// What the object uses.
    pub(super) fn usage(self, group: &str, resource: &str, object: &Value) -> Amounts {
        match self {
            Self::Pod => pod(object),
            Self::Service => service(object),
            Self::Claim => claim(object),
            Self::Count => {
                let mut usage = Amounts::from([(count_name(group, resource), number(1))]);
                if group.is_empty() && ALIASES.contains(&resource) {
                    usage.insert(resource.to_owned(), number(1));
                }
                usage
            }
        }
    }
}

fn number(value: i64) -> Quantity {
    Quantity::new(value, Format::DecimalSi)
}

fn count_name(group: &str, resource: &str) -> String {
    if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") }
}

/// A resource of a vendor: with a domain, which is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

fn pod(pod: &Value) -> Amounts {
    let mut usage = Amounts::from([("count/pods".to_owned(), number(1))]);
    // A pod that is over uses nothing but its place in the store.
    if matches!(pod.text("status.phase"), "Succeeded" | "Failed") {
        return usage;
    }
    let spec = pod.at("spec");
    let overhead = amounts::read(spec.at("overhead"));
    let (mut requests, mut limits) = (amounts::of_pod(spec, "requests"), amounts::of_pod(spec, "limits"));
    amounts::add(&mut requests, &overhead);
    for (name, amount) in &overhead {
        if let Some(limit) = limits.get(name).filter(|limit| !limit.is_zero()) {
            let sum = limit.add(amount);
            limits.insert(name.clone(), sum);
        }
    }
    amounts::add(&mut usage, &compute(&requests, &limits));
    usage
}

/// Requests and limits under the names that quotas use.
pub(super) fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut usage = Amounts::from([("pods".to_owned(), number(1))]);
    for (name, amount) in requests {
        let native = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if native || name.starts_with("hugepages-") {
            usage.insert(name.clone(), amount.clone());
            usage.insert(format!("requests.{name}"), amount.clone());
        } else if is_extended(name) {
            usage.insert(format!("requests.{name}"), amount.clone());
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), amount.clone());
        }
    }
    usage
}

fn service(service: &Value) -> Amounts {
    let ports = service.items("spec.ports");
    let all = ports.len() as i64;
    let chosen = ports.iter().filter(|p| p.at("nodePort").as_i64().unwrap_or(0) != 0).count() as i64;
    let (node_ports, balancers) = match service.text("spec.type") {
        "NodePort" => (all, 0),
        "LoadBalancer" if service.at("spec.allocateLoadBalancerNodePorts").as_bool() == Some(false) => {
            (chosen, 1)
        }
        "LoadBalancer" => (all, 1),
        _ => (0, 0),
    };
    Amounts::from([
        ("count/services".to_owned(), number(1)),
        ("services".to_owned(), number(1)),
        ("services.nodeports".to_owned(), number(node_ports)),
        ("services.loadbalancers".to_owned(), number(balancers)),
    ])
}

fn claim(claim: &Value) -> Amounts {
    let mut usage = Amounts::from([
        ("persistentvolumeclaims".to_owned(), number(1)),
        ("count/persistentvolumeclaims".to_owned(), number(1)),
    ]);
    let class = claim
        .annotation("volume.beta.kubernetes.io/storage-class")
        .unwrap_or(claim.text("spec.storageClassName"));
    if !class.is_empty() {
        usage.insert(format!("{class}{BY_CLASS}persistentvolumeclaims"), number(1));
    }
    let asked = amounts::parse(claim.at("spec.resources.requests.storage"));
    let given = amounts::parse(claim.at("status.allocatedResources.storage"));
    if let Some(size) = asked.map(|asked| given.filter(|g| *g > asked).unwrap_or(asked)) {
        if !class.is_empty() {
            usage.insert(format!("{class}{BY_CLASS}requests.storage"), size.clone());
        }
        usage.insert("requests.storage".to_owned(), size);
    }
    usage
}
