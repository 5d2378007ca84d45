//! The status of a Job: since other controllers than the built-in one may write it, its transitions are checked. Most rules
//! look only at what a write changes, so that an old fault does not block it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::common;
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, same};

/// A job's conditions, as far as the rules ask for them.
#[derive(PartialEq)]
struct Conditions {
    complete: bool,
    failed: bool,
    failure_target: bool,
    success_criteria_met: bool,
}

impl Conditions {
    fn of(job: &Value) -> Self {
        let is = |kind: &str| condition(job, kind) == "True";
        Self {
            complete: is("Complete"),
            failed: is("Failed"),
            failure_target: is("FailureTarget"),
            success_criteria_met: is("SuccessCriteriaMet"),
        }
    }

    fn finished(&self) -> bool {
        self.complete || self.failed
    }
}

fn condition<'v>(job: &'v Value, kind: &str) -> &'v str {
    let conditions = job.at("status").items("conditions");
    conditions.iter().find(|c| c.text("type") == kind).map_or("", |c| c.text("status"))
}

const OMITTED: &str = "<omitted>";

pub(crate) fn job_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("status");
    let (status, before) = (new.at("status"), old.at("status"));
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        common::not_negative(&mut errors, status, &path, key);
    }
    uncounted(&mut errors, status.at("uncountedTerminatedPods"), &path.child("uncountedTerminatedPods"));
    let (is, was) = (Conditions::of(new), Conditions::of(old));
    conditions(&mut errors, new, (&is, &was), changed(status, before, "failedIndexes"), &path);
    times(&mut errors, new, old, (&is, &was), &path);
    finished(&mut errors, status, before, (&is, &was), &path);
    indexes(&mut errors, new, before, &path);
    counters(&mut errors, new, before, &path);
    errors.0
}

fn changed(new: &Value, old: &Value, key: &str) -> bool {
    !same(new.at(key), old.at(key))
}

fn uncounted(errors: &mut Errors, pods: &Value, path: &Path<'_>) {
    let mut seen = BTreeSet::new();
    for key in ["succeeded", "failed"] {
        let list = path.child(key);
        for (index, uid) in pods.items(key).iter().filter_map(Value::as_str).enumerate() {
            if uid.is_empty() {
                errors.invalid(&list.index(index), uid, "must not be empty");
            } else if !seen.insert(uid) {
                errors.duplicate(&list.index(index), uid);
            }
        }
    }
}

fn conditions(
    errors: &mut Errors,
    new: &Value,
    (is, was): (&Conditions, &Conditions),
    indexes_changed: bool,
    path: &Path<'_>,
) {
    let at = path.child("conditions");
    let mut refuse = |wrong: bool, detail: &str| {
        if wrong {
            errors.invalid(&at, OMITTED, detail);
        }
    };
    let (complete, failed) = (is.complete != was.complete, is.failed != was.failed);
    let (target, met) =
        (is.failure_target != was.failure_target, is.success_criteria_met != was.success_criteria_met);
    refuse(
        (complete || failed) && is.complete && is.failed,
        "cannot set Complete=True and Failed=true conditions",
    );
    refuse(
        (complete || target) && is.complete && is.failure_target,
        "cannot set Complete=True and FailureTarget=true conditions",
    );
    refuse(
        (failed || indexes_changed) && is.failed && !is.failure_target,
        "cannot set Failed=True condition without the FailureTarget=true condition",
    );
    refuse(
        (complete || met) && is.complete && !is.success_criteria_met,
        "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
    );
    refuse(
        is.success_criteria_met && is.failed,
        "cannot set SuccessCriteriaMet=True and Failed=true conditions",
    );
    refuse(
        is.success_criteria_met && is.failure_target,
        "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
    );
    refuse(
        new.at("spec").has("successPolicy") && !is.success_criteria_met && is.complete,
        "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
    );
    for (kind, was, is) in [
        ("Failed", was.failed, is.failed),
        ("Complete", was.complete, is.complete),
        ("FailureTarget", was.failure_target, is.failure_target),
    ] {
        refuse(was && !is, &format!("cannot disable the terminal {kind}=True condition"));
    }
    refuse(
        was.success_criteria_met && !is.success_criteria_met,
        "cannot disable the SuccessCriteriaMet=True condition",
    );
    refuse(
        was.complete && !was.success_criteria_met && is.success_criteria_met,
        "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
    );
}

