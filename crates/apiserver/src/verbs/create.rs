//! POST on a collection.

use bytes::Bytes;
use http::StatusCode;

use super::write::{Checks, create};
use super::{Answered, Call};
use crate::Status;
use crate::query::WriteOptions;
use crate::registry::Served;
use crate::render;

pub async fn run(call: &Call, served: &Served, body: Bytes) -> Answered {
    let write = WriteOptions::read(&call.query, "CreateOptions")?;
    let namespace = call.info.namespace.as_str();
    if served.resource.namespaced && namespace.is_empty() {
        return Err(Status::method_not_allowed(served.group(), served.plural(), "create"));
    }
    let object = call.decode(served, &body, write.field_validation)?;
    let manager = call.manager(&write);
    let admission_options = write.shown("CreateOptions");
    let checks = Checks::of(call, &admission_options, write.dry_run, &manager);
    let outcome = create(&call.server, served, namespace, object, &checks).await?;
    render::object(call, served, StatusCode::CREATED, &outcome.object).await
}
