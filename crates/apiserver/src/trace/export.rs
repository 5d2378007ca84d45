//! Sends spans in batches over gRPC. What does not fit into the buffer, or is not taken by the collector, is lost: tracing
//! must never hold a request up.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use super::otlp::{
    ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span,
};

const BUFFER: usize = 2048;
const BATCH: usize = 512;
const WAIT: Duration = Duration::from_secs(5);
const TIME_LIMIT: Duration = Duration::from_secs(10);
const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The queue and the task that empties it.
pub struct Exporter {
    send: mpsc::Sender<Span>,
    stop: tokio_util::sync::CancellationToken,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Exporter {
    /// `endpoint` is `HOST:PORT` or a URL. Must be called in a runtime.
    pub fn start(endpoint: &str) -> Result<Self, String> {
        let url = match endpoint.split_once("://") {
            None => format!("http://{endpoint}"),
            Some(("dns", rest)) => format!("http://{}", rest.trim_start_matches('/')),
            Some(("http" | "unix", _)) => endpoint.to_owned(),
            Some((scheme, _)) => return Err(format!("{scheme:?} is not supported; use HOST:PORT")),
        };
        let channel = Endpoint::from_shared(url).map_err(|error| error.to_string())?;
        let channel = channel.connect_timeout(TIME_LIMIT).connect_lazy();
        let (send, receive) = mpsc::channel(BUFFER);
        let stop = tokio_util::sync::CancellationToken::new();
        let task = tokio::spawn(run(receive, channel, stop.clone()));
        Ok(Self { send, stop, task: Mutex::new(Some(task)) })
    }

    pub fn take(&self, span: Span) {
        drop(self.send.try_send(span));
    }

    pub async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task {
            drop(task.await);
        }
    }
}

async fn run(mut receive: mpsc::Receiver<Span>, channel: Channel, stop: tokio_util::sync::CancellationToken) {
    let mut ended = false;
    while !ended {
        let mut batch = Vec::new();
        let deadline = tokio::time::sleep(WAIT);
        tokio::pin!(deadline);
        while batch.len() < BATCH {
            tokio::select! {
                biased;
                span = receive.recv() => match span {
                    Some(span) => batch.push(span),
                    None => { ended = true; break }
                },
                () = stop.cancelled() => { ended = true; break }
                () = &mut deadline, if !batch.is_empty() => break,
            }
        }
        if !batch.is_empty()
            && let Err(error) = post(&channel, batch).await
        {
            tracing::warn!("spans are lost: {error}");
        }
    }
}

async fn post(channel: &Channel, spans: Vec<Span>) -> Result<(), String> {
    let attributes = vec![KeyValue::text("service.name", "apiserver")];
    let scope = Scope { name: "apiserver".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let request = ExportRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
        }],
    };
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    let sent = tokio::time::timeout(TIME_LIMIT, async {
        grpc.ready().await.map_err(|error| error.to_string())?;
        let codec = tonic_prost::ProstCodec::<ExportRequest, ExportResponse>::default();
        let path = http::uri::PathAndQuery::from_static(METHOD);
        grpc.unary(tonic::Request::new(request), path, codec)
            .await
            .map_err(|status| status.message().to_owned())
    });
    match sent.await {
        Ok(sent) => sent.map(drop),
        Err(_) => Err(format!("the collector took longer than {TIME_LIMIT:?}")),
    }
}
