//! `carrack down`: stops the cluster and its pods and leaves nothing behind but data.

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::args::Down;
use crate::kubelet_root;
use crate::lock;
use crate::paths::Paths;

pub async fn run(args: Down) -> anyhow::Result<()> {
    let data = &args.data.data_dir;
    anyhow::ensure!(data.is_dir(), "there is no cluster in {}", data.display());
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "stopping pods takes root");
    let paths = Paths::existing(&data.canonicalize()?);
    if let Some(pid) = lock::holder(&paths.lock())? {
        eprintln!("  stopping the control plane (process {pid})");
        kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("stopping process {pid}"))?;
        lock::released(&paths.lock()).await?;
    }
    eprintln!("  stopping the pods");
    runtime::teardown(&crate::parts::runtime_config(paths.data(), paths.runtime_socket())).await?;
    network::teardown().context("removing links and rules")?;
    kubelet::teardown(&paths.kubelet(), "/").context("removing pod volumes")?;
    kubelet_root::remove(&paths)?;
    provisioner::unmount_all(&paths.volumes()).context("unmounting the node's volumes")?;
    if args.purge {
        std::fs::remove_dir_all(paths.data())
            .with_context(|| format!("removing {}", paths.data().display()))?;
        eprintln!("  removed {}", paths.data().display());
    }
    eprintln!("The cluster is down.");
    Ok(())
}
