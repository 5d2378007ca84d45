//! The core of every write: prepare, validate, admit, compare-and-write. Used by the verbs and by the server's own parts.

use std::borrow::Cow;
use std::sync::Arc;

use api::Findings;
use futures::future::BoxFuture;
use serde_json::Value;

use super::{Call, meta};
use crate::hooks::Home;
use crate::registry::object::{Change, Object, encode};
use crate::registry::{Served, Written, served};
use crate::special;
use crate::{FieldError, Operation, Status};

/// Retries of a write that only lost a race.
const RETRIES: usize = 16;
const NAME_TRIES: usize = 8;

/// An object after a write, in the form that is stored.
pub struct Outcome {
    pub object: Arc<Object>,
    pub created: bool,
}

/// Which part of the object a write may change.
#[derive(Clone, Copy)]
pub enum Part {
    Main,
    Status,
    /// Another subresource, with its own rules.
    Other(&'static special::PartRules),
}

impl Part {
    /// The subresource; `""` for the object itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Other(rules) => rules.name,
        }
    }

    fn prepare(self, served: &Served, new: &mut Value, old: &Value) {
        match self {
            Self::Main => served.resource.strategy.prepare_update(new, old),
            Self::Status => served.resource.strategy.prepare_status(new, old),
            Self::Other(rules) => (rules.prepare)(new, old),
        }
    }

    fn validate(self, served: &Served, new: &Value, old: &Value) -> Findings {
        let strategy = &served.resource.strategy;
        match self {
            Self::Main => strategy.validate_update(new, old),
            Self::Status => strategy.validate_status(new, old),
            Self::Other(rules) => {
                let mut found = Findings::from((rules.validate)(new, old));
                if rules.name == special::SCALE.name {
                    found.extend(strategy.validate_scale(new, old));
                }
                found
            }
        }
    }

    fn warnings(self, served: &Served, new: &Value, old: &Value) -> Vec<String> {
        let strategy = &served.resource.strategy;
        match self {
            Self::Main => strategy.warnings(new, Some(old)),
            Self::Status => strategy.warnings_status(new, Some(old)),
            Self::Other(_) => Vec::new(),
        }
    }
}

fn invalid(served: &Served, name: &str, errors: &[FieldError]) -> Status {
    Status::invalid(&served.storage.0, &served.resource.kind, name, errors)
}

/// An object that was not written, for a dry run.
fn unwritten(key: &str, value: &Value, revision: u64) -> Result<Arc<Object>, Status> {
    let stored = encode(value)?;
    Ok(Arc::new(Object::from_stored(key.into(), revision, &stored, Change::Added)?))
}

/// How admission sees an object through a subresource that speaks a kind of its own.
pub trait Face: Send + Sync {
    /// Group, version and kind.
    fn kind(&self) -> (&str, &str, &str);
    /// The object as the subresource shows it.
    fn show(&self, object: &Value) -> Value;
    /// The object after its form in the subresource was changed.
    fn take(&self, object: &Value, shown: &Value) -> Result<Value, Status>;
}

/// Who checks a write: the caller's admission, or nobody for the server's own writes.
pub struct Checks<'a> {
    pub call: Option<&'a Call>,
    pub options: &'a Value,
    pub dry_run: bool,
    pub manager: &'a str,
    /// None: admission sees the object itself.
    pub face: Option<&'a dyn Face>,
}

