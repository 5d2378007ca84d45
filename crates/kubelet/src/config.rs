//! What a kubelet is told at its start.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::configuration::Configuration;
use crate::images::VerificationPolicy;
use crate::static_pods::url::ManifestUrl;

/// Configuration of one node's kubelet.
#[derive(Clone)]
pub struct KubeletConfig {
    /// The Node's name, also its `kubernetes.io/hostname`.
    pub node_name: String,
    /// Where pod directories (volumes, termination logs) lie.
    pub root_dir: PathBuf,
    /// Where container logs lie, one directory per pod.
    pub pod_logs_dir: PathBuf,
    /// CRI socket, `unix:///path` or a path.
    pub runtime_endpoint: String,
    /// Client that acts as `system:node:<name>`.
    pub client: kube::Client,
    /// The node's own addresses, the preferred family first.
    pub node_ips: Vec<IpAddr>,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// Where the kubelet's HTTP API listens (`[::]:10250` by default).
    pub bind: SocketAddr,
    /// The HTTP API's certificate chain and key, PEM.
    pub serving_cert: String,
    pub serving_key: String,
    /// Ask the cluster for a serving certificate, and renew it, instead of the one given.
    pub server_tls_bootstrap: bool,
    /// CA of client certificates, PEM.
    pub client_ca: String,
    pub max_pods: u32,
    /// Further labels and taints (`key=value:Effect`) of the Node at registration.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<String>,
    /// Where cgroups hang; `/` is the root of every hierarchy this process sees.
    pub cgroup_root: String,
    /// Whether to lay out QoS and pod cgroups at all (not possible without write access).
    pub manage_cgroups: bool,
    /// Node status is sent at least this often, even unchanged.
    pub status_interval: Duration,
    /// A folder of manifests of pods that run without the API's say; none unless given.
    pub static_pod_dir: Option<PathBuf>,
    /// Cancelled when the machine goes down: pods are ended as the settings say, and then the kubelet ends.
    pub going_down: CancellationToken,
    /// Where the machine is described, `/sys` as a rule.
    pub sysfs: PathBuf,
    /// What the configuration file says. Where another field says the same thing, that one holds.
    pub settings: Arc<Configuration>,
    /// A URL with manifests of static pods; none unless given.
    pub manifest_url: Option<ManifestUrl>,
    /// Which programs know passwords of registries: a file, or a folder of them; none unless given.
    pub credential_provider_config: Option<PathBuf>,
    /// Where those programs lie.
    pub credential_provider_bin_dir: PathBuf,
    /// Which images that are here a pod has to prove its right to.
    pub image_verification: VerificationPolicy,
    /// The longest wait before a failed container is started again.
    pub max_restart_period: Duration,
    /// Images that are pulled at once.
    pub max_parallel_image_pulls: usize,
    /// The command line, as `/flagz` shows it.
    pub flags: BTreeMap<String, String>,
}

