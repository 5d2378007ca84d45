//! The conditions of definitions: which names are theirs, whether they are established, structural, and approved.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::kinds::{Approval, approval_state, is_protected};
use futures::FutureExt;
use schema::structural::{Schema, validate_structural};
use serde_json::{Map, Value, json};

use super::{GROUP, RESOURCE};
use crate::Status;
use crate::read::{Read, object_mut};
use crate::server::Server;
use crate::verbs::meta;
use crate::verbs::write::{Checks, Part, Update, update};

/// A condition of a definition.
pub fn find<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object.items("status.conditions").iter().find(|c| c.text("type") == kind)
}

pub fn is_true(object: &Value, kind: &str) -> bool {
    find(object, kind).is_some_and(|c| c.text("status") == "True")
}

/// Sets a condition; its time changes with its status.
pub fn set(object: &mut Value, kind: &str, status: bool, reason: &str, message: &str) {
    let status = if status { "True" } else { "False" };
    let same = find(object, kind).filter(|c| c.text("status") == status && c.has("lastTransitionTime"));
    let time = same.map_or_else(meta::now, |c| c.text("lastTransitionTime").to_owned());
    let condition = json!({
        "type": kind,
        "status": status,
        "lastTransitionTime": time,
        "reason": reason,
        "message": message,
    });
    let conditions = object_mut(object, "status").entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    match list.iter_mut().find(|c| c.text("type") == kind) {
        Some(present) => *present = condition,
        None => list.push(condition),
    }
}

fn remove(object: &mut Value, kind: &str) {
    let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    if let Some(list) = conditions {
        list.retain(|c| c.text("type") != kind);
    }
}

/// The names that are taken in a group.
#[derive(Default)]
struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

impl Taken {
    fn add(&mut self, accepted: &Value) {
        let resources =
            accepted.texts("shortNames").chain(["plural", "singular"].map(|key| accepted.text(key)));
        self.resources.extend(resources.filter(|n| !n.is_empty()).map(str::to_owned));
        let kinds = ["kind", "listKind"].map(|key| accepted.text(key));
        self.kinds.extend(kinds.into_iter().filter(|n| !n.is_empty()).map(str::to_owned));
    }
}

/// Brings the conditions of all definitions up to date; which of them have changed.
pub fn settle(objects: &mut [Value]) -> Vec<usize> {
    let mut taken: HashMap<String, Taken> = HashMap::new();
    for object in objects.iter() {
        taken.entry(object.text("spec.group").to_owned()).or_default().add(object.at("status.acceptedNames"));
    }
    let mut changed = Vec::new();
    for (index, object) in objects.iter_mut().enumerate() {
        let before = object.at("status").clone();
        let group = taken.entry(object.text("spec.group").to_owned()).or_default();
        names(object, group);
        group.add(object.at("status.acceptedNames"));
        structural(object);
        approval(object);
        if object.at("status") != &before {
            changed.push(index);
        }
    }
    changed
}

fn in_use(name: &str) -> String {
    format!("{name:?} is already in use")
}

fn names(object: &mut Value, taken: &Taken) {
    let (asked, had) = (object.at("spec.names").clone(), object.at("status.acceptedNames").clone());
    let mut accepted = match &had {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    let mut conflict: Option<(&str, String)> = None;
    let free = |key: &str, used: &BTreeSet<String>| {
        asked.text(key) == had.text(key) || !used.contains(asked.text(key))
    };
    let mut take =
        |key: &str, reason: &'static str, used: &BTreeSet<String>, conflict: &mut Option<(&str, String)>| {
            match free(key, used) {
                true => drop(accepted.insert(key.to_owned(), asked.at(key).clone())),
                false => *conflict = Some((reason, in_use(asked.text(key)))),
            }
        };
    take("plural", "PluralConflict", &taken.resources, &mut conflict);
    take("singular", "SingularConflict", &taken.resources, &mut conflict);
    let short: Vec<String> = asked
        .texts("shortNames")
        .filter(|name| !had.texts("shortNames").any(|own| own == *name) && taken.resources.contains(*name))
        .map(in_use)
        .collect();
    if !short.is_empty() {
        conflict = Some(("ShortNamesConflict", short.join(", ")));
    }
    take("kind", "KindConflict", &taken.kinds, &mut conflict);
    take("listKind", "ListKindConflict", &taken.kinds, &mut conflict);
    let mut keep = |key: &str| match asked.has(key) {
        true => drop(accepted.insert(key.to_owned(), asked.at(key).clone())),
        false => drop(accepted.remove(key)),
    };
    if short.is_empty() {
        keep("shortNames");
    }
    keep("categories");
    for key in ["plural", "kind"] {
        accepted.entry(key).or_insert_with(|| "".into());
    }
    object_mut(object, "status").insert("acceptedNames".to_owned(), Value::Object(accepted));
    let fine = conflict.is_none();
    match conflict {
        Some((reason, message)) => set(object, "NamesAccepted", false, reason, &message),
        None => set(object, "NamesAccepted", true, "NoConflicts", "no conflicts found"),
    }
    if is_true(object, "Established") {
        return;
    }
    match fine {
        true => {
            let message = "the initial names have been accepted";
            set(object, "Established", true, "InitialNamesAccepted", message);
        }
        false => set(object, "Established", false, "NotAccepted", "not all names are accepted"),
    }
}

fn structural(object: &mut Value) {
    let mut found: Vec<String> = Vec::new();
    if object.at("spec.preserveUnknownFields") == &Value::Bool(true) {
        found.push("spec.preserveUnknownFields: Invalid value: true: must be false".to_owned());
    }
    for (index, version) in object.items("spec.versions").iter().enumerate() {
        let raw = version.at("schema.openAPIV3Schema");
        if !raw.is_object() {
            continue;
        }
        let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
        match Schema::read(raw).and_then(|schema| schema.unsupported().map(|()| schema)) {
            Ok(schema) => found.extend(validate_structural(&path, &schema).iter().map(|e| e.message())),
            Err(error) => found.push(format!("{path}: {error}")),
        }
    }
    match found.as_slice() {
        [] => remove(object, "NonStructuralSchema"),
        [one] => set(object, "NonStructuralSchema", true, "Violations", one),
        many => {
            let message = format!("[{}]", many.join(", "));
            set(object, "NonStructuralSchema", true, "Violations", &message);
        }
    }
}

fn approval(object: &mut Value) {
    const KIND: &str = "KubernetesAPIApprovalPolicyConformant";
    if !is_protected(object.text("spec.group")) {
        return;
    }
    let (state, message) = approval_state(object);
    let (status, reason) = match state {
        Approval::Approved => (true, "ApprovedAnnotation"),
        Approval::Bypassed => (false, "UnapprovedAnnotation"),
        Approval::Missing => (false, "MissingAnnotation"),
        Approval::Invalid => (false, "InvalidAnnotation"),
    };
    set(object, KIND, status, reason, &message);
}

/// Writes the status (and the finalizers) of a definition.
pub async fn write(server: &Arc<Server>, object: &Value) -> Result<(), Status> {
    let row = server.registry.any(GROUP, RESOURCE).ok_or_else(Status::no_such_resource)?;
    let name = object.name();
    let how = Update {
        key: name,
        name,
        namespace: "",
        part: Part::Status,
        create: false,
        retry: false,
        managed: true,
    };
    let make = move |_: Option<Arc<Value>>| {
        let object = object.clone();
        async move { Ok(object) }.boxed()
    };
    update(server, &row, &how, &make, &Checks::OWN).await.map(drop)
}
