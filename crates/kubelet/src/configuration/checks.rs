//! What makes a configuration invalid: upstream's rules, each error with the field's name.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use topology::CpuSet;

use super::{Configuration, ConfigurationError, PRELOADED};
use crate::eviction::thresholds;
use crate::quantity;
use crate::sysctls;

/// Feature gates that are heeded.
pub(super) const GATES: &[&str] = &["MemoryQoS", "NodeSwap", "UserNamespacesSupport"];

/// Resources of which a part can be kept from pods.
const RESERVABLE: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pid"];
/// What `enforceNodeAllocatable` may list.
const ENFORCEABLE: [&str; 6] = [
    "none",
    "pods",
    "system-reserved",
    "system-reserved-compressible",
    "kube-reserved",
    "kube-reserved-compressible",
];

type Result = std::result::Result<(), ConfigurationError>;

fn bad<T>(field: &str, message: impl Into<String>) -> std::result::Result<T, ConfigurationError> {
    Err(ConfigurationError::Invalid { field: field.to_owned(), message: message.into() })
}

fn one_of(field: &str, value: &str, allowed: &[&str]) -> Result {
    if allowed.contains(&value) {
        return Ok(());
    }
    bad(field, format!("{value:?} must be one of: {}", allowed.join(", ")))
}

impl Configuration {
    /// Refuses what contradicts itself or cannot be.
    pub(super) fn check(&self) -> Result {
        self.check_access()?;
        self.check_images_and_logs()?;
        self.check_reserved()?;
        self.check_managers()?;
        self.check_shutdown()?;
        self.check_pods()?;
        if let Err((field, message)) = thresholds::of(self) {
            return bad(field, message);
        }
        for pattern in &self.allowed_unsafe_sysctls {
            if let Err(message) = sysctls::check_pattern(pattern) {
                return bad("allowedUnsafeSysctls", message);
            }
        }
        Ok(())
    }

    fn check_access(&self) -> Result {
        if self.authentication.anonymous.enabled == Some(true) {
            return bad("authentication.anonymous.enabled", "anonymous requests are not let in");
        }
        if self.authentication.webhook.enabled == Some(false) {
            return bad("authentication.webhook.enabled", "tokens are always reviewed by the API server");
        }
        match self.authorization.mode.as_str() {
            "" | "Webhook" => {}
            mode => {
                return bad(
                    "authorization.mode",
                    format!("{mode:?}: every request is authorized by Webhook"),
                );
            }
        }
        // What is older than TLS 1.2 is not spoken in any case.
        let versions = ["", "VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"];
        one_of("tlsMinVersion", &self.tls_min_version, &versions)?;
        if self.enable_system_log_query && !self.enable_system_log_handler {
            return bad("enableSystemLogQuery", "must be false where enableSystemLogHandler is false");
        }
        if !self.cgroups_per_qos && self.enforce_node_allocatable.iter().any(|one| one == "pods") {
            let text = "pods must not be enforced unless cgroupsPerQOS is true; use [none]";
            return bad("enforceNodeAllocatable", text);
        }
        Ok(())
    }

