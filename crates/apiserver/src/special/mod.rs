//! What single kinds add to the generic verbs, as rows of hooks. The verbs know this table, never a kind.

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::http::negotiate::{self, Convert};
use crate::query::WriteOptions;
use crate::registry::Served;
use crate::server::Server;
use crate::verbs::write::{self, Checks};
use crate::verbs::{Answered, Call, meta};
use crate::{FieldError, Status, render};

mod addresses;
mod connect;
mod namespaces;
mod pods;
mod proxy;
mod services;

pub use connect::Connector;
pub use proxy::{Connection, connect};

pub use addresses::repair as repair_addresses;
pub use services::Allocators;

/// What completes a write when it has succeeded. The guard keeps other writes of the kind waiting until then.
#[derive(Default)]
pub struct Undo {
    pub guard: Option<tokio::sync::OwnedMutexGuard<()>>,
    pub on_success: Vec<Task>,
}

impl Undo {
    pub async fn commit(self, server: &Server) {
        for task in self.on_success {
            task.run(server).await;
        }
        drop(self.guard);
    }
}

/// A step that follows a successful write.
pub enum Task {
    /// Tells by IPAddress objects whose these addresses are: namespace and name of the Service.
    TakeAddresses(Vec<String>, (String, String)),
    ReleaseAddresses(Vec<String>),
}

impl Task {
    /// Runs the step; what fails is made good by the upkeep.
    pub fn run<'a>(self, server: &'a Server) -> BoxFuture<'a, ()> {
        use futures::FutureExt;
        async move {
            let Some(row) = server.registry.any("networking.k8s.io", "ipaddresses") else { return };
            match self {
                Self::TakeAddresses(addresses, owner) => {
                    for ip in addresses {
                        let object = addresses::object(&ip, &owner);
                        let created = match crate::server::complete(&row, object) {
                            Ok(object) => {
                                write::create(server, &row, "", object, &Checks::OWN).await.map(drop)
                            }
                            Err(error) => Err(error),
                        };
                        if let Err(error) = created {
                            tracing::warn!(%ip, %error, "no IPAddress for a Service");
                        }
                    }
                }
                Self::ReleaseAddresses(addresses) => {
                    for ip in addresses {
                        if let Some(object) = row.cache.get(&ip)
                            && let Err(error) = server.registry.remove(&row, &ip, object.revision).await
                        {
                            tracing::warn!(%ip, %error, "an IPAddress stays");
                        }
                    }
                }
            }
        }
        .boxed()
    }
}

/// How a subresource other than status changes an object.
pub struct PartRules {
    pub name: &'static str,
    pub prepare: fn(new: &mut Value, old: &Value),
    pub validate: fn(new: &Value, old: &Value) -> Vec<FieldError>,
}

/// The rules of `scale`: the object is changed by the server, nothing else is allowed to be.
pub static SCALE: PartRules = PartRules {
    name: "scale",
    prepare: |new, old| {
        if new.get("spec") != old.get("spec")
            && let Some(generation) = old.pointer("/metadata/generation").and_then(Value::as_i64)
            && let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.insert("generation".to_owned(), (generation + 1).into());
        }
    },
    validate: |_, _| Vec::new(),
};

type BeginCreate = for<'a> fn(&'a Server, &'a mut Value, bool) -> BoxFuture<'a, Result<Undo, Status>>;
type BeginUpdate =
    for<'a> fn(&'a Server, &'a mut Value, &'a Value, bool) -> BoxFuture<'a, Result<Undo, Status>>;
type AfterDelete = for<'a> fn(&'a Server, &'a Value) -> BoxFuture<'a, ()>;

/// The hooks of one kind.
pub struct Special {
    /// A finished delete answers with the object instead of a Status.
    pub returns_deleted: bool,
    /// Whether the garbage collector's finalizers apply.
    pub collected: bool,
    /// Without a propagation policy dependents are orphaned.
    pub orphans: bool,
    /// The grace period of a delete: from the object and the options.
    pub grace: Option<fn(&Value, Option<i64>) -> Option<i64>>,
    /// Something beside finalizers that keeps an object which is being deleted.
    pub keeps: Option<fn(&Value) -> bool>,
    /// Changes an object that has been marked for deletion.
    pub marked: Option<fn(&mut Value)>,
    /// Marks an object for deletion in a way of its own; `false` if there is nothing more to mark.
    pub begin_delete: Option<fn(&mut Value) -> bool>,
    pub before_delete: Option<fn(&Server, &Value) -> Result<(), Status>>,
    pub begin_create: Option<BeginCreate>,
    pub begin_update: Option<BeginUpdate>,
    pub after_delete: Option<AfterDelete>,
}

