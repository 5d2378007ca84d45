//! Objects and lists in the representation that the client asked for. The plain JSON of a stored object is sent as it lies in
//! the cache; everything else is made from its tree.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::Status;
use crate::http::body::{Body, ListBody};
use crate::http::negotiate::{Convert, Format, Output};
use crate::http::warning;
use crate::query::Query;
use crate::registry::Served;
use crate::registry::object::{Change, Object};
use crate::verbs::list::Selected;
use crate::verbs::{Answered, Call};

/// A response with a body of a media type.
pub fn response(code: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An error as the client is told.
pub fn status(output: Output, status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let output = Output { convert: Convert::None, ..output };
    let value = status.to_value();
    let mut response = match encode(output, &value) {
        Ok(body) => response(code, output.format.media_type(), Body::Full(body)),
        Err(_) => response(code, "application/json", Body::Full(value.to_string().into())),
    };
    if let Some(seconds) = status.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    warning::add(&mut response, status.warnings());
    response
}

/// A tree in an encoding.
pub fn encode(output: Output, value: &Value) -> Result<Bytes, Status> {
    if output.beta && output.convert != Convert::None {
        return encode(Output { beta: false, ..output }, &older(value));
    }
    match output.format {
        Format::Json if output.pretty => {
            let ordered = schema::Ordered::new(api::types(), type_of(value), value);
            let mut text = serde_json::to_vec_pretty(&ordered).map_err(Status::internal)?;
            text.push(b'\n');
            Ok(text.into())
        }
        Format::Json => {
            let ordered = schema::Ordered::new(api::types(), type_of(value), value);
            let mut text = serde_json::to_vec(&ordered).map_err(Status::internal)?;
            text.push(b'\n');
            Ok(text.into())
        }
        Format::Yaml => to_yaml(value),
        Format::Protobuf => to_protobuf(value),
        Format::Cbor => to_cbor(value),
    }
}

fn to_yaml(value: &Value) -> Result<Bytes, Status> {
    Ok(crate::yaml::write(value).into())
}

/// The type of a tree that names its kind; none for what is no kind of the table.
fn type_of(value: &Value) -> Option<schema::TypeId> {
    let types = api::types();
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let status = || types.by_name("io.k8s.apimachinery.pkg.apis.meta.v1.Status").filter(|_| kind == "Status");
    types.by_gvk(group, version, kind).or_else(status)
}

/// A whole protobuf body; the tree names its kind.
fn to_protobuf(value: &Value) -> Result<Bytes, Status> {
    let Some(id) = type_of(value) else {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        return Err(Status::not_acceptable(format!("{kind} of {api_version} has no protobuf form")));
    };
    schema::proto::encode(api::types(), id, value).map(Bytes::from).map_err(Status::internal)
}

/// A whole CBOR body. Kinds that are not in the table are written as their JSON shows them.
fn to_cbor(value: &Value) -> Result<Bytes, Status> {
    let typed = type_of(value).map(|id| (&**api::types(), id));
    schema::cbor::encode(typed, value).map(Bytes::from).map_err(Status::internal)
}

/// The tree of a CBOR body.
pub fn from_cbor(body: &Bytes) -> Result<Value, Status> {
    schema::cbor::decode(body).map_err(|e| Status::bad_request(e.to_string()))
}

/// The tree of a protobuf body; `fallback` is its type if it names none.
pub fn from_protobuf(body: &Bytes, fallback: schema::TypeId) -> Result<Value, Status> {
    let decoded = schema::proto::decode(api::types(), Some(fallback), body);
    decoded.map(|d| d.value).map_err(|e| Status::bad_request(e.to_string()))
}

/// The tree of a body that was made here, by its content type.
pub fn decode(headers: &http::HeaderMap, body: &Bytes) -> Option<Value> {
    let content = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    if content.starts_with("application/json") {
        serde_json::from_slice(body).ok()
    } else if content.starts_with(Format::Protobuf.media_type()) {
        schema::proto::decode(api::types(), None, body).map(|decoded| decoded.value).ok()
    } else if content.starts_with(Format::Yaml.media_type()) {
        schema::decode_any_yaml(body, schema::FieldValidation::Ignore).map(|decoded| decoded.value).ok()
    } else {
        None
    }
}

/// A stored object.
pub async fn object(call: &Call, served: &Served, code: StatusCode, object: &Arc<Object>) -> Answered {
    let object = served.view(object).await?;
    if call.output.plain() {
        return Ok(response(code, "application/json", Body::Full(object.json())));
    }
    resource(call, served, code, object.value()?)
}

/// An object of a served kind that is at hand as a tree.
pub fn resource(call: &Call, served: &Served, code: StatusCode, value: Value) -> Answered {
    let value = match call.output.convert {
        Convert::None => value,
        Convert::Table => {
            let version = value.pointer("/metadata/resourceVersion").cloned();
            let mut metadata = Map::new();
            if let Some(version) = version {
                metadata.insert("resourceVersion".to_owned(), version);
            }
            table(served, vec![value], metadata, include_object(&call.query)?, true)
        }
        Convert::Metadata => partial(&value),
        Convert::MetadataList => {
            return Err(Status::not_acceptable("the object is no list and cannot be shown as one"));
        }
    };
    let body = encode(call.output, &value)?;
    Ok(response(code, call.output.format.media_type(), Body::Full(body)))
}

/// A Scale, which has a Table form of its own.
pub fn scale(call: &Call, scale: Value) -> Answered {
    if call.output.convert != Convert::Table {
        return value(call, StatusCode::OK, scale);
    }
    let column = |name: &str, kind: &str| {
        json!({
            "name": name,
            "type": kind,
            "format": "",
            "description": format!("{name} of this Scale, as lists show it."),
            "priority": 0,
        })
    };
    let replicas = |pointer: &str| scale.pointer(pointer).cloned().unwrap_or_else(|| 0.into());
    let created = scale.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
    let age = created.and_then(|t| t.parse::<Timestamp>().ok()).map_or_else(
        || "<unknown>".to_owned(),
        |t| format!("{}s", Timestamp::now().duration_since(t).as_secs().max(0)),
    );
    let name = scale.pointer("/metadata/name").cloned().unwrap_or_default();
    let table = json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": scale.pointer("/metadata/resourceVersion").cloned().unwrap_or_default()},
        "columnDefinitions": [
            column("Name", "string"),
            column("Desired", "integer"),
            column("Available", "integer"),
            column("Age", "string"),
        ],
        "rows": [{
            "cells": [name, replicas("/spec/replicas"), replicas("/status/replicas"), age],
            "object": partial(&scale),
        }],
    });
    let body = encode(call.output, &table)?;
    Ok(response(StatusCode::OK, call.output.format.media_type(), Body::Full(body)))
}