impl Checks<'_> {
    pub const OWN: Checks<'static> =
        Checks { call: None, options: &Value::Null, dry_run: false, manager: "carrack", face: None };

    /// The checks of a caller's request.
    pub fn of<'c>(call: &'c Call, options: &'c Value, dry_run: bool, manager: &'c str) -> Checks<'c> {
        Checks { call: Some(call), options, dry_run, manager, face: None }
    }

    pub async fn mutate(
        &self,
        served: &Served,
        operation: Operation,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let Some(call) = self.call else { return Ok(()) };
        let (kind, options) = (self.kind(served), self.options(operation));
        let Some(face) = self.face else {
            return call.mutate(kind, operation, &options, self.dry_run, object, old).await;
        };
        let (mut shown, old) = (face.show(object), old.map(|old| face.show(old)));
        let before = shown.clone();
        call.mutate(kind, operation, &options, self.dry_run, &mut shown, old.as_ref()).await?;
        if shown != before {
            *object = face.take(object, &shown)?;
        }
        Ok(())
    }

    pub async fn validate(
        &self,
        served: &Served,
        operation: Operation,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let Some(call) = self.call else { return Ok(()) };
        let (kind, options) = (self.kind(served), self.options(operation));
        match self.face {
            None => call.validate(kind, operation, &options, self.dry_run, object, old).await,
            Some(face) => {
                let (object, old) = (face.show(object), old.map(|old| face.show(old)));
                call.validate(kind, operation, &options, self.dry_run, &object, old.as_ref()).await
            }
        }
    }

    /// What a new object must find when it is written.
    fn home(&self, served: &Served, object: &Value) -> Result<Option<Home>, Status> {
        let Some(call) = self.call else { return Ok(None) };
        let options = self.options(Operation::Create);
        let request = call.admission(self.kind(served), Operation::Create, &options, self.dry_run);
        call.server.hooks.admit.home(&request, object)
    }

    /// The kind that admission is told of.
    fn kind<'k>(&'k self, served: &'k Served) -> (&'k str, &'k str, &'k str) {
        let resource = &served.resource;
        self.face.map_or((&*resource.group, &*resource.version, &*resource.kind), Face::kind)
    }

    /// An update that creates has the options of a create.
    fn options(&self, operation: Operation) -> Cow<'_, Value> {
        let mut options = Cow::Borrowed(self.options);
        if operation == Operation::Create && options.is_object() && options["kind"] != "CreateOptions" {
            options.to_mut()["kind"] = "CreateOptions".into();
        }
        options
    }

    fn warn(&self, warnings: Vec<String>) {
        if let Some(call) = self.call {
            warnings.into_iter().for_each(|w| call.warn(w));
        }
    }
}

/// Creates an object that is decoded and defaulted.
pub async fn create(
    server: &crate::server::Server,
    served: &Served,
    namespace: &str,
    object: Value,
    checks: &Checks<'_>,
) -> Result<Outcome, Status> {
    create_managed(server, served, namespace, object, checks, true).await
}

/// Creates an object; `managed` as in [`Update`].
async fn create_managed(
    server: &crate::server::Server,
    served: &Served,
    namespace: &str,
    mut object: Value,
    checks: &Checks<'_>,
    managed: bool,
) -> Result<Outcome, Status> {
    if let Some(why) = served.closed.get() {
        return Err(served::closed(why));
    }
    meta::wipe(&mut object)?;
    meta::namespace(served, namespace, &mut object)?;
    let version = meta::text(&object, "resourceVersion");
    if !matches!(version, "" | "0") {
        return Err(match version.parse::<u64>() {
            Ok(_) => Status::unknown("resourceVersion should not be set on objects to be created"),
            Err(_) => Status::unknown(super::read::invalid_version(version).message()),
        });
    }
    meta::of(&mut object)?.remove("resourceVersion");
    if managed {
        crate::managed::created(served, &mut object, checks).await?;
    }
    checks.mutate(served, Operation::Create, &mut object, None).await?;
    // Upstream reads back what it stored, which defaults again: what admission filled in may entail more.
    served.resource.strategy.default(&mut object);
    let generated = meta::text(&object, "name").is_empty() && !meta::text(&object, "generateName").is_empty();
    if !generated {
        return create_once(server, served, object, false, checks).await;
    }
    for _ in 1..NAME_TRIES {
        match create_once(server, served, object.clone(), true, checks).await {
            Err(status) if status.reason() == "AlreadyExists" => {}
            other => return other,
        }
    }
    create_once(server, served, object, true, checks).await
}

