//! Probes: one timer per probe of a running container, so that a slow one delays nobody.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::context::Shared;
use crate::env;
use crate::events;
use crate::handler::{self, Answer, Outcome};
use crate::metrics::{PROBE_DURATION, PROBES};
use crate::podutil;

mod grpc;

/// How often a probe is tried that cannot be carried out.
const TRIES: usize = 3;

/// What a probe decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// A decision: thresholds were passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub container_id: String,
    pub kind: Kind,
    pub good: bool,
}

/// A running probe; it ends when dropped.
pub(crate) struct Running {
    pub container_id: String,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is probed.
pub(crate) struct Target {
    pub context: Shared,
    pub pod: Arc<Pod>,
    pub container: Container,
    pub role: podutil::Kind,
    pub container_id: String,
    pub ip: String,
    pub started_at: Timestamp,
}

/// The spec of a probe.
pub(crate) fn of(container: &Container, kind: Kind) -> Option<&Probe> {
    match kind {
        Kind::Startup => container.startup_probe.as_ref(),
        Kind::Liveness => container.liveness_probe.as_ref(),
        Kind::Readiness => container.readiness_probe.as_ref(),
    }
}

/// Starts probing; decisions go to `reports`. `initial` is what counts as decided already.
pub(crate) fn start(
    target: Target,
    kind: Kind,
    initial: Option<bool>,
    reports: mpsc::Sender<Report>,
) -> Option<Running> {
    let probe = of(&target.container, kind)?.clone();
    let container_id = target.container_id.clone();
    let task = tokio::spawn(run(target, kind, probe, initial, reports));
    Some(Running { container_id, task })
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let value = value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
    Duration::from_secs(value.unwrap_or(default))
}

async fn run(target: Target, kind: Kind, probe: Probe, initial: Option<bool>, reports: mpsc::Sender<Report>) {
    let period = seconds(probe.period_seconds, 10);
    let timeout = seconds(probe.timeout_seconds, 1);
    let mut thresholds = Thresholds::new(kind, &probe, initial);
    let delay = i64::from(probe.initial_delay_seconds.unwrap_or(0));
    let due = target.started_at + jiff::SignedDuration::from_secs(delay);
    let wait = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(wait).await;
    let up = Timestamp::now().duration_since(target.context.started);
    tokio::time::sleep(head_start(target.started_at < target.context.started, up, period)).await;
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let begun = std::time::Instant::now();
        let answer = carry_out(&target, &probe, timeout).await;
        tell(&target, kind, &answer);
        if answer.outcome == Outcome::Errored {
            // It says nothing about the container.
            continue;
        }
        note(&target, kind, answer.is_good(), begun.elapsed());
        let Some(good) = thresholds.note(answer.is_good()) else { continue };
        let report = Report { container_id: target.container_id.clone(), kind, good };
        if reports.send(report).await.is_err() {
            return;
        }
        let over = match kind {
            Kind::Startup => true,
            Kind::Liveness => !good,
            Kind::Readiness => false,
        };
        if over {
            return;
        }
    }
}

/// How long a probe waits of a container that a kubelet finds when it starts, so that not all are probed at once.
fn head_start(found: bool, up: jiff::SignedDuration, period: Duration) -> Duration {
    let fresh = Duration::try_from(up).is_ok_and(|up| up < period);
    if found && fresh { period.mul_f64(rand::random_range(0.0..1.0)) } else { Duration::ZERO }
}

/// Tries a probe until it is carried out, a few times.
async fn carry_out(target: &Target, probe: &Probe, timeout: Duration) -> Answer {
    let mut answer = once(target, probe, timeout).await;
    for _ in 1..TRIES {
        if answer.outcome != Outcome::Errored {
            break;
        }
        answer = once(target, probe, timeout).await;
    }
    answer
}

fn tell(target: &Target, kind: Kind, answer: &Answer) {
    let (word, output) = (kind.word(), &answer.output);
    let (reason, message) = match answer.outcome {
        Outcome::Good => return,
        Outcome::Warned => ("ProbeWarning", format!("{word} probe warning: {output}")),
        Outcome::Bad => ("Unhealthy", format!("{word} probe failed: {output}")),
        Outcome::Errored => {
            ("Unhealthy", format!("{word} probe errored and resulted in unknown state: {output}"))
        }
    };
    let object = events::container(&target.pod, target.role, &target.container.name);
    target.context.recorder.warning(object, reason, message);
}

