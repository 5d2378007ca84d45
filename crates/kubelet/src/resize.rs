//! Changing the CPU and memory of running containers: how what a container has is compared with what it has been allotted,
//! and how it is shown. Values are those of CRI, which is also how the runtime reports them.

use cri::v1::{ContainerState, ContainerStatus, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::cgroups::{self, CPU_PERIOD};
use crate::configuration::Configuration;
use crate::podutil::{self, init_containers, is_sidecar, spec};
use crate::quantity;
use crate::runtime::PodView;

/// A container's cgroup values; 0 is "no limit".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Values {
    pub shares: i64,
    pub quota: i64,
    /// Bytes.
    pub memory: i64,
}

/// What of the node's configuration bears on containers' values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// No CPU limit is enforced.
    pub no_quota: bool,
    /// Containers of Guaranteed pods that ask for whole processors have their own ones, which a quota would only slow down.
    pub static_cpus: bool,
}

impl Rules {
    pub(crate) fn of(settings: &Configuration) -> Self {
        Rules { no_quota: !settings.cpu_cfs_quota, static_cpus: settings.cpu_manager_policy == "static" }
    }

    fn unlimited(self, pod: &Pod, container: &Container) -> bool {
        self.no_quota || self.static_cpus && podutil::whole_cpus(pod, container) > 0
    }

    /// Whether the pod's own cgroup has no quota: one of a container within it would hold for the others too.
    pub(crate) fn unlimited_pod(self, pod: &Pod) -> bool {
        resizable(pod).any(|container| self.unlimited(pod, container))
    }
}

/// What a container shall have; where it says nothing of its limits, those of the pod hold.
pub(crate) fn wanted(pod: &Pod, container: &Container, rules: Rules) -> Values {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let of_pod = spec(pod).resources.as_ref().and_then(|own| own.limits.as_ref());
    let own = quantity::milli_amount(limits, "cpu");
    let limit = own.or_else(|| quantity::milli_amount(of_pod, "cpu")).filter(|limit| *limit > 0);
    let request = quantity::milli_amount(requests, "cpu").or(own).unwrap_or(0);
    let memory = quantity::amount(limits, "memory").or_else(|| quantity::amount(of_pod, "memory"));
    Values {
        shares: cgroups::shares(request),
        quota: limit.filter(|_| !rules.unlimited(pod, container)).map_or(0, cgroups::quota),
        memory: memory.unwrap_or(0),
    }
}

/// What a running container has, if the runtime tells.
pub(crate) fn actual(status: &ContainerStatus) -> Option<Values> {
    if status.state() != ContainerState::ContainerRunning {
        return None;
    }
    let linux = status.resources.as_ref()?.linux.as_ref()?;
    Some(Values {
        shares: linux.cpu_shares,
        quota: linux.cpu_quota.max(0),
        memory: linux.memory_limit_in_bytes.max(0),
    })
}

/// Containers whose resources may change while they run.
pub(crate) fn resizable(pod: &Pod) -> impl Iterator<Item = &Container> {
    spec(pod).containers.iter().chain(init_containers(pod).iter().filter(|container| is_sidecar(container)))
}

/// Whether any running container has other resources than it has been allotted.
pub(crate) fn in_progress(pod: &Pod, view: &PodView, rules: Rules) -> bool {
    resizable(pod).any(|container| {
        let found = view.container(&container.name).and_then(actual);
        found.is_some_and(|found| found != wanted(pod, container, rules))
    })
}

/// Whether the container has to be restarted to get from one to the other.
pub(crate) fn restarts(container: &Container, from: Values, to: Values) -> bool {
    let policy = |name: &str| {
        let policies = container.resize_policy.iter().flatten();
        policies.filter(|policy| policy.resource_name == name).any(|p| p.restart_policy == "RestartContainer")
    };
    let cpu = (from.shares, from.quota) != (to.shares, to.quota);
    (cpu && policy("cpu")) || (from.memory != to.memory && policy("memory"))
}

/// The change as CRI wants it: what stays is left at 0, a limit that goes is -1.
pub(crate) fn update(from: Values, to: Values) -> LinuxContainerResources {
    let limit = |from: i64, to: i64| match to {
        to if to == from => 0,
        0 => -1,
        to => to,
    };
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_shares: to.shares,
        cpu_quota: limit(from.quota, to.quota),
        memory_limit_in_bytes: limit(from.memory, to.memory),
        ..LinuxContainerResources::default()
    }
}

