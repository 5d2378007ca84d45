//! `carrack up`: a whole cluster in one process. This module only composes the parts and tells how far they are.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::Stdio;

use anyhow::Context;
use apiserver::{ApiServer, UserInfo};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::args::Up;
use crate::flags::Standard;
use crate::paths::Paths;
use crate::progress::Progress;
use crate::{addons, control, kubeconfig, lock, node, own_binary, parts, preflight};

/// Runs until a signal asks it to end. The pods go on.
pub async fn run(args: Up) -> anyhow::Result<()> {
    let mut progress = Progress::new(args.progress_fd);
    let warnings = preflight::check()?;
    let paths = Paths::make(&args.data.data_dir)?;
    parts::log_to_file(&paths.log())?;
    let _lock = lock::take(&paths.lock())?;
    for warning in warnings {
        progress.line(&format!("  warning: {warning}"));
    }
    let shutdown = CancellationToken::new();
    let mut running = JoinSet::new();
    let cluster = start(&args, &paths, &mut progress, &shutdown, &mut running).await?;
    summary(&args, &paths, &cluster, &mut progress)?;
    progress.finish();

    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let ended = tokio::select! {
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        part = running.join_next() => part,
    };
    shutdown.cancel();
    while let Some(part) = running.join_next().await {
        if let Ok((name, Err(error))) = part {
            tracing::warn!("{name} ended: {error:#}");
        }
    }
    match ended {
        None => {
            eprintln!(
                "The control plane has stopped; the pods go on. `carrack up` takes them over, `carrack down` ends them."
            );
            Ok(())
        }
        Some(Ok(("the kubelet", Ok(())))) => {
            eprintln!("The machine goes down: the pods have ended.");
            Ok(())
        }
        Some(Ok((name, Ok(())))) => anyhow::bail!("{name} ended by itself; see {}", paths.log().display()),
        Some(Ok((name, Err(error)))) => Err(error.context(format!("{name} failed"))),
        Some(Err(panic)) => Err(anyhow::Error::from(panic).context("a part of the cluster ended abruptly")),
    }
}

/// What the summary tells.
struct Cluster {
    server: ApiServer,
    node: String,
}

