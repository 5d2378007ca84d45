use cri::v1::{ContainerMetadata, PodSandboxMetadata, PodSandboxState, PodSandboxStatus};
use serde_json::json;

use super::*;

const NOW: i64 = 1000;

fn pod(spec: serde_json::Value) -> Pod {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
    serde_json::from_value(pod).expect("a pod")
}

fn sandbox(ready: bool) -> Option<PodSandboxStatus> {
    let state = if ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready };
    let metadata = Some(PodSandboxMetadata::default());
    Some(PodSandboxStatus { id: "s".into(), state: state as i32, metadata, ..Default::default() })
}

/// `name:running`, `name:created`, `name:unknown` or `name:<exit code>`; ids are the names.
fn view(ready: bool, containers: &[&str]) -> PodView {
    let containers = containers.iter().map(|text| {
        let (name, state) = text.split_once(':').expect("name:state");
        let (state, exit_code) = match state {
            "running" => (ContainerState::ContainerRunning, 0),
            "created" => (ContainerState::ContainerCreated, 0),
            "unknown" => (ContainerState::ContainerUnknown, 0),
            code => (ContainerState::ContainerExited, code.parse().expect("an exit code")),
        };
        ContainerStatus {
            id: name.to_owned(),
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            state: state as i32,
            exit_code,
            finished_at: if state == ContainerState::ContainerExited { NOW * 1_000_000_000 } else { 0 },
            ..Default::default()
        }
    });
    PodView { sandbox: sandbox(ready), stale: Vec::new(), containers: containers.collect() }
}

/// The plan in words: `sandbox`, `kill-pod`, `+start`, `-kill`, `~wait`.
fn check(pod: &Pod, view: &PodView, probes: &[(&str, Probed)], expected: &[&str]) {
    let probes = probes.iter().map(|(id, probed)| ((*id).to_owned(), *probed)).collect();
    let inputs = Inputs {
        pod,
        view,
        probes: &probes,
        busy: &HashSet::new(),
        backoffs: &Backoffs::default(),
        rules: crate::resize::Rules::default(),
        now: Timestamp::from_second(NOW).expect("in range"),
    };
    let plan = plan(&inputs);
    let mut words = Vec::new();
    words.extend(plan.kill_pod.then(|| "kill-pod".to_owned()));
    words.extend(plan.create_sandbox.map(|attempt| format!("sandbox{attempt}")));
    words.extend(plan.kill.iter().map(|kill| format!("-{}", kill.name)));
    words.extend(plan.start.iter().map(|start| format!("+{}", start.name)));
    words.extend(plan.reset.map(|(name, _)| format!("reset-{name}")));
    words.extend(plan.wait.keys().map(|name| format!("~{name}")));
    assert_eq!(words, expected, "{:?}", view.containers);
}

#[test]
fn regular_containers() {
    let always = pod(
        json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}),
    );
    let never = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}));
    let on_failure = pod(json!({"restartPolicy": "OnFailure", "containers": [{"name": "a", "image": "i"}]}));
    check(&always, &PodView::default(), &[], &["sandbox0"]);
    check(&always, &view(true, &[]), &[], &["+a", "+b"]);
    check(&always, &view(true, &["a:running", "b:0"]), &[], &["+b"]);
    check(&always, &view(true, &["a:running", "b:running"]), &[], &[]);
    check(&always, &view(false, &["a:137", "b:137"]), &[], &["kill-pod", "sandbox1"]);
    check(&never, &view(true, &["a:0"]), &[], &["kill-pod"]);
    check(&never, &view(true, &["a:1"]), &[], &["kill-pod"]);
    check(&never, &view(false, &["a:1"]), &[], &["kill-pod"]);
    check(&on_failure, &view(true, &["a:1"]), &[], &["+a"]);
    check(&on_failure, &view(true, &["a:0"]), &[], &["kill-pod"]);
    check(&on_failure, &view(false, &["a:0"]), &[], &["kill-pod"]);
}

#[test]
fn failed_probes_kill_and_restart() {
    let always = pod(json!({"containers": [{"name": "a", "image": "i", "livenessProbe": {}}]}));
    let dead = Probed { liveness: Some(false), ..Probed::default() };
    check(&always, &view(true, &["a:running"]), &[("a", dead)], &["-a"]);
    let unstarted = Probed { startup: Some(false), ..Probed::default() };
    check(&always, &view(true, &["a:running"]), &[("a", unstarted)], &["-a"]);
    let alive = Probed { liveness: Some(true), ..Probed::default() };
    check(&always, &view(true, &["a:running"]), &[("a", alive)], &[]);
}

#[test]
fn init_containers_run_one_by_one() {
    let pod_with = |policy: &str| {
        pod(json!({"restartPolicy": policy,
            "initContainers": [{"name": "i1", "image": "i"}, {"name": "i2", "image": "i"}],
            "containers": [{"name": "a", "image": "i"}]}))
    };
    let always = pod_with("Always");
    check(&always, &view(true, &[]), &[], &["+i1"]);
    check(&always, &view(true, &["i1:running"]), &[], &[]);
    check(&always, &view(true, &["i1:0"]), &[], &["+i2"]);
    check(&always, &view(true, &["i2:1", "i1:0"]), &[], &["+i2"]);
    check(&always, &view(true, &["i2:0", "i1:0"]), &[], &["+a"]);
    check(&always, &view(true, &["a:running"]), &[], &[]);
    check(&pod_with("Never"), &view(true, &["i1:1"]), &[], &["kill-pod"]);
}

#[test]
fn sidecars_start_in_order_and_do_not_keep_the_pod() {
    let pod = pod(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always", "startupProbe": {}}, {"name": "i2", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}]}));
    check(&pod, &view(true, &["s:running"]), &[], &[]);
    let started = Probed { startup: Some(true), ..Probed::default() };
    check(&pod, &view(true, &["s:running"]), &[("s", started)], &["+i2"]);
    check(&pod, &view(true, &["i2:0", "s:running"]), &[("s", started)], &["+a"]);
    check(&pod, &view(true, &["a:running", "i2:0", "s:1"]), &[], &["+s"]);
    check(&pod, &view(true, &["a:0", "i2:0", "s:running"]), &[("s", started)], &["kill-pod"]);
}

#[test]
fn a_crashed_container_waits_for_its_backoff() {
    let pod = pod(json!({"containers": [{"name": "a", "image": "i"}]}));
    let mut backoffs = Backoffs::default();
    let now = Timestamp::from_second(NOW).expect("in range");
    backoffs.next(&backoff_key(&spec(&pod).containers[0]), now, now);
    let inputs = Inputs {
        pod: &pod,
        view: &view(true, &["a:1"]),
        probes: &HashMap::new(),
        busy: &HashSet::new(),
        backoffs: &backoffs,
        rules: crate::resize::Rules::default(),
        now,
    };
    let wait = Wait { remaining: Duration::from_secs(10), delay: Duration::from_secs(10) };
    assert_eq!(plan(&inputs), Plan { wait: BTreeMap::from([("a".to_owned(), wait)]), ..Plan::default() });
}

#[test]
fn a_rule_restarts_the_whole_pod() {
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let pod = pod(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "i"}], "containers": [
        {"name": "a", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rule}, {"name": "b", "image": "i"}]}),
    );
    check(&pod, &view(true, &["a:42", "b:running", "i:0"]), &[], &["reset-a"]);
    check(&pod, &view(true, &["a:1", "b:running", "i:0"]), &[], &[]);
    check(&pod, &view(true, &[]), &[], &["+i"]);
}
