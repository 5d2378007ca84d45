//! Job and CronJob.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::common::{self, immutable, not_negative, one_of};
use super::{cron, podspec};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::{Read, Write, keep};
use crate::labels::Selector;
use crate::names;

const LABELS: [(&str, bool); 4] = [
    ("controller-uid", true),
    ("job-name", false),
    ("batch.kubernetes.io/controller-uid", true),
    ("batch.kubernetes.io/job-name", false),
];

pub(crate) fn job(job: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (job.at("spec"), Path::new("spec"));
    generated_selector(&mut errors, job);
    job_spec(&mut errors, spec, &path);
    let at = path.child("selector");
    match spec.at("selector") {
        Value::Null => errors.required(&at, ""),
        selector => common::label_selector(&mut errors, selector, &at),
    }
    let labels = spec.dig(&["template", "metadata", "labels"]);
    if Selector::from_json(spec.at("selector")).is_ok_and(|found| !found.matches_labels(labels)) {
        let at = path.child("template");
        let at = at.child("metadata");
        errors.invalid(&at.child("labels"), labels.clone(), "`selector` does not match template `labels`");
    }
    let indexed = spec.text("completionMode") == "Indexed";
    if let Some(completions) = spec.int("completions").filter(|n| indexed && *n > 0) {
        let name = job.at("metadata").text("name");
        let longest = format!("{name}-{}", completions - 1);
        if !names::dns1123_label(&longest).is_empty() {
            let meta = Path::new("metadata");
            let detail = format!("will not able to create pod with invalid DNS label: {longest}");
            errors.invalid(&meta.child("name"), name, detail);
        }
    }
    errors.0
}

fn generated_selector(errors: &mut Errors, job: &Value) {
    let spec = job.at("spec");
    if spec.flag("manualSelector") || !spec.has("selector") {
        return;
    }
    let meta = job.at("metadata");
    let labels = spec.dig(&["template", "metadata", "labels"]);
    let path = Path::new("spec");
    let at = path.child("template");
    let at = at.child("metadata");
    let at = at.child("labels");
    let mut expected = json!({});
    for (key, is_uid) in LABELS {
        let value = meta.text(if is_uid { "uid" } else { "name" });
        expected.put(key, value);
        match labels.get(key).and_then(Value::as_str) {
            None => errors.required(&at.key(key), format!("must be '{value}'")),
            Some(own) if own != value => {
                errors.invalid(&at.key(key), labels.clone(), format!("must be '{value}'"));
            }
            Some(_) => {}
        }
    }
    if Selector::from_json(spec.at("selector")).is_ok_and(|found| !found.matches_labels(&expected)) {
        let detail = "`selector` not auto-generated";
        errors.invalid(&path.child("selector"), spec.at("selector").clone(), detail);
    }
}

fn job_spec(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        not_negative(errors, spec, path, key);
    }
    let (limit, failed) = (spec.int("backoffLimitPerIndex"), spec.int("maxFailedIndexes"));
    if failed.is_some() && limit.is_none() {
        errors.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if spec.has("managedBy") {
        managed_by(errors, spec.text("managedBy"), &path.child("managedBy"));
    }
    match spec.text("completionMode") {
        "Indexed" => indexed(errors, spec, path),
        mode => {
            if !matches!(mode, "" | "NonIndexed") {
                let at = path.child("completionMode");
                errors.not_supported(&at, mode, &["NonIndexed", "Indexed"]);
            } else {
                for (key, value) in [("backoffLimitPerIndex", limit), ("maxFailedIndexes", failed)] {
                    if let Some(value) = value {
                        errors.invalid(&path.child(key), value, "requires indexed completion mode");
                    }
                }
            }
        }
    }
    if spec.has("podFailurePolicy") {
        failure_policy(errors, spec, &path.child("podFailurePolicy"));
    }
    if spec.has("successPolicy") {
        let at = path.child("successPolicy");
        match spec.text("completionMode") {
            "Indexed" => success_policy(errors, spec, &at),
            _ => errors.invalid(&at, spec.at("successPolicy").clone(), "requires indexed completion mode"),
        }
    }
    replacement_policy(errors, spec, &path.child("podReplacementPolicy"));
    let at = path.child("template");
    podspec::template(errors, spec.at("template"), &at);
    let at = at.child("spec");
    let at = at.child("restartPolicy");
    match spec.dig(&["template", "spec", "restartPolicy"]).as_str().unwrap_or_default() {
        "" | "Always" => errors.required(&at, "valid values: \"OnFailure\", \"Never\""),
        "Never" => {}
        "OnFailure" if spec.has("podFailurePolicy") => {
            errors.invalid(
                &at,
                "OnFailure",
                "only \"Never\" is supported when podFailurePolicy is specified",
            );
        }
        "OnFailure" => {}
        other => errors.not_supported(&at, other, &["OnFailure", "Never"]),
    }
}

