//! Which kernel parameters a pod may set: upstream's safe ones, and those that the node's configuration allows.

use k8s_openapi::api::core::v1::Pod;

use crate::podutil::spec;
use crate::status::Verdict;

/// Parameters that are of the pod alone and cost the node nothing, with the kernel from which on that holds.
const SAFE: [(&str, (u32, u32)); 12] = [
    ("kernel.shm_rmid_forced", (0, 0)),
    ("net.ipv4.ip_local_port_range", (0, 0)),
    ("net.ipv4.tcp_syncookies", (0, 0)),
    ("net.ipv4.ping_group_range", (0, 0)),
    ("net.ipv4.ip_unprivileged_port_start", (0, 0)),
    ("net.ipv4.ip_local_reserved_ports", (3, 16)),
    ("net.ipv4.tcp_keepalive_time", (4, 5)),
    ("net.ipv4.tcp_fin_timeout", (4, 6)),
    ("net.ipv4.tcp_keepalive_intvl", (4, 5)),
    ("net.ipv4.tcp_keepalive_probes", (4, 5)),
    ("net.ipv4.tcp_rmem", (4, 15)),
    ("net.ipv4.tcp_wmem", (4, 15)),
];

/// Parameters that each namespace has its own of: names, or what names begin with.
const IPC: [&str; 4] = ["kernel.shm*", "kernel.msg*", "kernel.sem", "fs.mqueue.*"];
const NET: [&str; 1] = ["net.*"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Ipc,
    Net,
    /// The node's own; a pod cannot set it.
    None,
}

/// Dots for slashes where these separate; in a name whose first separator is a slash, dots are parts of names.
pub(crate) fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

fn space(name: &str) -> Space {
    let listed = |list: &[&str]| {
        // A pattern belongs to a space only if everything that it matches does.
        let (name, open) = name.strip_suffix('*').map_or((name, false), |prefix| (prefix, true));
        list.iter().any(|pattern| matches(pattern, name) && (!open || pattern.ends_with('*')))
    };
    if listed(&IPC) {
        Space::Ipc
    } else if listed(&NET) {
        Space::Net
    } else {
        Space::None
    }
}

/// Whether a pattern of `allowedUnsafeSysctls` can be: its parameters must be of namespaces.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), String> {
    let name = normal(pattern);
    let plain = name.strip_suffix(".*").or(name.strip_suffix('*')).unwrap_or(&name);
    let good = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/'))
    };
    if plain.is_empty() || name.len() > 253 || !plain.trim_end_matches('.').split('.').all(good) {
        return Err(format!("{pattern:?} is no name of a sysctl or pattern such as net.core.*"));
    }
    match space(&name) {
        Space::None => Err(format!("{pattern:?} is not of a namespace, so that pods cannot set it")),
        Space::Ipc | Space::Net => Ok(()),
    }
}

/// Why the pod may not run with the sysctls that it wants, if so.
pub(crate) fn check(pod: &Pod, allowed: &[String], kernel: (u32, u32)) -> Option<Verdict> {
    let security = spec(pod).security_context.as_ref()?;
    let (host_net, host_ipc) = (spec(pod).host_network == Some(true), spec(pod).host_ipc == Some(true));
    for sysctl in security.sysctls.iter().flatten() {
        let name = normal(&sysctl.name);
        let space = space(&name);
        let forbidden = |why: String| {
            Some(Verdict {
                reason: "SysctlForbidden".to_owned(),
                message: format!("forbidden sysctl: {why}"),
            })
        };
        let safe = SAFE.iter().any(|(known, since)| *known == name && kernel >= *since);
        let listed = allowed.iter().any(|pattern| matches(&normal(pattern), &name)) && space != Space::None;
        if !safe && !listed {
            return forbidden(format!("{:?} not allowlisted", sysctl.name));
        }
        if space == Space::Net && host_net {
            return forbidden(format!("{:?} not allowed with host net enabled", sysctl.name));
        }
        if space == Space::Ipc && host_ipc {
            return forbidden(format!("{:?} not allowed with host ipc enabled", sysctl.name));
        }
    }
    None
}

/// The running kernel's major and minor number.
pub(crate) fn kernel() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unsafe_sysctls_need_leave() {
        let allowed = ["net.core.*".to_owned(), "kernel.msg*".to_owned()];
        for (sysctl, host, why) in [
            ("net.ipv4.tcp_syncookies", false, None),
            ("net/ipv4/tcp_syncookies", false, None),
            ("kernel.shm_rmid_forced", false, None),
            (
                "kernel.shm_rmid_forced",
                true,
                Some("\"kernel.shm_rmid_forced\" not allowed with host ipc enabled"),
            ),
            (
                "net.ipv4.tcp_syncookies",
                true,
                Some("\"net.ipv4.tcp_syncookies\" not allowed with host net enabled"),
            ),
            ("net.core.somaxconn", false, None),
            ("kernel.msgmax", false, None),
            ("kernel.sem", false, Some("\"kernel.sem\" not allowlisted")),
            ("vm.swappiness", false, Some("\"vm.swappiness\" not allowlisted")),
            ("net.ipv4.tcp_rmem", false, Some("\"net.ipv4.tcp_rmem\" not allowlisted")),
        ] {
            let pod = json!({"spec": {"containers": [], "hostNetwork": host, "hostIPC": host,
                "securityContext": {"sysctls": [{"name": sysctl, "value": "1"}]}}});
            let pod = serde_json::from_value(pod).expect("a pod");
            let found = check(&pod, &allowed, (4, 14)).map(|verdict| verdict.message);
            assert_eq!(found, why.map(|why| format!("forbidden sysctl: {why}")), "{sysctl}");
        }
    }

    #[test]
    fn patterns_are_of_namespaces() {
        for (pattern, good) in [
            ("net.*", true),
            ("net.core.somaxconn", true),
            ("net/ipv4/*", true),
            ("kernel.shm*", true),
            ("kernel.sem", true),
            ("kernel.*", false),
            ("*", false),
            ("vm.swappiness", false),
            ("net..core", false),
            ("", false),
        ] {
            assert_eq!(check_pattern(pattern).is_ok(), good, "{pattern}");
        }
        assert_eq!(normal("net/ipv4/conf/eth0.1/forwarding"), "net.ipv4.conf.eth0/1.forwarding");
    }
}
