//! Pods that come from a folder of the node.

use crate::machine::Machine;

const KUBECTL: &str = "/usr/bin/kubectl";

#[test]
fn a_static_pod_runs_is_shown_and_follows_its_file() {
    let mut machine = Machine::new();
    let manifests = machine.folder().join("manifests");
    std::fs::create_dir(&manifests).expect("a folder");
    let write = |version: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: agent}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - name: c\n    image: carrack.dev/toolbox\n    imagePullPolicy: IfNotPresent\n    \
             command: [sh, -c, 'echo {version}; sleep 1000']\n"
        );
        std::fs::write(manifests.join("agent.yaml"), text).expect("written");
    };
    write("one");
    machine.start_with(&["--pod-manifest-path", &manifests.to_string_lossy()]);
    let name = machine.kubectl(&["get", "node", "-o", "jsonpath={.items[0].metadata.name}"]).ok();
    let name = format!("agent-{name}");
    let says = |version: &str| {
        machine.eventually(version, KUBECTL, &["logs", &name], |answer| answer.out == format!("{version}\n"));
    };
    says("one");
    machine.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running");
    write("two");
    says("two");
    machine.kubectl(&["delete", "pod", &name, "--grace-period=0", "--force"]).ok();
    machine.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running");
    std::fs::remove_file(manifests.join("agent.yaml")).expect("removed");
    machine.eventually("no pod", KUBECTL, &["get", "pods", "--no-headers"], |answer| {
        answer.out.is_empty() && answer.code == Some(0)
    });
}
