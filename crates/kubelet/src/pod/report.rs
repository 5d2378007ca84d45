//! The pod's status: made anew after every change, and written to the API when it differs from what that has.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{COALESCE, DELETE, Done, Restarting, STATUS, Stage, Worker, api};
use crate::metrics::{POD_START, POD_START_SLI, POD_START_TOTAL, POD_STATUS_SYNC};
use crate::{podutil, static_pods, status};

impl Worker {
    pub(super) fn make_status(&mut self, now: Timestamp) {
        let gone = self.stage >= Stage::Cleaning;
        let here = |container: &k8s_openapi::api::core::v1::Container| {
            self.view.container(&container.name).is_some()
        };
        if self.restarting == Restarting::Starting && podutil::spec(&self.pod).containers.iter().all(here) {
            self.restarting = Restarting::No;
        }
        self.current = status::generate(&status::Inputs {
            pod: &self.pod,
            view: &self.view,
            probes: &self.probed,
            waiting: &self.waiting,
            previous: &self.current,
            host_ips: &self.context.config.node_ips,
            terminal: self.ended || gone,
            gone,
            verdict: self.verdict.as_ref(),
            refused: self.refused,
            resize: &self.resize,
            rules: self.context.rules,
            devices: Some((&self.context.devices, &self.context.claims)),
            restarting: self.restarting,
            now,
        });
        if self.current.phase.as_deref() != Some("Pending")
            && let Some(seen) = self.seen.take()
            && self.current.phase.as_deref() == Some("Running")
            && self.sent.phase.as_deref() != Some("Running")
        {
            self.started(seen.elapsed(), now);
        }
    }

    /// Notes how long the pod took to run.
    fn started(&self, since_seen: Duration, now: Timestamp) {
        let metrics = &self.context.metrics;
        metrics.took(POD_START, &[], since_seen);
        let created = self.pod.metadata.creation_timestamp.as_ref();
        if let Some(time) = created.and_then(|created| Duration::try_from(now.duration_since(created.0)).ok())
        {
            metrics.took(POD_START_TOTAL, &[], time);
            // What init containers take does not count, so a pod with any is left out.
            if podutil::init_containers(&self.pod).is_empty() {
                metrics.took(POD_START_SLI, &[], time);
            }
        }
    }

    pub(super) fn send_status(&mut self) {
        if self.removed || self.deleted {
            return;
        }
        let now = Instant::now();
        let deleting = podutil::deleting(&self.pod);
        if self.stage == Stage::Finished && deleting && self.current == self.sent && !self.blocked(DELETE) {
            let (context, pod) = (self.context.clone(), self.pod.clone());
            self.spawn(DELETE, async move { Done::Delete(api::delete(&context, &pod).await) });
            return;
        }
        if self.current == self.sent {
            self.send_after = None;
            return;
        }
        let target =
            if static_pods::is_static(&self.pod) { self.mirror.clone() } else { Some(self.pod.clone()) };
        let Some(target) = target.filter(|_| !self.blocked(STATUS)) else { return };
        let starting = self.stage == Stage::Running && self.busy.iter().any(|key| key != STATUS);
        let at = *self.send_after.get_or_insert(if starting { now + COALESCE } else { now });
        if starting && at > now {
            return;
        }
        self.send_after = None;
        let context = self.context.clone();
        let (status, sent) = (self.current.clone(), self.sent.clone());
        self.spawn(STATUS, async move {
            let begun = std::time::Instant::now();
            let result = api::write_status(&context, &target, &sent, &status).await;
            if result.is_ok() {
                context.metrics.took(POD_STATUS_SYNC, &[], begun.elapsed());
            }
            Done::Status(Box::new(status), result)
        });
    }

    /// Removes what the runtime still remembers of the pod, and its logs.
    pub(super) async fn remove_records(&self) {
        let ids = self.view.sandbox.iter().map(|sandbox| &sandbox.id).chain(&self.view.stale);
        for id in ids {
            failpoint::step("kubelet.delete.sandbox");
            let request = cri::v1::RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
            if let Err(status) = self.context.cri.runtime().remove_pod_sandbox(request).await {
                tracing::warn!(status = status.message(), "cannot remove a sandbox");
            }
        }
        let logs = self.context.config.pod_logs_dir.join(crate::sandbox::log_dir(&self.pod));
        failpoint::step("kubelet.delete.logs");
        if let Err(error) = tokio::fs::remove_dir_all(&logs).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %logs.display(), "cannot remove a pod's logs");
        }
    }
}
