//! Server-side apply: who owns which fields of an object, tracked on every write, and the merge of applied configurations.

mod entries;
mod overlay;
mod scale;
mod set;
mod text;
mod typed;
mod update;

use serde_json::{Map, Value};

use crate::normalize::{normalize, zero};
use crate::types::{TypeId, Types};
use entries::{Manager, Managers};
pub use overlay::overlay;
pub use scale::{ReplicasPath, path_of, to_parent, to_scale};
pub use set::Set;
pub use text::{entries_text, fields_text};
use typed::{Ref, Typed};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What a write is about.
pub struct Context<'a> {
    pub types: &'a Types,
    pub type_id: TypeId,
    /// Of the request: `v1`, `apps/v1`.
    pub api_version: &'a str,
    pub kind: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Dotted paths that this endpoint does not write (`status`, or `spec` for the status endpoint).
    pub ignored: &'a [&'a str],
    /// The time of the write, RFC 3339 in whole seconds; empty where none is recorded (the scale subresource).
    pub now: &'a str,
    /// An object of any version of the kind (its own apiVersion tells which) at another version, for managers that wrote at
    /// that version; `None` if one of them is not served.
    pub convert: &'a dyn Fn(&Value, &str) -> Option<(TypeId, Value)>,
}

/// A field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `.spec.replicas`
    pub field: String,
    /// `conflict with "kubectl" using apps/v1`
    pub message: String,
}

/// Why a configuration was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 400 Bad Request.
    #[error("{0}")]
    BadRequest(String),
    /// 409 Conflict, with a cause of reason `FieldManagerConflict` for each field.
    #[error("{message}")]
    Conflict { message: String, causes: Vec<Cause> },
    /// 500, as upstream answers to a configuration that does not fit its schema.
    #[error("{0}")]
    Internal(String),
}

/// Tracks a create, update or patch: gives what changed between `live` and `new` to `manager`, in `new`'s managedFields.
/// `live` is `None` for a create. Malformed entries are forgotten rather than refused.
pub fn update(context: &Context<'_>, live: Option<&Value>, new: &mut Value, manager: &str) {
    let entries = |object: Option<&Value>| {
        object.and_then(|o| o.pointer("/metadata/managedFields")).filter(|v| !v.is_null()).cloned()
    };
    let (ours, theirs) = (entries(Some(new)), entries(live));
    let kept = || entries::decode(theirs.as_ref()).unwrap_or_default();
    let managers = if !context.subresource.is_empty() {
        kept()
    } else if entries::is_reset(ours.as_ref()) {
        Managers::new()
    } else {
        match entries::decode(ours.as_ref()) {
            Some(managers) if !managers.is_empty() => managers,
            _ => kept(),
        }
    };
    strip(new);
    let managers = match live {
        // An object that nobody has tracked stays untracked until it is applied.
        Some(_) if managers.is_empty() => managers,
        live => {
            let live = live.map_or_else(|| empty(context), stripped);
            // Nobody owns an empty list that will not be stored.
            let mut stored = new.clone();
            normalize(context.types, context.type_id, &mut stored);
            update::update(context, &live, &stored, managers, manager)
        }
    };
    write(new, &managers);
}

/// Applies a configuration: the merged object, not yet defaulted, with its managedFields. `live` is `None` if there is no
/// such object. The caller brings the answer into normal form.
pub fn apply(
    context: &Context<'_>,
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    force: bool,
) -> Result<Value, ApplyError> {
    check(context, config)?;
    let tracked = live.and_then(|o| o.pointer("/metadata/managedFields"));
    let Some(mut managers) = entries::decode(tracked) else {
        return Err(ApplyError::Internal("failed to decode managed fields".to_owned()));
    };
    let before = live.map_or_else(|| empty(context), stripped);
    if managers.is_empty() {
        let nothing = empty(context);
        managers = update::update(context, &nothing, &before, managers, "before-first-apply");
    }
    let result = update::apply(context, &before, config, managers.clone(), manager, force);
    let (merged, managers) = match result {
        Err(update::Failure::Conflicts(conflicts)) if manager == "kubectl" => {
            let allowed = update::last_applied(context, &before);
            let left: Vec<_> = match &allowed {
                Some(allowed) => conflicts.iter().filter(|(_, p)| !allowed.has(p)).cloned().collect(),
                None => conflicts,
            };
            if !left.is_empty() {
                return Err(conflict(left));
            }
            update::apply(context, &before, config, managers, manager, true).map_err(failure)?
        }
        other => other.map_err(failure)?,
    };
    let mut object = merged.unwrap_or(before);
    strip(&mut object);
    if manager == "kubectl" {
        sync_last_applied(&mut object, config);
    }
    write(&mut object, &managers);
    Ok(object)
}