/// Any other tree.
pub fn value(call: &Call, code: StatusCode, value: Value) -> Answered {
    let output = Output { convert: Convert::None, ..call.output };
    let body = encode(output, &value)?;
    Ok(response(code, output.format.media_type(), Body::Full(body)))
}

fn list_metadata(selected: &Selected) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".to_owned(), selected.revision.to_string().into());
    if let Some(token) = &selected.token {
        metadata.insert("continue".to_owned(), token.as_str().into());
    }
    if let Some(remaining) = selected.remaining {
        metadata.insert("remainingItemCount".to_owned(), remaining.into());
    }
    metadata
}

/// A list of objects as the version shows them.
pub fn list(call: &Call, served: &Served, selected: Selected) -> Answered {
    let mut metadata = list_metadata(&selected);
    let whole = served.resource.strategy.is_custom();
    if whole && matches!(call.output.convert, Convert::None) {
        metadata.entry("continue").or_insert_with(|| "".into());
    }
    let resource = &served.resource;
    let kind = format!("{}List", resource.kind);
    if call.output.plain() {
        // Items of built-in kinds do not say what they are, those of custom resources do.
        let body = ListBody::new(list_head(served, metadata), selected.items, whole);
        return Ok(response(StatusCode::OK, "application/json", Body::List(body)));
    }
    let mut items = Vec::with_capacity(selected.items.len());
    for object in &selected.items {
        items.push(object.value()?);
    }
    let value = match call.output.convert {
        Convert::Table => table(served, items, metadata, include_object(&call.query)?, true),
        Convert::Metadata => {
            return Err(Status::not_acceptable("the object is a list and cannot be shown as one object"));
        }
        Convert::MetadataList => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": items.iter().map(partial).collect::<Vec<_>>(),
        }),
        Convert::None => {
            for item in items.iter_mut().filter(|_| !whole).filter_map(Value::as_object_mut) {
                item.remove("kind");
                item.remove("apiVersion");
            }
            json!({"kind": kind, "apiVersion": resource.api_version(), "metadata": metadata, "items": items})
        }
    };
    let body = encode(call.output, &value)?;
    Ok(response(StatusCode::OK, call.output.format.media_type(), Body::Full(body)))
}

