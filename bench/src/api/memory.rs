//! Memory at rest, with many pods, with many idle watches; and the time to start on nothing and on many objects.

use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::BodyExt;
use tokio::task::JoinSet;

use super::Figure;
use super::client::{Access, request};
use super::load::{fill, namespace};
use super::target::{Running, Target};

const PODS: usize = 100_000;
const WATCHES: usize = 10_000;
/// Watches that share a connection.
const STREAMS: usize = 100;
/// What was only needed for a moment is given back in this time.
const REST: Duration = Duration::from_secs(10);

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

pub async fn run(target: &Target, wanted: &dyn Fn(&str) -> bool) -> anyhow::Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let mut running = target.start(folder.path()).await?;
    let mut figures = Vec::new();
    if wanted("api-idle") {
        let (value, what) = (running.ready.as_secs_f64(), "exec -> readyz, empty folder");
        figures.push(Figure { what, value, unit: " s", note: String::new(), bar: "0.3 s" });
        tokio::time::sleep(REST).await;
        let (value, what) = (megabytes(running.memory()), "idle memory, API server and store");
        figures.push(Figure { what, value, unit: " MB", note: String::new(), bar: "30 MB" });
    }
    if wanted("watches") {
        figures.push(watches(&running).await?);
    }
    if wanted("api-pods") {
        tokio::time::sleep(REST).await;
        let before = running.memory();
        pods(&running.access).await?;
        tokio::time::sleep(REST).await;
        let each = |after: u64| after.saturating_sub(before) as f64 / PODS as f64 / 1024.0;
        let (value, what) = (each(running.memory()), "memory for 100,000 pods of 3 KB, each");
        let note = format!("{:.0} MB in all", megabytes(running.memory()));
        figures.push(Figure { what, value, unit: " KB", note, bar: "8 KB" });
        running.stop().await?;
        running = target.start(folder.path()).await?;
        let (value, what) = (running.ready.as_secs_f64(), "exec -> readyz, 100,000 objects");
        figures.push(Figure { what, value, unit: " s", note: String::new(), bar: "2 s" });
        tokio::time::sleep(REST).await;
        let (value, what) = (each(running.memory()), "the same memory after a restart");
        figures.push(Figure { what, value, unit: " KB", note: String::new(), bar: "" });
    }
    running.stop().await?;
    Ok(figures)
}

/// A pod whose stored form has about 3 KB.
fn pod(number: usize) -> Vec<u8> {
    let env: Vec<String> = (0..10)
        .map(|n| format!("{{\"name\":\"VARIABLE_{n}\",\"value\":\"value-{n}-of-{number}\"}}"))
        .collect();
    let body = format!(
        "{{\"metadata\":{{\"name\":\"pod-{number}\",\"labels\":{{\"app\":\"app-{}\",\"tier\":\"backend\"}},\
         \"annotations\":{{\"note\":\"{}\"}}}},\"spec\":{{\"nodeName\":\"node-{}\",\
         \"automountServiceAccountToken\":false,\"containers\":[{{\"name\":\"main\",\
         \"image\":\"registry.example/app:v{}\",\"env\":[{}]}}]}}}}",
        number % 500,
        "annotation ".repeat(15),
        number % 1000,
        number % 50,
        env.join(","),
    );
    request("POST", "/api/v1/namespaces/pods/pods", &body)
}

async fn pods(access: &Access) -> anyhow::Result<()> {
    namespace(access, "pods").await?;
    let account =
        request("POST", "/api/v1/namespaces/pods/serviceaccounts", "{\"metadata\":{\"name\":\"default\"}}");
    access.connect().await?.call(&account).await?;
    let size = access.connect().await?.must(&pod(PODS)).await?;
    ensure!((2500..4000).contains(&size), "a pod has {size} bytes instead of 3 KB");
    fill(access, PODS, pod).await
}

/// What each of many watches costs in which nothing happens.
async fn watches(running: &Running) -> anyhow::Result<Figure> {
    let before = running.memory();
    let mut tasks = JoinSet::new();
    let mut senders = Vec::new();
    let uri = |n: usize| format!("https://bench/api/v1/namespaces/none-{}/configmaps?watch=true", n % 50);
    for _ in 0..WATCHES / STREAMS {
        let mut sender = running.access.connect_http2().await?;
        for number in 0..STREAMS {
            let request = http::Request::get(uri(number)).body(http_body_util::Empty::new())?;
            sender.ready().await?;
            let answer = sender.send_request(request).await?;
            ensure!(answer.status() == 200, "a watch was answered {}", answer.status());
            let mut body = answer.into_body();
            tasks.spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
        }
        senders.push(sender);
    }
    tokio::time::sleep(REST).await;
    ensure!(tasks.try_join_next().is_none(), "a watch ended by itself");
    let after = running.memory();
    tasks.abort_all();
    let value = after.checked_sub(before).context("it has shrunk")? as f64 / WATCHES as f64 / 1024.0;
    let what = "10,000 idle watches on 100 connections, each";
    Ok(Figure { what, value, unit: " KiB", note: String::new(), bar: "8 KiB" })
}
