//! `up`, Ctrl-C, `up` again, `status`, `down`, and what is left behind.

use nix::sys::signal::Signal;

use crate::machine::Machine;

fn container_ids(machine: &Machine) -> String {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
    machine.kubectl(&["get", "pods", "-o", path]).ok()
}

/// Everything that Carrack puts into the kernel, as text.
fn kernel_state(machine: &Machine) -> String {
    let links = machine.run("ip", &["-brief", "link"]).ok();
    let links: Vec<&str> =
        links.lines().map(|line| line.split([' ', '@']).next().unwrap_or_default()).collect();
    let mounts = machine.run("cat", &["/proc/self/mountinfo"]).ok();
    let rules = machine.run("nft", &["list", "tables"]).ok();
    let groups = machine.run("find", &["/sys/fs/cgroup", "-mindepth", "2", "-type", "d"]).ok();
    let processes = machine.run("ps", &["-eo", "args"]).ok();
    let carrack = processes.lines().filter(|line| line.contains("carrack")).count();
    format!("{links:?}\n{} mounts\n{rules}\n{groups}\n{carrack} processes", mounts.lines().count())
}

#[test]
fn pods_outlive_the_control_plane_and_down_leaves_nothing() {
    let mut machine = Machine::new();
    let before = kernel_state(&machine);
    machine.start();
    let status = machine.carrack(&["status", "--data-dir", &machine.data_dir().to_string_lossy()]).ok();
    assert!(status.contains("node-1 Ready"), "{status}");
    let mode =
        std::fs::metadata(machine.data_dir().join("admin.kubeconfig")).expect("it was written").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);

    machine.example("01-pod.yaml");
    machine.example("03-replicaset.yaml");
    machine.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"]).ok();
    let running = container_ids(&machine);
    let second = machine.carrack(&["up", "--data-dir", &machine.data_dir().to_string_lossy()]).failed();
    assert!(second.contains("runs already"), "{second}");

    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        machine.stop(signal);
        let status = machine.carrack(&["status", "--data-dir", &machine.data_dir().to_string_lossy()]).ok();
        assert!(status.contains("stopped"), "{status}");
        machine.start();
        machine.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"]).ok();
        assert_eq!(container_ids(&machine), running, "after {signal}");
    }
    let data = machine.data_dir().to_string_lossy().into_owned();
    machine.carrack(&["down", "--data-dir", &data, "--purge"]).ok();
    assert_eq!(kernel_state(&machine), before);
    assert!(!machine.data_dir().exists());
}

#[test]
fn a_backup_brings_back_what_was_deleted() {
    let machine = Machine::up();
    let data = machine.data_dir().to_string_lossy().into_owned();
    let file = machine.folder().join("backup").to_string_lossy().into_owned();
    machine.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]).ok();
    machine.carrack(&["backup", "--data-dir", &data, &file]).ok();
    machine.kubectl(&["delete", "configmap", "kept"]).ok();
    machine.carrack(&["restore", "--data-dir", &data, &file]).ok();
    assert_eq!(machine.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]).ok(), "b");
}

#[test]
fn up_in_the_background_merges_its_kubeconfig() {
    let machine = Machine::new();
    let data = machine.data_dir().to_string_lossy().into_owned();
    let said = machine
        .carrack(&["up", "--detach", "--kubeconfig-merge", "--data-dir", &data, "--node-name", "node-1"])
        .ok();
    assert!(said.contains("carrack, in"), "{said}");
    let config = machine.folder().join(".kube/config").to_string_lossy().into_owned();
    let nodes = machine.kubectl(&["--kubeconfig", &config, "--context", "carrack", "get", "nodes"]).ok();
    assert!(nodes.contains("node-1"), "{nodes}");
    machine.carrack(&["down", "--data-dir", &data]).ok();
}
