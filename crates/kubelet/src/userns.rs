//! Which numbers the pods with a user namespace of their own (`hostUsers: false`) have on the node: each a range that no other
//! pod has, kept beside the pod, so that a restart gives none twice. Rules: KEP-127.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cri::v1::{IdMapping, NamespaceMode, UserNamespace};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::podutil::{self, spec};
use crate::volumes::pod_dir;

/// Numbers of a pod: what the kernel's 16-bit interfaces can name.
const STANDARD: u32 = 65_536;
const FILE: &str = "userns";

/// A pod's range on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range {
    host_id: u32,
    length: u32,
}

/// Why a pod gets no numbers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserNamespaceError {
    #[error("no range of ids is left for a pod with hostUsers: false")]
    Full,
    #[error("cannot keep the pod's range of ids in {path}")]
    Keep {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The ranges of the node.
pub(crate) struct UserNamespaces {
    root: PathBuf,
    length: u32,
    most: u32,
    given: Mutex<BTreeMap<String, Range>>,
}

impl UserNamespaces {
    /// With what earlier runs gave. At most as many pods get a range as the node takes.
    pub(crate) fn new(root: &Path, length: Option<u32>, max_pods: u32) -> Self {
        let mut given = BTreeMap::new();
        for entry in std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            let text = std::fs::read(entry.path().join(FILE)).unwrap_or_default();
            if let Ok(range) = serde_json::from_slice(&text) {
                given.insert(uid, range);
            }
        }
        let length = length.unwrap_or(STANDARD);
        UserNamespaces { root: root.to_owned(), length, most: max_pods, given: Mutex::new(given) }
    }

    /// Gives the pod a range if it wants one; one that has some keeps it.
    pub(crate) fn give(&self, pod: &Pod) -> Result<(), UserNamespaceError> {
        if spec(pod).host_users != Some(false) {
            return Ok(());
        }
        let uid = podutil::uid(pod);
        let mut given = self.given.lock();
        if given.contains_key(uid) {
            return Ok(());
        }
        let overlaps = |start: u32| {
            let end = u64::from(start) + u64::from(self.length);
            given.values().any(|range| {
                u64::from(range.host_id) < end
                    && u64::from(start) < u64::from(range.host_id) + u64::from(range.length)
            })
        };
        // The node's own users are below the first range.
        let starts = (1..=self.most).filter_map(|number| {
            let start = number.checked_mul(self.length)?;
            start.checked_add(self.length).map(|_| start)
        });
        let mut free = starts.filter(|start| !overlaps(*start));
        let range = Range { host_id: free.next().ok_or(UserNamespaceError::Full)?, length: self.length };
        let path = pod_dir(&self.root, uid).join(FILE);
        let keep = || {
            std::fs::create_dir_all(pod_dir(&self.root, uid))?;
            let fresh = path.with_extension("new");
            failpoint::step("kubelet.users.write");
            std::fs::write(&fresh, serde_json::to_vec(&range).unwrap_or_default())?;
            std::fs::rename(fresh, &path)
        };
        keep().map_err(|source| UserNamespaceError::Keep { path: path.clone(), source })?;
        given.insert(uid.to_owned(), range);
        Ok(())
    }

    /// The pod's user namespace, as CRI wants it.
    pub(crate) fn of(&self, pod: &Pod) -> Option<UserNamespace> {
        let range = self.given.lock().get(podutil::uid(pod)).copied()?;
        let map = vec![IdMapping { host_id: range.host_id, container_id: 0, length: range.length }];
        Some(UserNamespace { mode: NamespaceMode::Pod as i32, uids: map.clone(), gids: map })
    }

    /// The pod is gone, with its folder.
    pub(crate) fn release(&self, uid: &str) {
        self.given.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ranges_are_apart_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let pod = |uid: &str, own: bool| -> Pod {
            let pod = json!({"metadata": {"uid": uid}, "spec": {"hostUsers": !own, "containers": []}});
            serde_json::from_value(pod).expect("a pod")
        };
        let start =
            |ranges: &UserNamespaces, uid: &str| ranges.of(&pod(uid, true)).map(|map| map.uids[0].host_id);
        let ranges = UserNamespaces::new(dir.path(), None, 2);
        for uid in ["a", "b", "a"] {
            ranges.give(&pod(uid, true)).expect("a range");
        }
        ranges.give(&pod("host", false)).expect("none is wanted");
        assert_eq!(
            [start(&ranges, "a"), start(&ranges, "b"), start(&ranges, "host")],
            [Some(65_536), Some(131_072), None]
        );
        assert!(matches!(ranges.give(&pod("c", true)), Err(UserNamespaceError::Full)));
        let later = UserNamespaces::new(dir.path(), None, 2);
        assert_eq!(start(&later, "b"), Some(131_072));
        later.release("a");
        later.give(&pod("c", true)).expect("a range");
        assert_eq!(start(&later, "c"), Some(65_536));
    }
}
