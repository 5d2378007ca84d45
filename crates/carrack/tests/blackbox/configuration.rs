//! What pods are given: volumes, configuration, limits, probes, identities.

use crate::machine::Machine;

fn logs(machine: &Machine, pod: &str, container: &str) -> String {
    machine.kubectl(&["logs", pod, "-c", container]).ok()
}

#[test]
fn configuration_volumes_and_init_containers() {
    let machine = Machine::up();
    for file in
        ["02-two-containers.yaml", "05-configuration.yaml", "06-volumes.yaml", "07-init-container.yaml"]
    {
        machine.example(file);
    }
    for pod in ["configured", "volumes", "init"] {
        machine.wait_for(&format!("pod/{pod}"), "{.status.phase}", "Succeeded");
    }
    assert_eq!(
        logs(&machine, "configured", "show"),
        "colour=blue password=open-sesame\n[ship]\nmasts = 3\nopen-sesame"
    );
    assert_eq!(logs(&machine, "volumes", "writer"), "from the pod\nscratch\n");
    assert_eq!(logs(&machine, "init", "main"), "prepared\n");
    machine.eventually(
        "both containers",
        "/usr/bin/kubectl",
        &["logs", "two-containers", "-c", "client"],
        |answer| answer.out.ends_with("written by the server\nboth work\n"),
    );
}

#[test]
fn limits_bind() {
    let machine = Machine::up();
    machine.example("10-limits.yaml");
    machine.wait_for("pod/hungry", "{.status.containerStatuses[0].state.terminated.reason}", "OOMKilled");
    machine.wait_for("pod/hungry", "{.status.containerStatuses[0].state.terminated.exitCode}", "137");
    machine.wait_for("pod/hungry", "{.status.phase}", "Failed");
    machine.wait_for("pod/hungry", "{.status.qosClass}", "Burstable");
}

#[test]
fn probes_start_route_and_restart() {
    let machine = Machine::up();
    machine.example("08-probes.yaml");
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/probes", "--timeout=120s"]).ok();
    machine.kubectl(&["exec", "probes", "--", "rm", "/tmp/alive"]).ok();
    machine.wait_for("pod/probes", "{.status.containerStatuses[0].restartCount}", "1");
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/probes", "--timeout=120s"]).ok();
    let events = machine.kubectl(&["get", "events"]).ok();
    assert!(events.contains("Unhealthy") && events.contains("Killing"), "{events}");
}

#[test]
fn a_namespace_has_its_own_rights() {
    let machine = Machine::up();
    machine.example("12-namespace-rbac.yaml");
    let can = |verb: &str, resource: &str, namespace: &str| {
        let user = "--as=system:serviceaccount:team:reader";
        machine.kubectl(&["auth", "can-i", verb, resource, "-n", namespace, user]).out
    };
    assert_eq!(can("list", "pods", "team"), "yes\n");
    assert_eq!(can("delete", "pods", "team"), "no\n");
    assert_eq!(can("list", "pods", "default"), "no\n");
    // The same from inside a pod, with the token that it was given.
    let script = "T=$(cat /var/run/secrets/kubernetes.io/serviceaccount/token); \
                  toolbox http -k -H \"Authorization: Bearer $T\" https://kubernetes.default.svc/api/v1/namespaces/team/$1";
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: reader, namespace: team}}\nspec:\n  serviceAccountName: reader\n  \
         restartPolicy: Never\n  containers:\n  - name: c\n    image: carrack.dev/toolbox\n    imagePullPolicy: IfNotPresent\n    \
         command: [sh, -c, {script:?}, sh, pods]\n"
    );
    machine.apply(&pod).ok();
    let args = ["logs", "reader", "-n", "team"];
    machine.eventually("the list", "/usr/bin/kubectl", &args, |answer| {
        answer.out.contains("\"kind\":\"PodList\"")
    });
}
