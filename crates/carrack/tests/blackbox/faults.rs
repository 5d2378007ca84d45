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
