//! Sandboxes: making, stopping and removing them.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use cri::v1::{
    ContainerEventType, IdMapping, LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use failpoint::step;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::client::Shim;
use super::cni::Pod;
use super::records::{Phase, SandboxRecord, save};
use super::recover::kill_shim;
use super::{Node, Sandbox, blocking, make_dir, new_id, now};
use crate::error::Error;
use crate::shim::protocol::{Ready, Request, SandboxPlan, UserMap};
use crate::shim::userns;

/// What a pod's `/dev/shm` holds at most.
const SHM_SIZE: &str = "size=67108864,mode=1777";

/// The pod's choice of namespaces.
pub fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
}

/// The numbers of the pod's user namespace, if it is to have one.
pub fn user_map(options: &NamespaceOption) -> Result<Option<UserMap>, Error> {
    let Some(wanted) = &options.userns_options else { return Ok(None) };
    match NamespaceMode::try_from(wanted.mode) {
        Ok(NamespaceMode::Node) => return Ok(None),
        Ok(NamespaceMode::Pod) => {}
        _ => return Err(Error::Invalid(format!("user namespace mode {} is unknown", wanted.mode))),
    }
    if !userns::supported() {
        return Err(Error::Invalid("this machine's kernel cannot put pods into user namespaces".into()));
    }
    let list =
        |maps: &[IdMapping]| maps.iter().map(|m| [m.container_id, m.host_id, m.length]).collect::<Vec<_>>();
    let map = UserMap { uids: list(&wanted.uids), gids: list(&wanted.gids) };
    let bad = |list: &[[u32; 3]]| {
        list.is_empty()
            || list.iter().any(|[from, to, count]| {
                *count == 0 || from.checked_add(*count).is_none() || to.checked_add(*count).is_none()
            })
    };
    if bad(&map.uids) || bad(&map.gids) {
        return Err(Error::Invalid("the user namespace's mappings are empty or out of range".into()));
    }
    Ok(Some(map))
}

