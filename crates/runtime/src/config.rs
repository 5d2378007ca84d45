//! What the runtime is told when it is started.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::images::content::digest;

use crate::images::RegistryConfig;

/// Configuration of [`crate::serve`].
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Durable data: images, layers, records, the containers' own files. Not on overlayfs.
    pub root: PathBuf,
    /// Data that holds until the machine restarts: shims, bundles, mounts.
    pub state_dir: PathBuf,
    /// The CRI socket.
    pub socket: PathBuf,
    /// How pods get addresses.
    pub network: NetworkMode,
    /// How registries are reached.
    pub registry: RegistryConfig,
    /// The cgroup of pods for which the kubelet names none.
    pub cgroup_parent: String,
    /// The cgroup that shims are put in, away from the runtime's own.
    pub shim_cgroup: String,
    /// Tools in the built-in image; each becomes a link in its `/bin`.
    pub toolbox_applets: Vec<String>,
    /// Folders with specs of the Container Device Interface, the more important ones last.
    pub cdi_dirs: Vec<PathBuf>,
    /// Folders with OCI hooks, the more important ones last.
    pub hooks_dirs: Vec<PathBuf>,
    /// Names, beside the empty one, by which a pod may ask for this runtime (`runtimeHandler`).
    pub handlers: Vec<String>,
    /// Local profiles for seccomp are looked up here when they are named by a relative path.
    pub seccomp_dir: PathBuf,
}

impl RuntimeConfig {
    /// The usual configuration with everything below two directories.
    pub fn new(root: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        let (root, state_dir) = (root.into(), state_dir.into());
        Self {
            shim_cgroup: own_cgroup("carrack-shims", &root),
            cgroup_parent: own_cgroup("carrack-pods", &root),
            socket: state_dir.join("runtime.sock"),
            root,
            state_dir,
            network: NetworkMode::None,
            registry: RegistryConfig::default(),
            toolbox_applets: Vec::new(),
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            hooks_dirs: vec![
                "/usr/share/containers/oci/hooks.d".into(),
                "/etc/containers/oci/hooks.d".into(),
            ],
            handlers: vec!["carrack".into()],
            seccomp_dir: PathBuf::from("/var/lib/kubelet/seccomp"),
        }
    }
}

/// A cgroup of the runtime with this folder alone: another on the same machine must not take what is in it for what it has
/// lost itself. The end of the folder's path is for people, its hash tells it from all others.
fn own_cgroup(kind: &str, root: &Path) -> String {
    /// In characters; a name of a cgroup may have 255 bytes.
    const LONGEST: usize = 40;
    let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    let hash = digest(root.as_os_str().as_encoded_bytes());
    let hash = &hash["sha256:".len()..][..8];
    let name: Vec<char> = root.to_string_lossy().trim_matches('/').chars().collect();
    let name = &name[name.len().saturating_sub(LONGEST)..];
    let name: String = name.iter().map(|c| if *c == '/' { '-' } else { *c }).collect();
    format!("/{kind}-{name}-{hash}")
}

/// How pods get addresses.
#[derive(Debug, Clone, Default)]
pub enum NetworkMode {
    /// By Carrack's own routed links. The node's range comes by CRI's `UpdateRuntimeConfig`, unless it is given here.
    Pods {
        /// Leases.
        state_dir: PathBuf,
        /// This node's ranges, if they are known.
        ranges: Vec<IpNet>,
        /// The whole cluster's ranges: traffic to them is not masqueraded.
        cluster_ranges: Vec<IpNet>,
        /// MTU of the pods' links.
        mtu: Option<u32>,
    },
    /// By plugins of the Container Network Interface.
    Cni {
        /// Network configurations; the first by name is used.
        conf_dir: PathBuf,
        /// Plugins.
        bin_dirs: Vec<PathBuf>,
    },
    /// Pods have loopback only.
    #[default]
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_folder_has_cgroups_of_its_own() {
        let long = "/a/folder/whose/name/is/longer/than/what/is/kept/of/it/in/a/cgroup";
        let roots = [
            "/var/lib/carrack/runtime",
            "/var/lib-carrack/runtime",
            "/srv/carrack",
            &format!("/x{long}"),
            long,
        ];
        let configs = roots.map(|root| RuntimeConfig::new(root, "/run/carrack"));
        let groups = configs.iter().flat_map(|config| [&config.shim_cgroup, &config.cgroup_parent]);
        let groups: std::collections::BTreeSet<&String> = groups.collect();
        assert_eq!(groups.len(), 2 * roots.len(), "{groups:?}");
        assert!(groups.iter().all(|group| group.len() < 100 && group[1..].find('/').is_none()), "{groups:?}");
    }
}
