//! The scale subresource: the replica counts of an object as an autoscaling/v1 Scale.

use api::{FieldErrorKind, ScalePaths};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use serde_json::{Map, Value, json};

use super::patch::{Kind, check_options, parse};
use super::write::{Checks, Face, Part, Update, update};
use super::{Answered, Call, meta};
use crate::query::WriteOptions;
use crate::registry::Served;
use crate::{FieldError, Status, render, special};

const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const GVK: (&str, &str, &str) = ("autoscaling", "v1", "Scale");

fn scale_type() -> Result<schema::TypeId, Status> {
    api::types().by_name(SCALE).ok_or_else(|| Status::internal("no Scale in the type table"))
}

/// The Scale of an object.
fn of(object: &Value, paths: &ScalePaths) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get("metadata").and_then(|m| m.get(field)) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let replicas = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {},
        "status": {"replicas": replicas(&paths.status_replicas)},
    });
    let wanted = replicas(&paths.spec_replicas);
    if wanted != 0 {
        scale["spec"]["replicas"] = wanted.into();
    }
    // The empty pointer would be the object itself.
    let selector =
        Some(&paths.selector).filter(|path| !path.is_empty()).and_then(|path| object.pointer(path));
    let selector = selector.map(crate::selector::to_text).unwrap_or_default();
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// Admission sees the Scale.
struct Shown<'a> {
    served: &'a Served,
    paths: &'a ScalePaths,
    name: &'a str,
}

impl Face for Shown<'_> {
    fn kind(&self) -> (&str, &str, &str) {
        GVK
    }

    fn show(&self, object: &Value) -> Value {
        of(object, self.paths)
    }

    fn take(&self, object: &Value, shown: &Value) -> Result<Value, Status> {
        set(self.served, object, shown, self.paths, self.name)
    }
}

pub async fn run(call: &Call, served: &Served, body: Bytes) -> Answered {
    let Some(paths) = served.resource.strategy.scale() else { return Err(Status::no_such_resource()) };
    let key = served.key(&call.info.namespace, &call.info.name);
    if call.info.verb == "get" {
        let object = call.server.registry.get(served, &key).await?;
        let object = object.ok_or_else(|| served.not_found(&call.info.name))?;
        let object = served.read(&object).await?;
        if served.resource.strategy.is_custom() && object.pointer(&paths.spec_replicas).is_none() {
            let path = paths.spec_replicas.replace('/', ".");
            return Err(Status::internal(format!("the spec replicas field {path:?} does not exist")));
        }
        return render::scale(call, of(&object, &paths));
    }
    let patching = call.info.verb == "patch";
    let write = WriteOptions::read(&call.query, if patching { "PatchOptions" } else { "UpdateOptions" })?;
    let id = scale_type()?;
    let patch = match patching {
        true => {
            let kind = Kind::of(call, served)?;
            check_options(kind, &write)?;
            Some((kind, parse(call, kind, &body, write.field_validation)?))
        }
        false => None,
    };
    let whole = match patching {
        true => None,
        false => Some(call.decode_as(api::types(), id, GVK, &body, write.field_validation)?),
    };
    let manager = call.manager(&write);
    let admission_options = write.shown("UpdateOptions");
    let face = Shown { served, paths: &paths, name: &call.info.name };
    let mut checks = Checks::of(call, &admission_options, write.dry_run, &manager);
    checks.face = Some(&face);
    let applying = matches!(patch, Some((Kind::Apply, _)));
    let how = Update {
        key: &key,
        name: &call.info.name,
        namespace: &call.info.namespace,
        part: Part::Other(&special::SCALE),
        create: false,
        retry: patching || whole.as_ref().is_some_and(|w| meta::text(w, "resourceVersion").is_empty()),
        managed: !applying,
    };
    let make = |old: Option<Arc<Value>>| {
        let made = old.as_deref().ok_or_else(|| served.not_found(&call.info.name)).and_then(|old| {
            if let Some((Kind::Apply, config)) = &patch {
                let scale = (&of(old, &paths), id);
                let replicas = &paths.spec_replicas;
                let (scale, entries) =
                    crate::managed::apply_scale(served, scale, old, config, replicas, &write)?;
                let mut new = set(served, old, &scale, &paths, &call.info.name)?;
                meta::of(&mut new)?.insert("managedFields".to_owned(), entries.into());
                return Ok(new);
            }
            let scale = match (&patch, &whole) {
                (Some((kind, patch)), _) => patched(&of(old, &paths), *kind, patch, id)?,
                (None, Some(whole)) => whole.clone(),
                (None, None) => return Err(Status::internal("neither a scale nor a patch of one")),
            };
            set(served, old, &scale, &paths, &call.info.name)
        });
        async move { made }.boxed()
    };
    let outcome = update(&call.server, served, &how, &make, &checks).await?;
    let value = served.read(&outcome.object).await?;
    render::scale(call, of(&value, &paths))
}

fn patched(scale: &Value, kind: Kind, patch: &Value, id: schema::TypeId) -> Result<Value, Status> {
    let bad = |e: schema::PatchError| Status::bad_request(e.to_string());
    let patched = match kind {
        Kind::Json => schema::json_patch(scale, patch).map_err(bad)?,
        Kind::Merge => schema::merge_patch(scale, patch),
        // An apply goes its own way.
        Kind::Strategic | Kind::Apply => {
            schema::strategic_merge_patch(api::types(), id, scale, patch).map_err(bad)?
        }
    };
    let decoded = schema::decode_value(api::types(), id, &patched, schema::FieldValidation::Ignore);
    let normal = |mut value: Value| {
        schema::normalize(api::types(), id, &mut value);
        value
    };
    decoded.map(|d| normal(d.value)).map_err(|e| {
        let error = FieldError::new(FieldErrorKind::Invalid, "patch", patch.to_string(), e.to_string());
        Status::invalid("", "", "", &[error])
    })
}

/// The object with the replica count of a Scale.
fn set(served: &Served, old: &Value, scale: &Value, paths: &ScalePaths, name: &str) -> Result<Value, Status> {
    if meta::text(scale, "name") != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            meta::text(scale, "name")
        )));
    }
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    // A custom resource is judged as a whole afterwards.
    if replicas < 0 && !served.resource.strategy.is_custom() {
        let detail = "must be greater than or equal to 0";
        let error = FieldError::new(FieldErrorKind::Invalid, "spec.replicas", replicas, detail);
        return Err(Status::invalid("autoscaling", "Scale", name, &[error]));
    }
    let (uid, own) = (meta::text(scale, "uid"), meta::text(old, "uid"));
    if !uid.is_empty() && uid != own {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}");
        return Err(Status::conflict(served.group(), served.plural(), name, why));
    }
    let mut new = old.clone();
    let version = meta::text(scale, "resourceVersion").to_owned();
    if !version.is_empty() || served.resource.strategy.unconditional_update() {
        meta::of(&mut new)?.insert("resourceVersion".to_owned(), version.into());
    }
    let (parent, field) = paths.spec_replicas.rsplit_once('/').unwrap_or(("", "replicas"));
    let parent = parent.trim_start_matches('/').replace('/', ".");
    crate::read::object_mut(&mut new, &parent).insert(field.to_owned(), replicas.into());
    Ok(new)
}