/// Takes the times of managedFields from `old` if nothing else has changed, so that a write without effect stays one.
pub fn ignore_timestamps(new: &mut Value, old: &Value) {
    let timeless = |object: &Value| {
        let mut object = object.clone();
        let entries = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
            entry.remove("time");
        }
        object
    };
    if new != old && timeless(new) == timeless(old) {
        *new = old.clone();
    }
}

fn failure(failure: update::Failure) -> ApplyError {
    match failure {
        update::Failure::Conflicts(conflicts) => conflict(conflicts),
        update::Failure::Invalid(text) => ApplyError::Internal(text),
    }
}

fn conflict(conflicts: Vec<(Manager, Vec<String>)>) -> ApplyError {
    let causes: Vec<Cause> = conflicts
        .iter()
        .map(|(manager, path)| Cause {
            field: set::display(path),
            message: format!("conflict with {manager}"),
        })
        .collect();
    let message = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        all => {
            let mut lines: Vec<String> = Vec::new();
            let mut last: Option<&Manager> = None;
            for ((manager, _), cause) in conflicts.iter().zip(all) {
                if last != Some(manager) {
                    lines.push(format!("conflicts with {manager}:"));
                    last = Some(manager);
                }
                lines.push(format!("- {}", cause.field));
            }
            format!("Apply failed with {} conflicts: {}", all.len(), lines.join("\n"))
        }
    };
    ApplyError::Conflict { message, causes }
}

fn check(context: &Context<'_>, config: &Value) -> Result<(), ApplyError> {
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let named = || {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        format!("{group}/{version}, Kind={kind}")
    };
    if (api_version, kind) != (context.api_version, context.kind) {
        return Err(ApplyError::BadRequest(format!("invalid object type: {}", named())));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|v| !v.is_null()) {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    let mut errors = Vec::new();
    let typed = Typed { types: context.types };
    typed.validate(Ref::Type(context.type_id), config, &mut Vec::new(), &mut errors);
    let errors = match errors.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    Err(ApplyError::Internal(format!(
        "failed to create typed patch object ({}/{}; {}): {errors}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        named()
    )))
}

/// The object before its creation.
fn empty(context: &Context<'_>) -> Value {
    let mut object = zero(context.types, context.type_id);
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".to_owned(), context.api_version.into());
        map.insert("kind".to_owned(), context.kind.into());
    }
    object
}

fn strip(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
}

fn stripped(object: &Value) -> Value {
    let mut object = object.clone();
    strip(&mut object);
    object
}

fn write(object: &mut Value, managers: &Managers) {
    if managers.is_empty() {
        return;
    }
    let Some(map) = object.as_object_mut() else { return };
    let meta = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if let Some(meta) = meta.as_object_mut() {
        meta.insert("managedFields".to_owned(), entries::encode(managers).into());
    }
}

/// Keeps the annotation of client-side apply in step, where there is one.
fn sync_last_applied(object: &mut Value, config: &Value) {
    let Some(slot) = object
        .pointer_mut("/metadata/annotations")
        .and_then(|a| a.get_mut(LAST_APPLIED))
        .filter(|v| v.as_str().is_some_and(|s| !s.is_empty()))
    else {
        return;
    };
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    *slot = format!("{config}\n").into();
}

#[cfg(test)]
mod tests;