fn times(
    errors: &mut Errors,
    new: &Value,
    old: &Value,
    (is, was): (&Conditions, &Conditions),
    path: &Path<'_>,
) {
    let (status, before) = (new.at("status"), old.at("status"));
    let (start, completion) = (status.at("startTime"), status.at("completionTime"));
    let (start_changed, completion_changed) =
        (changed(status, before, "startTime"), changed(status, before, "completionTime"));
    let at = path.child("completionTime");
    if is.complete != was.complete || completion_changed {
        if !completion.is_null() && !is.complete {
            let detail = "cannot set completionTime when there is no Complete=True condition";
            errors.invalid(&at, completion.clone(), detail);
        }
        if completion.is_null() && is.complete {
            errors.required(&at, "completionTime is required for Complete jobs");
        }
    }
    // Times are written alike, so that they compare as texts.
    let earlier = completion.as_str().zip(start.as_str()).is_some_and(|(c, s)| c < s);
    if (start_changed || completion_changed) && earlier {
        errors.invalid(&at, completion.clone(), "must be equal to or after `startTime`");
    }
    if !completion.is_null() && before.has("completionTime") && completion_changed {
        errors.invalid(&at, completion.clone(), common::IMMUTABLE);
    }
    let at = path.child("startTime");
    let spec = new.at("spec");
    let none_wanted = spec.flag("suspend") && spec.int("completions") == Some(0);
    if (is.finished() != was.finished() || start_changed) && !none_wanted && start.is_null() && is.finished()
    {
        errors.required(&at, "startTime is required for finished job");
    }
    let resuming = condition(old, "Suspended") == "True" && condition(new, "Suspended") == "False";
    if start_changed && !resuming && before.has("startTime") && !spec.flag("suspend") {
        errors.invalid(&at, start.clone(), "field is immutable for unsuspended job once set");
    }
}

fn finished(
    errors: &mut Errors,
    status: &Value,
    before: &Value,
    (is, was): (&Conditions, &Conditions),
    path: &Path<'_>,
) {
    let ended = is.finished() != was.finished();
    let checked = |key: &str| is.finished() && (ended || changed(status, before, key));
    for (key, detail) in [
        ("active", "active>0 is invalid for finished job"),
        ("terminating", "terminating>0 is invalid for finished job"),
    ] {
        if checked(key) && status.num(key) > 0 {
            errors.invalid(&path.child(key), status.num(key), detail);
        }
    }
    let key = "uncountedTerminatedPods";
    let left = status.at(key);
    if checked(key) && !(left.items("failed").is_empty() && left.items("succeeded").is_empty()) {
        errors.invalid(&path.child(key), left.clone(), "must be empty for finished job");
    }
}

fn counters(errors: &mut Errors, new: &Value, before: &Value, path: &Path<'_>) {
    let (spec, status) = (new.at("spec"), new.at("status"));
    let ready = status.num("ready");
    if (changed(status, before, "ready") || changed(status, before, "active")) && ready > status.num("active")
    {
        errors.invalid(&path.child("ready"), ready, "cannot set more ready pods than active");
    }
    // An indexed job whose completions follow its parallelism may shrink.
    let elastic =
        spec.text("completionMode") == "Indexed" && spec.int("completions") == spec.int("parallelism");
    for (key, checked) in [("failed", true), ("succeeded", !elastic)] {
        if checked && status.num(key) < before.num(key) {
            let detail = format!("cannot decrease the {key} counter");
            errors.invalid(&path.child(key), status.num(key), detail);
        }
    }
}

