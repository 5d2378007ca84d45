//! `get`: tables made by the server, or whole objects.

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::Request;
use serde_json::{Value, json};

use crate::Error;
use crate::args::Get;
use crate::connect::Connection;
use crate::discovery::Discovery;
use crate::output::Form;
use crate::printer::{Style, align, table};
use crate::select::{Target, fetch, targets};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub(super) async fn run(connection: &Connection, get: Get) -> Result<u8, Error> {
    let discovery = Discovery::load(&connection.client).await?;
    let form = Form::parse(get.output.as_deref())?;
    let targets = targets(connection, &discovery, &get.selection)?;
    match form {
        Form::Table { wide } => tables(connection, &get, &targets, wide).await,
        form => objects(connection, &get, &targets, &form).await,
    }
}

async fn tables(connection: &Connection, get: &Get, targets: &[Target], wide: bool) -> Result<u8, Error> {
    let style = Style {
        wide,
        headers: !get.no_headers,
        namespace: get.selection.all_namespaces,
        labels: get.show_labels,
    };
    let mut printed = false;
    let mut failed = 0;
    for target in targets {
        let several = targets.len() > 1;
        let name = |name: &str| if several { target.resource.object_name(name) } else { name.to_owned() };
        let mut paths: Vec<String> = target.names.iter().map(|name| target.path(name)).collect();
        if paths.is_empty() {
            paths.push(target.collection(&get.selection, &[]));
        }
        let mut rows = Vec::new();
        let mut version = String::new();
        for path in &paths {
            match fetch(connection, path, TABLE).await {
                Ok(document) => {
                    let style = Style { headers: style.headers && rows.is_empty(), ..style };
                    rows.extend(table(&document, style, name));
                    version = document["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                }
                Err(error) if error.is_not_found() && get.ignore_not_found => {}
                // An object that is not there does not keep the others from being shown.
                Err(error) if error.is_not_found() && !target.names.is_empty() => {
                    eprintln!("{error}");
                    failed += 1;
                }
                Err(error) => return Err(error),
            }
        }
        if rows.len() > usize::from(style.headers) {
            print!("{}{}", if printed { "\n" } else { "" }, align(&rows));
            printed = true;
        }
        if get.watch {
            return watch(connection, get, target, &version, style).await;
        }
    }
    if !printed && failed == 0 {
        match targets.first().and_then(|target| target.namespace.as_ref()) {
            Some(namespace) => eprintln!("No resources found in {namespace} namespace."),
            None => eprintln!("No resources found"),
        }
    }
    Ok(u8::from(failed > 0))
}

async fn watch(
    connection: &Connection,
    get: &Get,
    target: &Target,
    version: &str,
    style: Style,
) -> Result<u8, Error> {
    let mut selection = get.selection.clone();
    if let [name] = target.names.as_slice() {
        selection.field_selector = Some(format!("metadata.name={name}"));
    }
    let path = target.collection(&selection, &[("watch", "true"), ("resourceVersion", version)]);
    let request = Request::get(&path).header("Accept", TABLE).body(Vec::new());
    let request = request.map_err(|error| Error::Usage(format!("{path}: {error}")))?;
    let mut lines = connection.client.request_stream(request).await?.lines();
    while let Some(line) = lines.try_next().await? {
        let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
        if event["type"] == "BOOKMARK" {
            continue;
        }
        print!("{}", align(&table(&event["object"], Style { headers: false, ..style }, str::to_owned)));
    }
    Ok(0)
}

async fn objects(connection: &Connection, get: &Get, targets: &[Target], form: &Form) -> Result<u8, Error> {
    let paths = targets.iter().flat_map(|target| {
        let one = |name: &String| (target, target.path(name));
        let mut paths: Vec<_> = target.names.iter().map(one).collect();
        if paths.is_empty() {
            paths.push((target, target.collection(&get.selection, &[])));
        }
        paths
    });
    let mut answers = futures::stream::iter(paths.collect::<Vec<_>>())
        .map(async |(target, path)| (target, fetch(connection, &path, "application/json").await))
        .buffered(8);
    let mut found = Vec::new();
    let mut failed = 0;
    while let Some((target, answer)) = answers.next().await {
        match answer {
            Ok(mut document) => match document.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => {
                    for mut item in items {
                        // Members of a list do not repeat what the list says of them.
                        item["apiVersion"] = json!(target.resource.api_version());
                        item["kind"] = json!(target.resource.kind);
                        found.push((target, item));
                    }
                }
                _ => found.push((target, document)),
            },
            Err(error) if error.is_not_found() && get.ignore_not_found => {}
            Err(error) if error.is_not_found() => {
                eprintln!("{error}");
                failed += 1;
            }
            Err(error) => return Err(error),
        }
    }
    for (_, object) in &mut found {
        // kubectl hides what only machines read.
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    }
    if *form == Form::Name {
        for (target, object) in &found {
            println!(
                "{}",
                target.resource.object_name(object["metadata"]["name"].as_str().unwrap_or_default())
            );
        }
        return Ok(u8::from(failed > 0));
    }
    let single = matches!(targets, [target] if target.names.len() == 1);
    match found.pop() {
        Some((_, object)) if single => print!("{}", form.render(&object)?),
        last => {
            let items: Vec<Value> = found.into_iter().chain(last).map(|(_, object)| object).collect();
            if !items.is_empty() || !single {
                let list = json!({"apiVersion": "v1", "kind": "List", "items": items, "metadata": {"resourceVersion": ""}});
                print!("{}", form.render(&list)?);
            }
        }
    }
    Ok(u8::from(failed > 0))
}