    fn check_images_and_logs(&self) -> Result {
        let (high, low) = (self.image_gc_high_threshold_percent, self.image_gc_low_threshold_percent);
        if high > 100 {
            return bad("imageGCHighThresholdPercent", format!("{high} must be between 0 and 100"));
        }
        if low >= high {
            let text = format!("{low} must be less than imageGCHighThresholdPercent, {high}");
            return bad("imageGCLowThresholdPercent", text);
        }
        let most = self.image_maximum_gc_age;
        if !most.is_zero() && most <= self.image_minimum_gc_age {
            let text =
                format!("{most} must be greater than imageMinimumGCAge, {}", self.image_minimum_gc_age);
            return bad("imageMaximumGCAge", text);
        }
        match self.max_parallel_image_pulls {
            Some(0) => return bad("maxParallelImagePulls", "must be positive"),
            Some(2..) if self.serialize_image_pulls => {
                return bad(
                    "maxParallelImagePulls",
                    "cannot be larger than 1 while serializeImagePulls is true",
                );
            }
            _ => {}
        }
        let policy = self.image_pull_credentials_verification_policy.as_str();
        let policies = ["NeverVerify", PRELOADED, "NeverVerifyAllowlistedImages", "AlwaysVerify"];
        one_of("imagePullCredentialsVerificationPolicy", policy, &policies)?;
        let list = &self.preloaded_images_verification_allowlist;
        if !list.is_empty() && policy != "NeverVerifyAllowlistedImages" {
            let text =
                "may be given with imagePullCredentialsVerificationPolicy NeverVerifyAllowlistedImages alone";
            return bad("preloadedImagesVerificationAllowlist", text);
        }
        let plain = |name: &str| !name.is_empty() && !name.contains(['*', '@', ' ']);
        if let Some(wrong) = list.iter().find(|name| !plain(name.strip_suffix("/*").unwrap_or(name))) {
            let text = format!("{wrong:?} is neither a repository nor a part of names that ends in /*");
            return bad("preloadedImagesVerificationAllowlist", text);
        }
        if self.node_status_max_images < -1 {
            return bad("nodeStatusMaxImages", "must be -1 or greater");
        }
        if self.container_log_max_files <= 1 {
            return bad("containerLogMaxFiles", "must be greater than 1");
        }
        if quantity::value(&self.container_log_max_size).is_none_or(|size| size <= 0) {
            let text = format!("{:?} is no size such as 10Mi", self.container_log_max_size.0);
            return bad("containerLogMaxSize", text);
        }
        if self.container_log_monitor_interval.0.as_secs() < 3 {
            return bad("containerLogMonitorInterval", "must be at least 3s");
        }
        if !self.pod_logs_dir.is_empty() && !self.pod_logs_dir.starts_with('/') {
            return bad("podLogsDir", "must be an absolute path");
        }
        Ok(())
    }

    fn check_reserved(&self) -> Result {
        for (field, list) in
            [("systemReserved", &self.system_reserved), ("kubeReserved", &self.kube_reserved)]
        {
            for (name, amount) in list {
                if !RESERVABLE.contains(&name.as_str()) {
                    let text = format!("{name}: cannot be reserved; there are {}", RESERVABLE.join(", "));
                    return bad(field, text);
                }
                if quantity::value(&Quantity(amount.clone())).is_none_or(|amount| amount < 0) {
                    return bad(field, format!("{name}: {amount:?} is no amount such as 100m or 1Gi"));
                }
            }
        }
        let mut seen = BTreeSet::new();
        for value in &self.enforce_node_allocatable {
            let field = "enforceNodeAllocatable";
            one_of(field, value, &ENFORCEABLE)?;
            if !seen.insert(value.as_str()) {
                return bad(field, format!("{value} is listed twice"));
            }
            if value.starts_with("system-reserved") && self.system_reserved_cgroup.is_empty() {
                return bad("systemReservedCgroup", format!("must be given for {value} in {field}"));
            }
            if value.starts_with("kube-reserved") && self.kube_reserved_cgroup.is_empty() {
                return bad("kubeReservedCgroup", format!("must be given for {value} in {field}"));
            }
            let compressible = format!("{value}-compressible");
            if self.enforce_node_allocatable.contains(&compressible) {
                return bad(field, format!("{value} and {compressible} cannot be listed together"));
            }
        }
        if seen.contains("none") && seen.len() > 1 {
            return bad("enforceNodeAllocatable", "nothing else can be listed beside none");
        }
        Ok(())
    }

    fn check_managers(&self) -> Result {
        one_of("cpuManagerPolicy", &self.cpu_manager_policy, &["none", "static"])?;
        one_of("memoryManagerPolicy", &self.memory_manager_policy, &["None", "Static"])?;
        let policies = ["none", "best-effort", "restricted", "single-numa-node"];
        one_of("topologyManagerPolicy", &self.topology_manager_policy, &policies)?;
        one_of("topologyManagerScope", &self.topology_manager_scope, &["container", "pod"])?;
        one_of("memoryReservationPolicy", &self.memory_reservation_policy, &["None", "TieredReservation"])?;
        let reserved = match CpuSet::parse(&self.reserved_system_cpus) {
            Ok(set) => set,
            Err(error) => return bad("reservedSystemCPUs", error.to_string()),
        };
        let groups = [&self.system_reserved_cgroup, &self.kube_reserved_cgroup];
        if !reserved.is_empty() && groups.iter().any(|group| !group.is_empty()) {
            let text = "cannot be used with systemReservedCgroup or kubeReservedCgroup";
            return bad("reservedSystemCPUs", text);
        }
        let options = &self.cpu_manager_policy_options;
        if self.cpu_manager_policy == "static" {
            let cpu = |list: &super::Strings| {
                list.get("cpu").and_then(|cpu| quantity::milli(&Quantity(cpu.clone()))).unwrap_or(0)
            };
            if reserved.is_empty() && cpu(&self.system_reserved) + cpu(&self.kube_reserved) == 0 {
                let text =
                    "static needs reserved CPU: give systemReserved, kubeReserved or reservedSystemCPUs";
                return bad("cpuManagerPolicy", text);
            }
            if let Err(error) = topology::cpus::Options::parse(options) {
                return bad("cpuManagerPolicyOptions", error.to_string());
            }
        } else if let Some(option) = options.keys().next() {
            return bad("cpuManagerPolicyOptions", format!("{option} needs cpuManagerPolicy static"));
        }
        if let Err(error) = topology::hints::Options::parse(&self.topology_manager_policy_options) {
            return bad("topologyManagerPolicyOptions", error.to_string());
        }
        self.check_memory()
    }

