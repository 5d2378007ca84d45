//! Kinds that are served in several versions or groups and stored in one: where they are stored, and the conversions.

use api::Resource;
use serde_json::{Value, json};

mod autoscaling;
mod ordered;

/// Both directions between a served version and the stored one, in place.
pub struct Conversion {
    pub to_storage: fn(&mut Value),
    pub from_storage: fn(&mut Value),
}

static EVENTS: Conversion = Conversion { to_storage: event_to_core, from_storage: event_from_core };

/// Where a resource's objects are stored, and how they get there.
pub fn storage(resource: &Resource) -> ((String, String), Option<&'static Conversion>) {
    let conversion = match (&*resource.group, &*resource.version, &*resource.plural) {
        ("events.k8s.io", _, "events") => {
            return ((String::new(), "events".to_owned()), Some(&EVENTS));
        }
        ("autoscaling", "v1", "horizontalpodautoscalers") => Some(&autoscaling::V1),
        _ => None,
    };
    ((resource.group.to_string(), resource.plural.to_string()), conversion)
}

/// events.k8s.io/v1 names beside those of v1.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(value: &mut Value, from: &str, to: &str) {
    if let Some(map) = value.as_object_mut()
        && let Some(inner) = map.remove(from)
    {
        map.insert(to.to_owned(), inner);
    }
}

fn event_to_core(value: &mut Value) {
    for (new, core) in EVENT_FIELDS {
        rename(value, new, core);
    }
    value["apiVersion"] = "v1".into();
    let Some(map) = value.as_object_mut() else { return };
    // These are always written in the core form.
    for required in ["involvedObject", "source"] {
        map.entry(required).or_insert_with(|| json!({}));
    }
    for required in ["reportingComponent", "reportingInstance"] {
        map.entry(required).or_insert_with(|| "".into());
    }
    for time in ["eventTime", "firstTimestamp", "lastTimestamp"] {
        map.entry(time).or_insert(Value::Null);
    }
}

fn event_from_core(value: &mut Value) {
    for (new, core) in EVENT_FIELDS {
        rename(value, core, new);
    }
    value["apiVersion"] = "events.k8s.io/v1".into();
    let Some(map) = value.as_object_mut() else { return };
    map.retain(|key, v| !(key == "reportingController" || key == "reportingInstance") || v != "");
}

/// Whether a kind is served in another version as well.
pub fn serves(resource: &Resource, wanted: &str) -> bool {
    let (group, version) = wanted.split_once('/').unwrap_or(("", wanted));
    api::resources()
        .find(group, version, &resource.plural)
        .is_some_and(|other| storage(other).0 == storage(resource).0)
}

/// An object of any version of a kind, in another version, with that version's type; `None` if there is none.
pub fn between(resource: &Resource, value: &Value, wanted: &str) -> Option<(schema::TypeId, Value)> {
    let row = |api_version: &str| {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        match group == resource.group && version == resource.version {
            true => Some(resource),
            false => api::resources().find(group, version, &resource.plural).map(|row| &**row),
        }
    };
    let own = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let (source, target) = (row(own)?, row(wanted)?);
    let ((from, from_conversion), (to, to_conversion)) = (storage(source), storage(target));
    if from != to {
        return None;
    }
    let mut value = value.clone();
    if own != wanted {
        if let Some(conversion) = from_conversion {
            (conversion.to_storage)(&mut value);
        }
        if let Some(conversion) = to_conversion {
            (conversion.from_storage)(&mut value);
        }
        schema::normalize(&target.types, target.type_id, &mut value);
    }
    Some((target.type_id, value))
}
