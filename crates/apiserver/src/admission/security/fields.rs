//! What each check of the Pod Security Standards looks at, with upstream's words for what it finds.

use std::collections::BTreeSet;

use serde_json::Value;

use super::checks::{Finding, Pod};
use crate::authz::references::containers;
use crate::read::Read;

fn found(reason: &str, detail: String) -> Option<Finding> {
    Some(Finding { reason: reason.to_owned(), detail })
}

fn quoted<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<String> = items.into_iter().map(|i| format!("\"{}\"", i.as_ref())).collect();
    quoted.join(", ")
}

fn plural(count: usize, one: &str) -> String {
    if count == 1 { one.to_owned() } else { format!("{one}s") }
}

/// `container "a"` or `containers "a", "b"`.
fn named(containers: &[&str]) -> String {
    format!("{} {}", plural(containers.len(), "container"), quoted(containers))
}

/// The names of the containers that a test holds for.
fn which<'a>(pod: &Pod<'a>, test: impl Fn(&Value) -> bool) -> Vec<&'a str> {
    containers(pod.spec).filter(|c| test(c)).map(|c| c.text("name")).collect()
}

/// `pod and container "a"`: who sets something; empty if nobody.
fn setters(pod: bool, containers: &[&str]) -> String {
    match (pod, containers) {
        (true, []) => "pod".to_owned(),
        (true, some) => format!("pod and {}", named(some)),
        (false, []) => String::new(),
        (false, some) => named(some),
    }
}

fn windows(pod: &Pod<'_>) -> bool {
    pod.minor >= 25 && pod.spec.text("os.name") == "windows"
}

/// From 1.35 on a pod in a user namespace may be root inside.
fn user_namespace(pod: &Pod<'_>) -> bool {
    pod.minor >= 35 && pod.spec.at("hostUsers").as_bool() == Some(false)
}

pub(super) fn app_armor(pod: &Pod<'_>) -> Option<Finding> {
    let bad = |holder: &Value| {
        let profile = holder.at("securityContext.appArmorProfile");
        !profile.is_null() && !matches!(profile.text("type"), "RuntimeDefault" | "Localhost")
    };
    let value = |holder: &Value| holder.text("securityContext.appArmorProfile.type").to_owned();
    let mut values = BTreeSet::new();
    let mut who = Vec::new();
    if bad(pod.spec) {
        values.insert(value(pod.spec));
        who.push("pod".to_owned());
    }
    let names = which(pod, bad);
    values.extend(containers(pod.spec).filter(|c| bad(c)).map(value));
    if !names.is_empty() {
        who.push(named(&names));
    }
    let mut annotations: Vec<String> = pod
        .metadata
        .at("annotations")
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            let good = value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
            let ours = key.starts_with("container.apparmor.security.beta.kubernetes.io/");
            (ours && !good).then(|| format!("{key}={value:?}"))
        })
        .collect();
    annotations.sort();
    let mut values: Vec<String> = values.into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural(annotations.len(), "annotation"));
        values.extend(annotations);
    }
    if who.is_empty() {
        return None;
    }
    let reason = plural(values.len(), "forbidden AppArmor profile");
    found(&reason, format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(values)))
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The containers that add other capabilities than the allowed ones, and these.
fn added<'a>(pod: &Pod<'a>, allowed: &[&str]) -> (Vec<&'a str>, BTreeSet<&'a str>) {
    let (mut names, mut capabilities) = (Vec::new(), BTreeSet::new());
    for container in containers(pod.spec) {
        let add = container.texts("securityContext.capabilities.add");
        let bad: Vec<&str> = add.filter(|c| !allowed.contains(c)).collect();
        if !bad.is_empty() {
            names.push(container.text("name"));
            capabilities.extend(bad);
        }
    }
    (names, capabilities)
}

pub(super) fn capabilities_baseline(pod: &Pod<'_>) -> Option<Finding> {
    let (names, capabilities) = added(pod, &DEFAULT_CAPABILITIES);
    if names.is_empty() {
        return None;
    }
    let what = quoted(capabilities);
    let detail = format!("{} must not include {what} in securityContext.capabilities.add", named(&names));
    found("non-default capabilities", detail)
}

pub(super) fn capabilities_restricted(pod: &Pod<'_>) -> Option<Finding> {
    if windows(pod) {
        return None;
    }
    let keeps = which(pod, |c| !c.texts("securityContext.capabilities.drop").any(|d| d == "ALL"));
    let (names, capabilities) = added(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeps.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keeps)));
    }
    if !names.is_empty() {
        let what = quoted(capabilities);
        let who = named(&names);
        details.push(format!("{who} must not include {what} in securityContext.capabilities.add"));
    }
    if details.is_empty() { None } else { found("unrestricted capabilities", details.join("; ")) }
}

