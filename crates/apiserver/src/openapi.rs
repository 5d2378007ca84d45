//! `/openapi/v2` and `/openapi/v3`, rendered when first asked for and kept compressed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, ETAG, EXPIRES, HeaderValue, IF_NONE_MATCH, LOCATION, VARY,
};
use http::request::Parts;
use http::{Response, StatusCode};
use jiff::Timestamp;
use parking_lot::Mutex;
use schema::openapi::{Route, document, v2, v2_protobuf, v3, v3_index, v3_protobuf};
use sha2::{Digest, Sha256};

use crate::http::body::Body;
use crate::http::negotiate;
use crate::query::Query;
use crate::registry::{Rows, Served};
use crate::server::Server;
use crate::{Status, render};

const VERSION: &str = "1.36";
/// Ends the name under which a v3 document's protobuf form is kept; no path can hold it.
const PROTOBUF: &str = "\0protobuf";

/// A rendered document.
struct Rendered {
    gzip: Bytes,
    /// Of the plain text.
    hash: String,
}

/// Rendered documents by name. A custom resource that changes leaves the documents of others as they are.
#[derive(Default)]
pub struct Documents(Mutex<BTreeMap<String, Made>>);

/// A document, and what it was made of.
struct Made {
    rows: Vec<u64>,
    /// That of the extension servers.
    generation: u64,
    document: Arc<Rendered>,
}

fn render_document(text: &[u8]) -> Result<Arc<Rendered>, Status> {
    let hash: String = Sha256::digest(text).iter().map(|b| format!("{b:02X}")).collect();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let gzip = encoder.write_all(text).and_then(|()| encoder.finish()).map_err(Status::internal)?;
    Ok(Arc::new(Rendered { gzip: gzip.into(), hash }))
}

impl Documents {
    fn get(&self, server: &Server, name: &str) -> Result<Option<Arc<Rendered>>, Status> {
        let all = server.registry.rows();
        let whole = matches!(name, "v2" | "v2.protobuf");
        let (plain, protobuf) = match name.strip_suffix(PROTOBUF) {
            Some(plain) => (plain, true),
            None => (name, false),
        };
        let own = |row: &&Arc<Served>| whole || document(row.group(), &row.resource.version) == plain;
        let of: Vec<&Arc<Served>> = all.iter().filter(own).collect();
        let rows: Vec<u64> = of.iter().map(|row| row.id()).collect();
        let generation = if whole { server.aggregation.generation() } else { 0 };
        let mut documents = self.0.lock();
        if let Some(made) = documents.get(name).filter(|m| m.rows == rows && m.generation == generation) {
            return Ok(Some(made.document.clone()));
        }
        let routes: Vec<Route<'_>> = of.iter().map(|row| row.resource.route()).collect();
        let known = names(&all);
        let text = match name {
            "v2" => with_extensions(server, v2(&routes, VERSION)),
            "v2.protobuf" => v2_protobuf(&routes, VERSION),
            _ if routes.is_empty() && known.binary_search(&plain.to_owned()).is_err() => return Ok(None),
            _ => {
                let text = v3(&routes, VERSION).into_bytes();
                if protobuf { v3_protobuf(&text).unwrap_or_default() } else { text }
            }
        };
        let document = render_document(&text)?;
        documents.retain(|name, _| {
            let plain = name.strip_suffix(PROTOBUF).unwrap_or(name).to_owned();
            name.starts_with("v2") || known.binary_search(&plain).is_ok()
        });
        documents.insert(name.to_owned(), Made { rows, generation, document: document.clone() });
        Ok(Some(document))
    }
}

/// The v2 document with the paths of extension servers.
fn with_extensions(server: &Server, own: String) -> Vec<u8> {
    let aggregation = &server.aggregation;
    let table = aggregation.table();
    let known: Vec<_> = table.remotes().filter_map(|r| Some((r, aggregation.documents.of(r).v2?))).collect();
    if known.is_empty() {
        return own.into_bytes();
    }
    let Ok(mut whole) = serde_json::from_str(&own) else { return own.into_bytes() };
    for (remote, document) in known {
        crate::aggregation::merge_v2(&mut whole, &document, remote);
    }
    whole.to_string().into_bytes()
}

/// The names of all v3 documents.
fn names(rows: &Rows) -> Vec<String> {
    let plain = ["api", "apis", "version", ".well-known/openid-configuration", "openid/v1/jwks"];
    let mut names: Vec<String> = plain.map(str::to_owned).into();
    for row in rows.iter() {
        names.push(document(row.group(), &row.resource.version));
        if !row.group().is_empty() {
            names.push(format!("apis/{}", row.group()));
        }
    }
    names.sort();
    names.dedup();
    names
}

