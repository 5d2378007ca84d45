//! The file of what was given, so that a restarted kubelet gives nothing twice and makes containers with the same devices.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plugins::device::ContainerAllocateResponse;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{Assignments, Given};

/// Upstream's name of the file.
pub(super) const FILE: &str = "kubelet_internal_checkpoint";

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Kept {
    pod_device_entries: Vec<Entry>,
    registered_resources: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod: String,
    container_name: String,
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    ids: BTreeSet<String>,
    /// The plug-in's answer in protobuf, base64.
    alloc_resp: String,
}

/// What was given, and the resources that were known.
pub(super) fn read(folder: &Path) -> (Assignments, Vec<String>) {
    let path = folder.join(FILE);
    let Ok(text) = std::fs::read(&path) else { return Default::default() };
    let kept: Kept = match serde_json::from_slice(&text) {
        Ok(kept) => kept,
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "what devices were given cannot be read; it is forgotten");
            return Default::default();
        }
    };
    let mut given = Assignments::new();
    for entry in kept.pod_device_entries {
        let answer = STANDARD.decode(entry.alloc_resp).unwrap_or_default();
        let answer = ContainerAllocateResponse::decode(answer.as_slice()).unwrap_or_default();
        let containers = given.entry(entry.pod).or_default();
        let resources = containers.entry(entry.container_name).or_default();
        resources.insert(entry.resource_name, Given { ids: entry.ids, answer });
    }
    (given, kept.registered_resources)
}

/// Writes the file anew, so that it is whole at any time.
pub(super) fn write(folder: &Path, given: &Assignments, resources: &[String]) {
    let entries = given.iter().flat_map(|(pod, containers)| {
        containers.iter().flat_map(move |(container, resources)| {
            resources.iter().map(move |(name, given)| Entry {
                pod: pod.clone(),
                container_name: container.clone(),
                resource_name: name.clone(),
                ids: given.ids.clone(),
                alloc_resp: STANDARD.encode(given.answer.encode_to_vec()),
            })
        })
    });
    let kept = Kept { pod_device_entries: entries.collect(), registered_resources: resources.to_vec() };
    let text = serde_json::to_vec(&kept).unwrap_or_default();
    let path = folder.join(FILE);
    let fresh = folder.join(format!("{FILE}.new"));
    let done = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&fresh, text))
        .and_then(|()| std::fs::rename(&fresh, &path));
    if let Err(error) = done {
        tracing::warn!(%error, path = %path.display(), "cannot keep what devices were given");
    }
}
