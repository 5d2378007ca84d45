//! DELETE on an object and on a collection: preconditions, propagation, grace and finalizers.

use std::sync::Arc;

use api::{FieldError, FieldErrorKind};
use bytes::Bytes;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::write::Checks;
use super::{Answered, Call, meta};
use crate::http::negotiate::{Format, input};
use crate::query::{ListOptions, Query, dry_run};
use crate::registry::object::{Change, Object, encode};
use crate::registry::{Served, Written};
use crate::{Operation, Status, render, special};

const RETRIES: usize = 16;

/// What DeleteOptions say.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace: Option<i64>,
    pub uid: Option<String>,
    pub version: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub propagation: Option<String>,
    pub dry_run: bool,
    /// As admission sees them.
    pub value: Value,
}

impl DeleteOptions {
    /// From the body, or from the query if there is none.
    pub fn read(call: &Call, body: &Bytes) -> Result<Self, Status> {
        let mut options = if body.is_empty() {
            Self::from_query(&call.query)?
        } else {
            let types = api::types();
            let id = types
                .by_name("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
                .ok_or_else(|| Status::internal("no DeleteOptions in the type table"))?;
            let strict = schema::FieldValidation::Ignore;
            let decoded = match input(&call.headers, call.server.config.features)? {
                Format::Json => schema::decode_json(types, id, body, strict),
                Format::Yaml => schema::decode_yaml(types, id, body, strict),
                Format::Cbor => schema::decode_value(types, id, &render::from_cbor(body)?, strict),
                Format::Protobuf => render::from_protobuf(body, id)
                    .map(|value| Ok(schema::Decoded { value, warnings: Vec::new() }))?,
            };
            let mut value = decoded.map_err(|e| Status::bad_request(e.to_string()))?.value;
            schema::normalize(types, id, &mut value);
            let kind = value.get("kind").and_then(Value::as_str).unwrap_or("DeleteOptions");
            if kind != "DeleteOptions" {
                return Err(Status::bad_request(format!("{kind} cannot be handled as DeleteOptions")));
            }
            call.audit.patch(|| value.clone());
            value
        };
        options["dryRun"] = match call.query.all("dryRun").collect::<Vec<_>>() {
            dry if dry.is_empty() => options.get("dryRun").cloned().unwrap_or_else(|| json!([])),
            dry => dry.into(),
        };
        Self::of(options)
    }

    /// From their JSON form.
    pub fn of(mut options: Value) -> Result<Self, Status> {
        let errors = errors(&options);
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors));
        }
        options["kind"] = "DeleteOptions".into();
        options["apiVersion"] = "meta.k8s.io/v1".into();
        let text = |pointer: &str| options.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let dry = options.get("dryRun").and_then(Value::as_array).is_some_and(|d| !d.is_empty());
        Ok(Self {
            grace: options
                .get("gracePeriodSeconds")
                .and_then(Value::as_i64)
                .map(|g| if g < 0 { 1 } else { g }),
            uid: text("/preconditions/uid"),
            version: text("/preconditions/resourceVersion"),
            orphan_dependents: options.get("orphanDependents").and_then(Value::as_bool),
            propagation: text("/propagationPolicy"),
            dry_run: dry,
            value: options,
        })
    }

    fn from_query(query: &Query) -> Result<Value, Status> {
        let mut options = json!({});
        if let Some(grace) = query.integer("gracePeriodSeconds")? {
            options["gracePeriodSeconds"] = grace.into();
        }
        if let Some(policy) = query.get("propagationPolicy") {
            options["propagationPolicy"] = policy.into();
        }
        if let Some(orphan) = query.flag("orphanDependents") {
            options["orphanDependents"] = orphan.into();
        }
        let dry: Vec<&str> = query.all("dryRun").collect();
        if !dry.is_empty() {
            options["dryRun"] = dry.into();
        }
        Ok(options)
    }
}

fn errors(options: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = options.get("propagationPolicy").and_then(Value::as_str);
    if policy.is_some() && options.get("orphanDependents").is_some_and(|o| !o.is_null()) {
        errors.push(FieldError::new(
            FieldErrorKind::Invalid,
            "propagationPolicy",
            policy,
            "orphanDependents and deletionPropagation cannot be both set",
        ));
    }
    if let Some(policy) = policy.filter(|p| !matches!(*p, "Orphan" | "Background" | "Foreground")) {
        errors.push(FieldError::new(
            FieldErrorKind::NotSupported,
            "propagationPolicy",
            policy,
            "supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"",
        ));
    }
    let dry = options.get("dryRun").and_then(Value::as_array).into_iter().flatten();
    dry_run(dry.filter_map(Value::as_str), &mut errors);
    errors
}