/// Answers a path below `/openapi`.
pub fn path(server: &Server, parts: &Parts, path: &str) -> Result<Response<Body>, Status> {
    let header = |name| parts.headers.get(name).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let accept = header(ACCEPT);
    let (rendered, content_type) = match path {
        "/openapi/v2" if prefers_protobuf(accept, "v2") => {
            let document = server.openapi.get(server, "v2.protobuf")?;
            (document, schema::openapi::V2_PROTOBUF)
        }
        "/openapi/v2" if !accept.is_empty() && !accept.contains("json") && !accept.contains("*/*") => {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
            return Ok(response);
        }
        "/openapi/v2" => (server.openapi.get(server, "v2")?, "application/json"),
        "/openapi/v3" => {
            let rows = server.registry.rows();
            let mut hashes = Vec::new();
            for name in names(&rows) {
                let hash = identity(server, &rows, &name)?;
                hashes.push((name, hash));
            }
            for remote in server.aggregation.table().remotes() {
                for (name, url) in server.aggregation.documents.of(remote).v3 {
                    let hash = url.split_once("hash=").map_or("", |(_, hash)| hash).to_owned();
                    match hashes.iter_mut().find(|(n, _)| *n == name) {
                        // A group that is served here as well: its address changes with either.
                        Some((_, own)) if own.contains(&hash) => {}
                        Some((_, own)) => own.push_str(&hash),
                        None => hashes.push((name, hash)),
                    }
                }
            }
            hashes.sort();
            let index = v3_index(hashes.iter().map(|(name, hash)| (name.as_str(), hash.as_str())));
            let body = Body::Full(index.into());
            return Ok(render::response(StatusCode::OK, "text/plain; charset=utf-8", body));
        }
        "/openapi" => return Ok(crate::pipeline::text(StatusCode::NOT_FOUND, "404 page not found\n")),
        other => match other.strip_prefix("/openapi/v3/") {
            Some(name) if prefers_protobuf(accept, "v3") => {
                (server.openapi.get(server, &format!("{name}{PROTOBUF}"))?, schema::openapi::V3_PROTOBUF)
            }
            Some(name) => (server.openapi.get(server, name)?, "application/json"),
            None => (None, "application/json"),
        },
    };
    let empty = |code| {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = code;
        Ok(response)
    };
    let Some(rendered) = rendered else { return empty(StatusCode::NOT_FOUND) };
    let document = path.strip_prefix("/openapi/v3/");
    let hash = match document {
        Some(name) => identity(server, &server.registry.rows(), name)?,
        None => rendered.hash.clone(),
    };
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let asked = query.get("hash").filter(|hash| !hash.is_empty() && document.is_some());
    if let Some(name) = document.filter(|_| asked.is_some_and(|asked| asked != hash)) {
        return Ok(elsewhere(name, &hash));
    }
    let etag = format!("\"{hash}\"");
    let mut response = if header(IF_NONE_MATCH) == etag {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if header(http::header::ACCEPT_ENCODING).contains("gzip") {
        let mut response = render::response(StatusCode::OK, content_type, Body::Full(rendered.gzip.clone()));
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut plain = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(rendered.gzip.as_ref());
        decoder.read_to_end(&mut plain).map_err(Status::internal)?;
        render::response(StatusCode::OK, content_type, Body::Full(plain.into()))
    };
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    if asked.is_some() {
        // What has this address never changes.
        let year = Timestamp::now() + std::time::Duration::from_secs(365 * 86_400);
        let year = year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        headers.extend(HeaderValue::try_from(year).ok().map(|year| (EXPIRES, year)));
    }
    Ok(response)
}

/// Whether a document is wanted in protobuf, under its name of today or the old one, rather than in JSON.
fn prefers_protobuf(accept: &str, version: &str) -> bool {
    let names = [".", "@"].map(|sign| format!("com.github.proto-openapi.spec.{version}{sign}v1.0+protobuf"));
    let named = |sub: &str| names.iter().any(|name| name == sub);
    let clauses = negotiate::clauses(accept);
    let first = clauses.iter().find(|clause| {
        matches!(clause.main, "application" | "*")
            && (matches!(clause.sub, "json" | "*") || named(clause.sub))
    });
    first.is_some_and(|clause| named(clause.sub))
}

/// What a v3 document's address and tag name it by. Of built-in kinds it follows from the version, so that the index needs no
/// document; of custom resources it is the hash of the content.
fn identity(server: &Server, rows: &Rows, name: &str) -> Result<String, Status> {
    let own = |row: &&Arc<Served>| document(row.group(), &row.resource.version) == name;
    if rows.iter().filter(own).any(|row| row.resource.strategy.is_custom())
        && let Some(rendered) = server.openapi.get(server, name)?
    {
        return Ok(rendered.hash.clone());
    }
    let count = rows.iter().filter(own).count();
    let seed = format!("{name}@{VERSION}:{count}:{}", env!("CARGO_PKG_VERSION"));
    Ok(Sha256::digest(seed.as_bytes()).iter().map(|b| format!("{b:02X}")).collect())
}

/// Sends a client with an old address to the new one.
fn elsewhere(name: &str, hash: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(address) = HeaderValue::try_from(format!("/openapi/v3/{name}?hash={hash}")) {
        response.headers_mut().insert(LOCATION, address);
    }
    response
}
