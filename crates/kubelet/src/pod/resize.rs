//! Asks for the resources that a pod's spec wants, and carries out a resize of running containers. The pod's cgroup is widened first and narrowed last, for a container may
//! never have more than its pod.

use std::sync::Arc;

use cri::v1::{ContainerStatsRequest, UpdateContainerResourcesRequest};
use k8s_openapi::api::core::v1::Pod;

use super::{Done, RESIZE, Stage, Worker};
use crate::allocation::Outcome;
use crate::context::Shared;
use crate::events;
use crate::podutil;
use crate::resize::{Values, update};

/// One container's change.
struct Change {
    id: String,
    name: String,
    from: Values,
    to: Values,
}

impl Worker {
    /// Asks for what the spec of the API wants.
    pub(super) fn ask(&mut self) {
        let Some(wish) = self.wish.clone() else { return };
        self.freed.mark_unchanged();
        if self.stage != Stage::Running {
            self.pod = wish;
            return;
        }
        let (allotted, outcome) =
            self.context.allocations.ask(&wish, &self.context.allocatable, self.fixed());
        self.pod = Arc::new(allotted);
        let pending = match outcome {
            Outcome::Pending(pending) => Some(pending),
            Outcome::Granted => {
                self.resize.error = None;
                self.resize.granted_at = wish.metadata.generation;
                self.retry.remove(RESIZE);
                let message = "Pod resize started".to_owned();
                self.context.recorder.normal(events::pod(&self.pod), "ResizeStarted", message);
                None
            }
            Outcome::Unchanged => None,
        };
        if let Some(pending) =
            pending.as_ref().filter(|pending| self.resize.pending.as_ref() != Some(pending))
        {
            let message = format!("Pod resize {}: {}", pending.reason, pending.message);
            let reason = format!("Resize{}", pending.reason);
            self.context.recorder.warning(events::pod(&self.pod), &reason, message);
        }
        self.resize.pending = pending;
    }

    /// Why the pod's resources cannot be changed, if so: what it has of its own would have to be given anew.
    fn fixed(&self) -> Option<&'static str> {
        let settings = &self.context.config.settings;
        if podutil::qos_class(&self.pod) != "Guaranteed" {
            None
        } else if settings.cpu_manager_policy == "static" {
            Some("Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy")
        } else if settings.memory_manager_policy == "Static" {
            Some("Resize is infeasible for Guaranteed Pods alongside Memory Manager static policy")
        } else {
            None
        }
    }

    pub(super) fn carry_out_resize(&mut self, names: &[String]) {
        if self.blocked(RESIZE) {
            return;
        }
        let change = |name: &String| {
            let (container, _) = podutil::container(&self.pod, name)?;
            let found = self.view.container(name)?;
            let (from, to) = (
                crate::resize::actual(found)?,
                crate::resize::wanted(&self.pod, &container, self.context.rules),
            );
            Some(Change { id: found.id.clone(), name: name.clone(), from, to })
        };
        let changes: Vec<_> = names.iter().filter_map(change).collect();
        let (context, pod) = (self.context.clone(), self.pod.clone());
        self.spawn(RESIZE, async move { Done::Resize(carry_out(context, pod, changes).await) });
    }
}

/// Makes the changes; an error says what is in the way, and what was done stays done.
async fn carry_out(context: Shared, pod: Arc<Pod>, changes: Vec<Change>) -> Result<(), String> {
    if let Some(cgroups) = &context.cgroups {
        cgroups.widen(&pod).map_err(|error| format!("cannot widen the pod's cgroup: {error}"))?;
    }
    for change in &changes {
        let mut runtime = context.cri.runtime();
        let shrinks =
            change.to.memory > 0 && (change.from.memory == 0 || change.to.memory < change.from.memory);
        if shrinks {
            let request = ContainerStatsRequest { container_id: change.id.clone() };
            let stats =
                runtime.container_stats(request).await.map_err(|status| status.message().to_owned())?;
            let memory = stats.into_inner().stats.and_then(|stats| stats.memory);
            let used = memory.and_then(|memory| memory.usage_bytes).map_or(0, |value| value.value);
            if i64::try_from(used).unwrap_or(i64::MAX) >= change.to.memory {
                return Err(format!(
                    "attempting to set container {:?} memory limit ({}) below current usage ({used})",
                    change.name, change.to.memory
                ));
            }
        }
        let request = UpdateContainerResourcesRequest {
            container_id: change.id.clone(),
            linux: Some(update(change.from, change.to)),
            ..UpdateContainerResourcesRequest::default()
        };
        runtime
            .update_container_resources(request)
            .await
            .map_err(|status| format!("container {:?}: {}", change.name, status.message()))?;
    }
    if let Some(cgroups) = &context.cgroups {
        cgroups.ensure(&pod).map_err(|error| format!("cannot set the pod's cgroup: {error}"))?;
    }
    Ok(())
}
