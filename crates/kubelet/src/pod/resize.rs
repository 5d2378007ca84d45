//! Carries out a resize of running containers. The pod's cgroup is widened first and narrowed last, for a container may
//! never have more than its pod.

use std::sync::Arc;

use cri::v1::{ContainerStatsRequest, UpdateContainerResourcesRequest};
use k8s_openapi::api::core::v1::Pod;

use crate::context::Shared;
use crate::resize::{Values, update};

/// One container's change.
pub(super) struct Change {
    pub id: String,
    pub name: String,
    pub from: Values,
    pub to: Values,
}

/// Makes the changes; an error says what is in the way, and what was done stays done.
pub(super) async fn carry_out(context: Shared, pod: Arc<Pod>, changes: Vec<Change>) -> Result<(), String> {
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
