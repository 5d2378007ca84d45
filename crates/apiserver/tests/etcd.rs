//! Two API servers on one etcd: what one has acknowledged the other shows, in reads and in watches.

use std::process::{Child, Command, Stdio};

use apiserver::{ApiServer, Config, UserInfo};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// A cluster of one in a temporary folder.
struct Etcd {
    child: Child,
    _folder: tempfile::TempDir,
    url: String,
}

impl Etcd {
    fn start() -> Etcd {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let port = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("it is bound").port()
        };
        let (url, peer) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
        let child = Command::new("/usr/bin/etcd")
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts: install the package etcd-server");
        Etcd { child, _folder: folder, url }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Running {
    _server: ApiServer,
    client: Client,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn start(etcd: &Etcd) -> Running {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = Config::new(dir.path());
    config.bind.set_port(0);
    let mut options = store::etcd::Options::new(vec![etcd.url.clone()]);
    options.prefix = "/carrack".into();
    let store = store::etcd::connect(options).await.expect("etcd answers");
    let server = apiserver::start(config, store).await.expect("the server starts");
    let shutdown = CancellationToken::new();
    tokio::spawn({
        let (server, shutdown) = (server.clone(), shutdown.clone());
        async move { server.serve(shutdown).await }
    });
    let client = Client::new(server.in_process(UserInfo::system_master("test")), "default");
    Running { _server: server, client, shutdown, _dir: dir }
}

#[tokio::test]
async fn two_servers_on_one_etcd_agree() {
    let etcd = Etcd::start();
    let (first, second) = (start(&etcd).await, start(&etcd).await);
    let here: Api<ConfigMap> = Api::default_namespaced(first.client.clone());
    let there: Api<ConfigMap> = Api::default_namespaced(second.client.clone());
    let mut events = std::pin::pin!(there.watch(&WatchParams::default(), "").await.expect("watches"));
    for number in 0..50 {
        let name = format!("c-{number}");
        let map = json!({"metadata": {"name": name}, "data": {"n": "1"}});
        let map: ConfigMap = serde_json::from_value(map).expect("a ConfigMap");
        let (writer, reader) = if number % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let made = writer.create(&PostParams::default(), &map).await.expect("created");
        let found = reader.get(&name).await.expect("what is acknowledged is shown");
        assert_eq!(found.metadata, made.metadata);
        assert!(reader.create(&PostParams::default(), &map).await.is_err(), "it exists");
    }
    let listed = there.list(&ListParams::default().limit(20)).await.expect("listed");
    assert_eq!((listed.items.len(), listed.metadata.remaining_item_count), (20, Some(30)));
    let token = listed.metadata.continue_.expect("there is more");
    let patch = Patch::Merge(json!({"data": {"n": "2"}}));
    here.patch("c-0", &PatchParams::default(), &patch).await.expect("patched");
    let rest = there.list(&ListParams::default().continue_token(&token)).await.expect("of one revision");
    assert_eq!(rest.items.len(), 30);
    let mut stale = there.get("c-0").await.expect("shown");
    here.patch("c-0", &PatchParams::default(), &Patch::Merge(json!({"data": {"n": "3"}})))
        .await
        .expect("patched");
    stale.data = None;
    assert!(there.replace("c-0", &PostParams::default(), &stale).await.is_err(), "it was changed elsewhere");
    let (mut added, mut modified, mut before) = (0, 0, 0);
    while added < 50 || modified < 2 {
        let event = events.try_next().await.expect("goes on").expect("goes on");
        let object = match event {
            WatchEvent::Added(object) => {
                added += 1;
                object
            }
            WatchEvent::Modified(object) => {
                modified += 1;
                object
            }
            other => panic!("{other:?}"),
        };
        let version = object.metadata.resource_version.expect("a version").parse::<u64>().expect("a number");
        assert!(version > before, "in order");
        before = version;
    }
}