impl Node {
    /// Makes a sandbox, or finds the one that an earlier, equal call made.
    pub async fn run_sandbox(
        self: &Arc<Self>,
        config: PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String, Error> {
        let metadata =
            config.metadata.clone().ok_or_else(|| Error::Invalid("sandbox config has no metadata".into()))?;
        if !runtime_handler.is_empty() && !self.config.handlers.contains(&runtime_handler) {
            return Err(Error::Invalid(format!("no runtime for {runtime_handler:?} is configured")));
        }
        let naming = self.naming.lock().await;
        for sandbox in self.sandboxes() {
            let record = sandbox.record.lock().clone();
            if record.config.metadata.as_ref() == Some(&metadata) {
                if record.making {
                    // The first call is still at work; this one shares its end.
                    drop(naming);
                    drop(sandbox.busy.lock().await);
                    return match sandbox.record.lock().ready {
                        true => Ok(sandbox.id.clone()),
                        false => Err(Error::State(format!("sandbox {} could not be made", sandbox.id))),
                    };
                }
                if record.ready {
                    return Ok(sandbox.id.clone());
                }
                let name = format!("{}_{}_{}", metadata.namespace, metadata.name, metadata.attempt);
                return Err(Error::State(format!(
                    "sandbox name {name} is taken by {}, which is stopped",
                    sandbox.id
                )));
            }
        }
        let id = new_id();
        let linux = config.linux.clone().unwrap_or_default();
        let cgroup = if linux.cgroup_parent.is_empty() {
            format!("{}/{id}", self.config.cgroup_parent)
        } else {
            linux.cgroup_parent.clone()
        };
        let record = SandboxRecord {
            id: id.clone(),
            config,
            created_at: now(),
            owns_cgroup: !self.cgroups.exists(&cgroup),
            cgroup,
            making: true,
            boot: self.boot.clone(),
            runtime_handler,
            ..SandboxRecord::default()
        };
        let sandbox = Arc::new(Sandbox {
            shim: Shim::new(self.shim_dir(&id)),
            record: record.into(),
            busy: tokio::sync::Mutex::default(),
            id: id.clone(),
        });
        let _busy = sandbox.busy.lock().await;
        self.sandboxes.lock().insert(id.clone(), sandbox.clone());
        drop(naming);

        let (node, made) = (self.clone(), sandbox.clone());
        let result = blocking(move || node.make(&made)).await;
        let result = match result {
            Ok(()) => self.follow(&sandbox).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.take_down(&sandbox).await?;
            self.undo_sandbox(&sandbox).await?;
            return Err(error);
        }
        self.announce(&id, &id, ContainerEventType::ContainerCreatedEvent);
        self.announce(&id, &id, ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    /// Everything about a new sandbox that blocks.
    fn make(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let mut record = sandbox.record.lock().clone();
        let config = record.config.clone();
        let options = namespaces(&config);
        let user = user_map(&options)?;
        let own = |mode: i32| mode != NamespaceMode::Node as i32;
        let (dir, mounts, shim_dir) =
            (self.sandbox_dir(&record.id), self.sandbox_mounts(&record.id), self.shim_dir(&record.id));
        step("sandbox.make.directory");
        make_dir(&dir, 0o711)?;
        step("sandbox.make.record");
        // Before anything is made outside of its directory, so that a restart knows what to undo.
        save(&dir, &record).map_err(Error::io("save the sandbox"))?;
        for dir in [&mounts, &shim_dir] {
            step("sandbox.make.places");
            make_dir(dir, 0o711)?;
        }
        if !config.log_directory.is_empty() {
            make_dir(Path::new(&config.log_directory), 0o755)?;
        }

        step("sandbox.make.cgroup");
        self.cgroups.create(&record.cgroup)?;
        self.cgroups.create(&self.config.shim_cgroup)?;
        let shm = mounts.join("shm");
        if own(options.ipc) {
            make_dir(&shm, 0o1777)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            step("sandbox.make.shm");
            mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM_SIZE))
                .map_err(|e| Error::io("mount /dev/shm")(e.into()))?;
            if let Some(map) = &user {
                let first = |list: &[[u32; 3]]| list.first().map(|[_, outside, _]| *outside);
                std::os::unix::fs::chown(&shm, first(&map.uids), first(&map.gids))
                    .map_err(Error::io("own /dev/shm"))?;
            }
        }
        step("sandbox.make.files");
        self.write_files(&dir, &config, own(options.network))?;

        let host_network = !own(options.network);
        let plan = SandboxPlan {
            network: !host_network,
            ipc: own(options.ipc),
            // A pod of the host's network has the host's name.
            uts: !host_network,
            pid: options.pid == NamespaceMode::Pod as i32,
            hostname: config.hostname.clone(),
            sysctls: config
                .linux
                .as_ref()
                .map(|l| l.sysctls.clone().into_iter().collect())
                .unwrap_or_default(),
            cgroup_procs: self.cgroups.procs_files(&self.config.shim_cgroup),
            user,
        };
        let text = serde_json::to_vec(&plan).map_err(|e| Error::Internal(e.to_string()))?;
        std::fs::write(shim_dir.join("sandbox.json"), text).map_err(Error::io("write sandbox.json"))?;
        step("sandbox.make.shim");
        match self.spawner.spawn(&shim_dir)? {
            Ready::Up { pid, pause } => {
                record.shim = pid;
                record.shim_started = crate::shim::sys::start_time(pid).unwrap_or(0);
                record.pause = pause.unwrap_or(0);
            }
            Ready::Failed(reason) => return Err(Error::State(format!("set up the sandbox: {reason}"))),
        }
        step("sandbox.make.network");
        if !host_network {
            let netns = format!("/proc/{}/ns/net", record.shim);
            let netns = Some(Path::new(&netns));
            let addresses = self.network.add(&Pod { id: &record.id, dir: &dir, netns, config: &config })?;
            record.addresses = addresses.iter().map(IpAddr::to_string).collect();
        }
        record.ready = true;
        record.making = false;
        step("sandbox.make.ready");
        save(&dir, &record).map_err(Error::io("save the sandbox"))?;
        *sandbox.record.lock() = record;
        step("sandbox.make.done");
        Ok(())
    }

    /// Writes what the pod's containers see as `/etc/resolv.conf` and `/etc/hostname`.
    fn write_files(&self, dir: &Path, config: &PodSandboxConfig, own_network: bool) -> Result<(), Error> {
        let resolv = match &config.dns_config {
            Some(dns) if !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()) => {
                let mut text = String::new();
                if !dns.searches.is_empty() {
                    text += &format!("search {}\n", dns.searches.join(" "));
                }
                for server in &dns.servers {
                    text += &format!("nameserver {server}\n");
                }
                if !dns.options.is_empty() {
                    text += &format!("options {}\n", dns.options.join(" "));
                }
                text
            }
            _ => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        };
        let hostname = if own_network && !config.hostname.is_empty() {
            config.hostname.clone()
        } else {
            nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
        };
        std::fs::write(dir.join("resolv.conf"), resolv).map_err(Error::io("write resolv.conf"))?;
        std::fs::write(dir.join("hostname"), hostname + "\n").map_err(Error::io("write hostname"))
    }

    /// Stops all containers and gives back the pod's network. Repeatable.
    pub async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        // A sandbox that is not there has been stopped and removed before.
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _busy = sandbox.busy.lock().await;
        for container in self.containers_of(&sandbox.id) {
            if container.phase() == Phase::Running {
                self.stop_container(&container.id, 0).await?;
            }
        }
        self.take_down(&sandbox).await?;
        self.announce(&sandbox.id, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
        Ok(())
    }

