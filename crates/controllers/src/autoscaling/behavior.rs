//! From what the metrics propose to what is done: recent proposals steady it and policies limit its speed. Pure; what
//! happened before is in a [`History`].

use std::collections::VecDeque;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

use crate::kit::seconds_since;

/// For how long the highest proposal holds where nothing else is said.
const DOWN_WINDOW: i64 = 300;
/// Nothing that is remembered is ever asked for after this (an hour is the longest window and period that is valid).
const LONGEST: i64 = 3600;
/// More entries than one evaluation every second would make within it.
const MOST: usize = 4096;

/// What was proposed and done of late.
#[derive(Default)]
pub(super) struct History {
    proposals: VecDeque<(Timestamp, i32)>,
    /// Changes of the number of replicas: more is positive.
    changes: VecDeque<(Timestamp, i32)>,
}

fn keep<T>(entries: &mut VecDeque<(Timestamp, T)>, now: Timestamp) {
    while entries.front().is_some_and(|(at, _)| seconds_since(*at, now) > LONGEST) || entries.len() > MOST {
        entries.pop_front();
    }
}

impl History {
    /// Before the first proposal, what is there stands for one.
    pub(super) fn begin(&mut self, current: i32, now: Timestamp) {
        if self.proposals.is_empty() {
            self.proposals.push_back((now, current));
        }
    }

    fn propose(&mut self, replicas: i32, now: Timestamp) {
        self.proposals.push_back((now, replicas));
        keep(&mut self.proposals, now);
    }

    pub(super) fn changed(&mut self, from: i32, to: i32, now: Timestamp) {
        self.changes.push_back((now, to - from));
        keep(&mut self.changes, now);
    }

    fn proposals_within(&self, seconds: i64, now: Timestamp) -> impl Iterator<Item = i32> {
        self.proposals.iter().filter(move |(at, _)| seconds_since(*at, now) < seconds).map(|(_, one)| *one)
    }

    /// How many replicas there were when the period began.
    fn at_start(&self, current: i32, period: i32, now: Timestamp) -> i32 {
        let within = self.changes.iter().filter(|(at, _)| seconds_since(*at, now) < i64::from(period));
        current - within.map(|(_, change)| change).sum::<i32>()
    }
}

/// A reason and a message of a condition.
pub(super) type Why = (&'static str, &'static str);

/// What is to be done and why: of the proposal, and of its limits.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) replicas: i32,
    /// `AbleToScale`.
    pub(super) able: Why,
    /// `ScalingLimited`; whether it is.
    pub(super) limited: (bool, Why),
}

/// The situation of one autoscaler.
pub(super) struct Case<'a> {
    pub(super) current: i32,
    pub(super) proposed: i32,
    pub(super) least: i32,
    pub(super) most: i32,
    pub(super) behavior: Option<&'a HorizontalPodAutoscalerBehavior>,
}

const UP_STABILIZED: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const WITHIN: Why = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: Why = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: Why = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FAST_UP: Why =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: Why =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// Decides, and remembers the proposal.
pub(super) fn decide(case: &Case<'_>, history: &mut History, now: Timestamp) -> Outcome {
    let (steady, why) = steady(case, history, now);
    history.propose(case.proposed, now);
    let able = if steady == case.proposed { READY } else { why };
    let (replicas, why) = limit(case, steady, history, now);
    Outcome { replicas, able, limited: (replicas != steady, why) }
}

fn window(rules: Option<&HPAScalingRules>, otherwise: i64) -> i64 {
    rules.and_then(|rules| rules.stabilization_window_seconds).map_or(otherwise, i64::from)
}

fn steady(case: &Case<'_>, history: &History, now: Timestamp) -> (i32, Why) {
    let Some(behavior) = case.behavior else {
        let highest = history.proposals_within(DOWN_WINDOW, now).max().unwrap_or(case.proposed);
        return (case.proposed.max(highest), DOWN_STABILIZED);
    };
    let (up, down) =
        (window(behavior.scale_up.as_ref(), 0), window(behavior.scale_down.as_ref(), DOWN_WINDOW));
    let lowest = history.proposals_within(up, now).chain([case.proposed]).min().unwrap_or(case.proposed);
    let highest = history.proposals_within(down, now).chain([case.proposed]).max().unwrap_or(case.proposed);
    let why = if case.proposed >= case.current { UP_STABILIZED } else { DOWN_STABILIZED };
    (case.current.max(lowest).min(highest), why)
}

