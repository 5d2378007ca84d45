//! Sandboxes, containers and images as CRI describes them.

use cri::v1::{
    self, ContainerResources, ContainerState, ContainerStatus, ContainerUser, ImageSpec, LinuxContainerUser,
    LinuxPodSandboxStatus, Namespace, PodIp, PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus,
};

use crate::images::Image;
use crate::node::records::{ContainerRecord, Phase, SandboxRecord};
use crate::node::{Container, Node, Sandbox};

/// The state of a sandbox.
pub fn sandbox_state(record: &SandboxRecord) -> i32 {
    (if record.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }) as i32
}

/// The state of a container.
pub fn container_state(record: &ContainerRecord) -> i32 {
    (match record.phase() {
        Phase::Created => ContainerState::ContainerCreated,
        Phase::Running => ContainerState::ContainerRunning,
        Phase::Exited => ContainerState::ContainerExited,
    }) as i32
}

/// The status of a sandbox.
pub fn sandbox(sandbox: &Sandbox) -> PodSandboxStatus {
    let record = sandbox.record.lock().clone();
    let state = sandbox_state(&record);
    let config = record.config;
    let mut addresses = record.addresses.into_iter();
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    PodSandboxStatus {
        id: record.id,
        state,
        created_at: record.created_at,
        network: Some(PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: context.and_then(|c| c.namespace_options.clone()) }),
        }),
        metadata: config.metadata,
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: record.runtime_handler,
    }
}

/// A sandbox in a list.
pub fn sandbox_item(sandbox: &Sandbox) -> v1::PodSandbox {
    let record = sandbox.record.lock().clone();
    v1::PodSandbox {
        state: sandbox_state(&record),
        id: record.id,
        created_at: record.created_at,
        metadata: record.config.metadata,
        labels: record.config.labels,
        annotations: record.config.annotations,
        runtime_handler: record.runtime_handler,
    }
}

/// The image as the container's status shows it: a name if there is one.
fn image_spec(node: &Node, record: &ContainerRecord) -> ImageSpec {
    let mut spec = record.config.image.clone().unwrap_or_default();
    let tag = node.images.get(&record.image).and_then(|i| i.tags.first().cloned());
    if let Some(tag) = tag.filter(|_| spec.image.starts_with("sha256:") || spec.image.len() == 64) {
        spec.image = tag;
    }
    spec
}

/// The status of a container.
pub fn container(node: &Node, container: &Container) -> ContainerStatus {
    let mut record = container.record.borrow().clone();
    let image = image_spec(node, &record);
    // The kernel may have killed a process of the container that is not its first one; then it lives on.
    if record.phase() == Phase::Running && node.cgroups.oom_kills(&record.cgroup) > 0 {
        record.reason = "OOMKilled".into();
    }
    ContainerStatus {
        state: container_state(&record),
        image: Some(image),
        image_ref: record.image_ref,
        image_id: record.image,
        id: record.id,
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: record.finished_at,
        exit_code: record.exit_code,
        reason: record.reason,
        message: record.message,
        metadata: record.config.metadata,
        labels: record.config.labels,
        annotations: record.config.annotations,
        mounts: record.config.mounts,
        log_path: record.log_path,
        resources: Some(ContainerResources { linux: record.resources, windows: None }),
        user: Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: i64::from(record.uid),
                gid: i64::from(record.gid),
                supplemental_groups: record.groups.into_iter().map(i64::from).collect(),
            }),
        }),
        stop_signal: cri_signal(record.stop_signal),
    }
}

/// A container in a list.
pub fn container_item(node: &Node, container: &Container) -> v1::Container {
    let record = container.record.borrow().clone();
    v1::Container {
        state: container_state(&record),
        image: Some(image_spec(node, &record)),
        id: record.id,
        pod_sandbox_id: record.sandbox,
        metadata: record.config.metadata,
        image_ref: record.image_ref,
        created_at: record.created_at,
        labels: record.config.labels,
        annotations: record.config.annotations,
        image_id: record.image,
    }
}

/// CRI's own number of a signal.
fn cri_signal(number: i32) -> i32 {
    let signal = nix::sys::signal::Signal::try_from(number).ok();
    signal
        .and_then(|s| v1::Signal::from_str_name(s.as_str()))
        .map_or(v1::Signal::RuntimeDefault as i32, |s| s as i32)
}

/// An image.
pub fn image(image: &Image) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or("");
    let uid = if user.is_empty() { None } else { user.parse::<i64>().ok() };
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.tags.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        spec: Some(ImageSpec { image: image.id.clone(), ..ImageSpec::default() }),
        pinned: image.pinned,
    }
}
