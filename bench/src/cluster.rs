//! A cluster under measurement.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A running `carrack up`.
pub struct Cluster {
    process: Child,
    pub started: Instant,
    pub api_ready: Duration,
    pub node_ready: Duration,
    folder: tempfile::TempDir,
    carrack: String,
}

impl Cluster {
    /// Starts `carrack up` in an empty folder and waits until the node is Ready.
    pub async fn up(carrack: &str) -> anyhow::Result<Cluster> {
        let folder = tempfile::tempdir()?;
        let Up { process, started, api_ready, node_ready } = up(carrack, folder.path()).await?;
        Ok(Cluster { process, started, api_ready, node_ready, folder, carrack: carrack.to_owned() })
    }

    /// Kills it and starts it again beside the pods that still run; the time until the node is Ready.
    pub async fn restart(&mut self) -> anyhow::Result<Duration> {
        self.process.kill().await?;
        let again = up(&self.carrack, self.folder.path()).await?;
        self.process = again.process;
        Ok(again.node_ready)
    }

    /// An administrator's client on a connection of its own.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.folder.path().join("admin.kubeconfig"))?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.read_timeout = None;
        Ok(Client::try_from(config)?)
    }

    pub fn pid(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// Stops everything and removes the data.
    pub async fn down(mut self) -> anyhow::Result<()> {
        let status = Command::new(&self.carrack)
            .args(["down", "--purge", "--data-dir"])
            .arg(self.folder.path())
            .stderr(Stdio::null())
            .status()
            .await?;
        self.process.wait().await?;
        anyhow::ensure!(status.success(), "carrack down failed");
        Ok(())
    }
}

/// A field of /proc/PID/smaps_rollup in KiB.
pub fn memory(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Processor time of a process so far.
pub fn processor_time(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = text.rsplit_once(')').map(|(_, after)| after).unwrap_or_default();
    let ticks: u64 =
        after.split_whitespace().skip(11).take(2).filter_map(|number| number.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Processes whose command line has this word second (`carrack shim ...`).
pub fn processes(word: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new("/proc")).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).nth(1) == Some(word.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

struct Up {
    process: Child,
    started: Instant,
    api_ready: Duration,
    node_ready: Duration,
}

async fn up(carrack: &str, folder: &Path) -> anyhow::Result<Up> {
    let started = Instant::now();
    let mut process = Command::new(carrack)
        .args(["up", "--node-name", "node-1", "--data-dir"])
        .arg(folder)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting carrack")?;
    let mut lines = BufReader::new(process.stderr.take().context("no pipe")?).lines();
    let (mut api_ready, mut node_ready) = (None, None);
    while let Some(line) = lines.next_line().await? {
        if line.contains("API server ready") {
            api_ready = Some(started.elapsed());
        } else if line.contains("is Ready") {
            node_ready = Some(started.elapsed());
        } else if line.contains("Ctrl-C stops") {
            break;
        } else if line.starts_with("error") {
            anyhow::bail!(line);
        }
    }
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let api_ready = api_ready.context("it never said that the API is ready")?;
    let node_ready = node_ready.context("it never said that the node is Ready")?;
    Ok(Up { process, started, api_ready, node_ready })
}
