//! Events, by the rules of the group that they are written through.

use serde_json::Value;

use super::common::{immutable, label_name};
use crate::FieldError;
use crate::field::{Errors, Path};
use crate::kinds::json::Read;

/// The fields by the names of the core group, whichever group the event speaks.
struct View<'a> {
    event: &'a Value,
    new: bool,
}

impl<'a> View<'a> {
    fn of(event: &'a Value) -> Self {
        let new = event.text("apiVersion").starts_with("events.k8s.io/") || event.has("regarding");
        Self { event, new }
    }

    fn get(&self, core: &str) -> &'a Value {
        let key = match (self.new, core) {
            (true, "involvedObject") => "regarding",
            (true, "message") => "note",
            (true, "source") => "deprecatedSource",
            (true, "firstTimestamp") => "deprecatedFirstTimestamp",
            (true, "lastTimestamp") => "deprecatedLastTimestamp",
            (true, "count") => "deprecatedCount",
            (false, "reportingController") => "reportingComponent",
            (_, key) => key,
        };
        self.event.at(key)
    }

    fn text(&self, core: &str) -> &'a str {
        self.get(core).as_str().unwrap_or_default()
    }
}

/// What holds for every event, old and new.
fn legacy(errors: &mut Errors, view: &View<'_>) {
    let namespace = view.event.at("metadata").text("namespace");
    let own = view.get("involvedObject").text("namespace");
    let timed = !view.get("eventTime").is_null();
    let apart = match (timed, own.is_empty()) {
        (false, true) => !matches!(namespace, "" | "default"),
        (false, false) => namespace != own,
        (true, true) => !matches!(namespace, "default" | "kube-system"),
        (true, false) => false,
    };
    if apart {
        let involved = Path::new("involvedObject");
        errors.invalid(&involved.child("namespace"), own, "does not match event.namespace");
    }
    if !timed {
        return;
    }
    let controller = Path::new(if view.new { "reportingController" } else { "reportingComponent" });
    let name = view.text("reportingController");
    if name.is_empty() {
        errors.required(&controller, "");
    }
    label_name(errors, name, &controller);
    for key in ["reportingInstance", "action", "reason"] {
        let at = Path::new(key);
        if view.text(key).is_empty() {
            errors.required(&at, "");
        }
        if view.text(key).len() > 128 {
            errors.invalid(&at, "", "can have at most 128 characters");
        }
    }
    if view.text("message").len() > 1024 {
        errors.invalid(&Path::new("message"), "", "can have at most 1024 characters");
    }
}

fn series(errors: &mut Errors, view: &View<'_>) {
    let series = view.get("series");
    if series.is_null() {
        return;
    }
    let path = Path::new("series");
    if series.num("count") < 2 {
        errors.invalid(&path.child("count"), "", "should be at least 2");
    }
    if !series.has("lastObservedTime") {
        errors.required(&path.child("lastObservedTime"), "");
    }
}

/// Every write. A stored event has a resourceVersion; what only a new one must have is not asked of it.
pub(crate) fn event(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let view = View::of(object);
    legacy(&mut errors, &view);
    if !view.new || !object.at("metadata").text("resourceVersion").is_empty() {
        return errors.0;
    }
    series(&mut errors, &view);
    if view.get("eventTime").is_null() {
        errors.required(&Path::new("eventTime"), "");
    }
    let kind = view.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid(&Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    for key in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        if !view.get(key).is_empty_value() {
            errors.invalid(&Path::new(key), "", "needs to be unset");
        }
    }
    errors.0
}

/// Through `events.k8s.io` only the series of an event changes.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    let (view, before) = (View::of(new), View::of(old));
    if !view.new {
        return errors.0;
    }
    if view.get("series") != before.get("series") {
        series(&mut errors, &view);
    }
    for key in [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingController",
        "reportingInstance",
    ] {
        immutable(&mut errors, view.get(key), before.get(key), &Path::new(key));
    }
    errors.0
}
