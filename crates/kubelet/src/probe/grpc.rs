//! gRPC health checks (`grpc.health.v1.Health/Check`).

use std::time::Duration;

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::handler::Answer;

#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    /// 1 is SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks the health service at `ip:port`.
pub(super) async fn check(ip: &str, port: i32, service: &str, timeout: Duration) -> Answer {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let target = format!("{host}:{port}");
    let until = tokio::time::Instant::now() + timeout;
    let channel = match tokio::time::timeout_at(until, connect(&target)).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            return Answer::no(format!("error: failed to connect service at {target:?}: {error}"));
        }
        Err(_) => {
            return Answer::no(format!(
                "timeout: failed to connect service {target:?} within {}s: context deadline exceeded",
                timeout.as_secs()
            ));
        }
    };
    match tokio::time::timeout_at(until, ask(channel, service)).await {
        Ok(answer) => answer,
        Err(_) => Answer::no(format!("timeout: health rpc did not complete within {}s", timeout.as_secs())),
    }
}

async fn connect(target: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{target}"))?.user_agent("kube-probe/1.36")?.connect().await
}

async fn ask(channel: Channel, service: &str) -> Answer {
    let mut client = Grpc::new(channel);
    if let Err(error) = client.ready().await {
        return Answer::no(error.to_string());
    }
    let request = Request::new(CheckRequest { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: ProstCodec<CheckRequest, CheckResponse> = ProstCodec::default();
    match client.unary(request, path, codec).await {
        Ok(response) if response.get_ref().status == 1 => Answer::yes("service healthy"),
        Ok(response) => {
            let status = match response.get_ref().status {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            Answer::no(format!("service unhealthy (responded with {status:?})"))
        }
        Err(status) if status.code() == Code::Unimplemented => Answer::no(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) => Answer::no(format!(
            "error: health rpc probe failed: rpc error: code = {:?} desc = {}",
            status.code(),
            status.message()
        )),
    }
}
