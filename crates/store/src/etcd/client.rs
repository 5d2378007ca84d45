//! Calls to an etcd cluster: one connection for each member, and failover between them. What may be repeated without harm
//! is repeated at the next member; a write whose fate is unknown is not.

use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::Stream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::Options;
use super::api::{
    CompactionRequest, CompactionResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
    TxnRequest, TxnResponse, WatchRequest, WatchResponse,
};
use crate::{Error, Result};

/// One attempt at one member.
const ATTEMPT: Duration = Duration::from_secs(4);
/// All attempts of one call together.
const PATIENCE: Duration = Duration::from_secs(12);
const CONNECT: Duration = Duration::from_secs(2);
/// etcd refuses clients that ping more often than every five seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const BACKOFF: Duration = Duration::from_millis(50);

/// Connections to the members of one cluster.
pub(super) struct Client {
    members: Vec<Channel>,
    /// The member that answered last.
    current: AtomicUsize,
}

impl Client {
    /// Prepares connections; they are made when they are used.
    pub fn new(options: &Options) -> Result<Client> {
        let invalid = |source: Box<dyn std::error::Error + Send + Sync>| Error::Engine {
            context: "reading the addresses of etcd",
            source,
        };
        if options.servers.is_empty() {
            return Err(invalid("no etcd server is named".into()));
        }
        let mut members = Vec::with_capacity(options.servers.len());
        for server in &options.servers {
            let mut endpoint = Endpoint::from_shared(server.clone())
                .map_err(|error| invalid(format!("{server}: {error}").into()))?
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(8 << 20);
            match endpoint.uri().scheme_str() {
                Some("https") => {
                    endpoint = endpoint
                        .tls_config(tls(options))
                        .map_err(|error| invalid(format!("{server}: {}", chain(&error)).into()))?;
                }
                Some("http") => {}
                _ => {
                    let why = format!("{server}: write http://HOST:PORT or https://HOST:PORT");
                    return Err(invalid(why.into()));
                }
            }
            members.push(endpoint.connect_lazy());
        }
        Ok(Client { members, current: AtomicUsize::new(0) })
    }

    /// The member that answered last.
    pub fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed) % self.members.len()
    }

    /// Turns to the member after `failed`, unless somebody has already turned away from it.
    pub fn turn_from(&self, failed: usize) {
        let next = (failed + 1) % self.members.len();
        let _ = self.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        self.call("/etcdserverpb.KV/Range", request, true, "reading from etcd").await
    }

    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse> {
        self.call("/etcdserverpb.KV/Txn", request, false, "writing to etcd").await
    }

    pub async fn compact(&self, request: CompactionRequest) -> Result<()> {
        let done: Result<CompactionResponse> =
            self.call("/etcdserverpb.KV/Compact", request, true, "compacting etcd").await;
        match done {
            // Another server of the cluster was there first.
            Err(Error::Compacted { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The version of etcd that a member runs.
    pub async fn version(&self, member: usize) -> Result<String, Status> {
        let path = "/etcdserverpb.Maintenance/Status";
        let status: StatusResponse = self.once(member, path, StatusRequest {}).await?;
        Ok(status.version)
    }

    /// Opens a watch stream at a member.
    pub async fn watch(
        &self,
        member: usize,
        requests: impl Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let mut request = Request::new(requests);
        // A member that has lost its leader ends the stream instead of staying silent.
        request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
        let mut grpc = self.grpc(member);
        let open = async {
            ready(&mut grpc).await?;
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            grpc.streaming(request, path, ProstCodec::<WatchRequest, WatchResponse>::default()).await
        };
        match tokio::time::timeout(ATTEMPT, open).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    fn grpc(&self, member: usize) -> Grpc<Channel> {
        Grpc::new(self.members[member].clone()).max_decoding_message_size(usize::MAX)
    }

    async fn once<Q, A>(&self, member: usize, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Default + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc(member);
        let call = async {
            ready(&mut grpc).await?;
            let path = PathAndQuery::from_static(path);
            grpc.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await
        };
        match tokio::time::timeout(ATTEMPT, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    /// Calls until a member answers. What may not be `repeated` is tried again only where it certainly had no effect.
    async fn call<Q, A>(
        &self,
        path: &'static str,
        request: Q,
        repeated: bool,
        context: &'static str,
    ) -> Result<A>
    where
        Q: prost::Message + Default + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let member = self.current();
            let status = match self.once(member, path, request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            let fault = fault(&status);
            if fault == Fault::Answer {
                return Err(refused(&status, context));
            }
            self.turn_from(member);
            let again = repeated || fault == Fault::NotSent;
            if !again || tokio::time::Instant::now() >= deadline {
                return Err(Error::Unavailable { context, source: Box::new(status) });
            }
            tracing::debug!(%status, "etcd did not answer; asking another member");
            tokio::time::sleep(BACKOFF).await;
        }
    }
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))
}

fn tls(options: &Options) -> ClientTlsConfig {
    let mut config = ClientTlsConfig::new();
    if let Some(ca) = &options.ca {
        config = config.ca_certificate(Certificate::from_pem(ca));
    }
    if let Some((certificate, key)) = &options.identity {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    config
}

/// What a failed call says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// The cluster's answer: another member would say the same.
    Answer,
    /// The request reached nobody, or was turned away before it was proposed.
    NotSent,
    /// It may have had its effect.
    Unknown,
}

fn fault(status: &Status) -> Fault {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return Fault::NotSent;
        }
        cause = error.source();
    }
    match (status.code(), status.message()) {
        (_, "etcdserver: no leader" | "etcdserver: not capable" | "etcdserver: server stopped") => {
            Fault::NotSent
        }
        (
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal,
            _,
        ) => Fault::Unknown,
        _ => Fault::Answer,
    }
}

/// The cluster's refusal as an error of the store.
pub(super) fn refused(status: &Status, context: &'static str) -> Error {
    let text = status.message();
    // The revisions are filled in by the caller, who knows what was asked.
    if text.contains("has been compacted") {
        return Error::Compacted { requested: 0, compacted: 0 };
    }
    if text.contains("is a future revision") {
        return Error::FutureRevision { requested: 0, current: 0 };
    }
    Error::Engine { context, source: Box::new(status.clone()) }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
