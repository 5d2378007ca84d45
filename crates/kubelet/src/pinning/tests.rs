use serde_json::json;

use super::*;
use crate::configuration;

fn pod(uid: &str, cpu: &str) -> Pod {
    let list = json!({"cpu": cpu, "memory": "64Mi"});
    let resources = json!({"requests": list, "limits": list});
    let pod = json!({"metadata": {"name": uid, "uid": uid},
        "spec": {"containers": [{"name": "a", "resources": resources}]}});
    serde_json::from_value(pod).expect("a pod")
}

/// A machine of two NUMA nodes with four processors each.
fn sysfs(dir: &Path) {
    let put = |path: &str, text: &str| {
        let path = dir.join("devices/system").join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    put("cpu/online", "0-7");
    put("node/node0/cpulist", "0-3");
    put("node/node1/cpulist", "4-7");
    for node in 0..2 {
        put(&format!("node/node{node}/meminfo"), &format!("Node {node} MemTotal: 8388608 kB\n"));
        put(&format!("node/node{node}/distance"), "10 20");
    }
    for cpu in 0..8 {
        put(&format!("cpu/cpu{cpu}/topology/physical_package_id"), &(cpu / 4).to_string());
        put(&format!("cpu/cpu{cpu}/topology/thread_siblings_list"), &cpu.to_string());
    }
}

fn config(dir: &Path, fields: &str) -> KubeletConfig {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, std::io::Error>(std::io::ErrorKind::NotConnected.into())
    });
    let mut config = KubeletConfig::new("n", kube::Client::new(service, "default"));
    config.root_dir = dir.to_owned();
    config.sysfs = dir.join("sys");
    let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}");
    config.apply(configuration::parse(&text).expect("a configuration").configuration);
    config
}

const STATIC: &str = "cpuManagerPolicy: static\nreservedSystemCPUs: '0'\n";

fn place(pinning: &Pinning, pod: &Pod) -> Result<(), String> {
    let container = &spec(pod).containers[0];
    let (best, admit) = pinning.merger.merge(&pinning.container_hints(None, pod, container));
    if !admit {
        return Err(misplaced().reason);
    }
    let given = pinning.give(pod, container, best);
    pinning.keep();
    given.map_or(Ok(()), |verdict| Err(format!("{}: {}", verdict.reason, verdict.message)))
}

#[tokio::test]
async fn processors_outlive_the_kubelet() {
    let dir = tempfile::tempdir().expect("a directory");
    sysfs(&dir.path().join("sys"));
    let first = Pinning::new(&config(dir.path(), STATIC)).expect("managers");
    place(&first, &pod("p", "2")).expect("enough");
    let given = first.cpus("p", "a").expect("static");
    assert_eq!((given.0.len(), given.1), (2, true));
    assert!(!first.cpus("q", "a").expect("static").1, "others share");
    assert_eq!(place(&first, &pod("q", "1500m")), Ok(()), "a part of a processor is of the shared pool");
    let short = place(&first, &pod("q", "7")).expect_err("too many");
    assert!(
        short.starts_with(
            "UnexpectedAdmissionError: Pod was rejected: Allocate failed due to not enough cpus"
        ),
        "{short}"
    );
    let later = Pinning::new(&config(dir.path(), STATIC)).expect("managers");
    assert_eq!(later.cpus("p", "a").expect("static"), given);
    later.retain(|uid| uid == "other");
    assert_eq!(later.cpus("p", "a").expect("static").0.to_string(), "0-7");
    let other = Pinning::new(&config(dir.path(), "")).err().expect("another policy").to_string();
    assert!(other.contains("differs from state checkpoint policy"), "{other}");
}

#[tokio::test]
async fn what_is_torn_over_nodes_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    sysfs(&dir.path().join("sys"));
    let fields = format!("{STATIC}topologyManagerPolicy: single-numa-node\n");
    let pinning = Pinning::new(&config(dir.path(), &fields)).expect("managers");
    assert_eq!(place(&pinning, &pod("p", "5")), Err("TopologyAffinityError".to_owned()));
    assert_eq!(place(&pinning, &pod("p", "4")), Ok(()));
    assert_eq!(pinning.cpus("p", "a").expect("static").0.to_string(), "4-7");
}

#[tokio::test]
async fn memory_has_to_be_reserved_in_full() {
    let dir = tempfile::tempdir().expect("a directory");
    sysfs(&dir.path().join("sys"));
    let fields = |memory: &str| {
        format!(
            "memoryManagerPolicy: Static\nsystemReserved: {{memory: 924Mi}}\nreservedMemory: [{{numaNode: 0, limits: {{memory: {memory}}}}}]\n"
        )
    };
    let wrong = Pinning::new(&config(dir.path(), &fields("1Mi"))).err().expect("too little").to_string();
    assert!(wrong.contains("reservedMemory has 1048576 bytes"), "{wrong}");
    let pinning = Pinning::new(&config(dir.path(), &fields("1Gi"))).expect("managers");
    place(&pinning, &pod("p", "100m")).expect("enough");
    assert_eq!(pinning.memory_nodes("p", "a"), Some(NodeSet::new([0])));
    assert_eq!(pinning.memory_nodes("q", "a"), None);
}