fn limit(case: &Case<'_>, wanted: i32, history: &History, now: Timestamp) -> (i32, Why) {
    let Some(behavior) = case.behavior else {
        // At most twice as many at once.
        let fastest = case.current.saturating_mul(2).max(4);
        let (most, why) = if case.most > fastest { (fastest, TOO_FAST_UP) } else { (case.most, TOO_MANY) };
        return if wanted < case.least {
            (case.least, TOO_FEW)
        } else if wanted > most {
            (most, why)
        } else {
            (wanted, WITHIN)
        };
    };
    if wanted > case.current {
        let fastest = fastest_up(case.current, behavior.scale_up.as_ref(), history, now).max(case.current);
        let (most, why) = if case.most > fastest { (fastest, TOO_FAST_UP) } else { (case.most, TOO_MANY) };
        if wanted > most {
            return (most, why);
        }
    } else if wanted < case.current {
        let fastest =
            fastest_down(case.current, behavior.scale_down.as_ref(), history, now).min(case.current);
        let (least, why) =
            if case.least < fastest { (fastest, TOO_FAST_DOWN) } else { (case.least, TOO_FEW) };
        if wanted < least {
            return (least, why);
        }
    }
    (wanted, WITHIN)
}

fn policies(rules: Option<&HPAScalingRules>, otherwise: &[(&str, i32, i32)]) -> Vec<HPAScalingPolicy> {
    let own = rules.and_then(|rules| rules.policies.clone()).filter(|own| !own.is_empty());
    own.unwrap_or_else(|| {
        let policy = |(type_, value, period): &(&str, i32, i32)| HPAScalingPolicy {
            type_: (*type_).to_owned(),
            value: *value,
            period_seconds: *period,
        };
        otherwise.iter().map(policy).collect()
    })
}

fn fastest_up(current: i32, rules: Option<&HPAScalingRules>, history: &History, now: Timestamp) -> i32 {
    let select = rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let allowed = policies(rules, &[("Pods", 4, 15), ("Percent", 100, 15)]).into_iter().map(|policy| {
        let start = history.at_start(current, policy.period_seconds, now);
        match policy.type_.as_str() {
            "Pods" => start.saturating_add(policy.value),
            _ => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
        }
    });
    if select == "Min" { allowed.min() } else { allowed.max() }.unwrap_or(current)
}

fn fastest_down(current: i32, rules: Option<&HPAScalingRules>, history: &History, now: Timestamp) -> i32 {
    let select = rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let allowed = policies(rules, &[("Percent", 100, 15)]).into_iter().map(|policy| {
        let start = history.at_start(current, policy.period_seconds, now);
        match policy.type_.as_str() {
            "Pods" => start.saturating_sub(policy.value),
            _ => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
        }
    });
    if select == "Min" { allowed.max() } else { allowed.min() }.unwrap_or(current)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).expect("a time")
    }

    /// Decides for proposals at times; each outcome becomes the current number.
    fn check(behavior: Value, start: i32, steps: &[(i64, i32, i32, &str)]) {
        let behavior: Option<HorizontalPodAutoscalerBehavior> =
            serde_json::from_value(behavior).expect("a behavior");
        let mut history = History::default();
        let mut current = start;
        for (second, proposed, expected, reason) in steps {
            let case = Case { current, proposed: *proposed, least: 1, most: 20, behavior: behavior.as_ref() };
            let outcome = decide(&case, &mut history, at(*second));
            assert_eq!(outcome.replicas, *expected, "at {second}");
            let why = if outcome.limited.0 { outcome.limited.1.0 } else { outcome.able.0 };
            assert_eq!(why, *reason, "at {second}");
            if outcome.replicas != current {
                history.changed(current, outcome.replicas, at(*second));
            }
            current = outcome.replicas;
        }
    }

    #[test]
    fn without_behavior() {
        check(
            json!(null),
            2,
            &[
                (0, 10, 4, "ScaleUpLimit"),
                (15, 10, 8, "ScaleUpLimit"),
                (30, 10, 10, "ReadyForNewScale"),
                (45, 1, 10, "ScaleDownStabilized"),
                (340, 1, 1, "ReadyForNewScale"),
                (355, 50, 4, "ScaleUpLimit"),
            ],
        );
        check(json!(null), 15, &[(0, 50, 20, "TooManyReplicas"), (301, 0, 1, "TooFewReplicas")]);
    }

    #[test]
    fn policies_limit_the_speed() {
        let behavior = json!({
            "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
                {"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 200, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "policies": [
                {"type": "Pods", "value": 1, "periodSeconds": 60}]},
        });
        check(
            behavior,
            2,
            &[
                (0, 10, 4, "ScaleUpLimit"),
                (30, 10, 4, "ScaleUpLimit"),
                (61, 10, 6, "ScaleUpLimit"),
                (200, 1, 5, "ScaleDownLimit"),
                (230, 1, 5, "ScaleDownLimit"),
                (261, 1, 4, "ScaleDownLimit"),
            ],
        );
        let off = json!({"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Disabled"}});
        check(off, 5, &[(0, 1, 5, "ScaleDownLimit")]);
    }

    #[test]
    fn windows_hold_the_lowest_and_the_highest() {
        let behavior = json!({"scaleUp": {"stabilizationWindowSeconds": 60}, "scaleDown": {"stabilizationWindowSeconds": 60}});
        check(
            behavior,
            3,
            &[(0, 3, 3, "ReadyForNewScale"), (15, 6, 3, "ScaleUpStabilized"), (61, 6, 6, "ReadyForNewScale")],
        );
    }
}
