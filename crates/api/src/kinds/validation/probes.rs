//! Probes and lifecycle hooks.

use serde_json::Value;

use super::common::{self, not_negative};
use crate::field::{Errors, Path};
use crate::kinds::json::Read;
use crate::names;

/// A container's hooks and three probes.
pub(crate) fn all(errors: &mut Errors, container: &Value, spec: &Value, path: &Path<'_>) {
    let grace = spec.int("terminationGracePeriodSeconds");
    let lifecycle = container.at("lifecycle");
    let at = path.child("lifecycle");
    for hook in ["postStart", "preStop"] {
        if lifecycle.has(hook) {
            handler(errors, lifecycle.at(hook), grace, &at.child(hook));
        }
    }
    if lifecycle.has("stopSignal") && !spec.has("os") {
        let detail = "may not be set for containers with empty `spec.os.name`";
        errors.forbidden(&at.child("stopSignal"), detail);
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if !container.has(kind) {
            continue;
        }
        let at = path.child(kind);
        let value = container.at(kind);
        probe(errors, value, grace, &at);
        let threshold = value.num("successThreshold");
        if kind != "readinessProbe" && threshold != 1 {
            errors.invalid(&at.child("successThreshold"), threshold, "must be 1");
        }
        if kind == "readinessProbe" && value.has("terminationGracePeriodSeconds") {
            errors.invalid(
                &at.child("terminationGracePeriodSeconds"),
                value.num("terminationGracePeriodSeconds"),
                "must not be set for readinessProbes",
            );
        }
    }
}

fn probe(errors: &mut Errors, probe: &Value, grace: Option<i64>, path: &Path<'_>) {
    handler(errors, probe, grace, path);
    for key in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        not_negative(errors, probe, path, key);
    }
    if let Some(seconds) = probe.int("terminationGracePeriodSeconds").filter(|seconds| *seconds <= 0) {
        errors.invalid(&path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

fn handler(errors: &mut Errors, handler: &Value, grace: Option<i64>, path: &Path<'_>) {
    let mut found = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = handler.at(kind);
        if action.is_null() {
            continue;
        }
        found += 1;
        let at = path.child(kind);
        if found > 1 {
            errors.forbidden(&at, "may not specify more than 1 handler type");
            continue;
        }
        match kind {
            "exec" if action.items("command").is_empty() => errors.required(&at.child("command"), ""),
            "httpGet" => http_get(errors, action, &at),
            "tcpSocket" => common::port_number_or_name(errors, action.at("port"), &at.child("port")),
            "grpc" => common::port_number_or_name(errors, action.at("port"), &at.child("port")),
            "sleep" => {
                let seconds = action.num("seconds");
                if let Some(grace) = grace.filter(|grace| seconds < 0 || seconds > *grace) {
                    let detail =
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.invalid(&at, seconds, detail);
                }
            }
            _ => {}
        }
    }
    if found == 0 {
        errors.required(path, "must specify a handler type");
    }
}

fn http_get(errors: &mut Errors, action: &Value, path: &Path<'_>) {
    common::required(errors, action, path, "path");
    common::port_number_or_name(errors, action.at("port"), &path.child("port"));
    let scheme = action.text("scheme");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in action.items("httpHeaders") {
        let name = header.text("name");
        errors.all_invalid(&path.child("httpHeaders"), name, names::http_header_name(name));
    }
}
