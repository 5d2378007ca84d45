//! The checks of the Pod Security Standards, each from the version on that it exists
//! (upstream: `pod-security-admission/policy`). A row names the baseline check that it takes the place of.

use serde_json::Value;

use super::fields;
use super::{Level, Rank};

/// The last version in which a check changed; later ones are the same.
const NEWEST: u32 = 35;

/// One violation: what, and where.
pub(super) struct Finding {
    pub reason: String,
    pub detail: String,
}

/// What a check looks at.
pub(super) struct Pod<'a> {
    pub metadata: &'a Value,
    pub spec: &'a Value,
    pub minor: u32,
}

struct Check {
    id: &'static str,
    level: Level,
    since: u32,
    replaces: &'static str,
    find: fn(&Pod<'_>) -> Option<Finding>,
}

const fn baseline(id: &'static str, since: u32, find: fn(&Pod<'_>) -> Option<Finding>) -> Check {
    Check { id, level: Level::Baseline, since, replaces: "", find }
}

const fn restricted(
    id: &'static str,
    since: u32,
    replaces: &'static str,
    find: fn(&Pod<'_>) -> Option<Finding>,
) -> Check {
    Check { id, level: Level::Restricted, since, replaces, find }
}

/// In the order of upstream's messages: baseline by id, then restricted by id.
const CHECKS: [Check; 19] = [
    baseline("appArmorProfile", 0, fields::app_armor),
    baseline("capabilities_baseline", 0, fields::capabilities_baseline),
    baseline("hostNamespaces", 0, fields::host_namespaces),
    baseline("hostPathVolumes", 0, fields::host_path),
    baseline("hostPorts", 0, fields::host_ports),
    baseline("hostProbesAndHostLifecycle", 34, fields::probe_hosts),
    baseline("privileged", 0, fields::privileged),
    baseline("procMount", 0, fields::proc_mount_baseline),
    baseline("seLinuxOptions", 0, fields::selinux),
    baseline("seccompProfile_baseline", 0, fields::seccomp_baseline),
    baseline("sysctls", 0, fields::sysctls),
    baseline("windowsHostProcess", 0, fields::windows_host_process),
    restricted("allowPrivilegeEscalation", 8, "", fields::privilege_escalation),
    restricted("capabilities_restricted", 22, "capabilities_baseline", fields::capabilities_restricted),
    restricted("procMount_restricted", 35, "procMount", fields::proc_mount),
    restricted("restrictedVolumes", 0, "hostPathVolumes", fields::volumes),
    restricted("runAsNonRoot", 0, "", fields::run_as_non_root),
    restricted("runAsUser", 23, "", fields::run_as_user),
    restricted("seccompProfile_restricted", 19, "seccompProfile_baseline", fields::seccomp_restricted),
];

/// All violations of one pod.
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `host namespaces, hostPort`
    pub(super) fn reasons(&self) -> String {
        self.0.iter().map(|f| f.reason.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// `host namespaces (hostNetwork=true), ...`
    pub(super) fn details(&self) -> String {
        let texts: Vec<String> = self
            .0
            .iter()
            .map(|f| match f.detail.as_str() {
                "" => f.reason.clone(),
                detail => format!("{} ({detail})", f.reason),
            })
            .collect();
        texts.join(", ")
    }
}

/// Runs the checks of a level at its version.
pub(super) fn evaluate(rank: Rank, metadata: &Value, spec: &Value) -> Findings {
    let minor = rank.minor.unwrap_or(NEWEST).min(NEWEST);
    let pod = Pod { metadata, spec, minor };
    let active = |check: &&Check| check.level <= rank.level && check.since <= minor;
    let replaced = |id: &str| CHECKS.iter().filter(active).any(|check| check.replaces == id);
    let checks = CHECKS.iter().filter(active).filter(|check| !replaced(check.id));
    Findings(checks.filter_map(|check| (check.find)(&pod)).collect())
}
