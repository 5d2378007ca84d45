//! The figures of SPECIFICATION.md, each beside its bar.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::cluster::{Cluster, memory, processes, processor_time};
use crate::node;

/// Measures what is named (everything, if nothing is) and prints a table.
pub async fn run(carrack: &str, names: &[String]) -> anyhow::Result<()> {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|one| one == name);
    println!("{:<52} {:>12} {:>12}", "measure", "measured", "bar");
    if wanted("size") {
        let size = std::fs::metadata(carrack)?.len() as f64 / 1e6;
        row("binary, stripped", format!("{size:.1} MB"), "60 MB");
    }
    if wanted("start") {
        start(carrack).await?;
    }
    if wanted("cri") {
        node::cri(carrack).await?;
    }
    let rest = ["idle", "writes", "pods", "exits", "burst"];
    if rest.into_iter().any(wanted) {
        let mut cluster = Cluster::up(carrack).await?;
        if wanted("idle") {
            idle(&cluster, "everything idle").await;
        }
        if wanted("writes") {
            writes(&cluster, 64, "4,000/s").await?;
            writes(&cluster, 1, "").await?;
        }
        if wanted("pods") {
            pods(&cluster).await?;
        }
        if wanted("exits") {
            node::exits(&cluster).await?;
        }
        if wanted("burst") {
            burst(&mut cluster).await?;
        }
        cluster.down().await?;
    }
    Ok(())
}

pub fn row(what: &str, measured: String, bar: &str) {
    println!("{what:<52} {measured:>12} {bar:>12}");
}

pub fn median(mut values: Vec<Duration>) -> (Duration, Duration) {
    values.sort();
    let at =
        |share: f64| values.get(((values.len() - 1) as f64 * share) as usize).copied().unwrap_or_default();
    (at(0.5), at(0.99))
}

pub fn seconds(value: Duration) -> String {
    format!("{:.3} s", value.as_secs_f64())
}

/// Five starts in empty folders.
async fn start(carrack: &str) -> anyhow::Result<()> {
    let (mut api, mut node, mut pod) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        let cluster = Cluster::up(carrack).await?;
        api.push(cluster.api_ready);
        node.push(cluster.node_ready);
        let client = cluster.client().await?;
        run_pod(&client, "first", false).await?;
        pod.push(cluster.started.elapsed());
        cluster.down().await?;
    }
    row("up: exec -> API ready", seconds(median(api).0), "0.5 s");
    row("up: exec -> node Ready", seconds(median(node).0), "1.5 s");
    row("up: exec -> first pod Running", seconds(median(pod).0), "2.5 s");
    Ok(())
}

async fn idle(cluster: &Cluster, what: &str) {
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = processor_time(cluster.pid());
    let window = Duration::from_secs(30);
    tokio::time::sleep(window).await;
    let share = (processor_time(cluster.pid()) - before).as_secs_f64() / window.as_secs_f64() * 100.0;
    let resident = format!("{:.1} MB", memory(cluster.pid(), "Rss:") as f64 / 1e3);
    row(&format!("{what}: resident memory"), resident, "100 MB");
    row(&format!("{what}: CPU, of a core"), format!("{share:.2} %"), "1 %");
}

pub fn pod(name: &str) -> Pod {
    let pod = json!({
        "metadata": {"name": name, "labels": {"bench": "pod"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": "carrack.dev/toolbox", "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "100000"],
            }],
        },
    });
    serde_json::from_value(pod).expect("a constant pod")
}

fn is(pod: &Pod, ready: bool) -> bool {
    let Some(status) = &pod.status else { return false };
    let condition =
        status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    status.phase.as_deref() == Some("Running") && (condition || !ready)
}

/// Creates a pod and waits, by a watch, until it runs (and is Ready).
pub async fn run_pod(client: &Client, name: &str, ready: bool) -> anyhow::Result<Duration> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(pods.watch(&params, "0").await?);
    let started = Instant::now();
    let create = async { pods.create(&PostParams::default(), &pod(name)).await };
    let watch = async {
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
                && is(&pod, ready)
            {
                return anyhow::Ok(started.elapsed());
            }
        }
        anyhow::bail!("the watch ended")
    };
    let (created, took) = tokio::join!(create, watch);
    created?;
    took
}

