//! kube-rs over TLS: typed objects, watches, server-side apply, subresources and custom resources.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, EvictParams, ListParams, Patch, PatchParams, PostParams,
    WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::{Value, json};

use crate::server::Server;

async fn client(server: &Server) -> Client {
    let file = Kubeconfig::read_from(server.kubeconfig()).expect("the kubeconfig is read");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(file, &options).await.expect("the kubeconfig is usable");
    Client::try_from(config).expect("a client")
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("it should have been refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_session_of_kube_rs() {
    let server = Server::start();
    let client = client(&server).await;
    let version = client.apiserver_version().await.expect("the version");
    assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "36"));
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let create = PostParams::default();
    namespaces.create(&create, &of(json!({"metadata": {"name": "session"}}))).await.expect("created");
    typed(&client).await;
    watches(&client).await;
    subresources(&client).await;
    custom(&client).await;
    protobuf(&client).await;
}

async fn typed(client: &Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "session");
    let create = PostParams::default();
    let map: ConfigMap = of(json!({"metadata": {"name": "a"}, "data": {"k": "1"}}));
    let made = maps.create(&create, &map).await.expect("created");
    assert_eq!(code(maps.create(&create, &map).await), 409);
    assert_eq!(code(maps.get("none").await), 404);
    assert_eq!(maps.get_opt("none").await.expect("an answer"), None);
    let mut changed = made.clone();
    changed.data.get_or_insert_default().insert("k".to_owned(), "2".to_owned());
    maps.replace("a", &create, &changed).await.expect("replaced");
    assert_eq!(code(maps.replace("a", &create, &changed).await), 409);
    let merge = Patch::Merge(json!({"metadata": {"labels": {"of": "session"}}}));
    maps.patch("a", &PatchParams::default(), &merge).await.expect("patched");

    // Each manager owns what it applied.
    let apply = |value: &str| {
        Patch::Apply(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"k": value},
        }))
    };
    let one = maps.patch("applied", &PatchParams::apply("one"), &apply("1")).await.expect("applied");
    assert_eq!(one.managed_fields()[0].manager.as_deref(), Some("one"));
    assert_eq!(code(maps.patch("applied", &PatchParams::apply("two"), &apply("2")).await), 409);
    let forced = maps.patch("applied", &PatchParams::apply("two").force(), &apply("2")).await;
    assert_eq!(forced.expect("forced").data.unwrap_or_default()["k"], "2");
    let strict = PatchParams {
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::default()
    };
    let unknown = Patch::Merge(json!({"unknown": 1}));
    assert_eq!(code(maps.patch("a", &strict, &unknown).await), 422);

    let page = maps.list(&ListParams::default().limit(1)).await.expect("a page");
    let next = page.metadata.continue_.expect("there is more");
    let rest = maps.list(&ListParams::default().continue_token(&next)).await.expect("the rest");
    assert_eq!((page.items.len(), rest.items.len()), (1, 1));
    let metadata = maps.list_metadata(&ListParams::default().labels("of=session")).await.expect("metadata");
    assert_eq!(metadata.items[0].name_any(), "a");
    maps.delete_collection(&DeleteParams::default(), &ListParams::default()).await.expect("deleted");
    assert!(maps.list(&ListParams::default()).await.expect("a list").items.is_empty());
}

async fn watches(client: &Client) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "session");
    let start = maps.list(&ListParams::default()).await.expect("a list").metadata.resource_version;
    let events = maps.watch(&WatchParams::default(), &start.expect("a revision")).await.expect("a watch");
    let mut events = events.boxed();
    // The runtime's watcher, once by lists and once by streamed lists.
    let listed = watcher(maps.clone(), watcher::Config::default()).applied_objects().boxed();
    let streamed =
        watcher(maps.clone(), watcher::Config::default().streaming_lists()).applied_objects().boxed();
    maps.create(&PostParams::default(), &of(json!({"metadata": {"name": "w"}}))).await.expect("created");
    maps.patch("w", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "v"}})))
        .await
        .expect("patched");
    for mut stream in [listed, streamed] {
        let seen = stream.try_next().await.expect("an object").expect("the stream goes on");
        assert_eq!(seen.name_any(), "w");
    }
    maps.delete("w", &DeleteParams::default()).await.expect("deleted");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(match events.try_next().await.expect("an event").expect("the watch goes on") {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => panic!("{status:?}"),
        });
    }
    assert_eq!(seen, ["added", "modified", "deleted"]);
}

