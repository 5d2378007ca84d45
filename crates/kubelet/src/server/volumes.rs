//! How full the volumes of pods are: what a volume's file system says, or for CSI what its driver tells.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use futures::StreamExt;

use super::Server;
use crate::csi::Usage;
use crate::node::capacity;
use crate::podutil::{self, spec};

/// Drivers that are asked at once.
const AT_ONCE: usize = 8;

/// What drivers told, by the path of the volume in its pod.
#[derive(Default)]
pub(super) struct Told(HashMap<PathBuf, Usage>);

impl Told {
    /// Asks the drivers of all volumes that may be theirs.
    pub(super) async fn ask(server: &Server) -> Told {
        let mut places = Vec::new();
        for pod in server.pods.list() {
            let paths = server.pods.volumes(podutil::uid(&pod));
            let volumes = spec(&pod).volumes.iter().flatten();
            let external =
                volumes.filter(|volume| volume.csi.is_some() || podutil::claim(&pod, volume).is_some());
            places.extend(external.filter_map(|volume| paths.get(&volume.name).cloned()));
        }
        let csi = &server.context.csi;
        let asked = futures::stream::iter(places)
            .map(|path| async move { Some((path.clone(), csi.usage(&path).await?)) })
            .buffer_unordered(AT_ONCE);
        Told(asked.filter_map(std::future::ready).collect().await)
    }

    /// The use of the volume at `path`, of which the file system as a whole counts where no driver told anything.
    pub(super) fn usage(&self, path: &Path) -> Option<Usage> {
        if let Some(usage) = self.0.get(path) {
            return Some(*usage);
        }
        let (capacity, available, inodes, inodes_free) = capacity::file_system(path)?;
        Some(Usage {
            capacity,
            available,
            used: capacity - available.min(capacity),
            inodes,
            inodes_free,
            inodes_used: inodes - inodes_free.min(inodes),
        })
    }
}
