//! Audit events: made out of what was noted of a request, at each stage that the policy wants.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};

use super::policy::{Decided, Stage};
use super::record::{Level, Record};
use super::sink::Ticket;
use super::{Auditor, sources};
use crate::metrics::metrics;
use crate::{Attributes, UserInfo};

const LONGEST_AGENT: usize = 1024;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct User<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    groups: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: &'a BTreeMap<String, Vec<String>>,
}

impl<'a> User<'a> {
    fn new(user: &'a UserInfo) -> Self {
        Self { username: &user.name, uid: &user.uid, groups: &user.groups, extra: &user.extra }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_group: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    resource_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subresource: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    kind: &'static str,
    api_version: &'static str,
    level: &'static str,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: &'static str,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'a str,
    user: User<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<User<'a>>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "<[_]>::is_empty")]
    source_ips: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<ObjectRef<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_object: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_object: Option<&'a Value>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// How a request was answered.
#[derive(Default)]
pub struct Outcome {
    /// `code`, and of failures and statuses `status`, `message`, `reason` and `details`.
    status: Option<Value>,
    object: Option<Value>,
}

impl Outcome {
    /// An answer with a code. `status` is the `Status` object that it holds, if it is one.
    pub fn new(code: u16, status: Option<&Value>, object: Option<Value>) -> Self {
        let mut own = Map::new();
        own.insert("metadata".to_owned(), Value::Object(Map::new()));
        for field in ["status", "message", "reason", "details"] {
            if let Some(value) = status.and_then(|s| s.get(field)) {
                own.insert(field.to_owned(), value.clone());
            }
        }
        own.insert("code".to_owned(), code.into());
        Self { status: Some(own.into()), object }
    }

    /// What to say of a request whose handling broke down.
    pub fn panicked() -> Self {
        let status = serde_json::json!({
            "status": "Failure",
            "message": "APIServer panic'd: see the server's log",
            "reason": "InternalError",
        });
        Self::new(500, Some(&status), None)
    }

    /// What to say of a request whose client went before it was answered.
    pub fn closed() -> Self {
        let status = serde_json::json!({"status": "Success", "message": "Connection closed early"});
        Self::new(200, Some(&status), None)
    }
}

/// The events of one request.
pub struct Trail {
    auditor: Arc<Auditor>,
    decided: Decided,
    record: Arc<Record>,
    id: String,
    uri: String,
    agent: String,
    sources: Vec<String>,
    attributes: Attributes,
    received: Timestamp,
    /// Events that the request has to wait for.
    tickets: Mutex<Vec<Ticket>>,
}

impl Trail {
    /// Waits until what was emitted is kept, where a back end asks for that; false if one must keep it and could not.
    pub async fn settled(&self) -> bool {
        let tickets = std::mem::take(&mut *self.tickets.lock());
        let mut kept = true;
        for ticket in tickets {
            // A task that was broken off has kept nothing.
            kept &= ticket.await.unwrap_or(false);
        }
        kept
    }

    /// Decides how a request is audited; `None`: not at all.
    pub fn begin(
        auditor: &Arc<Auditor>,
        record: &Arc<Record>,
        id: &str,
        received: Timestamp,
        parts: &Parts,
        peer: Option<std::net::IpAddr>,
        attributes: &Attributes,
    ) -> Option<Self> {
        let decided = auditor.policy.decide(attributes);
        record.decide(decided.level);
        metrics().audit_levels.with(&[decided.level.name()]).increment();
        if decided.level == Level::None {
            return None;
        }
        let agent = parts.headers.get(http::header::USER_AGENT).and_then(|h| h.to_str().ok());
        let mut agent = agent.unwrap_or_default().to_owned();
        if agent.len() > LONGEST_AGENT {
            // A header value that is text is ASCII.
            agent.truncate(LONGEST_AGENT);
            agent.push_str("...TRUNCATED");
        }
        Some(Self {
            auditor: auditor.clone(),
            decided,
            record: record.clone(),
            id: id.to_owned(),
            uri: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            agent,
            sources: sources::of(&parts.headers, peer),
            attributes: attributes.clone(),
            received,
            tickets: Mutex::default(),
        })
    }

    /// Whether the answer's object is asked for.
    pub fn wants_response(&self) -> bool {
        self.decided.level >= Level::RequestResponse
    }

    /// Hands the event of a stage to the back ends; false if it must be kept and could not be.
    pub fn emit(&self, stage: Stage, outcome: Option<&Outcome>) -> bool {
        if !self.decided.wants(stage) {
            return true;
        }
        metrics().audit_events.with(&[]).increment();
        match self.render(stage, outcome) {
            Ok(line) => self.auditor.take(&line, &mut self.tickets.lock()),
            Err(error) => {
                tracing::error!(%error, "an audit event could not be encoded");
                metrics().audit_errors.with(&["encoding"]).increment();
                true
            }
        }
    }

    fn render(&self, stage: Stage, outcome: Option<&Outcome>) -> Result<Bytes, serde_json::Error> {
        let at = if stage == Stage::RequestReceived { self.received } else { Timestamp::now() };
        let level = self.decided.level;
        let asked = &self.attributes;
        self.record.read(|noted| {
            let own = &noted.reference;
            let either =
                |first: &'_ str, second: &'_ str| if first.is_empty() { second } else { first }.to_owned();
            let (name, namespace) =
                (either(&asked.name, &own.name), either(&asked.namespace, &own.namespace));
            let without = |value: &Value| self.decided.omit_managed_fields.then(|| unmanaged(value));
            let whole = |object: Option<&Value>, wanted: bool| object.filter(|_| wanted).cloned();
            let request = whole(noted.request.as_ref(), level >= Level::Request);
            let request = request.map(|value| without(&value).unwrap_or(value));
            let response = outcome.and_then(|o| whole(o.object.as_ref(), level >= Level::RequestResponse));
            let response = response.map(|value| without(&value).unwrap_or(value));
            let event = Event {
                kind: "Event",
                api_version: "audit.k8s.io/v1",
                level: level.name(),
                audit_id: &self.id,
                stage: stage.name(),
                request_uri: &self.uri,
                verb: &asked.verb,
                user: User::new(&asked.user),
                impersonated_user: noted.impersonated.as_deref().map(User::new),
                source_ips: &self.sources,
                user_agent: &self.agent,
                object_ref: asked.resource_request.then_some(ObjectRef {
                    resource: &asked.resource,
                    namespace: &namespace,
                    name: &name,
                    uid: &own.uid,
                    api_group: &asked.group,
                    api_version: &asked.version,
                    resource_version: &own.resource_version,
                    subresource: &asked.subresource,
                }),
                response_status: outcome.and_then(|o| o.status.as_ref()),
                request_object: request.as_ref(),
                response_object: response.as_ref(),
                request_received_timestamp: micros(self.received),
                stage_timestamp: micros(at),
                annotations: &noted.annotations,
            };
            serde_json::to_vec(&event).map(Bytes::from)
        })
    }
}

/// An object, or the items of a list or table, without `metadata.managedFields`.
fn unmanaged(value: &Value) -> Value {
    let mut value = value.clone();
    strip(&mut value);
    for item in value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        strip(item);
    }
    for row in value.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(object) = row.get_mut("object") {
            strip(object);
        }
    }
    value
}

fn strip(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}