    /// Ends the shim and removes all that the sandbox has outside of its directory.
    pub(super) async fn take_down(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let record = sandbox.record.lock().clone();
        if record.ready {
            // From here on it is no sandbox to be used, even if this process ends before the rest is done.
            step("sandbox.stop.record");
            let mut stopping = record.clone();
            stopping.ready = false;
            save(&self.sandbox_dir(&record.id), &stopping).map_err(Error::io("save the sandbox"))?;
            sandbox.record.lock().ready = false;
        }
        step("sandbox.stop.network");
        if namespaces(&record.config).network != NamespaceMode::Node as i32 {
            let (node, made) = (self.clone(), record.clone());
            blocking(move || {
                let netns = format!("/proc/{}/ns/net", made.shim);
                let netns = Some(Path::new(&netns)).filter(|n| made.shim > 0 && n.exists());
                let dir = node.sandbox_dir(&made.id);
                node.network.del(&Pod { id: &made.id, dir: &dir, netns, config: &made.config })
            })
            .await?;
        }
        step("sandbox.stop.shim");
        if record.ready || self.shim_dir(&record.id).join("shim.sock").exists() {
            let _ = sandbox.shim.ask(&Request::Shutdown).await;
        }
        kill_shim(record.shim, record.shim_started);
        // Starts under way fail now, and are not to make anew what is removed next.
        for container in self.containers_of(&record.id) {
            drop(container.busy.lock().await);
        }
        step("sandbox.stop.cgroups");
        let node = self.clone();
        let (made, containers) = (record.clone(), self.containers_of(&record.id));
        blocking(move || {
            for container in containers {
                let cgroup = container.record.borrow().cgroup.clone();
                node.cgroups.remove(&cgroup)?;
            }
            let mounts = node.sandbox_mounts(&made.id);
            step("sandbox.stop.shm");
            let _ = umount2(&mounts.join("shm"), MntFlags::MNT_DETACH);
            step("sandbox.stop.mounts");
            let _ = std::fs::remove_dir_all(&mounts);
            step("sandbox.stop.places");
            let _ = std::fs::remove_dir_all(node.shim_dir(&made.id));
            Ok(())
        })
        .await?;
        let mut record = sandbox.record.lock();
        record.ready = false;
        record.shim = 0;
        record.pause = 0;
        step("sandbox.stop.done");
        save(&self.sandbox_dir(&record.id), &*record).map_err(Error::io("save the sandbox"))
    }

    /// Removes a sandbox with its containers. Repeatable.
    pub async fn remove_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let id = sandbox.id.clone();
        self.stop_sandbox(&id).await?;
        for container in self.containers_of(&id) {
            self.remove_container(&container.id).await?;
        }
        self.undo_sandbox(&sandbox).await?;
        self.announce(&id, &id, ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Removes what is left of a sandbox that was taken down.
    pub(super) async fn undo_sandbox(self: &Arc<Self>, sandbox: &Sandbox) -> Result<(), Error> {
        let record = sandbox.record.lock().clone();
        if record.owns_cgroup {
            step("sandbox.remove.cgroup");
            let (node, cgroup) = (self.clone(), record.cgroup);
            blocking(move || Ok(node.cgroups.remove(&cgroup)?)).await?;
        }
        step("sandbox.remove.record");
        self.forget_sandbox(&record.id);
        step("sandbox.remove.done");
        Ok(())
    }

    /// Changes the limits of a pod whose cgroup is this runtime's own; those of others are the kubelet's to change.
    pub async fn update_sandbox(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        overhead: Option<LinuxContainerResources>,
        resources: Option<LinuxContainerResources>,
    ) -> Result<(), Error> {
        let _busy = sandbox.busy.lock().await;
        let mut record = sandbox.record.lock().clone();
        if !record.ready {
            return Err(Error::State(format!("sandbox {} is not running", sandbox.id)));
        }
        let linux = record.config.linux.get_or_insert_default();
        linux.overhead = overhead.or(linux.overhead.take());
        linux.resources = resources.or(linux.resources.take());
        if record.owns_cgroup
            && let Some(resources) = linux.resources.clone()
        {
            let (node, cgroup) = (self.clone(), record.cgroup.clone());
            blocking(move || Ok(node.cgroups.apply(&cgroup, &resources)?)).await?;
        }
        save(&self.sandbox_dir(&record.id), &record).map_err(Error::io("save the sandbox"))?;
        *sandbox.record.lock() = record;
        Ok(())
    }

    fn forget_sandbox(&self, id: &str) {
        self.discard(&self.sandbox_dir(id));
        self.sandboxes.lock().remove(id);
    }
}
