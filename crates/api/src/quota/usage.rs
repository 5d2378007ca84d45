//! What an object uses of a quota, by the kind of object (upstream: `pkg/quota/v1/evaluator/core`).

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::amounts::{self, Amounts};
use crate::quantity::{Format, Quantity};
use crate::read::Read;

/// How objects of one resource are charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    Pod,
    Service,
    Claim,
    /// A ResourceClaim: by number, and by the devices of each class.
    Devices,
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
const BY_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
const IMPLICIT_CLASS: &str = "deviceclass.resource.kubernetes.io/";
/// The most devices that one claim can be given.
const MOST_DEVICES: i64 = 32;
/// Resources whose plain name counts as well as `count/...`.
const ALIASES: [&str; 4] = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];

impl Charge {
    pub fn of(group: &str, resource: &str) -> Self {
        match (group, resource) {
            ("", "pods") => Self::Pod,
            ("", "services") => Self::Service,
            ("", "persistentvolumeclaims") => Self::Claim,
            ("resource.k8s.io", "resourceclaims") => Self::Devices,
            _ => Self::Count,
        }
    }

    /// Whether a quota on `name` concerns objects of this resource.
    pub fn concerns(self, group: &str, resource: &str, name: &str) -> bool {
        match self {
            Self::Pod => {
                let asked = name.strip_prefix("requests.");
                POD_RESOURCES.contains(&name)
                    || asked.unwrap_or(name).starts_with("hugepages-")
                    || asked.is_some_and(|n| is_extended(n) || n.starts_with(IMPLICIT_CLASS))
            }
            Self::Service => SERVICE_RESOURCES.contains(&name),
            Self::Claim => {
                name == "count/persistentvolumeclaims"
                    || CLAIM_RESOURCES.contains(&name)
                    || name.split_once(BY_CLASS).is_some_and(|(_, rest)| CLAIM_RESOURCES.contains(&rest))
            }
            Self::Devices => name == count_name(group, resource) || name.ends_with(BY_DEVICE_CLASS),
            Self::Count => {
                name == count_name(group, resource)
                    || (group.is_empty() && name == resource && ALIASES.contains(&resource))
            }
        }
    }

    /// What the object uses at this time.
    pub fn usage(self, group: &str, resource: &str, object: &Value, now: Timestamp) -> Amounts {
        match self {
            Self::Pod => pod(object, now),
            Self::Service => service(object),
            Self::Claim => claim(object),
            Self::Devices => devices(object, count_name(group, resource)),
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

/// Whether a pod that is being deleted should have been gone by now: one whose node is lost must not keep others away.
fn overdue(pod: &Value, now: Timestamp) -> bool {
    let at = pod.text("metadata.deletionTimestamp").parse::<Timestamp>().ok();
    let grace = pod.at("metadata.deletionGracePeriodSeconds").as_i64();
    at.zip(grace).is_some_and(|(at, grace)| {
        at.checked_add(SignedDuration::from_secs(grace)).is_ok_and(|end| now > end)
    })
}

fn pod(pod: &Value, now: Timestamp) -> Amounts {
    let mut usage = Amounts::from([("count/pods".to_owned(), number(1))]);
    // A pod that is over uses nothing but its place in the store.
    if matches!(pod.text("status.phase"), "Succeeded" | "Failed") || overdue(pod, now) {
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
pub fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut usage = Amounts::from([("pods".to_owned(), number(1))]);
    for (name, amount) in requests {
        let native = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if native || name.starts_with("hugepages-") {
            usage.insert(name.clone(), amount.clone());
            usage.insert(format!("requests.{name}"), amount.clone());
        } else if is_extended(name) || name.starts_with(IMPLICIT_CLASS) {
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

/// The devices that a claim may be given at most, of each class: of alternatives, the one that needs most.
fn devices(claim: &Value, count: String) -> Amounts {
    let of = |request: &Value| {
        let many = match request.text("allocationMode") {
            "ExactCount" | "" => request.at("count").as_i64().unwrap_or(1),
            "All" => MOST_DEVICES,
            _ => 0,
        };
        (request.text("deviceClassName").to_owned(), many)
    };
    let mut usage = Amounts::from([(count, number(1))]);
    for request in claim.items("spec.devices.requests") {
        let mut most = std::collections::BTreeMap::<String, i64>::new();
        let alternatives = request.items("firstAvailable").iter();
        for (class, many) in
            alternatives.chain(Some(request.at("exactly")).filter(|one| one.is_object())).map(of)
        {
            let entry = most.entry(class).or_default();
            *entry = many.max(*entry);
        }
        for (class, many) in most {
            amounts::add(&mut usage, &Amounts::from([(format!("{class}{BY_DEVICE_CLASS}"), number(many))]));
        }
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(group: &str, resource: &str, object: Value, expected: &[(&str, &str)]) {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let usage = Charge::of(group, resource).usage(group, resource, &object, now);
        let usage: Vec<_> = usage.iter().map(|(name, amount)| (name.clone(), amount.to_string())).collect();
        let usage: Vec<_> = usage.iter().map(|(name, amount)| (name.as_str(), amount.as_str())).collect();
        assert_eq!(usage, expected, "{resource}: {object}");
    }

    #[test]
    fn pods_are_charged_until_they_end() {
        let spec = json!({"containers": [
            {"resources": {"requests": {"cpu": "250m", "example.com/gpu": "2"}, "limits": {"cpu": "1"}}},
        ]});
        check(
            "",
            "pods",
            json!({"spec": spec}),
            &[
                ("count/pods", "1"),
                ("cpu", "250m"),
                ("limits.cpu", "1"),
                ("pods", "1"),
                ("requests.cpu", "250m"),
                ("requests.example.com/gpu", "2"),
            ],
        );
        let ended = json!({"spec": spec, "status": {"phase": "Failed"}});
        check("", "pods", ended, &[("count/pods", "1")]);
        let overdue = json!({"spec": spec, "metadata": {
            "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}});
        check("", "pods", overdue, &[("count/pods", "1")]);
    }

    #[test]
    fn device_claims_are_charged_by_class() {
        let claim = json!({"spec": {"devices": {"requests": [
            {"exactly": {"deviceClassName": "a", "allocationMode": "ExactCount", "count": 2}},
            {"firstAvailable": [
                {"deviceClassName": "a", "allocationMode": "ExactCount", "count": 1},
                {"deviceClassName": "a", "allocationMode": "ExactCount", "count": 3},
                {"deviceClassName": "b", "allocationMode": "All"},
            ]},
        ]}}});
        check(
            "resource.k8s.io",
            "resourceclaims",
            claim,
            &[
                ("a.deviceclass.resource.k8s.io/devices", "5"),
                ("b.deviceclass.resource.k8s.io/devices", "32"),
                ("count/resourceclaims.resource.k8s.io", "1"),
            ],
        );
    }

    #[test]
    fn others_are_counted() {
        check("", "secrets", json!({}), &[("count/secrets", "1"), ("secrets", "1")]);
        check("example.com", "foos", json!({}), &[("count/foos.example.com", "1")]);
    }
}
