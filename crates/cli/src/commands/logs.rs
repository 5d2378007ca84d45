//! `logs`: what a container wrote, once or as it comes.

use std::io::Write;

use futures::AsyncReadExt;
use http::Request;

use super::{pod_of, seconds};
use crate::Error;
use crate::args::Logs;
use crate::connect::Connection;
use crate::select::{fetch, url::Query};

pub(super) async fn run(connection: &Connection, logs: Logs) -> Result<u8, Error> {
    let pod = pod_of(connection, &logs.target).await?;
    let path = format!("/api/v1/namespaces/{}/pods/{pod}", connection.namespace);
    let object = fetch(connection, &path, "application/json").await?;
    let names = |field: &str| {
        let containers = object["spec"][field].as_array().into_iter().flatten();
        containers.filter_map(|one| one["name"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let containers = match &logs.container {
        Some(container) => vec![container.clone()],
        None if logs.all_containers => [names("initContainers"), names("containers")].concat(),
        None => {
            let default = &object["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"];
            let all = names("containers");
            let chosen = default.as_str().map(str::to_owned).or_else(|| all.first().cloned());
            if let (true, Some(chosen)) = (all.len() > 1, &chosen) {
                eprintln!("Defaulted container \"{chosen}\" out of: {}", all.join(", "));
            }
            chosen.into_iter().collect()
        }
    };
    let one = |container: String| stream(connection, &logs, &path, container);
    futures::future::try_join_all(containers.into_iter().map(one)).await?;
    Ok(0)
}

async fn stream(connection: &Connection, logs: &Logs, path: &str, container: String) -> Result<(), Error> {
    let mut query = Query::default();
    query.add("container", Some(&container));
    for (name, set) in [("follow", logs.follow), ("previous", logs.previous), ("timestamps", logs.timestamps)]
    {
        query.add(name, set.then_some("true"));
    }
    if logs.tail >= 0 {
        query.add("tailLines", Some(&logs.tail.to_string()));
    }
    if let Some(since) = &logs.since {
        query.add("sinceSeconds", Some(&seconds(since)?.to_string()));
    }
    let request = Request::get(format!("{path}/log{}", query.finish())).body(Vec::new());
    let request = request.map_err(|error| Error::Usage(format!("{path}: {error}")))?;
    let mut body = Box::pin(connection.client.request_stream(request).await?);
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = body.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        out.write_all(&buffer[..count])?;
        out.flush()?;
    }
}
