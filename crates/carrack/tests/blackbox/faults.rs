//! What must be survived.

use nix::sys::signal::Signal;

use crate::machine::Machine;

#[test]
fn fifty_pods_survive_the_death_of_the_control_plane() {
    let mut machine = Machine::up();
    machine.example("03-replicaset.yaml");
    machine.kubectl(&["scale", "replicaset/replicas", "--replicas=50"]).ok();
    machine.wait_for("replicaset/replicas", "{.status.readyReplicas}", "50");
    let state =
        "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID}{\"\\n\"}{end}";
    let before = machine.kubectl(&["get", "pods", "-o", state]).ok();
    machine.stop(Signal::SIGKILL);
    machine.start();
    machine.wait_for("replicaset/replicas", "{.status.readyReplicas}", "50");
    assert_eq!(machine.kubectl(&["get", "pods", "-o", state]).ok(), before);
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let restarts = machine.kubectl(&["get", "pods", "-o", restarts]).ok();
    assert!(restarts.split(' ').all(|count| count == "0"), "{restarts}");
}

const VOLUMES: &str = "apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {fsGroup: 4711}
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: api, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
  containers:
  - name: c
    image: carrack.dev/toolbox
    imagePullPolicy: IfNotPresent
    command: [sleep, '100000']
    volumeMounts:
    - {name: disk, mountPath: /disk, subPath: below}
    - {name: memory, mountPath: /memory}
    - {name: api, mountPath: /api}
";

/// The kubelet killed at every step of a pod's volumes, coming and going; then the pod runs as if nothing had been, and goes
/// without a trace.
#[test]
fn a_kill_at_any_step_of_a_volume_is_mended() {
    let mut machine = Machine::up();
    let pods = machine.data_dir().join("kubelet/pods");
    let pods = pods.to_string_lossy().into_owned();
    let mut steps = 0;
    for count in 1.. {
        machine.stop(Signal::SIGKILL);
        let at = format!("kubelet.volume.@{count}");
        machine.start_in(&[], &[("CARRACK_FAIL_AT", &at)]);
        let name = format!("volumes-{count}");
        machine.apply(&VOLUMES.replace("NAME", &name)).ok();
        let running = ["get", "pod", &name, "-o", "jsonpath={.status.phase}"];
        let mut killed = false;
        while !killed && machine.kubectl(&running).out != "Running" {
            killed = machine.has_ended();
        }
        if !killed {
            // Not on the way in, so perhaps on the way out.
            machine.kubectl(&["delete", "pod", &name, "--wait=false"]).ok();
            while !killed && machine.kubectl(&["get", "pod", &name]).code == Some(0) {
                killed = machine.has_ended();
            }
        }
        if killed {
            steps = count;
            machine.start();
            machine.apply(&VOLUMES.replace("NAME", &name));
            let deleting = ["get", "pod", &name, "-o", "jsonpath={.metadata.deletionTimestamp}"];
            if machine.kubectl(&deleting).out.is_empty() {
                machine
                    .kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"])
                    .ok();
                let shown = ["exec", &name, "--", "sh", "-c", "cat /api/name; stat -c %g /memory"];
                let shown = machine.kubectl(&shown).out;
                assert!(shown.contains(&name), "{at}: {shown}");
            }
            machine.kubectl(&["delete", "pod", &name, "--ignore-not-found", "--timeout=120s"]).ok();
        }
        machine.eventually("no folder is left", "ls", &["-A", &pods], |answer| answer.out.is_empty());
        let mounts = machine.run("cat", &["/proc/self/mountinfo"]).ok();
        assert!(!mounts.contains(&pods), "{at}: {mounts}");
        if !killed {
            break;
        }
    }
    assert!(steps >= 8, "only {steps} steps were met");
}
