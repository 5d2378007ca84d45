//! `describe`: the whole object in an indented form, then its events.

use std::fmt::Write;

use serde_json::Value;

use crate::Error;
use crate::args::Describe;
use crate::connect::Connection;
use crate::discovery::Discovery;
use crate::printer::align;
use crate::select::{fetch, targets, url::Query};

pub(super) async fn run(connection: &Connection, describe: Describe) -> Result<u8, Error> {
    let discovery = Discovery::load(&connection.client).await?;
    let mut first = true;
    for target in targets(connection, &discovery, &describe.selection)? {
        let mut objects = Vec::new();
        if target.names.is_empty() {
            let path = target.collection(&describe.selection, &[]);
            let list = fetch(connection, &path, "application/json").await?;
            objects.extend(list["items"].as_array().into_iter().flatten().cloned());
        }
        for name in &target.names {
            objects.push(fetch(connection, &target.path(name), "application/json").await?);
        }
        for object in objects {
            if !std::mem::take(&mut first) {
                println!("\n");
            }
            let mut text = String::new();
            render(&object, &mut text);
            print!("{text}{}", events(connection, &object).await?);
        }
    }
    Ok(0)
}

fn render(object: &Value, out: &mut String) {
    let metadata = &object["metadata"];
    for field in
        ["name", "namespace", "creationTimestamp", "labels", "annotations", "ownerReferences", "finalizers"]
    {
        if let Some(value) = metadata.get(field) {
            line(field, value, 0, out);
        }
    }
    for (field, value) in object.as_object().into_iter().flatten() {
        if !matches!(field.as_str(), "metadata" | "apiVersion" | "kind") {
            line(field, value, 0, out);
        }
    }
}

/// `terminationGracePeriodSeconds` as `Termination Grace Period Seconds`; keys of maps stay as they are.
fn title(field: &str) -> String {
    if !field.chars().all(char::is_alphanumeric) {
        return field.to_owned();
    }
    let mut out = String::new();
    let mut before = ' ';
    for (at, character) in field.chars().enumerate() {
        if at == 0 {
            out.extend(character.to_uppercase());
        } else {
            if character.is_uppercase() && before.is_lowercase() {
                out.push(' ');
            }
            out.push(character);
        }
        before = character;
    }
    out
}

fn line(field: &str, value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let label = format!("{indent}{}:", title(field));
    let written = match value {
        Value::Object(fields) if fields.is_empty() => writeln!(out, "{label} <none>"),
        Value::Array(items) if items.is_empty() => writeln!(out, "{label} <none>"),
        Value::Object(fields) => {
            let written = writeln!(out, "{label}");
            for (field, value) in fields {
                line(field, value, depth + 1, out);
            }
            written
        }
        Value::Array(items) if items.iter().all(|item| !item.is_object()) => {
            let words: Vec<String> = items.iter().map(plain).collect();
            writeln!(out, "{label} {}", words.join(", "))
        }
        Value::Array(items) => {
            let written = writeln!(out, "{label}");
            for item in items {
                let name = item["name"].as_str().or_else(|| item["type"].as_str()).unwrap_or("-");
                let _ = writeln!(out, "{indent}  {name}:");
                let fields = item.as_object().into_iter().flatten();
                for (field, value) in fields.filter(|(field, value)| *field != "name" && *value != name) {
                    line(field, value, depth + 2, out);
                }
            }
            written
        }
        other => writeln!(out, "{label:<width$} {}", plain(other), width = 20 + 2 * depth),
    };
    // Writing to a String cannot fail.
    debug_assert!(written.is_ok());
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

async fn events(connection: &Connection, object: &Value) -> Result<String, Error> {
    let metadata = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut query = Query::default();
    query.add("fieldSelector", Some(&format!("involvedObject.uid={}", text(&metadata["uid"]))));
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    let path = format!("/api/v1/namespaces/{namespace}/events{}", query.finish());
    let list = fetch(connection, &path, "application/json").await?;
    let mut events: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
    if events.is_empty() {
        return Ok("Events: <none>\n".into());
    }
    let time = |event: &Value| {
        let fields = ["lastTimestamp", "eventTime", "firstTimestamp"];
        fields.into_iter().find_map(|field| event[field].as_str()).unwrap_or_default().to_owned()
    };
    events.sort_by_key(|event| time(event));
    let mut rows = vec![["  Type", "Reason", "Time", "Count", "From", "Message"].map(str::to_owned).to_vec()];
    for event in events {
        let from = event["source"]["component"].as_str().or_else(|| event["reportingComponent"].as_str());
        rows.push(vec![
            format!("  {}", text(&event["type"])),
            text(&event["reason"]),
            time(event),
            event["count"].as_i64().unwrap_or(1).to_string(),
            from.unwrap_or_default().to_owned(),
            text(&event["message"]),
        ]);
    }
    Ok(format!("Events:\n{}", align(&rows)))
}
