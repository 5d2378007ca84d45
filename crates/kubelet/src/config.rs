//! What a kubelet is told at its start.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

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
    /// What is kept from pods, by resource name (`cpu: 100m`).
    pub reserved: BTreeMap<String, String>,
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
            manifest_url: None,
            credential_provider_config: None,
            credential_provider_bin_dir: PathBuf::from(
                "/usr/libexec/kubernetes/kubelet-plugins/credential-provider/exec",
            ),
            image_verification: VerificationPolicy::default(),
            max_restart_period: Duration::from_secs(300),
            max_parallel_image_pulls: 5,
            reserved: BTreeMap::new(),
        }
    }
}
