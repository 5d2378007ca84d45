//! GET on an object.

use http::StatusCode;

use super::{Answered, Call};
use crate::registry::Served;
use crate::{Status, render};

pub async fn run(call: &Call, served: &Served) -> Answered {
    let key = served.key(&call.info.namespace, &call.info.name);
    match call.query.text("resourceVersion") {
        "" => {
            call.server.registry.fresh().await?;
        }
        "0" => {}
        text => {
            let version: u64 = text.parse().map_err(|_| Status::unknown(invalid_version(text).message()))?;
            call.server.registry.reach(version).await?;
        }
    }
    let object = served.cache.get(&key).ok_or_else(|| served.not_found(&call.info.name))?;
    render::object(call, served, StatusCode::OK, &object).await
}

/// A resource version that is no number.
pub fn invalid_version(text: &str) -> Status {
    let error = crate::FieldError::new(
        crate::FieldErrorKind::Invalid,
        "resourceVersion",
        text,
        format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
    );
    Status::bad_request(format!("invalid resource version: {}", error.message()))
}
