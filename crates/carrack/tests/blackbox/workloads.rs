//! The workload kinds, and what keeps them alive.

use crate::machine::Machine;

const KUBECTL: &str = "/usr/bin/kubectl";

fn names(machine: &Machine, selector: &str) -> Vec<String> {
    let out =
        machine.kubectl(&["get", "pods", "-l", selector, "-o", "jsonpath={.items[*].metadata.name}"]).ok();
    out.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_deployment_rolls_forward_and_back_and_scales() {
    let machine = Machine::up();
    machine.example("04-deployment.yaml");
    machine.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]).ok();
    let version = || machine.kubectl(&["exec", "deploy/web", "--", "sh", "-c", "echo $VERSION"]).ok();
    assert_eq!(version(), "one\n");
    machine.kubectl(&["set", "env", "deployment/web", "VERSION=two"]).ok();
    machine.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]).ok();
    machine.eventually(
        "only new pods",
        KUBECTL,
        &["get", "pods", "-l", "app=web", "--no-headers"],
        |answer| answer.out.lines().count() == 3,
    );
    assert_eq!(version(), "two\n");
    let history = machine.kubectl(&["rollout", "history", "deployment/web"]).ok();
    assert!(history.contains('2'), "{history}");
    machine.kubectl(&["rollout", "undo", "deployment/web"]).ok();
    machine.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]).ok();
    machine.wait_for("deployment/web", "{.spec.template.spec.containers[0].env[0].value}", "one");
    machine.kubectl(&["scale", "deployment/web", "--replicas=5"]).ok();
    machine.wait_for("deployment/web", "{.status.readyReplicas}", "5");
    machine.kubectl(&["delete", "-f", &format!("{}/04-deployment.yaml", crate::machine::EXAMPLES)]).ok();
    machine.eventually("no pods", KUBECTL, &["get", "pods", "-l", "app=web", "--no-headers"], |answer| {
        answer.out.is_empty() && answer.code == Some(0)
    });
}

#[test]
fn a_deleted_pod_is_replaced_and_a_killed_container_restarted() {
    let machine = Machine::up();
    machine.example("03-replicaset.yaml");
    machine.wait_for("replicaset/replicas", "{.status.readyReplicas}", "2");
    let first = names(&machine, "app=replicas");
    machine.kubectl(&["delete", "pod", &first[0], "--grace-period=1"]).ok();
    machine.wait_for("replicaset/replicas", "{.status.readyReplicas}", "2");
    let second = names(&machine, "app=replicas");
    assert!(!second.contains(&first[0]) && second.contains(&first[1]), "{first:?} {second:?}");

    // A process that is killed from outside is noticed, and its container restarted.
    let kill = "for p in /proc/[0-9]*; do case $(cat $p/cmdline 2>/dev/null) in *http-echo*) [ ${p#/proc/} = $$ ] || kill -9 ${p#/proc/};; esac; done";
    machine.run("sh", &["-c", kill]);
    for name in &second {
        machine.wait_for(&format!("pod/{name}"), "{.status.containerStatuses[0].restartCount}", "1");
        let reason = "{.status.containerStatuses[0].lastState.terminated.exitCode}";
        machine.wait_for(&format!("pod/{name}"), reason, "137");
    }
    machine.wait_for("replicaset/replicas", "{.status.readyReplicas}", "2");
}

#[test]
fn a_crashing_container_is_backed_off() {
    let machine = Machine::up();
    machine
        .kubectl(&[
            "run",
            "crash",
            "--image=carrack.dev/toolbox",
            "--image-pull-policy=IfNotPresent",
            "--",
            "false",
        ])
        .ok();
    machine.wait_for("pod/crash", "{.status.containerStatuses[0].state.waiting.reason}", "CrashLoopBackOff");
    let events = machine.kubectl(&["get", "events"]).ok();
    assert!(events.contains("BackOff"), "{events}");
}

#[test]
fn jobs_complete_and_daemons_run_on_every_node() {
    let machine = Machine::up();
    machine.example("09-job.yaml");
    machine.kubectl(&["wait", "--for=condition=Complete", "job/once", "--timeout=120s"]).ok();
    machine.wait_for("job/once", "{.status.succeeded}", "2");
    // The schedule's next minute may be nearly one away.
    machine.wait_for("cronjob/every-minute", "{.spec.schedule}", "* * * * *");
    machine.eventually("a run of the CronJob", KUBECTL, &["get", "jobs", "-o", "name"], |answer| {
        answer.out.contains("every-minute-")
    });
    machine.example("11-daemonset.yaml");
    machine.wait_for("daemonset/everywhere", "{.status.numberReady}", "1");
}