fn list_head(served: &Served, metadata: Map<String, Value>) -> Bytes {
    let resource = &served.resource;
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{},\"items\":[",
        Value::from(format!("{}List", resource.kind)),
        Value::from(resource.api_version()),
        Value::Object(metadata)
    );
    head.into()
}

/// A whole list in plain JSON at a revision, out of the blocks that the cache keeps of it; none if it keeps none.
pub fn shared_list(call: &Call, served: &Served, prefix: &str, revision: u64) -> Option<Response<Body>> {
    if !call.output.plain() || !served.is_stored() {
        return None;
    }
    let (blocks, changed) = served.cache.encoded(prefix)?;
    let selected =
        Selected { items: Vec::new(), revision: revision.max(changed), token: None, remaining: None };
    let head = list_head(served, list_metadata(&selected));
    let body = Body::List(ListBody::shared(head, blocks));
    Some(response(StatusCode::OK, "application/json", body))
}

/// A list of objects that are not stored.
pub fn items(call: &Call, served: &Served, items: Vec<Value>) -> Answered {
    let resource = &served.resource;
    let value = match call.output.convert {
        Convert::Table => table(served, items, Map::new(), include_object(&call.query)?, true),
        Convert::MetadataList | Convert::Metadata => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": {},
            "items": items.iter().map(partial).collect::<Vec<_>>(),
        }),
        Convert::None => json!({
            "kind": format!("{}List", resource.kind),
            "apiVersion": resource.api_version(),
            "metadata": {},
            "items": items,
        }),
    };
    let body = encode(call.output, &value)?;
    Ok(response(StatusCode::OK, call.output.format.media_type(), Body::Full(body)))
}

/// PartialObjectMetadata of an object.
fn partial(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// Tables and metadata in the version before v1.
fn older(value: &Value) -> Value {
    let mut value = value.clone();
    let rename = |object: &mut Value| {
        if object.get("apiVersion").is_some_and(|v| v == "meta.k8s.io/v1") {
            object["apiVersion"] = "meta.k8s.io/v1beta1".into();
        }
    };
    rename(&mut value);
    for items in ["items", "rows"] {
        for item in value.get_mut(items).and_then(Value::as_array_mut).into_iter().flatten() {
            match item.get_mut("object") {
                Some(object) => rename(object),
                None => rename(item),
            }
        }
    }
    value
}

/// What a Table row carries of its object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Include {
    None,
    Metadata,
    Object,
}

fn include_object(query: &Query) -> Result<Include, Status> {
    match query.text("includeObject") {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::None),
        "Object" => Ok(Include::Object),
        other => {
            Err(Status::bad_request(format!("Invalid value: {other:?}: unrecognized 'includeObject' value")))
        }
    }
}

