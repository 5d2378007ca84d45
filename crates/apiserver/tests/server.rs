//! A whole server over a real store: a client in the same process, and one over TLS with the administrator's kubeconfig.

use std::collections::BTreeMap;

use apiserver::{ApiServer, Config, UserInfo};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

struct Running {
    server: ApiServer,
    client: Client,
    shutdown: CancellationToken,
    dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn start() -> Running {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = Config::new(dir.path());
    config.bind.set_port(0);
    let store = store::embedded::open(&dir.path().join("store.redb")).expect("a new store opens");
    let server = apiserver::start(config, store).await.expect("the server starts");
    let shutdown = CancellationToken::new();
    tokio::spawn({
        let (server, shutdown) = (server.clone(), shutdown.clone());
        async move { server.serve(shutdown).await }
    });
    let client = Client::new(server.in_process(UserInfo::system_master("test")), "default");
    Running { server, client, shutdown, dir }
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the object fits its type")
}

fn config_map(name: &str) -> ConfigMap {
    object(json!({"metadata": {"name": name, "labels": {"app": name}}, "data": {"k": "1"}}))
}

#[tokio::test]
async fn objects_come_change_and_go() {
    let running = start().await;
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");
    let made = maps.create(&PostParams::default(), &config_map("a")).await.expect("created");
    let version = made.metadata.resource_version.clone().expect("a version");
    let taken = maps.create(&PostParams::default(), &config_map("a")).await.expect_err("taken");
    assert!(matches!(taken, kube::Error::Api(status) if status.reason == "AlreadyExists"));

    let patch = Patch::Merge(json!({"data": {"k": "2"}}));
    let changed = maps.patch("a", &PatchParams::default(), &patch).await.expect("patched");
    assert_ne!(changed.metadata.resource_version, Some(version));
    let stale = maps.replace("a", &PostParams::default(), &made).await.expect_err("stale");
    assert!(matches!(stale, kube::Error::Api(status) if status.code == 409));

    let apply = Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "y"}}));
    let applied = maps.patch("a", &PatchParams::apply("test"), &apply).await.expect("applied");
    let data: BTreeMap<String, String> = applied.data.unwrap_or_default();
    assert_eq!(data, [("k".to_owned(), "2".to_owned()), ("x".to_owned(), "y".to_owned())].into());

    maps.delete("a", &DeleteParams::default()).await.expect("deleted");
    assert!(maps.get_opt("a").await.expect("asked").is_none());
}

#[tokio::test]
async fn pages_of_a_list_are_of_one_revision() {
    let running = start().await;
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");
    for name in ["a", "b", "c", "d", "e"] {
        maps.create(&PostParams::default(), &config_map(name)).await.expect("created");
    }
    let first = maps.list(&ListParams::default().limit(2)).await.expect("listed");
    let token = first.metadata.continue_.clone().expect("there is more");
    maps.delete("d", &DeleteParams::default()).await.expect("deleted");
    let rest = maps.list(&ListParams::default().continue_token(&token)).await.expect("listed");
    let names: Vec<String> =
        first.items.into_iter().chain(rest.items).filter_map(|m| m.metadata.name).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    let chosen = maps.list(&ListParams::default().labels("app in (a,e)")).await.expect("listed");
    assert_eq!(chosen.items.len(), 2);
}

#[tokio::test]
async fn a_watch_sees_what_enters_and_leaves_its_selection() {
    let running = start().await;
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");
    let watch = maps.watch(&WatchParams::default().labels("app=a"), "0").await.expect("watched");
    let mut watch = watch.boxed();
    maps.create(&PostParams::default(), &config_map("a")).await.expect("created");
    maps.create(&PostParams::default(), &config_map("b")).await.expect("created");
    for app in ["z", "a"] {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"app": app}}}));
        maps.patch("a", &PatchParams::default(), &patch).await.expect("patched");
    }
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event = watch.try_next().await.expect("the watch goes on").expect("it has not ended");
        seen.push(match event {
            WatchEvent::Added(_) => "added",
            WatchEvent::Deleted(_) => "deleted",
            WatchEvent::Modified(_) => "modified",
            _ => "other",
        });
    }
    assert_eq!(seen, ["added", "deleted", "added"]);
}

