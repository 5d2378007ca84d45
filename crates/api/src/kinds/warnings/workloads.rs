//! What makes pods.

use serde_json::Value;

use super::{changed, pod, storage};
use crate::kinds::json::Read;
use crate::names;

/// A name that goes into names of pods and host names.
pub(super) fn name(out: &mut Vec<String>, object: &Value, used: &str) {
    let told = names::dns1123_label(object.at("metadata").text("name"));
    if !told.is_empty() {
        out.push(format!(
            "metadata.name: this is used in {used}, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            told.join(" ")
        ));
    }
}

const NAMES: &str = "Pod names and hostnames";

pub(super) fn named_template(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if old.is_none() {
        name(&mut out, new, NAMES);
    }
    if changed(new, old) {
        pod::template(&mut out, new.dig(&["spec", "template"]), "spec.template");
    }
    out
}

pub(super) fn replication_controller(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if old.is_none() {
        name(&mut out, new, NAMES);
    }
    if changed(new, old) {
        // Upstream looks at the template that is replaced.
        let template = old.unwrap_or(new).dig(&["spec", "template"]);
        if !template.is_null() {
            pod::template(&mut out, template, "spec.template");
        }
    }
    out
}

pub(super) fn daemon_set(new: &Value, old: Option<&Value>) -> Vec<String> {
    const GENERATION: [&str; 3] = ["metadata", "annotations", "deprecated.daemonset.template.generation"];
    let mut out = Vec::new();
    if old.is_none_or(|old| new.dig(&GENERATION) != old.dig(&GENERATION)) {
        pod::template(&mut out, new.dig(&["spec", "template"]), "spec.template");
    }
    out
}

pub(super) fn stateful_set(new: &Value, old: Option<&Value>) -> Vec<String> {
    let spec = new.at("spec");
    let mut out = Vec::new();
    if changed(new, old) {
        pod::template(&mut out, spec.at("template"), "spec.template");
    }
    let below = if old.is_some() { ".Spec" } else { "" };
    for (index, claim) in spec.items("volumeClaimTemplates").iter().enumerate() {
        let path = format!("spec.volumeClaimTemplates[{index}]{below}");
        storage::claim_spec(&mut out, claim.at("spec"), &path);
    }
    if spec.num("revisionHistoryLimit") < 0 {
        out.push(
            "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                .to_owned(),
        );
    }
    out
}

pub(super) fn pod_template(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if changed(new, old) {
        pod::template(&mut out, new.at("template"), "template");
    }
    out
}

pub(super) fn job(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = Vec::new();
    if old.is_none() {
        name(&mut out, new, NAMES);
    }
    if changed(new, old) {
        job_spec(&mut out, new.at("spec"), "spec");
    }
    out
}

pub(super) fn cron_job(new: &Value, old: Option<&Value>) -> Vec<String> {
    let spec = new.at("spec");
    let mut out = Vec::new();
    if old.is_none() {
        name(&mut out, new, NAMES);
    }
    if changed(new, old) {
        job_spec(&mut out, spec.dig(&["jobTemplate", "spec"]), "spec.jobTemplate.spec");
    }
    if old.is_some() && spec.text("schedule").contains("TZ") {
        out.push(
            "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                .to_owned(),
        );
    }
    out
}

fn job_spec(out: &mut Vec<String>, spec: &Value, path: &str) {
    if spec.text("completionMode") == "Indexed"
        && spec.num("completions") > 100_000
        && spec.num("parallelism") > 10_000
    {
        out.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
             Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    pod::template(out, spec.at("template"), &format!("{path}.template"));
}
