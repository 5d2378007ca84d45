//! The server as a whole: started from a configuration and a store, served over TLS and in process.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use schema::FieldValidation;
use serde_json::Value;
use store::Store;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::audit::Auditor;
use crate::authn::Tokens;
use crate::flow::{self, Fairness};
use crate::http::body::Body;
use crate::http::listen::{self, Peer};
use crate::lifecycle::InFlight;
use crate::pipeline::{self, Caller};
use crate::registry::feed::{self, Codec};
use crate::registry::object::Object;
use crate::registry::{Registry, Served};
use crate::trace::Tracer;
use crate::verbs::write::{Checks, Part, Update};
use crate::verbs::{delete, write};
use crate::{Cluster, ClusterRef, Config, Gvk, Gvr, Hooks, Snapshot, Status, UserInfo};

/// Why a server did not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store cannot be read")]
    Store(#[from] store::Error),
    #[error("{what}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the server's certificates cannot be made or used: {0}")]
    Pki(String),
    #[error(transparent)]
    Access(#[from] crate::AccessError),
    #[error(transparent)]
    Encryption(#[from] crate::transform::EncryptionError),
    #[error(transparent)]
    Trace(#[from] crate::trace::TraceError),
    #[error(transparent)]
    Audit(#[from] crate::audit::AuditError),
    #[error("what every cluster holds could not be written: {0}")]
    Bootstrap(Status),
}

pub use crate::special::Connector;

/// What the pipeline works with.
pub struct Server {
    pub config: Config,
    pub registry: Arc<Registry>,
    pub hooks: Hooks,
    pub impersonation: crate::authn::Impersonation,
    /// How kubelets are reached.
    pub connector: Option<Arc<Connector>>,
    /// Publishes the keys of ServiceAccount tokens.
    pub issuer: Option<Arc<Tokens>>,
    pub in_flight: InFlight,
    pub audit: Option<Arc<Auditor>>,
    pub tracer: Option<Arc<Tracer>>,
    /// Absent: only the number of requests is limited.
    pub fairness: Option<Arc<Fairness>>,
    /// The server is to end: it is no longer ready, but still serves.
    pub stopping: CancellationToken,
    /// Open watches end.
    pub shutdown: CancellationToken,
    pub post_start: crate::serve::health::PostStart,
    pub allocators: crate::special::Allocators,
    pub discovery: crate::discovery::Documents,
    pub openapi: crate::openapi::Documents,
    pub aggregation: Arc<crate::aggregation::Aggregator>,
    pub definitions: crate::crds::Definitions,
}

impl Server {
    /// The address that discovery names.
    pub fn advertised(&self) -> String {
        let host = self.config.advertise.first().copied().unwrap_or(self.config.bind.ip());
        SocketAddr::new(host, self.config.bind.port()).to_string()
    }
}

impl Server {
    /// The cluster's state, as the hooks see it.
    pub fn cluster(self: &Arc<Self>) -> ClusterRef {
        let view = View::default();
        drop(view.registry.set(self.registry.clone()));
        drop(view.server.set(Arc::downgrade(self)));
        Arc::new(view)
    }
}

/// A running API server. Cheap to clone.
#[derive(Clone)]
pub struct ApiServer {
    server: Arc<Server>,
    listener: Arc<parking_lot::Mutex<Option<TcpListener>>>,
    address: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl ApiServer {
    /// Opens the caches and binds the port. Without `tls` connections are plain, which only tests ask for.
    pub async fn assemble(
        config: Config,
        store: Store,
        tls: Option<Arc<rustls::ServerConfig>>,
        connector: Option<Arc<Connector>>,
        hooks: impl FnOnce(ClusterRef) -> Result<(Hooks, Option<Arc<Tokens>>), Error>,
    ) -> Result<Self, Error> {
        crate::serve::zpages::started();
        let view = Arc::new(View::default());
        let (hooks, issuer) = hooks(view.clone())?;
        let codec = Codec { transform: hooks.transform.clone() };
        let (registry, revision, reload) =
            Registry::open(store.clone(), codec.clone(), &config.switched_on()).await?;
        let registry = Arc::new(registry);
        let definitions = crate::crds::Definitions::new(crate::webhook::Client::new(view.clone()));
        crate::crds::load(&registry, &definitions);
        let shutdown = CancellationToken::new();
        let caches = registry.caches.clone();
        tokio::spawn(feed::follow(store, caches, codec, revision, reload, shutdown.clone()));
        let listener = TcpListener::bind(config.bind).await;
        let listener = listener
            .map_err(|source| Error::Io { what: format!("cannot listen on {}", config.bind), source })?;
        let address = listener
            .local_addr()
            .map_err(|source| Error::Io { what: "the listener has no address".to_owned(), source })?;
        let audit = Auditor::new(&config.audit, &(view.clone() as ClusterRef))?;
        let tracer = config.tracing.as_deref().map(Tracer::load).transpose()?;
        let protection = &config.protection;
        let seats = protection.max_requests_inflight + protection.max_mutating_requests_inflight;
        let fairness = protection.priority_and_fairness.then(|| Arc::new(Fairness::new(seats)));
        if let Some(fairness) = &fairness {
            flow::read(fairness, &registry);
        }
        let server = Arc::new(Server {
            allocators: crate::special::Allocators::new(&config),
            discovery: crate::discovery::Documents::default(),
            openapi: crate::openapi::Documents::default(),
            aggregation: Arc::default(),
            definitions,
            config,
            registry: registry.clone(),
            hooks,
            impersonation: crate::authn::Impersonation::default(),
            connector,
            issuer,
            in_flight: InFlight::default(),
            audit,
            tracer,
            fairness,
            stopping: CancellationToken::new(),
            shutdown,
            post_start: crate::serve::health::PostStart::default(),
        });
        drop(view.registry.set(registry));
        drop(view.server.set(Arc::downgrade(&server)));
        tokio::spawn(crate::crds::run(Arc::downgrade(&server)));
        let listener = Arc::new(parking_lot::Mutex::new(Some(listener)));
        Ok(Self { server, listener, address, tls })
    }

    /// The address that is listened on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server's inner parts, for the crate's own use.
    pub(crate) fn inner(&self) -> &Arc<Server> {
        &self.server
    }

    /// The cluster's state, as the hooks see it.
    pub fn cluster(&self) -> ClusterRef {
        self.server.cluster()
    }

    /// A client of this server in the same process: the whole pipeline, without a socket. The groups that follow from the
    /// user's name are filled in.
    pub fn in_process(&self, user: UserInfo) -> InProcess {
        InProcess { server: self.server.clone(), user: Arc::new(implied(user)) }
    }

    /// Serves until the token is cancelled.
    pub async fn serve(&self, shutdown: CancellationToken) {
        let Some(listener) = self.listener.lock().take() else { return };
        let server = self.server.clone();
        let mut upkeep = tokio::task::JoinSet::new();
        upkeep.spawn(crate::upkeep::run(server.clone()));
        upkeep.spawn(crate::aggregation::run(server.clone(), self.cluster()));
        if let Some(fairness) = &server.fairness {
            upkeep.spawn(flow::run(fairness.clone(), server.registry.clone(), self.cluster()));
        }
        let handle = move |request: Request<hyper::body::Incoming>, peer: Peer| {
            pipeline::handle(server.clone(), request, Caller::Peer(peer))
        };
        let tls = self.tls.clone().map(TlsAcceptor::from);
        let closing = CancellationToken::new();
        let end = tokio::spawn(end(self.server.clone(), shutdown, closing.clone()));
        let limits = listen::Limits {
            connections: self.server.config.max_connections,
            headers: self.server.config.protection.header_timeout,
            drain: self.server.config.protection.request_timeout,
        };
        let busy = self.server.clone();
        let busy = move || busy.in_flight.open() > 0;
        listen::serve(listener, tls, limits, handle, closing, busy).await;
        end.abort();
        upkeep.shutdown().await;
        if let Some(audit) = &self.server.audit {
            audit.close().await;
        }
        if let Some(tracer) = &self.server.tracer {
            tracer.close().await;
        }
    }
}

/// The steps of a server's end: it says that it is not ready, goes on serving for a while so that clients can find another
/// one, ends its watches, and takes no more connections.
async fn end(server: Arc<Server>, asked: CancellationToken, closing: CancellationToken) {
    asked.cancelled().await;
    server.stopping.cancel();
    tokio::time::sleep(server.config.protection.shutdown_delay).await;
    server.shutdown.cancel();
    if server.config.protection.shutdown_send_retry_after {
        let deadline = tokio::time::Instant::now() + server.config.protection.request_timeout;
        while server.in_flight.open() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    closing.cancel();
}

/// Adds the groups that every user of a kind is in.
fn implied(mut user: UserInfo) -> UserInfo {
    let mut add = |group: String| {
        if !user.groups.contains(&group) {
            user.groups.push(group);
        }
    };
    if let Some(account) = user.name.strip_prefix("system:serviceaccount:") {
        add("system:serviceaccounts".to_owned());
        if let Some((namespace, _)) = account.split_once(':') {
            add(format!("system:serviceaccounts:{namespace}"));
        }
    }
    if user.name != "system:anonymous" {
        add("system:authenticated".to_owned());
    }
    user
}

/// A client without a socket.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<Server>,
    user: Arc<UserInfo>,
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: std::fmt::Display + Send,
{
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (server, user) = (self.server.clone(), self.user.clone());
        pipeline::handle(server, request, Caller::User(user)).map(Ok).boxed()
    }
}

/// The state as hooks see it; filled once the server stands.
#[derive(Default)]
struct View {
    registry: OnceLock<Arc<Registry>>,
    server: OnceLock<Weak<Server>>,
    parsed: parking_lot::Mutex<VecDeque<(Arc<Object>, Arc<Value>)>>,
}

/// Trees that are kept of the objects that hooks asked for last: namespaces and service accounts are asked for by every write.
const PARSED: usize = 64;
/// Larger objects are not kept, in bytes.
const PARSED_BYTES: usize = 8 << 10;

impl View {
    fn row(&self, group: &str, resource: &str) -> Option<Arc<Served>> {
        self.registry.get()?.any(group, resource)
    }

    fn write<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        object: Value,
        part: Part,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        async move {
            let server = self.server()?;
            let row = exact(&server, group, version, resource)?;
            let object = complete(&row, object)?;
            let name = crate::verbs::meta::text(&object, "name").to_owned();
            let key = row.key(namespace, &name);
            let how = Update {
                key: &key,
                name: &name,
                namespace,
                part,
                create: false,
                retry: false,
                managed: true,
            };
            let make = move |_: Option<Arc<Value>>| {
                let object = object.clone();
                async move { Ok(object) }.boxed()
            };
            let outcome = write::update(&server, &row, &how, &make, &Checks::OWN).await?;
            row.read(&outcome.object).await
        }
        .boxed()
    }

    fn server(&self) -> Result<Arc<Server>, Status> {
        let server = self.server.get().and_then(Weak::upgrade);
        server.ok_or_else(|| Status::unavailable("the server is not ready"))
    }
}

fn exact(server: &Server, group: &str, version: &str, resource: &str) -> Result<Arc<Served>, Status> {
    server.registry.find(group, version, resource).ok_or_else(Status::no_such_resource)
}

impl Cluster for View {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let row = self.row(group, resource)?;
        let object = row.cache.get(&row.key(namespace, name))?;
        if !row.is_stored() || object.size() > PARSED_BYTES {
            return row.read_now(&object).ok().map(Arc::new);
        }
        let mut parsed = self.parsed.lock();
        if let Some(at) = parsed.iter().position(|(known, _)| Arc::ptr_eq(known, &object)) {
            return Some(parsed[at].1.clone());
        }
        drop(parsed);
        let value = Arc::new(row.read_now(&object).ok()?);
        parsed = self.parsed.lock();
        // What has been replaced meanwhile is not asked for again and falls out at the end.
        parsed.push_front((object, value.clone()));
        parsed.truncate(PARSED);
        Some(value)
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Snapshot {
        let Some(row) = self.row(group, resource) else { return Snapshot::default() };
        let (items, revision) = row.cache.list(&row.prefix(namespace.unwrap_or_default()), None);
        let items = items.iter().filter_map(|o| row.read_now(o).ok().map(Arc::new)).collect();
        Snapshot { revision, items }
    }

    fn versions(&self, group: &str, resource: &str, namespace: &str) -> Vec<(Arc<str>, u64)> {
        let Some(row) = self.row(group, resource) else { return Vec::new() };
        let (items, _) = row.cache.list(&row.prefix(namespace), None);
        items.iter().map(|object| (Arc::clone(&object.key), object.revision)).collect()
    }

    fn changed(&self, group: &str, resource: &str) -> u64 {
        self.row(group, resource).map_or(0, |row| row.cache.changed())
    }

    fn fresh<'a>(&'a self, _group: &'a str, _resource: &'a str) -> BoxFuture<'a, ()> {
        async {
            if let Some(registry) = self.registry.get() {
                drop(registry.fresh().await);
            }
        }
        .boxed()
    }

    fn create<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        async move {
            let server = self.server()?;
            let row = exact(&server, group, version, resource)?;
            let object = complete(&row, object)?;
            let outcome = write::create(&server, &row, namespace, object, &Checks::OWN).await?;
            row.read(&outcome.object).await
        }
        .boxed()
    }

    fn update<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        self.write(group, version, resource, namespace, object, Part::Main)
    }

    fn update_status<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        self.write(group, version, resource, namespace, object, Part::Status)
    }

    fn delete<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            let server = self.server()?;
            let row = exact(&server, group, version, resource)?;
            let key = row.key(namespace, name);
            let options = delete::DeleteOptions::default();
            delete::delete_with(&server, &row, &key, name, &options, &Checks::OWN).await.map(drop)
        }
        .boxed()
    }

    fn serves(&self, group: &str, resource: &str) -> bool {
        self.row(group, resource).is_some()
    }

    fn equivalents(&self, resource: &Gvr, subresource: &str) -> Vec<(Gvr, Gvk)> {
        let Some(registry) = self.registry.get() else { return Vec::new() };
        let rows = registry.rows();
        let Some(own) = rows.find(&resource.group, &resource.version, &resource.resource) else {
            return Vec::new();
        };
        let others = rows.iter().filter(|row| row.storage == own.storage && !Arc::ptr_eq(row, own));
        let name = |row: &Served, kind: [&str; 3]| {
            let [group, version, kind] = kind.map(str::to_owned);
            let (own_group, own_version) = (row.group().to_owned(), row.resource.version.to_string());
            let resource = Gvr { group: own_group, version: own_version, resource: row.plural().to_owned() };
            (resource, Gvk { group, version, kind })
        };
        others
            .filter_map(|row| match subresource {
                "" => Some(name(row, [row.group(), &row.resource.version, &row.resource.kind])),
                sub => {
                    let sub = row.resource.subresource(sub)?;
                    Some(name(row, [&sub.group, &sub.version, &sub.kind]))
                }
            })
            .collect()
    }

    fn convert<'a>(
        &'a self,
        from: &'a Gvr,
        to: &'a Gvr,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>> {
        async move {
            let server = self.server()?;
            let row = |gvr: &Gvr| exact(&server, &gvr.group, &gvr.version, &gvr.resource);
            let (from, to) = (row(from)?, row(to)?);
            let wanted = to.resource.api_version();
            if from.resource.api_version() == wanted {
                return Ok(object);
            }
            let converted = from.other(&object, &wanted).await?;
            let unknown = || Status::internal(format!("no conversion to {wanted}"));
            converted.map(|(_, object)| object).ok_or_else(unknown)
        }
        .boxed()
    }

    fn complete(
        &self,
        resource: &Gvr,
        subresource: &str,
        kind: &Gvk,
        object: Value,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        let server = self.server()?;
        let row = exact(&server, &resource.group, &resource.version, &resource.resource)?;
        let wrong = |e: &schema::DecodeError| crate::verbs::decode_status(e, &kind.version, &kind.kind);
        if subresource.is_empty() || own_kind(&row, kind) {
            let mut value = row.resource.decode_value(&object, validation).map_err(|e| wrong(&e))?.value;
            value["apiVersion"] = row.resource.api_version().into();
            value["kind"] = (&*row.resource.kind).into();
            row.resource.complete(&mut value);
            return Ok(value);
        }
        let types = api::types();
        let id = part_type(kind)?;
        let mut value = schema::decode_value(types, id, &object, validation).map_err(|e| wrong(&e))?.value;
        for key in ["apiVersion", "kind"] {
            value[key] = object[key].clone();
        }
        schema::fill_defaults(types, id, &mut value);
        Ok(value)
    }

    fn overlay(&self, resource: &Gvr, kind: &Gvk, object: &Value, config: &Value) -> Result<Value, String> {
        let server = self.server().map_err(|e| e.to_string())?;
        let row = exact(&server, &resource.group, &resource.version, &resource.resource);
        let row = row.map_err(|e| e.to_string())?;
        if own_kind(&row, kind) {
            let resource = &row.resource;
            return schema::managed::overlay(&resource.types, resource.type_id, object, config);
        }
        let id = part_type(kind).map_err(|e| e.to_string())?;
        schema::managed::overlay(api::types(), id, object, config)
    }

    fn resource_of(&self, kind: &Gvk) -> Option<(Gvr, bool)> {
        let rows = self.registry.get()?.rows();
        let row = rows.iter().find(|row| {
            row.group() == kind.group
                && row.resource.version == kind.version
                && row.resource.kind == kind.kind
        })?;
        let (group, version) = (kind.group.clone(), kind.version.clone());
        Some((Gvr { group, version, resource: row.plural().to_owned() }, row.resource.namespaced))
    }
}

/// Whether a resource's requests speak the resource's own kind, not that of a subresource.
fn own_kind(row: &Served, kind: &Gvk) -> bool {
    kind.group == row.group() && *kind.kind == *row.resource.kind
}

/// The type of a subresource's own kind.
fn part_type(kind: &Gvk) -> Result<schema::TypeId, Status> {
    let id = api::types().by_gvk(&kind.group, &kind.version, &kind.kind);
    id.ok_or_else(|| Status::internal(format!("no {} in the type table", kind.kind)))
}

/// Decodes and defaults an object that a part of the server made.
pub(crate) fn complete(row: &Served, object: Value) -> Result<Value, Status> {
    let resource = &row.resource;
    let decoded = resource
        .decode_value(&object, schema::FieldValidation::Ignore)
        .map_err(|e| crate::verbs::decode_status(&e, &resource.version, &resource.kind))?;
    let mut value = decoded.value;
    value["apiVersion"] = resource.api_version().into();
    value["kind"] = (&*resource.kind).into();
    resource.complete(&mut value);
    Ok(value)
}