pub(super) fn host_namespaces(pod: &Pod<'_>) -> Option<Finding> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|key| pod.spec.at(key).as_bool() == Some(true))
        .map(|key| format!("{key}=true"))
        .collect();
    if shared.is_empty() { None } else { found("host namespaces", shared.join(", ")) }
}

pub(super) fn host_path(pod: &Pod<'_>) -> Option<Finding> {
    let volumes = pod.spec.items("volumes").iter().filter(|v| v.has("hostPath"));
    let names: Vec<&str> = volumes.map(|v| v.text("name")).collect();
    if names.is_empty() {
        return None;
    }
    found("hostPath volumes", format!("{} {}", plural(names.len(), "volume"), quoted(&names)))
}

pub(super) fn host_ports(pod: &Pod<'_>) -> Option<Finding> {
    let ports = |c: &Value| -> Vec<i64> {
        let ports = c.items("ports").iter().filter_map(|p| p.at("hostPort").as_i64());
        ports.filter(|p| *p != 0).collect()
    };
    let names = which(pod, |c| !ports(c).is_empty());
    if names.is_empty() {
        return None;
    }
    let all: BTreeSet<String> = containers(pod.spec).flat_map(ports).map(|port| port.to_string()).collect();
    let list = all.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let verb = if names.len() == 1 { "uses" } else { "use" };
    found("hostPort", format!("{} {verb} {} {list}", named(&names), plural(all.len(), "hostPort")))
}

pub(super) fn probe_hosts(pod: &Pod<'_>) -> Option<Finding> {
    const PLACES: [&str; 5] =
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
    let hosts = |c: &Value| -> Vec<String> {
        let handlers = PLACES.iter().map(|place| c.at(place));
        let hosts = handlers.flat_map(|h| [h.text("httpGet.host"), h.text("tcpSocket.host")]);
        hosts.filter(|host| !host.is_empty()).map(str::to_owned).collect()
    };
    let mut names = which(pod, |c| !hosts(c).is_empty());
    if names.is_empty() {
        return None;
    }
    names.sort_unstable();
    let all: BTreeSet<String> = containers(pod.spec).flat_map(hosts).collect();
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let what = plural(all.len(), "probe or lifecycle host");
    found("probe or lifecycle host", format!("{} {verb} {what} {}", named(&names), quoted(all)))
}

pub(super) fn privileged(pod: &Pod<'_>) -> Option<Finding> {
    let names = which(pod, |c| c.at("securityContext.privileged").as_bool() == Some(true));
    if names.is_empty() {
        return None;
    }
    found("privileged", format!("{} must not set securityContext.privileged=true", named(&names)))
}

pub(super) fn proc_mount_baseline(pod: &Pod<'_>) -> Option<Finding> {
    if user_namespace(pod) { None } else { proc_mount(pod) }
}

pub(super) fn proc_mount(pod: &Pod<'_>) -> Option<Finding> {
    let kind = |c: &Value| c.at("securityContext.procMount").as_str().map(str::to_owned);
    let bad = |c: &Value| kind(c).is_some_and(|k| k != "Default");
    let names = which(pod, bad);
    if names.is_empty() {
        return None;
    }
    let kinds: BTreeSet<String> = containers(pod.spec).filter(|c| bad(c)).filter_map(kind).collect();
    let detail = format!("{} must not set securityContext.procMount to {}", named(&names), quoted(kinds));
    found("procMount", detail)
}

pub(super) fn selinux(pod: &Pod<'_>) -> Option<Finding> {
    let options = |holder: &Value| holder.at("securityContext.seLinuxOptions").clone();
    let kind_allowed = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (kind == "container_engine_t" && pod.minor >= 31)
    };
    let bad = |holder: &Value| {
        let options = options(holder);
        !kind_allowed(options.text("type"))
            || !options.text("user").is_empty()
            || !options.text("role").is_empty()
    };
    let names = which(pod, bad);
    let who = setters(bad(pod.spec), &names);
    if who.is_empty() {
        return None;
    }
    let all: Vec<Value> = std::iter::once(pod.spec).chain(containers(pod.spec)).map(options).collect();
    let kinds: BTreeSet<&str> = all.iter().map(|o| o.text("type")).filter(|k| !kind_allowed(k)).collect();
    let mut what = Vec::new();
    if !kinds.is_empty() {
        what.push(format!("{} {}", plural(kinds.len(), "type"), quoted(kinds)));
    }
    for key in ["user", "role"] {
        if all.iter().any(|o| !o.text(key).is_empty()) {
            what.push(format!("{key} may not be set"));
        }
    }
    found(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")),
    )
}

fn seccomp(holder: &Value) -> Option<&str> {
    let profile = holder.at("securityContext.seccompProfile");
    (!profile.is_null()).then(|| profile.text("type"))
}

fn bad_seccomp(holder: &Value) -> bool {
    seccomp(holder).is_some_and(|kind| !matches!(kind, "RuntimeDefault" | "Localhost"))
}