async fn subresources(client: &Client) {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "session");
    let create = PostParams::default();
    accounts.create(&create, &of(json!({"metadata": {"name": "default"}}))).await.expect("created");
    let request: TokenRequest = of(json!({"spec": {"audiences": []}}));
    let token = accounts.create_token_request("default", &create, &request).await.expect("a token");
    let token = token.status.and_then(|status| status.token).unwrap_or_default();
    assert_eq!(token.split('.').count(), 3);

    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "session");
    let template =
        json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"app": "d"}}, "template": template}});
    deployments.create(&create, &of(deployment)).await.expect("created");
    let scale = json!({"spec": {"replicas": 3}});
    deployments.patch_scale("d", &PatchParams::default(), &Patch::Merge(scale)).await.expect("scaled");
    let scale = deployments.get_scale("d").await.expect("a scale");
    assert_eq!(scale.spec.and_then(|s| s.replicas), Some(3));
    assert_eq!(scale.status.and_then(|s| s.selector).as_deref(), Some("app=d"));
    let status = Patch::Merge(json!({"status": {"replicas": 2}, "spec": {"replicas": 9}}));
    let patched = deployments.patch_status("d", &PatchParams::default(), &status).await.expect("patched");
    assert_eq!(patched.status.and_then(|s| s.replicas), Some(2));
    assert_eq!(patched.spec.and_then(|s| s.replicas), Some(3));
    deployments.restart("d").await.expect("restarted");

    let pods: Api<Pod> = Api::namespaced(client.clone(), "session");
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    pods.create(&create, &of(pod)).await.expect("created");
    pods.evict("p", &EvictParams::default()).await.expect("evicted");
    assert_eq!(pods.get_opt("p").await.expect("an answer"), None);

    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&create, &of(json!({"metadata": {"name": "n"}}))).await.expect("created");
    nodes.cordon("n").await.expect("cordoned");
    let unschedulable = nodes.get("n").await.expect("the node").spec.and_then(|s| s.unschedulable);
    assert_eq!(unschedulable, Some(true));
}

async fn custom(client: &Client) {
    let properties = json!({
        "spec": {"type": "object", "properties": {"masts": {"type": "integer", "minimum": 1}}},
        "status": {"type": "object", "properties": {"sailing": {"type": "boolean"}}},
    });
    let definition = json!({"metadata": {"name": "ships.fleet.example.com"}, "spec": {
        "group": "fleet.example.com", "scope": "Namespaced", "names": {"plural": "ships", "kind": "Ship"},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}}]}});
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &of(definition)).await.expect("created");
    let established = conditions::is_crd_established();
    await_condition(definitions, "ships.fleet.example.com", established).await.expect("established");
    let discovered = kube::discovery::group(client, "fleet.example.com").await.expect("discovered");
    let (resource, _) = discovered.recommended_kind("Ship").expect("the kind");
    let by_hand = ApiResource::from_gvk(&GroupVersionKind::gvk("fleet.example.com", "v1", "Ship"));
    assert_eq!(resource.plural, by_hand.plural);
    let ships: Api<DynamicObject> = Api::namespaced_with(client.clone(), "session", &resource);
    let ship = DynamicObject::new("a", &resource).data(json!({"spec": {"masts": 3}}));
    ships.create(&PostParams::default(), &ship).await.expect("created");
    let bad = DynamicObject::new("b", &resource).data(json!({"spec": {"masts": 0}}));
    assert_eq!(code(ships.create(&PostParams::default(), &bad).await), 422);
    let status = Patch::Merge(json!({"status": {"sailing": true}}));
    let patched = ships.patch_status("a", &PatchParams::default(), &status).await.expect("patched");
    assert_eq!(patched.data["status"], json!({"sailing": true}));
}

/// kube-rs itself speaks JSON; a request for protobuf through its client is answered in it.
async fn protobuf(client: &Client) {
    use http_body_util::BodyExt;
    let request = http::Request::get("/api/v1/namespaces/session")
        .header("accept", "application/vnd.kubernetes.protobuf")
        .body(kube::client::Body::empty())
        .expect("a request");
    let answer = client.send(request).await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "application/vnd.kubernetes.protobuf");
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(&body[..4], b"k8s\0");
}
