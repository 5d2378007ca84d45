//! Figures of the node: the runtime alone over CRI, the end of a container, and a restart beside running pods.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cri::v1::runtime_service_client::RuntimeServiceClient;
use cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, NetworkConfig, PodSandboxConfig,
    PodSandboxMetadata, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, RuntimeConfig,
    StartContainerRequest, StopContainerRequest, StopPodSandboxRequest, UpdateRuntimeConfigRequest,
};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, WatchEvent, WatchParams};
use tokio::process::Command;
use tonic::transport::Channel;

use crate::cluster::{Cluster, processes};
use crate::figures::{median, row, run_pod, seconds};

const IMAGE: &str = "carrack.dev/toolbox";
const ROUNDS: u32 = 40;

fn milliseconds(value: Duration) -> String {
    format!("{:.1} ms", value.as_secs_f64() * 1e3)
}

/// A pod's whole life over CRI, by a runtime that runs alone.
pub async fn cri(carrack: &str) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("runtime.sock");
    let mut process = Command::new(carrack)
        .args(["runtime", "--data-dir"])
        .arg(folder.path())
        .arg("--socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the runtime")?;
    let until = Instant::now() + Duration::from_secs(30);
    let channel = loop {
        match cri::connect(&socket.to_string_lossy()).await {
            Ok(channel) => break channel,
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let mut runtime = RuntimeServiceClient::new(channel);
    let range = NetworkConfig { pod_cidr: "10.244.9.0/24".into() };
    let update =
        UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config: Some(range) }) };
    runtime.update_runtime_config(update).await?;
    let mut whole = Vec::new();
    for round in 0..ROUNDS {
        whole.push(life(&mut runtime, round).await?);
    }
    row("a pod's life over CRI: made, started, stopped, removed", milliseconds(median(whole).0), "25 ms");
    process.kill().await?;
    let down = Command::new(carrack).args(["down", "--purge", "--data-dir"]).arg(folder.path()).output();
    down.await?;
    Ok(())
}

async fn life(runtime: &mut RuntimeServiceClient<Channel>, round: u32) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let metadata = PodSandboxMetadata {
        name: format!("pod-{round}"),
        uid: format!("uid-{round}"),
        namespace: "default".into(),
        attempt: 0,
    };
    let pod =
        PodSandboxConfig { metadata: Some(metadata), hostname: "pod".into(), ..PodSandboxConfig::default() };
    let request = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
    let pod_sandbox_id = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
        command: ["sleep", "100000"].map(str::to_owned).to_vec(),
        ..ContainerConfig::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        config: Some(container),
        sandbox_config: Some(pod),
    };
    let container_id = runtime.create_container(request).await?.into_inner().container_id;
    runtime.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
    let stop = StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
    runtime.stop_container(stop).await?;
    runtime.remove_container(RemoveContainerRequest { container_id }).await?;
    runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
    runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
    Ok(started.elapsed())
}

/// From the end of a container's process to its status in the API.
pub async fn exits(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let mut times = Vec::new();
    for round in 0..ROUNDS / 2 {
        // Those of an earlier measure are still on their way.
        while !processes("100000").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let name = format!("exits-{round}");
        run_pod(&client, &name, true).await?;
        let own = |pid: &&u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(b"sleep\0")
        };
        let pids = processes("100000");
        let pid = pids.iter().find(own).context("the pod's process is not found")?.to_string();
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = std::pin::pin!(api.watch(&params, "0").await?);
        let started = Instant::now();
        ensure!(Command::new("kill").args(["-9", &pid]).status().await?.success(), "kill failed");
        let told = loop {
            let event = events.try_next().await?.context("the watch ended")?;
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
                && has_ended(&pod)
            {
                break started.elapsed();
            }
        };
        times.push(told);
        api.delete(&name, &DeleteParams::default().grace_period(0)).await?;
    }
    row("container exit -> status in the API, median", milliseconds(median(times).0), "30 ms");
    Ok(())
}

fn has_ended(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut ended = statuses.map(|status| {
        let terminated = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref().is_some_and(|state| state.terminated.is_some())
        };
        terminated(&status.state) || terminated(&status.last_state)
    });
    ended.any(|ended| ended)
}

/// Kills the whole cluster beside its running pods and starts it again: no container may be touched.
pub async fn restart(cluster: &mut Cluster, api: &Api<Pod>) -> anyhow::Result<()> {
    let containers = async |api: &Api<Pod>| -> anyhow::Result<Vec<String>> {
        let pods = api.list(&ListParams::default().labels("bench=pod")).await?;
        let statuses = pods
            .items
            .iter()
            .flat_map(|pod| pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()));
        let mut ids: Vec<String> =
            statuses.filter(|s| s.ready).filter_map(|s| s.container_id.clone()).collect();
        ids.sort();
        Ok(ids)
    };
    let before = containers(api).await?;
    let took = cluster.restart().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = containers(&Api::default_namespaced(cluster.client().await?)).await?;
    let touched = before.iter().filter(|id| !after.contains(id)).count();
    row("restart beside 100 pods until the node is Ready", seconds(took), "1 s");
    row("containers touched by the restart", touched.to_string(), "0");
    Ok(())
}