impl KubeletConfig {
    /// A configuration with upstream's defaults where there are such.
    pub fn new(node_name: impl Into<String>, client: kube::Client) -> Self {
        KubeletConfig {
            node_name: node_name.into(),
            root_dir: PathBuf::from("/var/lib/carrack/kubelet"),
            pod_logs_dir: PathBuf::from("/var/log/pods"),
            runtime_endpoint: "unix:///run/carrack/runtime.sock".to_owned(),
            client,
            node_ips: Vec::new(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            bind: SocketAddr::from(([0u16; 8], 10250)),
            serving_cert: String::new(),
            serving_key: String::new(),
            server_tls_bootstrap: false,
            client_ca: String::new(),
            max_pods: 110,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            cgroup_root: "/".to_owned(),
            manage_cgroups: true,
            status_interval: Duration::from_secs(300),
            static_pod_dir: None,
            going_down: CancellationToken::new(),
            sysfs: PathBuf::from("/sys"),
            settings: Arc::default(),
            manifest_url: None,
            credential_provider_config: None,
            credential_provider_bin_dir: PathBuf::from(
                "/usr/libexec/kubernetes/kubelet-plugins/credential-provider/exec",
            ),
            image_verification: VerificationPolicy::default(),
            max_restart_period: Duration::from_secs(300),
            max_parallel_image_pulls: 5,
            flags: BTreeMap::new(),
        }
    }

    /// Takes over what a configuration file says.
    pub fn apply(&mut self, settings: Configuration) {
        self.max_pods = settings.max_pods;
        self.status_interval = settings.node_status_report_frequency.0;
        self.bind.set_port(settings.port);
        if let Some(address) = settings.address {
            self.bind.set_ip(address);
        }
        let text = |from: &str, to: &mut String| {
            if !from.is_empty() {
                from.clone_into(to);
            }
        };
        text(&settings.cluster_domain, &mut self.cluster_domain);
        text(&settings.cgroup_root, &mut self.cgroup_root);
        text(&settings.container_runtime_endpoint, &mut self.runtime_endpoint);
        if !settings.cluster_dns.is_empty() {
            self.cluster_dns.clone_from(&settings.cluster_dns);
        }
        if !settings.pod_logs_dir.is_empty() {
            self.pod_logs_dir = PathBuf::from(&settings.pod_logs_dir);
        }
        if !settings.static_pod_path.is_empty() {
            self.static_pod_dir = Some(PathBuf::from(&settings.static_pod_path));
        }
        if !settings.static_pod_url.is_empty() {
            let all = settings.static_pod_url_header.iter();
            let headers =
                all.flat_map(|(name, values)| values.iter().map(|value| (name.clone(), value.clone())));
            let url = settings.static_pod_url.clone();
            self.manifest_url = Some(ManifestUrl { url, headers: headers.collect() });
        }
        if let Some(longest) = settings.crash_loop_back_off.max_container_restart_period {
            self.max_restart_period = longest.0;
        }
        if settings.serialize_image_pulls {
            self.max_parallel_image_pulls = 1;
        } else if let Some(most) = settings.max_parallel_image_pulls {
            self.max_parallel_image_pulls = usize::try_from(most).unwrap_or(usize::MAX);
        }
        self.image_verification = match settings.image_pull_credentials_verification_policy.as_str() {
            "NeverVerify" => VerificationPolicy::NeverVerify,
            "AlwaysVerify" => VerificationPolicy::AlwaysVerify,
            "NeverVerifyAllowlistedImages" => VerificationPolicy::NeverVerifyAllowlistedImages(
                settings.preloaded_images_verification_allowlist.clone(),
            ),
            _ => VerificationPolicy::NeverVerifyPreloadedImages,
        };
        self.manage_cgroups = self.manage_cgroups && settings.cgroups_per_qos;
        self.settings = Arc::new(settings);
    }

    /// The configuration in force, as `/configz` shows it.
    pub(crate) fn in_force(&self) -> Configuration {
        let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
        Configuration {
            max_pods: self.max_pods,
            node_status_report_frequency: crate::configuration::Span(self.status_interval),
            port: self.bind.port(),
            address: Some(self.bind.ip()),
            cluster_domain: self.cluster_domain.clone(),
            cluster_dns: self.cluster_dns.clone(),
            cgroup_root: self.cgroup_root.clone(),
            container_runtime_endpoint: self.runtime_endpoint.clone(),
            pod_logs_dir: path(&self.pod_logs_dir),
            static_pod_path: self.static_pod_dir.as_deref().map(path).unwrap_or_default(),
            static_pod_url: self.manifest_url.as_ref().map(|from| from.url.clone()).unwrap_or_default(),
            max_parallel_image_pulls: u32::try_from(self.max_parallel_image_pulls).ok(),
            serialize_image_pulls: self.max_parallel_image_pulls == 1,
            eviction_hard: Some(crate::eviction::thresholds::hard(&self.settings)),
            cgroups_per_qos: self.manage_cgroups,
            ..(*self.settings).clone()
        }
    }
}
