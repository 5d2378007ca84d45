//! Where the registry meets `metadata.managedFields`: ordinary writes and server-side apply.

use std::cell::RefCell;

use schema::managed::{ApplyError, Context};
use schema::{FieldValidation, TypeId};
use serde_json::Value;

use crate::query::WriteOptions;
use crate::registry::{Served, convert};
use crate::verbs::write::{Checks, Part};
use crate::verbs::{Call, decode_status, meta};
use crate::{Cause, Status};

/// What the endpoint of the object itself, or of its status, does not write.
fn ignored(served: &Served, part: Part) -> &'static [&'static str] {
    match part {
        Part::Status => &["spec"],
        Part::Main if served.resource.subresource("status").is_some() => &["status"],
        _ => &[],
    }
}

/// An object, a version, and the object in it.
type Converted = (Value, String, Option<(TypeId, Value)>);

/// Calls a function with the context of a write. Where the function asks for an object in a version that takes waiting, it
/// is called again once the answer is there.
async fn with<T>(served: &Served, part: Part, mut run: impl FnMut(&Context<'_>) -> T) -> Result<T, Status> {
    let resource = &served.resource;
    let api_version = resource.api_version();
    // The reference records no time for scale.
    let now = if part.name() == "scale" { String::new() } else { meta::now() };
    let mut known: Vec<Converted> = Vec::new();
    loop {
        let mut asked: Vec<(Value, String)> = Vec::new();
        let answer = {
            let asking = RefCell::new(&mut asked);
            let other = |value: &Value, wanted: &str| -> Option<(TypeId, Value)> {
                let own = value.get("apiVersion").and_then(Value::as_str).unwrap_or(&api_version);
                if wanted == api_version && own == wanted {
                    return Some((resource.type_id, value.clone()));
                }
                if let Some(now) = served.other_now(value, wanted) {
                    return now;
                }
                match known.iter().find(|(of, version, _)| version == wanted && of == value) {
                    Some((_, _, converted)) => converted.clone(),
                    None => {
                        asking.borrow_mut().push((value.clone(), wanted.to_owned()));
                        None
                    }
                }
            };
            run(&Context {
                types: &resource.types,
                type_id: resource.type_id,
                api_version: &api_version,
                kind: &resource.kind,
                subresource: part.name(),
                ignored: ignored(served, part),
                now: &now,
                convert: &other,
            })
        };
        if asked.is_empty() {
            return Ok(answer);
        }
        for (value, version) in asked {
            let converted = served.other(&value, &version).await?;
            known.push((value, version, converted));
        }
    }
}

/// What a second call begins with; `None` for a row that is never waited for.
fn again(served: &Served, object: &Value) -> Option<Value> {
    (!served.selects_stored()).then(|| object.clone())
}

/// Records the manager of a new object.
pub async fn created(served: &Served, object: &mut Value, checks: &Checks<'_>) -> Result<(), Status> {
    let before = again(served, object);
    with(served, Part::Main, |context| {
        if let Some(before) = &before {
            object.clone_from(before);
        }
        schema::managed::update(context, None, object, checks.manager);
    })
    .await
}

/// Records the manager of a change.
pub async fn updated(
    served: &Served,
    new: &mut Value,
    old: &Value,
    part: Part,
    checks: &Checks<'_>,
) -> Result<(), Status> {
    let before = again(served, new);
    with(served, part, |context| {
        if let Some(before) = &before {
            new.clone_from(before);
        }
        schema::managed::update(context, Some(old), new, checks.manager);
    })
    .await
}

/// Takes the record's times back when nothing else changed.
pub fn settle(mut new: Value, old: &Value) -> Value {
    schema::managed::ignore_timestamps(&mut new, old);
    new
}

/// Server-side apply of a configuration: the object that it makes, decoded and defaulted.
pub async fn apply(
    call: &Call,
    served: &Served,
    part: Part,
    old: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
) -> Result<Value, Status> {
    let resource = &served.resource;
    let decode = |value: &Value, validation: FieldValidation| {
        resource
            .decode_value(value, validation)
            .map_err(|e| decode_status(&e, &resource.version, &resource.kind))
    };
    let name = meta::text(config, "name");
    if !name.is_empty() && name != call.info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    let uid = meta::text(config, "uid");
    if old.is_none() && !uid.is_empty() {
        let why = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        );
        return Err(Status::conflict(served.group(), served.plural(), &call.info.name, why));
    }
    let force = options.force.unwrap_or(false);
    let merged = with(served, part, |context| {
        schema::managed::apply(context, old, config, &options.field_manager, force)
    });
    let merged = merged.await?.map_err(apply_status)?;
    let mut value = decode(&merged, FieldValidation::Ignore)?.value;
    resource.complete(&mut value);
    Ok(value)
}

fn apply_status(error: ApplyError) -> Status {
    match error {
        ApplyError::BadRequest(text) => Status::bad_request(text),
        ApplyError::Internal(text) => Status::new(500, "", text),
        ApplyError::Conflict { message, causes } => {
            let causes = causes.into_iter().map(|cause| Cause {
                reason: "FieldManagerConflict".to_owned(),
                message: cause.message,
                field: cause.field,
            });
            Status::apply_conflict(message, causes.collect())
        }
    }
}

/// Server-side apply of a Scale. The answer is the new Scale, and the managedFields of the object that it belongs to.
pub fn apply_scale(
    served: &Served,
    (scale, scale_type): (&Value, TypeId),
    old: &Value,
    config: &Value,
    replicas: &str,
    options: &WriteOptions,
) -> Result<(Value, Vec<Value>), Status> {
    let path = |version: &str| {
        let known = version == served.resource.api_version() || convert::serves(&served.resource, version);
        known.then(|| schema::managed::path_of(replicas))
    };
    let parent = old.pointer("/metadata/managedFields");
    let mut live = scale.clone();
    meta::of(&mut live)?.insert("managedFields".to_owned(), schema::managed::to_scale(parent, &path).into());
    let now = meta::now();
    let context = Context {
        types: api::types(),
        type_id: scale_type,
        api_version: "autoscaling/v1",
        kind: "Scale",
        subresource: "scale",
        ignored: &[],
        now: &now,
        convert: &|_, _| None,
    };
    let force = options.force.unwrap_or(false);
    let merged = schema::managed::apply(&context, Some(&live), config, &options.field_manager, force);
    let merged = merged.map_err(apply_status)?;
    let entries = merged.pointer("/metadata/managedFields");
    let parent = schema::managed::to_parent(parent, entries, &served.resource.api_version(), &path);
    Ok((merged, parent))
}
