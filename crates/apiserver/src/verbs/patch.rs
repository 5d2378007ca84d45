//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply. A patch that loses a race is applied again.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use schema::{FieldValidation, PatchError};
use serde_json::Value;

use super::write::{Checks, Part, Update, update};
use super::{Answered, Call, meta};
use crate::query::WriteOptions;
use crate::registry::Served;
use crate::{FieldError, FieldErrorKind, Status, render};

/// The patch formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Json,
    Merge,
    Strategic,
    Apply,
}

const APPLY_CBOR: &str = "application/apply-patch+cbor";

fn media_type(call: &Call) -> &str {
    let header = call.headers.get(CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim()
}

impl Kind {
    /// After the Content-Type.
    pub fn of(call: &Call, served: &Served) -> Result<Self, Status> {
        let custom = served.resource.strategy.is_custom();
        Ok(match media_type(call) {
            "application/json-patch+json" => Self::Json,
            "application/merge-patch+json" => Self::Merge,
            "application/strategic-merge-patch+json" if !custom => Self::Strategic,
            "application/apply-patch+yaml" => Self::Apply,
            APPLY_CBOR if call.server.config.features.cbor => Self::Apply,
            _ if custom => {
                return Err(Status::unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                ));
            }
            _ => {
                return Err(Status::unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml, \
                     application/strategic-merge-patch+json",
                ));
            }
        })
    }
}

/// The tree of a patch body.
pub fn parse(call: &Call, kind: Kind, body: &Bytes, validation: FieldValidation) -> Result<Value, Status> {
    let decoded = match kind {
        Kind::Apply if media_type(call) == APPLY_CBOR => {
            let value = schema::cbor::decode(body)
                .map_err(|e| Status::bad_request(format!("error decoding CBOR: {e}")))?;
            schema::Decoded { value, warnings: Vec::new() }
        }
        Kind::Apply => schema::decode_any_yaml(body, validation)
            .map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))?,
        _ => schema::decode_any(body, validation).map_err(|e| match e {
            schema::DecodeError::Strict(_) => unfit(&String::from_utf8_lossy(body), e.to_string()),
            _ => Status::bad_request(format!("error decoding patch: {e}")),
        })?,
    };
    for warning in decoded.warnings {
        call.warn(warning);
    }
    call.audit.patch(|| decoded.value.clone());
    match (kind, &decoded.value) {
        (Kind::Json, Value::Array(_)) | (Kind::Merge | Kind::Strategic | Kind::Apply, Value::Object(_)) => {
            Ok(decoded.value)
        }
        (Kind::Json, _) => Err(Status::bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch",
        )),
        _ => Err(Status::bad_request("error decoding patch: the patch is no object")),
    }
}

fn patch_status(error: PatchError) -> Status {
    match error {
        PatchError::Malformed(text) => Status::bad_request(text),
        PatchError::TooManyOperations { .. } => Status::too_large(error.to_string()),
        PatchError::Unprocessable(text) => {
            let head = "the server rejected our request due to an error in our request";
            Status::new(422, "Invalid", format!("{head}: {text}")).with_causes(Vec::new())
        }
        PatchError::Internal(text) => Status::new(500, "", text),
    }
}

/// What a patch has made, or the patch itself, is no object of the kind.
fn unfit(value: &str, why: String) -> Status {
    Status::invalid("", "", "", &[FieldError::new(FieldErrorKind::Invalid, "patch", value, why)])
}

/// A patch applied to an object of a type; the result decoded and defaulted.
pub fn apply(
    call: &Call,
    served: &Served,
    kind: Kind,
    old: &Value,
    patch: &Value,
    validation: FieldValidation,
) -> Result<Value, Status> {
    let resource = &served.resource;
    let mut patched = match kind {
        Kind::Json => schema::json_patch(old, patch).map_err(patch_status)?,
        Kind::Merge => schema::merge_patch(old, patch),
        Kind::Strategic | Kind::Apply => {
            schema::strategic_merge_patch(&resource.types, resource.type_id, old, patch)
                .map_err(patch_status)?
        }
    };
    let kind_of = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    for key in ["apiVersion", "kind"] {
        let (was, is) = (kind_of(old, key), kind_of(&patched, key));
        // A strategic patch is merged into an object whose kind is given.
        if kind == Kind::Strategic {
            patched[key] = was.into();
        } else if was != is {
            return Err(Status::bad_request(format!(
                "the {key} in the data ({is}) does not match the expected {key} ({was})"
            )));
        }
    }
    let decoded = resource
        .decode_value(&patched, validation)
        .map_err(|e| unfit(&patched.to_string(), e.to_string()))?;
    for warning in decoded.warnings {
        call.warn(warning);
    }
    let mut value = decoded.value;
    resource.complete(&mut value);
    Ok(value)
}

/// What apply must say, and other patches may not.
pub fn check_options(kind: Kind, write: &WriteOptions) -> Result<(), Status> {
    if kind == Kind::Apply && write.field_manager.is_empty() {
        return Err(Status::invalid_field(
            ("meta.k8s.io", "PatchOptions", ""),
            FieldErrorKind::Required,
            "fieldManager",
            "",
            "is required for apply patch",
        ));
    }
    if kind != Kind::Apply && write.force.is_some() {
        return Err(Status::invalid_field(
            ("meta.k8s.io", "PatchOptions", ""),
            FieldErrorKind::Forbidden,
            "force",
            "",
            "may not be specified for non-apply patch",
        ));
    }
    Ok(())
}

pub async fn run(call: &Call, served: &Served, part: Part, body: Bytes) -> Answered {
    let kind = Kind::of(call, served)?;
    let write = WriteOptions::read(&call.query, "PatchOptions")?;
    check_options(kind, &write)?;
    let patch = parse(call, kind, &body, write.field_validation)?;
    let manager = call.manager(&write);
    let admission_options = write.shown("UpdateOptions");
    let checks = Checks::of(call, &admission_options, write.dry_run, &manager);
    let key = served.key(&call.info.namespace, &call.info.name);
    let how = Update {
        key: &key,
        name: &call.info.name,
        namespace: &call.info.namespace,
        part,
        create: kind == Kind::Apply && matches!(part, Part::Main),
        retry: meta::text(&patch, "resourceVersion").is_empty(),
        managed: kind != Kind::Apply,
    };
    let (patch, write, name) = (&patch, &write, call.info.name.as_str());
    let make = move |old: Option<Arc<Value>>| {
        async move {
            let new = match &old {
                old if kind == Kind::Apply => {
                    crate::managed::apply(call, served, part, old.as_deref(), patch, write).await?
                }
                Some(old) => apply(call, served, kind, old, patch, write.field_validation)?,
                None => return Err(served.not_found(name)),
            };
            unrenamed(new, old.is_none(), name)
        }
        .boxed()
    };
    let outcome = update(&call.server, served, &how, &make, &checks).await?;
    let code = if outcome.created { StatusCode::CREATED } else { StatusCode::OK };
    render::object(call, served, code, &outcome.object).await
}

/// A patch may neither take the name away nor change it.
fn unrenamed(mut new: Value, created: bool, name: &str) -> Result<Value, Status> {
    if created && meta::text(&new, "name").is_empty() {
        meta::of(&mut new)?.insert("name".to_owned(), name.into());
    }
    match meta::text(&new, "name") {
        "" => Err(Status::bad_request("name must be provided")),
        own if own != name => Err(Status::bad_request(format!(
            "the name of the object ({own}) does not match the name on the URL ({name})"
        ))),
        _ => Ok(new),
    }
}
