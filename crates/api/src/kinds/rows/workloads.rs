//! Rows of the workload kinds.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, containers, human_duration, labels, name, or, seconds_between, selector, since, time};
use crate::kinds::json::Read;
use crate::labels::Selector;

fn with_containers(mut row: Vec<Value>, spec: &Value, more: Option<Value>) -> Vec<Value> {
    row.extend(containers(spec));
    row.extend(more);
    row
}

fn template(object: &Value) -> &Value {
    object.dig(&["spec", "template", "spec"])
}

pub(super) fn pod_template(object: &Value, _: Timestamp) -> Vec<Value> {
    let template = object.at("template");
    with_containers(
        vec![name(object)],
        template.at("spec"),
        Some(labels(template.dig(&["metadata", "labels"]))),
    )
}

fn replicas(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    vec![
        name(object),
        spec.num("replicas").into(),
        status.num("replicas").into(),
        status.num("readyReplicas").into(),
        age(object, now),
    ]
}

pub(super) fn replication_controller(object: &Value, now: Timestamp) -> Vec<Value> {
    with_containers(replicas(object, now), template(object), Some(labels(object.dig(&["spec", "selector"]))))
}

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    with_containers(
        replicas(object, now),
        template(object),
        Some(selector(object.dig(&["spec", "selector"]))),
    )
}

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let chosen = Selector::from_json(spec.at("selector")).map_or("<invalid>".to_owned(), |s| s.to_string());
    let row = vec![
        name(object),
        format!("{}/{}", status.num("readyReplicas"), spec.num("replicas")).into(),
        status.num("updatedReplicas").into(),
        status.num("availableReplicas").into(),
        age(object, now),
    ];
    with_containers(row, template(object), Some(chosen.into()))
}

pub(super) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let ready = format!("{}/{}", status.num("readyReplicas"), spec.num("replicas"));
    with_containers(vec![name(object), ready.into(), age(object, now)], template(object), None)
}

pub(super) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = object.at("status");
    let row = vec![
        name(object),
        status.num("desiredNumberScheduled").into(),
        status.num("currentNumberScheduled").into(),
        status.num("numberReady").into(),
        status.num("updatedNumberScheduled").into(),
        status.num("numberAvailable").into(),
        labels(template(object).at("nodeSelector")),
        age(object, now),
    ];
    with_containers(row, template(object), Some(selector(object.dig(&["spec", "selector"]))))
}

pub(super) fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owners = object.at("metadata").items("ownerReferences");
    let owner = owners.iter().find(|owner| owner.flag("controller"));
    let controller = owner.map_or("<none>".to_owned(), |owner| {
        let kind = match owner.text("apiVersion").split_once('/') {
            Some((group, _)) => format!("{}.{group}", owner.text("kind")),
            None => owner.text("kind").to_owned(),
        };
        format!("{}/{}", kind.to_lowercase(), owner.text("name"))
    });
    vec![name(object), controller.into(), object.num("revision").into(), age(object, now)]
}

pub(super) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let succeeded = status.num("succeeded");
    let completions = match (spec.int("completions"), spec.num("parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let duration = time(status.at("startTime")).map_or(String::new(), |start| {
        let end = time(status.at("completionTime")).unwrap_or(now);
        human_duration(seconds_between(start, end))
    });
    let is = |kind: &str| {
        let condition = status.items("conditions").iter().find(|c| c.text("type") == kind);
        condition.is_some_and(|c| c.text("status") == "True")
    };
    let state = if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if object.at("metadata").has("deletionTimestamp") {
        "Terminating"
    } else {
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|c| is(c)).unwrap_or("Running")
    };
    let row = vec![name(object), state.into(), completions.into(), duration.into(), age(object, now)];
    with_containers(row, template(object), Some(selector(spec.at("selector"))))
}

pub(super) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let suspend = match spec.at("suspend").as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let last = match status.at("lastScheduleTime") {
        Value::Null => "<none>".to_owned(),
        time => since(time, now),
    };
    let zone = if spec.has("timeZone") { spec.text("timeZone") } else { "<none>" };
    let row = vec![
        name(object),
        spec.text("schedule").into(),
        or(zone, "").into(),
        suspend.into(),
        status.items("active").len().into(),
        last.into(),
        age(object, now),
    ];
    let job = spec.dig(&["jobTemplate", "spec"]);
    with_containers(row, job.dig(&["template", "spec"]), Some(selector(job.at("selector"))))
}
