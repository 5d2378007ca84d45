//! Containers: making, starting and changing them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::v1::{
    ContainerConfig, ContainerEventType, LinuxContainerResources, NamespaceMode, PodSandboxConfig,
    security_profile::ProfileType,
};
use failpoint::step;
use tokio::sync::watch;

use super::edits::{Edits, Subject};
use super::records::{ContainerRecord, Phase, SandboxRecord, save};
use super::sandbox::{namespaces, user_map};
use super::{Container, Node, Sandbox, blocking, devices, make_dir, new_id, now, short};
use crate::error::Error;
use crate::images::content::digest;
use crate::shim::protocol::{Finish, ImageMount, Reply, Request, Staged, StartPlan};
use crate::shim::userns;
use crate::spec::{self, PidNamespace, SandboxFiles, seccomp, user};

/// What a container that could not be started is said to have ended with.
const START_FAILED: i32 = 128;

impl Node {
    /// Prepares a container, or finds the one that an earlier, equal call prepared.
    pub async fn create_container(
        self: &Arc<Self>,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox_config: Option<PodSandboxConfig>,
    ) -> Result<String, Error> {
        let sandbox = self.sandbox(sandbox_id)?;
        if !sandbox.record.lock().ready {
            return Err(Error::State(format!("sandbox {} is not running", sandbox.id)));
        }
        self.await_toolbox(&config.image.clone().unwrap_or_default().image).await;
        let node = self.clone();
        // Goes on even if the caller goes away: a container that nobody knows of would stay, and so would the folders that are
        // made for its mounts.
        tokio::spawn(async move { node.create_in(&sandbox, config, sandbox_config).await })
            .await
            .map_err(|e| Error::Internal(e.to_string()))?
    }

