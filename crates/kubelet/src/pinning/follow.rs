//! Keeps running containers on the processors that they may use: those without own ones follow the shared pool.

use std::collections::HashMap;

use cri::v1::{ContainerState, LinuxContainerResources, UpdateContainerResourcesRequest};
use tokio_util::sync::CancellationToken;

use crate::context::Shared;
use crate::manager::Pods;
use crate::runtime::{CONTAINER_NAME, POD_UID};

/// Follows the shared pool and the runtime's events until shutdown.
pub(crate) async fn run(context: Shared, pods: Pods, shutdown: CancellationToken) {
    if !context.pinning.pins_cpus() {
        return shutdown.cancelled().await;
    }
    let (mut changes, mut events) = (context.pinning.changes(), pods.events());
    // What each running container was last told, by its id.
    let mut told: HashMap<String, String> = HashMap::new();
    loop {
        changes.mark_unchanged();
        events.mark_unchanged();
        if let Err(status) = tell(&context, &mut told).await {
            tracing::warn!(status = status.message(), "cannot set the processors of containers");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = events.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

async fn tell(context: &Shared, told: &mut HashMap<String, String>) -> Result<(), tonic::Status> {
    let containers = context.cri.containers(None).await?;
    let running = containers.iter().filter(|one| one.state() == ContainerState::ContainerRunning);
    let running: Vec<_> = running.collect();
    told.retain(|id, _| running.iter().any(|one| one.id == *id));
    for container in running {
        let label = |key: &str| container.labels.get(key).map(String::as_str).unwrap_or_default();
        let (uid, name) = (label(POD_UID), label(CONTAINER_NAME));
        if uid.is_empty() {
            // Not one of ours.
            continue;
        }
        let Some((cpus, _)) = context.pinning.cpus(uid, name) else { continue };
        let cpus = cpus.to_string();
        if told.get(&container.id) == Some(&cpus) {
            continue;
        }
        let resources =
            LinuxContainerResources { cpuset_cpus: cpus.clone(), ..LinuxContainerResources::default() };
        let request = UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(resources),
            ..UpdateContainerResourcesRequest::default()
        };
        match context.cri.runtime().update_container_resources(request).await {
            Ok(_) => drop(told.insert(container.id.clone(), cpus)),
            Err(status) => {
                // It may have ended just now; if not, the next event tries again.
                tracing::debug!(
                    status = status.message(),
                    id = container.id,
                    "cannot set a container's processors"
                );
            }
        }
    }
    Ok(())
}
