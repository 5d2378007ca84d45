//! Where things lie below a data folder.

use std::path::{Path, PathBuf};

/// The folder of one cluster's data.
#[derive(Clone, Debug)]
pub struct Paths(PathBuf);

impl Paths {
    /// Makes the folder, readable by its owner alone.
    pub fn make(data_dir: &Path) -> anyhow::Result<Paths> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for folder in [data_dir.to_owned(), data_dir.join("run"), data_dir.join("log")] {
            builder.create(&folder).map_err(|error| {
                anyhow::anyhow!("making {}: {error}; choose another folder with --data-dir", folder.display())
            })?;
        }
        Ok(Paths::existing(&data_dir.canonicalize()?))
    }

    /// The folder as it is.
    pub fn existing(data_dir: &Path) -> Paths {
        Paths(data_dir.to_owned())
    }

    pub fn data(&self) -> &Path {
        &self.0
    }
    pub fn store(&self) -> PathBuf {
        self.0.join("store.redb")
    }
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.0.join("admin.kubeconfig")
    }
    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }
    pub fn lock(&self) -> PathBuf {
        self.0.join("run/carrack.lock")
    }
    pub fn control_socket(&self) -> PathBuf {
        self.0.join("run/carrack.sock")
    }
    pub fn runtime(&self) -> PathBuf {
        self.0.join("runtime")
    }
    pub fn runtime_socket(&self) -> PathBuf {
        self.0.join("run/runtime.sock")
    }
    pub fn network(&self) -> PathBuf {
        self.0.join("network")
    }
    pub fn kubelet(&self) -> PathBuf {
        self.0.join("kubelet")
    }
    /// Holds where the kubelet's folder is known to drivers, if that is a link that we made.
    pub fn kubelet_link(&self) -> PathBuf {
        self.0.join("run/kubelet-link")
    }
    /// The node's own volumes.
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }
    pub fn pod_logs(&self) -> PathBuf {
        self.0.join("log/pods")
    }
    pub fn audit_log(&self) -> PathBuf {
        self.0.join("log/audit.log")
    }
    pub fn log(&self) -> PathBuf {
        self.0.join("log/carrack.log")
    }
}
