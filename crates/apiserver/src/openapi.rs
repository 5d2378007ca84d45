//! `/openapi/v2` and `/openapi/v3`, rendered when first asked for.

use http::Response;
use http::request::Parts;

use crate::Status;
use crate::http::body::Body;
use crate::query::Query;
use crate::server::Server;

/// Rendered documents.
#[derive(Default)]
pub struct Documents {}

/// Answers a path below `/openapi/`.
pub fn path(_server: &Server, _parts: &Parts, _query: &Query, _path: &str) -> Result<Response<Body>, Status> {
    Err(Status::no_such_resource())
}
