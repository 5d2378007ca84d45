use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::fake::Fake;
use super::*;
use crate::manager::Pods;
use crate::podutil::spec;

const NAME: &str = "fake.dev/card";

fn pod(uid: &str, count: usize) -> Pod {
    let resources = json!({"limits": {NAME: count.to_string()}});
    let init = json!({"name": "init", "resources": resources});
    let pod = json!({"metadata": {"name": uid, "uid": uid}, "spec": {
        "initContainers": [init], "containers": [{"name": "a", "resources": resources}]}});
    serde_json::from_value(pod).expect("a pod")
}

/// A kubelet's side of device plug-ins; it ends when it is dropped.
struct Side {
    devices: Arc<Devices>,
    _stop: tokio_util::sync::DropGuard,
}

fn side(root: &Path) -> Side {
    let devices = Arc::new(Devices::new(root));
    let stop = CancellationToken::new();
    tokio::spawn(run(devices.clone(), Pods::new(), stop.clone()));
    Side { devices, _stop: stop.drop_guard() }
}

async fn plug_in(root: &Path, offers: Vec<super::fake::Offer>) -> Fake {
    loop {
        if let Ok(fake) = Fake::start(&root.join("device-plugins"), NAME, offers.clone()).await {
            return fake;
        }
        tokio::task::yield_now().await;
    }
}

async fn has(devices: &Devices, capacity: &str, allocatable: &str) {
    let mut changes = devices.changes();
    loop {
        let (mut all, mut free) = (BTreeMap::new(), BTreeMap::new());
        devices.add_to(&mut all, &mut free);
        let shown = |list: &BTreeMap<String, Quantity>| list.get(NAME).map(|quantity| quantity.0.clone());
        if (shown(&all).as_deref(), shown(&free).as_deref()) == (Some(capacity), Some(allocatable)) {
            return;
        }
        changes.changed().await.expect("it goes on");
    }
}

async fn give(devices: &Devices, pod: &Pod, place: Option<NodeSet>) -> Result<(), String> {
    let place = Hint { nodes: place, preferred: true };
    for container in init_containers(pod).iter().chain(&spec(pod).containers) {
        devices.allocate(pod, container, place).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn ids(devices: &Devices, uid: &str, container: &str) -> Vec<String> {
    devices.of(uid, container).into_iter().flat_map(|(_, ids, _)| ids).collect()
}

#[tokio::test]
async fn devices_are_given_and_outlive_kubelet_and_plug_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = side(dir.path());
    let offers =
        vec![("a", true, Some(0)), ("b", true, Some(1)), ("c", true, Some(1)), ("d", false, Some(0))];
    let fake = plug_in(dir.path(), offers.clone()).await;
    has(&first.devices, "4", "3").await;
    let one = pod("p", 1);
    let hints = first.devices.hints(&one, &spec(&one).containers[0], NodeSet::new([0, 1]));
    let preferred = |hints: &topology::hints::Hints| {
        let list = hints[NAME].clone().expect("hints").into_iter();
        list.filter(|hint| hint.preferred).filter_map(|hint| hint.nodes).collect::<Vec<_>>()
    };
    assert_eq!(preferred(&hints), [NodeSet::new([0]), NodeSet::new([1])]);
    give(&first.devices, &one, Some(NodeSet::new([1]))).await.expect("enough");
    assert_eq!(ids(&first.devices, "p", "a"), ["c"], "near, and the one that the plug-in prefers");
    assert_eq!(ids(&first.devices, "p", "init"), ["c"], "an init container leaves it to the next one");
    let short = give(&first.devices, &pod("q", 3), None).await.expect_err("too many");
    assert_eq!(
        short,
        format!("requested number of devices unavailable for {NAME}. Requested: 3, Available: 2")
    );
    first.devices.release("q");
    let equipment = first.devices.equipment("p", "a");
    assert_eq!(equipment.envs, [("FAKE_DEVICES".to_owned(), "c".to_owned())]);
    assert_eq!(equipment.devices[0].1, "/dev/null");
    first.devices.before_start("p", "a").await.expect("prepared");
    assert_eq!(fake.asked.lock().expect("unharmed").last().map(String::as_str), Some("start c"));

    // The device falls ill, and the plug-in goes.
    fake.offers.send_replace(vec![("a", true, None), ("c", false, None)]);
    has(&first.devices, "2", "1").await;
    let health = |devices: &Devices| {
        let list = devices.health("p", "a");
        list[0].resources.clone().expect("devices")[0].health.clone().expect("known")
    };
    assert_eq!(health(&first.devices), "Unhealthy");
    fake.end();
    has(&first.devices, "2", "0").await;
    assert_eq!(health(&first.devices), "Unknown");
    let gone = give(&first.devices, &pod("q", 1), None).await.expect_err("no plug-in");
    assert_eq!(gone, format!("cannot allocate unregistered device {NAME}"));
    drop(first);

    let later = side(dir.path());
    has(&later.devices, "0", "0").await;
    assert_eq!(ids(&later.devices, "p", "a"), ["c"], "kept over a restart");
    assert_eq!(later.devices.equipment("p", "a").envs.len(), 1);
    let _fake = plug_in(dir.path(), offers).await;
    has(&later.devices, "4", "3").await;
    give(&later.devices, &pod("q", 2), None).await.expect("the two that are left");
    later.devices.retain(|uid| uid == "q");
    assert!(ids(&later.devices, "p", "a").is_empty());
}

#[tokio::test]
async fn bad_registrations_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let _side = side(dir.path());
    let _first = plug_in(dir.path(), Vec::new()).await;
    let error =
        Fake::start(&dir.path().join("device-plugins"), "card", Vec::new()).await.err().expect("refused");
    assert!(error.contains("it has no domain"), "{error}");
}
