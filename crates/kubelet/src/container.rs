//! A container as CRI wants it: command, environment, mounts, resources, security, log path.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cri::v1::{
    CdiDevice, ContainerConfig, ContainerMetadata, Device, Image, ImageSpec, KeyValue, LinuxContainerConfig,
    Mount, MountPropagation, Signal,
};
use k8s_openapi::api::core::v1::{Container, Pod, VolumeDevice, VolumeMount};

use crate::context::Context;
use crate::downward::Addresses;
use crate::env::{self, EnvError, Sources};
use crate::plan::{SPEC_HASH, spec_hash};
use crate::podutil;
use crate::runtime::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};
use crate::sandbox;
use crate::security;
use crate::volumes::{self, Mounted, VolumeError, mounts, pod_dir};

mod limits;

/// Annotation that keeps where, on the node, the container leaves its last words.
pub(crate) const TERMINATION_LOG: &str = "carrack.dev/termination-log";
pub(crate) const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";

/// Why a container cannot be described to the runtime.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("{0}")]
    Security(String),
    #[error("volume {0:?}: the runtime does not support recursive read-only mounts")]
    NoRecursive(String),
    #[error("cannot find volume {0:?} to mount into container {1:?}")]
    NoVolume(String, String),
}

/// Everything a description is made from.
pub(crate) struct Recipe<'a> {
    pub context: &'a Context,
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub attempt: u32,
    pub image: &'a Image,
    pub ips: &'a [String],
    pub mounted: &'a Mounted,
    /// Images behind the image volumes that it mounts, by volume.
    pub image_volumes: HashMap<String, Image>,
    /// Container id whose process namespace an ephemeral container joins.
    pub target: Option<String>,
}

