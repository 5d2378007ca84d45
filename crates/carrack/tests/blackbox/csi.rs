//! CSI: a driver in a pod, installed as users install theirs, and what pods have of its volumes.

mod controller;
mod driver;

use std::path::PathBuf;

use driver::{DATA, NAME};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::machine::Machine;

const KUBECTL: &str = "/usr/bin/kubectl";

/// A machine with the driver on it, and the folder in which the driver keeps its things.
pub struct Cluster {
    pub machine: Machine,
    data: PathBuf,
}

const INSTALL: &str = r#"
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: csi.test.carrack.dev}
spec:
  podInfoOnMount: true
  volumeLifecycleModes: [Persistent, Ephemeral]
  fsGroupPolicy: File
  tokenRequests: [{audience: vault, expirationSeconds: 3600}]
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: test}
provisioner: csi.test.carrack.dev
allowVolumeExpansion: true
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: Secret
metadata: {name: stage}
stringData: {key: s3cret}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: driver, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: driver}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: driver, namespace: kube-system}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: driver, namespace: kube-system}
spec:
  selector: {matchLabels: {app: driver}}
  template:
    metadata: {labels: {app: driver}}
    spec:
      serviceAccountName: driver
      terminationGracePeriodSeconds: 5
      containers:
      - name: driver
        image: carrack.dev/toolbox
        imagePullPolicy: IfNotPresent
        command: [/driver, "csi::driver::serve", --exact, --ignored, --nocapture]
        env: [{name: CSI_NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        securityContext: {privileged: true}
        volumeMounts:
        - {name: binary, mountPath: /driver, readOnly: true}
        - {name: kubelet, mountPath: /var/lib/kubelet, mountPropagation: Bidirectional}
        - {name: dev, mountPath: /dev}
        - {name: data, mountPath: /var/lib/csi-test}
      volumes:
      - {name: binary, hostPath: {path: BINARY, type: File}}
      - {name: kubelet, hostPath: {path: /var/lib/kubelet, type: Directory}}
      - {name: dev, hostPath: {path: /dev, type: Directory}}
      - {name: data, hostPath: {path: FOLDER, type: DirectoryOrCreate}}
"#;

impl Cluster {
    pub fn up() -> Cluster {
        let machine = Machine::up();
        let data = machine.folder().join("csi");
        assert_eq!(DATA, "/var/lib/csi-test");
        // The driver is this very binary.
        let binary = std::env::current_exe().expect("this binary");
        let install = INSTALL.replace("BINARY", &binary.to_string_lossy());
        machine.apply(&install.replace("FOLDER", &data.to_string_lossy())).ok();
        let cluster = Cluster { machine, data };
        cluster.machine.wait_for("csinode/node-1", "{.spec.drivers[0].name}", NAME);
        cluster
    }

    /// The driver's calls so far, of one kind and about one volume.
    fn calls(&self, call: &str, id: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.data.join("calls")).unwrap_or_default();
        let calls = text.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| *name == call);
        let calls = calls.map(|(_, what)| serde_json::from_str::<Value>(what).expect("JSON"));
        calls.filter(|what| what["id"].as_str().is_some_and(|one| one.contains(id))).collect()
    }

    fn get(&self, object: &str, path: &str) -> String {
        self.machine.kubectl(&["get", object, "-o", &format!("jsonpath={path}")]).ok()
    }

    fn sh(&self, pod: &str, text: &str) -> String {
        self.machine.kubectl(&["exec", pod, "--", "sh", "-c", text]).ok()
    }

    fn pod(&self, name: &str, spec: &str) {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}"
        );
        self.machine.apply(&pod).ok();
    }

    fn claim(&self, name: &str, mode: &str) {
        let claim = format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  storageClassName: test\n  \
             volumeMode: {mode}\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: 1Mi}}}}\n"
        );
        self.machine.apply(&claim).ok();
    }

    fn running(&self, pod: &str) {
        self.machine.wait_for(&format!("pod/{pod}"), "{.status.phase}", "Running");
    }

    fn delete(&self, what: &[&str]) {
        self.machine.kubectl(&[&["delete", "--timeout=100s"], what].concat()).ok();
    }

    /// Nothing of the volumes is left on the node, in the API, or with the driver.
    pub fn nothing_left(&self) {
        let machine = &self.machine;
        machine.eventually(
            "no attachment is left",
            KUBECTL,
            &["get", "volumeattachments", "-o", "name"],
            |answer| answer.out.is_empty() && answer.code == Some(0),
        );
        machine.wait_for("node/node-1", "{.status.volumesInUse}", "");
        let kubelet = machine.data_dir().join("kubelet");
        let left = machine.run("grep", &["-c", "csi-test\\|kubernetes.io[~/]csi", "/proc/self/mountinfo"]);
        // The driver's own mount of its data is not seen on the node.
        assert_eq!(
            left.out,
            "0\n",
            "mounts are left: {:?}",
            machine.run("grep", &["csi", "/proc/self/mountinfo"])
        );
        let plugin = kubelet.join("plugins/kubernetes.io/csi");
        let files = machine.run("find", &[&plugin.to_string_lossy(), "-type", "f"]);
        assert_eq!(files.out, "");
    }
}