/// Watches that an index tells of their events: by name, and by the node of a pod.
#[tokio::test]
async fn indexed_watches_see_their_own_events_alone() {
    let running = start().await;
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");
    let mut by_name =
        maps.watch(&WatchParams::default().fields("metadata.name=a"), "0").await.expect("watched").boxed();
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(running.client.clone(), "default");
    accounts
        .create(&PostParams::default(), &object(json!({"metadata": {"name": "default"}})))
        .await
        .expect("made");
    let pods: Api<Pod> = Api::namespaced(running.client.clone(), "default");
    let mut by_node =
        pods.watch(&WatchParams::default().fields("spec.nodeName=n1"), "0").await.expect("watched").boxed();
    for round in 0..3 {
        for name in ["a", "b", "c"] {
            if round == 0 {
                maps.create(&PostParams::default(), &config_map(name)).await.expect("created");
            } else {
                let patch = Patch::Merge(json!({"data": {"k": format!("round {round}")}}));
                maps.patch(name, &PatchParams::default(), &patch).await.expect("patched");
            }
        }
    }
    maps.delete("a", &DeleteParams::default()).await.expect("deleted");
    for node in ["n1", "n2"] {
        let pod = json!({"metadata": {"name": node}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        pods.create(&PostParams::default(), &object(pod)).await.expect("created");
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": node},
            "target": {"kind": "Node", "name": node}});
        let bound: Value =
            pods.create_subresource("binding", node, &PostParams::default(), &binding).await.expect("bound");
        assert_eq!(bound["status"], "Success");
    }
    pods.delete("n2", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    pods.delete("n1", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let event = by_name.try_next().await.expect("goes on").expect("goes on");
        seen.push(match event {
            WatchEvent::Added(map) => format!("added {}", map.metadata.name.unwrap_or_default()),
            WatchEvent::Modified(map) => format!("modified {}", map.metadata.name.unwrap_or_default()),
            WatchEvent::Deleted(map) => format!("deleted {}", map.metadata.name.unwrap_or_default()),
            other => format!("{other:?}"),
        });
    }
    assert_eq!(seen, ["added a", "modified a", "modified a", "deleted a"]);
    // Unbound it does not match; bound it enters, and leaves as it goes.
    let first = by_node.try_next().await.expect("goes on").expect("goes on");
    assert!(
        matches!(&first, WatchEvent::Added(pod) if pod.metadata.name.as_deref() == Some("n1")),
        "{first:?}"
    );
    loop {
        match by_node.try_next().await.expect("goes on").expect("goes on") {
            WatchEvent::Modified(pod) => assert_eq!(pod.metadata.name.as_deref(), Some("n1")),
            WatchEvent::Deleted(pod) => {
                assert_eq!(pod.metadata.name.as_deref(), Some("n1"));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_pod_is_bound_and_a_service_gets_addresses() {
    let running = start().await;
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(running.client.clone(), "default");
    let account = object(json!({"metadata": {"name": "default"}}));
    accounts.create(&PostParams::default(), &account).await.expect("created");
    let pods: Api<Pod> = Api::namespaced(running.client.clone(), "default");
    let pod =
        object(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}));
    pods.create(&PostParams::default(), &pod).await.expect("created");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n"}});
    let answer: Value =
        pods.create_subresource("binding", "p", &PostParams::default(), &binding).await.expect("bound");
    assert_eq!(answer["status"], "Success");
    let bound = pods.get("p").await.expect("there");
    assert_eq!(bound.spec.and_then(|s| s.node_name).as_deref(), Some("n"));

    let services: Api<Service> = Api::namespaced(running.client.clone(), "default");
    let service = object(json!({"metadata": {"name": "s"},
        "spec": {"ports": [{"port": 80}], "ipFamilyPolicy": "PreferDualStack", "type": "NodePort"}}));
    let made = services.create(&PostParams::default(), &service).await.expect("created");
    let spec = made.spec.expect("a specification");
    assert_eq!(spec.cluster_ips.map(|ips| ips.len()), Some(2));
    assert!(spec.ports.is_some_and(|ports| ports[0].node_port.is_some()));
    let own = services.get("kubernetes").await.expect("the server's own service");
    assert_eq!(own.spec.and_then(|s| s.cluster_ip).as_deref(), Some("10.96.0.1"));
}

#[tokio::test]
async fn state_outlives_the_server() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("store.redb");
    for round in 0..2 {
        let mut config = Config::new(dir.path());
        config.bind.set_port(0);
        let store = store::embedded::open(&file).expect("the store opens");
        let server = apiserver::start(config, store).await.expect("the server starts");
        let client = Client::new(server.in_process(UserInfo::system_master("test")), "default");
        let spaces: Api<Namespace> = Api::all(client);
        if round == 0 {
            let space = object(json!({"metadata": {"name": "kept"}}));
            spaces.create(&PostParams::default(), &space).await.expect("created");
        }
        assert!(spaces.get_opt("kept").await.expect("asked").is_some());
        // Ends everything that holds the store.
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        server.serve(shutdown).await;
        drop((server, spaces));
        while store::embedded::open(&file).is_err() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn the_kubeconfig_opens_the_door_and_nothing_else_does() {
    let running = start().await;
    let path = running.dir.path().join("admin.kubeconfig");
    let kubeconfig = kube::config::Kubeconfig::read_from(&path).expect("the kubeconfig reads");
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
    let mut config = config.await.expect("the kubeconfig is whole");
    let port = running.server.address().port();
    config.cluster_url = format!("https://127.0.0.1:{port}").parse().expect("a URL");
    let client = Client::try_from(config.clone()).expect("a client");
    assert_eq!(client.apiserver_version().await.expect("the version").minor, "36");
    let spaces: Api<Namespace> = Api::all(client);
    assert!(spaces.list(&ListParams::default()).await.expect("listed").items.len() >= 4);
    config.auth_info = Default::default();
    let nobody: Api<Namespace> = Api::all(Client::try_from(config).expect("a client"));
    let refused = nobody.list(&ListParams::default()).await.expect_err("refused");
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 403));
}
