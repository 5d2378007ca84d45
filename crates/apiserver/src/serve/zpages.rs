//! `/statusz` and `/flagz`: what runs here and how it was started, for people and, as `config.k8s.io` objects, for programs
//! (KEP-4827, KEP-4828).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;

use http::request::Parts;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Status;
use crate::http::body::Body;
use crate::http::negotiate::{self, Format, Output};
use crate::pipeline::text;
use crate::render;
use crate::server::Server;
use crate::verbs::Answered;

const NAME: &str = "apiserver";
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

static STARTED: LazyLock<Timestamp> = LazyLock::new(Timestamp::now);

/// Notes the time of the start.
pub fn started() {
    LazyLock::force(&STARTED);
}

/// The form that the client prefers: text, or an object in an encoding and a version.
fn form(parts: &Parts, kind: &str) -> Result<Option<(Format, String)>, Status> {
    let accept = parts.headers.get(http::header::ACCEPT).and_then(|h| h.to_str().ok()).unwrap_or_default();
    if accept.trim().is_empty() {
        return Ok(None);
    }
    for clause in negotiate::clauses(accept) {
        let param = |key: &str| clause.params.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let format = match (clause.main, clause.sub) {
            ("text" | "*", "plain" | "*") => return Ok(None),
            ("application", "json") => Format::Json,
            ("application", "yaml") => Format::Yaml,
            _ => continue,
        };
        if param("g") == Some("config.k8s.io")
            && param("as") == Some(kind)
            && let Some(version @ ("v1alpha1" | "v1beta1")) = param("v")
        {
            return Ok(Some((format, version.to_owned())));
        }
    }
    Err(Status::not_acceptable(format!(
        "only the following media types are accepted: text/plain, and application/json and application/yaml with \
         v=v1beta1;g=config.k8s.io;as={kind}"
    )))
}

fn object(kind: &str, (format, version): (Format, String), fields: Value) -> Answered {
    let mut object = json!({
        "kind": kind,
        "apiVersion": format!("config.k8s.io/{version}"),
        "metadata": {"name": NAME},
    });
    for (key, value) in fields.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    let output = Output { format, ..Output::JSON };
    let body = render::encode(output, &object)?;
    Ok(render::response(StatusCode::OK, format.media_type(), Body::Full(body)))
}

/// `/flagz`.
pub fn flags(server: &Server, parts: &Parts) -> Answered {
    let flags: &BTreeMap<String, String> = &server.config.flags;
    if let Some(form) = form(parts, "Flagz")? {
        return object("Flagz", form, json!({"flags": flags}));
    }
    let mut page = format!("\n{NAME} flagz\n{WARNING}\n");
    for (flag, value) in flags {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "{flag}={value}");
    }
    Ok(text(StatusCode::OK, page))
}

/// `/statusz`.
pub fn status(parts: &Parts, paths: &[String]) -> Answered {
    let version = super::version();
    let field = |name: &str| version[name].as_str().unwrap_or_default().to_owned();
    let emulated = format!("{}.{}", field("emulationMajor"), field("emulationMinor"));
    let binary = field("gitVersion").trim_start_matches('v').split('+').next().unwrap_or_default().to_owned();
    let uptime = Timestamp::now().duration_since(*STARTED).as_secs();
    if let Some(form) = form(parts, "Statusz")? {
        let fields = json!({
            "startTime": STARTED.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "uptimeSeconds": uptime,
            "goVersion": field("goVersion"),
            "binaryVersion": binary,
            "emulationVersion": emulated,
            "paths": paths,
        });
        return object("Statusz", form, fields);
    }
    let started = STARTED.strftime("%a %b %e %H:%M:%S UTC %Y");
    let (hours, minutes, seconds) = (uptime / 3600, uptime / 60 % 60, uptime % 60);
    Ok(page(&format!(
        "\n{NAME} statusz\n{WARNING}\n\nStarted: {started}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
         Go version: {}\nBinary version: {binary}\nEmulation version: {emulated}\nPaths: {}\n",
        field("goVersion"),
        paths.join(" ")
    )))
}

fn page(content: &str) -> Response<Body> {
    text(StatusCode::OK, content)
}