async fn create_once(
    server: &crate::server::Server,
    served: &Served,
    mut object: Value,
    generated: bool,
    checks: &Checks<'_>,
) -> Result<Outcome, Status> {
    let strategy = &served.resource.strategy;
    meta::fill(&mut object)?;
    strategy.prepare_create(&mut object);
    served.resource.open(&mut object);
    if generated {
        let name = meta::generate_name(meta::text(&object, "generateName"));
        meta::of(&mut object)?.insert("name".to_owned(), name.into());
    }
    let name = meta::text(&object, "name").to_owned();
    // What was filled in just now has defaults of its own, as a reader of the stored object would give it.
    strategy.default(&mut object);
    let special = special::of(served.group(), served.plural());
    let mut undo = special::Undo::default();
    if let Some(begin) = special.begin_create {
        undo = begin(server, &mut object, checks.dry_run).await?;
    }
    let written = async {
        let mut errors = meta::validate(served, &object);
        errors.extend(strategy.validate(&object));
        if !errors.is_empty() {
            return Err(invalid(served, &name, &errors));
        }
        served.resource.normalize(&mut object);
        checks.warn(strategy.warnings(&object, None));
        checks.validate(served, Operation::Create, &object, None).await?;
        let key = served.key(meta::text(&object, "namespace"), &name);
        let stored_value = served.store(object).await?;
        if checks.dry_run {
            if server.registry.get(served, &key).await?.is_some() {
                return Err(Status::already_exists(served.group(), served.plural(), &name));
            }
            return Ok((unwritten(&key, &stored_value, 0)?, key));
        }
        let stored = encode(&stored_value)?;
        let home = || checks.home(served, &stored_value);
        match server.registry.create(served, &key, stored.clone(), &home).await? {
            Written::At(revision) => {
                let object = Object::from_stored(key.as_str().into(), revision, &stored, Change::Added)?;
                Ok((Arc::new(object), key))
            }
            Written::Conflict(_) if generated => {
                Err(Status::generate_name_conflict(served.group(), served.plural(), &name))
            }
            Written::Conflict(_) => Err(Status::already_exists(served.group(), served.plural(), &name)),
        }
    }
    .await;
    match written {
        Ok((object, _)) => {
            if !checks.dry_run {
                undo.commit(server).await;
            }
            Ok(Outcome { object, created: true })
        }
        Err(status) => Err(status),
    }
}

/// How an update is made.
pub struct Update<'a> {
    pub key: &'a str,
    pub name: &'a str,
    pub namespace: &'a str,
    pub part: Part,
    /// Whether a missing object is created.
    pub create: bool,
    /// Whether a lost race is tried again although the new object was made from a version.
    pub retry: bool,
    /// The manager's operation that is recorded; apply has recorded its own.
    pub managed: bool,
}

/// Makes the new object from the present one (none: it is to be created).
pub type Make<'a> = dyn Fn(Option<Arc<Value>>) -> BoxFuture<'a, Result<Value, Status>> + Send + Sync + 'a;

/// Reads, changes and writes an object until nothing came between.
pub async fn update(
    server: &crate::server::Server,
    served: &Served,
    update: &Update<'_>,
    make: &Make<'_>,
    checks: &Checks<'_>,
) -> Result<Outcome, Status> {
    let registry = &server.registry;
    let mut existing = registry.get(served, update.key).await?;
    for _ in 0..RETRIES {
        let Some(current) = existing else {
            if !update.create {
                return Err(served.not_found(update.name));
            }
            let object = make(None).await?;
            if let Some(call) = checks.call {
                call.may_create().await?;
            }
            let namespace = update.namespace;
            return create_managed(server, served, namespace, object, checks, update.managed).await;
        };
        match update_once(server, served, update, &current, make, checks).await? {
            Ok(outcome) => return Ok(outcome),
            Err(newer) => existing = newer,
        }
    }
    Err(Status::modified(served.group(), served.plural(), update.name))
}

/// A whole object that names another uid was made from another object.
pub fn same_uid(served: &Served, name: &str, new: &Value, old: &Value) -> Result<(), Status> {
    let (wanted, own) = (meta::text(new, "uid"), meta::text(old, "uid"));
    if wanted.is_empty() || wanted == own {
        return Ok(());
    }
    let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {own}");
    Err(Status::conflict(served.group(), served.plural(), name, why))
}

