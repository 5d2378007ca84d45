//! Port-forward sessions: the shim dials, since it lives in the pod's network namespace.

use std::sync::Arc;

use cri::v1::PortForwardRequest;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use streaming::PortForwardProtocol;

use crate::node::Node;

/// Serves a port-forward session.
pub async fn run(
    node: Arc<Node>,
    request: PortForwardRequest,
    upgrade: OnUpgrade,
    protocol: PortForwardProtocol,
) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "port-forward upgrade"),
    };
    let ports: Vec<u16> = request.port.iter().filter_map(|p| u16::try_from(*p).ok()).collect();
    let mut session = streaming::serve_portforward(TokioIo::new(upgraded), protocol, &ports).await;
    while let Some(forward) = session.next().await {
        let (node, sandbox) = (node.clone(), request.pod_sandbox_id.clone());
        tokio::spawn(async move {
            let dialed = match node.sandbox(&sandbox) {
                Ok(sandbox) => sandbox.shim.dial(forward.port).await.map_err(crate::error::Error::from),
                Err(error) => Err(error),
            };
            match dialed {
                Ok(backend) => forward.join(backend).await,
                Err(error) => forward.fail(&error.to_string()).await,
            }
        });
    }
}