fn indexes(errors: &mut Errors, new: &Value, before: &Value, path: &Path<'_>) {
    let (spec, status) = (new.at("spec"), new.at("status"));
    let most = spec.int("completions");
    let (done, failed) = (status.text("completedIndexes"), status.at("failedIndexes").as_str());
    let (done_changed, failed_changed) =
        (changed(status, before, "completedIndexes"), changed(status, before, "failedIndexes"));
    let (at_done, at_failed) = (path.child("completedIndexes"), path.child("failedIndexes"));
    let per_index = spec.has("backoffLimitPerIndex");
    if let Some(most) = most {
        if done_changed && let Err(why) = intervals(done, most) {
            errors.invalid(&at_done, done, format!("error parsing completedIndexes: {why}"));
        }
        if failed_changed
            && per_index
            && let Some(failed) = failed
            && let Err(why) = intervals(failed, most)
        {
            errors.invalid(&at_failed, failed, format!("error parsing failedIndexes: {why}"));
        }
    }
    if done_changed && !done.is_empty() && spec.text("completionMode") != "Indexed" {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&at_done, done, detail);
    }
    let Some(failed) = failed else { return };
    if failed_changed && !per_index {
        let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(&at_failed, failed, detail);
    }
    if (failed_changed || done_changed)
        && let Some(most) = most
        && let (Ok(done), Ok(failures)) = (intervals(done, most), intervals(failed, most))
    {
        // Both are in order: the first interval that ends after the failures begin decides.
        let meets = |(from, to): (i64, i64)| {
            let next = done.partition_point(|(_, end)| *end < from);
            done.get(next).filter(|(start, _)| *start <= to).map(|(start, _)| from.max(*start))
        };
        if let Some(index) = failures.into_iter().find_map(meets) {
            let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
            errors.invalid(&at_failed, failed, detail);
        }
    }
}

/// Indexes as intervals in rising order: `0-3,5`.
fn intervals(text: &str, most: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut out: Vec<(i64, i64)> = Vec::new();
    if text.is_empty() {
        return Ok(out);
    }
    for part in text.split(',') {
        let ends: Vec<&str> = part.split('-').collect();
        if ends.len() > 2 {
            return Err(format!(
                "the fragment {part:?} violates the requirement that an index interval can have at most two parts \
                 separated by '-'"
            ));
        }
        let number = |text: &str| match text.parse::<i64>() {
            Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
            Ok(index) if index >= most => Err(format!("too large index: {text:?}")),
            Ok(index) => Ok(index),
        };
        let from = number(ends[0])?;
        let to = match ends.get(1) {
            Some(end) => number(end)?,
            None => from,
        };
        let order =
            |before: i64, now: i64| format!("non-increasing order, previous: {before}, current: {now}");
        if ends.len() == 2 && from >= to {
            return Err(order(from, to));
        }
        if let Some((_, last)) = out.last().filter(|(_, last)| *last >= from) {
            return Err(order(*last, from));
        }
        out.push((from, to));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(new: Value, old: Value, want: &[&str]) {
        let job = |status: &Value| json!({"spec": {"completions": 5, "completionMode": "Indexed", "parallelism": 2}, "status": status});
        let got: Vec<String> = job_status(&job(&new), &job(&old)).into_iter().map(|e| e.field).collect();
        assert_eq!(got, want, "{new}");
    }

    #[test]
    fn transitions() {
        let start = "2020-01-01T00:00:00Z";
        let is = |kinds: &[&str]| -> Value {
            kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect()
        };
        check(json!({"active": 1, "ready": 1}), json!({}), &[]);
        check(json!({"ready": 1}), json!({}), &["status.ready"]);
        check(json!({"succeeded": 1}), json!({"succeeded": 2}), &["status.succeeded"]);
        check(json!({"completedIndexes": "0-2,4"}), json!({}), &[]);
        check(json!({"completedIndexes": "0-2,2"}), json!({}), &["status.completedIndexes"]);
        check(json!({"completedIndexes": "5"}), json!({}), &["status.completedIndexes"]);
        let complete = json!({"startTime": start, "completionTime": start,
            "conditions": is(&["SuccessCriteriaMet", "Complete"])});
        check(complete.clone(), json!({"startTime": start}), &[]);
        check(json!({"startTime": start}), complete.clone(), &["status.conditions", "status.conditions"]);
        check(
            json!({"conditions": is(&["Complete"]), "completionTime": start, "startTime": start}),
            json!({}),
            &["status.conditions"],
        );
        check(json!({"startTime": start, "completionTime": start}), json!({}), &["status.completionTime"]);
    }
}
