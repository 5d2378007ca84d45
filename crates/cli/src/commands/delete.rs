//! `delete`, and the wait until the objects are gone.

use http::Request;
use serde_json::{Value, json};

use super::seconds;
use super::wait::{Goal, until};
use crate::Error;
use crate::args::Delete;
use crate::connect::Connection;
use crate::discovery::Discovery;
use crate::select::{Target, fetch, targets};

pub(super) async fn run(connection: &Connection, delete: Delete) -> Result<u8, Error> {
    let discovery = Discovery::load(&connection.client).await?;
    let targets = targets(connection, &discovery, &delete.selection)?;
    let propagation = match delete.cascade.as_str() {
        "background" | "true" => "Background",
        "foreground" => "Foreground",
        "orphan" | "false" => "Orphan",
        other => {
            return Err(Error::Usage(format!("--cascade={other}: use background, foreground or orphan")));
        }
    };
    let grace = match (delete.force, delete.now, delete.grace_period) {
        (true, _, -1) => Some(0),
        (_, true, _) => Some(1),
        (_, _, -1) => None,
        (_, _, seconds) => Some(seconds),
    };
    let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation});
    if let Some(grace) = grace {
        options["gracePeriodSeconds"] = json!(grace);
    }
    let mut going = Vec::new();
    let mut failed = 0;
    for target in &targets {
        for (name, path) in members(connection, &delete, target).await? {
            match remove(connection, &path, &options).await {
                Ok(answer) => {
                    let word = if delete.force { "force deleted" } else { "deleted" };
                    println!("{} \"{name}\" {word}", target.resource.object_name("").trim_end_matches('/'));
                    let uid = answer.pointer("/details/uid").or_else(|| answer.pointer("/metadata/uid"));
                    let uid = uid.and_then(Value::as_str).unwrap_or_default().to_owned();
                    going.push((target.resource.object_name(&name), path, uid));
                }
                Err(error) if error.is_not_found() && delete.ignore_not_found => {}
                Err(error) => {
                    eprintln!("{error}");
                    failed += 1;
                }
            }
        }
    }
    if delete.wait && !delete.force {
        let limit = Some(seconds(&delete.timeout)?).filter(|limit| *limit > 0);
        for (name, path, uid) in going {
            until(connection, &name, &path, &Goal::Gone { uid }, limit).await?;
        }
    }
    Ok(u8::from(failed > 0))
}

/// The names and paths of what is to be deleted.
async fn members(
    connection: &Connection,
    delete: &Delete,
    target: &Target,
) -> Result<Vec<(String, String)>, Error> {
    if !target.names.is_empty() {
        return Ok(target.names.iter().map(|name| (name.clone(), target.path(name))).collect());
    }
    if !delete.all && delete.selection.selector.is_none() && delete.selection.field_selector.is_none() {
        return Err(Error::Usage(
            "resource(s) were provided, but no name was specified; use names, -l or --all".into(),
        ));
    }
    let list = fetch(connection, &target.collection(&delete.selection, &[]), "application/json").await?;
    let mut members = Vec::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default().to_owned();
        let namespace = Some(text("namespace")).filter(|namespace| !namespace.is_empty());
        let own = Target { resource: target.resource.clone(), namespace, names: Vec::new() };
        members.push((text("name"), own.path(&text("name"))));
    }
    Ok(members)
}

async fn remove(connection: &Connection, path: &str, options: &Value) -> Result<Value, Error> {
    let request = Request::delete(path).header("Content-Type", "application/json");
    let request = request
        .body(options.to_string().into_bytes())
        .map_err(|error| Error::Usage(format!("{path}: {error}")))?;
    Ok(connection.client.request(request).await?)
}
