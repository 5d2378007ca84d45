//! Times every call to the runtime.

use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service;

use super::{Metrics, RUNTIME_DURATION, RUNTIME_ERRORS, RUNTIME_OPERATIONS};

/// A channel whose calls are counted by kind.
#[derive(Clone)]
pub(crate) struct Timed {
    channel: Channel,
    metrics: Metrics,
}

impl Timed {
    pub(crate) fn new(channel: Channel, metrics: Metrics) -> Self {
        Timed { channel, metrics }
    }
}

impl Service<Request<Body>> for Timed {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let operation = operation(request.uri().path());
        let (answer, metrics) = (self.channel.call(request), self.metrics.clone());
        Box::pin(async move {
            let begun = Instant::now();
            let answer = answer.await;
            let pairs = [("operation_type", operation.as_str())];
            metrics.count(RUNTIME_OPERATIONS, &pairs);
            metrics.took(RUNTIME_DURATION, &pairs, begun.elapsed());
            // A call that fails at once carries its status in the head of the answer.
            let status = |answer: &Response<Body>| {
                answer.headers().get("grpc-status").is_some_and(|status| status.as_bytes() != b"0")
            };
            if answer.as_ref().map_or(true, status) {
                metrics.count(RUNTIME_ERRORS, &pairs);
            }
            answer
        })
    }
}

/// `/runtime.v1.RuntimeService/RunPodSandbox` as `run_podsandbox`, the way upstream names operations.
fn operation(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let name = name.replace("PodSandboxes", "Podsandboxes").replace("PodSandbox", "Podsandbox");
    let name = name.replace("PortForward", "Portforward");
    let mut out = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_named_as_upstream_does() {
        for (path, name) in [
            ("/runtime.v1.RuntimeService/RunPodSandbox", "run_podsandbox"),
            ("/runtime.v1.RuntimeService/ListPodSandboxStats", "list_podsandbox_stats"),
            ("/runtime.v1.RuntimeService/UpdateContainerResources", "update_container_resources"),
            ("/runtime.v1.RuntimeService/PortForward", "portforward"),
            ("/runtime.v1.ImageService/PullImage", "pull_image"),
            ("", ""),
        ] {
            assert_eq!(operation(path), name);
        }
    }
}
