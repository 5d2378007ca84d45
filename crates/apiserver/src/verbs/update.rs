//! PUT on an object or on its status.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use http::StatusCode;
use serde_json::Value;

use super::write::{Checks, Part, Update, same_uid, update};
use super::{Answered, Call, meta};
use crate::Status;
use crate::query::WriteOptions;
use crate::registry::Served;
use crate::render;

pub async fn run(call: &Call, served: &Served, part: Part, body: Bytes) -> Answered {
    let write = WriteOptions::read(&call.query, "UpdateOptions")?;
    let mut object = call.decode(served, &body, write.field_validation)?;
    named(call, served, &mut object)?;
    let manager = call.manager(&write);
    let admission_options = write.shown("UpdateOptions");
    let checks = Checks::of(call, &admission_options, write.dry_run, &manager);
    let key = served.key(&call.info.namespace, &call.info.name);
    let how = Update {
        key: &key,
        name: &call.info.name,
        namespace: &call.info.namespace,
        part,
        create: matches!(part, Part::Main) && served.resource.strategy.allow_create_on_update(),
        retry: false,
        managed: true,
    };
    let make = |old: Option<Arc<Value>>| {
        let same = old.as_deref().map_or(Ok(()), |old| same_uid(served, &call.info.name, &object, old));
        let made = same.map(|()| object.clone());
        async move { made }.boxed()
    };
    let outcome = update(&call.server, served, &how, &make, &checks).await?;
    let code = if outcome.created { StatusCode::CREATED } else { StatusCode::OK };
    render::object(call, served, code, &outcome.object).await
}

/// The name in the body must be that of the URL.
fn named(call: &Call, served: &Served, object: &mut Value) -> Result<(), Status> {
    let name = meta::text(object, "name");
    if name.is_empty() {
        return Err(Status::bad_request("name must be provided"));
    }
    if name != call.info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    meta::namespace(served, &call.info.namespace, object)
}