/// One attempt; the inner error is what stands there now.
async fn update_once(
    server: &crate::server::Server,
    served: &Served,
    update: &Update<'_>,
    current: &Arc<Object>,
    make: &Make<'_>,
    checks: &Checks<'_>,
) -> Result<Result<Outcome, Option<Arc<Object>>>, Status> {
    let strategy = &served.resource.strategy;
    let old = Arc::new(served.read(current).await?);
    let mut new = make(Some(old.clone())).await?;
    let version = meta::text(&new, "resourceVersion").to_owned();
    let unconditional = version.is_empty() || version == "0";
    if unconditional {
        if !strategy.unconditional_update() {
            return Err(Status::invalid_field(
                (served.group(), served.plural(), update.name),
                crate::FieldErrorKind::Invalid,
                "metadata.resourceVersion",
                0,
                "must be specified for an update",
            ));
        }
    } else {
        let parsed: u64 =
            version.parse().map_err(|_| Status::unknown(super::read::invalid_version(&version).message()))?;
        if parsed != current.revision {
            return Err(Status::modified(served.group(), served.plural(), update.name));
        }
    }
    meta::namespace(served, update.namespace, &mut new)?;
    if update.managed {
        crate::managed::updated(served, &mut new, &old, update.part, checks).await?;
    }
    checks.mutate(served, Operation::Update, &mut new, Some(&old)).await?;
    meta::carry(&mut new, &old)?;
    update.part.prepare(served, &mut new, &old);
    served.resource.open(&mut new);
    let special = special::of(served.group(), served.plural());
    let mut undo = special::Undo::default();
    if let (Part::Main, Some(begin)) = (update.part, special.begin_update) {
        undo = begin(server, &mut new, &old, checks.dry_run).await?;
    }
    let result = finish_update(server, served, update, current, (new, &old), checks).await;
    if matches!(result, Ok(Ok(_))) && !checks.dry_run {
        undo.commit(server).await;
    }
    result
}

async fn finish_update(
    server: &crate::server::Server,
    served: &Served,
    update: &Update<'_>,
    current: &Arc<Object>,
    (new, old): (Value, &Value),
    checks: &Checks<'_>,
) -> Result<Result<Outcome, Option<Arc<Object>>>, Status> {
    let mut errors = meta::validate_update(&new, old);
    errors.extend(meta::validate(served, &new));
    let found = update.part.validate(served, &new, old);
    checks.warn(found.warnings);
    errors.extend(found.errors);
    api::ratchet(&mut errors, old);
    if !errors.is_empty() {
        return Err(invalid(served, update.name, &errors));
    }
    let mut new = new;
    served.resource.normalize(&mut new);
    checks.warn(update.part.warnings(served, &new, old));
    checks.validate(served, Operation::Update, &new, Some(old)).await?;
    let gone = vanishes(served, &new);
    let retry = update.retry || {
        let version = meta::text(&new, "resourceVersion");
        version.is_empty() || version == "0"
    };
    meta::of(&mut new)?.insert("resourceVersion".to_owned(), current.revision.to_string().into());
    let new = crate::managed::settle(new, old);
    let mut same = new == *old;
    let stored_value = served.store(new).await?;
    if same && !served.selects_stored() {
        // What lies in the store may be of an older version or schema; a write brings it up to date.
        same = encode(&stored_value)? == encode(&current.value()?)?;
    }
    // What nothing changes is written all the same if it must be sealed anew.
    let kept = same && !gone;
    let stale = kept && !checks.dry_run && server.registry.stale(served, update.key).await?;
    if checks.dry_run || (kept && !stale) {
        let object =
            if same { current.clone() } else { unwritten(update.key, &stored_value, current.revision)? };
        return Ok(Ok(Outcome { object, created: false }));
    }
    let stored = encode(&stored_value)?;
    let written = if gone {
        server.registry.remove(served, update.key, current.revision).await?
    } else {
        server.registry.put(served, update.key, stored.clone(), current.revision).await?
    };
    match written {
        Written::At(revision) => {
            let object = Object::from_stored(update.key.into(), revision, &stored, Change::Modified)?;
            if gone && let Some(after) = special::of(served.group(), served.plural()).after_delete {
                after(server, &stored_value).await;
            }
            Ok(Ok(Outcome { object: Arc::new(object), created: false }))
        }
        Written::Conflict(newer) if retry => Ok(Err(newer)),
        Written::Conflict(None) => Err(served.not_found(update.name)),
        Written::Conflict(Some(_)) => Err(Status::modified(served.group(), served.plural(), update.name)),
    }
}

/// Whether an object that is being deleted has nothing left that keeps it.
fn vanishes(served: &Served, object: &Value) -> bool {
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    if metadata.get("deletionTimestamp").is_none_or(Value::is_null) || !meta::finalizers(object).is_empty() {
        return false;
    }
    if special::of(served.group(), served.plural()).keeps.is_some_and(|keeps| keeps(object)) {
        return false;
    }
    metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0
}
