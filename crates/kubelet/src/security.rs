//! `securityContext` of pods and containers, as CRI wants it.

use cri::v1::security_profile::ProfileType;
use cri::v1::{
    Capability, Image, Int64Value, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption,
    SecurityProfile, SupplementalGroupsPolicy,
};
use k8s_openapi::api::core::v1::{Container, Node, Pod, SeccompProfile, SecurityContext};

use crate::KubeletConfig;
use crate::context::Context;
use crate::podutil::{described, init_containers, spec};
use crate::sandbox;
use crate::status::Verdict;

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

/// The seccomp profile: the container's, else the pod's, else that of the runtime. Profiles of the node lie in the kubelet's
/// folder `seccomp`.
pub(crate) fn seccomp(
    config: &KubeletConfig,
    pod: &Pod,
    container: Option<&SecurityContext>,
) -> SecurityProfile {
    let of_container = container.and_then(|security| security.seccomp_profile.as_ref());
    let of_pod = spec(pod).security_context.as_ref().and_then(|security| security.seccomp_profile.as_ref());
    let profile: Option<&SeccompProfile> = of_container.or(of_pod);
    let privileged = container.is_some_and(|security| security.privileged == Some(true));
    let (kind, path) = match profile.map(|profile| profile.type_.as_str()) {
        Some("Unconfined") => (ProfileType::Unconfined, String::new()),
        Some("Localhost") => {
            let path = profile.and_then(|profile| profile.localhost_profile.clone());
            let path = config.root_dir.join("seccomp").join(path.unwrap_or_default());
            (ProfileType::Localhost, path.to_string_lossy().into_owned())
        }
        None if privileged || !config.settings.seccomp_default => (ProfileType::Unconfined, String::new()),
        _ => (ProfileType::RuntimeDefault, String::new()),
    };
    SecurityProfile { profile_type: kind as i32, localhost_ref: path }
}

/// Whether AppArmor is there.
pub(crate) fn apparmor() -> bool {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.trim() == "Y")
}

/// Why the node cannot enforce what the pod asks for, if so.
pub(crate) fn admit(pod: &Pod, node: Option<&Node>, apparmor: bool) -> Option<Verdict> {
    let of_pod = spec(pod).security_context.as_ref();
    let everyone = init_containers(pod).iter().chain(&spec(pod).containers);
    let profiles = everyone
        .filter_map(|container| container.security_context.as_ref()?.app_armor_profile.as_ref())
        .chain(of_pod.and_then(|security| security.app_armor_profile.as_ref()));
    if !apparmor && profiles.into_iter().any(|profile| profile.type_ != "Unconfined") {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned();
        return Some(Verdict { reason: "AppArmor".to_owned(), message });
    }
    let strict = of_pod.and_then(|security| security.supplemental_groups_policy.as_deref()) == Some("Strict");
    let told = node.and_then(|node| node.status.as_ref()?.features.as_ref()?.supplemental_groups_policy);
    if strict && told == Some(false) {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node".to_owned();
        return Some(Verdict { reason: "SupplementalGroupsPolicyNotSupported".to_owned(), message });
    }
    None
}

/// The AppArmor profile: the container's, else the pod's, else that of the runtime.
fn apparmor_profile(pod: &Pod, container: Option<&SecurityContext>) -> SecurityProfile {
    let of_pod = spec(pod).security_context.as_ref().and_then(|security| security.app_armor_profile.as_ref());
    let profile = container.and_then(|security| security.app_armor_profile.as_ref()).or(of_pod);
    let (kind, path) = match profile.map(|profile| (profile.type_.as_str(), &profile.localhost_profile)) {
        Some(("Unconfined", _)) => (ProfileType::Unconfined, String::new()),
        Some(("Localhost", name)) => (ProfileType::Localhost, name.clone().unwrap_or_default()),
        _ => (ProfileType::RuntimeDefault, String::new()),
    };
    SecurityProfile { profile_type: kind as i32, localhost_ref: path }
}

/// The container's security settings; `Err` says why it must not run.
pub(crate) fn context(
    node: &Context,
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
    let mut namespace_options: NamespaceOption = sandbox::namespaces(node, pod);
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
        seccomp: Some(seccomp(&node.config, pod, own)),
        apparmor: apparmor().then(|| apparmor_profile(pod, own)),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_node_cannot_enforce_is_refused() {
        let pod = |security: serde_json::Value| -> Pod {
            let text = json!({"spec": {"securityContext": security, "containers": [{"name": "a"}]}});
            serde_json::from_value(text).expect("a pod")
        };
        let node = |policy: bool| -> Node {
            let text = json!({"metadata": {}, "status": {"features": {"supplementalGroupsPolicy": policy}}});
            serde_json::from_value(text).expect("a node")
        };
        let reason = |security, apparmor, policy| {
            admit(&pod(security), Some(&node(policy)), apparmor).map(|verdict| verdict.reason)
        };
        let profile = |kind: &str| json!({"appArmorProfile": {"type": kind}});
        let strict = || json!({"supplementalGroupsPolicy": "Strict"});
        let not = |text: &str| Some(text.to_owned());
        for (security, apparmor, policy, wanted) in [
            (json!({}), false, true, None),
            (profile("RuntimeDefault"), false, true, not("AppArmor")),
            (profile("RuntimeDefault"), true, true, None),
            (profile("Unconfined"), false, true, None),
            (strict(), false, true, None),
            (strict(), false, false, not("SupplementalGroupsPolicyNotSupported")),
        ] {
            assert_eq!(reason(security.clone(), apparmor, policy), wanted, "{security}");
        }
    }
}