fn note(target: &Target, kind: Kind, good: bool, time: Duration) {
    let place = [
        ("container", target.container.name.as_str()),
        ("namespace", podutil::namespace(&target.pod)),
        ("pod", podutil::name(&target.pod)),
    ];
    let metrics = &target.context.metrics;
    // Upstream measures what succeeds.
    if good {
        metrics.took(PROBE_DURATION, &[&place[..], &[("probe_type", kind.word())]].concat(), time);
    }
    let result = if good { "successful" } else { "failed" };
    let more = [("pod_uid", podutil::uid(&target.pod)), ("probe_type", kind.word()), ("result", result)];
    metrics.count(PROBES, &[&place[..], &more].concat());
}

/// Counts results until they decide something new.
struct Thresholds {
    success: u32,
    failure: u32,
    last: Option<bool>,
    run: u32,
    decided: Option<bool>,
}

impl Thresholds {
    fn new(kind: Kind, probe: &Probe, initial: Option<bool>) -> Self {
        let count = |value: Option<i32>, default| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let decided = initial.or(match kind {
            Kind::Startup => None,
            Kind::Liveness => Some(true),
            Kind::Readiness => Some(false),
        });
        Thresholds {
            success: count(probe.success_threshold, 1),
            failure: count(probe.failure_threshold, 3),
            last: None,
            run: 0,
            decided,
        }
    }

    fn note(&mut self, good: bool) -> Option<bool> {
        self.run = if self.last == Some(good) { self.run + 1 } else { 1 };
        self.last = Some(good);
        let needed = if good { self.success } else { self.failure };
        if self.run < needed || self.decided == Some(good) {
            return None;
        }
        self.decided = Some(good);
        Some(good)
    }
}

async fn once(target: &Target, probe: &Probe, timeout: Duration) -> Answer {
    let container = &target.container;
    if let Some(action) = &probe.exec {
        let command = command(action.command.as_deref().unwrap_or_default(), container);
        return handler::exec(&target.context.cri, &target.container_id, &command, timeout).await;
    }
    if let Some(action) = &probe.http_get {
        return handler::http::probe(action, container, &target.ip, timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&target.ip);
        return match handler::port(&action.port, container) {
            Ok(port) => handler::tcp(host, port, timeout).await,
            Err(error) => Answer::errored(error),
        };
    }
    if let Some(action) = &probe.grpc {
        let service = action.service.as_deref().unwrap_or_default();
        return grpc::check(&target.ip, action.port, service, timeout).await;
    }
    Answer::errored("missing probe handler")
}

/// The command of an exec probe: references to variables that the container has by value are replaced.
fn command(command: &[String], container: &Container) -> Vec<String> {
    let lookup = |name: &str| {
        // The last one of a name is what the container has.
        let found = container.env.iter().flatten().rfind(|variable| variable.name == name)?;
        Some(found.value.clone().unwrap_or_default())
    };
    command.iter().map(|part| env::expand(part, lookup)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_fresh_kubelet_finds_is_spread() {
        let up = jiff::SignedDuration::from_secs;
        let period = Duration::from_secs(10);
        assert_eq!(head_start(false, up(1), period), Duration::ZERO);
        assert_eq!(head_start(true, up(11), period), Duration::ZERO);
        assert!((0..20).all(|_| head_start(true, up(1), period) < period));
    }

    #[test]
    fn commands_see_plain_variables() {
        let env =
            serde_json::json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "B"}]);
        let container = serde_json::json!({"name": "c", "env": env});
        let container: Container = serde_json::from_value(container).expect("a container");
        let given = ["$(A)".to_owned(), "-$(B)-$(C)-$$(A)".to_owned()];
        assert_eq!(command(&given, &container), ["2", "--$(C)-$(A)"]);
    }

    #[test]
    fn thresholds_decide() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut thresholds = Thresholds::new(Kind::Readiness, &probe, None);
        let results = [false, true, true, true, false, false, true, false, false, false, false];
        let decisions: Vec<_> = results.map(|good| thresholds.note(good)).into();
        let mut expected = vec![None; 11];
        expected[2] = Some(true);
        expected[9] = Some(false);
        assert_eq!(decisions, expected);
        let mut liveness = Thresholds::new(Kind::Liveness, &Probe::default(), None);
        assert_eq!(
            [true, false, false, false].map(|good| liveness.note(good)),
            [None, None, None, Some(false)]
        );
    }
}
