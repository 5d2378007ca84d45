//! Rates: creates, gets, lists, and events delivered to watchers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

use super::client::{Access, Connection, request};
use super::target::{Running, Target};
use super::{Figure, milliseconds};

const WINDOW: Duration = Duration::from_secs(5);

/// Runs the measures that are wanted, each in a namespace of its own.
pub async fn run(target: &Target, wanted: &dyn Fn(&str) -> bool) -> anyhow::Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let running = target.start(folder.path()).await?;
    eprintln!("{}: ready after {:?}", target.name(), running.ready);
    let mut figures = Vec::new();
    if wanted("creates") {
        figures.push(creates(&running, "creates", 64, "5000/s").await?);
    }
    if wanted("create") {
        figures.push(creates(&running, "create", 1, "1000/s").await?);
    }
    if wanted("gets") {
        figures.push(gets(&running).await?);
    }
    if wanted("lists") {
        figures.push(lists(&running).await?);
    }
    if wanted("deliveries") {
        figures.push(deliveries(&running).await?);
    }
    if wanted("custom") {
        figures.push(super::custom::established(&running).await?);
    }
    running.stop().await?;
    Ok(figures)
}

/// Makes a namespace.
pub async fn namespace(access: &Access, name: &str) -> anyhow::Result<()> {
    let body = format!("{{\"metadata\":{{\"name\":\"{name}\"}}}}");
    access.connect().await?.must(&request("POST", "/api/v1/namespaces", &body)).await?;
    Ok(())
}

fn config_map(namespace: &str, name: &str) -> Vec<u8> {
    let value = "x".repeat(1000);
    let body = format!("{{\"metadata\":{{\"name\":\"{name}\"}},\"data\":{{\"value\":\"{value}\"}}}}");
    request("POST", &format!("/api/v1/namespaces/{namespace}/configmaps"), &body)
}

/// Lets each of some clients do the same thing again and again for a while; how often it was done in a second, how long it
/// took, and what processor time of the server.
async fn repeat<F>(
    running: &Running,
    clients: usize,
    window: Duration,
    make: impl Fn(usize) -> F,
) -> anyhow::Result<(f64, String)>
where
    F: FnMut() -> Vec<u8> + Send + 'static,
{
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(running.access.connect().await?);
    }
    let mut tasks = JoinSet::new();
    let (started, used) = (Instant::now(), running.processor_time());
    for (client, mut connection) in connections.into_iter().enumerate() {
        let mut next = make(client);
        tasks.spawn(async move {
            let mut took = Vec::new();
            while started.elapsed() < window {
                let request = next();
                let before = Instant::now();
                connection.must(&request).await?;
                took.push(before.elapsed());
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.extend(done.context("a client ended abruptly")??);
    }
    let rate = all.len() as f64 / started.elapsed().as_secs_f64();
    all.sort();
    let at = |share: f64| all.get(((all.len() - 1) as f64 * share) as usize).copied().unwrap_or_default();
    let each = (running.processor_time() - used) / u32::try_from(all.len().max(1))?;
    let note =
        format!("p50 {} p99 {} cpu {}", milliseconds(at(0.5)), milliseconds(at(0.99)), milliseconds(each));
    Ok((rate, note))
}

async fn creates(
    running: &Running,
    space: &'static str,
    clients: usize,
    bar: &'static str,
) -> anyhow::Result<Figure> {
    namespace(&running.access, space).await?;
    let make = |client: usize| {
        let mut made = 0;
        move || {
            made += 1;
            config_map(space, &format!("c-{client}-{made}"))
        }
    };
    let (value, note) = repeat(running, clients, WINDOW, make).await?;
    let what = match clients {
        1 => "create ConfigMap 1 KB, 1 client, durable",
        _ => "create ConfigMap 1 KB, 64 clients, durable",
    };
    Ok(Figure { what, value, unit: "/s", note, bar })
}

async fn gets(running: &Running) -> anyhow::Result<Figure> {
    let access = &running.access;
    namespace(access, "gets").await?;
    let mut connection = access.connect().await?;
    for client in 0..64 {
        connection.must(&config_map("gets", &format!("c-{client}"))).await?;
    }
    let make = |client: usize| {
        let get = request("GET", &format!("/api/v1/namespaces/gets/configmaps/c-{client}"), "");
        move || get.clone()
    };
    let (value, note) = repeat(running, 64, WINDOW, make).await?;
    let what = "get ConfigMap 1 KB, 64 clients";
    Ok(Figure { what, value, unit: "/s", note, bar: "20000/s" })
}

async fn lists(running: &Running) -> anyhow::Result<Figure> {
    let access = &running.access;
    namespace(access, "lists").await?;
    fill(access, 5000, |number| config_map("lists", &format!("c-{number}"))).await?;
    let path = "/api/v1/namespaces/lists/configmaps";
    let size = access.connect().await?.must(&request("GET", path, "")).await?;
    let make = |_| move || request("GET", path, "");
    let (value, times) = repeat(running, 4, WINDOW, make).await?;
    let note = format!("{:.0} MB/s {times}", value * size as f64 / 1e6);
    let what = "list 5,000 ConfigMaps of 1 KB, 4 clients";
    Ok(Figure { what, value, unit: "/s", note, bar: "80/s" })
}

/// Sends a number of requests from several connections.
pub async fn fill(
    access: &Access,
    count: usize,
    make: impl Fn(usize) -> Vec<u8> + Send + Sync + Copy + 'static,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..32 {
        let (mut connection, next) = (access.connect().await?, next.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                if number >= count {
                    return anyhow::Ok(());
                }
                connection.must(&make(number)).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a client ended abruptly")??;
    }
    Ok(())
}

async fn deliveries(running: &Running) -> anyhow::Result<Figure> {
    let access = &running.access;
    const WATCHERS: usize = 200;
    const EVENTS: usize = 1000;
    namespace(access, "watched").await?;
    let mut first: Connection = access.connect().await?;
    let list = first.text(&request("GET", "/api/v1/namespaces/watched/configmaps?limit=1", "")).await?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a list has a version")?.to_owned();
    let path = format!("/api/v1/namespaces/watched/configmaps?watch=true&resourceVersion={version}");
    let watch = request("GET", &path, "");
    let existing = list["items"].as_array().map_or(0, Vec::len);
    anyhow::ensure!(existing == 0, "the namespace is new");
    let mut tasks = JoinSet::new();
    for _ in 0..WATCHERS {
        let mut connection = access.connect().await?;
        connection.watch(&watch).await?;
        tasks.spawn(async move { connection.lines(EVENTS).await });
    }
    let (started, used) = (Instant::now(), running.processor_time());
    fill(access, EVENTS, |number| config_map("watched", &format!("c-{number}"))).await?;
    let written = started.elapsed();
    while let Some(done) = tasks.join_next().await {
        done.context("a watcher ended abruptly")??;
    }
    let value = (WATCHERS * EVENTS) as f64 / started.elapsed().as_secs_f64();
    let what = "200 watchers, 1,000 creates: deliveries";
    let each = (running.processor_time() - used).as_secs_f64() / (WATCHERS * EVENTS) as f64;
    let note = format!("creates in {} cpu {:.2} us", milliseconds(written), each * 1e6);
    Ok(Figure { what, value, unit: "/s", note, bar: "300000/s" })
}