/// A container that waits, with further fields.
fn container(fields: &str) -> String {
    format!(
        "  containers:\n  - name: c\n    image: carrack.dev/toolbox\n    imagePullPolicy: IfNotPresent\n    \
         command: [sleep, \"100000\"]\n{fields}"
    )
}

fn with_claim(claim: &str) -> String {
    container("    volumeMounts: [{name: v, mountPath: /v}]\n")
        + &format!("  volumes: [{{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}]\n")
}

#[test]
fn a_driver_serves_volumes_of_every_kind() {
    let cluster = Cluster::up();
    let machine = &cluster.machine;
    assert_eq!(cluster.get("csinode/node-1", "{.spec.drivers[0].nodeID}"), "id-of-node-1");
    assert_eq!(cluster.get("csinode/node-1", "{.spec.drivers[0].allocatable.count}"), "5");
    let topology =
        cluster.get("node/node-1", "{.metadata.labels.topology\\.csi\\.test\\.carrack\\.dev/node}");
    assert_eq!(topology, "node-1");

    // A volume is made, attached once the driver's controller gets to it, staged and published.
    std::fs::write(cluster.data.join(controller::HOLD), "").expect("written");
    cluster.claim("data", "Filesystem");
    cluster.pod("first", &format!("  securityContext: {{fsGroup: 1234}}\n{}", with_claim("data")));
    machine.wait_for("pvc/data", "{.status.phase}", "Bound");
    let volume = cluster.get("pvc/data", "{.spec.volumeName}");
    machine.eventually(
        "the attachment is asked for",
        KUBECTL,
        &["get", "volumeattachments", "-o", "name"],
        |a| !a.out.is_empty(),
    );
    let in_use = format!("kubernetes.io/csi/{NAME}^{volume}");
    machine.wait_for("node/node-1", "{.status.volumesInUse[0]}", &in_use);
    assert_eq!(cluster.get("pod/first", "{.status.phase}"), "Pending");
    assert_eq!(cluster.calls("NodeStage", &volume).len(), 0);
    std::fs::remove_file(cluster.data.join(controller::HOLD)).expect("removed");
    cluster.running("first");
    let staged = cluster.calls("NodeStage", &volume);
    assert_eq!(staged[0]["publishContext"]["lun"], "7");
    assert_eq!(staged[0]["secrets"]["key"], "s3cret");
    let stage = staged[0]["path"].as_str().expect("a path");
    assert!(stage.starts_with(&format!("/var/lib/kubelet/plugins/kubernetes.io/csi/{NAME}/")), "{stage}");
    assert!(stage.ends_with("/globalmount"), "{stage}");
    let published = &cluster.calls("NodePublish", &volume)[0];
    let uid = cluster.get("pod/first", "{.metadata.uid}");
    let path = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount");
    assert_eq!(published["path"], path);
    let context = &published["context"];
    assert_eq!(context["csi.storage.k8s.io/pod.name"], "first");
    assert_eq!(context["csi.storage.k8s.io/ephemeral"], "false");
    let tokens = context["csi.storage.k8s.io/serviceAccount.tokens"].as_str().expect("tokens");
    let tokens: Value = serde_json::from_str(tokens).expect("JSON");
    assert!(tokens["vault"]["token"].as_str().is_some_and(|token| token.starts_with("ey")), "{tokens}");
    // ReadWriteOnce, to a driver that tells several writers on a node apart.
    assert_eq!(published["mode"], 7);
    assert_eq!(cluster.sh("first", "stat -c %g /v; echo kept > /v/note"), "1234\n");

    // Statistics of the claim are what the driver tells.
    let summary = machine.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"]).ok();
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    let pods = summary["pods"].as_array().expect("pods");
    let stats = pods.iter().find(|pod| pod["podRef"]["name"] == "first").expect("the pod");
    let stats = &stats["volume"]
        .as_array()
        .expect("volumes")
        .iter()
        .find(|one| one["name"] == "v")
        .expect("v")
        .clone();
    assert_eq!(stats["pvcRef"]["name"], "data");
    let numbers = ["capacityBytes", "availableBytes", "usedBytes"].map(|field| stats[field].as_u64());
    assert_eq!(numbers, [Some(1_000_000), Some(600_000), Some(400_000)], "{stats}");
    let metrics = machine.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]).ok();
    let used = "kubelet_volume_stats_used_bytes{namespace=\"default\",persistentvolumeclaim=\"data\"} 400000";
    assert!(metrics.lines().any(|line| line == used), "{used} is missing");

    // Another pod of the node shares what is staged.
    cluster.pod("second", &with_claim("data"));
    cluster.running("second");
    assert_eq!(cluster.sh("second", "cat /v/note"), "kept\n");
    assert_eq!(cluster.calls("NodeStage", &volume).len(), 1);
    cluster.delete(&["pod", "first"]);
    assert_eq!(cluster.calls("NodeUnstage", &volume).len(), 0);
    assert_eq!(cluster.sh("second", "cat /v/note"), "kept\n");

    // Growing, while a pod has it.
    let larger = r#"{"spec": {"resources": {"requests": {"storage": "2Mi"}}}}"#;
    machine.kubectl(&["patch", "pvc", "data", "-p", larger]).ok();
    machine.wait_for("pvc/data", "{.status.capacity.storage}", "2Mi");
    assert_eq!(cluster.calls("NodeExpand", &volume)[0]["size"], 2 << 20);
    assert_eq!(cluster.get("pvc/data", "{.status.conditions}{.status.allocatedResourceStatuses}"), "");

    // A device.
    cluster.claim("disk", "Block");
    let fields = "    volumeDevices: [{name: d, devicePath: /dev/xvda}]\n";
    cluster.pod(
        "raw",
        &(container(fields) + "  volumes: [{name: d, persistentVolumeClaim: {claimName: disk}}]\n"),
    );
    cluster.running("raw");
    cluster.sh("raw", "echo block > /dev/xvda");
    nix::unistd::sync();
    let disk = cluster.get("pvc/disk", "{.spec.volumeName}");
    let content = std::fs::read(cluster.data.join("volumes").join(&disk)).expect("the device's file");
    assert!(content.starts_with(b"block\n"));

    // A volume that comes and goes with its pod.
    cluster.pod(
        "inline",
        &(container("    volumeMounts: [{name: v, mountPath: /v}]\n")
            + "  volumes: [{name: v, csi: {driver: csi.test.carrack.dev, readOnly: true, volumeAttributes: {a: b}}}]\n"),
    );
    cluster.running("inline");
    let inline = &cluster.calls("NodePublish", "csi-")[0];
    assert_eq!(inline["context"]["csi.storage.k8s.io/ephemeral"], "true");
    assert_eq!(inline["context"]["a"], "b");
    machine.kubectl(&["exec", "inline", "--", "sh", "-c", "echo x > /v/x"]).failed();

    cluster.delete(&["pod", "second", "raw", "inline"]);
    cluster.delete(&["pvc", "data", "disk"]);
    machine.eventually("no volume is left", KUBECTL, &["get", "pv", "-o", "name"], |answer| {
        answer.out.is_empty()
    });
    cluster.nothing_left();
    assert_eq!(cluster.calls("NodeUnstage", &volume).len(), 1);
    assert_eq!(cluster.calls("NodeUnstage", &disk).len(), 1);
    // The driver goes, and is known no more.
    cluster.delete(&["daemonset", "driver", "-n", "kube-system"]);
    machine.wait_for("csinode/node-1", "{.spec.drivers[*].name}", "");
}