async fn pods(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let mut times = Vec::new();
    for number in 0..25 {
        let name = format!("one-{number}");
        times.push(run_pod(&client, &name, true).await?);
        api.delete(&name, &DeleteParams::default()).await?;
    }
    let (middle, worst) = median(times);
    row("create -> Running and Ready, one by one, median", seconds(middle), "0.15 s");
    row("create -> Running and Ready, one by one, p99", seconds(worst), "");
    Ok(())
}

async fn burst(cluster: &mut Cluster) -> anyhow::Result<()> {
    const COUNT: u64 = 100;
    let client = cluster.client().await?;
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = memory(cluster.pid(), "Rss:");
    // One process that forks the shims is always there.
    let spare = processes("shim").len();
    let params = WatchParams::default().labels("bench=pod");
    let mut events = std::pin::pin!(api.watch(&params, "0").await?);
    let started = Instant::now();
    let names = (0..COUNT).map(|number| format!("burst-{number}"));
    let create = futures::stream::iter(names).map(Ok).try_for_each_concurrent(16, |name| {
        let api = api.clone();
        async move { api.create(&PostParams::default(), &pod(&name)).await.map(drop) }
    });
    let watch = async {
        let mut running = std::collections::HashSet::new();
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
                && is(&pod, false)
                && running.insert(pod.metadata.name.unwrap_or_default())
                && running.len() as u64 == COUNT
            {
                return anyhow::Ok(started.elapsed());
            }
        }
        anyhow::bail!("the watch ended")
    };
    let (created, took) = tokio::join!(create, watch);
    created?;
    row("100 pods at once until all run", seconds(took?), "6 s");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let shims = processes("shim");
    let growth = (memory(cluster.pid(), "Rss:").saturating_sub(before)) as f64 / COUNT as f64;
    let resident: u64 = shims.iter().map(|pid| memory(*pid, "Rss:")).sum();
    let own: u64 = shims.iter().map(|pid| memory(*pid, "Pss:")).sum();
    let each = |total: u64| growth + total as f64 / COUNT as f64;
    row("resident memory per pod beyond its processes", format!("{:.2} MB", each(resident) / 1e3), "3 MB");
    row("the same, shared pages counted once", format!("{:.2} MB", each(own) / 1e3), "");
    idle(cluster, "everything idle beside 100 pods").await;
    node::restart(cluster, &api).await?;
    let started = Instant::now();
    let grace = DeleteParams::default().grace_period(0);
    api.delete_collection(&grace, &ListParams::default().labels("bench=pod")).await?;
    while processes("shim").len() > spare {
        tokio::time::sleep(Duration::from_millis(20)).await;
        anyhow::ensure!(started.elapsed() < Duration::from_secs(120), "pods were not removed");
    }
    row("100 pods deleted until all is gone", seconds(started.elapsed()), "");
    Ok(())
}

/// ConfigMaps of 1 KB from `clients` clients, each on a connection of its own, for five seconds.
async fn writes(cluster: &Cluster, clients: usize, bar: &str) -> anyhow::Result<()> {
    let count = Arc::new(AtomicU64::new(0));
    let window = Duration::from_secs(5);
    let mut tasks = tokio::task::JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(cluster.client().await?);
    }
    let started = Instant::now();
    for (number, client) in connections.into_iter().enumerate() {
        let count = count.clone();
        tasks.spawn(async move {
            let api: Api<ConfigMap> = Api::default_namespaced(client);
            let mut made = 0u64;
            while started.elapsed() < window {
                let name = format!("bench-{clients}-{number}-{made}");
                let map = json!({"metadata": {"name": name}, "data": {"value": "x".repeat(1000)}});
                let map: ConfigMap = serde_json::from_value(map)?;
                api.create(&PostParams::default(), &map).await?;
                made += 1;
                count.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a client ended abruptly")??;
    }
    let rate = count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    row(&format!("create ConfigMaps of 1 KB, {clients} clients, durable"), format!("{rate:.0}/s"), bar);
    Ok(())
}
