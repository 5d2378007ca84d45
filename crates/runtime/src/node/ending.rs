//! Containers: stopping and removing them, and what is noted when one ends.

use std::sync::Arc;
use std::time::Duration;

use cri::v1::ContainerEventType;
use failpoint::step;

use super::records::{ContainerRecord, Phase};
use super::{Node, blocking, edits, short};
use crate::error::Error;
use crate::shim::protocol::{Exit, Request};

/// How long killed processes may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(20);

impl Node {
    /// Asks a container to end, and ends it when `timeout` seconds have passed. Repeatable.
    pub async fn stop_container(self: &Arc<Self>, id: &str, timeout: i64) -> Result<(), Error> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let mut changes = container.record.subscribe();
        let record = changes.borrow().clone();
        if record.phase() != Phase::Running {
            return Ok(());
        }
        let sandbox = self.sandbox(&container.sandbox)?;
        let ended = |r: &ContainerRecord| r.phase() == Phase::Exited;
        if let Ok(seconds @ 1..) = u64::try_from(timeout) {
            let signal = Request::Signal { id: container.id.clone(), signal: record.stop_signal, all: false };
            step("container.stop.signal");
            let _ = sandbox.shim.ask(&signal).await;
            let grace = Duration::from_secs(seconds);
            if tokio::time::timeout(grace, changes.wait_for(ended)).await.is_ok() {
                return Ok(());
            }
        }
        step("container.stop.kill");
        let kill = Request::Signal { id: container.id.clone(), signal: libc::SIGKILL, all: true };
        if let Err(error) = sandbox.shim.ask(&kill).await {
            tracing::warn!(container = container.id, %error, "the shim cannot kill; the cgroup is killed instead");
            self.cgroups.kill(&record.cgroup);
            self.lost_container(&container.id, &container.sandbox);
        }
        match tokio::time::timeout(KILL_WAIT, changes.wait_for(ended)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Timeout(format!(
                "container {} did not end within {} s of being killed",
                container.id,
                KILL_WAIT.as_secs()
            ))),
        }
    }

    /// Removes a container, ending it if it runs. Repeatable.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let _busy = container.busy.lock().await;
        self.stop_container(&container.id, 0).await?;
        step("container.remove.shim");
        if let Ok(sandbox) = self.sandbox(&container.sandbox)
            && sandbox.record.lock().ready
        {
            let _ = sandbox.shim.ask(&Request::Forget { id: container.id.clone() }).await;
        }
        let cgroup = container.record.borrow().cgroup.clone();
        let node = self.clone();
        step("container.remove.cgroup");
        blocking(move || Ok(node.cgroups.remove(&cgroup)?)).await?;
        let bundle = self.sandbox_mounts(&container.sandbox).join(short(&container.id));
        let name = container.id.clone();
        blocking(move || {
            edits::after_stop(&bundle, &name);
            Ok(())
        })
        .await?;
        step("container.remove.bundle");
        let _ = std::fs::remove_dir_all(self.sandbox_mounts(&container.sandbox).join(short(&container.id)));
        let _ =
            std::fs::remove_file(self.shim_dir(&container.sandbox).join(format!("exit-{}", container.id)));
        step("container.remove.record");
        self.discard(&self.container_dir(&container.id));
        step("container.remove.done");
        self.containers.lock().remove(&container.id);
        self.announce(&container.id, &container.sandbox, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Notes the end of a container.
    pub(super) fn ended(&self, id: &str, exit: &Exit) {
        let Ok(container) = self.container(id) else { return };
        let mut news = false;
        self.change(&container, |r| {
            if r.phase() == Phase::Exited {
                return;
            }
            news = true;
            r.phase = Phase::Exited as i32;
            r.exit_code = exit.code;
            r.finished_at = exit.at;
            if r.started_at == 0 {
                r.started_at = exit.at;
            }
            r.reason = match (exit.oom && exit.code != 0, exit.code) {
                (true, _) => "OOMKilled",
                (_, 0) => "Completed",
                _ => "Error",
            }
            .into();
        });
        if news {
            self.announce(&container.id, &container.sandbox, ContainerEventType::ContainerStoppedEvent);
        }
    }
}
