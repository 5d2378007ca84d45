//! Job and CronJob.

use serde_json::Value;

use super::json::{Read, Write};
use super::{podspec, prepare};
use crate::Strategy;

pub(super) static JOB: Strategy = Strategy {
    default: default_job,
    prepare_create: |job| {
        generate_selector(job);
        prepare::create_first(job);
    },
    prepare_update: prepare::update_counted,
    prepare_status: prepare::status,
    fields: |job| vec![("status.successful", job.at("status").num("succeeded").to_string())],
    field_labels: &["status.successful"],
    ..Strategy::GENERIC
};

pub(super) static CRON_JOB: Strategy = Strategy {
    default: |object| {
        let spec = object.child("spec");
        let job = spec.child("jobTemplate").child("spec");
        podspec::default_template(job.child("template"));
        default_pod_failure_policy(job);
        spec.fill_zero("concurrencyPolicy", "Allow");
        spec.fill("suspend", false);
        spec.fill("successfulJobsHistoryLimit", 3);
        spec.fill("failedJobsHistoryLimit", 1);
    },
    prepare_create: prepare::create_first,
    prepare_update: prepare::update_counted,
    prepare_status: prepare::status,
    ..Strategy::GENERIC
};

fn default_job(job: &mut Value) {
    let spec = job.child("spec");
    podspec::default_template(spec.child("template"));
    if !spec.has("completions") && !spec.has("parallelism") {
        spec.put("completions", 1);
    }
    spec.fill("parallelism", 1);
    let limit = if spec.has("backoffLimitPerIndex") { i32::MAX } else { 6 };
    spec.fill("backoffLimit", limit);
    spec.fill("completionMode", "NonIndexed");
    spec.fill("suspend", false);
    let replacement = if spec.has("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    spec.fill("podReplacementPolicy", replacement);
    spec.fill("manualSelector", false);
    default_pod_failure_policy(spec);
    let labels = spec.dig(&["template", "metadata", "labels"]).clone();
    if !labels.is_empty_value() {
        job.child("metadata").fill_zero("labels", labels);
    }
}

fn default_pod_failure_policy(spec: &mut Value) {
    let Some(policy) = spec.existing("podFailurePolicy") else { return };
    for rule in policy.items_mut("rules") {
        for pattern in rule.items_mut("onPodConditions") {
            pattern.fill_zero("status", "True");
        }
    }
}

/// Unless the selector is made by hand: labels that name this job alone, and a selector for them.
fn generate_selector(job: &mut Value) {
    if job.at("spec").flag("manualSelector") {
        return;
    }
    let name = job.at("metadata").text("name").to_owned();
    let uid = job.at("metadata").text("uid").to_owned();
    let spec = job.child("spec");
    let labels = spec.child("template").child("metadata").child("labels");
    for (key, value) in [
        ("job-name", &name),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("batch.kubernetes.io/controller-uid", &uid),
    ] {
        labels.fill(key, value.as_str());
    }
    spec.child("selector").child("matchLabels").fill("batch.kubernetes.io/controller-uid", uid);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn job_gets_defaults_and_a_selector() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        (JOB.default)(&mut job);
        (JOB.prepare_create)(&mut job);
        let spec = &job["spec"];
        assert_eq!(spec["completions"], 1);
        assert_eq!(spec["backoffLimit"], 6);
        assert_eq!(spec["podReplacementPolicy"], "TerminatingOrFailed");
        assert_eq!(spec["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        assert_eq!(spec["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!(job["metadata"]["generation"], 1);
    }

    #[test]
    fn parallelism_alone_leaves_completions_open() {
        let mut job = json!({"spec": {"parallelism": 3}});
        (JOB.default)(&mut job);
        assert_eq!(job["spec"].get("completions"), None);
    }
}
