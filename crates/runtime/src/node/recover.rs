//! What a start finds: sandboxes that run on, others whose shim is gone, and leftovers of interrupted work.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use cri::v1::NamespaceMode;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::sync::watch;

use super::client::{Shim, Subscription};
use super::cni::Pod;
use super::records::{ContainerRecord, Phase, SandboxRecord, load};
use super::{Container, Node, Sandbox, blocking, make_dir, now, short};
use crate::error::Error;
use crate::shim::protocol::{ContainerState, Event, Exit};

/// What a container is said to have ended with when nobody saw it end.
const LOST: i32 = 255;

impl Node {
    /// Finds all that is there, connects to the shims that live, and removes leftovers.
    pub async fn recover(self: &Arc<Self>) -> Result<(), Error> {
        self.prepare_mounts()?;
        let node = self.clone();
        blocking(move || node.load_records()).await?;
        for sandbox in self.sandboxes() {
            let record = sandbox.record.lock().clone();
            let alive = record.ready && record.boot == self.boot && self.follow(&sandbox).await.is_ok();
            if !alive {
                self.lost(&sandbox).await;
            }
            if record.making {
                tracing::info!(sandbox = sandbox.id, "a half-made sandbox is removed");
                self.undo_sandbox(&sandbox).await?;
            }
        }
        let node = self.clone();
        blocking(move || {
            node.remove_leftovers();
            node.check_networks();
            let known: Vec<String> =
                node.sandboxes().iter().filter(|s| s.record.lock().ready).map(|s| s.id.clone()).collect();
            if let Err(error) = node.network.collect(&known) {
                tracing::warn!(%error, "cannot remove what is left of networks");
            }
            Ok(())
        })
        .await
    }

    /// Tells of sandboxes that lost their network while nobody looked; to make them anew is the kubelet's to decide.
    fn check_networks(&self) {
        for sandbox in self.sandboxes() {
            let record = sandbox.record.lock().clone();
            let own = super::sandbox::namespaces(&record.config).network != NamespaceMode::Node as i32;
            if !record.ready || !own {
                continue;
            }
            let netns = format!("/proc/{}/ns/net", record.shim);
            let dir = self.sandbox_dir(&record.id);
            let pod =
                Pod { id: &record.id, dir: &dir, netns: Some(Path::new(&netns)), config: &record.config };
            if let Err(error) = self.network.check(&pod) {
                tracing::warn!(sandbox = record.id, %error, "a sandbox's network is not what it was");
            }
        }
    }

    /// Everything that containers mount is below one mount that passes nothing on.
    fn prepare_mounts(&self) -> Result<(), Error> {
        let dir = self.mounts_dir();
        make_dir(&dir, 0o711)?;
        let table =
            std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read the mount table"))?;
        let real = std::fs::canonicalize(&dir).map_err(Error::io("resolve the mount directory"))?;
        let mounted = |line: &str| line.split(' ').nth(4) == Some(&real.to_string_lossy());
        if !table.lines().any(mounted) {
            let none = None::<&str>;
            mount(Some(&dir), &dir, none, MsFlags::MS_BIND, none)
                .and_then(|()| mount(none, &dir, none, MsFlags::MS_PRIVATE, none))
                .map_err(|e| Error::io(format!("bind {}", dir.display()))(e.into()))?;
        }
        Ok(())
    }

