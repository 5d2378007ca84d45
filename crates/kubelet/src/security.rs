//! `securityContext` of pods and containers, as CRI wants it.

use cri::v1::security_profile::ProfileType;
use cri::v1::{
    Capability, Image, Int64Value, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
    SecurityProfile, SupplementalGroupsPolicy,
};
use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile, SecurityContext};

use crate::podutil::{described, spec};
use crate::sandbox;

const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
];
const MASKED_MORE: [&str; 3] =
    ["/sys/firmware", "/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu0/thermal_throttle"];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Supplemental groups, `fsGroup` among them.
pub(crate) fn groups(pod: &Pod) -> Vec<i64> {
    let Some(security) = &spec(pod).security_context else { return Vec::new() };
    security.fs_group.iter().chain(security.supplemental_groups.iter().flatten()).copied().collect()
}

pub(crate) fn groups_policy(pod: &Pod) -> i32 {
    let security = spec(pod).security_context.as_ref();
    let policy = security.and_then(|security| security.supplemental_groups_policy.as_deref());
    (if policy == Some("Strict") {
        SupplementalGroupsPolicy::Strict
    } else {
        SupplementalGroupsPolicy::Merge
    }) as i32
}

/// The seccomp profile: the container's, else the pod's, else that of the runtime.
pub(crate) fn seccomp(pod: &Pod, container: Option<&SecurityContext>) -> SecurityProfile {
    let of_container = container.and_then(|security| security.seccomp_profile.as_ref());
    let of_pod = spec(pod).security_context.as_ref().and_then(|security| security.seccomp_profile.as_ref());
    let profile: Option<&SeccompProfile> = of_container.or(of_pod);
    let privileged = container.is_some_and(|security| security.privileged == Some(true));
    let (kind, path) = match profile.map(|profile| profile.type_.as_str()) {
        Some("Unconfined") => (ProfileType::Unconfined, String::new()),
        Some("Localhost") => {
            let path = profile.and_then(|profile| profile.localhost_profile.clone());
            (ProfileType::Localhost, format!("/var/lib/kubelet/seccomp/{}", path.unwrap_or_default()))
        }
        None if privileged => (ProfileType::Unconfined, String::new()),
        _ => (ProfileType::RuntimeDefault, String::new()),
    };
    SecurityProfile { profile_type: kind as i32, localhost_ref: path }
}

/// The container's security settings; `Err` says why it must not run.
pub(crate) fn context(
    pod: &Pod,
    container: &Container,
    image: &Image,
    target: Option<String>,
) -> Result<LinuxContainerSecurityContext, String> {
    let own = container.security_context.as_ref();
    let of_pod = spec(pod).security_context.as_ref();
    let user = own.and_then(|own| own.run_as_user).or(of_pod.and_then(|pod| pod.run_as_user));
    let group = own.and_then(|own| own.run_as_group).or(of_pod.and_then(|pod| pod.run_as_group));
    let non_root = own.and_then(|own| own.run_as_non_root).or(of_pod.and_then(|pod| pod.run_as_non_root));
    if non_root == Some(true) {
        check_non_root(pod, container, user, image)?;
    }
    let int = |value: Option<i64>| value.map(|value| Int64Value { value });
    let image_user = image.uid.as_ref().map(|uid| uid.value);
    let username = if user.or(image_user).is_none() { image.username.clone() } else { String::new() };
    let mut namespace_options: NamespaceOption = sandbox::namespaces(pod);
    if let Some(id) = target {
        namespace_options.pid = NamespaceMode::Target as i32;
        namespace_options.target_id = id;
    }
    let privileged = own.is_some_and(|own| own.privileged == Some(true));
    let unmasked = own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let (masked_paths, readonly_paths) = if unmasked || privileged {
        (Vec::new(), Vec::new())
    } else {
        ([paths(&MASKED), paths(&MASKED_MORE)].concat(), paths(&READ_ONLY))
    };
    Ok(LinuxContainerSecurityContext {
        capabilities: own.and_then(|own| own.capabilities.as_ref()).map(|capabilities| Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespace_options),
        run_as_user: int(user.or(image_user)),
        run_as_group: int(group),
        run_as_username: username,
        readonly_rootfs: own.is_some_and(|own| own.read_only_root_filesystem == Some(true)),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        no_new_privs: own.is_some_and(|own| own.allow_privilege_escalation == Some(false)),
        masked_paths,
        readonly_paths,
        seccomp: Some(seccomp(pod, own)),
        ..LinuxContainerSecurityContext::default()
    })
}

fn check_non_root(pod: &Pod, container: &Container, user: Option<i64>, image: &Image) -> Result<(), String> {
    let which = format!("(pod: {:?}, container: {})", described(pod), container.name);
    match (user, image.uid.as_ref().map(|uid| uid.value)) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {which}")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!("container has runAsNonRoot and image will run as root {which}")),
        (None, Some(_)) => Ok(()),
        (None, None) if image.username.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {which}"))
        }
        (None, None) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {which}",
            image.username
        )),
    }
}
