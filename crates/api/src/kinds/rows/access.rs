//! Rows of role bindings and certificate signing requests.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, human_duration, name, or};
use crate::kinds::json::Read;

pub(super) fn role_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = object.at("roleRef");
    let of = |kind: &str| -> Value {
        let found: Vec<String> = object
            .items("subjects")
            .iter()
            .filter(|subject| subject.text("kind") == kind)
            .map(|subject| match kind {
                "ServiceAccount" => format!("{}/{}", subject.text("namespace"), subject.text("name")),
                _ => subject.text("name").to_owned(),
            })
            .collect();
        found.join(", ").into()
    };
    vec![
        name(object),
        format!("{}/{}", role.text("kind"), role.text("name")).into(),
        age(object, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}

pub(super) fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let has = |kind: &str| status.items("conditions").iter().any(|c| c.text("type") == kind);
    let mut state = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !status.text("certificate").is_empty() {
        state.push_str(",Issued");
    }
    let duration = spec.int("expirationSeconds").map_or("<none>".to_owned(), human_duration);
    vec![
        name(object),
        age(object, now),
        or(spec.text("signerName"), "<none>").into(),
        spec.text("username").into(),
        duration.into(),
        state.into(),
    ]
}
