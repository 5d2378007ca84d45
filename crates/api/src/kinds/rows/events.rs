//! Rows of events, by the names that either group gives the fields.

use jiff::Timestamp;
use serde_json::Value;

use super::{name, or, since};
use crate::kinds::json::Read;

pub(super) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let new = object.text("apiVersion").starts_with("events.k8s.io/") || object.has("regarding");
    let pick = |old: &'static str, renamed: &'static str| object.at(if new { renamed } else { old });
    let first = pick("firstTimestamp", "deprecatedFirstTimestamp");
    let first = since(if first.is_null() { object.at("eventTime") } else { first }, now);
    let last = pick("lastTimestamp", "deprecatedLastTimestamp");
    let mut last = if last.is_null() { first.clone() } else { since(last, now) };
    let mut count = pick("count", "deprecatedCount").as_i64().unwrap_or(0);
    let series = object.at("series");
    if series.is_object() {
        last = since(series.at("lastObservedTime"), now);
        count = series.num("count");
    } else if count == 0 {
        count = 1;
    }
    let regarding = pick("involvedObject", "regarding");
    let kind = regarding.text("kind").to_lowercase();
    let target = match regarding.text("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = pick("source", "deprecatedSource");
    let controller = pick("reportingComponent", "reportingController").as_str().unwrap_or_default();
    let component = or(source.text("component"), controller);
    let instance = or(source.text("host"), object.text("reportingInstance"));
    let source = match instance {
        "" => component.to_owned(),
        instance => format!("{component}, {instance}"),
    };
    vec![
        last.into(),
        object.text("type").into(),
        object.text("reason").into(),
        target.into(),
        regarding.text("fieldPath").into(),
        source.into(),
        pick("message", "note").as_str().unwrap_or_default().trim().into(),
        first.into(),
        count.into(),
        name(object),
    ]
}
