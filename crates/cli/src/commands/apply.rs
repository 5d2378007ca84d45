//! `apply`, `create` and `scale`. Applying is done by the server (server-side apply): the fields of the manifest become
//! the manager's, and what the manager no longer names is removed.

use http::Request;
use serde_json::{Value, json};

use crate::Error;
use crate::args::{Apply, Scale, Selection};
use crate::connect::Connection;
use crate::discovery::Discovery;
use crate::manifest::{self, Object};
use crate::select::{fetch, resource_of, targets, url::Query};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Apply,
    Create,
}

pub(super) async fn run(connection: &Connection, apply: Apply, verb: Verb) -> Result<u8, Error> {
    let validation = match apply.validate.as_str() {
        "strict" | "true" => "Strict",
        "warn" => "Warn",
        "ignore" | "false" => "Ignore",
        other => return Err(Error::Usage(format!("--validate={other}: use strict, warn or ignore"))),
    };
    let mut query = Query::default();
    query.add("fieldValidation", Some(validation));
    query.add("fieldManager", Some(&apply.field_manager));
    match apply.dry_run.as_str() {
        "none" => {}
        "server" => query.add("dryRun", Some("All")),
        other => return Err(Error::Usage(format!("--dry-run={other}: use none or server"))),
    }
    if verb == Verb::Apply && apply.force_conflicts {
        query.add("force", Some("true"));
    }
    let query = query.finish();
    let objects = manifest::read(&apply.filename, apply.recursive)?;
    let discovery = Discovery::load(&connection.client).await?;
    let mut failed = 0;
    for object in &objects {
        if let Err(error) = one(connection, &discovery, object, verb, &query).await {
            eprintln!("{error}");
            failed += 1;
        }
    }
    Ok(u8::from(failed > 0))
}

async fn one(
    connection: &Connection,
    discovery: &Discovery,
    object: &Object,
    verb: Verb,
    query: &str,
) -> Result<(), Error> {
    let resource = resource_of(discovery, object)?;
    let namespace = match object.text("/metadata/namespace") {
        "" => &connection.namespace,
        own => own,
    };
    let collection = resource.path(Some(namespace));
    let name = object.name();
    let body = serde_json::to_vec(&object.value).unwrap_or_default();
    let done = match verb {
        Verb::Create => {
            let request =
                Request::post(format!("{collection}{query}")).header("Content-Type", "application/json");
            let made = send(connection, request, body).await?;
            println!("{} created", resource.object_name(made["metadata"]["name"].as_str().unwrap_or(name)));
            return Ok(());
        }
        Verb::Apply if name.is_empty() => {
            return Err(Error::Usage(format!(
                "{}: an applied object needs metadata.name; use create with generateName",
                object.path
            )));
        }
        Verb::Apply => {
            let path = format!("{collection}/{name}");
            let before = match fetch(connection, &path, "application/json").await {
                Ok(before) => Some(before),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
            let request = Request::patch(format!("{path}{query}"))
                .header("Content-Type", "application/apply-patch+yaml");
            let after = send(connection, request, body).await?;
            match before {
                None => "created",
                Some(before) if same(&before, &after) => "unchanged",
                Some(_) => "configured",
            }
        }
    };
    println!("{} {done}", resource.object_name(name));
    Ok(())
}

fn same(before: &Value, after: &Value) -> bool {
    before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
}

async fn send(
    connection: &Connection,
    request: http::request::Builder,
    body: Vec<u8>,
) -> Result<Value, Error> {
    let request = request.body(body).map_err(|error| Error::Usage(format!("the object's name: {error}")))?;
    Ok(connection.client.request(request).await?)
}

/// `scale`: through the scale subresource, whatever the kind.
pub(super) async fn scale(connection: &Connection, scale: Scale) -> Result<u8, Error> {
    let discovery = Discovery::load(&connection.client).await?;
    let selection = Selection { targets: scale.targets, ..Selection::default() };
    for target in targets(connection, &discovery, &selection)? {
        for name in &target.names {
            let request = Request::patch(format!("{}/scale", target.path(name)))
                .header("Content-Type", "application/merge-patch+json");
            let body = json!({"spec": {"replicas": scale.replicas}});
            send(connection, request, body.to_string().into_bytes()).await?;
            println!("{} scaled", target.resource.object_name(name));
        }
    }
    Ok(0)
}