    fn load_records(&self) -> Result<(), Error> {
        for dir in entries(&self.config.root.join("pods")) {
            match load::<SandboxRecord>(&dir) {
                Ok(record) => {
                    let sandbox = Sandbox {
                        id: record.id.clone(),
                        shim: Shim::new(self.shim_dir(&record.id)),
                        record: record.into(),
                        busy: tokio::sync::Mutex::default(),
                    };
                    self.sandboxes.lock().insert(sandbox.id.clone(), Arc::new(sandbox));
                }
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "a half-made sandbox is removed");
                    let _ = std::fs::remove_dir_all(&dir);
                }
            }
        }
        for dir in entries(&self.config.root.join("containers")) {
            match load::<ContainerRecord>(&dir) {
                Ok(record) if self.sandboxes.lock().contains_key(&record.sandbox) => {
                    let container = Container {
                        id: record.id.clone(),
                        sandbox: record.sandbox.clone(),
                        record: watch::channel(record).0,
                        busy: tokio::sync::Mutex::default(),
                    };
                    self.containers.lock().insert(container.id.clone(), Arc::new(container));
                }
                _ => drop(std::fs::remove_dir_all(&dir)),
            }
        }
        for dir in entries(&self.config.root.join("trash")) {
            let _ = std::fs::remove_dir_all(&dir);
        }
        Ok(())
    }

    /// Connects to a shim, takes over what it knows, and from then on what it tells.
    pub(super) async fn follow(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let (states, subscription) = sandbox.shim.subscribe().await?;
        self.adopt(sandbox, &states);
        let (node, sandbox) = (Arc::downgrade(self), sandbox.clone());
        tokio::spawn(async move { watch_shim(node, sandbox, subscription).await });
        Ok(())
    }

    fn adopt(&self, sandbox: &Sandbox, states: &[ContainerState]) {
        for container in self.containers_of(&sandbox.id) {
            match states.iter().find(|s| s.id == container.id) {
                Some(state) => {
                    if container.phase() == Phase::Created {
                        // The runtime ended between the start and the note of it.
                        self.change(&container, |r| {
                            r.phase = Phase::Running as i32;
                            r.started_at = state.started_at;
                            r.pid = state.pid;
                        });
                    }
                    if let Some(exit) = &state.exit {
                        self.ended(&container.id, exit);
                    }
                }
                None if container.phase() == Phase::Running => {
                    self.lost_container(&container.id, &sandbox.id)
                }
                None => {}
            }
        }
    }

    /// The shim is gone: whatever it held is ended.
    pub(super) async fn lost(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        self.end_containers(sandbox);
        if let Err(error) = self.take_down(sandbox).await {
            tracing::warn!(sandbox = sandbox.id, %error, "cannot clean up after a sandbox");
        }
    }

    fn end_containers(&self, sandbox: &Sandbox) {
        for container in self.containers_of(&sandbox.id) {
            if container.phase() == Phase::Running {
                self.cgroups.kill(&container.record.borrow().cgroup);
                self.lost_container(&container.id, &sandbox.id);
            }
        }
    }

    /// Notes the end of a container that no shim can tell of any more.
    pub(super) fn lost_container(&self, id: &str, sandbox: &str) {
        let saved = std::fs::read(self.shim_dir(sandbox).join(format!("exit-{id}")));
        let exit = saved.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        self.ended(id, &exit.unwrap_or(Exit { code: LOST, at: now(), oom: false }));
    }

    /// Directories and mounts that no sandbox owns.
    fn remove_leftovers(&self) {
        let known: Vec<String> = self
            .sandboxes()
            .iter()
            .filter(|s| s.record.lock().ready)
            .map(|s| short(&s.id).to_owned())
            .collect();
        let ours = |dir: &Path| {
            dir.file_name().is_some_and(|n| known.iter().any(|k| n.to_str() == Some(k.as_str())))
        };
        for dir in entries(&self.mounts_dir()).filter(|d| !ours(d)) {
            let _ = umount2(&dir.join("shm"), MntFlags::MNT_DETACH);
            let _ = std::fs::remove_dir_all(&dir);
        }
        for dir in entries(&self.config.state_dir.join("p")).filter(|d| !ours(d)) {
            let _ = std::fs::remove_dir_all(&dir);
        }
        self.remove_lost_shims();
        let containers = self.containers();
        let used: BTreeSet<String> = containers.iter().map(|c| c.record.borrow().cgroup.clone()).collect();
        let names: BTreeSet<&str> = containers.iter().map(|c| short(&c.id)).collect();
        for sandbox in self.sandboxes() {
            let group = sandbox.record.lock().cgroup.clone();
            for child in self.cgroups.children(&group).into_iter().filter(|c| is_id(c)) {
                let group = format!("{group}/{child}");
                if !used.contains(&group) {
                    let _ = self.cgroups.remove(&group);
                }
            }
            // A container that was being made has a place among its pod's mounts, but no record.
            for place in entries(&self.sandbox_mounts(&sandbox.id)) {
                let name = place.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                if name != "shm" && !names.contains(name.as_str()) {
                    let _ = std::fs::remove_dir_all(&place);
                }
            }
        }
        let parent = &self.config.cgroup_parent;
        for child in self.cgroups.children(parent).into_iter().filter(|c| is_id(c)) {
            if self.sandbox(&child).is_err() {
                let _ = self.cgroups.remove(&format!("{parent}/{child}"));
            }
        }
    }

    /// Shims that no sandbox has: their directory or record went before they did.
    fn remove_lost_shims(&self) {
        let known: BTreeSet<i32> = self.sandboxes().iter().map(|s| s.record.lock().shim).collect();
        for pid in self.cgroups.processes(&self.config.shim_cgroup) {
            if !known.contains(&pid)
                && let Some(started) = crate::shim::sys::start_time(pid)
            {
                kill_shim(pid, started);
            }
        }
    }
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

async fn watch_shim(node: std::sync::Weak<Node>, sandbox: Arc<Sandbox>, mut subscription: Subscription) {
    loop {
        let event = subscription.next().await;
        let Some(node) = node.upgrade() else { return };
        match event {
            Ok(Event::Exit { id, exit }) => node.ended(&id, &exit),
            Err(_) => {
                // Nothing else will tell of its containers. Who is busy with the sandbox may wait for their ends.
                node.end_containers(&sandbox);
                // Stopping a sandbox ends its shim too; only an end that nobody asked for is a loss.
                let _busy = sandbox.busy.lock().await;
                if sandbox.record.lock().ready {
                    tracing::warn!(sandbox = sandbox.id, "the shim has gone; its containers are ended");
                    node.lost(&sandbox).await;
                }
                return;
            }
        }
    }
}

/// Ends a process if it is the shim that was started then.
pub(super) fn kill_shim(pid: i32, started: u64) {
    if pid <= 1 || started == 0 || crate::shim::sys::start_time(pid) != Some(started) {
        return;
    }
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() == "carrack-shim" {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = std::path::PathBuf> + use<> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path())
}
