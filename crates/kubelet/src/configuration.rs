//! The kubelet's configuration file: `KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`, with upstream's names and, but for
//! what docs/resources.md lists, its defaults. Fields that nobody knows are errors; fields that cannot be had here say so.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

mod checks;
pub(crate) mod duration;
mod foreign;

pub use duration::Span;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";
/// The policy of proofs for images that are here, unless the file names another one.
pub(crate) const PRELOADED: &str = "NeverVerifyPreloadedImages";
/// A file larger than this is none.
const MOST_BYTES: u64 = 1 << 20;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("{path}: cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}: larger than {MOST_BYTES} bytes")]
    Large(PathBuf),
    #[error("it is neither YAML nor JSON: {0}")]
    Syntax(String),
    #[error("it has to be an object with `apiVersion: {API_VERSION}` and `kind: {KIND}`")]
    Kind,
    #[error("{0}: unknown field")]
    Unknown(String),
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    /// The field and why it must be left as it is.
    #[error("{field}: {value} is not supported: {why}; leave the field out")]
    Unsupported { field: &'static str, value: String, why: &'static str },
}

type Strings = BTreeMap<String, String>;

/// The settings that this kubelet honours. Fields are upstream's; see its documentation for each one's meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Configuration {
    pub static_pod_path: String,
    pub pod_logs_dir: String,
    #[serde(rename = "staticPodURL")]
    pub static_pod_url: String,
    #[serde(rename = "staticPodURLHeader")]
    pub static_pod_url_header: BTreeMap<String, Vec<String>>,
    pub address: Option<IpAddr>,
    pub port: u16,
    pub tls_cert_file: String,
    pub tls_private_key_file: String,
    pub authentication: Authentication,
    pub authorization: Authorization,
    #[serde(rename = "registryPullQPS")]
    pub registry_pull_qps: u32,
    pub registry_burst: u32,
    pub cluster_domain: String,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<IpAddr>,
    pub node_status_update_frequency: Span,
    pub node_status_report_frequency: Span,
    pub node_lease_duration_seconds: i32,
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: Span,
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: Span,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: u32,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: u32,
    pub cgroup_root: String,
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    #[serde(rename = "singleProcessOOMKill")]
    pub single_process_oom_kill: Option<bool>,
    pub cpu_manager_policy: String,
    pub cpu_manager_policy_options: Strings,
    pub memory_manager_policy: String,
    pub topology_manager_policy: String,
    pub topology_manager_scope: String,
    pub topology_manager_policy_options: Strings,
    pub max_pods: u32,
    pub pods_per_core: u32,
    pub pod_pids_limit: i64,
    #[serde(rename = "resolvConf")]
    pub resolver_config: String,
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    pub node_status_max_images: i32,
    pub serialize_image_pulls: bool,
    pub max_parallel_image_pulls: Option<u32>,
    pub image_pull_credentials_verification_policy: String,
    pub preloaded_images_verification_allowlist: Vec<String>,
    pub http_check_frequency: Span,
    pub enable_system_log_handler: bool,
    pub enable_system_log_query: bool,
    pub enable_debugging_handlers: bool,
    pub tls_min_version: String,
    pub eviction_hard: Option<Strings>,
    pub eviction_soft: Strings,
    pub eviction_soft_grace_period: BTreeMap<String, Span>,
    pub eviction_pressure_transition_period: Span,
    pub eviction_max_pod_grace_period: i32,
    pub eviction_minimum_reclaim: Strings,
    pub merge_default_eviction_settings: bool,
    pub feature_gates: BTreeMap<String, bool>,
    pub fail_swap_on: bool,
    pub memory_swap: MemorySwap,
    pub container_log_max_size: Quantity,
    pub container_log_max_files: u32,
    pub container_log_monitor_interval: Span,
    pub system_reserved: Strings,
    pub kube_reserved: Strings,
    #[serde(rename = "reservedSystemCPUs")]
    pub reserved_system_cpus: String,
    pub system_reserved_cgroup: String,
    pub kube_reserved_cgroup: String,
    pub enforce_node_allocatable: Vec<String>,
    pub allowed_unsafe_sysctls: Vec<String>,
    #[serde(rename = "providerID")]
    pub provider_id: String,
    pub shutdown_grace_period: Span,
    pub shutdown_grace_period_critical_pods: Span,
    pub shutdown_grace_period_by_pod_priority: Vec<PriorityGrace>,
    pub crash_loop_back_off: CrashLoopBackOff,
    pub reserved_memory: Vec<ReservedMemory>,
    pub seccomp_default: bool,
    pub memory_throttling_factor: f64,
    pub memory_reservation_policy: String,
    pub register_with_taints: Vec<Taint>,
    pub register_node: bool,
    pub local_storage_capacity_isolation: bool,
    pub container_runtime_endpoint: String,
    pub user_namespaces: UserNamespaces,
}

