//! Local storage of pods: what they use of the node's disk, and whether that is more than their own limits allow.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cri::v1::PodSandboxStats;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::plan::{Use, bytes};
use crate::podutil::{self, init_containers, spec};
use crate::quantity;
use crate::volumes::pod_dir;

const STORAGE: &str = "ephemeral-storage";

fn limit(container: &Container) -> Option<u64> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    quantity::amount(limits, STORAGE).and_then(|limit| u64::try_from(limit).ok())
}

/// EmptyDirs on disk that have a size limit.
fn sized(pod: &Pod) -> impl Iterator<Item = (&str, u64)> {
    spec(pod).volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let on_disk = source.medium.as_deref().unwrap_or_default().is_empty();
        let limit =
            source.size_limit.as_ref().and_then(quantity::value).filter(|limit| on_disk && *limit > 0)?;
        Some((volume.name.as_str(), u64::try_from(limit).ok()?))
    })
}

/// Whether the pod has any limit of local storage.
pub(super) fn is_limited(pod: &Pod) -> bool {
    let containers = spec(pod).containers.iter().chain(init_containers(pod));
    sized(pod).next().is_some() || containers.into_iter().any(|container| limit(container).is_some())
}

/// Bytes and inodes below a folder, without what is mounted there.
pub(crate) fn disk_use(dir: &Path) -> (u64, u64) {
    let (mut size, mut inodes) = (0, 0);
    let Ok(root) = std::fs::symlink_metadata(dir) else { return (0, 0) };
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(data) = entry.metadata() else { continue };
            if data.dev() != root.dev() {
                continue;
            }
            size += data.blocks() * 512;
            inodes += 1;
            if data.is_dir() {
                left.push(entry.path());
            }
        }
    }
    (size, inodes)
}

/// What the pod uses of memory, processes and disk.
pub(super) fn measure(root: &Path, logs: &Path, pod: &Pod, stats: Option<&PodSandboxStats>) -> Use {
    let mut used = Use::default();
    let linux = stats.and_then(|stats| stats.linux.as_ref());
    if let Some(linux) = linux {
        let working = linux.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref());
        used.memory = working.map_or(0, |value| value.value);
        let count = linux.process.as_ref().and_then(|process| process.process_count.as_ref());
        used.processes = count.map_or(0, |value| value.value);
    }
    let logs = logs.join(crate::sandbox::log_dir(pod));
    for container in linux.into_iter().flat_map(|linux| &linux.containers) {
        let name = container.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
        let Some(name) = name.map(|metadata| metadata.name.clone()) else { continue };
        let layer = container.writable_layer.as_ref();
        let value = |value: Option<&cri::v1::UInt64Value>| value.map_or(0, |value| value.value);
        let (log_size, log_inodes) = disk_use(&logs.join(&name));
        let layer_size = value(layer.and_then(|layer| layer.used_bytes.as_ref()));
        let disk = layer_size + log_size;
        used.layers += layer_size;
        used.inodes += value(layer.and_then(|layer| layer.inodes_used.as_ref())) + log_inodes;
        let memory = container.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref());
        used.disk += disk;
        used.containers.push((name, disk, value(memory)));
    }
    let volumes = pod_dir(root, podutil::uid(pod)).join("volumes/kubernetes.io~empty-dir");
    for volume in spec(pod).volumes.iter().flatten() {
        let on_disk =
            volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty());
        if !on_disk {
            continue;
        }
        let (size, inodes) = disk_use(&volumes.join(&volume.name));
        used.disk += size;
        used.inodes += inodes;
        used.empty_dirs.push((volume.name.clone(), size));
    }
    used
}

/// Why the pod has to go, if it uses more than it may.
pub(super) fn exceeded(pod: &Pod, used: &Use) -> Option<String> {
    for (name, limit) in sized(pod) {
        let size = used.empty_dirs.iter().find(|(volume, _)| volume == name).map_or(0, |(_, size)| *size);
        if size > limit {
            let limit = bytes(limit);
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. "));
        }
    }
    let limits: Option<Vec<u64>> = spec(pod).containers.iter().map(limit).collect();
    if let Some(total) = limits.map(|limits| limits.iter().sum::<u64>()).filter(|total| *total > 0)
        && used.disk > total
    {
        let total = bytes(total);
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
        ));
    }
    for container in spec(pod).containers.iter().chain(init_containers(pod)) {
        let Some(limit) = limit(container) else { continue };
        let found = used.containers.iter().find(|(name, ..)| *name == container.name);
        if found.is_some_and(|(_, disk, _)| *disk > limit) {
            let (name, limit) = (&container.name, bytes(limit));
            return Some(format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. "));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_hold() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
            "containers": [{"name": "a", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}, {"name": "b"}]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        assert!(is_limited(&pod));
        let used = |volume: u64, container: u64| Use {
            disk: volume + container,
            containers: vec![("a".to_owned(), container, 0)],
            empty_dirs: vec![("v".to_owned(), volume)],
            ..Use::default()
        };
        assert_eq!(exceeded(&pod, &used(1 << 20, 2 << 20)), None);
        let why = exceeded(&pod, &used((1 << 20) + 1, 0)).expect("too much");
        assert_eq!(why, "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
        let why = exceeded(&pod, &used(0, 3 << 20)).expect("too much");
        assert_eq!(why, "Container a exceeded its local ephemeral storage limit \"2Mi\". ");
    }

    #[test]
    fn use_is_counted_in_blocks() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("d")).expect("made");
        std::fs::write(dir.path().join("d/f"), vec![1; 100_000]).expect("written");
        let (size, inodes) = disk_use(dir.path());
        assert!(size >= 100_000 && inodes == 2, "{size} {inodes}");
    }
}
