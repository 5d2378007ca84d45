//! Ends everything that the runtime ever started on this machine; for `carrack down`.

use std::sync::Arc;

use nix::mount::{MntFlags, umount2};

use crate::config::RuntimeConfig;
use crate::error::Error;
use crate::node::{Node, blocking};

/// Stops and removes all pods, then removes the runtime's mounts, cgroups and state. Images stay. The runtime must not run.
pub async fn teardown(config: &RuntimeConfig) -> Result<(), Error> {
    if !config.root.exists() && !config.state_dir.exists() {
        return Ok(());
    }
    let opening = config.clone();
    let node = Arc::new(blocking(move || Node::open(opening)).await?);
    node.recover().await?;
    for sandbox in node.sandboxes() {
        node.remove_sandbox(&sandbox.id).await?;
    }
    let config = config.clone();
    blocking(move || {
        let _ = umount2(&node.mounts_dir(), MntFlags::MNT_DETACH);
        node.cgroups.remove(&config.shim_cgroup)?;
        node.cgroups.remove(&config.cgroup_parent)?;
        match std::fs::remove_dir_all(&config.state_dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", config.state_dir.display()))(e))
            }
            _ => Ok(()),
        }
    })
    .await
}