#[test]
fn volumes_outlive_restarts_of_kubelet_and_driver() {
    let mut cluster = Cluster::up();
    cluster.claim("data", "Filesystem");
    cluster.claim("disk", "Block");
    let raw = container("    volumeDevices: [{name: d, devicePath: /dev/xvda}]\n")
        + "  volumes: [{name: d, persistentVolumeClaim: {claimName: disk}}]\n";
    cluster.pod("kept", &with_claim("data"));
    cluster.pod("raw", &raw);
    cluster.running("kept");
    cluster.running("raw");
    let volume = cluster.get("pvc/data", "{.spec.volumeName}");
    cluster.sh("kept", "echo kept > /v/note");
    cluster.pod("lost", &with_claim("data"));
    cluster.running("lost");
    // One that waits for its volume to be attached.
    std::fs::write(cluster.data.join(controller::HOLD), "").expect("written");
    cluster.claim("late", "Filesystem");
    cluster.pod("late", &with_claim("late"));
    cluster.machine.wait_for("pvc/late", "{.status.phase}", "Bound");
    let late = cluster.get("pvc/late", "{.spec.volumeName}");
    cluster.machine.stop(Signal::SIGKILL);
    cluster.machine.start();
    cluster.machine.wait_for("csinode/node-1", "{.spec.drivers[0].name}", NAME);
    assert_eq!(cluster.sh("kept", "cat /v/note"), "kept\n");
    let in_use = format!("kubernetes.io/csi/{NAME}^{volume}");
    assert!(cluster.get("node/node-1", "{.status.volumesInUse}").contains(&in_use));
    // What was ready is not asked for again.
    assert_eq!(cluster.calls("NodeStage", &volume).len(), 1);
    assert_eq!(cluster.calls("NodePublish", &volume).len(), 2);
    std::fs::remove_file(cluster.data.join(controller::HOLD)).expect("removed");
    cluster.running("late");
    assert_eq!(cluster.calls("NodeStage", &late).len(), 1);
    let force = ["delete", "pod", "lost", "raw", "--grace-period=0", "--force"];
    cluster.machine.kubectl(&force).ok();

    // The driver comes anew; its volumes stay.
    cluster.machine.kubectl(&["delete", "pod", "-n", "kube-system", "-l", "app=driver"]).ok();
    let rollout = ["rollout", "status", "daemonset/driver", "-n", "kube-system", "--timeout=100s"];
    cluster.machine.kubectl(&rollout).ok();
    cluster.machine.wait_for("csinode/node-1", "{.spec.drivers[0].name}", NAME);
    assert_eq!(cluster.sh("kept", "cat /v/note"), "kept\n");
    cluster.delete(&["pod", "kept", "late"]);
    cluster.delete(&["pvc", "data", "disk", "late"]);
    cluster.nothing_left();
}