fn managed_by(errors: &mut Errors, name: &str, path: &Path<'_>) {
    match name.split_once('/') {
        _ if name.is_empty() => errors.required(path, ""),
        Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
            common::subdomain(errors, host, path);
            if !names::is_http_path(rest) {
                errors.invalid(
                    path,
                    rest,
                    "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
                );
            }
        }
        _ => errors.invalid(path, name, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
    if name.len() > 63 {
        errors.too_long(path, 63);
    }
}

fn indexed(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    const MANY: i64 = 100_000;
    const FEW: i64 = 10_000;
    let (completions, failed) = (spec.int("completions"), spec.int("maxFailedIndexes"));
    let parallelism = spec.num("parallelism");
    if completions.is_none() {
        errors.required(&path.child("completions"), "when completion mode is Indexed");
    }
    if parallelism > MANY {
        let detail = format!("must be less than or equal to {MANY} when completion mode is Indexed");
        errors.invalid(&path.child("parallelism"), parallelism, detail);
    }
    let at = path.child("maxFailedIndexes");
    if let Some(failed) = failed {
        if completions.is_some_and(|completions| failed > completions) {
            errors.invalid(&at, failed, "must be less than or equal to completions");
        }
        if failed > MANY {
            errors.invalid(&at, failed, format!("must be less than or equal to {MANY}"));
        }
    }
    if completions.is_some_and(|completions| completions > MANY) && spec.has("backoffLimitPerIndex") {
        let detail = format!(
            "must be less than or equal to {FEW} when completions are above {MANY} and used with backoff limit per index"
        );
        match failed {
            None => {
                errors.required(&at, format!("must be specified when completions is above {MANY}"));
            }
            Some(failed) if failed > FEW => errors.invalid(&at, failed, detail.clone()),
            Some(_) => {}
        }
        if parallelism > FEW {
            errors.invalid(&path.child("parallelism"), parallelism, detail);
        }
    }
}

fn failure_policy(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    let rules = spec.at("podFailurePolicy").items("rules");
    let list = path.child("rules");
    if rules.len() > 20 {
        errors.too_many(&list, rules.len(), 20);
    }
    for (index, rule) in rules.iter().enumerate() {
        let at = list.index(index);
        match rule.text("action") {
            "" => errors.required(
                &at.child("action"),
                "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            ),
            "FailIndex" if !spec.has("backoffLimitPerIndex") => {
                errors.invalid(
                    &at.child("action"),
                    "FailIndex",
                    "requires the backoffLimitPerIndex to be set",
                );
            }
            action if ACTIONS.contains(&action) => {}
            action => errors.not_supported(&at.child("action"), action, &ACTIONS),
        }
        let (codes, conditions) = (rule.at("onExitCodes"), rule.items("onPodConditions"));
        if !codes.is_null() {
            exit_codes(errors, codes, spec, &at.child("onExitCodes"));
        }
        pod_conditions(errors, conditions, &at.child("onPodConditions"));
        let detail = match (codes.is_null(), conditions.is_empty()) {
            (false, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (true, true) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        errors.invalid(&at, Value::Null, detail);
    }
}

fn exit_codes(errors: &mut Errors, codes: &Value, spec: &Value, path: &Path<'_>) {
    let operator = codes.text("operator");
    match operator {
        "" => errors.required(&path.child("operator"), "valid values: [\"In\" \"NotIn\"]"),
        "In" | "NotIn" => {}
        other => errors.not_supported(&path.child("operator"), other, &["In", "NotIn"]),
    }
    if let Some(name) = codes.at("containerName").as_str() {
        let pod = spec.dig(&["template", "spec"]);
        let known =
            pod.items("containers").iter().chain(pod.items("initContainers")).any(|c| c.text("name") == name);
        if !known {
            errors.invalid(
                &path.child("containerName"),
                name,
                "must be one of the container or initContainer names in the pod template",
            );
        }
    }
    let values: Vec<i64> = codes.items("values").iter().filter_map(Value::as_i64).collect();
    let list = path.child("values");
    if values.is_empty() {
        errors.invalid(&list, values.clone(), "at least one value is required");
    } else if values.len() > 255 {
        errors.too_many(&list, values.len(), 255);
    }
    let mut seen = BTreeSet::new();
    for (index, value) in values.iter().enumerate() {
        if operator == "In" && *value == 0 {
            errors.invalid(&list.index(index), *value, "must not be 0 for the In operator");
        }
        if !seen.insert(*value) {
            errors.duplicate(&list.index(index), *value);
        }
    }
    if !values.is_sorted() {
        errors.invalid(&list, values, "must be ordered");
    }
}

fn pod_conditions(errors: &mut Errors, patterns: &[Value], path: &Path<'_>) {
    if patterns.len() > 20 {
        errors.too_many(path, patterns.len(), 20);
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let at = path.index(index);
        common::label_name(errors, pattern.text("type"), &at.child("type"));
        match pattern.text("status") {
            "" => errors.required(&at.child("status"), "valid values: [\"False\" \"True\" \"Unknown\"]"),
            "True" | "False" | "Unknown" => {}
            other => errors.not_supported(&at.child("status"), other, &["False", "True", "Unknown"]),
        }
    }
}

fn success_policy(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let rules = spec.at("successPolicy").items("rules");
    let list = path.child("rules");
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.required(&list, detail);
    }
    if rules.len() > 20 {
        errors.too_many(&list, rules.len(), 20);
    }
    let completions = spec.num("completions");
    for (index, rule) in rules.iter().enumerate() {
        let at = list.index(index);
        let (count, indexes) = (rule.int("succeededCount"), rule.at("succeededIndexes").as_str());
        if count.is_none() && indexes.is_none() {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errors.required(&at, detail);
        }
        let total = indexes.map(|text| count_indexes(text, completions));
        if let (Some(Err(detail)), Some(text)) = (&total, indexes) {
            let detail = format!("error parsing succeededIndexes: {detail}");
            errors.invalid(&at.child("succeededIndexes"), text, detail);
        }
        let Some(count) = count else { continue };
        not_negative(errors, rule, &at, "succeededCount");
        let at = at.child("succeededCount");
        if count > completions {
            let detail =
                format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.invalid(&at, count, detail);
        }
        let total = total.map(|total| total.unwrap_or(0));
        if let Some(total) = total.filter(|total| count > *total) {
            let detail = format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            );
            errors.invalid(&at, count, detail);
        }
    }
}

/// How many indexes `1,3-5` names; they grow and stay below the completions.
pub(super) fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let mut last: Option<i64> = None;
    let mut total = 0;
    for interval in text.split(',') {
        let limits: Vec<&str> = interval.split('-').collect();
        if limits.len() > 2 {
            return Err(format!(
                "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let mut numbers = Vec::new();
        for limit in limits {
            let number: i64 = limit
                .parse()
                .map_err(|_| format!("cannot convert string to integer for index: {limit:?}"))?;
            if number >= completions {
                return Err(format!("too large index: {limit:?}"));
            }
            if last.is_some_and(|last| last >= number) {
                let last = last.unwrap_or_default();
                return Err(format!("non-increasing order, previous: {last}, current: {number}"));
            }
            last = Some(number);
            numbers.push(number);
        }
        total += numbers.last().unwrap_or(&0) - numbers.first().unwrap_or(&0) + 1;
    }
    Ok(total)
}

fn replacement_policy(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let policy = spec.text("podReplacementPolicy");
    match (spec.has("podReplacementPolicy"), spec.has("podFailurePolicy")) {
        (false, _) => {}
        (true, true) if policy != "Failed" => errors.not_supported(path, policy, &["Failed"]),
        (true, false) if !matches!(policy, "Failed" | "TerminatingOrFailed") => {
            errors.not_supported(path, policy, &["Failed", "TerminatingOrFailed"]);
        }
        _ => {}
    }
}

pub(crate) fn job_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (spec, old_spec) = (new.at("spec"), old.at("spec"));
    let completions = path.child("completions");
    if spec.text("completionMode") != "Indexed" {
        immutable(&mut errors, spec.at("completions"), old_spec.at("completions"), &completions);
    } else if spec.int("completions") != old_spec.int("completions")
        && let Some(number) = spec.int("completions").filter(|n| Some(*n) != spec.int("parallelism"))
    {
        errors.invalid(&completions, number, "can only be modified in tandem with spec.parallelism");
    }
    template_update(&mut errors, spec, old, &path);
    for key in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        immutable(&mut errors, spec.at(key), old_spec.at(key), &path.child(key));
    }
    errors.0
}

fn template_update(errors: &mut Errors, spec: &Value, old: &Value, path: &Path<'_>) {
    let old_spec = old.at("spec");
    let mut before = old_spec.at("template").clone();
    let template = spec.at("template");
    let status = old.at("status");
    let condition = status
        .items("conditions")
        .iter()
        .any(|c| c.text("type") == "Suspended" && c.text("status") == "True");
    let suspended = old_spec.flag("suspend");
    let mutable = suspended && (!status.has("startTime") || condition) && status.num("active") == 0;
    if mutable {
        for key in ["annotations", "labels"] {
            keep(before.child("metadata"), template.at("metadata"), key);
        }
        for key in ["nodeSelector", "tolerations", "schedulingGates"] {
            keep(before.child("spec"), template.at("spec"), key);
        }
        let node = template.dig(&["spec", "affinity", "nodeAffinity"]).clone();
        let affinity = before.child("spec").child("affinity");
        match node {
            Value::Null => {
                affinity.take_key("nodeAffinity");
            }
            node => affinity.put("nodeAffinity", node),
        }
        if before.dig(&["spec", "affinity"]).is_empty_value() && !template.at("spec").has("affinity") {
            before.child("spec").take_key("affinity");
        }
        for list in ["containers", "initContainers"] {
            let own = template.at("spec").items(list);
            let olds = before.child("spec").items_mut(list);
            if own.len() != olds.len() {
                continue;
            }
            for (container, new) in olds.iter_mut().zip(own) {
                if container.text("name") == new.text("name") {
                    keep(container, new, "resources");
                }
            }
        }
    }
    let at = path.child("template");
    if mutable {
        common::immutable(errors, template.at("spec"), before.at("spec"), &at.child("spec"));
    } else {
        common::immutable(errors, template, &before, &at);
    }
}

pub(crate) fn cron_job(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    let (schedule, at) = (spec.text("schedule"), path.child("schedule"));
    if schedule.is_empty() {
        errors.required(&at, "");
    } else {
        if let Err(error) = cron::check(schedule) {
            errors.invalid(&at, schedule, error);
        }
        if schedule.contains("TZ") {
            let detail = match spec.has("timeZone") {
                true => "cannot use both timeZone field and TZ or CRON_TZ in schedule",
                false => "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            };
            errors.invalid(&at, schedule, detail);
        }
    }
    not_negative(&mut errors, spec, &path, "startingDeadlineSeconds");
    if let Some(zone) = spec.at("timeZone").as_str() {
        cron::time_zone(&mut errors, zone, &path.child("timeZone"));
    }
    one_of(
        &mut errors,
        spec.text("concurrencyPolicy"),
        &path.child("concurrencyPolicy"),
        &["Allow", "Forbid", "Replace"],
    );
    let job = spec.dig(&["jobTemplate", "spec"]);
    let at = path.child("jobTemplate");
    let at = at.child("spec");
    job_spec(&mut errors, job, &at);
    if job.has("selector") {
        errors.invalid(
            &at.child("selector"),
            job.at("selector").clone(),
            "`selector` will be auto-generated",
        );
    }
    if job.flag("manualSelector") {
        errors.not_supported(&at.child("manualSelector"), true, &["nil", "false"]);
    }
    not_negative(&mut errors, spec, &path, "successfulJobsHistoryLimit");
    not_negative(&mut errors, spec, &path, "failedJobsHistoryLimit");
    errors.0
}
