//! Spans of requests at a collector.

use std::convert::Infallible;
use std::pin::Pin;

use apiserver::UserInfo;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use prost::Message;
use tokio::sync::mpsc;

use crate::harness::start;

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<Resources>,
}

#[derive(Clone, PartialEq, Message)]
struct Resources {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<Scopes>,
}

#[derive(Clone, PartialEq, Message)]
struct Scopes {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Done {}

#[derive(Clone)]
struct Collector(mpsc::Sender<Export>);

impl tonic::server::NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl tonic::server::UnaryService<Export> for Collector {
    type Response = Done;
    type Future = Answer<tonic::Response<Done>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<Export>) -> Self::Future {
        let send = self.0.clone();
        Box::pin(async move {
            drop(send.send(request.into_inner()).await);
            Ok(tonic::Response::new(Done {}))
        })
    }
}

impl tower::Service<Request<tonic::body::Body>> for Collector {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::<Done, Export>::default());
            Ok(grpc.unary(service, request).await)
        })
    }
}

#[tokio::test]
async fn a_traced_request_is_a_span_of_its_callers_trace() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let (send, mut receive) = mpsc::channel(10);
    let collector = tokio::spawn(async move {
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        drop(
            tonic::transport::Server::builder()
                .add_service(Collector(send))
                .serve_with_incoming(incoming)
                .await,
        );
    });
    let mut running = start(|config| {
        let file = config.data_dir.join("tracing.yaml");
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: 127.0.0.1:{port}\n"
        );
        std::fs::write(&file, text).expect("written");
        config.tracing = Some(file);
    })
    .await;
    let ask = |traceparent: &str| {
        let request =
            Request::get("/api/v1/namespaces/default/configmaps").header("traceparent", traceparent);
        running
            .send(UserInfo::system_master("test"), request.body(Full::new(Bytes::new())).expect("a request"))
    };
    // The second caller does not trace.
    ask("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").await;
    ask("00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").await;
    running.shutdown.cancel();
    (&mut running.done).await.expect("the server ended");
    let export = receive.recv().await.expect("spans");
    let spans: Vec<&Span> = export.resources.iter().flat_map(|r| &r.scopes).flat_map(|s| &s.spans).collect();
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_eq!(spans[0].trace[..2], [0x0a, 0xf7]);
    assert_eq!(spans[0].parent[..2], [0xb7, 0xad]);
    assert_eq!(
        (spans[0].span.len(), spans[0].name.as_str()),
        (8, "GET /api/v1/namespaces/{:namespace}/configmaps")
    );
    assert!(spans[0].end >= spans[0].start && spans[0].start > 0);
    collector.abort();
}
