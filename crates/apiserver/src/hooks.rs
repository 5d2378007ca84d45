//! The seams of the pipeline: authentication, authorization, admission, encryption at rest, virtual resources, and the view
//! of the cluster that they are given. The pipeline calls these traits and knows no implementation.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use schema::FieldValidation;
use serde_json::Value;

use crate::audit::{Level, Record};
use crate::{Attributes, Decision, Gvk, Gvr, Operation, Status, UserInfo};

/// Tells who sends a request.
pub trait Authenticate: Send + Sync + 'static {
    /// `Ok(None)`: no credentials were given. An error is answered as 401.
    fn authenticate<'a>(
        &'a self,
        parts: &'a http::request::Parts,
        peer: &'a [CertificateDer<'static>],
    ) -> BoxFuture<'a, Result<Option<UserInfo>, Status>>;
}

/// Tells whether a caller may do what it asks for.
pub trait Authorize: Send + Sync + 'static {
    fn authorize<'a>(&'a self, attributes: &'a Attributes) -> BoxFuture<'a, Decision>;
}

/// What admission is asked about.
#[derive(Debug)]
pub struct AdmissionRequest<'a> {
    pub attributes: &'a Attributes,
    pub operation: Operation,
    /// The kind of the object in the request (of the subresource, if it has its own).
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub dry_run: bool,
    /// CreateOptions, UpdateOptions, DeleteOptions or the connect options, as JSON.
    pub options: &'a Value,
    /// Warnings for the caller; every entry becomes a `Warning` header.
    pub warnings: &'a Mutex<Vec<String>>,
    /// Where annotations for the request's audit events are collected.
    pub audit: &'a Record,
}

impl AdmissionRequest<'_> {
    /// Adds an annotation to the request's audit events; the key is `NAME.DOMAIN/WHAT`, its first value stays.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        self.audit.annotate(key, value);
    }

    /// Adds an annotation that only audit events of a level and higher ones hold (patches of webhooks, say).
    pub fn annotate_at(&self, level: Level, key: impl Into<String>, value: impl Into<String>) {
        self.audit.annotate_at(level, key, value);
    }

    /// Adds a warning for the caller, once.
    pub fn warn(&self, text: impl Into<String>) {
        let (mut warnings, text) = (self.warnings.lock().unwrap_or_else(|e| e.into_inner()), text.into());
        if !text.is_empty() && !warnings.contains(&text) {
            warnings.push(text);
        }
    }
}

/// Admission: `mutate` may change the object, `validate` sees what will be stored. For deletes the object is null and `old`
/// is what will go; for connects the object is the options.
pub trait Admit: Send + Sync + 'static {
    fn mutate<'a>(
        &'a self,
        request: &'a AdmissionRequest<'a>,
        object: &'a mut Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>>;

    fn validate<'a>(
        &'a self,
        request: &'a AdmissionRequest<'a>,
        object: &'a Value,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>>;

    /// What a new object was admitted for and must still stand when it is written: compared in the same transaction. Asked
    /// right before that, and again when it has changed meanwhile; costs no I/O.
    fn home(&self, _request: &AdmissionRequest<'_>, _object: &Value) -> Result<Option<Home>, Status> {
        Ok(None)
    }
}

/// A stored object, at the revision at which it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    pub group: &'static str,
    pub resource: &'static str,
    /// `namespace/name`, or `name` of a cluster-wide object.
    pub key: String,
    pub revision: u64,
}

/// Answers a create without storing anything: access reviews, token reviews, `serviceaccounts/token`.
pub trait Answer: Send + Sync + 'static {
    /// The object is decoded and defaulted; the answer is sent as it is, with 201.
    fn create<'a>(
        &'a self,
        attributes: &'a Attributes,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>>;
}

