//! The verbs of the generic registry. Nothing here knows a kind: what differs is in the row, its strategy, and the table of
//! special rows.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Response};
use schema::{DecodeError, FieldValidation};
use serde_json::Value;

use crate::audit::{Level, Record};
use crate::http::body::Body;
use crate::http::negotiate::{Format, Output, input};
use crate::query::{Query, WriteOptions};
use crate::registry::Served;
use crate::request::RequestInfo;
use crate::server::Server;
use crate::{AdmissionRequest, Attributes, Operation, Status};

pub mod create;
pub mod delete;
pub mod list;
pub mod meta;
pub mod patch;
pub mod read;
pub mod scale;
pub mod update;
pub mod watch;
pub mod write;

/// A verb's answer.
pub type Answered = Result<Response<Body>, Status>;

/// One request on its way through the verbs.
pub struct Call {
    pub server: Arc<Server>,
    pub info: RequestInfo,
    pub query: Query,
    pub headers: HeaderMap,
    pub attributes: Attributes,
    pub output: Output,
    pub warnings: Mutex<Vec<String>>,
    pub audit: Arc<Record>,
}

impl Call {
    /// Adds a warning for the caller; the same text is told once.
    pub fn warn(&self, text: impl Into<String>) {
        // More than this would not be shown anyway.
        const MOST: usize = 1000;
        let mut warnings = self.warnings.lock().unwrap_or_else(|e| e.into_inner());
        let text = text.into();
        if warnings.len() < MOST && !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Who owns the fields of a write that names no manager: the program's name.
    pub fn manager(&self, options: &WriteOptions) -> String {
        if !options.field_manager.is_empty() {
            return options.field_manager.clone();
        }
        let agent = self.headers.get(http::header::USER_AGENT).and_then(|h| h.to_str().ok());
        let name = agent.unwrap_or_default().split('/').next().unwrap_or_default();
        let printable: String = name.chars().filter(|c| !c.is_control()).collect();
        printable.chars().take(128).collect()
    }

    /// The body as an object of a type, defaulted, in the version served.
    pub fn decode(
        &self,
        served: &Served,
        body: &Bytes,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        let resource = &served.resource;
        let gvk = (&*resource.group, &*resource.version, &*resource.kind);
        let format = input(&self.headers, self.server.config.features)?;
        let custom = resource.strategy.is_custom();
        let mut value = self.checked(gvk, validation, |validation| {
            let decoded = match format {
                Format::Json => resource.decode_json(body, validation),
                Format::Yaml => resource.decode_yaml(body, validation),
                Format::Cbor => resource.decode_value(&crate::render::from_cbor(body)?, validation),
                Format::Protobuf if custom => {
                    return Err(Status::unsupported_media_type(
                        "the body of the request was in an unknown format - accepted media types include: \
                         application/json, application/yaml",
                    ));
                }
                Format::Protobuf => {
                    let value = crate::render::from_protobuf(body, resource.type_id)?;
                    Ok(schema::Decoded { value, warnings: Vec::new() })
                }
            };
            if custom
                && let Ok(decoded) = &decoded
                && let Some(kind) = decoded.value.get("kind").and_then(Value::as_str)
                && kind != resource.kind
            {
                let name = meta::text(&decoded.value, "name");
                let detail = format!("must be {}", resource.kind);
                let error = crate::FieldError::new(crate::FieldErrorKind::Invalid, "kind", kind, detail);
                return Err(Status::invalid(&resource.group, kind, name, &[error]));
            }
            Ok(decoded)
        })?;
        resource.complete(&mut value);
        if self.audit.wants(Level::Request) {
            self.audit.object(&value);
        }
        Ok(value)
    }

    /// The body as an object of a type, in normal form; a missing kind or version is filled in, a wrong one refused.
    pub fn decode_as(
        &self,
        types: &schema::Types,
        id: schema::TypeId,
        gvk: (&str, &str, &str),
        body: &Bytes,
        validation: FieldValidation,
    ) -> Result<Value, Status> {
        let format = input(&self.headers, self.server.config.features)?;
        let mut value = self.checked(gvk, validation, |validation| {
            Ok(match format {
                Format::Json => schema::decode_json(types, id, body, validation),
                Format::Yaml => schema::decode_yaml(types, id, body, validation),
                Format::Cbor => schema::decode_value(types, id, &crate::render::from_cbor(body)?, validation),
                Format::Protobuf => {
                    let value = crate::render::from_protobuf(body, id)?;
                    Ok(schema::Decoded { value, warnings: Vec::new() })
                }
            })
        })?;
        schema::normalize(types, id, &mut value);
        Ok(value)
    }

    /// A decoded body, if it is of the kind that is wanted. Another kind has other fields: what is wrong with them is told
    /// only of the right one.
    fn checked(
        &self,
        (group, version, kind): (&str, &str, &str),
        validation: FieldValidation,
        read: impl Fn(FieldValidation) -> Result<Result<schema::Decoded, DecodeError>, Status>,
    ) -> Result<Value, Status> {
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let (decoded, refused) = match read(validation)? {
            Err(error @ DecodeError::Strict(_)) => {
                (read(FieldValidation::Ignore)?, Some(decode_status(&error, version, kind)))
            }
            decoded => (decoded, None),
        };
        let decoded = decoded.map_err(|e| decode_status(&e, version, kind))?;
        let mut value = decoded.value;
        let Some(map) = value.as_object_mut() else {
            return Err(Status::bad_request("the body of the request is no object"));
        };
        let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (got_version, got_kind) = (text("apiVersion"), text("kind"));
        if !got_kind.is_empty() && got_kind != kind {
            let version = if got_version.is_empty() { &api_version } else { &got_version };
            return Err(Status::bad_request(format!(
                "{got_kind} in version {version:?} cannot be handled as a {kind}: the kind does not match the resource"
            )));
        }
        if !got_version.is_empty() && got_version != api_version {
            return Err(Status::bad_request(format!(
                "the API version in the data ({got_version}) does not match the expected API version ({api_version})"
            )));
        }
        map.insert("apiVersion".to_owned(), api_version.into());
        map.insert("kind".to_owned(), kind.into());
        if let Some(refused) = refused {
            return Err(refused);
        }
        for warning in decoded.warnings {
            self.warn(warning);
        }
        self.audit.object(&value);
        Ok(value)
    }

    /// Calls mutating admission.
    pub async fn mutate(
        &self,
        gvk: (&str, &str, &str),
        operation: Operation,
        options: &Value,
        dry_run: bool,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let request = self.admission(gvk, operation, options, dry_run);
        let before = Instant::now();
        let result = self.server.hooks.admit.mutate(&request, object, old).await;
        step(operation, "admit", before, result.is_err());
        result
    }

    /// Calls validating admission.
    pub async fn validate(
        &self,
        gvk: (&str, &str, &str),
        operation: Operation,
        options: &Value,
        dry_run: bool,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let request = self.admission(gvk, operation, options, dry_run);
        let before = Instant::now();
        let result = self.server.hooks.admit.validate(&request, object, old).await;
        step(operation, "validate", before, result.is_err());
        result
    }

    /// An update that would create asks for the right to do that as well.
    pub async fn may_create(&self) -> Result<(), Status> {
        let asked = Attributes { verb: "create".to_owned(), ..self.attributes.clone() };
        let decision = self.server.hooks.authorize.authorize(&asked).await;
        if decision.allowed() { Ok(()) } else { Err(crate::authz::forbidden(&asked, &decision.reason)) }
    }

    /// What admission is asked about an object of a kind.
    pub fn admission<'a>(
        &'a self,
        (group, version, kind): (&'a str, &'a str, &'a str),
        operation: Operation,
        options: &'a Value,
        dry_run: bool,
    ) -> AdmissionRequest<'a> {
        AdmissionRequest {
            attributes: &self.attributes,
            operation,
            group,
            version,
            kind,
            dry_run,
            options,
            warnings: &self.warnings,
            audit: &self.audit,
        }
    }
}

/// Counts a whole step of admission.
fn step(operation: Operation, kind: &str, before: Instant, rejected: bool) {
    let labels = [operation.name(), if rejected { "true" } else { "false" }, kind];
    crate::metrics::metrics().admission_step.with(&labels).observe(before.elapsed().as_secs_f64());
}

/// A body that did not decode.
pub fn decode_status(error: &DecodeError, version: &str, kind: &str) -> Status {
    match error {
        DecodeError::Strict(_) => Status::bad_request(error.to_string()),
        _ => Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
        )),
    }
}
