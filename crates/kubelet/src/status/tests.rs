use cri::v1::{ContainerMetadata, PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus};
use serde_json::json;

use super::*;

fn pod(spec: serde_json::Value) -> Pod {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
    serde_json::from_value(pod).expect("a pod")
}

fn container(name: &str, attempt: u32, state: CriState, exit_code: i32) -> CriStatus {
    CriStatus {
        id: format!("{name}{attempt}"),
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt }),
        state: state as i32,
        exit_code,
        ..Default::default()
    }
}

fn view(containers: Vec<CriStatus>) -> PodView {
    let network = PodSandboxNetworkStatus { ip: "10.244.0.5".to_owned(), additional_ips: Vec::new() };
    let sandbox = PodSandboxStatus {
        state: PodSandboxState::SandboxReady as i32,
        network: Some(network),
        ..Default::default()
    };
    PodView { sandbox: Some(sandbox), stale: Vec::new(), containers }
}

struct Case {
    pod: Pod,
    view: PodView,
    waiting: HashMap<String, Waiting>,
    probes: HashMap<String, Probed>,
    terminal: bool,
}

impl Case {
    fn new(spec: serde_json::Value, containers: Vec<CriStatus>) -> Self {
        Case {
            pod: pod(spec),
            view: view(containers),
            waiting: HashMap::new(),
            probes: HashMap::new(),
            terminal: false,
        }
    }

    fn status(&self) -> PodStatus {
        generate(&Inputs {
            resize: &Resize::default(),
            restarting: Restarting::No,
            pod: &self.pod,
            view: &self.view,
            probes: &self.probes,
            waiting: &self.waiting,
            previous: &PodStatus::default(),
            host_ips: &["192.0.2.1".parse().expect("an address")],
            terminal: self.terminal,
            gone: false,
            verdict: None,
            refused: false,
            rules: crate::resize::Rules::default(),
            devices: None,
            now: Timestamp::from_second(1000).expect("in range"),
        })
    }

    /// The phase, then the conditions that are true.
    fn check(&self, phase: &str, conditions: &[&str]) {
        let status = self.status();
        assert_eq!(status.phase.as_deref(), Some(phase));
        let all = status.conditions.expect("conditions");
        let yes: Vec<&str> = all.iter().filter(|c| c.status == "True").map(|c| c.type_.as_str()).collect();
        assert_eq!(yes, conditions);
    }
}

const RUNNING: CriState = CriState::ContainerRunning;
const EXITED: CriState = CriState::ContainerExited;

#[test]
fn phases_and_conditions() {
    let one = json!({"containers": [{"name": "a", "image": "i"}]});
    let never = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]});
    let ready = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let unready = ["PodReadyToStartContainers", "Initialized", "PodScheduled"];
    Case::new(one.clone(), vec![]).check("Pending", &unready);
    Case::new(one.clone(), vec![container("a", 0, RUNNING, 0)]).check("Running", &ready);
    Case::new(one, vec![container("a", 0, EXITED, 1)]).check("Running", &unready);
    Case::new(never.clone(), vec![container("a", 0, EXITED, 0)]).check("Succeeded", &unready);
    Case::new(never, vec![container("a", 0, EXITED, 3)]).check("Failed", &unready);
}

#[test]
fn readiness_follows_the_probe() {
    let spec = json!({"containers": [{"name": "a", "image": "i", "readinessProbe": {}}]});
    let mut case = Case::new(spec, vec![container("a", 0, RUNNING, 0)]);
    case.check("Running", &["PodReadyToStartContainers", "Initialized", "PodScheduled"]);
    case.probes.insert("a0".into(), Probed { readiness: Some(true), ..Probed::default() });
    assert!(case.status().container_statuses.expect("statuses")[0].ready);
}

#[test]
fn init_containers_keep_the_pod_pending() {
    let spec =
        json!({"initContainers": [{"name": "i", "image": "i"}], "containers": [{"name": "a", "image": "i"}]});
    let pending = ["PodReadyToStartContainers", "PodScheduled"];
    let case = Case::new(spec.clone(), vec![container("i", 0, RUNNING, 0)]);
    case.check("Pending", &pending);
    let status = case.status();
    let waiting =
        status.container_statuses.as_ref().expect("statuses")[0].state.clone().expect("a state").waiting;
    assert_eq!(waiting.expect("waiting").reason.as_deref(), Some("PodInitializing"));
    let done = vec![container("a", 0, RUNNING, 0), container("i", 0, EXITED, 0)];
    assert_eq!(Case::new(spec, done).status().phase.as_deref(), Some("Running"));
}

#[test]
fn a_crash_loop_shows_the_last_end() {
    let spec = json!({"containers": [{"name": "a", "image": "i"}]});
    let mut case = Case::new(spec, vec![container("a", 1, EXITED, 2), container("a", 0, EXITED, 1)]);
    case.waiting.insert("a".into(), Waiting { reason: "CrashLoopBackOff".into(), message: "m".into() });
    let status = case.status().container_statuses.expect("statuses").remove(0);
    assert_eq!(status.restart_count, 1);
    assert_eq!(
        status.state.expect("state").waiting.expect("waiting").reason.as_deref(),
        Some("CrashLoopBackOff")
    );
    assert_eq!(status.last_state.expect("last").terminated.expect("ended").exit_code, 2);
}

#[test]
fn addresses_and_class_are_filled_in() {
    let status = Case::new(json!({"containers": [{"name": "a", "image": "i"}]}), vec![]).status();
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.5"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    assert!(status.start_time.is_some());
}