    async fn create_in(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        config: ContainerConfig,
        sandbox_config: Option<PodSandboxConfig>,
    ) -> Result<String, Error> {
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Error::Invalid("container config has no metadata".into()))?;
        // Names are per pod; the end of the pod waits for this.
        let _busy = sandbox.busy.lock().await;
        let pod = sandbox.record.lock().clone();
        if !pod.ready {
            return Err(Error::State(format!("sandbox {} is not running", sandbox.id)));
        }
        for other in self.containers_of(&sandbox.id) {
            let record = other.record.borrow().clone();
            if record.config.metadata.as_ref() == Some(&metadata) {
                if record.phase() == Phase::Created {
                    return Ok(other.id.clone());
                }
                let name = format!("{}_{}", metadata.name, metadata.attempt);
                return Err(Error::State(format!("container name {name} is taken by {}", other.id)));
            }
        }
        let wanted = config.image.clone().unwrap_or_default().image;
        let node = self.clone();
        let container = blocking(move || node.prepare(&pod, config, sandbox_config, &wanted)).await?;
        let id = container.id.clone();
        self.containers.lock().insert(id.clone(), container);
        self.announce(&id, &sandbox.id, ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    fn prepare(
        &self,
        pod: &SandboxRecord,
        config: ContainerConfig,
        sandbox_config: Option<PodSandboxConfig>,
        wanted: &str,
    ) -> Result<Arc<Container>, Error> {
        let id = new_id();
        let dir = self.container_dir(&id);
        let bundle = self.sandbox_mounts(&pod.id).join(short(&id));
        let made = self.fill(pod, config, sandbox_config.as_ref(), wanted, &id, &dir, &bundle);
        if made.is_err() {
            let _ = std::fs::remove_dir_all(&dir);
            let _ = std::fs::remove_dir_all(&bundle);
        }
        let record = made?;
        Ok(Arc::new(Container {
            id,
            sandbox: pod.id.clone(),
            record: watch::channel(record).0,
            busy: tokio::sync::Mutex::default(),
        }))
    }

    fn fill(
        &self,
        pod: &SandboxRecord,
        config: ContainerConfig,
        sandbox_config: Option<&PodSandboxConfig>,
        wanted: &str,
        id: &str,
        dir: &Path,
        bundle: &Path,
    ) -> Result<ContainerRecord, Error> {
        let image = self
            .images
            .get(wanted)
            .ok_or_else(|| Error::NotFound { kind: "image", id: wanted.to_owned() })?;
        let context = spec::security(&config);
        let read = |path| {
            let bytes = self.images.layers.read(&image.layers, path).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let mut user = user::resolve(&context, &image.config.user, &read("etc/passwd"), &read("etc/group"))
            .map_err(Error::Invalid)?;
        let (capabilities, ambient) = spec::kept_capabilities(&context)?;
        let resources = config.linux.as_ref().and_then(|l| l.resources.clone());

        step("container.create.directory");
        make_dir(dir, 0o711)?;
        for part in ["upper", "work"] {
            step("container.create.parts");
            make_dir(&dir.join(part), 0o755)?;
        }
        step("container.create.bundle");
        make_dir(&bundle.join("rootfs"), 0o711)?;
        let mut layers = image.layers.clone();
        let mut image_mounts = Vec::new();
        let images = config.mounts.iter().filter_map(|m| Some((m.image.as_ref()?, &m.image_sub_path)));
        for (number, (volume, sub_path)) in images.enumerate() {
            let found = self
                .images
                .get(&volume.image)
                .ok_or_else(|| Error::NotFound { kind: "image", id: volume.image.clone() })?;
            layers.extend(found.layers.iter().cloned());
            let at = bundle.join(format!("image-{number}"));
            image_mounts.push(ImageMount {
                lower: found.layers.clone(),
                at: at.to_string_lossy().into_owned(),
                sub_path: sub_path.clone(),
            });
        }
        for mount in config.mounts.iter().filter(|m| m.image.is_none() && !m.host_path.is_empty()) {
            if !Path::new(&mount.host_path).exists() {
                make_dir(Path::new(&mount.host_path), 0o755)?;
            }
        }

        let cgroup = format!("{}/{id}", pod.cgroup);
        let pod_config = sandbox_config.unwrap_or(&pod.config);
        let pid = self.pid_namespace(pod, &config)?;
        let mut found = Vec::new();
        if context.privileged {
            found = devices::all();
        }
        for device in &config.devices {
            found.extend(devices::find(&device.host_path, &device.container_path, &device.permissions)?);
        }
        let mut edits = Edits::of_devices(&config, &self.config.cdi_dirs)?;
        found.append(&mut edits.devices);
        user.groups.extend(
            edits.groups.iter().filter(|gid| !user.groups.contains(gid)).copied().collect::<Vec<_>>(),
        );
        let command = spec::command(&config, &image.config)?;
        let annotations = pod.config.annotations.iter().chain(&config.annotations);
        edits.add_hooks(
            &self.config.hooks_dirs,
            &Subject {
                annotations: annotations.map(|(key, value)| (key.as_str(), value.as_str())).collect(),
                command: &command[0],
                has_bind_mounts: config.mounts.iter().any(|mount| mount.image.is_none()),
            },
        )?;
        let own_ipc = namespaces(&pod.config).ipc != NamespaceMode::Node as i32;
        let files = self.sandbox_dir(&pod.id);
        let input = spec::Input {
            config: &config,
            sandbox: pod_config,
            image: &image.config,
            user: &user,
            rootfs: &bundle.join("rootfs"),
            cgroup: &cgroup,
            pid,
            cgroup_view: (!self.cgroups.unified()).then(|| bundle.join("cgroup")),
            files: SandboxFiles {
                shm: if own_ipc {
                    self.sandbox_mounts(&pod.id).join("shm")
                } else {
                    PathBuf::from("/dev/shm")
                },
                resolv_conf: Some(files.join("resolv.conf")),
                hostname: Some(files.join("hostname")),
            },
            devices: found,
            env: edits.env,
            mounts: edits.mounts,
            hooks: serde_json::json!(edits.hooks),
            image_volumes: image_mounts.iter().map(|m| PathBuf::from(m.source())).collect(),
        };
        let mut bundle_config = spec::build(&input)?;
        let map = user_map(&namespaces(&pod.config))?;
        let (mut stage, mut staged) = (String::new(), Vec::new());
        if map.is_some() {
            let layers = self.images.layers.root().to_owned();
            let parts = [bundle, dir, layers.as_path()];
            let free = userns::stage(&parts).ok_or_else(|| {
                Error::State(
                    "no folder is free to put a container's root together for a user namespace".into(),
                )
            })?;
            free.clone_into(&mut stage);
            staged = put_in_namespace(&mut bundle_config, free, &self.shim_dir(&pod.id), &config);
        }
        let text = serde_json::to_vec(&bundle_config).map_err(|e| Error::Internal(e.to_string()))?;
        step("container.create.config");
        std::fs::write(bundle.join("config.json"), text).map_err(Error::io("write the bundle"))?;

        let log_path = if config.log_path.is_empty() || pod_config.log_directory.is_empty() {
            String::new()
        } else {
            Path::new(&pod_config.log_directory).join(&config.log_path).to_string_lossy().into_owned()
        };
        let path = |p: PathBuf| p.to_string_lossy().into_owned();
        let plan = StartPlan {
            id: id.to_owned(),
            bundle: path(bundle.to_owned()),
            layers: path(self.images.layers.root().to_owned()),
            lower: image.layers.clone(),
            upper: path(dir.join("upper")),
            work: path(dir.join("work")),
            image_mounts,
            cgroup_view: if self.cgroups.unified() { Vec::new() } else { self.cgroups.view(&cgroup) },
            cgroup_writable: context.privileged,
            log: log_path.clone(),
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            cgroup_procs: self.cgroups.procs_files(&cgroup),
            unified: self.cgroups.unified(),
            late_limits: Vec::new(),
            cgroups: self.cgroups.dirs(&cgroup),
            oom_events: self.cgroups.oom_file(&cgroup),
            oom_score_adj: resources.as_ref().and_then(|r| i32::try_from(r.oom_score_adj).ok()),
            finish: Finish {
                capabilities,
                ambient,
                seccomp: self.seccomp(&context, capabilities)?,
                no_new_privileges: context.no_new_privs,
                propagation: spec::propagation(&config),
                late_dev: spec::late_dev(&config),
            },
            user: map,
            stage,
            staged,
        };
        let plan =
            serde_json::to_vec(&Prepared { plan, devices: self.device_rules(&context, &input.devices) })
                .map_err(|e| Error::Internal(e.to_string()))?;
        let record = ContainerRecord {
            id: id.to_owned(),
            sandbox: pod.id.clone(),
            image: image.id.clone(),
            image_ref: image.digests.first().unwrap_or(&image.id).clone(),
            layers,
            phase: Phase::Created as i32,
            created_at: now(),
            cgroup,
            log_path,
            stop_signal: spec::stop_signal(&config, &image.config),
            resources,
            uid: user.uid,
            gid: user.gid,
            groups: user.groups.clone(),
            plan,
            config,
            ..ContainerRecord::default()
        };
        step("container.create.record");
        save(dir, &record).map_err(Error::io("save the container"))?;
        step("container.create.done");
        Ok(record)
    }

    fn pid_namespace(&self, pod: &SandboxRecord, config: &ContainerConfig) -> Result<PidNamespace, Error> {
        let options = spec::security(config).namespace_options;
        let mode = options.as_ref().map_or(namespaces(&pod.config).pid, |o| o.pid);
        Ok(match NamespaceMode::try_from(mode).unwrap_or(NamespaceMode::Container) {
            NamespaceMode::Node => PidNamespace::Host,
            NamespaceMode::Pod if pod.pause > 0 => PidNamespace::Join(format!("/proc/{}/ns/pid", pod.pause)),
            NamespaceMode::Pod | NamespaceMode::Container => PidNamespace::Own,
            NamespaceMode::Target => {
                let target = self.container(&options.unwrap_or_default().target_id)?;
                let record = target.record.borrow();
                if record.phase() != Phase::Running {
                    return Err(Error::State(format!("target container {} is not running", target.id)));
                }
                PidNamespace::Join(format!("/proc/{}/ns/pid", record.pid))
            }
        })
    }

    /// The file with the compiled filter; equal filters share one.
    fn seccomp(
        &self,
        context: &cri::v1::LinuxContainerSecurityContext,
        capabilities: u64,
    ) -> Result<String, Error> {
        if context.privileged {
            return Ok(String::new());
        }
        let Some(profile) = &context.seccomp else { return Ok(String::new()) };
        let bytes = match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => seccomp::default(capabilities)?,
            Ok(ProfileType::Localhost) => {
                let name = profile.localhost_ref.trim_start_matches("localhost/");
                seccomp::from_file(&self.config.seccomp_dir.join(name))?
            }
            _ => return Ok(String::new()),
        };
        let dir = self.config.state_dir.join("seccomp");
        make_dir(&dir, 0o711)?;
        let path = dir.join(&digest(&bytes)["sha256:".len()..]);
        if !path.exists() {
            let temporary = dir.join(new_id());
            std::fs::write(&temporary, bytes).map_err(Error::io("write the seccomp filter"))?;
            std::fs::rename(&temporary, &path).map_err(Error::io("write the seccomp filter"))?;
        }
        Ok(path.to_string_lossy().into_owned())
    }

    fn device_rules(
        &self,
        context: &cri::v1::LinuxContainerSecurityContext,
        devices: &[spec::Device],
    ) -> Option<Vec<String>> {
        (!context.privileged).then(|| devices.iter().map(spec::Device::rule).collect())
    }

    /// Starts a prepared container; to its end, even if the caller goes away.
    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let (node, container) = (self.clone(), self.container(id)?);
        tokio::spawn(async move { node.start(&container).await })
            .await
            .map_err(|e| Error::Internal(e.to_string()))?
    }