/// Encryption at rest: between the encoded object and the store's value. `context` is the store key, bound as additional
/// data.
pub trait Transform: Send + Sync + 'static {
    fn seal(&self, group: &str, resource: &str, context: &[u8], plain: Bytes) -> Result<Bytes, Status>;
    fn open(&self, group: &str, resource: &str, context: &[u8], sealed: Bytes) -> Result<Bytes, Status>;

    /// Whether a value can only be opened after [`Transform::prepare`].
    fn unprepared(&self, _value: &[u8]) -> bool {
        false
    }

    /// Fetches the keys of values. What fails shows when they are opened.
    fn prepare<'a>(&'a self, _values: &'a [Bytes]) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Whether a value would be sealed otherwise today, so that a write must not be left out although nothing changes.
    fn stale(&self, _group: &str, _resource: &str, _sealed: &[u8]) -> bool {
        false
    }

    /// Whether values of a resource can be stale at all.
    fn covers(&self, _group: &str, _resource: &str) -> bool {
        false
    }

    /// The plug-ins that keys lie with, and what is wrong with each.
    fn providers(&self) -> Vec<(String, Result<(), String>)> {
        Vec::new()
    }
}

/// A certificate and key that the server presents, exchanged while it runs.
pub trait Rotation: Send + Sync + 'static {
    fn current(&self) -> Arc<rustls::sign::CertifiedKey>;
}

/// One resource's objects at a revision.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub revision: u64,
    pub items: Vec<Arc<Value>>,
}

/// The cluster's state as the hooks see it: reads come from the watch cache and cost no I/O; writes go through the registry
/// (defaulting, validation, generation) without authentication, authorization or admission.
pub trait Cluster: Send + Sync + 'static {
    /// One object in its stored form. The namespace is `""` for cluster-wide kinds.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// All objects, of one namespace or of all.
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Snapshot;

    /// The keys (`namespace/name`) of a namespace's objects and the revision of each, without reading the objects.
    fn versions(&self, group: &str, resource: &str, namespace: &str) -> Vec<(Arc<str>, u64)>;

    /// The revision of the last change of a resource that the cache has seen: cheap, for the upkeep of derived tables.
    fn changed(&self, group: &str, resource: &str) -> u64;

    /// Waits until the cache is as new as the store is now; for a decision that must not be made on stale state.
    fn fresh<'a>(&'a self, group: &'a str, resource: &'a str) -> BoxFuture<'a, ()>;

    fn create<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>>;

    fn update<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>>;

    /// Writes the status alone.
    fn update_status<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>>;

    fn delete<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
        resource: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<(), Status>>;

    /// Whether a resource of this name is served, in any version (for discovery-like questions of admission).
    fn serves(&self, group: &str, resource: &str) -> bool;

    /// The other names under which the objects of a resource are served: other versions, and other groups that are stored
    /// together with it. Each with the kind that the subresource speaks there; those without the subresource are left out.
    fn equivalents(&self, resource: &Gvr, subresource: &str) -> Vec<(Gvr, Gvk)>;

    /// An object of one resource as an equivalent one shows it.
    fn convert<'a>(
        &'a self,
        from: &'a Gvr,
        to: &'a Gvr,
        object: Value,
    ) -> BoxFuture<'a, Result<Value, Status>>;

    /// Decodes an object of a resource (of a subresource, if it speaks a kind of its own): unknown fields are dropped, or
    /// refused if the validation is strict, and missing ones defaulted.
    fn complete(
        &self,
        resource: &Gvr,
        subresource: &str,
        kind: &Gvk,
        object: Value,
        validation: FieldValidation,
    ) -> Result<Value, Status>;

    /// An object with the fields of a configuration; see [`schema::managed::overlay`].
    fn overlay(&self, resource: &Gvr, kind: &Gvk, object: &Value, config: &Value) -> Result<Value, String>;

    /// The resource of a kind, and whether it is namespaced.
    fn resource_of(&self, kind: &Gvk) -> Option<(Gvr, bool)>;
}

/// A shared view of the cluster.
pub type ClusterRef = Arc<dyn Cluster>;

/// Everything the pipeline is given from outside.
#[derive(Clone)]
pub struct Hooks {
    pub authenticate: Arc<dyn Authenticate>,
    pub authorize: Arc<dyn Authorize>,
    pub admit: Arc<dyn Admit>,
    /// `tokenreviews`, `subjectaccessreviews`, `selfsubjectaccessreviews`, `localsubjectaccessreviews`,
    /// `selfsubjectrulesreviews`, `selfsubjectreviews`: told apart by `attributes.resource`.
    pub reviews: Arc<dyn Answer>,
    /// `serviceaccounts/token`.
    pub tokens: Arc<dyn Answer>,
    pub transform: Option<Arc<dyn Transform>>,
}