impl Special {
    pub const GENERIC: Self = Self {
        returns_deleted: false,
        collected: true,
        orphans: false,
        grace: None,
        keeps: None,
        marked: None,
        begin_delete: None,
        before_delete: None,
        begin_create: None,
        begin_update: None,
        after_delete: None,
    };
}

static GENERIC: Special = Special::GENERIC;
static RETURNS: Special = Special { returns_deleted: true, ..Special::GENERIC };
static UNCOLLECTED: Special = Special { collected: false, ..Special::GENERIC };
static ORPHANS: Special = Special { orphans: true, ..Special::GENERIC };

/// The row of a resource.
pub fn of(group: &str, plural: &str) -> &'static Special {
    match (group, plural) {
        ("", "pods") => &pods::ROW,
        ("", "namespaces") => &namespaces::ROW,
        ("", "services") => &services::ROW,
        ("apiextensions.k8s.io", "customresourcedefinitions") => &crate::crds::ROW,
        ("", "events") | ("events.k8s.io", "events") => &UNCOLLECTED,
        ("", "replicationcontrollers") => &ORPHANS,
        (
            "",
            "resourcequotas"
            | "persistentvolumes"
            | "persistentvolumeclaims"
            | "serviceaccounts"
            | "podtemplates",
        )
        | ("resource.k8s.io", _)
        | (
            "storage.k8s.io",
            "csidrivers" | "storageclasses" | "volumeattachments" | "csinodes" | "volumeattributesclasses",
        ) => &RETURNS,
        _ => &GENERIC,
    }
}

/// A resource that is answered and never stored.
#[derive(Clone, Copy)]
pub enum Virtual {
    Reviews,
    ComponentStatuses,
    Bindings,
}

/// How a resource without storage is answered.
pub fn virtual_row(served: &Served) -> Option<Virtual> {
    match (served.group(), served.plural()) {
        ("", "componentstatuses") => Some(Virtual::ComponentStatuses),
        ("", "bindings") => Some(Virtual::Bindings),
        ("authorization.k8s.io" | "authentication.k8s.io", _) => Some(Virtual::Reviews),
        _ => None,
    }
}

/// Answers such a resource.
pub async fn answer_virtual(call: &Call, served: &Served, row: Virtual, body: Bytes) -> Answered {
    match row {
        Virtual::Reviews => {
            let write = WriteOptions::read(&call.query, "CreateOptions")?;
            let mut object = call.decode(served, &body, write.field_validation)?;
            if served.resource.namespaced {
                meta::namespace(served, &call.info.namespace, &mut object)?;
            }
            let errors = served.resource.strategy.validate(&object);
            if !errors.is_empty() {
                return Err(Status::invalid(served.group(), &served.resource.kind, "", &errors));
            }
            if call.output.convert == Convert::Table {
                // A review has no columns.
                let plain = negotiate::Forms::Plain;
                negotiate::output(&call.headers, &call.query, plain, call.server.config.features)?;
            }
            let answer = call.server.hooks.reviews.create(&call.attributes, object).await?;
            render::value(call, http::StatusCode::CREATED, answer)
        }
        Virtual::Bindings => binding(call, body).await,
        Virtual::ComponentStatuses => component_statuses(call, served),
    }
}

/// The parts of the control plane, which are one program here.
fn component_statuses(call: &Call, served: &Served) -> Answered {
    let names = ["controller-manager", "etcd-0", "scheduler"];
    let of = |name: &str| {
        serde_json::json!({
            "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}],
        })
    };
    if call.info.verb == "get" {
        let name = names.iter().find(|n| **n == call.info.name);
        let mut value = of(name.ok_or_else(|| served.not_found(&call.info.name))?);
        value["kind"] = "ComponentStatus".into();
        value["apiVersion"] = "v1".into();
        return render::resource(call, served, http::StatusCode::OK, value);
    }
    render::items(call, served, names.iter().map(|n| of(n)).collect())
}

