//! Storage that outlives pods, and the node's own disk.

use crate::machine::Machine;

const KUBECTL: &str = "/usr/bin/kubectl";

#[test]
fn a_claim_gets_a_volume_that_holds_its_size_and_outlives_its_pod() {
    let machine = Machine::up();
    machine.example("13-storage.yaml");
    machine.wait_for("pod/notes-0", "{.status.phase}", "Running");
    machine.wait_for("pvc/data-notes-0", "{.status.phase}", "Bound");
    let sh = |text: &str| machine.kubectl(&["exec", "notes-0", "--", "sh", "-c", text]);
    sh("echo kept > /data/note").ok();
    let full = sh("head -c 200000000 /dev/zero > /data/large").failed();
    assert!(full.to_lowercase().contains("no space"), "{full}");
    sh("rm /data/large").ok();

    machine.kubectl(&["delete", "pod", "notes-0", "--grace-period=1"]).ok();
    machine.eventually(
        "the note is read by the next pod",
        KUBECTL,
        &["exec", "notes-0", "--", "cat", "/data/note"],
        |a| a.out == "kept\n",
    );

    let larger = r#"{"spec": {"resources": {"requests": {"storage": "300Mi"}}}}"#;
    // Not every machine can grow a file system that is in use, but each can while it rests.
    machine.kubectl(&["scale", "statefulset", "notes", "--replicas=0"]).ok();
    machine.kubectl(&["wait", "--for=delete", "pod/notes-0", "--timeout=60s"]).ok();
    machine.kubectl(&["patch", "pvc", "data-notes-0", "-p", larger]).ok();
    machine.wait_for("pvc/data-notes-0", "{.status.capacity.storage}", "300Mi");
    machine.kubectl(&["scale", "statefulset", "notes", "--replicas=1"]).ok();
    machine.wait_for("statefulset/notes", "{.status.readyReplicas}", "1");
    sh("head -c 200000000 /dev/zero > /data/large && rm /data/large").ok();

    machine.kubectl(&["delete", "statefulset", "notes"]).ok();
    machine.kubectl(&["delete", "pvc", "data-notes-0"]).ok();
    machine.eventually("no volume is left", KUBECTL, &["get", "pv", "--no-headers"], |answer| {
        answer.out.is_empty() && answer.code == Some(0)
    });
    let left = std::fs::read_dir(machine.data_dir().join("volumes")).expect("the folder of volumes").count();
    assert_eq!(left, 0, "files of a volume that is gone");
}

#[test]
fn a_pod_that_fills_its_own_limit_is_evicted() {
    let machine = Machine::up();
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: hoarder}
spec:
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]
  containers:
  - name: c
    image: carrack.dev/toolbox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "head -c 4000000 /dev/zero > /v/f; sleep 1000"]
    volumeMounts: [{name: v, mountPath: /v}]
"#;
    machine.apply(pod).ok();
    machine.wait_for("pod/hoarder", "{.status.reason}", "Evicted");
    let message = machine.kubectl(&["get", "pod", "hoarder", "-o", "jsonpath={.status.message}"]).ok();
    assert_eq!(message, "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
    machine.wait_for("pod/hoarder", "{.status.phase}", "Failed");
}

#[test]
fn a_running_pod_is_resized_without_a_restart() {
    let machine = Machine::up();
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: elastic}
spec:
  containers:
  - name: c
    image: carrack.dev/toolbox
    imagePullPolicy: IfNotPresent
    command: [sleep, "1000"]
    resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 100m, memory: 64Mi}}
"#;
    machine.apply(pod).ok();
    machine.wait_for("pod/elastic", "{.status.phase}", "Running");
    // Older clients have no option for this subresource, so the object is sent as it is.
    let resize = |cpu: &str| {
        let text = machine.kubectl(&["get", "pod", "elastic", "-o", "json"]).ok();
        let mut pod: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for list in ["requests", "limits"] {
            pod["spec"]["containers"][0]["resources"][list]["cpu"] = cpu.into();
        }
        pod["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
        let url = "/api/v1/namespaces/default/pods/elastic/resize";
        machine.run_with_input(KUBECTL, &["replace", "--raw", url, "-f", "-"], &pod.to_string()).ok();
    };
    resize("200m");
    machine.wait_for("pod/elastic", "{.status.containerStatuses[0].resources.limits.cpu}", "200m");
    machine.wait_for("pod/elastic", "{.status.containerStatuses[0].allocatedResources.cpu}", "200m");
    let restarts = "{.status.containerStatuses[0].restartCount}";
    machine.wait_for("pod/elastic", restarts, "0");
    // What another pod has is granted once that pod is gone.
    let cores = std::thread::available_parallelism().expect("cores").get();
    let cpu = format!("cpu: {}m", cores * 1000 - 400);
    let other = pod.replace("elastic", "greedy").replace("cpu: 50m", &cpu).replace("cpu: 100m", &cpu);
    machine.apply(&other).ok();
    machine.wait_for("pod/greedy", "{.status.phase}", "Running");
    resize("600m");
    machine.wait_for(
        "pod/elastic",
        "{.status.conditions[?(@.type==\"PodResizePending\")].reason}",
        "Deferred",
    );
    machine.wait_for("pod/elastic", "{.status.containerStatuses[0].resources.limits.cpu}", "200m");
    machine.kubectl(&["delete", "pod", "greedy", "--grace-period=0", "--force"]).ok();
    machine.wait_for("pod/elastic", "{.status.containerStatuses[0].resources.limits.cpu}", "600m");
    machine.wait_for("pod/elastic", "{.status.conditions[?(@.type==\"PodResizePending\")].reason}", "");
    machine.wait_for("pod/elastic", restarts, "0");
}
