//! `/statusz` and `/flagz`: what runs here and how it was started, for people and, as `config.k8s.io` objects, for programs
//! (KEP-4827, KEP-4828).

use std::collections::BTreeMap;
use std::fmt::Write;

use http::header::ACCEPT;
use http::{Request, Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Body, Refusal, answer};
use crate::node::VERSION;

const NAME: &str = "kubelet";
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";
const TEXT: &str = "text/plain; charset=utf-8";

/// What a client wants to read.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Text,
    /// An object in a version, as YAML or JSON.
    Object {
        version: String,
        yaml: bool,
    },
}

/// The first form of an `Accept` header that can be had; those with less weight go last.
fn form(accept: &str, kind: &str) -> Result<Form, Refusal> {
    if accept.trim().is_empty() {
        return Ok(Form::Text);
    }
    let parsed = accept.split(',').map(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let pairs: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
        let weight: f32 = pairs.get("q").and_then(|weight| weight.parse().ok()).unwrap_or(1.0);
        (media, pairs, weight)
    });
    let mut clauses: Vec<_> = parsed.filter(|(_, _, weight)| *weight > 0.0).collect();
    clauses.sort_by(|(_, _, a), (_, _, b)| b.total_cmp(a));
    let found = clauses.iter().find_map(|(media, pairs, _)| {
        let yaml = match media.as_str() {
            "text/plain" | "text/*" | "*/*" => return Some(Form::Text),
            "application/json" => false,
            "application/yaml" => true,
            _ => return None,
        };
        let fits = pairs.get("g") == Some(&"config.k8s.io") && pairs.get("as") == Some(&kind);
        let version = pairs.get("v").filter(|version| fits && matches!(**version, "v1alpha1" | "v1beta1"))?;
        Some(Form::Object { version: (*version).to_owned(), yaml })
    });
    found.ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_ACCEPTABLE,
            format!(
                "only the following media types are accepted: text/plain, and application/json and application/yaml with \
                 v=v1beta1;g=config.k8s.io;as={kind}"
            ),
        )
    })
}

/// Answers in the form that the request asks for.
fn respond<B>(
    request: &Request<B>,
    kind: &str,
    fields: Value,
    page: impl FnOnce() -> String,
) -> Result<Response<Body>, Refusal> {
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (version, yaml) = match form(accept, kind)? {
        Form::Text => return Ok(answer(StatusCode::OK, TEXT, page())),
        Form::Object { version, yaml } => (version, yaml),
    };
    let mut object =
        json!({"kind": kind, "apiVersion": format!("config.k8s.io/{version}"), "metadata": {"name": NAME}});
    if let (Some(all), Value::Object(fields)) = (object.as_object_mut(), fields) {
        all.extend(fields);
    }
    if !yaml {
        return Ok(answer(StatusCode::OK, "application/json", object.to_string()));
    }
    let text = serde_saphyr::to_string(&object).map_err(|error| Refusal::internal(error.to_string()))?;
    Ok(answer(StatusCode::OK, "application/yaml", text))
}

/// `/flagz`.
pub(super) fn flags<B>(
    request: &Request<B>,
    flags: &BTreeMap<String, String>,
) -> Result<Response<Body>, Refusal> {
    respond(request, "Flagz", json!({"flags": flags}), || {
        let mut page = format!("\n{NAME} flagz\n{WARNING}\n\n");
        for (flag, value) in flags {
            // Writing to a string cannot fail.
            let _ = writeln!(page, "{flag}={value}");
        }
        page
    })
}

/// `/statusz`.
pub(super) fn status<B>(
    request: &Request<B>,
    started: Timestamp,
    paths: &[&str],
) -> Result<Response<Body>, Refusal> {
    let binary = VERSION.trim_start_matches('v').split(['+', '-']).next().unwrap_or_default();
    let emulated = binary.rsplit_once('.').map_or(binary, |(minor, _)| minor);
    let uptime = Timestamp::now().duration_since(started).as_secs();
    let paths: Vec<String> = paths.iter().map(|path| format!("/{path}")).collect();
    let fields = json!({
        "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "uptimeSeconds": uptime,
        "goVersion": "",
        "binaryVersion": binary,
        "emulationVersion": emulated,
        "paths": paths,
    });
    respond(request, "Statusz", fields, || {
        let (hours, minutes, seconds) = (uptime / 3600, uptime / 60 % 60, uptime % 60);
        format!(
            "\n{NAME} statusz\n{WARNING}\n\nStarted: {}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\nGo version: \n\
             Binary version: {binary}\nEmulation version: {emulated}\nPaths: {}\n",
            started.strftime("%a %b %e %H:%M:%S UTC %Y"),
            paths.join(" ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_that_clients_ask_for() {
        let check =
            |accept: &str, expect: Option<Form>| assert_eq!(form(accept, "Flagz").ok(), expect, "{accept}");
        let object = |version: &str, yaml| Some(Form::Object { version: version.to_owned(), yaml });
        check("", Some(Form::Text));
        check("text/plain", Some(Form::Text));
        check("*/*", Some(Form::Text));
        check("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", object("v1beta1", false));
        check(
            "application/yaml; v=v1alpha1; g=config.k8s.io; as=Flagz, text/plain",
            object("v1alpha1", true),
        );
        check(
            "text/plain;q=0.5, application/json;v=v1beta1;g=config.k8s.io;as=Flagz",
            object("v1beta1", false),
        );
        check("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", None);
        check("application/json", None);
    }
}
