//! What a pod's cgroup is limited to.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::{quota, shares};
use crate::podutil::{init_containers, is_sidecar, spec};
use crate::quantity;
use crate::resize::Rules;

/// A pod's cgroup values.
pub(super) struct PodLimits {
    pub shares: i64,
    pub quota: Option<i64>,
    pub memory: Option<i64>,
    /// Bytes by page size as cgroup files name it (`2MB`).
    pub huge_pages: BTreeMap<String, i64>,
}

impl PodLimits {
    /// What the pod itself asks for, or else the sums of its containers; a limit holds for the pod only if it has one or each
    /// container does.
    pub(super) fn of(pod: &Pod, rules: Rules) -> Self {
        let own = spec(pod).resources.as_ref();
        let own_limit = |name: &str, milli: bool| {
            let limits = own.and_then(|own| own.limits.as_ref());
            if milli { quantity::milli_amount(limits, name) } else { quantity::amount(limits, name) }
        };
        let request = |container: &Container| {
            let resources = container.resources.as_ref();
            quantity::milli_amount(resources.and_then(|resources| resources.requests.as_ref()), "cpu")
                .unwrap_or(0)
        };
        let asked = quantity::milli_amount(own.and_then(|own| own.requests.as_ref()), "cpu");
        let cpu = asked.or_else(|| total(pod, |container| Some(request(container)))).unwrap_or(0);
        let limit = |name: &str, milli: bool| {
            let of = |container: &Container| {
                let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
                let found =
                    if milli { quantity::milli_amount(limits, name) } else { quantity::amount(limits, name) };
                found.filter(|amount| *amount > 0)
            };
            own_limit(name, milli).filter(|amount| *amount > 0).or_else(|| total(pod, of))
        };
        let overhead = |name: &str, milli: bool| {
            let overhead = spec(pod).overhead.as_ref();
            let found =
                if milli { quantity::milli_amount(overhead, name) } else { quantity::amount(overhead, name) };
            found.unwrap_or(0)
        };
        let everyone = init_containers(pod).iter().chain(&spec(pod).containers);
        let mut names: BTreeSet<&String> = everyone
            .filter_map(|container| container.resources.as_ref()?.limits.as_ref())
            .flat_map(BTreeMap::keys)
            .collect();
        names.extend(own.and_then(|own| own.limits.as_ref()).into_iter().flat_map(BTreeMap::keys));
        let pages = names.into_iter().filter_map(|name| {
            let amount = |container: &Container| {
                let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
                Some(quantity::amount(limits, name).unwrap_or(0))
            };
            let size = page_size(name)?;
            Some((size, own_limit(name, false).or_else(|| total(pod, amount))?))
        });
        let quota_of = |milli: i64| quota(milli + overhead("cpu", true));
        PodLimits {
            shares: shares(cpu + overhead("cpu", true)),
            quota: limit("cpu", true).filter(|_| !rules.unlimited_pod(pod)).map(quota_of),
            memory: limit("memory", false).map(|memory| memory + overhead("memory", false)),
            huge_pages: pages.collect(),
        }
    }
}

/// The page size of a resource as cgroup files name it: `hugepages-2Mi` is `2MB`.
pub(crate) fn page_size(resource: &str) -> Option<String> {
    let size = resource.strip_prefix("hugepages-")?;
    let (number, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit())?);
    let unit = match unit {
        "Ki" => "KB",
        "Mi" => "MB",
        "Gi" => "GB",
        _ => return None,
    };
    Some(format!("{number}{unit}"))
}

/// What the pod needs at most at any time: regular containers and sidecars together, or an init container beside the sidecars
/// started before it.
fn total(pod: &Pod, amount: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let mut sidecars = 0;
    let mut peak = 0;
    for container in init_containers(pod) {
        let one = amount(container)?;
        if is_sidecar(container) {
            sidecars += one;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + one);
        }
    }
    let mut sum = sidecars;
    for container in &spec(pod).containers {
        sum += amount(container)?;
    }
    Some(sum.max(peak))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_summed_up() {
        let resources =
            |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": "10Mi"}});
        let pod = json!({"spec": {
            "initContainers": [{"name": "i", "resources": resources("900m")}],
            "containers": [{"name": "a", "resources": resources("100m")}, {"name": "b", "resources": resources("200m")}]}});
        let limits = PodLimits::of(&serde_json::from_value(pod).expect("a pod"), Rules::default());
        assert_eq!((limits.shares, limits.quota, limits.memory), (921, Some(90_000), Some(20 << 20)));
        let unlimited = json!({"spec": {"containers": [{"name": "a"}]}});
        let limits = PodLimits::of(&serde_json::from_value(unlimited).expect("a pod"), Rules::default());
        assert_eq!((limits.shares, limits.quota, limits.memory), (2, None, None));
    }

    #[test]
    fn what_the_pod_asks_for_itself_goes_first() {
        let pages = json!({"limits": {"hugepages-2Mi": "4Mi"}});
        let pod = json!({"spec": {
            "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}},
            "overhead": {"memory": "1Mi", "cpu": "100m"},
            "containers": [{"name": "a", "resources": pages}, {"name": "b", "resources": pages}]}});
        let limits = PodLimits::of(&serde_json::from_value(pod).expect("a pod"), Rules::default());
        assert_eq!((limits.shares, limits.quota, limits.memory), (1126, Some(210_000), Some(1025 << 20)));
        assert_eq!(limits.huge_pages, BTreeMap::from([("2MB".to_owned(), 8 << 20)]));
    }
}
