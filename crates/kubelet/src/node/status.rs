//! The NodeStatus.

use cri::v1::{ListImagesRequest, StatusRequest, VersionRequest};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSystemInfo,
};

use super::capacity;
use crate::context::Context;
use crate::eviction::Pressure;
use crate::podutil;

/// The Kubernetes version this kubelet behaves as.
pub(crate) const VERSION: &str = "v1.36.2";

/// The status as it is now; conditions that did not change keep the times of `before`.
pub(super) async fn make(context: &Context, before: &NodeStatus) -> NodeStatus {
    let config = &context.config;
    let (mut capacity, mut allocatable) = capacity::of(config);
    context.devices.add_to(&mut capacity, &mut allocatable);
    let addresses = config.node_ips.iter().map(|ip| ("InternalIP", ip.to_string()));
    let addresses = addresses.chain([("Hostname", config.node_name.clone())]);
    let mut status = NodeStatus {
        addresses: Some(
            addresses.map(|(type_, address)| NodeAddress { type_: type_.to_owned(), address }).collect(),
        ),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.bind.port()) }),
        }),
        images: Some(images(context).await),
        node_info: Some(match &before.node_info {
            Some(info) if info.kubelet_version == VERSION && !info.container_runtime_version.is_empty() => {
                info.clone()
            }
            _ => info(context).await,
        }),
        ..NodeStatus::default()
    };
    status.conditions = Some(conditions(context, before).await);
    (status.runtime_handlers, status.features) = context.features.shown();
    status
}

pub(super) fn is_ready(status: &NodeStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether more than heartbeats differs.
pub(super) fn differs(before: &NodeStatus, after: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let mut status = NodeStatus {
            addresses: status.addresses.clone(),
            capacity: status.capacity.clone(),
            allocatable: status.allocatable.clone(),
            conditions: status.conditions.clone(),
            daemon_endpoints: status.daemon_endpoints.clone(),
            images: status.images.clone(),
            node_info: status.node_info.clone(),
            runtime_handlers: status.runtime_handlers.clone(),
            features: status.features.clone(),
            ..NodeStatus::default()
        };
        // Conditions of others are none of our business.
        let own = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|condition| own.contains(&condition.type_.as_str()));
        conditions.iter_mut().for_each(|condition| condition.last_heartbeat_time = None);
        status
    };
    plain(before) != plain(after)
}

async fn conditions(context: &Context, before: &NodeStatus) -> Vec<NodeCondition> {
    let problem = problem(context).await;
    let ready = match problem {
        None => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(problem) => ("Ready", false, "KubeletNotReady", problem),
    };
    let short = context.pressures.now();
    let memory_low = short.contains(&Pressure::Memory);
    let disk_low = short.iter().any(|pressure| matches!(pressure, Pressure::Disk | Pressure::Inodes));
    let memory = if memory_low {
        (
            "MemoryPressure",
            true,
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available".to_owned(),
        )
    } else {
        (
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available".to_owned(),
        )
    };
    let disk = if disk_low {
        ("DiskPressure", true, "KubeletHasDiskPressure", "kubelet has disk pressure".to_owned())
    } else {
        ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure".to_owned())
    };
    let pids = if short.contains(&Pressure::Pids) {
        (
            "PIDPressure",
            true,
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available".to_owned(),
        )
    } else {
        ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available".to_owned())
    };
    let now = podutil::time(Timestamp::now());
    let made = [memory, disk, pids, ready].map(|(name, status, reason, message)| {
        let status = if status { "True" } else { "False" };
        let old = before.conditions.iter().flatten().find(|condition| condition.type_ == name);
        let since = old
            .filter(|old| old.status == status)
            .and_then(|old| old.last_transition_time.clone())
            .unwrap_or_else(|| now.clone());
        NodeCondition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: Some(since),
        }
    });
    made.into()
}

/// Why pods cannot run here, if so.
async fn problem(context: &Context) -> Option<String> {
    if *context.going_down.borrow() {
        return Some("node is shutting down".to_owned());
    }
    let status = match context.cri.runtime().status(StatusRequest { verbose: false }).await {
        Ok(response) => {
            let response = response.into_inner();
            context.features.note(&response);
            response.status.unwrap_or_default()
        }
        Err(status) => return Some(format!("container runtime is down: {}", status.message())),
    };
    for condition in &status.conditions {
        if condition.status {
            continue;
        }
        let what = match condition.r#type.as_str() {
            "RuntimeReady" => "container runtime not ready",
            "NetworkReady" => "container runtime network not ready",
            _ => continue,
        };
        return Some(format!(
            "{what}: {}=false reason:{} message:{}",
            condition.r#type, condition.reason, condition.message
        ));
    }
    None
}

async fn images(context: &Context) -> Vec<ContainerImage> {
    let response = context.cri.images().list_images(ListImagesRequest { filter: None }).await;
    // A negative number stands for all.
    let most = context.config.settings.node_status_max_images;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut images = response.map(|response| response.into_inner().images).unwrap_or_default();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images
        .into_iter()
        .take(most)
        .map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(5).collect()),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .filter(|image| image.names.as_ref().is_some_and(|names| !names.is_empty()))
        .collect()
}

async fn info(context: &Context) -> NodeSystemInfo {
    let read =
        |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let release = read("/etc/os-release");
    let os_image = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let machine = read("/etc/machine-id");
    let system = read("/sys/class/dmi/id/product_uuid");
    let runtime = context.cri.runtime().version(VersionRequest::default()).await;
    let runtime = runtime.map(|response| response.into_inner()).ok();
    NodeSystemInfo {
        architecture: capacity::architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: runtime
            .map(|version| format!("{}://{}", version.runtime_name, version.runtime_version))
            .unwrap_or_default(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.to_owned(),
        operating_system: "linux".to_owned(),
        os_image: os_image.unwrap_or("Linux").trim_matches('"').to_owned(),
        system_uuid: if system.is_empty() { machine.clone() } else { system },
        machine_id: machine,
        ..NodeSystemInfo::default()
    }
}
