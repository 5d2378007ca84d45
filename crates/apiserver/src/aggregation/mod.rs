//! The aggregation layer: APIServices that name a Service send their group and version to an extension server, which trusts
//! this server to say who asks (upstream: `kube-aggregator`). Local APIServices are kept for all that is served here.

mod availability;
mod convert;
mod documents;
mod priority;
mod proxy;
mod registration;
mod run;
mod trust;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use base64::Engine as _;
use parking_lot::{Mutex, RwLock};
use rustls::ClientConfig;
use serde_json::Value;

use crate::read::Read;
use crate::request::RequestInfo;
use crate::tls::{self, Trust};
use crate::{ClusterRef, dial, relay};

pub use documents::{Documents, merge_v2};
pub use priority::{CUSTOM, of as built_in_priorities};
pub use registration::ensure;
pub use run::run;
pub(crate) use trust::{TrustMap, ensure as ensure_trust};

/// The group of APIServices.
pub const GROUP: &str = "apiregistration.k8s.io";
pub const RESOURCE: &str = "apiservices";
/// HTTP/2 connections that are kept at most; beyond that all are let go.
const CONNECTIONS: usize = 256;

/// An extension server for one group and version.
pub struct Remote {
    /// `v1beta1.metrics.k8s.io`.
    pub name: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// Whether the last check of the server passed.
    pub available: bool,
    insecure: bool,
    bundle: Vec<u8>,
}

/// What the APIServices say, as of one revision.
#[derive(Default)]
pub struct Table {
    /// Those that name a Service, by group and version.
    remotes: BTreeMap<(String, String), Arc<Remote>>,
    /// Priorities of group and version of every APIService.
    priorities: HashMap<(String, String), (i64, i64)>,
}

impl Table {
    /// Reads all APIServices.
    fn read(cluster: &ClusterRef) -> Self {
        let mut table = Self::default();
        for object in cluster.list(GROUP, RESOURCE, None).items {
            let spec = object.at("spec");
            let key = (spec.text("group").to_owned(), spec.text("version").to_owned());
            let number = |field: &str| spec.at(field).as_i64().unwrap_or(0);
            table.priorities.insert(key.clone(), (number("groupPriorityMinimum"), number("versionPriority")));
            if spec.has("service") {
                table.remotes.insert(key, Arc::new(Remote::read(&object)));
            }
        }
        table
    }

    /// The extension servers in the order of their names.
    pub fn remotes(&self) -> impl Iterator<Item = &Arc<Remote>> {
        self.remotes.values()
    }

    /// The one for a group and version.
    pub fn remote(&self, group: &str, version: &str) -> Option<&Arc<Remote>> {
        if self.remotes.is_empty() {
            return None;
        }
        self.remotes.get(&(group.to_owned(), version.to_owned()))
    }

    /// The priorities that an APIService gives to its group and version.
    pub fn priorities(&self, group: &str, version: &str) -> Option<(i64, i64)> {
        self.priorities.get(&(group.to_owned(), version.to_owned())).copied()
    }
}

impl Remote {
    fn read(object: &Value) -> Self {
        let (spec, service) = (object.at("spec"), object.at("spec.service"));
        let bundle = base64::engine::general_purpose::STANDARD.decode(spec.text("caBundle"));
        Self {
            name: object.name().to_owned(),
            group: spec.text("group").to_owned(),
            version: spec.text("version").to_owned(),
            namespace: service.text("namespace").to_owned(),
            service: service.text("name").to_owned(),
            port: service.at("port").as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            available: availability::condition(object).is_some_and(|c| c.text("status") == "True"),
            insecure: spec.at("insecureSkipTLSVerify").as_bool().unwrap_or(false),
            bundle: bundle.unwrap_or_default(),
        }
    }

    /// The name that the server's certificate must carry.
    fn server_name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// What discovery and health checks ask for.
    fn path(&self) -> String {
        match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }

    /// Whether two of them are reached in the same way.
    fn same_service(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.service == other.service && self.port == other.port
    }
}

type Identity = (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>);

/// The state of the aggregation layer.
#[derive(Default)]
pub struct Aggregator {
    table: ArcSwap<Table>,
    /// Counts what changes discovery: tables and fetched documents.
    generation: AtomicU64,
    /// Discovery and OpenAPI of the extension servers.
    pub documents: Documents,
    /// The client certificate by which extension servers know this server.
    identity: Mutex<Option<Identity>>,
    /// TLS settings by what they follow from.
    configs: Mutex<HashMap<(bool, bool, Vec<u8>), Arc<ClientConfig>>>,
    connections: RwLock<HashMap<(String, String, u16), relay::Shared>>,
    /// The host and port under which the server reaches itself.
    pub own: Mutex<(String, u16)>,
    /// What extension servers are told to trust.
    pub(crate) trust: Mutex<TrustMap>,
}

impl Aggregator {
    /// Sets the front proxy's certificate and key.
    pub fn identify(&self, identity: Identity) {
        *self.identity.lock() = Some(identity);
        self.configs.lock().clear();
    }

    /// What the APIServices say.
    pub fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// Reads the APIServices anew.
    pub fn refresh(&self, cluster: &ClusterRef) {
        self.table.store(Arc::new(Table::read(cluster)));
        self.changed();
        // A changed bundle must not be served by a connection that was made under the old one.
        self.connections.write().clear();
    }

    /// Counts a change of what discovery shows.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Grows with every change of what discovery shows.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The extension server that a request is for.
    pub fn route(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        let table = self.table.load();
        if table.remotes.is_empty() {
            return None;
        }
        if info.is_resource {
            return table.remote(&info.group, &info.version).cloned();
        }
        let mut parts = info.path.trim_matches('/').split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("apis"), Some(group), Some(version), None) => table.remote(group, version).cloned(),
            (Some("api"), Some(version), None, None) => table.remote("", version).cloned(),
            _ => None,
        }
    }

    fn config(&self, remote: &Remote, http2: bool) -> Result<Arc<ClientConfig>, dial::DialError> {
        let key = (remote.insecure, http2, remote.bundle.clone());
        if let Some(config) = self.configs.lock().get(&key) {
            return Ok(config.clone());
        }
        let trust = match (remote.insecure, remote.bundle.as_slice()) {
            (true, _) => Trust::Nobody,
            (false, []) => Trust::System,
            (false, bundle) => Trust::Bundle(bundle),
        };
        let identity = self.identity.lock().as_ref().map(|(chain, key)| (chain.clone(), key.clone_key()));
        let alpn: &[&[u8]] = if http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        let config = tls::client(trust, identity, alpn)?;
        let mut configs = self.configs.lock();
        if configs.len() >= CONNECTIONS {
            configs.clear();
        }
        configs.insert(key, config.clone());
        Ok(config)
    }

    /// Host and port of one endpoint of the Service.
    fn resolve(&self, cluster: &ClusterRef, remote: &Remote) -> Result<(String, u16), String> {
        if (remote.namespace.as_str(), remote.service.as_str(), remote.port) == ("default", "kubernetes", 443)
        {
            return Ok(self.own.lock().clone());
        }
        dial::resolve(cluster, &remote.namespace, &remote.service, remote.port)
    }
}