/// The resources as the container's status shows them: what is in force, in the spec's words where that is the same.
pub(crate) fn shown(
    pod: &Pod,
    container: &Container,
    status: &ContainerStatus,
    rules: Rules,
) -> Option<ResourceRequirements> {
    let mut shown = container.resources.clone();
    let Some(found) = actual(status) else { return shown };
    let wanted = wanted(pod, container, rules);
    if found == wanted {
        return shown;
    }
    let resources = shown.get_or_insert_default();
    let milli = |milli: i64| Quantity(format!("{milli}m"));
    if found.shares != wanted.shares {
        let request = (found.shares * 1000 + 1023) / 1024;
        let requests = resources.requests.get_or_insert_default();
        if found.shares > 2 {
            requests.insert("cpu".to_owned(), milli(request))
        } else {
            requests.remove("cpu")
        };
    }
    let limits = resources.limits.get_or_insert_default();
    if found.quota != wanted.quota {
        let limit = (found.quota > 0).then(|| milli(found.quota * 1000 / CPU_PERIOD));
        match limit {
            Some(limit) => limits.insert("cpu".to_owned(), limit),
            None => limits.remove("cpu"),
        };
    }
    if found.memory != wanted.memory {
        match found.memory {
            0 => limits.remove("memory"),
            bytes => limits.insert("memory".to_owned(), Quantity(bytes.to_string())),
        };
    }
    resources.limits = resources.limits.take().filter(|limits| !limits.is_empty());
    resources.requests = resources.requests.take().filter(|requests| !requests.is_empty());
    shown
}

#[cfg(test)]
mod tests {
    use cri::v1::ContainerResources;
    use serde_json::json;

    use super::*;

    fn container(resources: serde_json::Value) -> Container {
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        let text = json!({"name": "a", "resources": resources, "resizePolicy": policy});
        serde_json::from_value(text).expect("a container")
    }

    fn running(values: Values) -> ContainerStatus {
        let linux = LinuxContainerResources {
            cpu_shares: values.shares,
            cpu_quota: values.quota,
            memory_limit_in_bytes: values.memory,
            ..LinuxContainerResources::default()
        };
        ContainerStatus {
            state: ContainerState::ContainerRunning as i32,
            resources: Some(ContainerResources { linux: Some(linux), windows: None }),
            ..ContainerStatus::default()
        }
    }

    fn plain(container: &Container) -> Values {
        wanted(&Pod::default(), container, Rules::default())
    }

    #[test]
    fn some_have_no_quota() {
        let pod = |cpu: &str| -> Pod {
            let list = json!({"cpu": cpu, "memory": "1Gi"});
            let resources = json!({"requests": list, "limits": list});
            let text = json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
            serde_json::from_value(text).expect("a pod")
        };
        let quota = |cpu: &str, rules| wanted(&pod(cpu), &spec(&pod(cpu)).containers[0], rules).quota;
        let pinned = Rules { static_cpus: true, ..Rules::default() };
        assert_eq!((quota("2", pinned), quota("1500m", pinned)), (0, 150_000));
        assert_eq!(quota("1500m", Rules { no_quota: true, ..Rules::default() }), 0);
        let own = json!({"spec": {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "containers": [{"name": "a"}]}});
        let own: Pod = serde_json::from_value(own).expect("a pod");
        let found = wanted(&own, &spec(&own).containers[0], Rules::default());
        assert_eq!(found, Values { shares: 2, quota: 100_000, memory: 1 << 30 });
    }

    #[test]
    fn what_is_in_force_is_shown() {
        let small =
            container(json!({"requests": {"cpu": "0.1"}, "limits": {"cpu": "200m", "memory": "64Mi"}}));
        let large =
            container(json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "500m", "memory": "128Mi"}}));
        let status = running(plain(&small));
        assert_eq!(shown(&Pod::default(), &small, &status, Rules::default()), small.resources);
        let during = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "67108864"}});
        assert_eq!(
            serde_json::to_value(shown(&Pod::default(), &large, &status, Rules::default())).expect("json"),
            during
        );
    }

    #[test]
    fn only_changes_are_sent_and_only_their_policies_count() {
        let from = plain(&container(json!({"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}})));
        let to = container(json!({"requests": {"cpu": "200m"}, "limits": {"memory": "64Mi"}}));
        let change = update(from, plain(&to));
        assert_eq!((change.cpu_shares, change.cpu_quota, change.memory_limit_in_bytes), (204, 0, 0));
        assert!(!restarts(&to, from, plain(&to)));
        let none = container(json!({"requests": {"cpu": "100m"}}));
        assert_eq!(update(from, plain(&none)).memory_limit_in_bytes, -1);
        assert!(restarts(&none, from, plain(&none)));
    }
}