fn table(
    served: &Served,
    items: Vec<Value>,
    metadata: Map<String, Value>,
    include: Include,
    columns: bool,
) -> Value {
    let now = Timestamp::now();
    let strategy = &served.resource.strategy;
    let rows: Vec<Value> = items
        .into_iter()
        .map(|item| {
            let cells = strategy.row(&item, now);
            let mut row = json!({"cells": cells});
            match include {
                Include::None => row["object"] = Value::Null,
                Include::Metadata => row["object"] = partial(&item),
                Include::Object => row["object"] = item,
            }
            row
        })
        .collect();
    let definitions: Value = if columns {
        let kind = &served.resource.kind;
        let of = |c: &api::Column| {
            let description = match (&**kind, &*c.name) {
                ("RuntimeClass", "Handler") => String::new(),
                (_, name) if c.description.is_empty() => format!("{name} of this {kind}, as lists show it."),
                _ => c.description.to_string(),
            };
            json!({
                "name": c.name,
                "type": c.kind,
                "format": c.format,
                "description": description,
                "priority": c.priority,
            })
        };
        served.resource.columns.iter().map(of).collect()
    } else {
        Value::Null
    };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

/// Watch frames in a representation.
pub struct Frames {
    served: Arc<Served>,
    output: Output,
    include: Include,
    /// Only the first Table of a watch describes the columns.
    columns: bool,
}

impl Frames {
    pub fn new(served: Arc<Served>, output: Output, query: &Query) -> Self {
        let include = include_object(query).unwrap_or(Include::Metadata);
        Self { served, output, include, columns: true }
    }

    pub fn output(&self) -> Output {
        self.output
    }

    /// Whether frames are those that lie in the cache.
    pub fn plain(&self) -> bool {
        self.output.format == Format::Json && self.output.convert == Convert::None
    }

    /// The frame of a change of an object as the version shows it.
    pub fn event(&mut self, change: Change, object: &Object) -> Result<Bytes, Status> {
        if self.plain() {
            return Ok(object.frame(change));
        }
        self.other(change.name(), object.value()?)
    }

    /// A frame of another type, of an object of the served kind.
    pub fn other(&mut self, kind: &str, value: Value) -> Result<Bytes, Status> {
        let value = match self.output.convert {
            Convert::None => value,
            Convert::Metadata | Convert::MetadataList => partial(&value),
            Convert::Table => {
                let version = value.pointer("/metadata/resourceVersion").cloned();
                let mut metadata = Map::new();
                if let Some(version) = version {
                    metadata.insert("resourceVersion".to_owned(), version);
                }
                let columns = std::mem::take(&mut self.columns);
                // A bookmark is read off its object, whatever the rows carry.
                let include = if kind == "BOOKMARK" { Include::Metadata } else { self.include };
                table(&self.served, vec![value], metadata, include, columns)
            }
        };
        frame(self.output, kind, &value)
    }
}

fn frame(output: Output, kind: &str, value: &Value) -> Result<Bytes, Status> {
    let older = (output.beta && output.convert != Convert::None).then(|| older(value));
    let value = older.as_ref().unwrap_or(value);
    let event = || json!({"type": kind, "object": value});
    match output.format {
        Format::Json => {
            let mut text = serde_json::to_vec(&event()).map_err(Status::internal)?;
            text.push(b'\n');
            Ok(text.into())
        }
        Format::Yaml => {
            let mut text = b"---\n".to_vec();
            text.extend_from_slice(&to_yaml(&event())?);
            Ok(text.into())
        }
        Format::Protobuf => {
            let event = schema::proto::watch_event(kind, &to_protobuf(value)?);
            let length = u32::try_from(event.len()).map_err(Status::internal)?;
            Ok([length.to_be_bytes().as_slice(), &event].concat().into())
        }
        Format::Cbor => Ok(schema::cbor::watch_event(kind, &to_cbor(value)?).into()),
    }
}

/// The last frame of a watch that cannot go on.
pub fn error_frame(output: Output, status: &Status) -> Result<Bytes, Status> {
    frame(output, "ERROR", &status.to_value())
}
