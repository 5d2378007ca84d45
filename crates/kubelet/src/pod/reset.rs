//! Restarts all containers of a pod in place, as a restart rule with the action `RestartAllContainers` asks (KEP-5532): the sandbox
//! and its volumes stay, and the pod begins with its first init container again.

use cri::v1::{ContainerState, RemoveContainerRequest, StopContainerRequest};
use jiff::Timestamp;

use super::{Done, POD, Restarting, Worker};
use crate::context::Shared;
use crate::runtime::{PodView, container_name};
use crate::{events, plan, podutil};

impl Worker {
    /// Removes all containers because that of this name ended at `since`.
    pub(super) fn reset(&mut self, name: &str, since: Timestamp, now: Timestamp) {
        // What is just being started or stopped comes first.
        let starting = self.busy.iter().any(|key| !key.starts_with('/'));
        if self.blocked(POD) || starting {
            return;
        }
        self.restarting = Restarting::Removing;
        self.backoffs.next(plan::RESET_KEY, since, now);
        if let Some((_, kind)) = podutil::container(&self.pod, name) {
            let object = events::container(&self.pod, kind, name);
            let message =
                format!("Container {name} exited with a restart rule; all containers will be restarted");
            self.context.recorder.normal(object, "RestartAllContainers", message);
        }
        let (context, view, first) = (self.context.clone(), self.view.clone(), name.to_owned());
        self.spawn(POD, async move { Done::Reset(remove(context, view, &first).await) });
    }
}

/// Ends and removes every container; that whose end asked for it goes last, so that a restart of this process finds it.
async fn remove(context: Shared, view: PodView, cause: &str) -> Result<(), String> {
    let mut runtime = context.cri.runtime();
    let (last, first): (Vec<_>, Vec<_>) =
        view.containers.into_iter().partition(|container| container_name(container) == cause);
    for container in first.into_iter().chain(last) {
        let said = |status: tonic::Status| status.message().to_owned();
        let id = container.id.clone();
        if container.state() == ContainerState::ContainerRunning {
            let stop = StopContainerRequest { container_id: id.clone(), timeout: 0 };
            runtime.stop_container(stop).await.map_err(said)?;
        }
        runtime.remove_container(RemoveContainerRequest { container_id: id }).await.map_err(said)?;
    }
    Ok(())
}
