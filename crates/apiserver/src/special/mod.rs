//! What single kinds add to the generic verbs, as rows of hooks. The verbs know this table, never a kind.

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::query::WriteOptions;
use crate::registry::Served;
use crate::server::Server;
use crate::verbs::{Answered, Call, meta};
use crate::{FieldError, Status, render};

mod connect;
mod namespaces;
mod pods;

pub use connect::Connector;

/// Gives back what a hook took (addresses, ports) when the write fails; or completes it when it succeeds.
#[derive(Default)]
pub struct Undo {
    pub on_failure: Option<BoxFuture<'static, ()>>,
    pub on_success: Option<BoxFuture<'static, ()>>,
}

impl Undo {
    pub async fn run(self, _server: &Server) {
        if let Some(undo) = self.on_failure {
            undo.await;
        }
    }

    pub async fn commit(self, _server: &Server) {
        if let Some(done) = self.on_success {
            done.await;
        }
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
        ("", "events") | ("events.k8s.io", "events") => &UNCOLLECTED,
        ("", "replicationcontrollers") => &ORPHANS,
        (
            "",
            "resourcequotas"
            | "persistentvolumes"
            | "persistentvolumeclaims"
            | "serviceaccounts"
            | "podtemplates"
            | "services",
        )
        | ("resource.k8s.io", _)
        | (
            "storage.k8s.io",
            "csidrivers" | "storageclasses" | "volumeattachments" | "csinodes" | "volumeattributesclasses",
        ) => &RETURNS,
        _ => &GENERIC,
    }
}

/// The addresses and ports that Services have been given.
pub struct Allocators {}

impl Allocators {
    pub fn new(_config: &crate::Config) -> Self {
        Self {}
    }
}

/// A connection that a handler takes over.
pub struct Connection {
    pub method: http::Method,
    pub uri: http::Uri,
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

/// A subresource that connects the client to a node, pod or service.
pub struct Connect {}

impl Connect {
    pub async fn run<B>(&self, _call: &Call, _served: &Served, _connection: Connection, _body: B) -> Answered
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: std::fmt::Display,
    {
        Err(Status::no_such_resource())
    }
}

/// The handler of a connecting subresource.
pub fn connect(_call: &Call, _served: &Served) -> Option<Connect> {
    None
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
            let errors = (served.resource.strategy.validate)(&object);
            if !errors.is_empty() {
                return Err(Status::invalid(served.group(), &served.resource.kind, "", &errors));
            }
            let answer = call.server.hooks.reviews.create(&call.attributes, object).await?;
            render::value(call, http::StatusCode::CREATED, answer)
        }
        Virtual::ComponentStatuses | Virtual::Bindings => Err(Status::no_such_resource()),
    }
}

/// The rules of a subresource that changes a part of its object.
pub fn part(_group: &str, _plural: &str, _name: &str) -> Option<&'static PartRules> {
    None
}

/// A subresource whose create acts on the object.
pub async fn create_part(call: &Call, served: &Served, body: Bytes) -> Answered {
    if (served.plural(), call.info.subresource.as_str()) == ("serviceaccounts", "token") {
        let types = api::types();
        let gvk = ("authentication.k8s.io", "v1", "TokenRequest");
        let id = types
            .by_gvk(gvk.0, gvk.1, gvk.2)
            .ok_or_else(|| Status::internal("no TokenRequest in the type table"))?;
        let mut object = call.decode_as(types, id, gvk, &body, schema::FieldValidation::Warn)?;
        schema::fill_defaults(types, id, &mut object);
        let answer = call.server.hooks.tokens.create(&call.attributes, object).await?;
        return render::value(call, http::StatusCode::CREATED, answer);
    }
    Err(Status::no_such_resource())
}
