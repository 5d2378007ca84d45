//! Small questions about a pod's spec.

use std::collections::BTreeMap;

use cri::v1::{ContainerState, ContainerStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, Pod, PodSpec, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::quantity;
use crate::runtime::PodView;

/// The action of a restart rule that restarts all containers of the pod, init containers too.
const RESTART_ALL: &str = "RestartAllContainers";

/// Where a container stands in the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Init,
    Sidecar,
    Regular,
    Ephemeral,
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// The spec; every pod of the API has one.
pub(crate) fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

pub(crate) fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether nothing of the pod is to run here any more: it is being deleted, has reached its end, or is known by name alone.
pub(crate) fn leaving(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    deleting(pod) || matches!(phase, Some("Failed" | "Succeeded")) || pod.spec.is_none()
}

pub(crate) fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

/// Ephemeral containers, each as an ordinary one.
pub(crate) fn ephemeral_containers(pod: &Pod) -> Vec<Container> {
    // The two types have the same fields; only the target is extra, and asked for elsewhere.
    let Some(list) = &spec(pod).ephemeral_containers else { return Vec::new() };
    list.iter()
        .filter_map(|container| serde_json::from_value(serde_json::to_value(container).ok()?).ok())
        .collect()
}

/// The claim behind a volume, by name; that of an ephemeral volume is named after pod and volume.
pub(crate) fn claim(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(claim.claim_name.clone());
    }
    volume.ephemeral.as_ref().map(|_| format!("{}-{}", name(pod), volume.name))
}

/// Whether a volume counts as the pod's ephemeral storage: it lies on the node's disk and goes with the pod.
pub(crate) fn is_ephemeral_volume(pod: &Pod, volume: &str) -> bool {
    spec(pod).volumes.iter().flatten().filter(|found| found.name == volume).any(|found| {
        let on_disk = found
            .empty_dir
            .as_ref()
            .is_some_and(|source| source.medium.as_deref().unwrap_or_default().is_empty());
        on_disk || found.config_map.is_some() || found.downward_api.is_some() || found.git_repo.is_some()
    })
}

/// `<major>:<minor>` of the block device that a path lies on.
pub(crate) fn device_of(path: &std::path::Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(path).ok()?.dev();
    Some(format!("{}:{}", libc::major(device), libc::minor(device)))
}

/// The container of that name and its kind.
pub(crate) fn container(pod: &Pod, name: &str) -> Option<(Container, Kind)> {
    if let Some(container) = spec(pod).containers.iter().find(|container| container.name == name) {
        return Some((container.clone(), Kind::Regular));
    }
    if let Some(container) = init_containers(pod).iter().find(|container| container.name == name) {
        let kind = if is_sidecar(container) { Kind::Sidecar } else { Kind::Init };
        return Some((container.clone(), kind));
    }
    let found = ephemeral_containers(pod).into_iter().find(|container| container.name == name)?;
    Some((found, Kind::Ephemeral))
}

/// The rule of the container for an end with `exit_code`: the first one that fits.
fn restart_rule(container: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.as_ref().is_some_and(|values| values.contains(&exit_code));
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    })
}

/// Whether any rule of the pod may restart all of it.
pub(crate) fn may_restart_all(pod: &Pod) -> bool {
    let all = spec(pod).containers.iter().chain(init_containers(pod));
    all.flat_map(|container| container.restart_policy_rules.iter().flatten())
        .any(|rule| rule.action == RESTART_ALL)
}

/// The ended container whose end is to restart all containers of the pod, if there is one.
pub(crate) fn restarts_all<'a>(pod: &Pod, view: &'a PodView) -> Option<&'a ContainerStatus> {
    let all = spec(pod).containers.iter().chain(init_containers(pod));
    all.filter_map(|container| Some((container, view.container(&container.name)?)))
        .filter(|(_, status)| status.state() == ContainerState::ContainerExited)
        .find(|(container, status)| {
            restart_rule(container, status.exit_code).is_some_and(|rule| rule.action == RESTART_ALL)
        })
        .map(|(_, status)| status)
}

/// Whether a container that ended with `exit_code` is to be started again.
pub(crate) fn restarts_after(container: &Container, pod: &Pod, exit_code: i32) -> bool {
    if restart_rule(container, exit_code).is_some() {
        return true;
    }
    let policy = container.restart_policy.as_deref().or(spec(pod).restart_policy.as_deref());
    match policy {
        Some("Never") => false,
        Some("OnFailure") => exit_code != 0,
        _ => true,
    }
}

/// Whether the container has to be started (again), going by its newest instance.
pub(crate) fn should_restart(container: &Container, pod: &Pod, view: &PodView) -> bool {
    if deleting(pod) {
        return false;
    }
    match view.container(&container.name) {
        None => true,
        Some(status) => match status.state() {
            ContainerState::ContainerRunning => false,
            ContainerState::ContainerCreated | ContainerState::ContainerUnknown => true,
            ContainerState::ContainerExited => restarts_after(container, pod, status.exit_code),
        },
    }
}

pub(crate) fn succeeded(status: &ContainerStatus) -> bool {
    status.state() == ContainerState::ContainerExited && status.exit_code == 0
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from the status if it is there (it never changes), else from the spec.
pub(crate) fn qos_class(pod: &Pod) -> &str {
    if let Some(class) = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        return class;
    }
    let spec = spec(pod);
    let everyone = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let (mut any, mut guaranteed) = (false, true);
    // What the pod asks for itself decides alone.
    let own = spec.resources.as_ref().filter(|own| own.requests.is_some() || own.limits.is_some());
    let of_containers = everyone.map(|container| container.resources.as_ref()).filter(|_| own.is_none());
    for resources in of_containers.chain(own.map(Some)) {
        let get = |list: fn(&ResourceRequirements) -> &Option<BTreeMap<String, Quantity>>, name: &str| {
            quantity::milli_amount(resources.and_then(|resources| list(resources).as_ref()), name)
                .filter(|amount| *amount > 0)
        };
        for name in ["cpu", "memory"] {
            let (request, limit) = (get(|r| &r.requests, name), get(|r| &r.limits, name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Processors that a container of a Guaranteed pod asks for as a whole; none if it asks for a part of one.
pub(crate) fn whole_cpus(pod: &Pod, container: &Container) -> usize {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let milli = quantity::milli_amount(requests, "cpu").unwrap_or(0);
    if qos_class(pod) != "Guaranteed" || milli % 1000 != 0 {
        return 0;
    }
    usize::try_from(milli / 1000).unwrap_or(0)
}

/// The API's time has whole seconds.
pub(crate) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// CRI's nanoseconds since 1970 as the API's time.
pub(crate) fn nanos(nanos: i64) -> Time {
    Time(Timestamp::from_second(nanos.div_euclid(1_000_000_000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// `name_namespace(uid)`, as messages name a pod.
pub(crate) fn described(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}
