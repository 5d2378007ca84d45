//! Paths that are no resources: discovery, version, health, metrics, OpenAPI.

use std::sync::Arc;

use http::header::{ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::http::body::Body;
use crate::http::negotiate;
use crate::pipeline::text;
use crate::query::Query;
use crate::request::RequestInfo;
use crate::server::Server;
use crate::verbs::Answered;
use crate::{Status, discovery, openapi, render};

pub mod health;
mod metrics;
pub mod zpages;

/// Answers a plain path.
pub async fn path(server: &Arc<Server>, parts: &Parts, query: &Query, info: &RequestInfo) -> Answered {
    let path = info.path.as_str();
    let trimmed = path.trim_end_matches('/');
    let segments: Vec<&str> = trimmed.split('/').skip(1).collect();
    let only_get = || match parts.method {
        Method::GET => Ok(()),
        Method::HEAD if trimmed != "/version" => Ok(()),
        _ => Err(Status::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with_causes(Vec::new())),
    };
    match segments.as_slice() {
        ["api" | "apis"] => {
            if parts.method == Method::POST && segments == ["apis"] {
                return answer(server, parts, query, &group_list(server));
            }
            only_get()?;
            root(server, parts, query, segments == ["api"])
        }
        ["api", version] => {
            only_get()?;
            let list = discovery::resource_list(&server.registry.rows(), "", version);
            answer(server, parts, query, &list.ok_or_else(Status::no_such_resource)?)
        }
        ["apis", group] => {
            only_get()?;
            let (rows, table) = (server.registry.rows(), server.aggregation.table());
            let group = discovery::group(&discovery::Sources { rows: &rows, table: &table }, group);
            answer(server, parts, query, &group.ok_or_else(Status::no_such_resource)?)
        }
        ["apis", group, version] => {
            only_get()?;
            let list = discovery::resource_list(&server.registry.rows(), group, version);
            answer(server, parts, query, &list.ok_or_else(Status::no_such_resource)?)
        }
        ["version"] => {
            only_get()?;
            // As JSON whatever is preferred: clients of every form read it before they know the server.
            only_json(parts)?;
            let body = serde_json::to_vec(&version()).map_err(Status::internal)?;
            Ok(render::response(StatusCode::OK, "application/json", Body::Full(body.into())))
        }
        ["healthz" | "livez" | "readyz", ..] => {
            only_get()?;
            Ok(text(StatusCode::NOT_FOUND, "404 page not found\n"))
        }
        ["metrics"] => {
            only_get()?;
            metrics::show(server);
            Ok(text(StatusCode::OK, crate::metrics::text()))
        }
        ["metrics", "slis"] => {
            only_get()?;
            Ok(text(StatusCode::OK, crate::metrics::slis()))
        }
        ["flagz"] => {
            only_get()?;
            zpages::flags(server, parts)
        }
        ["statusz"] => {
            only_get()?;
            let plain = paths(server).into_iter().filter(|path| !path.starts_with("/api"));
            zpages::status(parts, &plain.collect::<Vec<_>>())
        }
        ["openapi", ..] => {
            only_get()?;
            if let Some(name) = trimmed.strip_prefix("/openapi/v3/")
                && let Some(document) = server.aggregation.v3(&server.cluster(), name).await
            {
                return Ok(render::response(StatusCode::OK, "application/json", Body::Full(document)));
            }
            openapi::path(server, parts, trimmed)
        }
        [".well-known", "openid-configuration"] | ["openid", "v1", "jwks"] => {
            only_get()?;
            let issuer = server.issuer.as_ref().ok_or_else(Status::no_such_resource)?;
            let keys = segments[0] == "openid";
            let document = if keys { issuer.key_set() } else { issuer.discovery(&server.advertised()) };
            let media_type = if keys { "application/jwk-set+json" } else { "application/json" };
            Ok(render::response(StatusCode::OK, media_type, Body::Full(document.to_string().into())))
        }
        [] | [""] => {
            only_get()?;
            answer(server, parts, query, &json!({"paths": paths(server)}))
        }
        _ => Ok(text(StatusCode::NOT_FOUND, "404 page not found\n")),
    }
}

fn group_list(server: &Server) -> Value {
    let (rows, table) = (server.registry.rows(), server.aggregation.table());
    discovery::group_list(&discovery::Sources { rows: &rows, table: &table })
}

fn paths(server: &Server) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/api",
        "/api/v1",
        "/apis",
        "/flagz",
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/statusz",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for row in server.registry.rows().iter().filter(|r| !r.group().is_empty()) {
        paths.push(format!("/apis/{}", row.group()));
        paths.push(format!("/apis/{}/{}", row.group(), row.resource.version));
    }
    for remote in server.aggregation.table().remotes() {
        paths.push(format!("/apis/{}", remote.group));
        paths.push(format!("/apis/{}/{}", remote.group, remote.version));
    }
    paths.sort();
    paths.dedup();
    paths
}

/// A document in whatever form is accepted. Protobuf needs the version that the JSON form leaves out.
fn answer(server: &Server, parts: &Parts, query: &Query, value: &Value) -> Answered {
    let output = negotiate::output(&parts.headers, query, negotiate::Forms::Plain, server.config.features)?;
    let body = if output.format == negotiate::Format::Protobuf && value.get("apiVersion").is_none() {
        let mut versioned = value.clone();
        versioned["apiVersion"] = "v1".into();
        render::encode(output, &versioned)?
    } else {
        render::encode(output, value)?
    };
    Ok(render::response(StatusCode::OK, output.format.media_type(), Body::Full(body)))
}

/// Refuses a client that does not take plain JSON; parameters of the media types do not count.
fn only_json(parts: &Parts) -> Result<(), Status> {
    let accept = parts.headers.get(http::header::ACCEPT).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let media_type = |clause: &str| clause.split(';').next().unwrap_or_default().trim().to_owned();
    if accept.is_empty() || accept.split(',').map(media_type).any(|m| m == "*/*" || m == "application/json") {
        return Ok(());
    }
    let text = "406: Not Acceptable\n\nAvailable representations: application/json";
    Err(Status::not_acceptable(text).with_causes(Vec::new()))
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `/api` and `/apis`: aggregated if the client prefers that.
fn root(server: &Server, parts: &Parts, query: &Query, core: bool) -> Answered {
    let accept = parts.headers.get(http::header::ACCEPT).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let clauses = negotiate::clauses(accept);
    let aggregated = clauses.iter().any(|clause| {
        let param = |key: &str| clause.params.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        clause.main == "application"
            && clause.sub == "json"
            && param("as") == Some("APIGroupDiscoveryList")
            && param("g") == Some("apidiscovery.k8s.io")
            && param("v") == Some("v2")
    });
    if !aggregated {
        let value = if core { discovery::core_versions(&server.advertised()) } else { group_list(server) };
        return answer(server, parts, query, &value);
    }
    let document = server.discovery.aggregated(&server.registry, &server.aggregation, core);
    let seen = parts.headers.get(IF_NONE_MATCH).and_then(|h| h.to_str().ok());
    let mut response: Response<Body> = if seen == Some(document.etag.as_str()) {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        render::response(StatusCode::OK, AGGREGATED, Body::Full(document.body))
    };
    if let Ok(etag) = HeaderValue::from_str(&document.etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.2+carrack", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": concat!("linux/", "amd64"),
    })
}