pub(super) fn seccomp_baseline(pod: &Pod<'_>) -> Option<Finding> {
    if pod.minor < 19 {
        return seccomp_annotations(pod);
    }
    let names = which(pod, bad_seccomp);
    let who = setters(bad_seccomp(pod.spec), &names);
    if who.is_empty() {
        return None;
    }
    let all = std::iter::once(pod.spec).chain(containers(pod.spec));
    let kinds: BTreeSet<&str> = all.filter(|h| bad_seccomp(h)).filter_map(seccomp).collect();
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(kinds));
    found("seccompProfile", detail)
}

fn seccomp_annotations(pod: &Pod<'_>) -> Option<Finding> {
    let own = containers(pod.spec)
        .map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", c.text("name")));
    let keys = std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned()).chain(own);
    let bad: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = pod.metadata.at("annotations").get(&key)?.as_str()?;
            let good =
                matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!good).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let list = bad.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    found("seccompProfile", format!("forbidden {} {list}", plural(bad.len(), "annotation")))
}

pub(super) fn seccomp_restricted(pod: &Pod<'_>) -> Option<Finding> {
    if windows(pod) {
        return None;
    }
    if let Some(bad) = seccomp_baseline(pod) {
        return Some(bad);
    }
    if seccomp(pod.spec).is_some() {
        return None;
    }
    let names = which(pod, |c| seccomp(c).is_none());
    if names.is_empty() {
        return None;
    }
    found(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            named(&names)
        ),
    )
}

/// Sysctls that stay inside the pod, by the version that allowed them.
const SAFE_SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

pub(super) fn sysctls(pod: &Pod<'_>) -> Option<Finding> {
    let safe = |name: &str| SAFE_SYSCTLS.iter().any(|(s, since)| *s == name && *since <= pod.minor);
    let set = pod.spec.items("securityContext.sysctls").iter().map(|s| s.text("name"));
    let bad: Vec<&str> = set.filter(|name| !safe(name)).collect();
    if bad.is_empty() { None } else { found("forbidden sysctls", bad.join(", ")) }
}

pub(super) fn windows_host_process(pod: &Pod<'_>) -> Option<Finding> {
    let set = |h: &Value| h.at("securityContext.windowsOptions.hostProcess").as_bool() == Some(true);
    let who = setters(set(pod.spec), &which(pod, set));
    if who.is_empty() {
        return None;
    }
    found("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

pub(super) fn privilege_escalation(pod: &Pod<'_>) -> Option<Finding> {
    if windows(pod) {
        return None;
    }
    let names = which(pod, |c| c.at("securityContext.allowPrivilegeEscalation").as_bool() != Some(false));
    if names.is_empty() {
        return None;
    }
    found(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&names)),
    )
}

pub(super) fn volumes(pod: &Pod<'_>) -> Option<Finding> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let all = pod.spec.items("volumes").iter();
    let bad: Vec<&Value> = all.filter(|v| !ALLOWED.iter().any(|kind| v.has(kind))).collect();
    if bad.is_empty() {
        return None;
    }
    let names: Vec<&str> = bad.iter().map(|v| v.text("name")).collect();
    let kind = |v: &Value| {
        let keys = v.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        keys.map(|(key, _)| key.clone()).find(|key| key != "name").unwrap_or("unknown".to_owned())
    };
    let kinds: BTreeSet<String> = bad.iter().map(|v| kind(v)).collect();
    let verb = if names.len() == 1 { "uses" } else { "use" };
    found(
        "restricted volume types",
        format!(
            "{} {} {verb} {} {}",
            plural(names.len(), "volume"),
            quoted(&names),
            plural(kinds.len(), "restricted volume type"),
            quoted(kinds)
        ),
    )
}

pub(super) fn run_as_non_root(pod: &Pod<'_>) -> Option<Finding> {
    if user_namespace(pod) {
        return None;
    }
    let set = |h: &Value| h.at("securityContext.runAsNonRoot").as_bool();
    let names = which(pod, |c| set(c) == Some(false));
    let who = setters(set(pod.spec) == Some(false), &names);
    if !who.is_empty() {
        let detail = format!("{who} must not set securityContext.runAsNonRoot=false");
        return found("runAsNonRoot != true", detail);
    }
    if set(pod.spec) == Some(true) {
        return None;
    }
    let unset = which(pod, |c| set(c).is_none());
    if unset.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", named(&unset));
    found("runAsNonRoot != true", detail)
}

pub(super) fn run_as_user(pod: &Pod<'_>) -> Option<Finding> {
    if user_namespace(pod) {
        return None;
    }
    let root = |h: &Value| h.at("securityContext.runAsUser").as_i64() == Some(0);
    let who = setters(root(pod.spec), &which(pod, root));
    if who.is_empty() { None } else { found("runAsUser=0", format!("{who} must not set runAsUser=0")) }
}