    fn check_memory(&self) -> Result {
        let field = "reservedMemory";
        if self.memory_manager_policy == "Static" && self.reserved_memory.is_empty() {
            return bad(field, "must be given for memoryManagerPolicy Static");
        }
        let mut seen = BTreeSet::new();
        for one in &self.reserved_memory {
            if !seen.insert(one.numa_node) {
                return bad(field, format!("NUMA node {} is listed twice", one.numa_node));
            }
            for (name, amount) in &one.limits {
                if name != "memory" && !name.starts_with("hugepages-") {
                    return bad(field, format!("limits: {name}: must be memory or huge pages"));
                }
                if quantity::value(amount).is_none_or(|amount| amount <= 0) {
                    return bad(field, format!("limits: {name}: {:?} must be positive", amount.0));
                }
            }
            if one.limits.is_empty() {
                return bad(field, "limits: must name what is reserved");
            }
        }
        one_of("memorySwap.swapBehavior", &self.memory_swap.swap_behavior, &["", "NoSwap", "LimitedSwap"])?;
        if !(self.memory_throttling_factor > 0.0 && self.memory_throttling_factor <= 1.0) {
            return bad("memoryThrottlingFactor", "must be greater than 0 and at most 1");
        }
        Ok(())
    }

    fn check_shutdown(&self) -> Result {
        let (all, critical) = (self.shutdown_grace_period, self.shutdown_grace_period_critical_pods);
        for (field, span) in [("shutdownGracePeriod", all), ("shutdownGracePeriodCriticalPods", critical)] {
            if !span.is_zero() && span.0.as_secs() == 0 {
                return bad(field, "must be 0s or at least 1s");
            }
        }
        if critical > all {
            let text = format!("{critical} must be at most shutdownGracePeriod, {all}");
            return bad("shutdownGracePeriodCriticalPods", text);
        }
        if !self.shutdown_grace_period_by_pod_priority.is_empty() && !all.is_zero() {
            let text = "cannot be given together with shutdownGracePeriod";
            return bad("shutdownGracePeriodByPodPriority", text);
        }
        Ok(())
    }

    fn check_pods(&self) -> Result {
        if self.node_lease_duration_seconds < 0 {
            return bad("nodeLeaseDurationSeconds", "must be greater than 0");
        }
        if let Some(most) = self.crash_loop_back_off.max_container_restart_period
            && !(1000..=300_000).contains(&most.0.as_millis())
        {
            return bad("crashLoopBackOff.maxContainerRestartPeriod", "must be between 1s and 5m0s");
        }
        if let Some(ids) = self.user_namespaces.ids_per_pod
            && (ids < 65_536 || !ids.is_multiple_of(65_536))
        {
            return bad("userNamespaces.idsPerPod", "must be a multiple of 65536");
        }
        let url = &self.static_pod_url;
        if !url.is_empty() && !url.starts_with("http://") && !url.starts_with("https://") {
            return bad("staticPodURL", "must begin with http:// or https://");
        }
        for taint in &self.register_with_taints {
            let good = matches!(taint.effect.as_str(), "NoSchedule" | "PreferNoSchedule" | "NoExecute");
            if taint.key.is_empty() || !good || taint.time_added.is_some() {
                return bad(
                    "registerWithTaints",
                    format!("invalid taint {:?}:{:?}", taint.key, taint.effect),
                );
            }
        }
        Ok(())
    }
}