type Running = JoinSet<(&'static str, anyhow::Result<()>)>;

async fn start(
    args: &Up,
    paths: &Paths,
    progress: &mut Progress,
    shutdown: &CancellationToken,
    running: &mut Running,
) -> anyhow::Result<Cluster> {
    let name = node::name(args.node_name.as_deref())?;
    let settings = parts::settings(args.kubelet_config.as_deref())?;
    let addresses = node::addresses(&args.node_ips)?;

    // Volumes are there before any pod that uses them runs.
    provisioner::mount_all(&paths.volumes()).context("mounting the node's volumes")?;
    // The runtime needs nothing of the API: it starts beside the server.
    let runtime = parts::runtime_config(paths.data(), paths.runtime_socket());
    spawn(running, "the container runtime", runtime::serve(runtime, shutdown.clone()));

    progress.doing("opening the store");
    let store = store::embedded::open(&paths.store())?;
    control::serve(&paths.control_socket(), store.clone(), shutdown.clone()).await?;
    let mut config = apiserver::Config::new(paths.data());
    config.bind = SocketAddr::new(any_address(), args.port);
    config.advertise = addresses.clone();
    args.flags.apply(&mut config, Some(Standard(&paths.audit_log())))?;
    args.access.clone().apply(&mut config);
    progress.doing("starting the API server");
    let server = apiserver::start(config, store).await.context("starting the API server")?;
    let serving = server.clone();
    let token = shutdown.clone();
    tokio::spawn(crate::memory::keep_small());
    spawn(running, "the API server", async move {
        serving.serve(token).await;
        anyhow::Ok(())
    });
    progress.done("API server ready");

    let clients = parts::Clients::in_process(server.clone());
    let own = clients.of(UserInfo::system_master("system:carrack"));
    addons::ensure(own.clone(), &parts::CLUSTER_DNS).await?;
    parts::spawn_control(running, &clients, paths, args.flags.feature_gates, shutdown)?;
    progress.done("controllers and scheduler started");

    let kubelet = parts::Node {
        name: name.clone(),
        addresses,
        kubelet_port: args.kubelet_port,
        kubelet_root: args.kubelet_root.clone(),
        static_pod_dir: args.pod_manifest_path.clone(),
        settings,
        going_down: parts::machine_going_down()?,
    };
    parts::spawn_node(running, &clients, paths, &kubelet, shutdown)?;
    progress.doing("waiting for the node");
    ready(own, &name, running).await?;
    progress.done(&format!("node {name} is Ready"));
    Ok(Cluster { server, node: name })
}

/// Starts a part; `up` ends when a part does.
pub fn spawn<E: Into<anyhow::Error>>(
    running: &mut Running,
    name: &'static str,
    part: impl Future<Output = Result<(), E>> + Send + 'static,
) {
    running.spawn(async move { (name, part.await.map_err(Into::into)) });
}

/// Both families where there are both.
fn any_address() -> IpAddr {
    match std::path::Path::new("/proc/sys/net/ipv6").exists() {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => std::net::Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// Waits until the node says that it is Ready, or a part has failed.
async fn ready(client: Client, name: &str, running: &mut Running) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = std::pin::pin!(watcher(nodes, config).default_backoff().applied_objects());
    loop {
        tokio::select! {
            change = changes.next() => {
                let Some(Ok(node)) = change else { continue };
                let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
                if conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True") {
                    return Ok(());
                }
            }
            Some(part) = running.join_next() => {
                let (name, result) = part.context("a part of the cluster ended abruptly")?;
                result.with_context(|| format!("{name} failed"))?;
                anyhow::bail!("{name} ended by itself");
            }
        }
    }
}

fn summary(args: &Up, paths: &Paths, cluster: &Cluster, progress: &mut Progress) -> anyhow::Result<()> {
    let file = paths.admin_kubeconfig();
    let file = file.display();
    progress.line("");
    progress.line(&format!("  API server   https://127.0.0.1:{}", cluster.server.address().port()));
    progress.line(&format!("  node         {}", cluster.node));
    progress.line(&format!("  kubeconfig   {file}"));
    progress.line(&format!("  log          {}", paths.log().display()));
    if args.kubeconfig_merge {
        let (context, path) = kubeconfig::merge(&paths.admin_kubeconfig())?;
        progress.line(&format!("  context      {context}, in {}", path.display()));
    }
    progress.line("");
    progress.line("  Try:");
    if !args.kubeconfig_merge {
        progress.line(&format!("    export KUBECONFIG={file}        (or `carrack up --kubeconfig-merge`)"));
    }
    progress.line("    kubectl apply -f examples/01-pod.yaml      (or `carrack kubectl ...`)");
    progress.line("    kubectl get pods --all-namespaces");
    if args.progress_fd.is_none() {
        progress.line("  Ctrl-C stops the control plane and leaves the pods running.");
    }
    Ok(())
}

/// Starts `up` in the background and tells its progress until it is ready.
pub fn detach(args: &Up) -> anyhow::Result<()> {
    let paths = Paths::make(&args.data.data_dir)?;
    let (read, write) = nix::unistd::pipe().context("making a pipe")?;
    nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    let log = std::fs::File::options().create(true).append(true).open(paths.log())?;
    let mut command = own_binary();
    // The same command line, but for what made it go into the background.
    command.arg("up").args(std::env::args_os().skip(2).filter(|argument| argument != "--detach"));
    command.args(["--progress-fd", &write.as_raw_fd().to_string()]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // The terminal's signals are not for the cluster.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().context("starting in the background")?;
    drop(write);
    for line in BufReader::new(std::fs::File::from(read)).lines() {
        println!("{}", line?);
    }
    // The pipe is closed when the cluster is ready, or when it has failed.
    if let Some(status) = child.try_wait()? {
        anyhow::bail!("the cluster did not come up ({status}); see {}", paths.log().display());
    }
    println!("  It runs in the background (process {}); `carrack down` stops it.", child.id());
    Ok(())
}
