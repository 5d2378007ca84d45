//! The servers that are measured: Carrack's API server, and upstream's with its etcd, each in a folder and on ports of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use base64::Engine;
use tokio::process::{Child, Command};

use super::client::{Access, request};

/// What to start.
#[derive(Clone)]
pub enum Target {
    Carrack(String),
    Reference { apiserver: String, etcd: String },
}

/// A server that answers.
pub struct Running {
    processes: Vec<Child>,
    pub access: Access,
    /// From exec to a good answer of `/readyz`.
    pub ready: Duration,
}

impl Target {
    pub fn name(&self) -> &'static str {
        match self {
            Target::Carrack(_) => "carrack",
            Target::Reference { .. } => "reference",
        }
    }

    /// Starts it in a folder, which may hold the data of an earlier start, and waits until it is ready.
    pub async fn start(&self, folder: &Path) -> anyhow::Result<Running> {
        match self {
            Target::Carrack(binary) => carrack(binary, folder).await,
            Target::Reference { apiserver, etcd } => reference(apiserver, etcd, folder).await,
        }
    }
}

impl Running {
    /// Resident memory of all its processes, in bytes.
    pub fn memory(&self) -> u64 {
        let pids = self.processes.iter().filter_map(Child::id);
        pids.map(|pid| crate::cluster::memory(pid, "Rss:") * 1024).sum()
    }

    /// Processor time of all its processes so far.
    pub fn processor_time(&self) -> Duration {
        self.processes.iter().filter_map(Child::id).map(crate::cluster::processor_time).sum()
    }

    /// Ends it without ado: what was acknowledged is durable.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        for process in self.processes.iter_mut().rev() {
            process.kill().await?;
        }
        Ok(())
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn log(folder: &Path, name: &str) -> anyhow::Result<Stdio> {
    let file = std::fs::File::options().create(true).append(true).open(folder.join(name));
    Ok(file.with_context(|| format!("opening {name}"))?.into())
}

async fn carrack(binary: &str, folder: &Path) -> anyhow::Result<Running> {
    let port = free_port()?;
    let started = Instant::now();
    let process = Command::new(binary)
        .args(["apiserver", "--port", &port.to_string(), "--data-dir"])
        .arg(folder)
        .stdin(Stdio::null())
        .stderr(log(folder, "bench.log")?)
        .kill_on_drop(true)
        .spawn()
        .context("starting carrack")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let kubeconfig = folder.join("admin.kubeconfig");
    let access = loop {
        // The file of an earlier start names another port, but the same certificates.
        if std::net::TcpStream::connect(address).is_ok() && kubeconfig.exists() {
            break from_kubeconfig(&kubeconfig, address)?;
        }
        wait(started, folder)?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    ready(vec![process], access, started, folder).await
}

fn wait(started: Instant, folder: &Path) -> anyhow::Result<()> {
    ensure!(started.elapsed() < Duration::from_secs(180), "it does not start: see {}", folder.display());
    Ok(())
}

async fn ready(
    mut processes: Vec<Child>,
    access: Access,
    started: Instant,
    folder: &Path,
) -> anyhow::Result<Running> {
    let probe = request("GET", "/readyz", "");
    loop {
        if let Ok(mut connection) = access.connect().await
            && matches!(connection.call(&probe).await, Ok((200, _)))
        {
            return Ok(Running { processes, access, ready: started.elapsed() });
        }
        for process in &mut processes {
            if let Some(status) = process.try_wait()? {
                anyhow::bail!("it ended by itself ({status}): see the logs in {}", folder.display());
            }
        }
        wait(started, folder)?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn from_kubeconfig(path: &Path, address: SocketAddr) -> anyhow::Result<Access> {
    let config: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(path)?)?;
    let decode = |pointer: &str| -> anyhow::Result<String> {
        let text = config.pointer(pointer).and_then(serde_json::Value::as_str);
        let text = text.with_context(|| format!("the kubeconfig has no {pointer}"))?;
        Ok(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text)?)?)
    };
    let ca = decode("/clusters/0/cluster/certificate-authority-data")?;
    let certificate = decode("/users/0/user/client-certificate-data")?;
    Access::new(address, &ca, &certificate, &decode("/users/0/user/client-key-data")?)
}

async fn reference(apiserver: &str, etcd: &str, folder: &Path) -> anyhow::Result<Running> {
    let path = |name: &str| -> PathBuf { folder.join(name) };
    if !path("ca.crt").exists() {
        certificates(folder)?;
    }
    let (port, client, peer) = (free_port()?, free_port()?, free_port()?);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let started = Instant::now();
    let store = Command::new(etcd)
        .arg("--data-dir")
        .arg(path("etcd"))
        .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
        .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
        .args(["--initial-cluster", &format!("default={}", url(peer))])
        .args(["--quota-backend-bytes", "8589934592", "--auto-compaction-retention", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log(folder, "etcd.log")?)
        .kill_on_drop(true)
        .spawn()
        .context("starting etcd")?;
    let file = |flag: &str, name: &str| format!("--{flag}={}", path(name).display());
    let server = Command::new(apiserver)
        .args([format!("--etcd-servers={}", url(client)), format!("--secure-port={port}")])
        .args(["--bind-address=127.0.0.1", "--authorization-mode=Node,RBAC", "--anonymous-auth=true"])
        .args(["--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://bench"])
        .args([file("client-ca-file", "ca.crt"), file("tls-cert-file", "server.crt")])
        .args([file("tls-private-key-file", "server.key"), file("service-account-key-file", "sa.pub")])
        .args([file("service-account-signing-key-file", "sa.key"), file("cert-dir", "certs")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log(folder, "apiserver.log")?)
        .kill_on_drop(true)
        .spawn()
        .context("starting the reference API server")?;
    let read = |name: &str| std::fs::read_to_string(path(name));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let access = Access::new(address, &read("ca.crt")?, &read("client.crt")?, &read("client.key")?)?;
    ready(vec![store, server], access, started, folder).await
}

/// An authority, a serving certificate, an administrator's, and a key for ServiceAccount tokens.
fn certificates(folder: &Path) -> anyhow::Result<()> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text);
    let ca_key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "bench-ca");
    write("ca.crt", params.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(params, ca_key);
    for (name, subject, group) in [("server", "kube-apiserver", ""), ("client", "admin", "system:masters")] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, subject);
        if !group.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        write(&format!("{name}.crt"), params.signed_by(&key, &issuer)?.pem())?;
        write(&format!("{name}.key"), key.serialize_pem())?;
    }
    let accounts = KeyPair::generate()?;
    write("sa.pub", accounts.public_key_pem())?;
    Ok(write("sa.key", accounts.serialize_pem())?)
}