pub async fn run(call: &Call, served: &Served, body: Bytes) -> Answered {
    let options = DeleteOptions::read(call, &body)?;
    let key = served.key(&call.info.namespace, &call.info.name);
    let deleted = delete(call, served, &key, &call.info.name, &options).await?;
    let waits = !deleted.gone && options.orphan_dependents == Some(false);
    let code = if waits { StatusCode::ACCEPTED } else { StatusCode::OK };
    let returns = special::of(served.group(), served.plural()).returns_deleted;
    if deleted.gone && !returns {
        return render::value(call, code, success(served, &deleted.object));
    }
    render::object(call, served, code, &deleted.object).await
}

/// The Status of a finished delete.
fn success(served: &Served, object: &Object) -> Value {
    let mut details = json!({"name": object.name(), "kind": served.plural()});
    if !served.group().is_empty() {
        details["group"] = served.group().into();
    }
    if let Ok(value) = object.value() {
        details["uid"] = meta::text(&value, "uid").into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

pub struct Deleted {
    pub object: Arc<Object>,
    pub gone: bool,
}

/// Deletes an object, or marks it where something keeps it.
pub async fn delete(
    call: &Call,
    served: &Served,
    key: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, Status> {
    let checks = Checks::of(call, &options.value, options.dry_run, "");
    delete_with(&call.server, served, key, name, options, &checks).await
}

pub async fn delete_with(
    server: &crate::server::Server,
    served: &Served,
    key: &str,
    name: &str,
    options: &DeleteOptions,
    checks: &Checks<'_>,
) -> Result<Deleted, Status> {
    let registry = &server.registry;
    let mut existing = registry.get(served, key).await?;
    for _ in 0..RETRIES {
        let Some(current) = existing else { return Err(served.not_found(name)) };
        let old = served.read(&current).await?;
        let mut new = old.clone();
        preconditions(served, name, &old, options)?;
        let special = special::of(served.group(), served.plural());
        if let Some(guard) = special.before_delete {
            guard(server, &old)?;
        }
        let plan = plan(served, special, &old, &mut new, options)?;
        if matches!(plan, Plan::Nothing) {
            return Ok(Deleted { object: current, gone: false });
        }
        checks.mutate(served, Operation::Delete, &mut Value::Null, Some(&old)).await?;
        checks.validate(served, Operation::Delete, &Value::Null, Some(&old)).await?;
        let stored_value = served.store(new).await?;
        if options.dry_run {
            let gone = matches!(plan, Plan::Remove | Plan::MarkAndRemove);
            let stored = encode(&stored_value)?;
            let object = Object::from_stored(key.into(), current.revision, &stored, Change::Modified)?;
            return Ok(Deleted { object: Arc::new(object), gone });
        }
        let (written, gone) = match plan {
            Plan::Remove => (registry.remove(served, key, current.revision).await?, true),
            // Watchers see the end of a graceful delete before the object goes.
            Plan::MarkAndRemove => {
                match registry.put(served, key, encode(&stored_value)?, current.revision).await? {
                    Written::At(revision) => match registry.remove(served, key, revision).await? {
                        // Somebody saw the mark and was quicker.
                        Written::Conflict(None) => (Written::At(revision), true),
                        removed => (removed, true),
                    },
                    conflict => (conflict, true),
                }
            }
            _ => (registry.put(served, key, encode(&stored_value)?, current.revision).await?, false),
        };
        match written {
            Written::At(revision) => {
                if gone && let Some(after) = special.after_delete {
                    after(server, &old).await;
                }
                let object = if gone {
                    // The answer shows the object as it was marked, at its last version.
                    let stored = encode(&stored_value)?;
                    Object::from_stored(key.into(), current.revision, &stored, Change::Deleted)?
                } else {
                    Object::from_stored(key.into(), revision, &encode(&stored_value)?, Change::Modified)?
                };
                return Ok(Deleted { object: Arc::new(object), gone });
            }
            Written::Conflict(newer) => existing = newer,
        }
    }
    Err(Status::modified(served.group(), served.plural(), name))
}

fn preconditions(served: &Served, name: &str, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let conflict = |what: &str, wanted: &str, is: &str, why: &str| {
        let text = format!(
            "the {what} in the precondition ({wanted}) does not match the {what} in record ({is}). {why}"
        );
        Status::conflict(served.group(), &served.resource.kind, name, text)
    };
    if let Some(uid) = &options.uid {
        let is = meta::text(old, "uid");
        if uid != is {
            return Err(conflict("UID", uid, is, "The object might have been deleted and then recreated"));
        }
    }
    if let Some(version) = &options.version {
        let is = meta::text(old, "resourceVersion");
        if version != is {
            return Err(conflict("ResourceVersion", version, is, "The object might have been modified"));
        }
    }
    Ok(())
}

enum Plan {
    Remove,
    /// The grace period is over at once.
    MarkAndRemove,
    Mark,
    /// It is being deleted already and nothing changes.
    Nothing,
}

fn plan(
    served: &Served,
    special: &special::Special,
    old: &Value,
    new: &mut Value,
    options: &DeleteOptions,
) -> Result<Plan, Status> {
    let deleting = !meta::text(old, "deletionTimestamp").is_empty();
    if special.begin_delete.is_some_and(|begin| begin(new)) {
        return Ok(Plan::Mark);
    }
    let (mut graceful, mut at_once) = (false, false);
    if served.resource.strategy.has_graceful_delete() {
        let current =
            new.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
        if deleting && current > 0 {
            match options.grace {
                Some(wanted) if wanted < current => {
                    shorten(new, current, wanted)?;
                    graceful = wanted > 0;
                    at_once = wanted == 0;
                }
                _ => return Ok(Plan::Nothing),
            }
        } else if !deleting && let Some(grace) = special.grace.and_then(|grace| grace(new, options.grace)) {
            mark(new, grace)?;
            graceful = grace > 0;
            at_once = grace == 0;
        }
    }
    if special.collected {
        collect(special, new, options)?;
    }
    let pending = !meta::finalizers(new).is_empty() || special.keeps.is_some_and(|keeps| keeps(new));
    if graceful {
        return Ok(Plan::Mark);
    }
    if !pending {
        return Ok(if at_once { Plan::MarkAndRemove } else { Plan::Remove });
    }
    mark_now(new)?;
    if let Some(marked) = special.marked {
        marked(new);
    }
    if deleting && *new == *old {
        return Ok(Plan::Nothing);
    }
    Ok(Plan::Mark)
}

/// Sets the deletion time a grace period ahead.
fn mark(object: &mut Value, grace: i64) -> Result<(), Status> {
    bump(object)?;
    let at = Timestamp::now() + SignedDuration::from_secs(grace.clamp(0, 1 << 40));
    let metadata = meta::of(object)?;
    metadata.insert("deletionTimestamp".to_owned(), meta::time(at).into());
    metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
    Ok(())
}

/// A second delete may only shorten the period.
fn shorten(object: &mut Value, current: i64, wanted: i64) -> Result<(), Status> {
    let now = Timestamp::now();
    let until = meta::text(object, "deletionTimestamp").parse::<Timestamp>().unwrap_or(now);
    let mut at = until - SignedDuration::from_secs(current) + SignedDuration::from_secs(wanted);
    let mut period = wanted;
    if at < now {
        at = now;
        period = period.min(1);
    }
    let metadata = meta::of(object)?;
    metadata.insert("deletionTimestamp".to_owned(), meta::time(at).into());
    metadata.insert("deletionGracePeriodSeconds".to_owned(), period.into());
    Ok(())
}

/// The object is being deleted from now on; finalizers keep it.
fn mark_now(object: &mut Value) -> Result<(), Status> {
    let now = Timestamp::now();
    let until = meta::text(object, "deletionTimestamp").parse::<Timestamp>().ok();
    if until.is_none() {
        bump(object)?;
    }
    let metadata = meta::of(object)?;
    if until.is_none_or(|until| until > now) {
        metadata.insert("deletionTimestamp".to_owned(), meta::time(now).into());
    }
    metadata.insert("deletionGracePeriodSeconds".to_owned(), 0.into());
    Ok(())
}

fn bump(object: &mut Value) -> Result<(), Status> {
    let metadata = meta::of(object)?;
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|g| *g > 0) {
        metadata.insert("generation".to_owned(), (generation + 1).into());
    }
    Ok(())
}

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Puts the garbage collector's finalizers according to the propagation policy.
fn collect(special: &special::Special, object: &mut Value, options: &DeleteOptions) -> Result<(), Status> {
    let present = meta::finalizers(object);
    let (had_orphan, had_foreground) = (present.contains(&ORPHAN), present.contains(&FOREGROUND));
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation.as_deref()) {
        (Some(orphan), _) => (orphan, false),
        (None, Some("Orphan")) => (true, false),
        (None, Some("Foreground")) => (false, true),
        (None, Some(_)) => (false, false),
        (None, None) if had_orphan || had_foreground => (had_orphan && !had_foreground, had_foreground),
        (None, None) => (special.orphans, false),
    };
    if orphan == had_orphan && foreground == had_foreground {
        return Ok(());
    }
    let mut finalizers: Vec<String> =
        present.into_iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).map(str::to_owned).collect();
    if orphan {
        finalizers.push(ORPHAN.to_owned());
    }
    if foreground {
        finalizers.push(FOREGROUND.to_owned());
    }
    let metadata = meta::of(object)?;
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
    Ok(())
}

/// DELETE on a collection: every object that the selectors choose.
pub async fn collection(call: &Call, served: &Served, body: Bytes) -> Answered {
    // A limit is only that of the pages in which the server itself would read.
    let list = ListOptions { limit: 0, ..ListOptions::read(&call.query, false)? };
    let options = DeleteOptions::read(call, &body)?;
    let selected = super::list::select(call, served, &list).await?;
    for object in &selected.items {
        let item = delete(call, served, &object.key, object.name(), &options).await;
        match item {
            Err(status) if status.code() == 404 => {}
            Err(status) => return Err(status),
            Ok(_) => {}
        }
    }
    super::list::answer(call, served, selected)
}
