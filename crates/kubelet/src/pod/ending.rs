//! How a worker ends containers, and its pod as a whole: what is stopped, with how much grace, and what is taken away after that.

use super::{CLEAN, Done, POD, SANDBOX, Stage, VOLUMES, Worker, api, kill};
use crate::plan::{self, KillReason};
use crate::podutil::{self, spec};
use crate::static_pods;

impl Worker {
    pub(super) fn kill(&mut self, kill: plan::Kill) {
        let Some((container, kind)) = podutil::container(&self.pod, &kill.name) else { return };
        let default = spec(&self.pod).termination_grace_period_seconds.unwrap_or(30);
        let own = match kill.reason {
            KillReason::Liveness => container.liveness_probe.as_ref(),
            KillReason::Startup => container.startup_probe.as_ref(),
            _ => None,
        };
        let grace = own.and_then(|probe| probe.termination_grace_period_seconds).unwrap_or(default);
        let order = kill::Order {
            context: self.context.clone(),
            pod: self.pod.clone(),
            container: Some(container),
            kind,
            id: kill.id,
            ip: self.view.ips().into_iter().next().unwrap_or_default(),
            message: kill.message,
            least: kill::LEAST_GRACE,
        };
        let name = kill.name;
        self.spawn(&name.clone(), async move {
            order.carry_out(grace).await;
            Done::Kill(name)
        });
    }

    /// Seconds that the pod's containers have to end by themselves.
    fn grace(&self) -> i64 {
        let wanted = spec(&self.pod).termination_grace_period_seconds.unwrap_or(30);
        let grace = if podutil::deleting(&self.pod) {
            self.pod.metadata.deletion_grace_period_seconds.unwrap_or(wanted)
        } else if let Some(grace) = self.evicted {
            grace
        } else if self.removed && !static_pods::is_static(&self.pod) {
            1
        } else {
            wanted
        };
        grace.max(1)
    }

    pub(super) fn terminate(&mut self) {
        let starting = self.busy.iter().any(|key| key == SANDBOX || !key.starts_with('/'));
        let quiet = !self.view.any_running() && !self.view.sandbox_ready();
        if quiet && !starting && !self.busy.contains(POD) {
            self.stage = Stage::Cleaning;
            self.inbox.set_quiet();
            return;
        }
        let grace = self.grace();
        if let Some((under_way, task)) = &self.killing {
            // A shorter grace replaces the stop under way; a longer one does not.
            if self.busy.contains(POD) && grace >= *under_way {
                return;
            }
            task.abort();
            self.busy.remove(POD);
        }
        if starting && !self.view.any_running() && !self.view.sandbox_ready() || self.blocked(POD) {
            return;
        }
        self.stop_all(grace);
    }

    pub(super) fn stop_all(&mut self, grace: i64) {
        let (context, pod, view) = (self.context.clone(), self.pod.clone(), self.view.clone());
        let forced = self.removed && !static_pods::is_static(&self.pod)
            || podutil::deleting(&self.pod) && self.pod.metadata.deletion_grace_period_seconds == Some(0);
        let least = if forced { kill::LEAST_GRACE_FORCED } else { kill::LEAST_GRACE };
        let stopped = async move { Done::KillPod(kill::pod(context, pod, view, grace, least).await) };
        let task = self.spawn(POD, stopped);
        self.killing = Some((grace, task));
    }

    pub(super) fn clean(&mut self) {
        let (context, pod) = (self.context.clone(), self.pod.clone());
        if self.busy.contains(VOLUMES) || !self.cut_off.is_empty() {
            return;
        }
        self.mounted = None;
        self.context.allocations.release(podutil::uid(&self.pod));
        self.context.pinning.release(&self.pod);
        self.context.devices.release(podutil::uid(&self.pod));
        self.spawn(CLEAN, async move { Done::Clean(api::clean(&context, &pod).await) });
    }
}
