use std::sync::atomic::{AtomicUsize, Ordering};

use plugins::dra::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use plugins::dra::v1::{
    NodePrepareResourceResponse, NodePrepareResourcesRequest, NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse,
};
use serde_json::{Value, json};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::registration::Plugin;

/// A driver that prepares every claim, and counts how often.
#[derive(Clone, Default)]
struct Fake {
    prepared: Arc<AtomicUsize>,
    taken_back: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl DraPlugin for Fake {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let answer = |claim: Claim| {
            self.prepared.fetch_add(1, Ordering::Relaxed);
            let device = |request: &str, name: &str| Device {
                request_names: vec![request.to_owned()],
                pool_name: "pool".to_owned(),
                device_name: name.to_owned(),
                cdi_device_ids: vec![format!("fake.dev/card={name}")],
                share_id: None,
            };
            let devices = vec![device("one", "a"), device("two/big", "b")];
            (claim.uid, NodePrepareResourceResponse { devices, error: String::new() })
        };
        let claims = request.into_inner().claims.into_iter().map(answer).collect();
        Ok(Response::new(NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let answer = |claim: Claim| {
            self.taken_back.fetch_add(1, Ordering::Relaxed);
            (claim.uid, NodeUnprepareResourceResponse { error: String::new() })
        };
        let claims = request.into_inner().claims.into_iter().map(answer).collect();
        Ok(Response::new(NodeUnprepareResourcesResponse { claims }))
    }
}

/// An API that knows one claim.
fn client(claim: Value) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let body = if request.uri().path().ends_with("/resourceclaims/shared") {
            Some(claim.to_string())
        } else {
            None
        };
        async move {
            let status = if body.is_some() { 200 } else { 404 };
            let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "none"});
            let body = body.unwrap_or_else(|| missing.to_string());
            let body = kube::client::Body::from(body.into_bytes());
            let response = http::Response::builder()
                .status(status)
                .header("content-type", "application/json")
                .body(body);
            response.map_err(std::io::Error::other)
        }
    });
    kube::Client::new(service, "default")
}

fn claim(users: &[&str]) -> Value {
    let users: Vec<Value> =
        users.iter().map(|uid| json!({"resource": "pods", "name": uid, "uid": uid})).collect();
    let results = json!([
        {"request": "one", "driver": "fake.dev", "pool": "pool", "device": "a"},
        {"request": "two/big", "driver": "fake.dev", "pool": "pool", "device": "b"}]);
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "shared", "namespace": "default", "uid": "c"}, "spec": {"devices": {}},
        "status": {"allocation": {"devices": {"results": results}}, "reservedFor": users}})
}

fn pod(uid: &str) -> Pod {
    let pod = json!({"metadata": {"name": uid, "uid": uid, "namespace": "default"}, "spec": {
        "resourceClaims": [{"name": "cards", "resourceClaimName": "shared"}],
        "containers": [
            {"name": "all", "resources": {"claims": [{"name": "cards"}]}},
            {"name": "two", "resources": {"claims": [{"name": "cards", "request": "two"}]}},
            {"name": "none"}]}});
    serde_json::from_value(pod).expect("a pod")
}

async fn with_driver(manager: &ClaimManager, folder: &std::path::Path) -> Fake {
    let fake = Fake::default();
    let socket = folder.join("dra.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket).expect("bound");
    let server = tonic::transport::Server::builder().add_service(DraPluginServer::new(fake.clone()));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    let plugin = Plugin {
        kind: "DRAPlugin".to_owned(),
        name: "fake.dev".to_owned(),
        endpoint: socket,
        versions: vec!["v1.DRAPlugin".to_owned()],
    };
    drivers::register(&manager.drivers(), &plugin).await.expect("registered");
    fake
}

#[tokio::test]
async fn claims_are_prepared_once_and_taken_back_by_the_last_pod() {
    let dir = tempfile::tempdir().expect("a directory");
    let manager = ClaimManager::new(client(claim(&["p", "q"])), dir.path());
    let early = manager.prepare(&pod("p")).await.expect_err("no driver").to_string();
    assert_eq!(early, "DRA driver fake.dev is not registered");
    let fake = with_driver(&manager, dir.path()).await;
    for uid in ["p", "q", "p"] {
        manager.prepare(&pod(uid)).await.expect("prepared");
    }
    assert_eq!(fake.prepared.load(Ordering::Relaxed), 1);
    let stranger = manager.prepare(&pod("x")).await.expect_err("not reserved").to_string();
    assert_eq!(stranger, "pod x is not allowed to use ResourceClaim shared");
    let one = pod("p");
    let names = |manager: &ClaimManager, at: usize| manager.cdi(&one, &spec(&one).containers[at]);
    assert_eq!(names(&manager, 0), ["fake.dev/card=a", "fake.dev/card=b"]);
    assert_eq!(names(&manager, 1), ["fake.dev/card=b"], "of a subrequest");
    assert!(names(&manager, 2).is_empty());
    let told = manager.of_container(&one, &spec(&one).containers[0]);
    assert_eq!((told.len(), told[0].claim_resources.len()), (1, 2));
    let health = manager.health(&one, &spec(&one).containers[0]);
    assert_eq!(health[0].name, "claim:cards");
    assert_eq!(health[0].resources.as_ref().expect("devices")[0].health.as_deref(), Some("Unknown"));

    // A later run of the kubelet knows it all.
    let later = ClaimManager::new(client(claim(&["p", "q"])), dir.path());
    assert_eq!(names(&later, 1), ["fake.dev/card=b"]);
    let fake = with_driver(&later, dir.path()).await;
    later.prepare(&one).await.expect("is prepared");
    later.unprepare("p").await.expect("released");
    assert_eq!((fake.prepared.load(Ordering::Relaxed), fake.taken_back.load(Ordering::Relaxed)), (0, 0));
    later.unprepare("q").await.expect("taken back");
    assert_eq!(fake.taken_back.load(Ordering::Relaxed), 1);
    assert!(later.pods().is_empty());
}