    async fn start(self: &Arc<Self>, container: &Container) -> Result<(), Error> {
        let _busy = container.busy.lock().await;
        match container.phase() {
            Phase::Running => return Ok(()),
            Phase::Exited => return Err(Error::State(format!("container {} has ended", container.id))),
            Phase::Created => {}
        }
        let sandbox = self.sandbox(&container.sandbox)?;
        let record = container.record.borrow().clone();
        let mut prepared: Prepared =
            serde_json::from_slice(&record.plan).map_err(|e| Error::Internal(e.to_string()))?;
        let (node, cgroup, resources) = (self.clone(), record.cgroup.clone(), record.resources.clone());
        let devices = prepared.devices;
        // Making the process costs CPU time that a small quota would stretch to seconds.
        if let Some(resources) = &resources {
            let late = self.cgroups.quota(&cgroup, resources).into_iter();
            prepared.plan.late_limits =
                late.map(|(path, value)| (path.to_string_lossy().into_owned(), value)).collect();
        }
        let limited = blocking(move || {
            step("container.start.cgroup");
            node.cgroups.create(&cgroup)?;
            step("container.start.limits");
            if let Some(resources) = &resources {
                node.cgroups.apply_early(&cgroup, resources)?;
            }
            Ok(node.cgroups.confine_devices(&cgroup, devices.as_deref())?)
        })
        .await;
        step("container.start.shim");
        let started = match limited {
            Ok(()) => sandbox.shim.call(&Request::Start(Box::new(prepared.plan))).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        match started {
            Ok(Reply::Started { pid }) => {
                step("container.start.record");
                self.change(container, |r| {
                    // A container may have ended before this line, and its end been told.
                    if r.phase() == Phase::Created {
                        r.phase = Phase::Running as i32;
                        r.started_at = now();
                    }
                    r.pid = pid;
                });
                step("container.start.done");
                self.announce(&container.id, &container.sandbox, ContainerEventType::ContainerStartedEvent);
                Ok(())
            }
            Ok(other) => Err(Error::Internal(format!("unexpected answer of the shim: {other:?}"))),
            Err(error) => {
                let error = Error::State(format!("failed to start the container's process: {error}"));
                let message = error.to_string();
                self.change(container, |r| {
                    r.phase = Phase::Exited as i32;
                    r.exit_code = START_FAILED;
                    r.finished_at = now();
                    r.reason = "StartError".into();
                    r.message = message;
                });
                let (node, cgroup) = (self.clone(), record.cgroup);
                let _ = blocking(move || Ok(node.cgroups.remove(&cgroup)?)).await;
                self.announce(&container.id, &container.sandbox, ContainerEventType::ContainerStoppedEvent);
                Err(error)
            }
        }
    }

    /// Changes limits while the container runs, or before.
    pub async fn update_container(
        self: &Arc<Self>,
        id: &str,
        resources: LinuxContainerResources,
    ) -> Result<(), Error> {
        let container = self.container(id)?;
        let _busy = container.busy.lock().await;
        let record = container.record.borrow().clone();
        if record.phase() == Phase::Exited {
            return Err(Error::State(format!("container {} has ended", container.id)));
        }
        if record.phase() == Phase::Running {
            let (node, change) = (self.clone(), resources.clone());
            blocking(move || Ok(node.cgroups.apply(&record.cgroup, &change)?)).await?;
        }
        self.change(&container, |r| {
            let now = r.resources.get_or_insert_default();
            merge(now, &resources);
        });
        Ok(())
    }

    /// Changes and saves a container's record.
    pub(super) fn change(&self, container: &Container, change: impl FnOnce(&mut ContainerRecord)) {
        container.record.send_modify(|record| {
            change(record);
            if let Err(error) = save(&self.container_dir(&record.id), record) {
                tracing::error!(container = record.id, %error, "cannot save the container's record");
            }
        });
    }
}

/// Has a bundle's container be in the pod's user namespace, and take its mounts from the stage. Gives what is to be there.
fn put_in_namespace(
    bundle: &mut serde_json::Value,
    stage: &str,
    shim: &Path,
    config: &ContainerConfig,
) -> Vec<Staged> {
    let namespace = shim.join(userns::LINK);
    if let Some(list) = bundle["linux"]["namespaces"].as_array_mut() {
        list.insert(0, serde_json::json!({"type": "user", "path": namespace}));
    }
    bundle["root"]["path"] = format!("{stage}/rootfs").into();
    let mut staged = Vec::new();
    for mount in bundle["mounts"].as_array_mut().into_iter().flatten() {
        if mount["type"] != "bind" {
            continue;
        }
        let at = format!("{stage}/m/{}", staged.len());
        let from = mount["source"].as_str().unwrap_or_default().to_owned();
        let mapped = config.mounts.iter().filter(|one| !one.uid_mappings.is_empty());
        let idmap = mapped.into_iter().any(|one| one.host_path == from);
        mount["source"] = at.clone().into();
        staged.push(Staged { from, at, idmap });
    }
    staged
}

/// What a start needs, made when the container is created.
#[derive(serde::Serialize, serde::Deserialize)]
struct Prepared {
    plan: StartPlan,
    devices: Option<Vec<String>>,
}

/// Takes over what is set.
fn merge(to: &mut LinuxContainerResources, from: &LinuxContainerResources) {
    let pick = |to: &mut i64, from: i64| {
        if from != 0 {
            *to = from;
        }
    };
    pick(&mut to.cpu_period, from.cpu_period);
    pick(&mut to.cpu_quota, from.cpu_quota);
    pick(&mut to.cpu_shares, from.cpu_shares);
    pick(&mut to.memory_limit_in_bytes, from.memory_limit_in_bytes);
    pick(&mut to.memory_swap_limit_in_bytes, from.memory_swap_limit_in_bytes);
    pick(&mut to.oom_score_adj, from.oom_score_adj);
    if !from.cpuset_cpus.is_empty() {
        to.cpuset_cpus.clone_from(&from.cpuset_cpus);
    }
    if !from.cpuset_mems.is_empty() {
        to.cpuset_mems.clone_from(&from.cpuset_mems);
    }
    for limit in &from.hugepage_limits {
        to.hugepage_limits.retain(|known| known.page_size != limit.page_size);
        to.hugepage_limits.push(limit.clone());
    }
    to.unified.extend(from.unified.clone());
}
