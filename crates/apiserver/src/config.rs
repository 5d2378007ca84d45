//! What an API server is started with.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::Resource;
use ipnet::IpNet;

use crate::audit::AuditConfig;
use crate::features::{Features, RuntimeConfig};

/// How a server is set up. `Config::new` fills in what a single machine needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Certificates, keys and `admin.kubeconfig` live here.
    pub data_dir: PathBuf,
    /// The address to listen on; port 0 takes a free one.
    pub bind: SocketAddr,
    /// The addresses under which clients reach the server: in its certificate and in the `kubernetes` Service's endpoints.
    pub advertise: Vec<IpAddr>,
    /// More names for the serving certificate.
    pub names: Vec<String>,
    /// Service ranges; the first one is the primary family.
    pub service_cidrs: Vec<IpNet>,
    /// Ports that Services may take on every node.
    pub node_port_range: RangeInclusive<u16>,
    pub cluster_domain: String,
    /// Answers requests without credentials as `system:anonymous` (the authorizer decides what that may see).
    pub anonymous: bool,
    /// Authentication and authorization beyond the cluster's own certificates, tokens, Node and RBAC.
    pub access: crate::AccessOptions,
    /// Open connections at once; more wait in the listen queue.
    pub max_connections: usize,
    /// How long superseded revisions stay readable (and between two compactions); zero never compacts.
    pub compaction_interval: Duration,
    /// How long Events are kept, in seconds.
    pub event_ttl: u64,
    /// Whose certificates kubelets may show beside the cluster's own authority's, in PEM.
    pub kubelet_authorities: Option<PathBuf>,
    /// Kubelets are not authenticated: for those that sign their certificates themselves.
    pub kubelet_insecure: bool,
    pub protection: Protection,
    pub audit: AuditConfig,
    /// A file that says how resources are sealed in the store, and whether its changes are followed; without one Secrets
    /// are sealed with the server's own key.
    pub encryption: Option<(PathBuf, bool)>,
    /// A file that says which requests are traced and where their spans go.
    pub tracing: Option<PathBuf>,
    /// Feature gates that differ from their defaults.
    pub features: Features,
    /// Versions of the API that are served though they are off by default.
    pub runtime: RuntimeConfig,
    /// What the server was started with, by flag, for `/flagz`.
    pub flags: BTreeMap<String, String>,
}

/// What keeps the server well whatever its clients do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// How long a request that is not long-running may take; clients may ask for less.
    pub request_timeout: Duration,
    /// A watch without a time limit of its own ends after once to twice this time.
    pub min_request_timeout: Duration,
    /// Reads served at once; with priority and fairness this and the next are the seats of all levels together.
    pub max_requests_inflight: usize,
    /// Writes served at once.
    pub max_mutating_requests_inflight: usize,
    /// Whether priority levels and fair queues decide who is served (KEP-1040); else only the two numbers do.
    pub priority_and_fairness: bool,
    /// How long a client may take for its TLS handshake and for the header of a request.
    pub header_timeout: Duration,
    /// How long a server that is to stop says at `/readyz` that it is not ready and goes on serving.
    pub shutdown_delay: Duration,
    /// Whether requests that come after that are told to go elsewhere (429) until open ones have ended.
    pub shutdown_send_retry_after: bool,
}

impl Default for Protection {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            min_request_timeout: Duration::from_secs(1800),
            max_requests_inflight: 400,
            max_mutating_requests_inflight: 200,
            priority_and_fairness: true,
            header_timeout: Duration::from_secs(32),
            shutdown_delay: Duration::ZERO,
            shutdown_send_retry_after: false,
        }
    }
}

impl Config {
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let cidr = |text: &str| text.parse().expect("a constant range");
        Self {
            data_dir: data_dir.into(),
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 6443)),
            advertise: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            names: Vec::new(),
            service_cidrs: vec![cidr("10.96.0.0/16"), cidr("fd00:10:96::/112")],
            node_port_range: 30000..=32767,
            cluster_domain: "cluster.local".to_owned(),
            anonymous: true,
            access: crate::AccessOptions::default(),
            max_connections: 20_000,
            compaction_interval: Duration::from_secs(300),
            event_ttl: 3600,
            kubelet_authorities: None,
            kubelet_insecure: false,
            protection: Protection::default(),
            audit: AuditConfig::default(),
            encryption: None,
            tracing: None,
            flags: BTreeMap::new(),
            features: Features::default(),
            runtime: RuntimeConfig::default(),
        }
    }
    /// The resources that are off by default and on here.
    pub(crate) fn switched_on(&self) -> Vec<Arc<Resource>> {
        let rows = self.features.gated().flat_map(|gated| &gated.resources);
        rows.filter(|row| self.runtime.serves(row)).cloned().collect()
    }
}