impl Recipe<'_> {
    /// Describes the container, making the files that only it mounts.
    pub(crate) async fn config(&self) -> Result<ContainerConfig, ConfigError> {
        let Recipe { context, pod, container, .. } = self;
        let sources = Sources {
            objects: &context.objects,
            services: &context.services,
            addresses: Addresses { pod: self.ips, host: &context.config.node_ips },
            allocatable: &context.allocatable,
            mounted: self.mounted,
        };
        let variables = env::variables(pod, container, &sources).await?;
        let expand = |list: &Option<Vec<String>>| -> Vec<String> {
            let words = list.iter().flatten();
            words.map(|word| env::expand(word, |name| variables.get(name).cloned())).collect()
        };
        let (command, args) = (expand(&container.command), expand(&container.args));
        let (mounts, termination_log) =
            self.mounts(|text| env::expand(text, |name| variables.get(name).cloned()))?;
        let security = security::context(context, pod, container, self.image, self.target.clone())
            .map_err(ConfigError::Security)?;
        let labels = [
            (POD_NAME, podutil::name(pod)),
            (POD_NAMESPACE, podutil::namespace(pod)),
            (POD_UID, podutil::uid(pod)),
            (CONTAINER_NAME, &container.name),
        ];
        let policy = container.termination_message_policy.as_deref().unwrap_or("File");
        let annotations = [
            (SPEC_HASH, format!("{:x}", spec_hash(container))),
            (RESTART_COUNT, self.attempt.to_string()),
            (TERMINATION_LOG, termination_log),
            (TERMINATION_POLICY, policy.to_owned()),
        ];
        let equipment = context.devices.equipment(podutil::uid(pod), &container.name);
        let mut mounts = mounts;
        mounts.extend(equipment.mounts.iter().map(|(inside, host, read_only)| Mount {
            container_path: inside.clone(),
            host_path: host.clone(),
            readonly: *read_only,
            ..Mount::default()
        }));
        // A volume's files are seen with the numbers of the pod's user namespace.
        if let Some(user) = context.users.of(pod) {
            for mount in &mut mounts {
                mount.uid_mappings.clone_from(&user.uids);
                mount.gid_mappings.clone_from(&user.gids);
            }
        }
        let devices = equipment.devices.iter().map(|(inside, host, permissions)| Device {
            container_path: inside.clone(),
            host_path: host.clone(),
            permissions: permissions.clone(),
        });
        let stop = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: self.attempt }),
            image: Some(ImageSpec {
                image: self.image.id.clone(),
                user_specified_image: container.image.clone().unwrap_or_default(),
                ..ImageSpec::default()
            }),
            command,
            args,
            working_dir: container.working_dir.clone().unwrap_or_default(),
            // What devices need goes first: where the pod says otherwise, that holds.
            envs: equipment
                .envs
                .into_iter()
                .chain(variables)
                .map(|(key, value)| KeyValue { key, value: value.into_bytes().into() })
                .collect(),
            devices: devices.chain(self.devices()?).collect(),
            cdi_devices: equipment
                .cdi
                .into_iter()
                .chain(context.claims.cdi(pod, container))
                .map(|name| CdiDevice { name })
                .collect(),
            mounts,
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            annotations: annotations
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .chain(equipment.annotations)
                .collect(),
            log_path: format!("{}/{}.log", container.name, self.attempt),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
            linux: Some(LinuxContainerConfig {
                resources: Some(limits::of(context, pod, container)),
                security_context: Some(security),
            }),
            stop_signal: stop.and_then(Signal::from_str_name).map_or(0, |signal| signal as i32),
            ..ContainerConfig::default()
        })
    }

    /// The block volumes of the container.
    fn devices(&self) -> Result<Vec<Device>, ConfigError> {
        let one = |device: &VolumeDevice| {
            let missing = || ConfigError::NoVolume(device.name.clone(), self.container.name.clone());
            let (path, read_only) = self.mounted.devices.get(&device.name).ok_or_else(missing)?;
            Ok(Device {
                container_path: device.device_path.clone(),
                host_path: path.to_string_lossy().into_owned(),
                permissions: if *read_only { "mr" } else { "mrw" }.to_owned(),
            })
        };
        self.container.volume_devices.iter().flatten().map(one).collect()
    }

    fn mounts(&self, expand: impl Fn(&str) -> String) -> Result<(Vec<Mount>, String), ConfigError> {
        let Recipe { context, pod, container, .. } = self;
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            mounts.push(self.volume_mount(index, mount, &expand)?);
        }
        let base = pod_dir(&context.config.root_dir, podutil::uid(pod));
        let own = |path: &str| container.volume_mounts.iter().flatten().any(|mount| mount.mount_path == path);
        if !own("/etc/hosts") && (podutil::host_network(pod) || !self.ips.is_empty()) {
            let path = base.join("etc-hosts");
            failpoint::step("kubelet.container.hosts");
            write(&path, &sandbox::hosts_file(context, pod, self.ips), 0o644)?;
            mounts.push(plain("/etc/hosts", &path));
        }
        let dir = base.join("containers").join(&container.name);
        failpoint::step("kubelet.container.last_words");
        volumes::make_dir(&dir)?;
        let inside = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        let log = dir.join(format!("{:08x}", rand::random::<u32>()));
        write(&log, "", 0o666)?;
        mounts.push(plain(inside, &log));
        Ok((mounts, log.to_string_lossy().into_owned()))
    }

    fn volume_mount(
        &self,
        index: usize,
        mount: &VolumeMount,
        expand: impl Fn(&str) -> String,
    ) -> Result<Mount, ConfigError> {
        let missing = || ConfigError::NoVolume(mount.name.clone(), self.container.name.clone());
        let inside = if mount.mount_path.starts_with('/') {
            mount.mount_path.clone()
        } else {
            format!("/{}", mount.mount_path)
        };
        let read_only = mount.read_only == Some(true) || self.mounted.read_only.contains(&mount.name);
        let sub = match (&mount.sub_path_expr, &mount.sub_path) {
            (Some(text), _) if !text.is_empty() => expand(text),
            (_, Some(text)) => text.clone(),
            _ => String::new(),
        };
        if let Some(image) = self.mounted.images.get(&mount.name) {
            let image = self.image_volumes.get(&mount.name).map_or(image, |found| &found.id);
            return Ok(Mount {
                container_path: inside,
                readonly: true,
                image: Some(ImageSpec { image: image.clone(), ..ImageSpec::default() }),
                image_sub_path: sub,
                ..Mount::default()
            });
        }
        let volume = self.mounted.paths.get(&mount.name).ok_or_else(missing)?;
        let host = if sub.is_empty() {
            volume.clone()
        } else {
            if Path::new(&sub).is_absolute()
                || Path::new(&sub).components().any(|part| part.as_os_str() == "..")
            {
                return Err(VolumeError::Path(sub).into());
            }
            let base = pod_dir(&self.context.config.root_dir, podutil::uid(self.pod));
            let own = base.join("volume-subpaths").join(&mount.name).join(&self.container.name);
            // Containers have their own copies of mounts, so those of earlier attempts are of no more use.
            mounts::forget_attempts(&own, index)?;
            let target: PathBuf = own.join(format!("{index}-{}", self.attempt));
            mounts::bind_sub_path(volume, Path::new(&sub), &target)?;
            target
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            _ => MountPropagation::PropagationPrivate,
        };
        let can = self.context.features.of("").recursive_read_only_mounts;
        let recursive = match mount.recursive_read_only.as_deref() {
            Some("Enabled") if !can => return Err(ConfigError::NoRecursive(mount.name.clone())),
            Some("Enabled" | "IfPossible") => read_only && can,
            _ => false,
        };
        Ok(Mount {
            container_path: inside,
            host_path: host.to_string_lossy().into_owned(),
            readonly: read_only,
            propagation: propagation as i32,
            recursive_read_only: recursive,
            ..Mount::default()
        })
    }
}

fn plain(inside: &str, host: &Path) -> Mount {
    Mount {
        container_path: inside.to_owned(),
        host_path: host.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}

fn write(path: &Path, content: &str, mode: u32) -> Result<(), VolumeError> {
    let failed = || format!("cannot write {}", path.display());
    // The file is mounted in running containers, so it is rewritten in place, and only when it differs.
    if std::fs::read_to_string(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        volumes::make_dir(parent)?;
    }
    std::fs::write(path, content).map_err(volumes::io(failed()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(volumes::io(failed()))
}
