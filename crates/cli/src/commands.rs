//! The commands, one module each.

use crate::Error;
use crate::args::{Args, Command};
use crate::connect::{self, Connection};
use crate::discovery::Discovery;

mod apply;
mod delete;
mod describe;
mod exec;
mod get;
mod logs;
mod wait;

/// Runs one command; the exit code.
pub(crate) async fn run(args: Args) -> Result<u8, Error> {
    let connection = connect::connect(&args.global).await?;
    match args.command {
        Command::Get(get) => get::run(&connection, get).await,
        Command::Apply(apply) => apply::run(&connection, apply, apply::Verb::Apply).await,
        Command::Create(create) => apply::run(&connection, create, apply::Verb::Create).await,
        Command::Delete(delete) => delete::run(&connection, delete).await,
        Command::Logs(logs) => logs::run(&connection, logs).await,
        Command::Exec(exec) => exec::run(&connection, exec).await,
        Command::Describe(describe) => describe::run(&connection, describe).await,
        Command::Wait(wait) => wait::run(&connection, wait).await,
        Command::Scale(scale) => apply::scale(&connection, scale).await,
        Command::ApiResources => api_resources(&connection).await,
        Command::Version => version(&connection).await,
    }
}

async fn api_resources(connection: &Connection) -> Result<u8, Error> {
    let discovery = Discovery::load(&connection.client).await?;
    let mut rows: Vec<Vec<String>> = discovery
        .resources
        .iter()
        .map(|one| {
            let namespaced = one.namespaced.to_string();
            vec![
                one.plural.clone(),
                one.short_names.join(","),
                one.api_version(),
                namespaced,
                one.kind.clone(),
            ]
        })
        .collect();
    rows.sort();
    rows.insert(0, ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"].map(str::to_owned).to_vec());
    print!("{}", crate::printer::align(&rows));
    Ok(0)
}

async fn version(connection: &Connection) -> Result<u8, Error> {
    println!("Client Version: carrack v{}", env!("CARGO_PKG_VERSION"));
    let server = connection.client.apiserver_version().await?;
    println!("Server Version: {}", server.git_version);
    Ok(0)
}

/// `pods/web` for `pod/web`, `deploy/web` or plain `web`: the pod that the words name, the first one of a workload's.
async fn pod_of(connection: &Connection, target: &str) -> Result<String, Error> {
    let Some((kind, name)) = target.split_once('/') else { return Ok(target.to_owned()) };
    let discovery = Discovery::load(&connection.client).await?;
    let resource = discovery.find(kind)?;
    if resource.plural == "pods" && resource.group.is_empty() {
        return Ok(name.to_owned());
    }
    let path = format!("{}/{name}", resource.path(Some(&connection.namespace)));
    let object = crate::select::fetch(connection, &path, "application/json").await?;
    let selector = object.pointer("/spec/selector/matchLabels").or_else(|| object.pointer("/spec/selector"));
    let pairs: Vec<String> = selector
        .and_then(serde_json::Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| value.as_str().map(|value| format!("{key}={value}")))
        .collect();
    if pairs.is_empty() {
        return Err(Error::Usage(format!("{target} selects no pods")));
    }
    let mut query = crate::select::url::Query::default();
    query.add("labelSelector", Some(&pairs.join(",")));
    let path = format!("/api/v1/namespaces/{}/pods{}", connection.namespace, query.finish());
    let pods = crate::select::fetch(connection, &path, "application/json").await?;
    let running = |pod: &&serde_json::Value| pod["status"]["phase"] == "Running";
    let items = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pod = items.iter().find(running).or(items.first());
    let name = pod.and_then(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned);
    name.ok_or_else(|| Error::Usage(format!("{target} has no pods yet")))
}

/// Seconds in a duration such as `90s`, `5m`, `1h30m`; a bare number is seconds.
fn seconds(text: &str) -> Result<u64, Error> {
    let wrong = || Error::Usage(format!("invalid duration \"{text}\": write for example 30s, 5m or 1h30m"));
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let (mut total, mut number) = (0u64, String::new());
    for character in text.chars() {
        let unit = match character {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            digit if digit.is_ascii_digit() => {
                number.push(digit);
                continue;
            }
            _ => return Err(wrong()),
        };
        let count: u64 = std::mem::take(&mut number).parse().map_err(|_| wrong())?;
        total = count.checked_mul(unit).and_then(|more| total.checked_add(more)).ok_or_else(wrong)?;
    }
    if number.is_empty() && !text.is_empty() { Ok(total) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn durations() {
        for (text, expected) in [("30", 30), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("0s", 0)] {
            assert_eq!(seconds(text).expect(text), expected);
        }
        for text in ["", "m", "5x", "5m3"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
