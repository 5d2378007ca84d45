//! `wait`: for a condition, a value, creation or deletion; by watching, never by asking again and again.

use std::time::Duration;

use futures::{AsyncBufReadExt, TryStreamExt};
use http::Request;
use serde_json::Value;

use super::seconds;
use crate::Error;
use crate::args::Wait;
use crate::connect::Connection;
use crate::discovery::Discovery;
use crate::output::walk;
use crate::select::{fetch, targets, url::Query};

/// What is waited for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Condition {
        name: String,
        value: String,
    },
    Path {
        path: String,
        value: String,
    },
    Exists,
    /// The object with this uid is gone; an empty uid means any object of the name.
    Gone {
        uid: String,
    },
}

impl Goal {
    fn parse(text: &str) -> Result<Goal, Error> {
        if let Some(condition) = text.strip_prefix("condition=") {
            let (name, value) = condition.split_once('=').unwrap_or((condition, "true"));
            return Ok(Goal::Condition { name: name.to_lowercase(), value: value.to_lowercase() });
        }
        if let Some(path) = text.strip_prefix("jsonpath=") {
            let wrong = || Error::Usage("write jsonpath as jsonpath='{.status.phase}'=Running".into());
            let (path, value) = path.split_once("}=").ok_or_else(wrong)?;
            let path = path.trim_start_matches(['\'', '{']).to_owned();
            return Ok(Goal::Path { path, value: value.to_owned() });
        }
        match text {
            "delete" => Ok(Goal::Gone { uid: String::new() }),
            "create" => Ok(Goal::Exists),
            _ => Err(Error::Usage(format!(
                "unrecognized condition: {text:?}; use condition=, jsonpath=, create or delete"
            ))),
        }
    }

    fn met(&self, object: Option<&Value>) -> Result<bool, Error> {
        let Some(object) = object else { return Ok(matches!(self, Goal::Gone { .. })) };
        Ok(match self {
            Goal::Exists => true,
            Goal::Gone { uid } => !uid.is_empty() && object["metadata"]["uid"] != uid.as_str(),
            Goal::Condition { name, value } => {
                let is = |field: &Value, wanted: &str| {
                    field.as_str().is_some_and(|is| is.to_lowercase() == wanted)
                };
                let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
                conditions.any(|one| is(&one["type"], name) && is(&one["status"], value))
            }
            Goal::Path { path, value } => walk(object, path)?.iter().any(|found| match found {
                Value::String(text) => text == value,
                other => other.to_string() == *value,
            }),
        })
    }
}

pub(super) async fn run(connection: &Connection, wait: Wait) -> Result<u8, Error> {
    let goal = Goal::parse(&wait.condition)?;
    let limit = seconds(&wait.timeout)?;
    let discovery = Discovery::load(&connection.client).await?;
    for target in targets(connection, &discovery, &wait.selection)? {
        let mut paths: Vec<(String, String)> =
            target.names.iter().map(|name| (name.clone(), target.path(name))).collect();
        if paths.is_empty() {
            if !wait.all && wait.selection.selector.is_none() {
                return Err(Error::Usage("name the objects to wait for, or use -l or --all".into()));
            }
            let list =
                fetch(connection, &target.collection(&wait.selection, &[]), "application/json").await?;
            for item in list["items"].as_array().into_iter().flatten() {
                let name = item["metadata"]["name"].as_str().unwrap_or_default();
                paths.push((name.to_owned(), target.path(name)));
            }
            if paths.is_empty() && !matches!(goal, Goal::Gone { .. }) {
                return Err(Error::Usage("no matching resources found".into()));
            }
        }
        for (name, path) in paths {
            let name = target.resource.object_name(&name);
            until(connection, &name, &path, &goal, Some(limit)).await?;
            println!("{name} condition met");
        }
    }
    Ok(0)
}

/// Watches one object until the goal is met; `limit` in seconds.
pub(super) async fn until(
    connection: &Connection,
    name: &str,
    path: &str,
    goal: &Goal,
    limit: Option<u64>,
) -> Result<(), Error> {
    let watching = async {
        while !watch_once(connection, path, goal).await? {}
        Ok(())
    };
    match limit {
        None => watching.await,
        Some(limit) => match tokio::time::timeout(Duration::from_secs(limit), watching).await {
            Ok(done) => done,
            Err(_) => Err(Error::TimedOut(name.to_owned())),
        },
    }
}

/// One watch until it ends or the goal is met.
async fn watch_once(connection: &Connection, path: &str, goal: &Goal) -> Result<bool, Error> {
    let (collection, name) = path.rsplit_once('/').unwrap_or_default();
    let mut query = Query::default();
    query.add("fieldSelector", Some(&format!("metadata.name={name}")));
    let list = fetch(connection, &format!("{collection}{}", query.finish()), "application/json").await?;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if goal.met(list["items"].get(0))? {
        return Ok(true);
    }
    if list["items"].get(0).is_none() && *goal != Goal::Exists {
        // Waiting for a state of something that is not there would never end.
        fetch(connection, path, "application/json").await?;
    }
    let mut query = Query::default();
    query.add("watch", Some("true"));
    query.add("fieldSelector", Some(&format!("metadata.name={name}")));
    query.add("resourceVersion", Some(version));
    let request = Request::get(format!("{collection}{}", query.finish())).body(Vec::new());
    let request = request.map_err(|error| Error::Usage(format!("{path}: {error}")))?;
    let mut lines = connection.client.request_stream(request).await?.lines();
    while let Some(line) = lines.try_next().await? {
        let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
        let met = match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => goal.met(Some(&event["object"]))?,
            Some("DELETED") => goal.met(None)?,
            // The watch cannot go on: look again.
            Some("ERROR") => return Ok(false),
            _ => false,
        };
        if met {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn goals() {
        let pod = json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        for (goal, met) in [
            ("condition=Ready", true),
            ("condition=ready=false", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath='{.status.phase}=Pending", false),
            ("create", true),
            ("delete", false),
        ] {
            assert_eq!(Goal::parse(goal).expect(goal).met(Some(&pod)).expect(goal), met, "{goal}");
        }
        assert!(
            Goal::Gone { uid: "other".into() }.met(Some(&pod)).expect("no path"),
            "another object of that name"
        );
        assert!(Goal::parse("delete").expect("known").met(None).expect("no path"));
        assert!(Goal::parse("ready").is_err());
    }
}