/// Who is let in at the kubelet's own API.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Authentication {
    pub x509: X509,
    pub webhook: WebhookAuthentication,
    pub anonymous: Switch,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: String,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookAuthentication {
    pub enabled: Option<bool>,
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: Span,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switch {
    pub enabled: Option<bool>,
}

/// Who may do what at the kubelet's own API.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authorization {
    pub mode: String,
    pub webhook: WebhookAuthorization,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookAuthorization {
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: Span,
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: Span,
}

/// `NoSwap` (also the empty text) or `LimitedSwap`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MemorySwap {
    pub swap_behavior: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PriorityGrace {
    pub priority: i32,
    pub shutdown_grace_period_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CrashLoopBackOff {
    pub max_container_restart_period: Option<Span>,
}

/// Memory of one NUMA node that is kept from pods.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ReservedMemory {
    pub numa_node: u32,
    pub limits: BTreeMap<String, Quantity>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserNamespaces {
    #[serde(rename = "idsPerPod")]
    pub ids_per_pod: Option<u32>,
}

impl Default for Configuration {
    fn default() -> Self {
        Configuration {
            static_pod_path: String::new(),
            pod_logs_dir: String::new(),
            static_pod_url: String::new(),
            static_pod_url_header: BTreeMap::new(),
            address: None,
            port: 10250,
            tls_cert_file: String::new(),
            tls_private_key_file: String::new(),
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            registry_pull_qps: 5,
            registry_burst: 10,
            cluster_domain: String::new(),
            cluster_dns: Vec::new(),
            node_status_update_frequency: Span::seconds(10),
            node_status_report_frequency: Span::seconds(300),
            node_lease_duration_seconds: 40,
            image_minimum_gc_age: Span::seconds(120),
            image_maximum_gc_age: Span::default(),
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            cgroup_root: String::new(),
            cgroups_per_qos: true,
            single_process_oom_kill: None,
            cpu_manager_policy: "none".to_owned(),
            cpu_manager_policy_options: Strings::new(),
            memory_manager_policy: "None".to_owned(),
            topology_manager_policy: "none".to_owned(),
            topology_manager_scope: "container".to_owned(),
            topology_manager_policy_options: Strings::new(),
            max_pods: 110,
            pods_per_core: 0,
            pod_pids_limit: -1,
            resolver_config: "/etc/resolv.conf".to_owned(),
            cpu_cfs_quota: true,
            node_status_max_images: 50,
            serialize_image_pulls: false,
            max_parallel_image_pulls: None,
            image_pull_credentials_verification_policy: PRELOADED.to_owned(),
            preloaded_images_verification_allowlist: Vec::new(),
            http_check_frequency: Span::seconds(20),
            enable_system_log_handler: true,
            enable_system_log_query: true,
            enable_debugging_handlers: true,
            tls_min_version: String::new(),
            eviction_hard: None,
            eviction_soft: Strings::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_pressure_transition_period: Span::seconds(300),
            eviction_max_pod_grace_period: 0,
            eviction_minimum_reclaim: Strings::new(),
            merge_default_eviction_settings: false,
            feature_gates: BTreeMap::new(),
            fail_swap_on: false,
            memory_swap: MemorySwap::default(),
            container_log_max_size: Quantity("10Mi".to_owned()),
            container_log_max_files: 5,
            container_log_monitor_interval: Span::seconds(10),
            system_reserved: Strings::new(),
            kube_reserved: Strings::new(),
            reserved_system_cpus: String::new(),
            system_reserved_cgroup: String::new(),
            kube_reserved_cgroup: String::new(),
            enforce_node_allocatable: vec!["pods".to_owned()],
            allowed_unsafe_sysctls: Vec::new(),
            provider_id: String::new(),
            shutdown_grace_period: Span::default(),
            shutdown_grace_period_critical_pods: Span::default(),
            shutdown_grace_period_by_pod_priority: Vec::new(),
            crash_loop_back_off: CrashLoopBackOff::default(),
            reserved_memory: Vec::new(),
            seccomp_default: true,
            memory_throttling_factor: 0.9,
            memory_reservation_policy: "None".to_owned(),
            register_with_taints: Vec::new(),
            register_node: true,
            local_storage_capacity_isolation: true,
            container_runtime_endpoint: String::new(),
            user_namespaces: UserNamespaces::default(),
        }
    }
}

/// What a file says, and what in it has no effect here.
#[derive(Debug)]
pub struct Loaded {
    pub configuration: Configuration,
    pub warnings: Vec<String>,
}

/// Reads a configuration file.
pub fn load(path: &Path) -> Result<Loaded, ConfigurationError> {
    let failed = |source| ConfigurationError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > MOST_BYTES {
        return Err(ConfigurationError::Large(path.to_owned()));
    }
    parse(&std::fs::read_to_string(path).map_err(failed)?)
}

/// Reads a configuration in YAML or JSON.
pub fn parse(text: &str) -> Result<Loaded, ConfigurationError> {
    let value: Value =
        serde_saphyr::from_str(text).map_err(|error| ConfigurationError::Syntax(error.to_string()))?;
    let Value::Object(mut fields) = value else { return Err(ConfigurationError::Kind) };
    let is = |fields: &mut Map<String, Value>, key, wanted: &str| fields.remove(key) == Some(json!(wanted));
    if !is(&mut fields, "apiVersion", API_VERSION) || !is(&mut fields, "kind", KIND) {
        return Err(ConfigurationError::Kind);
    }
    let mut warnings = Vec::new();
    // What is null is left out, as upstream's decoder has it.
    fields.retain(|_, value| !value.is_null());
    for (field, why) in foreign::WITHOUT_EFFECT {
        if fields.remove(*field).is_some() {
            warnings.push(format!("{field} has no effect: {why}"));
        }
    }
    for (field, accepted, why) in foreign::refused() {
        if let Some(value) = fields.remove(field).filter(|value| !accepted.contains(value)) {
            return Err(ConfigurationError::Unsupported { field, value: value.to_string(), why });
        }
    }
    let known = serde_json::to_value(Configuration::default()).unwrap_or_default();
    if let Some(field) = fields.keys().find(|field| known.get(field.as_str()).is_none()) {
        return Err(ConfigurationError::Unknown(field.clone()));
    }
    let both = fields.contains_key("nodeStatusUpdateFrequency");
    let mut configuration: Configuration = decode(fields)?;
    configuration.complete(both);
    configuration.check()?;
    for gate in configuration.feature_gates.keys().filter(|gate| !checks::GATES.contains(&gate.as_str())) {
        warnings.push(format!("featureGates: {gate} has no effect"));
    }
    Ok(Loaded { configuration, warnings })
}

/// Decodes the fields; an error names the field.
fn decode(fields: Map<String, Value>) -> Result<Configuration, ConfigurationError> {
    let first = match serde_json::from_value(Value::Object(fields.clone())) {
        Ok(configuration) => return Ok(configuration),
        Err(error) => error,
    };
    for (field, value) in fields {
        let one = Map::from_iter([(field.clone(), value)]);
        if let Err(error) = serde_json::from_value::<Configuration>(Value::Object(one)) {
            return Err(ConfigurationError::Invalid { field, message: error.to_string() });
        }
    }
    Err(ConfigurationError::Syntax(first.to_string()))
}

impl Configuration {
    /// Fills in what stands for a default: empty durations, numbers and texts.
    fn complete(&mut self, update_given: bool) {
        let standard = Configuration::default();
        if self.node_status_report_frequency == standard.node_status_report_frequency
            && update_given
            && !self.node_status_update_frequency.is_zero()
        {
            self.node_status_report_frequency = self.node_status_update_frequency;
        }
        for (own, default) in [
            (&mut self.node_status_update_frequency, standard.node_status_update_frequency),
            (&mut self.node_status_report_frequency, standard.node_status_report_frequency),
            (&mut self.image_minimum_gc_age, standard.image_minimum_gc_age),
            (&mut self.eviction_pressure_transition_period, standard.eviction_pressure_transition_period),
            (&mut self.container_log_monitor_interval, standard.container_log_monitor_interval),
            (&mut self.http_check_frequency, standard.http_check_frequency),
        ] {
            if own.is_zero() {
                *own = default;
            }
        }
        for (own, default) in [
            (&mut self.cpu_manager_policy, standard.cpu_manager_policy),
            (&mut self.memory_manager_policy, standard.memory_manager_policy),
            (&mut self.topology_manager_policy, standard.topology_manager_policy),
            (&mut self.topology_manager_scope, standard.topology_manager_scope),
            (&mut self.memory_reservation_policy, standard.memory_reservation_policy),
            (&mut self.container_log_max_size.0, standard.container_log_max_size.0),
            (
                &mut self.image_pull_credentials_verification_policy,
                standard.image_pull_credentials_verification_policy,
            ),
        ] {
            if own.is_empty() {
                *own = default;
            }
        }
        if self.max_pods == 0 {
            self.max_pods = standard.max_pods;
        }
        if self.port == 0 {
            self.port = standard.port;
        }
        if self.node_lease_duration_seconds == 0 {
            self.node_lease_duration_seconds = standard.node_lease_duration_seconds;
        }
        if self.registry_burst == 0 {
            self.registry_burst = standard.registry_burst;
        }
        if self.pod_pids_limit < 0 {
            self.pod_pids_limit = -1;
        }
    }

    /// Whether upstream's feature gate of that name is on; `standard` unless the file says otherwise.
    pub(crate) fn gate(&self, name: &str, standard: bool) -> bool {
        self.feature_gates.get(name).copied().unwrap_or(standard)
    }

    /// The configuration as `/configz` shows it.
    pub(crate) fn shown(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
            fields.insert("kind".to_owned(), json!(KIND));
            fields.insert("apiVersion".to_owned(), json!(API_VERSION));
        }
        value
    }
}

#[cfg(test)]
mod tests;