/// The warning that every use of a deprecated resource gets.
pub fn deprecation(group: &str, plural: &str) -> Option<&'static str> {
    match (group, plural) {
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        ("", "endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        }
        _ => None,
    }
}

/// The rules of a subresource that changes a part of its object.
pub fn part(group: &str, plural: &str, name: &str) -> Option<&'static PartRules> {
    Some(match (group, plural, name) {
        ("", "pods", "ephemeralcontainers") => &pods::EPHEMERAL,
        ("", "pods", "resize") => &pods::RESIZE,
        ("", "namespaces", "finalize") => &namespaces::FINALIZE,
        ("certificates.k8s.io", "certificatesigningrequests", "approval") => &APPROVAL,
        _ => return None,
    })
}

static APPROVAL: PartRules = PartRules {
    name: "approval",
    prepare: |new, old| api::kinds::prepare_approval(new, old),
    validate: |new, old| api::kinds::validate_approval(new, old),
};

/// The body as another kind than the resource's.
fn body_as(
    call: &Call,
    gvk: (&str, &str, &str),
    body: &Bytes,
    validation: schema::FieldValidation,
) -> Result<Value, Status> {
    let types = api::types();
    let id = types
        .by_gvk(gvk.0, gvk.1, gvk.2)
        .ok_or_else(|| Status::internal(format!("no {} in the type table", gvk.2)))?;
    let mut object = call.decode_as(types, id, gvk, body, validation)?;
    schema::fill_defaults(types, id, &mut object);
    call.audit.object(&object);
    Ok(object)
}

/// Mutating and validating admission of a body that is not of the resource's kind.
async fn admit(
    call: &Call,
    gvk: (&str, &str, &str),
    object: &mut Value,
    write: &WriteOptions,
) -> Result<(), Status> {
    let options = write.shown("CreateOptions");
    let request = call.admission(gvk, crate::Operation::Create, &options, write.dry_run);
    call.server.hooks.admit.mutate(&request, object, None).await?;
    call.server.hooks.admit.validate(&request, object, None).await
}

fn done(call: &Call) -> Answered {
    let value = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    render::value(call, http::StatusCode::CREATED, value)
}

/// `bindings` and `pods/binding`.
async fn binding(call: &Call, body: Bytes) -> Answered {
    let write = WriteOptions::read(&call.query, "CreateOptions")?;
    let gvk = ("", "v1", "Binding");
    let mut object = body_as(call, gvk, &body, write.field_validation)?;
    let pods = call.server.registry.any("", "pods").ok_or_else(Status::no_such_resource)?;
    let namespace = call.info.namespace.clone();
    meta::namespace(&pods, &namespace, &mut object)?;
    let name = match call.info.name.as_str() {
        "" => meta::text(&object, "name").to_owned(),
        name => name.to_owned(),
    };
    let named = meta::text(&object, "name");
    if !named.is_empty() && named != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    admit(call, gvk, &mut object, &write).await?;
    pods::bind(&call.server, &pods, (&namespace, &name), &object, write.dry_run).await?;
    done(call)
}

/// A subresource whose create acts on the object.
pub async fn create_part(call: &Call, served: &Served, body: Bytes) -> Answered {
    match (served.plural(), call.info.subresource.as_str()) {
        ("serviceaccounts", "token") => {
            let gvk = ("authentication.k8s.io", "v1", "TokenRequest");
            let mut object = body_as(call, gvk, &body, schema::FieldValidation::Warn)?;
            let write = WriteOptions::read(&call.query, "CreateOptions")?;
            admit(call, gvk, &mut object, &write).await?;
            let answer = call.server.hooks.tokens.create(&call.attributes, object).await?;
            render::value(call, http::StatusCode::CREATED, answer)
        }
        ("pods", "binding") => binding(call, body).await,
        ("pods", "eviction") => {
            let gvk = ("policy", "v1", "Eviction");
            let mut object = body_as(call, gvk, &body, schema::FieldValidation::Warn)?;
            let write = WriteOptions::read(&call.query, "CreateOptions")?;
            admit(call, gvk, &mut object, &write).await?;
            pods::evict(call, served, &object).await?;
            done(call)
        }
        _ => Err(Status::no_such_resource()),
    }
}
