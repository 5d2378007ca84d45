//! The sandbox of a pod as CRI wants it, its host name, and its `/etc/hosts`.

use std::collections::HashMap;

use cri::v1::{
    Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};
use k8s_openapi::api::core::v1::Pod;

use crate::context::Context;
use crate::podutil::{self, host_network, init_containers, is_sidecar, spec};
use crate::runtime::{POD_NAME, POD_NAMESPACE, POD_UID};
use crate::security;
use crate::sysctls;

/// The directory of a pod's logs.
pub(crate) fn log_dir(pod: &Pod) -> String {
    format!("{}_{}_{}", podutil::namespace(pod), podutil::name(pod), podutil::uid(pod))
}

/// Host name and domain.
pub(crate) fn host_name(context: &Context, pod: &Pod) -> (String, String) {
    let spec = spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return (name.to_owned(), String::new());
    }
    let name = spec.hostname.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| {
        // The kernel's limit is 64 bytes, and upstream leaves one.
        let name: String = podutil::name(pod).chars().take(63).collect();
        name.trim_end_matches(['-', '.']).to_owned()
    });
    let domain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty()).map(|subdomain| {
        format!("{subdomain}.{}.svc.{}", podutil::namespace(pod), context.config.cluster_domain)
    });
    (name, domain.unwrap_or_default())
}

/// What the kernel is told as the pod's host name: with the domain where `setHostnameAsFQDN` asks for it, or why that cannot be.
pub(crate) fn kernel_name(context: &Context, pod: &Pod) -> Result<String, String> {
    /// The kernel's own limit.
    const MOST: usize = 64;
    if host_network(pod) {
        return Ok(String::new());
    }
    let (name, domain) = host_name(context, pod);
    if spec(pod).set_hostname_as_fqdn != Some(true) || domain.is_empty() {
        return Ok(name);
    }
    let full = format!("{name}.{domain}");
    if full.len() > MOST {
        return Err(format!(
            "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long ({MOST} characters is \
             the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
}

/// Which namespaces the pod and its containers share; `pid` differs for ephemeral containers only.
pub(crate) fn namespaces(context: &Context, pod: &Pod) -> NamespaceOption {
    let spec = spec(pod);
    let node_or = |node: Option<bool>, other: NamespaceMode| {
        (if node == Some(true) { NamespaceMode::Node } else { other }) as i32
    };
    let pid = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod),
        pid: node_or(spec.host_pid, pid),
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod),
        target_id: String::new(),
        userns_options: context.users.of(pod),
    }
}

/// The pod's sandbox.
pub(crate) fn config(context: &Context, pod: &Pod, attempt: u32) -> PodSandboxConfig {
    let metadata = &pod.metadata;
    let mut labels: HashMap<String, String> =
        metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.insert(POD_NAME.to_owned(), podutil::name(pod).to_owned());
    labels.insert(POD_NAMESPACE.to_owned(), podutil::namespace(pod).to_owned());
    labels.insert(POD_UID.to_owned(), podutil::uid(pod).to_owned());
    // `kernel_name` has been asked before any sandbox is made; this is its answer again.
    let hostname = kernel_name(context, pod).unwrap_or_default();
    let cgroup_parent = context.cgroups.as_ref().map(|cgroups| cgroups.parent(pod)).unwrap_or_default();
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: podutil::name(pod).to_owned(),
            uid: podutil::uid(pod).to_owned(),
            namespace: podutil::namespace(pod).to_owned(),
            attempt,
        }),
        hostname,
        log_directory: context.config.pod_logs_dir.join(log_dir(pod)).to_string_lossy().into_owned(),
        dns_config: Some(context.resolver.of_pod(&context.config, pod)),
        port_mappings: port_mappings(pod),
        labels,
        annotations: metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(security_context(context, pod)),
            sysctls: sysctls(pod),
            overhead: None,
            resources: None,
        }),
        windows: None,
    }
}

fn security_context(context: &Context, pod: &Pod) -> LinuxSandboxSecurityContext {
    let security = spec(pod).security_context.as_ref();
    let int = |value: Option<i64>| value.map(|value| Int64Value { value });
    let everyone = init_containers(pod).iter().chain(&spec(pod).containers);
    let privileged = everyone
        .filter_map(|container| container.security_context.as_ref())
        .any(|security| security.privileged == Some(true));
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(context, pod)),
        run_as_user: int(security.and_then(|security| security.run_as_user)),
        run_as_group: int(security.and_then(|security| security.run_as_group)),
        supplemental_groups: security::groups(pod),
        supplemental_groups_policy: security::groups_policy(pod),
        privileged,
        seccomp: Some(security::seccomp(&context.config, pod, None)),
        ..LinuxSandboxSecurityContext::default()
    }
}

fn sysctls(pod: &Pod) -> HashMap<String, String> {
    let listed = spec(pod).security_context.as_ref().and_then(|security| security.sysctls.as_ref());
    listed.into_iter().flatten().map(|sysctl| (sysctls::normal(&sysctl.name), sysctl.value.clone())).collect()
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if host_network(pod) {
        return Vec::new();
    }
    let sidecars = init_containers(pod).iter().filter(|container| is_sidecar(container));
    let ports =
        spec(pod).containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// The pod's `/etc/hosts`.
pub(crate) fn hosts_file(context: &Context, pod: &Pod, ips: &[String]) -> String {
    let mut text = if host_network(pod) {
        let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        format!("# Kubernetes-managed hosts file (host network).\n{own}")
    } else {
        let (name, domain) = host_name(context, pod);
        let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
            ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n\
            fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
        for ip in ips {
            let names = if domain.is_empty() { name.clone() } else { format!("{name}.{domain}\t{name}") };
            text.push_str(&format!("{ip}\t{names}\n"));
        }
        text
    };
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}
